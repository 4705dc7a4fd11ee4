"""Where a sign-in or a sign-out may lead back to: our own pages, and nothing else.

An open redirect on a sign-in page is how people are led to a copy of it. So a target is not cleaned but recognised: what does
not look exactly like a URL of ours, in characters that every parser reads alike, becomes the front page. The result is always
an absolute URL, which no browser can read as another site's the way it reads `//evil.example`, with slashes of either kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from proxy.addresses import parse_url
from proxy.paths import interpretations
from proxy.routes import normalise_host

LONGEST: Final = 8192

# RFC 3986 without `\`, spaces, controls and anything outside ASCII: browsers strip tabs and line breaks from URLs, take `\`
# for `/`, and map full-width characters (WHATWG URL 4.4). `<>"^`{|}` are left in: browsers send some of them raw.
_REST: Final = r"(?:[/?#][\x21-\x5b\x5d-\x7e]*)?"
_ABSOLUTE: Final = re.compile(
    rf"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    rf"(?P<rest>{_REST})"
)
_PATH: Final = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class ReturnPaths:
    """Judges where to lead people back to.

    `public_url` is the gateway's own; `hosts` says of a host (lower case, no port) whether a route is meant for it by name.
    Below `prefix` are the gateway's own paths: leading back to a sign-in or a sign-out would go round in circles.
    """

    def __init__(self, public_url: str, hosts: Callable[[str], bool], prefix: str = "/.postern") -> None:
        url = parse_url(public_url)
        self._public_url = url.origin
        self._public_host = normalise_host(url.host)
        self._scheme = url.scheme
        self._port = url.port or _DEFAULT_PORTS[url.scheme]
        self._hosts = hosts
        self._prefix = prefix

    @property
    def home(self) -> str:
        """The front page: where everything leads that is not ours."""
        return self._public_url + "/"

    def safe(self, return_to: str | None) -> str:
        """`return_to` as an absolute URL of ours, its path and query as they are; else the front page.

        A path alone is taken on `public_url`. Never raises.
        """
        if not return_to or len(return_to) > LONGEST:
            return self.home
        if _PATH.fullmatch(return_to):
            return self.home if self._is_own(return_to) else self._public_url + return_to
        found = _ABSOLUTE.fullmatch(return_to)
        origin = self._origin(found) if found is not None else None
        if found is None or origin is None:
            return self.home
        rest = found["rest"] if found["rest"].startswith("/") else "/" + found["rest"]
        return self.home if self._is_own(rest) else origin + rest

    def _origin(self, url: re.Match[str]) -> str | None:
        """The origin of `url` in its plain form, None if it is not ours.

        Cookies go by the plain form: with a dot at the end of the host a browser would come back without a session.
        """
        scheme = url["scheme"].lower()
        host = normalise_host(url["host"])
        if scheme != self._scheme or int(url["port"] or _DEFAULT_PORTS[scheme]) != self._port:
            return None
        if host == self._public_host:
            return self._public_url
        if not self._hosts(host):
            return None
        port = "" if self._port == _DEFAULT_PORTS[scheme] else f":{self._port}"
        return f"{scheme}://[{host}]{port}" if ":" in host else f"{scheme}://{host}{port}"

    def _is_own(self, target: str) -> bool:
        """Whether the path of `target`, however it is read, is one of the gateway's own; its page on the session may be."""
        path = re.split("[?#]", target, maxsplit=1)[0]
        if path == self._prefix + "/":
            return False
        return any(f"{reading}/".startswith(self._prefix + "/") for reading in interpretations(path.encode()))
