"""What the gate says of a request: the verdict with its reason, and what the gateway app is told with it. Only values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from proxy import cookies
from proxy.claims import Identity
from proxy.credentials import REALM
from proxy.errors import UpstreamProblem
from proxy.http1 import RequestHead
from proxy.policy import Decision
from proxy.routes import Route
from proxy.session_codec import Session


class Kind(Enum):
    """What becomes of a request."""

    PASS = "pass"  # noqa: S105 -- a verdict, not a password
    OWN = "own"  # below the gateway's own prefix
    SIGN_IN = "sign_in"  # a navigation without a session, or one of too long ago: 302 to Logto
    UNAUTHENTICATED = "unauthenticated"  # anything else without a session: 401
    REJECTED = "invalid_credential"  # a program's token or password that is not believed: 401
    FORBIDDEN = "forbidden"  # a session, but no rule allows it: 403
    FOREIGN_ORIGIN = "foreign_origin"  # a WebSocket opened by another site's page: 403
    NOT_FOUND = "no_route"  # 404
    AMBIGUOUS = "ambiguous_path"  # 400: could be read as a path with other rules
    LOOP = "loop_detected"  # 508: this very gateway has forwarded it before
    BAD_REQUEST = "bad_request"  # the relay could not read it: 4xx or 501, see `status`
    UNAVAILABLE = "store_unavailable"  # the session store, or Discord, cannot be asked: 503
    UPSTREAM = "upstream"  # the app behind failed: 502 or 504, see `status`
    OVERLOADED = "overloaded"  # too many connections: 503


class Verdict:
    """What the gate says of one request, with the reason that pages, logs and `explain` show.

    `reason` is a stable word for machines, `detail` a sentence for people who run the gateway, `status` the answer's status
    where the gateway answers (0 for PASS and OWN). `groups` are those that Discord puts the person in. `leaves`: the person is
    signing out of the app, and is to be led on from its answer; with SIGN_IN: wants to, and need not sign in
    for that. `leaves_next`: a script is signing the person out, and the page that comes next is to be led on.
    """

    __slots__ = (
        "decision",
        "detail",
        "groups",
        "kind",
        "leaves",
        "leaves_next",
        "reason",
        "route",
        "session",
        "status",
    )

    def __init__(
        self,
        kind: Kind,
        *,
        route: Route | None = None,
        session: Session | None = None,
        decision: Decision | None = None,
        status: int = 0,
        reason: str = "",
        detail: str = "",
        groups: tuple[str, ...] = (),
        leaves: bool = False,
        leaves_next: bool = False,
    ) -> None:
        self.leaves = leaves
        self.leaves_next = leaves_next
        self.groups = groups
        self.kind = kind
        self.route = route
        self.session = session
        self.decision = decision
        self.status = status
        self.reason = reason or kind.value
        self.detail = detail

    @property
    def identity(self) -> Identity | None:
        """Who is there, as the app is told."""
        if self.session is None:
            return None
        identity = self.session.identity
        if self.route is not None and self.route.organization is not None:
            identity = identity.within(self.route.organization)
        return replace(identity, guild_groups=self.groups) if self.groups else identity

    @property
    def told(self) -> object:
        """What the identity fields for the app are kept under: they are the same for the same of these, in one session."""
        return (self.route, self.groups) if self.groups else self.route

    def __repr__(self) -> str:
        return f"Verdict({self.kind.name}, route={self.route.name if self.route else None}, reason={self.reason!r})"


@dataclass(frozen=True, slots=True)
class Call:
    """What the gateway app is told about a request, in `scope["postern"]`."""

    verdict: Verdict
    request_id: str
    client: str  # address of the client, trusted proxies taken off
    scheme: str  # as the browser sees it
    host: str  # as the browser sees it, with its port
    url: str  # absolute, as the browser asked for it


_COOKIES_ONLY: Final = f'Cookie realm="{REALM}"'
OWN: Final = Verdict(Kind.OWN)


def upstream_failed(problem: UpstreamProblem, route: Route | None, session: Session | None) -> Verdict:
    """The verdict for a request that passed the gate but got no usable answer."""
    return Verdict(Kind.UPSTREAM, route=route, session=session, status=problem.status, reason=problem.value)


def bad_request(status: int, detail: str) -> Verdict:
    """The verdict for bytes that are no acceptable request."""
    return Verdict(Kind.BAD_REQUEST, status=status, detail=detail)


def signed_out(head: RequestHead, route: Route | None) -> Verdict:
    """The verdict for a request whose session has ended before it was answered."""
    navigation = head.upgrade is None and is_navigation(head.method, head.values)
    kind = Kind.SIGN_IN if navigation else Kind.UNAUTHENTICATED
    return Verdict(kind, route=route, status=302 if navigation else 401)


def challenge(verdict: Verdict, values: Mapping[bytes, bytes]) -> str:
    """The `WWW-Authenticate` of a 401 for `verdict`, on a request with these header fields, by lower-case name.

    RFC 9110 11.6.1 wants one with every 401. No registered scheme means "a session cookie", and Basic or Bearer would make
    clients ask for credentials that most routes do not take; what a client does not know it ignores.
    """
    programs = verdict.route.programs if verdict.route is not None else None
    if programs is None:
        return _COOKIES_ONLY
    error, detail = ("invalid_token", verdict.detail) if verdict.kind is Kind.REJECTED else ("", "")
    by_browser = b"sec-fetch-mode" in values or b"x-requested-with" in values
    return programs.challenge(error, detail, by_browser=by_browser) or _COOKIES_ONLY


def on_the_way_out(verdict: Verdict, head: RequestHead, path: str) -> Verdict:
    """`verdict`, that lets somebody pass to `path`, when they are signing out of the app there, or a script has done that."""
    if verdict.route is not None and path in verdict.route.logout:
        verdict.leaves = shows_a_page(head.method, head.values)
        verdict.leaves_next = is_background(head.values)
        return verdict
    header = head.values.get(b"cookie", b"")
    if cookies.LEAVING in header and cookies.find(header, cookies.LEAVING) and is_navigation(head.method, head.values):
        verdict.kind, verdict.status, verdict.leaves = Kind.SIGN_IN, 302, True
    return verdict


def shows_a_page(method: bytes, values: dict[bytes, bytes]) -> bool:
    """Whether a browser shows the answer in place of the page that asked: a link followed, or a form sent."""
    return method in (b"GET", b"POST") and is_navigation(b"GET", values)


def is_background(values: dict[bytes, bytes]) -> bool:
    """Whether a script of a page of this very origin asks (Fetch metadata 2.2, 2.4); no image on somebody's page does."""
    mode, site = values.get(b"sec-fetch-mode"), values.get(b"sec-fetch-site")
    return site == b"same-origin" and mode in (b"cors", b"same-origin")


def is_navigation(method: bytes, values: dict[bytes, bytes]) -> bool:
    """Whether a browser would show the answer as a page, so that sending it to a sign-in makes sense.

    Fetch metadata decides where the browser sends it. A prefetch is not a person's wish: it must not start a sign-in, nor may
    an old browser's XHR, which only `X-Requested-With` gives away.
    """
    if method not in (b"GET", b"HEAD") or b"prefetch" in values.get(b"sec-purpose", values.get(b"purpose", b"")):
        return False
    mode = values.get(b"sec-fetch-mode")
    if mode is not None:
        return mode == b"navigate"
    return b"text/html" in values.get(b"accept", b"") and b"x-requested-with" not in values
