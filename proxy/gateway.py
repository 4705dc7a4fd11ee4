"""The Starlette app: everything that Postern says itself, from the sign-in to the 404.

It is asked for what the gate does not pass, with the verdict in `scope["postern"]`. Requests below the gateway's own
prefix (verdict OWN) are routed here; a navigation without a session is sent to Logto; answers.py refuses whatever else
there is. Nothing here lets a request through to an app.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.account import Account, Visits
from proxy.answers import RETRY_AFTER, Answers, call_of, json_response
from proxy.app_passwords import AppPasswords
from proxy.applications import Applications
from proxy.assertion import signer_of
from proxy.errors import PosternError, StoreUnavailable
from proxy.gate import Gate
from proxy.identity import RelyingParty
from proxy.notices import Notices
from proxy.own_passwords import OwnPasswords
from proxy.own_sessions import OwnSessions
from proxy.pages import Pages
from proxy.redirects import ReturnPaths
from proxy.session import SessionStore
from proxy.settings import Settings
from proxy.signin import SignIn
from proxy.signout import Revocations, SignOut
from proxy.sites import Site, Sites
from proxy.verdict import Kind

_log = logging.getLogger("postern.gateway")

_STORE_PATIENCE: Final = 2.0  # seconds a readiness probe waits for the store's answer
_LOGTO_PATIENCE: Final = 0.5  # and for Logto's, which decides nothing
_LOGTO_FRESH: Final = 10.0  # seconds one look at Logto is good for, so that probes cannot be used to flood it
_DRAIN_SECONDS: Final = 5.0


def create_app(
    settings: Settings,
    gate: Gate,
    store: SessionStore,
    relying_party: RelyingParty,
    pages: Pages,
    returns: ReturnPaths,
    sign_ins: Counter[str] | None = None,
    passwords: AppPasswords | None = None,
    *,
    applications: Applications | None = None,
    main: Starlette | None = None,
) -> Starlette:
    """Build the app of one site. What a server without ASGI's lifespan needs when it stops is in its `state`: `health`,
    `revocations`.

    Sign-ins that end are counted in `sign_ins` by result. Without `passwords` there is no page about app passwords.
    `applications` knows whose tokens are to be revoked. The app of the `main` site, which has those of the others answer for
    their hosts (`elsewhere`), shares with them what a gateway has one of.
    """
    answers = Answers(settings, pages, returns)
    visits = Visits(settings, store)
    revocations = Revocations(applications or relying_party) if main is None else main.state.revocations
    parts = (settings, store, relying_party, visits, pages, answers, returns, revocations)
    sign_in = SignIn(*parts, Counter() if sign_ins is None else sign_ins, gate.organization_at)
    sign_out = SignOut(*parts)
    sessions = OwnSessions(settings, store, visits, answers)
    own_passwords = OwnPasswords(settings, gate, passwords, visits, pages, answers) if passwords is not None else None
    more = own_passwords.wanted_at if own_passwords is not None else None
    account = Account(settings, gate, visits, pages, answers, sessions.listed, more)
    notices = Notices(settings, store, relying_party, passwords) if main is None else main.state.notices
    health = Health(store, relying_party) if main is None else main.state.health
    own: dict[str, Callable[[Request], object]] = {
        "": account.home,
        "/": account.home,
        "/me": account.me,
        "/sign-in": sign_in.start,
        "/callback": sign_in.callback,
        "/sign-out": sign_out.sign_out,
        "/signed-out": sign_out.signed_out,
        "/healthz": health.alive,
        "/readyz": health.ready,
        "/jwks.json": Keys(settings).jwks,
    }
    posted: dict[str, Callable[[Request], object]] = {
        "/sessions/end-others": sessions.end_others,
        "/sessions/{id}/end": sessions.end,
        "/backchannel-logout": notices.backchannel_logout,
        "/hooks/logto": notices.webhook,
    }
    routes = [*_routes(settings.prefix, own, posted), *(own_passwords.routes if own_passwords is not None else ())]
    app = _assembled(routes, gate.sites, answers, sign_in, revocations)
    app.state.health, app.state.notices = health, notices
    return app


def _assembled(
    routes: Sequence[Route], sites: Sites, answers: Answers, sign_in: SignIn, revocations: Revocations
) -> Starlette:
    elsewhere: dict[Site, Starlette] = {}
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(_ByHost, sites=sites, elsewhere=elsewhere),
            Middleware(_Frame, answers=answers, sign_in=sign_in),
        ],
        exception_handlers={HTTPException: _Unrouted(answers)},
        lifespan=_lifespan_with(revocations),
    )
    app.router.redirect_slashes = False  # an unknown path is a 404, and nothing else is learnt from it
    app.state.revocations, app.state.elsewhere = revocations, elsewhere
    return app


def _routes(
    prefix: str, own: dict[str, Callable[[Request], object]], posted: dict[str, Callable[[Request], object]]
) -> Iterator[Route]:
    for path, endpoint in own.items():
        yield Route(prefix + path, endpoint, methods=["GET", "POST"] if path == "/sign-out" else ["GET"])
    for path, endpoint in posted.items():
        yield Route(prefix + path, endpoint, methods=["POST"])


def _lifespan_with(revocations: Revocations) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await revocations.drain(_DRAIN_SECONDS)

    return lifespan


class Health:
    """Alive, and able to serve. Set `draining` when the server is to stop: it is then no longer ready, though it serves."""

    def __init__(
        self, store: SessionStore, relying_party: RelyingParty, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._relying_party = relying_party
        self._clock = clock
        self._logto = "unknown"
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self.draining = False

    async def alive(self, _: Request) -> Response:
        """GET /healthz: this process answers. Says nothing of what it needs: a restart would not repair that."""
        return json_response({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /readyz: 503 while sessions cannot be checked. Logto is reported, not required: who is in stays in."""
        store, logto = await asyncio.gather(self._store_state(), self._logto_state())
        status = "draining" if self.draining else "ready" if store == "ok" else "unavailable"
        response = json_response({"status": status, "store": store, "logto": logto}, 200 if status == "ready" else 503)
        if status != "ready":
            response.headers["Retry-After"] = RETRY_AFTER
        return response

    async def _store_state(self) -> str:
        try:
            async with asyncio.timeout(_STORE_PATIENCE):
                await self._store.ping()
        except (StoreUnavailable, TimeoutError):
            return "unavailable"
        return "ok"

    async def _logto_state(self) -> str:
        """What the latest look at Logto found. One look at a time; a probe waits only so long for it, since it has a
        deadline of its own and would take a slow Logto for a gateway that is not ready.
        """
        if self._look is None or (self._look.done() and self._clock() - self._looked_at >= _LOGTO_FRESH):
            self._look = asyncio.get_running_loop().create_task(self._look_at_logto())
        await asyncio.wait([self._look], timeout=_LOGTO_PATIENCE)
        return self._logto

    async def _look_at_logto(self) -> None:
        try:
            async with asyncio.timeout(_LOGTO_FRESH):
                await self._relying_party.check()
        except (PosternError, TimeoutError):
            self._logto = "unavailable"
        else:
            self._logto = "ok"
        self._looked_at = self._clock()


