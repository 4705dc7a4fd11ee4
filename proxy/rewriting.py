"""Where an app believes to be, and where browsers see it: paths on the way up, redirects and cookies on the way back.

An app that sits below a prefix knows nothing of it, and one that goes by its internal name says that name in its redirects. Both
would lead browsers nowhere. On the way up only the beginning of a path is exchanged, byte for byte, never its rest and never the
query. The gate judges the path as the client sent it; what the app could read in the exchanged one is part of that judgement,
because `/app` + `/../x` and `/x` are two paths here and may be one there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from proxy import paths
from proxy.addresses import parse_url
from proxy.http1 import ResponseHead

PLACES: Final = frozenset((b"location", b"content-location", b"refresh"))  # what of an answer leads somewhere
_ABSOLUTE: Final = re.compile(rb"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//([^/?#\\]*)([^?#]*)(.*)", re.DOTALL)
_REFRESH: Final = re.compile(rb"([ \t]*[0-9.]+[ \t]*[;,][ \t]*url[ \t]*=[ \t]*([\"']?))(.*?)(\2[ \t]*)", re.IGNORECASE)
_PATH: Final = re.compile(rb"[?#]")
_PORT: Final = re.compile(rb":[0-9]+\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class PathMap:
    """Exchanges the beginning `strip` of a path for `add`. Both are plain paths without a slash at the end, or empty."""

    strip: str
    add: str

    def up(self, target: bytes) -> bytes:
        """The target for the app. Raises ValueError when `target` does not begin with `strip`."""
        path, mark, query = target.partition(b"?")
        strip = self.strip.encode()
        if not _below(path, strip):
            raise ValueError("the path does not begin with what is to be stripped")
        return (self.add.encode() + path[len(strip) :] or b"/") + mark + query

    def readings(self, raw_path: bytes) -> tuple[str, ...] | None:
        """Every path, as clients would write it, that the app could read in the target it gets for `raw_path`.

        None when it could read one that no client can ask for, outside of `add`, or when there are too many readings.
        """
        try:
            found = paths.readings(self.up(raw_path))
        except ValueError:
            return None
        back = []
        for path in (found.canonical, *found.others):
            if not f"{path}/".startswith(f"{self.add}/"):
                return None
            back.append(self.strip + path[len(self.add) :] or "/")
        return tuple(back) if found.complete else None

    def down(self, path: bytes) -> bytes:
        """A path of the app's as clients must ask for it. One that has the prefix already comes from an app that knows."""
        strip, add = self.strip.encode(), self.add.encode()
        if add and _below(path, add):
            return strip + path[len(add) :] or b"/"
        if add or _below(path, strip):
            return path
        return strip + path

    def cookie_path(self, path: bytes) -> bytes:
        """The Path of a cookie of the app's as browsers must compare it."""
        strip, add = self.strip.encode(), self.add.encode()
        if _below(add, path.rstrip(b"/")):
            return strip or b"/"
        return self.down(path)


