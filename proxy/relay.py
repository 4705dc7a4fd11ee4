"""The relay: what all connections of a worker share, and uvicorn's way in.

`Relay.protocol` is what uvicorn calls for each accepted connection (its `http` setting): it takes the place of uvicorn's own
HTTP protocol, because a reverse proxy must carry what ASGI cannot. The connections themselves are in `connection.py`, one
relayed request in `exchange.py`, one answered by the gateway in `asgi.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from proxy.accesslog import AccessLog
from proxy.asgi import App
from proxy.claims import Tokens
from proxy.connection import ClientConnection
from proxy.gate import Gate
from proxy.headers import Forwarding, RouteHeaders
from proxy.http1 import HeadLimits, RequestHead
from proxy.routes import Route
from proxy.settings import LimitSettings
from proxy.upstream import Pool, Upstreams


class Relay:
    """What all connections of a worker share: the gate, the app, the routes' compiled headers and pools, limits, clocks."""

    def __init__(
        self,
        *,
        gate: Gate,
        app: App,
        upstreams: Upstreams,
        headers: Mapping[Route, RouteHeaders],
        forwarding: Forwarding,
        limits: LimitSettings,
        public_url: str,
        tokens_of: Callable[[RequestHead], Awaitable[Tokens | None]],
        log: AccessLog,
    ) -> None:
        self.gate = gate
        self.app = app
        self.headers = dict(headers)
        self.pools: dict[Route, tuple[Pool, ...]] = {route: upstreams.pools(route.servers) for route in headers}
        self.forwarding = forwarding
        self.nobody = forwarding.peer("")
        self.limits = limits
        self.head_limits = HeadLimits(limits.head_bytes, limits.uri_bytes, limits.header_count)
        self.log = log
        self.tokens_of = tokens_of
        self.connections: set[ClientConnection] = set()
        self.now = 0.0
        self.date = b""
        scheme, _, host = public_url.partition("://")
        self.public_scheme = scheme
        self.public_host = host.encode()
        self._upstreams = upstreams
        self._ids = itertools.count(int.from_bytes(os.urandom(4)))
        self._id_prefix = os.urandom(6).hex().encode()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweeps = 0

    def protocol(
        self,
        config: Config,  # noqa: ARG002 -- uvicorn's signature
        server_state: ServerState,
        app_state: dict[str, Any],  # noqa: ARG002 -- uvicorn's signature
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> ClientConnection:
        """What uvicorn calls for each accepted connection (its `http` setting)."""
        self.start()
        return ClientConnection(self, server_state)

    def start(self) -> None:
        """Begin with what runs beside the requests: the sweep, the health checks. More than once does no harm."""
        if self._sweeper is None:
            self._sweep()
            self._upstreams.start()

    def new_request_id(self) -> bytes:
        """An id no other request of any worker has."""
        return b"%b-%08x" % (self._id_prefix, next(self._ids) & 0xFFFFFFFF)

    def session_ended(self, session_id: str) -> None:
        """Close whatever is still open for a session that has ended: tunnels and answers under way."""
        for connection in list(self.connections):
            connection.end_session(session_id)

    def close(self) -> None:
        """Stop the sweep and the health checks, and drop all upstream connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._upstreams.close()

    def _sweep(self) -> None:
        """Once a second: the time, the Date field, and whoever is past a deadline."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.date = formatdate(time.time(), usegmt=True).encode()
        self._sweeper = loop.call_later(1.0, self._sweep)
        for connection in list(self.connections):
            if connection.deadline < self.now:
                connection.expire()
        self._sweeps += 1
        if self._sweeps % 5 == 0:
            self._upstreams.prune()
            wall = time.time()
            for connection in list(self.connections):
                connection.check_session(wall)
