"""Header fields on their way through: what is taken off, what is put on, and whose address a request came from.

The rule for identity is delete, then set. A client that could smuggle one of our names past us would be whoever it likes to
the app behind, so names are compared the way the most careless server behind could read them: CGI and WSGI turn
`X-Forwarded-User` and `x_forwarded_user` into the same variable, some servers do so with every character that is neither
letter nor digit. What `Connection` names is dropped before our fields are added, so it cannot name them away (RFC 9110 7.6.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from proxy import cookies
from proxy.claims import Identity, Tokens
from proxy.http1 import Fields, RequestHead, ResponseHead, connection_options
from proxy.routes import Route
from proxy.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# RFC 9110 7.6.1, with the fields that frame a message: each side of the gateway has its own.
HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"trailer",
        b"content-length",
    )
)
# Credentials for a proxy in front are not the app's business (RFC 9110 11.7).
_PROXY_ONLY: Final = frozenset((b"proxy-authorization", b"proxy-authenticate"))

FAMILIES: Final[dict[str, dict[str, str]]] = {
    "forwarded": {
        "sub": "X-Forwarded-User",
        "username": "X-Forwarded-Preferred-Username",
        "email": "X-Forwarded-Email",
        "name": "X-Forwarded-Name",
        "groups": "X-Forwarded-Groups",
        "discord_id": "X-Forwarded-Discord-Id",
    },
    "remote": {
        "username_or_sub": "Remote-User",
        "name": "Remote-Name",
        "email": "Remote-Email",
        "groups": "Remote-Groups",
    },
    "auth-request": {
        "sub": "X-Auth-Request-User",
        "username": "X-Auth-Request-Preferred-Username",
        "email": "X-Auth-Request-Email",
        "name": "X-Auth-Request-Name",
        "groups": "X-Auth-Request-Groups",
    },
}

# Everything an app may read as "a trusted proxy says". `remote-` has no prefix of its own: single names.
_RESERVED_PREFIXES: Final = (b"x-forwarded-", b"x-auth-request-", b"x-postern-")
_RESERVED: Final = frozenset(
    (b"forwarded", b"x-real-ip", b"x-request-id", b"remote-user", b"remote-name", b"remote-email", b"remote-groups")
)
# These describe the edge, not the person; a trusted proxy's word on them is passed on.
_EDGE: Final = frozenset(
    (b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server", b"x-forwarded-ssl", b"x-forwarded-scheme")
)

_KEEP: Final = 0
_DROP: Final = 1
_EDGE_ONLY: Final = 2
_COOKIE: Final = 3

_FOLD: Final = re.compile(rb"[^a-z0-9]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")
_NAMES_KEPT: Final = 1024  # distinct header names remembered per route; a client can invent any number


def fold(name: bytes) -> bytes:
    """`name` as the most careless server behind could read it: lower case, every other character a hyphen."""
    return _FOLD.sub(b"-", name.lower())


def field_value(text: str | None) -> bytes | None:
    """`text` as a field value in UTF-8, or None when it cannot be one without becoming something else.

    A control character is never cleaned away, nor are spaces at an end: `admin` with one more character is another person,
    and the cleaned value would be the administrator (RFC 9110 5.5 lets recipients strip white space).
    """
    if not text or text != text.strip(" \t") or _CONTROL.search(text):
        return None
    return text.encode("utf-8", "replace")


def identity_values(identity: Identity) -> dict[str, bytes | None]:
    """The values that the header families hand out, by their short names; None where the header stays absent."""
    return {
        "sub": field_value(identity.sub),
        "username": field_value(identity.username),
        "username_or_sub": field_value(identity.username or identity.sub),
        "email": field_value(identity.email),
        "name": field_value(identity.name.strip() if identity.name else None),
        # A role named "a,admin" must not become two groups.
        "groups": field_value(",".join(group for group in identity.groups if "," not in group)),
        "discord_id": field_value(identity.discord_id),
    }


class _Actions(dict[bytes, int]):
    """What becomes of a field by its name as sent. A hit costs one dictionary lookup; misses are remembered, in bounds."""

    def __init__(self, strip: frozenset[bytes]) -> None:
        super().__init__()
        self._strip = strip

    def __missing__(self, name: bytes) -> int:
        action = self._judge(name)
        if len(self) < _NAMES_KEPT:
            self[name] = action
        return action

    def _judge(self, name: bytes) -> int:
        lower = name.lower()
        if lower == b"cookie":
            return _COOKIE
        folded = fold(name)
        if folded in _EDGE and lower == folded:
            return _EDGE_ONLY
        if lower == b"host" or lower in HOP_BY_HOP or lower in _PROXY_ONLY:
            return _DROP
        if folded in self._strip or folded in _RESERVED or folded.startswith(_RESERVED_PREFIXES):
            return _DROP
        return _KEEP


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, after the word of trusted proxies: `scheme` and `host` as the browser sees them."""

    client: str
    address: Address | None
    scheme: bytes
    host: bytes
    trusted: bool  # the peer on the wire is a trusted proxy
    chain: bytes  # the X-Forwarded-For to send on


