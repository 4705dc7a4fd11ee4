"""Building a gateway out of its settings, and other settings into it while it runs: where the rooms of the house are joined."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import uvicorn
from starlette.applications import Starlette

from proxy import cookies
from proxy.accesslog import AccessLog
from proxy.app_passwords import AppPasswords
from proxy.applications import Applications
from proxy.assertion import signer_of
from proxy.bearer import BearerTokens
from proxy.claims import Audience, Tokens
from proxy.counters import Tally
from proxy.credentials import Scheme
from proxy.discord import Discord
from proxy.errors import CannotServe
from proxy.forwarding import Forwarding
from proxy.gate import Gate, Verifier
from proxy.gateway import create_app
from proxy.headers import RouteHeaders
from proxy.hearsay import Hearsay
from proxy.http1 import HeadLimits, RequestHead
from proxy.identity import RelyingParty
from proxy.listening import Turn, server_tls
from proxy.logplace import LogPlace
from proxy.logs import access_place
from proxy.pages import Pages
from proxy.password_store import open_passwords
from proxy.pool import Upstreams
from proxy.redirects import ReturnPaths
from proxy.relay import Plan, Relay, lanes
from proxy.renewal import Renewals
from proxy.resource_tokens import ResourceTokens
from proxy.routes import RouteTable
from proxy.sealing import KeyRing
from proxy.server import Server
from proxy.session import Session, SessionStore, bounds_of, open_store
from proxy.session_codec import cookie_id
from proxy.settings import Settings
from proxy.sites import Site, Sites

if TYPE_CHECKING:
    from proxy.tracing import Tracer

__all__ = ["Gateway", "Server", "build", "make_server", "route_headers", "serve"]

REVOKE_SECONDS: Final = 5.0  # how long refresh tokens of people who just signed out may take to be handed back to Logto
RETIRE_SECONDS: Final = 60.0  # how long sign-ins that have begun under earlier settings may still be asking Logto
_log = logging.getLogger("postern")


@dataclass(frozen=True, slots=True, eq=False)
class Front:
    """What the settings make of the gateway: replaced as a whole when they are read again."""

    settings: Settings
    applications: Applications
    gate: Gate
    app: Starlette
    plan: Plan
    tls: ssl.SSLContext | None
    discord: Discord | None


@dataclass(slots=True)
class Gateway:
    """The parts of one worker: a front that may be replaced, and what lives as long as the worker."""

    front: Front
    keyring: KeyRing
    store: SessionStore
    passwords: AppPasswords
    renewals: Renewals
    resource_tokens: ResourceTokens
    upstreams: Upstreams
    relay: Relay
    log: AccessLog
    log_place: LogPlace | None
    sign_ins: Counter[str]  # that have ended, by result
    _retired: dict[Front, asyncio.TimerHandle] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.front.settings

    @property
    def relying_party(self) -> RelyingParty:
        """The gateway as the application of Logto that `logto.app_id` names."""
        return self.front.applications.main

    @property
    def gate(self) -> Gate:
        """Who may pass."""
        return self.front.gate

    @property
    def app(self) -> Starlette:
        """What the gateway answers itself."""
        return self.front.app

    def adopt(self, settings: Settings) -> None:
        """Serve by other settings from the next request on; requests under way end as they began.

        Raises CannotServe, and then nothing has changed.
        """
        old = self.front
        front = _front(
            settings, self.keyring, self.store, self.passwords, self.resource_tokens, self.upstreams, self.sign_ins, old
        )
        if settings.log != old.settings.log:
            place, form = access_place(settings.log)
            self.log.redirect(place, form)
            if self.log_place is not None:  # lines are written by a thread: it may not be done
                asyncio.get_running_loop().call_later(RETIRE_SECONDS, self.log_place.close)
            self.log_place = place
        self.keyring.rotate(settings.seal_secrets)
        self.store.bounds = bounds_of(settings)
        self.passwords.adopt(settings)
        self.upstreams.keep(
            (server for route in front.gate.routes.routes for server in route.servers), settings.limits.connect_timeout
        )
        self.front = front
        self.renewals.refresh = front.applications.refresh
        self.relay.plan = front.plan
        front.app.state.health.draining = old.app.state.health.draining
        self._retired[old] = asyncio.get_running_loop().call_later(RETIRE_SECONDS, self._let_go, old)

    async def start(self) -> None:
        """Get the stores ready. Does not fail because they are down."""
        await self.store.start()
        await self.passwords.start()

    def reopen_logs(self) -> None:
        """Go on in a new access log, when the old one was moved away."""
        if self.log_place is not None:
            try:
                self.log_place.reopen()
            except OSError as error:
                _log.error("the access log cannot be opened again: %s", error.strerror)

    async def close(self) -> None:
        """Let go of everything outside: upstreams, Logto (once refresh tokens are handed back), the session store."""
        self.relay.close()
        await self.renewals.close()
        await self.resource_tokens.close()
        retired, self._retired = self._retired, {}
        for front, timer in retired.items():
            timer.cancel()
            await self._leave(front, self.front)
        await self._leave(self.front)
        await self.passwords.close()
        await self.store.close()
        self.log.flush()
        if self.log_place is not None:
            self.log_place.close()
        if self.relay.tracer is not None:
            self.relay.tracer.close()

    def _let_go(self, front: Front) -> None:
        del self._retired[front]
        task = asyncio.get_running_loop().create_task(self._leave(front, self.front, *self._retired))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    @staticmethod
    async def _leave(front: Front, *others: Front) -> None:
        """Let go of what `front` has to itself; what it shares with `others` goes with the last of them."""
        await front.app.state.revocations.drain(REVOKE_SECONDS)
        if all(front.applications is not other.applications for other in others):
            await front.applications.close()
        if front.discord is not None and all(front.discord is not other.discord for other in others):
            await front.discord.close()


def build(settings: Settings) -> Gateway:
    """Join the parts. No network: neither Redis nor Logto nor an upstream has to be there yet.

    Raises CannotServe when a file that the settings name cannot be used.
    """
    keyring = KeyRing(settings.seal_secrets)
    store = open_store(settings, keyring)
    passwords = AppPasswords(settings, open_passwords(settings, keyring))
    upstreams = Upstreams(settings.limits.connect_timeout)
    sign_ins: Counter[str] = Counter()
    resource_tokens = ResourceTokens(store)
    front = _front(settings, keyring, store, passwords, resource_tokens, upstreams, sign_ins, None)
    place, form = access_place(settings.log)
    log = AccessLog(place, form)
    tally = Tally() if settings.metrics.listen is not None else None
    relay = Relay(front.plan, upstreams, log, tally, _tracer(settings))
    store.on_end(relay.session_ended)
    store.on_vouched(passwords.vouched)
    passwords.store.on_end(relay.session_ended)
    renewals = Renewals(store)
    renewals.refresh = front.applications.refresh
    gateway = Gateway(
        front, keyring, store, passwords, renewals, resource_tokens, upstreams, relay, log, place, sign_ins
    )
    resource_tokens.ask = lambda session, tokens, audience: gateway.front.applications.api_token(
        tokens, session.identity, audience
    )
    store.on_leftover(lambda tokens: gateway.app.state.revocations.start(tokens))  # noqa: PLW0108 -- the app may be another by then
    return gateway


def _tracer(settings: Settings) -> Tracer | None:
    if not settings.tracing.enabled:
        return None
    try:
        from proxy.tracing import open_tracer  # noqa: PLC0415 -- it needs packages that most do without
    except ImportError as error:
        raise CannotServe(f"tracing.enabled needs more packages: pip install 'postern[otel]' ({error})") from None
    return open_tracer()


def _front(
    settings: Settings,
    keyring: KeyRing,
    store: SessionStore,
    passwords: AppPasswords,
    resource_tokens: ResourceTokens,
    upstreams: Upstreams,
    sign_ins: Counter[str],
    old: Front | None,
) -> Front:
    """The front that `settings` make, with what can be kept of the `old` one. Raises CannotServe."""
    tls = server_tls(settings.tls)
    if old is not None and _asked_of_logto(settings) == _asked_of_logto(old.settings):
        applications = old.applications  # with the keys of Logto's that they know
    else:
        applications = Applications(Sites(settings), keyring, store.once)
    routes = RouteTable.from_settings(settings)
    discord = _discord(settings, routes, store, keyring, old)
    verifiers: dict[Scheme, Verifier] = {
        Scheme.BEARER: BearerTokens(applications.main.access),
        Scheme.PASSWORD: passwords,
    }
    gate = Gate(settings, routes, store, discord, verifiers)
    app = _app_of(gate, store, applications, sign_ins, passwords)
    limits = settings.limits
    plan = Plan(
        gate=gate,
        app=app,
        lanes=lanes(upstreams, route_headers(settings, routes), limits),
        forwarding=Forwarding(settings.trusted_proxies),
        limits=limits,
        head_limits=HeadLimits(limits.head_bytes, limits.uri_bytes, limits.header_count),
        public_scheme=settings.public_url.partition("://")[0],
        own_url=lambda host: gate.sites.of(host).own_url,
        auth_path=f"{settings.prefix}/auth".encode(),
        tokens_of=_tokens_of(gate.sites, resource_tokens),
    )
    return Front(settings, applications, gate, app, plan, tls, discord)


def _app_of(
    gate: Gate, store: SessionStore, applications: Applications, sign_ins: Counter[str], passwords: AppPasswords
) -> Starlette:
    """What the gateway answers itself: the main site's app, which has those of the others answer for their hosts."""

    def app_of(site: Site, main: Starlette | None = None) -> Starlette:
        party, pages = applications.at(site), Pages.from_settings(site.settings)
        parts = (site.settings, gate, store, party, pages, _returns(site, gate), sign_ins, passwords)
        return create_app(*parts, applications=applications, main=main)

    main = app_of(gate.sites.main)
    main.state.elsewhere.update((site, app_of(site, main)) for site in gate.sites.others)
    return main


