"""Header fields on their way through: what is taken off, and what is put on.

The rule for identity is delete, then set. A client that could smuggle one of our names past us would be whoever it likes to
the app behind, so names are compared the way the most careless server behind could read them: CGI and WSGI turn
`X-Forwarded-User` and `x_forwarded_user` into the same variable, some servers do so with every character that is neither
letter nor digit. What `Connection` names is dropped before our fields are added, so it cannot name them away (RFC 9110 7.6.1).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from proxy import assertion, cookies
from proxy.claims import Identity, Tokens
from proxy.credentials import AUTHORIZATION, hidden
from proxy.destinations import FIELD, read_destination
from proxy.encodings import encoded_words, percent_encoded
from proxy.forwarding import PSEUDONYM, Origin
from proxy.http1 import Fields, RequestHead, ResponseHead, connection_options, may_tunnel
from proxy.rewriting import PLACES, WayBack, authority
from proxy.routes import Route
from proxy.settings import Settings

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
# Not for the app as they came: authority, expectation and Max-Forwards are settled here, and credentials for a proxy in front
# are not its business (RFC 9110 11.7).
_OURS: Final = frozenset((b"host", b"expect", b"max-forwards", b"proxy-authorization", b"proxy-authenticate"))

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
# What Grafana and others call `X-WEBAUTH-` names roles, too, which nobody may give themselves where no route sets them.
_RESERVED_PREFIXES: Final = (b"x-forwarded-", b"x-auth-request-", b"x-webauth-", b"x-postern-")
_RESERVED: Final = frozenset(
    (b"forwarded", b"x-real-ip", b"x-request-id", b"remote-user", b"remote-name", b"remote-email", b"remote-groups")
)
# These describe the edge, not the person; a trusted proxy's word on them is passed on.
_EDGE: Final = frozenset(
    (b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server", b"x-forwarded-ssl", b"x-forwarded-scheme")
)

# What becomes of a field.
_KEEP: Final = 0
_DROP: Final = 1
_EDGE_ONLY: Final = 2  # kept from a trusted proxy
_COOKIE: Final = 3  # kept without our own cookies
_PLACE: Final = 4  # kept, as browsers see places
_CREDENTIAL: Final = 5  # kept, unless it is one that the gateway takes
_FORWARDED_PREFIX: Final = b"x-forwarded-prefix"

_ENCODINGS: Final[Mapping[str, Callable[[bytes], bytes] | None]] = {
    "utf-8": None,
    "percent": percent_encoded,
    "rfc2047": encoded_words,
}
_FOLD: Final = re.compile(rb"[^a-z0-9]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FEW_DIGITS: Final = re.compile(rb"[0-9]{1,9}")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")
_NAMES_KEPT: Final = 1024  # distinct header names remembered per route; a client can invent any number


# RFC 9110 6.5.1: fields that control framing, routing, authentication, or processing have no business in trailers.
_NO_TRAILER: Final = frozenset(
    (b"authorization", b"set-cookie", b"content-encoding", b"content-type", b"content-range", b"cache-control", b"range",
     b"location", b"date", b"vary", b"age", b"expires", b"www-authenticate", b"via")
)  # fmt: skip
_VIA: Final = (b"Via: 1.0 %b\r\n" % PSEUDONYM, b"Via: 1.1 %b\r\n" % PSEUDONYM)  # by the minor version received


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
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate out of somebody's JSON
        return None


def identity_values(identity: Identity) -> dict[str, bytes | None]:
    """The values that the header families hand out, by their short names; None where the header stays absent."""
    return {
        "sub": field_value(identity.sub),
        "username": field_value(identity.username),
        "username_or_sub": field_value(identity.login),
        "email": field_value(identity.email),
        "name": field_value(identity.name.strip() if identity.name else None),
        # A role named "a,admin" must not become two groups.
        "groups": field_value(",".join(group for group in identity.groups if "," not in group)),
        "discord_id": field_value(identity.discord_id),
    }


class _Actions(dict[bytes, int]):
    """What becomes of a field by its name as sent. A hit costs one dictionary lookup; misses are remembered, in bounds."""

    def __init__(self, judge: Callable[[bytes], int]) -> None:
        super().__init__()
        self._judge = judge

    def __missing__(self, name: bytes) -> int:
        action = self._judge(name)
        if len(self) < _NAMES_KEPT:
            self[name] = action
        return action


class RouteHeaders:
    """The header fields of one route: compiled once, applied to each request and response."""

    def __init__(
        self,
        settings: Settings,
        route: Route,
        names_set_anywhere: Iterable[str],
        signer: assertion.AssertionSigner | None = None,
    ) -> None:
        """`names_set_anywhere`: what some route's templates set. A client must not be able to set that on any route."""
        self._strip = frozenset(fold(name.encode()) for name in (*names_set_anywhere, *route.header_remove))
        self._mapping = route.mapping
        self._prefix = route.mapping.strip.encode() if route.mapping is not None else b""
        self._host = b"" if route.preserve_host else authority(route.upstreams[0]).encode()
        # A second target of a request's goes the way of the first.
        scheme = b"https://" if route.upstreams[0].startswith("https:") else b"http://"
        self._origin = scheme + self._host if self._host else b""
        self._moves = self._mapping is not None or self._origin != b""
        self._way_back = WayBack(route.upstreams, settings.public_url.partition("://")[0], route.mapping)
        self._up = _Actions(self._upwards)
        written = frozenset(name.lower() for name, _ in route.response_set)
        taken_off = route.response_remove | written
        self._down = _Actions(lambda name: _DROP if name.lower() in taken_off else _downwards(name))
        self._answer_fields = b"".join(b"%b: %b\r\n" % field for field in route.response_set)
        self._silent = b"cache-control" in route.response_remove  # what the app says of caching is not passed on
        self._programs = hidden(route.name, route.programs, anywhere=any(it.app_passwords for it in settings.route))
        self._families = tuple(FAMILIES[family] for family in settings.identity.families)
        self._templates = tuple((name.encode(), template) for name, template in route.header_set)
        self._written = frozenset(name.lower() for name, _ in self._templates)
        self._encode = _ENCODINGS[route.encoding or settings.identity.encoding]
        self._own_cookies = cookies.own(settings)
        self._private = not route.policy.anonymous and b"cache-control" not in written
        self._signer = signer
        self._audience = (route.around or route).name
        self._key = object()  # what this route makes of a header section is kept with it under these
        self._trusted_key = object()
        self._answer_key = object()
        self.block_seconds = signer.renew_after if signer is not None else math.inf  # how long an identity block holds
        self.login_cookies, self.path = route.login_cookies, (route.around or route).path
        self.needs_tokens = any(template.needs_tokens for _, template in route.header_set)
        self.audiences = tuple(dict.fromkeys(it for _, template in route.header_set for it in template.audiences))

    def _upwards(self, name: bytes) -> int:
        lower, folded = name.lower(), fold(name)
        if lower == b"cookie":
            return _COOKIE
        if lower == AUTHORIZATION and self._programs is not None and not self._programs.passed_on:
            return _CREDENTIAL
        if lower == folded and folded in _EDGE:
            return _DROP if self._prefix and folded == _FORWARDED_PREFIX else _EDGE_ONLY
        if lower == FIELD and self._moves:
            return _DROP
        # `Content_Length` is Content-Length to whoever makes CGI variables of it, and another length than the one read here.
        if folded in HOP_BY_HOP or folded in _OURS or folded in _RESERVED or folded in self._strip:
            return _DROP
        return _DROP if folded.startswith(_RESERVED_PREFIXES) else _KEEP

    def identity_block(self, identity: Identity | None, tokens: Tokens | None) -> bytes:
        """The identity fields of a person, ready for the wire. An absent value is an absent field, never the client's."""
        fields = self._identity_fields(identity, tokens)
        return b"".join([b"%b: %b\r\n" % (name, value) for name, value in fields if value is not None])

    def answer_block(self, identity: Identity | None, tokens: Tokens | None) -> bytes:
        """The same for a proxy that copies fields of an answer: all of them, empty where there is no value.

        What is missing from the answer some proxies leave as the client sent it.
        """
        return b"".join(
            [b"%b: %b\r\n" % (name, value or b"") for name, value in self._identity_fields(identity, tokens)]
        )

    def _identity_fields(self, identity: Identity | None, tokens: Tokens | None) -> list[tuple[bytes, bytes | None]]:
        values = identity_values(identity) if identity is not None else {}
        fields: list[tuple[bytes, bytes | None]] = [
            (name.encode(), values.get(short))
            for family in self._families
            for short, name in family.items()
            if name.lower().encode() not in self._written  # the route's own word counts
        ]
        fields += [(name, field_value(template.render(identity, tokens))) for name, template in self._templates]
        if self._encode is not None:
            fields = [(name, self._encode(value) if value is not None else None) for name, value in fields]
        if self._signer is not None:
            now = time.time()
            signed = self._signer.sign(identity, self._audience, now) if identity is not None else None
            fields.append((assertion.HEADER, signed))
        return fields

    def to_upstream(self, head: RequestHead, origin: Origin, identity: bytes, request_id: bytes) -> bytes:
        """The request head to send upstream: the client's fields less what is not for the app, then ours."""
        target = head.target if self._mapping is None else self._mapping.up(head.target)
        key = self._trusted_key if origin.trusted else self._key
        kept = head.made.get(key)
        if kept is None:
            kept = head.made[key] = self._client_fields(head, origin)
        out = [head.method, b" ", target, b" HTTP/1.1\r\nHost: ", self._host or origin.host, b"\r\n", kept]
        if b"max-forwards" in head.values:  # its meaning depends on the method: not a thing to be kept with the others
            out.append(b"Max-Forwards: %b\r\n" % _one_less(head, head.values[b"max-forwards"]))
        if self._moves and FIELD in head.values:
            found = read_destination(head.values[FIELD])
            if found is not None:  # else the gate has not let it pass
                out.append(b"Destination: %b\r\n" % found.within(self._mapping, self._origin))
        out += (_request_framing(head), _VIA[head.minor], origin.fields)
        if self._prefix:  # what apps that know it put before every path they name
            outer = head.values.get(_FORWARDED_PREFIX, b"") if origin.trusted else b""
            out.append(b"X-Forwarded-Prefix: %b%b\r\n" % (outer.rstrip(b"/"), self._prefix))
        out += (b"X-Request-Id: ", request_id, b"\r\n", identity, b"\r\n")
        return b"".join(out)

    def _client_fields(self, head: RequestHead, origin: Origin) -> bytes:
        """The client's fields that go on to the app. They follow from the header section and `origin.trusted` alone."""
        out: list[bytes] = []
        actions = self._up
        named = connection_options(head.values[b"connection"]) if b"connection" in head.values else ()
        for field in head.fields:
            action = actions[field[0]]
            if action == _DROP or (named and field[0].lower() in named):
                continue
            if action == _KEEP or (action == _EDGE_ONLY and origin.trusted):
                out.append(b"%b: %b\r\n" % field)
            elif action == _COOKIE:
                left = cookies.strip(field[1], self._own_cookies)
                if left:
                    out.append(b"%b: %b\r\n" % (field[0], left))
            elif action == _CREDENTIAL and self._programs is not None and self._programs.presented(head.values) is None:
                out.append(b"%b: %b\r\n" % field)
        return b"".join(out)

    def addressed(self, block: bytes, name: bytes) -> bytes:
        """`block`, made by `to_upstream`, with the Host of the server that has been chosen, where it gets its own `name`."""
        if not self._host or name == self._host:
            return block
        start, _, rest = block.partition(b"\r\nHost: %b\r\n" % self._host)
        return b"%b\r\nHost: %b\r\n%b" % (start, name, rest)

    def to_client(
        self,
        head: ResponseHead,
        *,
        chunked: bool,
        connection: bytes,
        date: bytes,
        request_id: bytes,
        host: bytes = b"",
    ) -> bytes:
        """The response head to send to the client, who asked `host` (with its port; places stay as they are without).

        `chunked` and `connection` (a Connection field's value, or empty) are this side's framing. No Via is added: a gateway
        may do without (RFC 9110 7.6.3), and what stands behind it is nobody's business.
        """
        start = None if chunked else head.made.get(self._answer_key)
        if start is not None:
            end = b"\r\nConnection: %b\r\n\r\n" % connection if connection else b"\r\n\r\n"
            return b"".join((start, b"X-Request-Id: ", request_id, end))
        out = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
        values = head.values
        same_for_all = self._relay_fields(head, out, host)
        if chunked:
            out.append(b"Transfer-Encoding: chunked\r\n")
            if b"trailer" in values:
                out.append(b"Trailer: %b\r\n" % values[b"trailer"])
        elif b"content-length" in values and head.status != 204:
            # Kept on HEAD and 304 too, where it tells what the body would be; on 204 it is forbidden (RFC 9110 8.6).
            out.append(b"Content-Length: %b\r\n" % values[b"content-length"].partition(b",")[0].rstrip())
        if self._answer_fields:
            out.append(self._answer_fields)
        if self._private and (self._silent or (b"cache-control" not in values and b"expires" not in values)):
            out.append(_privacy(values))
        if b"date" not in values:
            out.append(b"Date: %b\r\n" % date)
        elif same_for_all and not chunked and head.status != 426 and b"x-request-id" not in values:
            head.made[self._answer_key] = b"".join(out)  # all that is left differs from answer to answer
        if b"x-request-id" not in values:
            out.append(b"X-Request-Id: %b\r\n" % request_id)
        if head.status == 426 and may_tunnel(values.get(b"upgrade", b"")):
            # RFC 9110 15.5.22: without the name of the protocol the answer says nothing.
            out.append(b"Upgrade: %b\r\n" % values[b"upgrade"])
            connection = b"upgrade, " + connection if connection else b"upgrade"
        if connection:
            out.append(b"Connection: %b\r\n" % connection)
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
        return [field for field in fields if self._up[field[0]] == _KEEP and field[0].lower() not in _NO_TRAILER]

    def _plain(self, head: ResponseHead, end: bytes) -> bytes:
        out = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
        self._relay_fields(head, out, b"")
        out.append(end)
        return b"".join(out)

    def _relay_fields(self, head: ResponseHead, out: list[bytes], host: bytes) -> bool:
        """Append the fields that an answer keeps, in their order; places as whoever asked `host` (if known) sees them.

        Returns whether they are the same whatever was asked.
        """
        actions = self._down
        values = head.values
        named = connection_options(values[b"connection"]) if b"connection" in values else ()
        same_for_all = True
        for field in head.fields:
            action = actions[field[0]]
            if action == _DROP or (named and field[0].lower() in named):
                continue
            name, value = field
            if action == _COOKIE:
                same_for_all = False
                if cookies.is_own(value, self._own_cookies):
                    continue  # an app behind must not be able to plant a session (session fixation)
                value = self._way_back.set_cookie(value, host) if host else value
            elif action == _PLACE:
                same_for_all = False
                value = self._way_back.place(name, value, host) if host else value
            out.append(b"%b: %b\r\n" % (name, value))
        return same_for_all