class Peer:
    """Whoever is at the other end of a connection. `origin` is the last one worked out: connections keep to one host."""

    __slots__ = ("address", "origin", "text", "trusted")

    def __init__(self, text: str, address: Address | None, trusted: bool) -> None:
        self.text = text
        self.address = address
        self.trusted = trusted
        self.origin: Origin | None = None


class Forwarding:
    """Decides whom to believe about the client's address, scheme and host: the only place that does."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, address: Address | None) -> bool:
        """Whether `address` is one of the trusted proxies'."""
        return address is not None and any(
            address.version == network.version and address in network for network in self._trusted
        )

    def peer(self, text: str) -> Peer:
        """What is to be known about whoever connected from `text`, an address, or "" for a unix socket."""
        address = parse_address(text)
        return Peer(text, address, self.trusts(address) or (not text and bool(self._trusted)))

    def origin(self, head: RequestHead, peer: Peer, scheme: bytes) -> Origin:
        """The origin of `head`, which arrived from `peer` over `scheme`."""
        if not peer.trusted:
            known = peer.origin
            if known is None or known.host != head.host:
                chain = peer.text.encode("ascii", "replace")
                known = peer.origin = Origin(peer.text, peer.address, scheme, head.host, False, chain)
            return known
        return self._forwarded(head, peer.text, peer.address, scheme)

    def _forwarded(self, head: RequestHead, peer: str, address: Address | None, scheme: bytes) -> Origin:
        values = head.values
        hops = [hop.strip() for hop in values.get(b"x-forwarded-for", b"").decode("latin-1").split(",") if hop.strip()]
        client, known = self._client(hops, peer, address)
        proto = values.get(b"x-forwarded-proto", scheme).rpartition(b",")[2].strip().lower()
        host = values.get(b"x-forwarded-host", head.host).rpartition(b",")[2].strip()
        chain = ", ".join([*(hop for hop in hops if parse_address(hop) is not None), *([peer] if peer else [])])
        return Origin(
            client,
            known,
            proto if proto in (b"http", b"https") else scheme,
            host if re.fullmatch(rb"[A-Za-z0-9._\[\]:-]{1,255}", host) else head.host,
            True,
            chain.encode("ascii", "replace"),
        )

    def _client(self, hops: Sequence[str], peer: str, address: Address | None) -> tuple[str, Address | None]:
        """The rightmost hop that is not a trusted proxy: everything left of it is the client's own invention."""
        client, known = peer, address
        for hop in reversed(hops):
            hop_address = parse_address(hop)
            if hop_address is None:
                break
            client, known = str(hop_address), hop_address
            if not self.trusts(hop_address):
                break
        return client, known