def _returns(site: Site, gate: Gate) -> ReturnPaths:
    """Where a sign-in on `site` may lead back to: where its own session counts, and nowhere else."""

    def ours(host: str) -> bool:
        return gate.sites.of(host) is site and (site is not gate.sites.main or gate.routes.knows(host))

    return ReturnPaths(site.settings.public_url, ours, site.settings.prefix)


def _discord(
    settings: Settings, routes: RouteTable, store: SessionStore, keyring: KeyRing, old: Front | None
) -> Discord | None:
    """Who knows the members of guilds: whoever did before, where nothing about it has changed."""
    if settings.discord is None:
        return None
    owned = frozenset(guild for route in routes.routes for guild in route.policy.owned)
    if old is not None and old.discord is not None and old.settings.discord == settings.discord:
        before = frozenset(guild for route in old.gate.routes.routes for guild in route.policy.owned)
        if before == owned:
            return old.discord
    hearsay = Hearsay(store.board, keyring, settings.discord, owned) if store.board is not None else None
    return Discord(settings.discord, owned, hearsay)


def _asked_of_logto(settings: Settings) -> tuple[object, ...]:
    """Whatever the relying party is made of."""
    places = settings.public_url, settings.prefix, settings.session.cookie
    return settings.logto, *places, settings.times_sign_ins, settings.scopes, settings.resources


