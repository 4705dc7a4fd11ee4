"""The gate: who may pass. The one place that turns a request and a session into a verdict.

Everything that forwards or answers asks here: the relay for each request, the gateway app for its pages. A verdict is
reached synchronously and without I/O whenever the session is already in this process; otherwise `judge` returns None and
`judge_later` asks the store. On routes that take programs' credentials one of those stands in a cookie's place, and decides
alone. Nothing passes without a verdict of kind PASS, and every verdict carries its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

from proxy import cookies
from proxy.credentials import AUTHORIZATION, Credential, Rejected, Scheme
from proxy.destinations import FIELD, read_destination
from proxy.errors import LogtoUnavailable, StoreUnavailable
from proxy.forwarding import Address, loops
from proxy.http1 import RequestHead
from proxy.membership import Doubt, Member, Members
from proxy.policy import Decision, Policy, Reason, RequestFacts
from proxy.routes import Match, Route, RouteTable, normalise_host
from proxy.session import Miss, Session, SessionStore
from proxy.settings import Settings
from proxy.sites import Sites
from proxy.verdict import OWN, Kind, Verdict, bad_request, on_the_way_out, signed_out

# Session cookies looked at in one request. A page on a sibling host can plant some beside the right one, but each costs a
# question to the store, and a head has room for hundreds.
_COOKIES_TRIED: Final = 4
_UNSEEN: Final = RequestFacts(method="", path="", client=None, now=0.0)  # for policies that ask only who is there
# For those that ask, of the request, only the method. Other methods exist, and are the client's to invent: not kept.
_OF_METHOD: Final = {
    method.encode(): RequestFacts(method=method, path="", client=None, now=0.0)
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
_KEPT: Final = 2 * len(_OF_METHOD)  # decisions kept in a session for each route that there is
_NOWHERE: Final[Members] = {}
_MISS: Final = Miss.MISS  # an enum's member costs more to look up than all else that is asked of a session here
_ELSEWHERE: Final = Rejected("it was made for another application")
_LOOP: Final = Verdict(Kind.LOOP, status=508, detail="the request has come back to the gateway that forwarded it")


class Verifier(Protocol):
    """Whom one kind of credential lets in: see `bearer.BearerTokens`."""

    def peek(self, credential: Credential) -> Session | Rejected | Literal[Miss.MISS]:
        """Answer without waiting, or MISS: ask `verify`."""

    async def verify(self, credential: Credential) -> Session | Rejected:
        """Find out; raises StoreUnavailable or LogtoUnavailable when nobody can tell."""

    def waits(self, session: Session) -> bool:
        """Whether a session that it gave out counts for nothing until somebody has vouched for its owner again."""


class Guilds(Protocol):
    """Who is in which Discord guild; see `discord.Discord`."""

    def peek(self, guild: str, user: str) -> Member | Doubt | None:
        """What is known, without waiting."""

    async def learn(self, guilds: Iterable[str], user: str) -> None:
        """Find out what `peek` does not know."""


def _lasting(policy: Policy, method: bytes) -> RequestFacts | None:
    """What `policy` sees of a request, where that is the same for every other one of `method`; else None."""
    if not policy.sees_request:
        return _UNSEEN
    return _OF_METHOD.get(method) if policy.sees_method_alone else None


def _asked_of_discord(verdict: Verdict) -> tuple[Policy, str]:
    """Of whom, and for which policy, a verdict would have needed to know."""
    if verdict.route is None or verdict.session is None or verdict.session.identity.discord_id is None:
        raise RuntimeError("only who has a Discord account can be asked about there")
    return verdict.route.policy, verdict.session.identity.discord_id


class Gate:
    """Judges requests against the routes, their policies and the session store of one gateway."""

    def __init__(
        self,
        settings: Settings,
        routes: RouteTable,
        store: SessionStore,
        guilds: Guilds | None = None,
        verifiers: Mapping[Scheme, Verifier] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`guilds` knows who is in which Discord guild; None: nobody does. `verifiers` know programs by their credentials."""
        self.routes = routes
        self._verifiers = verifiers or {}
        self._guilds = guilds
        self._group_names = settings.discord.groups if settings.discord is not None else {}
        self._store = store
        self._clock = clock
        self.sites = Sites(settings)
        self._only = self.sites.main if not self.sites.others else None
        self._prefix = settings.prefix.encode()
        self._prefix_slash = self._prefix + b"/"
        self._scheme = self.sites.main.origin.partition(b"://")[0] + b"://"

    def judge(self, head: RequestHead, host: str, client: Address | None) -> Verdict | None:
        """Judge a request to `host` from `client`; None when the session has to be read from the store first."""
        match = self.match(head, host)
        if isinstance(match, Verdict):
            return match
        credential = self.presented(head, match.route) if AUTHORIZATION in head.values else None
        session = self._peek(head, host) if credential is None else self._peek_credential(credential, host)
        if session is _MISS:
            return None
        verdict = self.decide(head, host, client, match, session)
        return None if self._guilds is not None and self._could_ask(verdict) else verdict

    async def judge_later(self, head: RequestHead, host: str, client: Address | None) -> Verdict:
        """As `judge`, reading the session from the store and asking Discord. Never raises for their sake: that is UNAVAILABLE."""
        match = self.match(head, host)
        if isinstance(match, Verdict):
            return match
        credential = self.presented(head, match.route)
        try:
            if credential is None:
                session: Session | Rejected | None = await self.session_of(head.values.get(b"cookie"), host)
            else:
                session = await self._verified(credential, host)
        except LogtoUnavailable as error:
            return Verdict(
                Kind.UNAVAILABLE, route=match.route, status=503, reason="logto_unavailable", detail=str(error)
            )
        except StoreUnavailable as error:
            if credential is not None:
                return Verdict(Kind.UNAVAILABLE, route=match.route, status=503, detail=str(error))
            # Fail closed, yet sign nobody out: the cookie is kept. What needs no session goes on, as nobody's request.
            verdict = self.decide(head, host, client, match, None)
            if verdict.kind is Kind.PASS:
                return verdict
            return Verdict(Kind.UNAVAILABLE, route=match.route, status=503, detail=str(error))
        verdict = self.decide(head, host, client, match, session)
        if self._could_ask(verdict) and self._guilds is not None:
            policy, user = _asked_of_discord(verdict)
            await self._guilds.learn(policy.guilds, user)
            verdict = self.decide(head, host, client, match, session)
        return verdict

    @staticmethod
    def presented(head: RequestHead, route: Route | None) -> Credential | None:
        """The credential of a program that decides about a request to `route`, in the place of any cookie."""
        if route is None or route.programs is None or AUTHORIZATION not in head.values:
            return None
        return route.programs.presented(head.values)

    def _peek_credential(self, credential: Credential, host: str) -> Session | Rejected | Literal[Miss.MISS]:
        verifier = self._verifiers.get(credential.scheme)
        if verifier is None or not credential.value:
            return Rejected("it cannot be read")
        found = verifier.peek(credential)
        return found if found is Miss.MISS else self._at_home(found, host)

    async def _verified(self, credential: Credential, host: str) -> Session | Rejected:
        found = self._peek_credential(credential, host)
        if found is Miss.MISS:
            found = self._at_home(await self._verifiers[credential.scheme].verify(credential), host)
        return found

    def _waits(self, session: Session) -> bool:
        verifier = self._verifiers.get(Scheme(session.via))
        return verifier is not None and verifier.waits(session)

    def _at_home(self, found: Session | Rejected, host: str) -> Session | Rejected:
        """An app password counts where the session counts that it was made in; what a token is for, it says itself."""
        elsewhere = isinstance(found, Session) and found.via == "password" and not self._admits(found, host)
        return _ELSEWHERE if elsewhere else found

    def _admits(self, session: Session, host: str) -> bool:
        return session.application in (self._only or self.sites.of(host)).admits

    def use(self, head: RequestHead, host: str) -> bool:
        """Note that the session a request was let pass for is in use; False when only `session_of` can."""
        return self._peek(head, host) is not Miss.MISS

    def shuts_out(self, head: RequestHead, host: str, client: Address | None, session: Session) -> bool:
        """Whether what is known by now, of the person and in Discord, refuses a request that was let pass for `session`, and
        is still being served.

        Asked again and again while it is, which keeps what is known fresh. What has not been asked yet refuses nothing.
        """
        match = self.match(head, host)
        if isinstance(match, Verdict) or match.route is None:
            return False
        if session.via != "bearer" and not self._admits(session, host):
            return True  # the settings have given the host to another application since
        # Where it is open to everyone it was let pass for the person by the route around.
        guarded = match._replace(route=match.route.around or match.route)
        verdict = self.decide(head, host, client, guarded, session)
        return verdict.kind in (Kind.FORBIDDEN, Kind.UNAVAILABLE) and not self._could_ask(verdict)

    def _could_ask(self, verdict: Verdict) -> bool:
        """Whether a verdict was reached, or groups are missing from it, for want of an answer of Discord's that may be had."""
        guilds = self._guilds
        if guilds is None or not (verdict.reason == Reason.MEMBERSHIP_UNKNOWN.value or self._has_groups(verdict)):
            return False
        policy, user = _asked_of_discord(verdict)
        return any(guilds.peek(guild, user) is Doubt.ASK for guild in policy.guilds)

    def _has_groups(self, verdict: Verdict) -> bool:
        """Whether the app is to be told of groups in Discord."""
        route, session = verdict.route, verdict.session
        return (
            bool(self._group_names)
            and verdict.kind is Kind.PASS
            and route is not None
            and bool(route.policy.guilds)
            and session is not None
            and session.identity.discord_id is not None
        )

    def members(self, policy: Policy, session: Session | None) -> Members:
        """What is known of the person in the guilds that `policy` names."""
        user = session.identity.discord_id if session is not None else None
        if user is None or self._guilds is None:
            return _NOWHERE
        known = ((guild, self._guilds.peek(guild, user)) for guild in policy.guilds)
        return {guild: member for guild, member in known if not isinstance(member, Doubt)}

    async def session_of(self, cookie_header: bytes | None, host: str) -> Session | None:
        """The session that a Cookie header carries to `host`, if it is alive and was made for there. Raises StoreUnavailable.

        A browser may send several cookies of our name (another path or domain, another application's, an older set-up): a stale
        one must not hide a valid one, so each is tried.
        """
        if cookie_header:
            site = self.sites.of(host)
            for value in cookies.find_all(cookie_header, site.cookie)[:_COOKIES_TRIED]:
                session = await self._store.load(value.decode("ascii", "replace"))
                if session is not None and session.application in site.admits:
                    return session
        return None

    def match(self, head: RequestHead, host: str) -> Match | Verdict:
        """Find the route of a request; a verdict where none decides: OWN, LOOP, AMBIGUOUS, NOT_FOUND."""
        path = head.path
        if path.startswith(self._prefix_slash) or path == self._prefix:
            return OWN
        if b"via" in head.values and loops(head):
            return _LOOP
        match = self.routes.match(host, path)
        if match.ambiguous:
            detail = "a path that a server behind could read as another one, with other rules"
            return Verdict(Kind.AMBIGUOUS, route=match.route, status=400, detail=detail)
        if match.route is None:
            return Verdict(Kind.NOT_FOUND, status=404)
        return match

    def routes_at(self, host: str) -> Iterator[Route]:
        """The routes that may be open to a session of the site that `host` belongs to."""
        site = self.sites.of(host)
        return (it for it in self.routes.routes if it.host is None or self.sites.of(it.host) is site)

    def organization_at(self, url: str) -> str | None:
        """The organization whose members alone may open `url`, an absolute one of ours; None where there is no such limit."""
        parts = urlsplit(url)
        match = self.routes.match(parts.netloc, (parts.path or "/").encode("utf-8", "surrogateescape"))
        return match.route.organization if match.route is not None else None

    def _peek(self, head: RequestHead, host: str) -> Session | Miss | None:
        site = self._only or self.sites.of(host)
        values: tuple[str, ...] | None = head.made.get(site.cookie)
        if values is None:
            values = head.made[site.cookie] = self._session_cookies(head.values.get(b"cookie"), site.cookie)
        for value in values:
            session = self._store.peek(value)
            if session is not None and (session is _MISS or session.application in site.admits):
                return session
        return None

    @staticmethod
    def _session_cookies(header: bytes | None, name: bytes) -> tuple[str, ...]:
        """The values in a Cookie field that may name a session, as far as they are looked at."""
        if header is None or name not in header:
            return ()
        found = cookies.find_all(header, name)[:_COOKIES_TRIED]
        return tuple(value.decode("ascii", "replace") for value in found)

    def decide(
        self, head: RequestHead, host: str, client: Address | None, match: Match, session: Session | Rejected | None
    ) -> Verdict:
        """Judge a request whose route has been found, for the person of `session` (None: nobody is signed in), or whose
        credential has been rejected.
        """
        route = match.route
        if route is None:  # match has answered this already; never pass what has no route
            return Verdict(Kind.NOT_FOUND, status=404)
        if isinstance(session, Rejected):
            return Verdict(Kind.REJECTED, route=route, status=401, detail=session.detail)
        if session is not None and session.via != "cookie" and self._waits(session):
            # Not 401: it is the right credential, and git, for one, would forget it.
            detail = "whoever made it has to sign in again first"
            return Verdict(Kind.FORBIDDEN, route=route, session=session, status=403, reason="owner_away", detail=detail)
        policy = route.policy
        facts = _lasting(policy, head.method)
        if session is not None and facts is not None:
            decision = self._of_person(route, session, facts)
        else:
            facts = facts if facts is not None else self._facts(head, client, policy, match.path, session)
            decision = policy.decide(session.identity if session is not None else None, facts)
        if not decision.allowed:
            verdict = self._refusal(head, route, session, decision)
            verdict.leaves = verdict.kind is Kind.SIGN_IN and match.path in route.logout
            return verdict
        groups: tuple[str, ...] = ()
        if route.around is not None and session is not None:
            # Whom the route around keeps out is nobody here: an app that makes accounts for new names must not make one for them.
            around = self.decide(head, host, client, match._replace(route=route.around), session)
            if self._could_ask(around):
                return around
            session, groups = (around.session, around.groups) if around.kind is Kind.PASS else (None, ())
        if head.upgrade is not None and session is not None and not self._same_origin(head, host, route):
            return self._foreign(route, session, policy.decide(None, facts))
        if FIELD in head.values and (refusal := self._leads_astray(head, host, client, route, session)) is not None:
            return refusal
        if facts.members and self._group_names:
            groups = self._groups(facts.members)
        reason = decision.reason.word
        verdict = Verdict(Kind.PASS, route=route, session=session, decision=decision, reason=reason, groups=groups)
        return on_the_way_out(verdict, head, match.path) if session is not None and route.logout else verdict

    def _of_person(self, route: Route, session: Session, facts: RequestFacts) -> Decision:
        """What the policy of `route` says by lasting `facts`: worked out once for each identity."""
        identity = session.identity
        key = (route, facts.method)
        kept = session.decisions.get(key)
        if kept is not None and kept[0] is identity:
            decision: Decision = kept[1]
            return decision
        decision = route.policy.decide(identity, facts)
        if len(session.decisions) >= _KEPT * len(self.routes.routes):
            session.decisions.clear()  # those for routes of earlier settings
        session.decisions[key] = (identity, decision)
        return decision

    def _facts(
        self, head: RequestHead, client: Address | None, policy: Policy, path: str, session: Session | None
    ) -> RequestFacts:
        return RequestFacts(
            method=head.method.decode("ascii"),
            path=path,
            client=client,
            now=self._clock(),
            signed_in_at=session.signed_in_at if session is not None else None,
            members=self.members(policy, session) if policy.guilds else _NOWHERE,
        )

    def _leads_astray(
        self, head: RequestHead, host: str, client: Address | None, route: Route, session: Session | None
    ) -> Verdict | None:
        """The verdict on a request that is let pass but names a second target, where that is not to be had; None if it is.

        That must lie with the same app, as RFC 4918 9.8.5 has it, and be open to the same person by its own rules.
        """
        found = read_destination(head.values[FIELD])
        if found is None:
            return bad_request(400, "the Destination is no URL, or there are several")
        there = found.authority.decode("ascii") or host
        ours = self.routes.knows(there) or normalise_host(there) == normalise_host(host)
        own = found.path == self._prefix or found.path.startswith(self._prefix_slash)
        match = self.routes.match(there, found.path)
        if match.ambiguous:
            detail = "a Destination that a server behind could read as another path, with other rules"
            return Verdict(Kind.AMBIGUOUS, route=match.route, status=400, detail=detail)
        ours = ours and self.sites.of(there) is self.sites.of(host)  # a session opens nothing on another application's
        if not ours or own or match.route is None or not route.serves_with(match.route):
            return bad_request(502, "the Destination is not with this app (RFC 4918 9.8.5)")
        if session is not None and session.via != "cookie" and match.route is not route:
            session = None  # a program's credential is for the route that took it
        policy = match.route.policy
        facts = _UNSEEN if not policy.sees_request else self._facts(head, client, policy, match.path, session)
        decision = policy.decide(session.identity if session is not None else None, facts)
        return None if decision.allowed else self._refusal(head, match.route, session, decision)

    def _groups(self, members: Members) -> tuple[str, ...]:
        """The names of the roles that somebody has in guilds, in the order of the settings."""
        held = {
            role for member in members.values() if member is not None and not member.pending for role in member.roles
        }
        return tuple(dict.fromkeys(name for role, name in self._group_names.items() if role in held))

    @staticmethod
    def _foreign(route: Route, session: Session, anonymous: Decision) -> Verdict:
        """A WebSocket opened by a page of another origin: it gets what it would get without the session, if anything."""
        if anonymous.allowed:
            return Verdict(Kind.PASS, route=route, decision=anonymous, reason=anonymous.reason.value)
        detail = "the WebSocket was opened by a page of another origin"
        return Verdict(Kind.FOREIGN_ORIGIN, route=route, session=session, decision=anonymous, status=403, detail=detail)

    @staticmethod
    def _refusal(head: RequestHead, route: Route, session: Session | None, decision: Decision) -> Verdict:
        if decision.needs_sign_in and (session is None or session.via == "cookie"):
            verdict = signed_out(head, route)
            verdict.decision, verdict.session = decision, session
            if session is not None:  # but not lately enough: whoever answers asks for the person, not for the cookie
                verdict.reason, verdict.detail = decision.reason.value, decision.detail
            return verdict
        unknown = decision.reason is Reason.MEMBERSHIP_UNKNOWN
        return Verdict(
            Kind.UNAVAILABLE if unknown else Kind.FORBIDDEN,
            route=route,
            session=session,
            decision=decision,
            status=503 if unknown else 403,
            reason=decision.reason.value,
            detail=decision.detail,
        )

    def _same_origin(self, head: RequestHead, host: str, route: Route) -> bool:
        """Whether a WebSocket's Origin is ours, or one that the route allows. Browsers always send one, and cookies go along
        whichever page opens it (cross-site WebSocket hijacking): programs that send none hold the cookie by their own doing.
        """
        origin = head.values.get(b"origin")
        if origin is None:
            return True
        origin = origin.lower()
        return (
            origin == (self._only or self.sites.of(host)).origin
            or origin == self._scheme + host.lower().encode("ascii", "replace")
            or origin in route.websocket_origins
        )
