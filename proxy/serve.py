"""Building a gateway out of its settings, and running it: the one place where the rooms of the house are joined."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import uvicorn
import uvloop
from starlette.applications import Starlette

from proxy import cookies
from proxy.accesslog import AccessLog
from proxy.claims import Tokens
from proxy.forwarding import Forwarding
from proxy.gate import Gate
from proxy.gateway import create_app
from proxy.headers import RouteHeaders
from proxy.http1 import HeadLimits, RequestHead
from proxy.identity import RelyingParty
from proxy.logs import configure, form_of
from proxy.pages import Pages
from proxy.pool import Upstreams
from proxy.redirects import ReturnPaths
from proxy.relay import Plan, Relay, lanes
from proxy.routes import RouteTable
from proxy.sealing import KeyRing
from proxy.session import SessionStore, cookie_name, open_store
from proxy.settings import Settings

DRAIN_SECONDS: Final = 30  # how long requests under way may take once the gateway is told to stop
REVOKE_SECONDS: Final = 5.0  # how long refresh tokens of people who just signed out may take to be handed back to Logto
_log = logging.getLogger("postern")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one worker."""

    settings: Settings
    store: SessionStore
    relying_party: RelyingParty
    gate: Gate
    app: Starlette
    relay: Relay
    log: AccessLog

    async def close(self) -> None:
        """Let go of everything outside: upstreams, Logto (once refresh tokens are handed back), the session store."""
        self.relay.close()
        await self.app.state.revocations.drain(REVOKE_SECONDS)
        await self.relying_party.close()
        await self.store.close()
        self.log.flush()


def build(settings: Settings) -> Gateway:
    """Join the parts. No I/O: neither Redis nor Logto nor an upstream has to be there yet."""
    keyring = KeyRing(settings.seal_secrets)
    store = open_store(settings, keyring)
    relying_party = RelyingParty(settings, keyring, store.once)
    routes = RouteTable.from_settings(settings)
    gate = Gate(settings, routes, store)
    returns = ReturnPaths(settings.public_url, routes.knows, settings.prefix)
    app = create_app(settings, gate, store, relying_party, Pages.from_settings(settings), returns)
    log = AccessLog(sys.stdout, form_of(settings.log))
    upstreams = Upstreams(settings.limits.connect_timeout)
    limits = settings.limits
    plan = Plan(
        gate=gate,
        app=app,
        lanes=lanes(upstreams, route_headers(settings, routes), limits),
        forwarding=Forwarding(settings.trusted_proxies),
        limits=limits,
        head_limits=HeadLimits(limits.head_bytes, limits.uri_bytes, limits.header_count),
        public_scheme=settings.public_url.partition("://")[0],
        tokens_of=_tokens_of(settings, store),
    )
    relay = Relay(plan, upstreams, log)
    store.on_end(relay.session_ended)
    return Gateway(settings, store, relying_party, gate, app, relay, log)


def route_headers(settings: Settings, routes: RouteTable) -> dict[Any, RouteHeaders]:
    """The compiled header rules of every route. A name that any route sets is stripped on all of them."""
    names = {name for route in routes.routes for name, _ in route.header_set}
    return {route: RouteHeaders(settings, route, names) for route in routes.routes}


def _tokens_of(settings: Settings, store: SessionStore) -> Callable[[RequestHead], Coroutine[Any, Any, Tokens | None]]:
    name = cookie_name(settings).encode()

    async def tokens_of(head: RequestHead) -> Tokens | None:
        for value in cookies.find_all(head.values.get(b"cookie", b""), name):
            tokens = await store.tokens(value.decode("ascii", "replace"))
            if tokens is not None:
                return tokens
        return None

    return tokens_of


class Server(uvicorn.Server):
    """uvicorn's server, with an end that supervisors understand: SIGTERM and SIGINT drain, and the exit status is 0.

    uvicorn raises the signal again after its shutdown, so that a drained server looks killed.
    """

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals in the event loop, and swallow them."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            with suppress(ValueError, RuntimeError):  # not in the main thread: whoever runs us stops us
                loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in signals:
                with suppress(ValueError, RuntimeError):
                    loop.remove_signal_handler(number)

    def close_listeners(self) -> None:
        """Accept no more connections."""
        for listener in getattr(self, "servers", ()):  # uvicorn makes the list when it listens
            listener.close()

    def _stop(self, number: int) -> None:
        self._on_stop()
        self.handle_exit(number, None)


def make_server(gateway: Gateway, started: Callable[[], None] | None = None) -> Server:
    """The server that listens for `gateway`; `started` is called once it does."""
    settings = gateway.settings
    listen = settings.listen
    config = uvicorn.Config(
        cast("Any", gateway.app),
        host=listen.host or "127.0.0.1",
        port=listen.port or 0,
        uds=listen.path,
        http=cast("Any", gateway.relay.protocol),  # any callable that makes a protocol does
        ws="none",  # WebSockets are tunnelled, not terminated
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # whom to believe is decided in forwarding.Forwarding alone
        ssl_certfile=settings.tls.cert if settings.tls else None,
        ssl_keyfile=settings.tls.key if settings.tls else None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )

    def on_start() -> None:
        _log.info("listening on %s for %s", settings.listen, settings.public_url)
        if started is not None:
            started()

    def on_stop() -> None:
        gateway.app.state.health.draining = True

    return Server(config, on_start, on_stop)


async def serve(settings: Settings, *, started: Callable[[], None] | None = None) -> None:
    """Run one gateway until it is told to stop. `started` is called once it listens. OSError when it cannot listen."""
    gateway = build(settings)
    await gateway.store.start()
    server = make_server(gateway, started)
    try:
        await server.serve()
    finally:
        server.close_listeners()  # when this is cancelled, uvicorn leaves them open
        await gateway.close()


def run(settings: Settings) -> None:
    """Run one gateway in this process, on uvloop, until SIGTERM or SIGINT."""
    configure(settings.log)
    for warning in settings.warnings:
        _log.warning("%s", warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