def route_headers(settings: Settings, routes: RouteTable) -> dict[Any, RouteHeaders]:
    """The compiled header rules of every route. A name that any route sets is stripped on all of them."""
    names = {name for route in routes.routes for name, _ in route.header_set}
    signer = signer_of(settings) if settings.identity.assertion else None
    return {route: RouteHeaders(settings, route, names, signer) for route in routes.routes}


def _tokens_of(
    sites: Sites, resource_tokens: ResourceTokens
) -> Callable[[RequestHead, Session, Collection[Audience]], Coroutine[Any, Any, Tokens | None]]:
    names = tuple(dict.fromkeys(site.cookie for site in (sites.main, *sites.others)))

    async def tokens_of(head: RequestHead, session: Session, audiences: Collection[Audience]) -> Tokens | None:
        header = head.values.get(b"cookie", b"")
        for value in (found.decode("ascii", "replace") for name in names for found in cookies.find_all(header, name)):
            # Another cookie may be another person's, or another application's.
            tokens = await resource_tokens.of(value, audiences) if cookie_id(value) == session.id else None
            if tokens is not None:
                return tokens
        return None

    return tokens_of


def make_server(gateway: Gateway, turn: Turn | None = None) -> Server:
    """The server that listens for `gateway`. `turn`: its part among several workers."""
    config = uvicorn.Config(
        cast("Any", gateway.app),
        http=cast("Any", gateway.relay.protocol),  # any callable that makes a protocol does
        ws="none",  # WebSockets are tunnelled, not terminated
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # whom to believe is decided in forwarding.Forwarding alone
    )

    def stopping() -> None:
        gateway.app.state.health.draining = True

    return Server(
        config,
        gateway.relay,
        listen=gateway.settings.listen,
        drain=lambda: gateway.settings.drain,
        tls=lambda: gateway.front.tls,
        stopping=stopping,
        turn=turn,
    )


async def serve(settings: Settings, *, started: Callable[[], None] | None = None) -> None:
    """Run one gateway until SIGTERM or SIGINT. `started` is called once it listens. OSError when it cannot listen."""
    gateway = build(settings)
    await gateway.start()
    server = make_server(gateway)
    if started is not None:
        server.on_start = started
    try:
        with _told_to_stop(server):
            await server.serve()
    finally:
        server.close_listeners()  # when this is cancelled, nobody else does
        await gateway.close()


@contextmanager
def _told_to_stop(server: Server) -> Iterator[None]:
    """Signals: the first one drains, the second one does not wait."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        if server.should_exit:
            server.stop_at_once()
        server.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        with suppress(ValueError, RuntimeError):  # not in the main thread: whoever runs us stops us
            loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in numbers:
            with suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(number)
