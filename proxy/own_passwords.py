"""A person's app passwords: made on a page of theirs, shown once, listed, revoked. Only their own, for what they may open.

A password never stands in a URL, a log or a redirect: it is in the answer to the POST that made it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.account import Visit, Visits
from proxy.answers import Answers, call_of, locale_of, redirect
from proxy.app_passwords import NAME_CHARS, AppPasswords, TooLongAgo, TooMany
from proxy.gate import Gate
from proxy.pages import Action, Fact, MadePassword, Pages, PasswordForm, Passwords
from proxy.policy import RequestFacts
from proxy.provenance import from_own_page
from proxy.session import Session
from proxy.settings import Settings
from proxy.texts import Locale, text

_FORM: Final = "application/x-www-form-urlencoded"
_FORM_BYTES: Final = 4096
_FIELDS: Final = 10
_DAYS: Final = (1, 7, 30, 90, 180, 365)
_USUAL_DAYS: Final = 90
_DAY: Final = 86400.0


class OwnPasswords:
    """The page about somebody's app passwords."""

    def __init__(
        self, settings: Settings, gate: Gate, passwords: AppPasswords, visits: Visits, pages: Pages, answers: Answers
    ) -> None:
        self._public_url = settings.public_url
        self._host = settings.public_host
        self._admits = settings.admits
        self._here = settings.prefix + "/passwords"
        self._home = settings.prefix + "/"
        self._gate = gate
        self._passwords = passwords
        self._visits = visits
        self._pages = pages
        self._answers = answers

    @property
    def routes(self) -> list[Route]:
        """Where the gateway serves it."""
        return [
            Route(self._here, self.page, methods=["GET", "POST"]),
            Route(self._here + "/{id}/revoke", self.revoke, methods=["POST"]),
        ]

    @property
    def wanted_at(self) -> str | None:
        """The page's path, None when no route takes app passwords: there may be some to revoke, but nothing to lead there for."""
        routes = self._gate.routes.routes
        wanted = any(route.programs is not None and route.programs.app_passwords for route in routes)
        return self._here if wanted else None

    async def page(self, request: Request) -> Response:
        """GET /passwords: those there are, and the form to make one; POST makes one. For a stranger the way in."""
        visit = await self._visits.of(request)
        if visit is None:
            return self._stranger(request) if request.method != "POST" else self._answers.unauthenticated(request)
        if request.method != "POST":
            return await self._listed(request, visit)
        return await self._make(request, visit) if from_own_page(request, self._public_url) else self._refused(request)

    async def _make(self, request: Request, visit: Visit) -> Response:
        """Make one as the form says, and show it."""
        form = await _form(request)
        name = " ".join(form.get("name", "").split())
        route, days = form.get("route", ""), form.get("days", "")
        if not 0 < len(name) <= NAME_CHARS or not name.isprintable():
            return await self._listed(request, visit, form, "passwords.bad_name")
        if route not in self._routes(visit.session, call_of(request).client):
            return await self._listed(request, visit, form, "passwords.bad_route")
        if days not in map(str, self._days()):
            return await self._listed(request, visit, form, "passwords.bad_days")
        try:
            session, password = await self._passwords.issue(visit.session, name, route, int(days) * _DAY)
        except TooLongAgo:
            return await self._listed(request, visit, form, "passwords.too_old")
        except TooMany:
            return await self._listed(request, visit, form, "passwords.too_many")
        if await self._visits.of(request) is None:
            # Ended meanwhile, with all of their app passwords perhaps: this one must not be what is left of somebody's access.
            await self._passwords.revoke(visit.session.identity.sub, session.id)
            return self._answers.unauthenticated(request)
        return self._made(request, session, password)

    async def revoke(self, request: Request) -> Response:
        """POST /passwords/{id}/revoke: end one of one's own. What is not there, or not theirs, looks the same: the list."""
        visit = await self._visits.of(request)
        if visit is not None and not from_own_page(request, self._public_url):
            return self._refused(request)
        if visit is not None:
            there = await self._passwords.store.of_user(visit.session.identity.sub)
            if any(it.id == request.path_params["id"] and it.application in self._admits for it in there):
                await self._passwords.revoke(visit.session.identity.sub, request.path_params["id"])
        return redirect(self._here, 303)

    async def _listed(
        self, request: Request, visit: Visit, given: Mapping[str, str] | None = None, problem: str | None = None
    ) -> Response:
        """The page; with a `problem` of what was `given`, which stays in the form."""
        given, locale, days = given or {}, locale_of(request), self._days()
        there = self._public_url + self._here
        found = await self._passwords.store.of_user(visit.session.identity.sub)
        rows = [session for session in found if session.application in self._admits]
        form = PasswordForm(
            url=self._here,
            routes=self._routes(visit.session, call_of(request).client),
            days=days,
            name=given.get("name", "")[:NAME_CHARS],
            route=given.get("route", ""),
            chosen=given.get("days") or str(max((it for it in days if it <= _USUAL_DAYS), default=days[0])),
            name_chars=NAME_CHARS,
            problem=problem,
            sign_in=None if self._passwords.may_make(visit.session) else self._answers.sign_in_url(there, switch=True),
        )
        return self._pages.render(
            "passwords",
            locale=locale,
            status=200 if problem is None else 422,
            request_id=call_of(request).request_id,
            passwords=Passwords([self._row(row, locale) for row in rows], form),
            actions=[Action("action.home", self._home)],
        )

    def _made(self, request: Request, session: Session, password: str) -> Response:
        locale = locale_of(request)
        errand = session.errand
        return self._pages.render(
            "password_made",
            locale=locale,
            request_id=call_of(request).request_id,
            facts=[
                Fact("label.name", errand.name if errand is not None else ""),
                Fact("label.app", errand.route if errand is not None else ""),
                Fact("label.expires", text(locale, "value.utc", time=_minute(session.expires_at))),
            ],
            secret=password,
            actions=[Action("action.passwords", self._here)],
        )

    def _row(self, session: Session, locale: Locale) -> MadePassword:
        used = session.seen_at > session.created_at
        errand = session.errand
        return MadePassword(
            name=errand.name if errand is not None else "",
            route=errand.route if errand is not None else "",
            made=_minute(session.created_at),
            expires=_minute(session.expires_at),
            seen=text(locale, "home.seen", time=_minute(session.seen_at)) if used else text(locale, "passwords.unused"),
            waits=self._passwords.waits(session),
            revoke=f"{self._here}/{session.id}/revoke",
        )

    def _routes(self, session: Session, client: str) -> list[str]:
        """The routes that take app passwords and would let a program of this person's in from where they are now."""
        try:
            address = ip_address(client)
        except ValueError:
            address = None
        found = []
        for route in self._gate.routes_at(self._host):
            if route.programs is None or not route.programs.app_passwords:
                continue
            members = self._gate.members(route.policy, session)
            # As of a program: where rules ask for a sign-in of late, no app password helps.
            facts = RequestFacts("GET", route.path, address, 0.0, None, members)
            if route.policy.decide(session.identity, facts).allowed:
                found.append(route.name)
        return found

    def _days(self) -> list[int]:
        """What may be chosen for a life: some usual ones, and the longest there may be."""
        longest = int(self._passwords.terms.lifetime // _DAY)
        return sorted({*(days for days in _DAYS if days < longest), longest})

    def _stranger(self, request: Request) -> Response:
        sign_in = Action("action.sign_in", self._answers.sign_in_url(self._public_url + self._here))
        call = call_of(request)
        return self._pages.render("guest", locale=locale_of(request), request_id=call.request_id, actions=[sign_in])

    def _refused(self, request: Request) -> Response:
        actions = [Action("action.passwords", self._here)]
        return self._answers.answer(request, "passwords_refused", 403, reason="foreign_origin", actions=actions)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, the first of each name; nothing of what is no form, or far too large for this one."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        return {}
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            return {}
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        return {}
    return dict(reversed(pairs))


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