class Keys:
    """The public keys of the identity assertion."""

    def __init__(self, settings: Settings) -> None:
        self._jwks = signer_of(settings).jwks

    async def jwks(self, _: Request) -> Response:
        """GET /jwks.json: what apps verify X-Postern-Assertion with. Public, and the same for everybody."""
        return json_response(self._jwks)


class _Unrouted:
    """Answers for what no route of ours answers."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def __call__(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            allow = ", ".join(sorted(name.strip() for name in (error.headers or {}).get("Allow", "").split(",")))
            return self._answers.answer(request, "method_not_allowed", 405, headers={"Allow": allow})
        return self._answers.answer(request, "not_found", 404)


class _ByHost:
    """Hands a request to the app of the site that its host belongs to; `elsewhere` has those of all sites but this one."""

    def __init__(self, app: ASGIApp, sites: Sites, elsewhere: Mapping[Site, ASGIApp]) -> None:
        self._app = app
        self._sites = sites
        self._elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if self._elsewhere and scope["type"] == "http":
            app = self._elsewhere.get(self._sites.of(scope["postern"].host), app)
        await app(scope, receive, send)


class _Frame:
    """Around every answer: who gives it, the fields that all of them have, and what happens when giving it fails."""

    def __init__(self, app: ASGIApp, answers: Answers, sign_in: SignIn) -> None:
        self._app = app
        self._answers = answers
        self._sign_in = sign_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        request_id = call_of(request).request_id
        started = False

        async def framed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                headers["Cache-Control"] = "no-store"
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._answer(request, framed)
        except StoreUnavailable as error:
            if started:
                raise
            _log.warning("the session store is unavailable: %s", error, extra={"request_id": request_id})
            await self._answers.store_down(request)(scope, receive, framed)
        except Exception:
            if started:
                raise
            # A bug. It is answered here, so that even then every answer is one of ours; the trace is in the log.
            _log.exception("the gateway failed to answer", extra={"request_id": request_id})
            await self._answers.answer(request, "error", 500)(scope, receive, framed)

    async def _answer(self, request: Request, send: Send) -> None:
        kind = call_of(request).verdict.kind
        if kind is Kind.OWN:
            await self._app(request.scope, request.receive, send)
            return
        response = await self._sign_in.intercept(request) if kind is Kind.SIGN_IN else self._answers.refusal(request)
        await response(request.scope, request.receive, send)