class WayBack:
    """Puts right what the answers of one route say about where things are.

    `upstreams` are the route's URLs, `scheme` is that of browsers, `mapping` what happens to paths on the way up.
    """

    def __init__(self, upstreams: Sequence[str], scheme: str, mapping: PathMap | None) -> None:
        self._mapping = mapping
        self._scheme = scheme.encode()
        self._origins = frozenset(name for url in upstreams for name in _origins(url))
        self._hosts = frozenset(host for url in upstreams if (host := _host(url)) is not None)

    def place(self, name: bytes, value: bytes, host: bytes) -> bytes:
        """The value of one of the fields PLACES for a browser that asked `host` (with its port)."""
        return self.refresh(value, host) if name.lower() == b"refresh" else self.location(value, host)

    def location(self, value: bytes, host: bytes) -> bytes:
        """A URL reference of the app's. What leads to other servers, and what is relative to the page, stays as it is."""
        found = _ABSOLUTE.fullmatch(value)
        if found is None:
            return self._path(value) if value[:1] == b"/" else value
        scheme, authority, path, rest = found.groups(b"")
        origin = (scheme + b"://" if scheme else b"//").lower() + authority.lower()
        if origin not in self._origins and not self._is_browsers(origin, host.lower()):
            return value
        path = path or b"/"
        # An upstream's own name may be the browser's too, when both are on one machine.
        return self._scheme + b"://" + host + (self._mapping.down(path) if self._mapping else path) + rest

    def refresh(self, value: bytes, host: bytes) -> bytes:
        """The Refresh of old, `5; url=…`, which browsers follow like a redirect."""
        found = _REFRESH.fullmatch(value)
        return found[1] + self.location(found[3], host) + found[4] if found else value

    def set_cookie(self, value: bytes, host: bytes) -> bytes:
        """A cookie that the app sets for itself: below the prefix, and for the host that the browser knows.

        A `__Host-` cookie is bound to `Path=/` by its name (RFC 6265bis 4.1.3.2) and stays.
        """
        if self._mapping is None and b"domain" not in value.lower():
            return value
        pair, *attributes = value.split(b";")
        if pair.lstrip(b" \t")[:7].lower() == b"__host-":
            return value
        return b";".join([pair, *self._attributes(attributes, host)])

    def _attributes(self, attributes: Sequence[bytes], host: bytes) -> Iterator[bytes]:
        for attribute in attributes:
            name, _, content = attribute.partition(b"=")
            kind, content = name.strip(b" \t").lower(), content.strip(b" \t")
            if kind == b"path" and self._mapping is not None and content[:1] == b"/":
                yield name + b"=" + self._mapping.cookie_path(content)
            elif kind != b"domain" or not self._is_ours(content.removeprefix(b".").lower(), host):
                yield attribute

    def _path(self, value: bytes) -> bytes:
        if self._mapping is None:
            return value
        path = _PATH.split(value, maxsplit=1)[0]
        return self._mapping.down(path) + value[len(path) :]

    def _is_browsers(self, origin: bytes, host: bytes) -> bool:
        """Whether `origin` is the host that the browser asked. An app that does not know of TLS says http for it."""
        if origin in (b"//" + host, self._scheme + b"://" + host):
            return self._mapping is not None
        return self._scheme == b"https" and origin in (b"http://" + host, b"http://" + host + b":80")

    def _is_ours(self, domain: bytes, host: bytes) -> bool:
        """Whether `domain` is a name that only we know the app by: a browser would throw the whole cookie away."""
        name = _PORT.sub(b"", host.lower())
        return domain in self._hosts and name != domain and not name.endswith(b"." + domain)


def led_on(head: ResponseHead, location: bytes) -> ResponseHead:
    """`head`, of an app's answer to its own sign-out, as one that leads on to `location`: 303 (RFC 9110 15.4.4).

    What the app has done is done, and its word to forget its cookies goes along. So does a body, which nobody will see.
    """
    fields = [field for field in head.fields if field[0].lower() not in (b"location", b"refresh")]
    values = {name: value for name, value in head.values.items() if name not in (b"location", b"refresh")}
    if head.length is not None:
        values[b"content-length"] = b"%d" % head.length
    values[b"location"] = location
    led = ResponseHead(303, b"See Other", head.minor, [*fields, (b"Location", location)], values)
    led.length, led.chunked, led.keep_alive = head.length, head.chunked, head.keep_alive
    return led


def authority(url: str) -> str:
    """The Host of an upstream by its own name; a unix socket has none, and `localhost` is what most apps accept."""
    return "localhost" if url.startswith("unix:") else url.partition("://")[2]


def _host(url: str) -> bytes | None:
    return None if url.startswith("unix:") else parse_url(url).host.encode()


def _origins(url: str) -> Iterator[bytes]:
    """Every way to write the origin of `url`, and to leave out its scheme."""
    parts = parse_url("http://localhost" if url.startswith("unix:") else url)
    default = _DEFAULT_PORTS[parts.scheme]
    hosts = [f"{parts.host}:{parts.port or default}"]
    if parts.port is None:
        hosts.append(parts.host)
    for host in hosts:
        yield f"{parts.scheme}://{host}".encode()
        yield f"//{host}".encode()


def _below(path: bytes, prefix: bytes) -> bool:
    """Whether `path` is `prefix` or below it; everything is below the empty one."""
    return (path + b"/").startswith(prefix + b"/")