def _downwards(name: bytes) -> int:
    lower = name.lower()
    if lower in HOP_BY_HOP:
        return _DROP
    if lower in PLACES:
        return _PLACE
    return _COOKIE if lower == b"set-cookie" else _KEEP


def _request_framing(head: RequestHead) -> bytes:
    """The fields of a request that are between us and the app."""
    framing = b""
    values = head.values
    if head.length is None:
        framing = b"Transfer-Encoding: chunked\r\n"
        if b"trailer" in values:
            framing += b"Trailer: %b\r\n" % values[b"trailer"]
    elif b"content-length" in values:
        framing = b"Content-Length: %d\r\n" % head.length
    if head.expect_continue:
        framing += b"Expect: 100-continue\r\n"
    options = []
    if head.upgrade is not None:
        options.append(b"Upgrade")
        framing += b"Upgrade: %b\r\n" % head.upgrade
    elif head.length != 0:
        # An app that answers without reading the body would take it for further requests, past the gate and with whatever
        # identity is written in it ("CL.0 desync"). After this it must not process any (RFC 9112 9.6).
        options.append(b"close")
    if b"te" in values and head.minor == 1 and b"trailers" in connection_options(values[b"te"]):
        options.append(b"TE")  # a client that takes trailers can be given them (RFC 9110 10.1.4)
        framing += b"TE: trailers\r\n"
    return framing + b"Connection: %b\r\n" % b", ".join(options) if options else framing


def _one_less(head: RequestHead, value: bytes) -> bytes:
    """Max-Forwards as it goes on. Zero never gets here; on other methods than OPTIONS it means nothing (RFC 9110 7.6.2)."""
    return b"%d" % (int(value) - 1) if head.method == b"OPTIONS" and _FEW_DIGITS.fullmatch(value) else value


def forwards_left(head: RequestHead) -> int | None:
    """How many more times an OPTIONS request may be forwarded; None: as often as it takes (RFC 9110 7.6.2)."""
    value = head.values.get(b"max-forwards") if head.method == b"OPTIONS" else None
    return int(value) if value is not None and _FEW_DIGITS.fullmatch(value) else None


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