def parse_address(text: str) -> Address | None:
    """An IP address out of a hop ("1.2.3.4", "1.2.3.4:5", "[::1]:5", "::1%eth0"); IPv4-mapped ones become IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


class RouteHeaders:
    """The header fields of one route: compiled once, applied to each request and response."""

    def __init__(self, settings: Settings, route: Route, names_set_anywhere: Iterable[str]) -> None:
        removed = frozenset(fold(name.encode()) for name in route.header_remove)
        self._actions = _Actions(frozenset(fold(name.encode()) for name in names_set_anywhere) | removed)
        self._families = tuple(FAMILIES[family] for family in settings.identity.families)
        self._templates = tuple((name.encode(), template) for name, template in route.header_set)
        self._own_cookies = cookies.own(settings)
        self._private = not route.policy.anonymous
        self.needs_tokens = any(template.needs_tokens for _, template in route.header_set)

    def identity_block(self, identity: Identity | None, tokens: Tokens | None) -> bytes:
        """The identity fields of a person, ready for the wire. An absent value is an absent field, never the client's."""
        lines: list[bytes] = []
        if identity is not None:
            values = identity_values(identity)
            for family in self._families:
                for short, name in family.items():
                    value = values[short]
                    if value is not None:
                        lines.append(b"%b: %b\r\n" % (name.encode(), value))
        for name_bytes, template in self._templates:
            value = field_value(template.render(identity, tokens))
            if value is not None:
                lines.append(b"%b: %b\r\n" % (name_bytes, value))
        return b"".join(lines)

    def to_upstream(self, head: RequestHead, origin: Origin, identity: bytes, request_id: bytes) -> bytes:
        """The request head to send upstream: the client's fields less what is not for the app, then ours."""
        out = [b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (head.method, head.target, head.host)]
        actions = self._actions
        named = connection_options(head.values[b"connection"]) if b"connection" in head.values else ()
        for field in head.fields:
            action = actions[field[0]]
            if (action == _KEEP and not (named and field[0].lower() in named)) or (
                action == _EDGE_ONLY and origin.trusted
            ):
                out.append(b"%b: %b\r\n" % field)
            elif action == _COOKIE:
                left = cookies.strip(field[1], self._own_cookies)
                if left:
                    out.append(b"%b: %b\r\n" % (field[0], left))
        if head.upgrade is not None:
            out.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
        if head.length is None:
            out.append(b"Transfer-Encoding: chunked\r\n")
        elif b"content-length" in head.values:
            out.append(b"Content-Length: %d\r\n" % head.length)
        if origin.chain:
            out.append(b"X-Forwarded-For: %b\r\n" % origin.chain)
        out.append(
            b"X-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nX-Request-Id: %b\r\n%b\r\n"
            % (origin.scheme, origin.host, request_id, identity)
        )
        return b"".join(out)

    def to_client(self, head: ResponseHead, *, chunked: bool, close: bool, date: bytes, request_id: bytes) -> bytes:
        """The response head to send to the client. `chunked` and `close` are this side's framing."""
        out = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
        values = head.values
        named = connection_options(values[b"connection"]) if b"connection" in values else ()
        for field in head.fields:
            lower = field[0].lower()
            if lower in HOP_BY_HOP or (named and lower in named):
                continue
            if lower == b"set-cookie" and cookies.is_own(field[1], self._own_cookies):
                continue  # an app behind must not be able to plant a session (session fixation)
            out.append(b"%b: %b\r\n" % field)
        if chunked:
            out.append(b"Transfer-Encoding: chunked\r\n")
        elif b"content-length" in values:
            # Kept on HEAD and 304 too, where it tells what the body would be (RFC 9110 8.6).
            out.append(b"Content-Length: %b\r\n" % values[b"content-length"].partition(b",")[0].rstrip())
        if b"date" not in values:
            out.append(b"Date: %b\r\n" % date)
        if self._private and b"cache-control" not in values and b"expires" not in values:
            out.append(_privacy(values))
        if b"x-request-id" not in values:
            out.append(b"X-Request-Id: %b\r\n" % request_id)
        if close:
            out.append(b"Connection: close\r\n")
        out.append(b"\r\n")
        return b"".join(out)

    def interim(self, head: ResponseHead) -> bytes:
        """A 1xx response other than 101, for an HTTP/1.1 client (RFC 9110 15.2)."""
        return self._plain(head, b"\r\n")

    def switching(self, head: ResponseHead, upgrade: bytes) -> bytes:
        """The 101 that opens a tunnel."""
        return self._plain(head, b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % upgrade)

    def trailers(self, fields: Fields) -> Fields:
        """Trailer fields that may go on as trailers: none that frames, none that could be taken for identity, no cookie."""
        return [field for field in fields if self._actions[field[0]] == _KEEP and field[0].lower() not in _NO_TRAILER]

    def _plain(self, head: ResponseHead, end: bytes) -> bytes:
        lines = [b"%b: %b\r\n" % field for field in head.fields if field[0].lower() not in HOP_BY_HOP]
        return b"HTTP/1.1 %d %b\r\n%b%b" % (head.status, head.reason, b"".join(lines), end)


# RFC 9110 6.5.1: fields that control framing, routing, authentication, or processing have no business in trailers.
_NO_TRAILER: Final = frozenset(
    (b"authorization", b"set-cookie", b"content-encoding", b"content-type", b"content-range", b"cache-control", b"expect",
     b"range", b"location", b"date", b"vary", b"age", b"expires", b"max-forwards", b"www-authenticate", b"via")
)  # fmt: skip


def _privacy(values: dict[bytes, bytes]) -> bytes:
    """Cache-Control for an answer behind a sign-in whose app says nothing about caching.

    Such an app was written for an open network: without a word a browser may show its pages from the cache after the sign-out
    (Back button), and a shared cache may hand them to anybody (RFC 9111 3.5 covers Authorization, not cookies). Pages are not
    stored at all; anything else stays in the browser's own cache.
    """
    if values.get(b"content-type", b"").lower().startswith(b"text/html"):
        return b"Cache-Control: private, no-store\r\n"
    return b"Cache-Control: private\r\n"


def request_id_from(head: RequestHead, *, trusted: bool) -> bytes | None:
    """The X-Request-Id of a trusted proxy, when it is one that can be logged and sent on safely."""
    value = head.values.get(b"x-request-id") if trusted else None
    return value if value is not None and _REQUEST_ID.fullmatch(value) else None
