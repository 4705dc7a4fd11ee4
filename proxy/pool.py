"""The connections to each server: idle ones kept, new ones opened, and a server chosen where a route has several.

Taking an idle connection and giving it back is all that most requests need, and costs a few operations on a deque: no await, no
timer. Everything dear is on the way of a new connection. A server that fails is asked last for a while (`standing.py`), never
refused. Whoever uses or opens a connection holds a place; where a route limits these, requests wait for one, first come first
served.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import re
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from proxy.dialing import Dialer
from proxy.errors import UpstreamFailed, UpstreamProblem
from proxy.health import HealthCheck
from proxy.http1 import ResponseHead
from proxy.rewriting import authority
from proxy.standing import Standing
from proxy.upstream import UpstreamConnection
from proxy.upstream_settings import Server
from proxy.upstream_tls import ClientTls, reason_of

IDLE_KEPT: Final = 1024  # idle connections kept per server at most, and never more than were lately used at once
IDLE_SECONDS: Final = 30.0  # how long one is kept; less when the server says that it closes them earlier
LONGEST_LIFE: Final = 3600.0  # seconds; so that a moved name, or a renewed certificate, reaches busy connections too
FAREWELL: Final = 2.0  # seconds that a server has to say good-bye under TLS
TRIES: Final = 3  # servers a request is tried on when no connection comes about
REMINDER: Final = 30.0  # seconds between log lines that say the same of a server

_KEEP_ALIVE: Final = re.compile(rb"timeout[ \t]*=[ \t]*([0-9]{1,9})", re.IGNORECASE)
_UNREACHABLE: Final = frozenset((UpstreamProblem.REFUSED, UpstreamProblem.CONNECT_TIMEOUT, UpstreamProblem.TLS))
# These tell of this machine, not of the server: no reason to think ill of it.
_OURS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))
_UNLIMITED: Final = 1 << 62
_log: Final = logging.getLogger("postern.upstream")
_turns: Final = itertools.count()


class Pool:
    """The connections to one server. `connect_timeout` in seconds."""

    def __init__(self, server: Server, connect_timeout: float) -> None:
        self.server = server
        self.url = server.url
        self.authority = authority(server.url).encode()
        self.standing = Standing()
        self.failures: Counter[UpstreamProblem] = Counter()  # so far
        self.retries = 0  # requests that went to it first, and were sent again
        self.connect_timeout = connect_timeout
        self._limit = server.max_connections or _UNLIMITED
        self._busy = 0  # places held
        self._peak = 0  # the most of them lately
        self._waiting: deque[asyncio.Future[None]] = deque()  # for a place
        self._idle: deque[UpstreamConnection] = deque()  # the most recently used one last
        self._open: set[UpstreamConnection] = set()
        self._hint = b""
        self._idle_seconds = IDLE_SECONDS
        self._turn = 0
        self._retired = False
        self._said = ""
        self._said_at = 0.0
        parts = urlsplit(server.url)
        self._unix = parts.scheme == "unix"
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._dialer = Dialer(host, port, parts.path if self._unix else None)
        self._tls = ClientTls(server.tls, host) if parts.scheme == "https" else None

    # -- choosing

    @property
    def active(self) -> int:
        """Requests that use a connection, open one, or wait for a place."""
        return self._busy + len(self._waiting)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Connections in use, idle ones, and requests that wait for a place."""
        return len(self._open) - len(self._idle), len(self._idle), len(self._waiting)

    def rank(self, now: float) -> tuple[bool, float, int]:
        """Where it comes among other servers, the least first: the least busy, and the least recently asked of those."""
        standing = self.standing
        if standing.aside(now):
            return True, standing.back_at(), self._turn
        return False, self._busy + len(self._waiting), self._turn

    def asked(self, now: float) -> None:
        """It has been chosen."""
        self._turn = next(_turns)
        self.standing.asked(now)

    # -- the hot path

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the most recently used first: the older ones are the likelier to be stale."""
        if not self._idle or self._busy >= self._limit:
            return None
        connection = self._newest()
        if connection is not None:
            connection.busy = True
            self._busy += 1
            if self._busy > self._peak:  # noqa: PLR1730 -- calling `max` would cost more than all the rest of this
                self._peak = self._busy
        return connection

    def _newest(self) -> UpstreamConnection | None:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.alive and now < connection.fresh_until:
                return connection
            connection.close()
        return None

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a clean connection for the next request."""
        if not connection.busy:  # opened for something else than a request
            connection.close()
            return
        now = time.monotonic()
        connection.busy = False
        if self._retired or now - connection.opened_at > LONGEST_LIFE:
            connection.close()
        else:
            connection.fresh_until = now + self._idle_seconds
            self._idle.append(connection)
            # Requests that need a connection of their own add one each time. An idle connection costs the app a slot, in some
            # servers a whole thread: no more of them than there was use for.
            if len(self._idle) > self._peak or len(self._idle) > IDLE_KEPT:
                self._idle.popleft().close()
        self._free_place()

    def drop(self, connection: UpstreamConnection) -> None:
        """Close a connection that has served its last request, with the good-bye of TLS, which `abort` leaves out."""
        if connection.busy:
            connection.busy = False
            self._free_place()
        connection.close()

    def answered(self, head: ResponseHead) -> None:
        """A final head has come: the server works, and may say how long it keeps idle connections."""
        hint = head.values.get(b"keep-alive")
        if hint is not None and hint != self._hint:
            self._hint = hint
            found = _KEEP_ALIVE.search(hint)
            # A second less than the server: what it closes while a request is on the way has to be sent again.
            self._idle_seconds = min(IDLE_SECONDS, max(int(found[1]) - 1.0, 0.5)) if found else IDLE_SECONDS
        if self.standing.failures and self.standing.answered():
            self._said = ""
            _log.info("upstream %s answers again", self.url)

    # -- opening

    async def connect(self, *, reuse: bool = False) -> UpstreamConnection:
        """A connection for one request: a new one, or with `reuse` perhaps an idle one that became free meanwhile.

        Raises UpstreamFailed; retrying elsewhere is safe, nothing has been sent.
        """
        await self._place()
        try:
            connection = self._newest() if reuse else None
            if connection is None:
                while self._idle and self._busy + len(self._idle) > self._limit:
                    self._idle.popleft().close()
                connection = await self.open()
        except UpstreamFailed as error:
            self._free_place()
            self.failed(error)
            raise
        except BaseException:
            self._free_place()
            raise
        connection.busy = True
        return connection

    async def open(self) -> UpstreamConnection:
        """A new connection, which counts for nothing yet. Raises UpstreamFailed as `connect`."""
        loop = asyncio.get_running_loop()
        made: list[UpstreamConnection] = []
        tls = self._tls.context() if self._tls is not None else None
        connected = False

        def factory() -> UpstreamConnection:
            made.append(UpstreamConnection(self))
            return made[-1]

        try:
            async with asyncio.timeout(self.connect_timeout):
                sock = await self._dialer.dial()
                connected = True
                if self._unix:
                    await loop.create_unix_connection(factory, sock=sock)
                elif self._tls is not None:
                    await loop.create_connection(
                        factory,
                        sock=sock,
                        ssl=tls,
                        server_hostname=self._tls.server_name,
                        ssl_shutdown_timeout=FAREWELL,
                    )
                else:
                    await loop.create_connection(factory, sock=sock)
        except BaseException as error:
            for unfinished in made:
                unfinished.abort()
            if isinstance(error, TimeoutError):
                detail = f"no connection within {self.connect_timeout:g} s"
                raise UpstreamFailed(UpstreamProblem.CONNECT_TIMEOUT, detail, retry_safe=True) from None
            if isinstance(error, OSError | UnicodeError):
                raise _unconnected(error, shaking=connected and tls is not None) from None
            raise
        connection = made[0]
        if connection.lost is not None:  # accepted and closed at once, as by a balancer without servers behind it
            raise UpstreamFailed(connection.lost.problem, str(connection.lost), retry_safe=True)
        connection.opened_at = time.monotonic()
        self._open.add(connection)
        return connection

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is gone."""
        self._open.discard(connection)
        if connection.busy:
            connection.busy = False
            self._free_place()
        else:
            with suppress(ValueError):
                self._idle.remove(connection)

    def failed(self, error: UpstreamFailed) -> None:
        """The server has failed a request: remember it, and say so, yet not again and again."""
        self.failures[error.problem] += 1
        if error.ours:
            _log.error("upstream %s: %s", self.url, error)
            return
        now = time.monotonic()
        pause = None
        if error.problem is not UpstreamProblem.BUSY:  # a full server is not a broken one
            pause = self.standing.failed(now, unreachable=error.problem in _UNREACHABLE)
        text = f"{error.problem.value}: {error}"
        if pause is not None:
            _log.warning("upstream %s: %s; set aside for %g s", self.url, text, pause)
        elif text != self._said or now > self._said_at + REMINDER:
            _log.warning("upstream %s: %s", self.url, text)
        else:
            return
        self._said, self._said_at = text, now

    # -- ending

    def prune(self, now: float) -> None:
        """Close what has been idle too long, or is no longer needed; `now` on the monotonic clock, in seconds."""
        self._peak = max(self._busy, self._peak // 2, 1)
        while self._idle and (now >= self._idle[0].fresh_until or len(self._idle) > self._peak):
            self._idle.popleft().close()

    def retire(self) -> None:
        """No more requests will come: keep nothing idle. Those under way finish."""
        self._retired = True
        while self._idle:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    # -- places

    async def _place(self) -> None:
        """Take a place, or wait for one; hand-over is direct, so that nobody who comes later gets it first."""
        if self._busy < self._limit:
            self._busy += 1
            self._peak = max(self._peak, self._busy)
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self.connect_timeout):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._free_place()  # given and given up in the same moment
            else:
                with suppress(ValueError):
                    self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                detail = f"no place among its {self._limit} connections within {self.connect_timeout:g} s"
                raise UpstreamFailed(UpstreamProblem.BUSY, detail, retry_safe=True) from None
            raise

    def _free_place(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._busy -= 1


class Upstreams:
    """All servers of all routes, one pool each, whichever route names them, and their health checks."""

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._pools: dict[Server, Pool] = {}
        self._checks: dict[Server, HealthCheck] = {}
        self._started = False

    def pools(self, servers: Sequence[Server]) -> tuple[Pool, ...]:
        """The pools of a route's servers, made on first use."""
        for server in servers:
            if server not in self._pools:
                pool = self._pools[server] = Pool(server, self._connect_timeout)
                if server.health is not None:
                    check = self._checks[server] = HealthCheck(pool, server.health)
                    if self._started:
                        check.start()
        return tuple(self._pools[server] for server in servers)

    def keep(self, servers: Iterable[Server], connect_timeout: float) -> None:
        """Let go of every server but `servers`, all that new settings name; requests under way there finish.

        The others keep their connections, and what is known about them.
        """
        wanted = frozenset(servers)
        for server in self._pools.keys() - wanted:
            self._pools.pop(server).retire()
            check = self._checks.pop(server, None)
            if check is not None:
                check.stop()
        self._connect_timeout = connect_timeout
        for pool in self._pools.values():
            pool.connect_timeout = connect_timeout

    def __iter__(self) -> Iterator[Pool]:
        """Every pool that is in use."""
        return iter(self._pools.values())

    def start(self) -> None:
        """Begin with the health checks. Needs a running event loop."""
        self._started = True
        for check in self._checks.values():
            check.start()

    def prune(self) -> None:
        """Close idle connections that have outlived their use; called every few seconds."""
        now = time.monotonic()
        for pool in self._pools.values():
            pool.prune(now)

    def close(self) -> None:
        """Stop the checks, and close every connection of every pool."""
        self._started = False
        for check in self._checks.values():
            check.stop()
        for pool in self._pools.values():
            pool.close()


def by_load(pools: Sequence[Pool]) -> Sequence[Pool]:
    """The pools to try a request on, in this order: the least busy first, those that are set aside last."""
    if len(pools) == 1:
        return pools
    now = time.monotonic()
    order = sorted(pools, key=lambda pool: pool.rank(now))
    order[0].asked(now)
    return order[:TRIES]


def _unconnected(error: OSError | UnicodeError, *, shaking: bool) -> UpstreamFailed:
    """Why no connection came about; `shaking`: one did, and it was the TLS handshake that failed."""
    if isinstance(error, ssl.SSLError):
        return UpstreamFailed(UpstreamProblem.TLS, reason_of(error), retry_safe=True)
    if isinstance(error, UnicodeError | socket.gaierror):
        return UpstreamFailed(UpstreamProblem.REFUSED, "its name cannot be resolved", retry_safe=True)
    if shaking:
        return UpstreamFailed(UpstreamProblem.TLS, "it closed the connection during the handshake", retry_safe=True)
    ours = error.errno in _OURS
    return UpstreamFailed(UpstreamProblem.REFUSED, reason_of(error), retry_safe=True, ours=ours)
