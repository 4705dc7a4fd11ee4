"""The relay: what all connections of a worker share, and uvicorn's way in.

What follows from the settings is in a `Plan`, which is never changed but replaced by another one when the settings are read
again: a request is judged and served by the plan it began with, whatever comes to hold while it is under way.

`Relay.protocol` is what uvicorn calls for each accepted connection (its `http` setting): it takes the place of uvicorn's own
HTTP protocol, because a reverse proxy must carry what ASGI cannot. The connections themselves are in `connection.py`, one
relayed request in `exchange.py`, one answered by the gateway in `asgi.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from proxy.accesslog import AccessLog
from proxy.asgi import App
from proxy.claims import Audience, Tokens
from proxy.connection import ClientConnection
from proxy.counters import Tally
from proxy.forwarding import Forwarding
from proxy.gate import Gate
from proxy.headers import RouteHeaders
from proxy.http1 import HeadLimits, RequestHead
from proxy.pool import Pool, Upstreams
from proxy.routes import Route
from proxy.session import Session
from proxy.settings import LimitSettings
from proxy.tunnel import ClientTunnel

if TYPE_CHECKING:
    from proxy.tracing import Tracer

_log: Final = logging.getLogger("postern")
_SWEEP_SECONDS: Final = 1.0
_SLOW_SWEEPS: Final = 5  # sweeps between looks at what changes slowly


@dataclass(frozen=True, slots=True)
class Lane:
    """What requests of one route need once the gate has let them pass; `body_bytes` 0 means any size."""

    headers: RouteHeaders
    pools: tuple[Pool, ...]
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the settings say about requests: who judges and answers them, where they go, whom to believe, how much of anything."""

    gate: Gate
    app: App
    lanes: Mapping[Route, Lane]
    forwarding: Forwarding
    limits: LimitSettings
    head_limits: HeadLimits
    public_scheme: str
    own_url: Callable[[str], str]  # for a host: the public URL there, with the gateway's prefix
    auth_path: bytes  # where other proxies ask
    tokens_of: Callable[[RequestHead, Session, Collection[Audience]], Awaitable[Tokens | None]]


def lanes(upstreams: Upstreams, headers: Mapping[Route, RouteHeaders], limits: LimitSettings) -> dict[Route, Lane]:
    """The lane of each route, with its connections from `upstreams`."""
    return {
        route: Lane(
            fields, upstreams.pools(route.servers), limits.body_bytes if route.body_bytes is None else route.body_bytes
        )
        for route, fields in headers.items()
    }


class Relay:
    """What all connections of a worker share: the plan they serve requests by, the upstreams, the log, clocks."""

    def __init__(
        self,
        plan: Plan,
        upstreams: Upstreams,
        log: AccessLog,
        tally: Tally | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Without `tally` and `tracer` nothing is counted, or traced."""
        self.plan = plan
        self.log = log
        self.tally = tally
        self.tracer = tracer
        self.connections: set[ClientConnection | ClientTunnel] = set()
        self.draining = False  # the worker stops: what is under way is the last
        self.now = 0.0  # on the event loop's clock, as of the last sweep
        self.date = b""
        self._crowds: Counter[int | str] = Counter()
        self._ended: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
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
        if self.tally is not None:
            self.tally.connections += 1
        return ClientConnection(self, server_state)

    def start(self) -> None:
        """Begin with what runs beside the requests: the sweep, the health checks. More than once does no harm."""
        if self._sweeper is None:
            self._tick()
            self._upstreams.start()

    def new_request_id(self) -> bytes:
        """An id no other request of any worker has."""
        return b"%b-%08x" % (self._id_prefix, next(self._ids) & 0xFFFFFFFF)

    def admit(self, connection: ClientConnection | ClientTunnel, crowd: int | str | None) -> bool:
        """Count a connection in; False when it is one too many, in all or of its crowd (None is never counted)."""
        self.connections.add(connection)
        if crowd is not None:
            self._crowds[crowd] += 1
            most = self.plan.limits.max_connections_per_client
            if most and self._crowds[crowd] > most:
                return False
        return len(self.connections) <= self.plan.limits.max_connections

    def leave(self, connection: ClientConnection | ClientTunnel, crowd: int | str | None) -> None:
        """Count a connection out."""
        if connection in self.connections:
            self.connections.discard(connection)
            if crowd is not None:
                self._crowds[crowd] -= 1
                if not self._crowds[crowd]:
                    del self._crowds[crowd]

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold on to `task` until it is done: the event loop itself does so only weakly."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def session_ended(self, session_id: str) -> None:
        """Close whatever is still open for a session that has ended: tunnels and answers under way."""
        if not self._ended:  # thousands may end at the same moment, when a store is emptied
            asyncio.get_running_loop().call_soon(self._close_ended)
        self._ended.add(session_id)

    def drain(self) -> None:
        """The worker stops: whatever is under way finishes, nothing else begins."""
        self.draining = True
        self.now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.shutdown()

    @property
    def busy(self) -> bool:
        """Whether anything is under way: a connection, or an answer of the gateway's that nobody waits for any more."""
        return bool(self.connections or self._tasks)

    def close(self) -> None:
        """Stop. What is still being answered is cut short: the end of the process must not look like the end of an answer."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self.connections):
            connection.cut_short()
        self._upstreams.close()

    def sweep(self, now: float, wall: float) -> None:
        """Look after every connection: `now` on the event loop's clock, `wall` in epoch seconds."""
        self.now = now
        self.date = formatdate(wall, usegmt=True).encode()
        for connection in list(self.connections):
            try:
                if connection.deadline < now:
                    connection.expire()
                else:
                    connection.probe()
            except Exception:  # noqa: BLE001 -- a bug met by one connection must not keep the deadlines of all others
                _log.exception("a connection could not be looked after")
                connection.reset()
        self._sweeps += 1
        if self._sweeps % _SLOW_SWEEPS == 0:
            self._upstreams.prune()
            for connection in list(self.connections):
                connection.check_session(wall)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._tick)
        self.sweep(loop.time(), time.time())

    def _close_ended(self) -> None:
        ended, self._ended = frozenset(self._ended), set()
        for connection in list(self.connections):
            connection.end_session(ended)
