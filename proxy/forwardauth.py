"""Forward-auth: the gate asked by another proxy, which relays by itself. What was asked of that proxy, and how to answer it.

The proxy in front sends a request of its own for each one it got, and tells in header fields what that was. Those fields decide
who may open what, so they count only when the peer is one of `trusted_proxies`: with none configured nothing is believed, and
nobody is let through. Every dialect has its own words for the question, and its own idea of a refusal:

- `/auth`: Traefik's ForwardAuth, Caddy's forward_auth, HAProxy's auth-request: X-Forwarded-Method, -Host, -Uri. Whatever is not
  2xx goes to the browser as it is.
- `/auth/nginx`: nginx's auth_request: X-Original-Method and X-Original-URL. It knows 2xx, 401 and 403; anything else becomes a
  500, so a sign-in is a 401 that carries its Location.
- `/auth/envoy/…`: Envoy's ext_authz over HTTP: the request's own method and Host, its path appended. It wants exactly 200.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final
from urllib.parse import quote

from proxy.errors import MalformedRequest
from proxy.forwarding import Origin
from proxy.http1 import RequestHead, is_authority
from proxy.verdict import Kind, Verdict, challenge

_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}")
_TARGET: Final = re.compile(rb"/[\x21\x22\x24-\x7e\x80-\xff]*")
_URL: Final = re.compile(rb"https?://([^/?#@]+)(/[\x21\x22\x24-\x7e\x80-\xff]*)?", re.IGNORECASE)


class Dialect(Enum):
    """Whose words the question comes in; the value is what follows `/auth` in the path."""

    GENERIC = b""
    NGINX = b"/nginx"
    ENVOY = b"/envoy"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the proxy in front was asked for: a head to judge, and the host it was asked of."""

    dialect: Dialect
    head: RequestHead
    host: str


def dialect_of(path: bytes, auth_path: bytes) -> Dialect | None:
    """The dialect of a request for `path`; None when it is none of forward-auth's. `auth_path` is `{prefix}/auth`."""
    if not path.startswith(auth_path):
        return None
    rest = path[len(auth_path) :]
    if rest == Dialect.ENVOY.value or rest.startswith(Dialect.ENVOY.value + b"/"):
        return Dialect.ENVOY
    return next((dialect for dialect in (Dialect.GENERIC, Dialect.NGINX) if rest == dialect.value), None)


def read(head: RequestHead, origin: Origin, dialect: Dialect, auth_path: bytes) -> Asked:
    """What was asked of the proxy that sent `head`.

    Raises MalformedRequest: 403 when the peer is no trusted proxy, 400 when a field is missing or makes no sense; nginx, which
    would make a 500 of that, gets 403. All of them refuse.
    """
    if not origin.trusted:
        raise MalformedRequest(403, "forward-auth answers only the proxies in trusted_proxies")
    values = head.values
    malformed = 403 if dialect is Dialect.NGINX else 400
    if dialect is Dialect.ENVOY:
        method, host = head.method, origin.host
        target = head.target[len(auth_path) + len(dialect.value) :] or b"/"
    elif dialect is Dialect.NGINX and b"x-original-url" in values:
        method = values.get(b"x-original-method", b"")
        url = _URL.fullmatch(values[b"x-original-url"])
        if url is None:
            raise MalformedRequest(malformed, "X-Original-URL is not an absolute URL")
        host, target = url[1], url[2] or b"/"
    else:
        method = values.get(b"x-forwarded-method", b"")
        target = values.get(b"x-forwarded-uri", b"")
        host = values.get(b"x-forwarded-host", b"")
    if _METHOD.fullmatch(method) is None:
        raise MalformedRequest(malformed, "the forwarded method is missing or malformed")
    if _TARGET.fullmatch(target) is None:
        raise MalformedRequest(malformed, "the forwarded URI is missing or malformed")
    if not is_authority(host):
        raise MalformedRequest(malformed, "the forwarded host is missing or malformed")
    return Asked(dialect, _as_asked(head, method, target, host), host.decode("ascii"))


def _as_asked(head: RequestHead, method: bytes, target: bytes, host: bytes) -> RequestHead:
    """`head` as it would be had the client sent it here: its cookies and what it accepts, but that method, target and host."""
    asked = RequestHead(method, target, 1, head.fields, head.values)
    asked.path = target.partition(b"?")[0]
    asked.host = host
    # Hop-by-hop fields need not survive the question; what only a WebSocket handshake has does (RFC 6455 4.1).
    asked.upgrade = b"websocket" if b"sec-websocket-key" in head.values else None
    return asked


def allowed(block: bytes, date: bytes, request_id: bytes, connection: bytes) -> bytes:
    """The answer that lets a request through: exactly 200, with `block`, every identity field, empty where it has no value."""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nCache-Control: no-store\r\nDate: %b\r\nX-Request-Id: %b\r\n%b%b\r\n"
        % (date, request_id, block, b"Connection: %b\r\n" % connection if connection else b"")
    )


def refused_for_nginx(
    verdict: Verdict,
    values: Mapping[bytes, bytes],
    sign_in: str,
    url: str,
    date: bytes,
    request_id: bytes,
    connection: bytes,
) -> bytes:
    """The answer that nginx understands: 401 with the way to sign in, 503 while nobody can tell, else 403.

    `values` are the header fields of the request that was asked about, `sign_in` the absolute URL of the gateway's sign-in, `url`
    what the browser asked for and comes back to.
    """
    location = b""
    if verdict.kind in (Kind.SIGN_IN, Kind.UNAUTHENTICATED):
        status = b"401 Unauthorized"
        # Where the sign-in was too long ago, Logto has to ask again: else it would send the person back as they came.
        again = b"&prompt=login" if verdict.session is not None else b""
        location = b"Location: %b?return_to=%b%b\r\nWWW-Authenticate: %b\r\n" % (
            sign_in.encode("ascii", "replace"),
            quote(url, safe="").encode("ascii"),
            again,
            challenge(verdict, values).encode("ascii", "replace"),
        )
    elif verdict.kind is Kind.REJECTED:
        status = b"401 Unauthorized"
        location = b"WWW-Authenticate: %b\r\n" % challenge(verdict, values).encode("ascii", "replace")
    elif verdict.kind is Kind.UNAVAILABLE:
        status = b"503 Service Unavailable\r\nRetry-After: 5"
    else:
        status = b"403 Forbidden"
    return (
        b"HTTP/1.1 %b\r\nContent-Length: 0\r\nCache-Control: no-store\r\nDate: %b\r\nX-Request-Id: %b\r\n"
        b"X-Postern-Reason: %b\r\n%b%b\r\n"
        % (
            status,
            date,
            request_id,
            verdict.reason.encode("ascii", "replace"),
            location,
            b"Connection: %b\r\n" % connection if connection else b"",
        )
    )
