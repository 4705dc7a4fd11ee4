"""Notations for where things are: the gateway's own URL, Logto's, the apps' behind, and what to listen on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Final

from proxy.notation import HOST, Notation, NotationError, quoted, string

_HOST: Final = rf"(?P<host>{HOST}|\[[0-9A-Fa-f:.]+\])"
_PORT: Final = r"(?::(?P<port>[0-9]{1,5}))?"
_URL: Final = re.compile(rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://{_HOST}{_PORT}(?P<path>/[^?#]*)?")
_LISTEN: Final = re.compile(rf"{_HOST}:(?P<port>[0-9]{{1,5}})")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_UNIX: Final = "unix:"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the gateway listens: `host` and `port`, or a unix socket's `path`. Port 0 takes any free one."""

    host: str | None = None
    port: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return _UNIX + self.path
        return f"[{self.host}]:{self.port}" if self.host and ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of an http or https URL: `host` in lower case, IPv6 in brackets; `port` only where it is not the scheme's."""

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`."""
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port is not None else "")


def parse_url(value: object) -> Url:
    """The parts of `value`. Raises NotationError with what is wrong, not echoing `value`: it may hold a password."""
    text = string(value)
    if re.search(r"[\x00-\x20\x7f\\]", text):
        raise NotationError("holds a space, a backslash or a control character")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _DEFAULT_PORTS:
        raise NotationError("is not an http or https URL")
    if "@" in re.split("[/?#]", rest, maxsplit=1)[0]:
        raise NotationError("holds a user name or password")
    if "?" in rest or "#" in rest:
        raise NotationError("has a query or fragment")
    found = _URL.fullmatch(text)
    if found is None:
        raise NotationError("has no valid host and port")
    scheme = scheme.lower()
    port = _port(found["port"], least=1) if found["port"] else None
    return Url(scheme, _host(found["host"]), None if port == _DEFAULT_PORTS[scheme] else port, found["path"] or "")


def default_url(public: Url, hosts: Sequence[str]) -> str:
    """The URL of the first of `hosts` that is no wildcard, reached as `public` is; "" when all are."""
    exact = next((host for host in hosts if not host.startswith("*.")), None)
    return replace(public, host=exact).origin if exact is not None else ""


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return f"[{IPv6Address(text[1:-1]).compressed}]"
        except ValueError:
            raise NotationError(f"{quoted(text)} is not an IPv6 address") from None
    return text.lower()


def _port(text: str, *, least: int) -> int:
    port = int(text)
    if not least <= port <= 65535:
        raise NotationError(f"port {port} is out of range")
    return port


def _read_origin(value: object) -> str:
    url = parse_url(value)
    if url.path not in ("", "/"):
        raise NotationError(f"has a path, {quoted(url.path)}")
    return url.origin


def _read_endpoint(value: object) -> str:
    url = parse_url(value)
    path = url.path.rstrip("/")
    if path.endswith("/oidc") or "/oidc/" in path:
        raise NotationError("is below /oidc")
    return url.origin + path


def _read_upstream(value: object) -> str:
    text = string(value)
    if text.startswith(_UNIX):
        return _UNIX + _socket(text)
    return _read_origin(text)


def _read_listen(value: object) -> Listen:
    text = string(value)
    if text.startswith(_UNIX):
        return Listen(path=_socket(text))
    found = _LISTEN.fullmatch(text)
    if found is None:
        raise NotationError(f"{quoted(text)} is not an address to listen on")
    return Listen(host=_host(found["host"]).strip("[]"), port=_port(found["port"], least=0))


def _read_route_host(value: object) -> str:
    text = string(value)
    if text.startswith("["):
        return _host(text)
    if not re.fullmatch(rf"(?:\*\.)?{HOST}", text):
        raise NotationError(f"{quoted(text)} is not a host")
    return text.lower()


def _socket(text: str) -> str:
    path = text.removeprefix(_UNIX)
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise NotationError(f"{quoted(text)} has no absolute path")
    if len(path.encode()) > 107:  # sockaddr_un
        raise NotationError("is too long for a unix socket")
    return path


PUBLIC_URL: Final = Notation(
    _read_origin,
    'the gateway as browsers see it, such as "https://apps.example.com", without a path',
    {"type": "string", "pattern": "^https?://"},
)
ENDPOINT: Final = Notation(
    _read_endpoint,
    'the URL of Logto, such as "https://auth.example.com", without /oidc',
    {"type": "string", "pattern": "^(?:https?://.*)?$"},
)
UPSTREAM: Final = Notation(
    _read_upstream,
    '"http://host:port", "https://host:port" or "unix:/path", without a path of the app',
    {"type": "string", "pattern": "^(?:https?://|unix:/)"},
)
LISTEN: Final = Notation(
    _read_listen,
    '"host:port", "[::1]:port" or "unix:/path"; 0.0.0.0 for every IPv4 address',
    {"type": "string", "minLength": 3},
)
ROUTE_HOST: Final = Notation(
    _read_route_host,
    'a host name without port such as "app.example.com", or "*.example.com"; in its ASCII form (xn--…)',
    {"type": "string", "pattern": rf"^(?:(?:\*\.)?{HOST}|\[[0-9A-Fa-f:.]+\])$"},
)
