"""Who is asking: the session behind a request to the gateway itself, and the pages that show it to its owner."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from proxy import cookies
from proxy.answers import Answers, account_fact, call_of, json_response, locale_of
from proxy.gate import Gate
from proxy.pages import Action, Fact, Pages, Place, SignedIn
from proxy.policy import RequestFacts
from proxy.session import Session, SessionStore, cookie_name
from proxy.settings import Settings
from proxy.texts import Locale, text


@dataclass(frozen=True, slots=True)
class Visit:
    """A live session and the cookie value that opened it."""

    session: Session
    cookie: str

    def __repr__(self) -> str:
        return f"Visit({self.session.id})"  # never the cookie


# Somebody's sessions for the page: rows, what ends all but the first, whether there are more; see `own_sessions.OwnSessions`.
Listed = Callable[[Visit, Locale], Awaitable[tuple[list[SignedIn], Action | None, bool]]]


class Visits:
    """Finds the session behind a request."""

    def __init__(self, settings: Settings, store: SessionStore) -> None:
        self._name = cookie_name(settings).encode()
        self._admits = settings.admits
        self._store = store

    async def of(self, request: Request) -> Visit | None:
        """The live session that `request` carries, made for this site, or None. Raises StoreUnavailable.

        Every cookie of our name is tried, as the gate does: a stale one must not hide a valid one.
        """
        header = "; ".join(request.headers.getlist("cookie")).encode("latin-1")
        for value in cookies.find_all(header, self._name):
            cookie = value.decode("ascii", "replace")
            session = await self._store.load(cookie)
            if session is not None and session.application in self._admits:
                return Visit(session, cookie)
        return None


class Account:
    """The page that says who you are and what you may open, and the same as JSON."""

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        visits: Visits,
        pages: Pages,
        answers: Answers,
        sessions: Listed,
        passwords: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`passwords` is the path of the page about app passwords, where there is anything to be done there."""
        self._public = urlsplit(settings.public_url)
        self._here = f"{settings.public_url}{settings.prefix}/"
        self._gate = gate
        self._visits = visits
        self._pages = pages
        self._answers = answers
        self._sessions = sessions
        self._more = [Action("action.passwords", passwords)] if passwords is not None else []
        self._clock = clock

    async def home(self, request: Request) -> Response:
        """Who you are, what you may open, and the way out; for a stranger the way in."""
        call, locale = call_of(request), locale_of(request)
        visit = await self._visits.of(request)
        if visit is None:
            sign_in = Action("action.sign_in", self._answers.sign_in_url(self._here))
            return self._pages.render("guest", locale=locale, request_id=call.request_id, actions=[sign_in])
        sessions, end_others, more = await self._sessions(visit, locale)
        return self._pages.render(
            "home",
            locale=locale,
            request_id=call.request_id,
            facts=list(_facts(visit.session, locale)),
            places=list(self._places(visit.session, call.client)),
            sessions=sessions,
            end_others=end_others,
            more_sessions=more,
            actions=[
                *self._more,
                Action("action.sign_out", f"{self._answers.prefix}/sign-out", post=True),
                Action("action.switch", self._answers.sign_in_url(self._here, switch=True)),
            ],
        )

    async def me(self, request: Request) -> Response:
        """The person and their session as JSON; 401 for a stranger. No token is in it, nor a claim nobody named."""
        visit = await self._visits.of(request)
        if visit is None:
            return self._answers.unauthenticated(request)
        identity, session = visit.session.identity, visit.session
        discord = {"id": identity.discord_id, "username": identity.discord_username} if identity.discord_id else None
        content: dict[str, Any] = {
            "sub": identity.sub,
            "username": identity.username,
            "name": identity.name,
            "email": identity.email,
            "picture": identity.picture,
            "roles": identity.roles,
            "organizations": identity.organizations,
            "organization_roles": identity.organization_roles,
            "discord": discord,
            "session": {
                "created_at": _iso(session.created_at),
                "signed_in_at": _iso(session.signed_in_at),
                "expires_at": _iso(session.expires_at),
            },
        }
        return json_response(content)

    def _places(self, session: Session, client: str) -> Iterator[Place]:
        """The routes of this site whose rules let this person open their first page from here and now."""
        try:
            address = ip_address(client)
        except ValueError:
            address = None  # a unix socket's peer: no rule on networks matches it
        for route in self._gate.routes_at(self._public.netloc):
            members = self._gate.members(route.policy, session)
            facts = RequestFacts("GET", route.path, address, self._clock(), session.signed_in_at, members)
            decision = route.policy.decide(session.identity, facts)
            if decision.allowed or decision.needs_sign_in:  # those for whom a sign-in of long ago will not do, too
                yield self._place(route.name, route.host, route.path)

    def _place(self, name: str, host: str | None, path: str) -> Place:
        # Every host is served by the same listener as the public one: its port goes for all.
        port = f":{self._public.port}" if self._public.port else ""
        netloc = self._public.netloc if host is None else host + port
        address = netloc + (path if path != "/" else "")
        if netloc.startswith("*"):
            return Place(name, address)
        return Place(name, address, f"{self._public.scheme}://{netloc}{quote(path)}")


def _facts(session: Session, locale: Locale) -> Iterator[Fact]:
    yield account_fact(session.identity)
    if session.identity.groups:
        yield Fact("label.roles", ", ".join(session.identity.groups))
    yield Fact("label.signed_in", _readable(session.signed_in_at, locale))
    yield Fact("label.ends", _readable(session.expires_at, locale))


def _readable(seconds: float, locale: Locale) -> str:
    return text(locale, "value.utc", time=f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
