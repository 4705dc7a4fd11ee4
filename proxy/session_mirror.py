"""One worker's mirror of the sessions in Redis: the cache, the connections that keep it true, and what follows from a change.

Every session that this process holds, in the cache or because a connection rests on it, is read again when a change of it
is reported, and all of them when reports begin again after a gap. That is how an end in another worker closes a tunnel here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from proxy.errors import StoreUnavailable
from proxy.session_cache import Line, SessionCache
from proxy.session_codec import SESSIONS, Kind
from proxy.session_servers import Reach, Server, Servers
from proxy.session_tracking import Listener, Tracker

_AT_ONCE: Final = 32
_AGAIN_SECONDS: Final = 1.0
_log = logging.getLogger("postern.session")


class Mirror:
    """Keeps `cache` true to `servers`.

    `read_again(session_id, cookie)` reads a session anew, puts it into the cache when the cookie is known, and tells of its
    end; it may raise StoreUnavailable. `resumed()` is called when reports begin again.
    """

    def __init__(
        self,
        servers: Servers,
        cache: SessionCache,
        reach: Reach,
        *,
        clock: Callable[[], float],
        grace: bool,
        read_again: Callable[[str, str | None], Awaitable[None]],
        resumed: Callable[[], None],
        kind: Kind = SESSIONS,
    ) -> None:
        """With `grace`, entries outlive the loss of reports, for `cache.stale` to find."""
        self._servers = servers
        self._cache = cache
        self._reach = reach
        self._clock = clock
        self._grace = grace
        self._read_again = read_again
        self._resumed = resumed
        self._kind = kind
        self._trackers: dict[Server, asyncio.Task[None]] = {}
        self._dismissed: set[asyncio.Task[None]] = set()  # trackers of masters no more, on their way out
        self._closed = False
        self._to_read: dict[str, str | None] = {}  # session id -> cookie, where that is known
        self._reader: asyncio.Task[None] | None = None
        servers.on_change = self._follow_masters

    async def start(self) -> None:
        """Find the servers and have them report. Raises what `Servers.start` raises; call again then, or just go on asking."""
        await self._servers.start()
        self._follow_masters()

    async def close(self) -> None:
        """Stop."""
        self._servers.on_change = lambda: None
        # First of all: a tracker that is called off says that reports have ceased, which must not have everything read again.
        self._closed = True
        tasks = [*self._trackers.values(), *self._dismissed, *([self._reader] if self._reader is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._trackers.clear()
        self._cache.flushed()

    # -- reports

    def _follow_masters(self) -> None:
        masters = self._servers.masters()
        for server in [server for server in self._trackers if server not in masters]:
            task = self._trackers.pop(server)
            task.cancel()
            self._dismissed.add(task)
            task.add_done_callback(self._dismissed.discard)
        for server in masters:
            if server not in self._trackers:
                self._trackers[server] = asyncio.get_running_loop().create_task(self._tracker(server).run())

    def _tracker(self, server: Server) -> Tracker:
        listener = Listener(changed=self._changed, flushed=self._flushed, up=self._up, down=self._down)
        server.tracker = Tracker(
            server.name,
            server.reporting_connection,
            server.probe,
            server.check,
            listener,
            clock=self._clock,
            timeout=self._reach.patience,
            kind=self._kind,
        )
        return server.tracker

    def _changed(self, ids: Iterable[str]) -> None:
        for session_id in ids:
            known, entry = self._cache.changed(session_id)
            if known:
                self._later(session_id, entry.cookie if entry is not None else None)

    def _flushed(self) -> None:
        self._everything_again()
        self._cache.flushed()

    def _up(self, line: Line) -> None:  # noqa: ARG002 -- reads find it at their server
        self._everything_again()
        self._cache.interrupted()
        self._resumed()

    def _down(self) -> None:
        self._everything_again()  # a server that reports nothing may well answer
        self._cache.interrupted(forget=not self._grace)
        self._servers.in_trouble()

    # -- reading again

    def _everything_again(self) -> None:
        for session in self._cache.held():
            entry = self._cache.entry(session.id)
            self._later(session.id, entry.cookie if entry is not None else None)

    def _later(self, session_id: str, cookie: str | None) -> None:
        if self._closed:
            return
        self._to_read[session_id] = cookie or self._to_read.get(session_id)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read_all())

    async def _read_all(self) -> None:
        while self._to_read:
            some = [self._to_read.popitem() for _ in range(min(_AT_ONCE, len(self._to_read)))]
            # With return_exceptions, a cancellation waits for all of them: no connection is left behind half used.
            answers = await asyncio.gather(*(self._read(*one) for one in some), return_exceptions=True)
            if not all(answers):
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _read(self, session_id: str, cookie: str | None) -> bool:
        try:
            await self._read_again(session_id, cookie)
        except StoreUnavailable:
            self._to_read.setdefault(session_id, cookie)
            return False
        except Exception:  # noqa: BLE001 -- one record that cannot be read must not keep the others from being read
            _log.exception("%s %s could not be read again", self._kind.purpose, session_id)
        return True
