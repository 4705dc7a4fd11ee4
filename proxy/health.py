"""Asking a server regularly whether it is well, so that requests go to another one before they find out themselves.

Each worker asks for itself: what counts is whether this process gets an answer. A server that is not well is asked last, as after
failed requests (`standing.py`), and never refused: where no server is well, the app may be while its health page is not.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from proxy.errors import UpstreamFailed
from proxy.http1 import Fields, ResponseHead

if TYPE_CHECKING:
    from proxy.pool import Pool
    from proxy.upstream_settings import HealthSettings

FAILED_CHECKS: Final = 2  # in a row, before a server counts as not well; one that passes makes it well again
FIRST_WITHIN: Final = 1.0  # seconds in which the first check is made
_log: Final = logging.getLogger("postern.upstream")


class HealthCheck:
    """The regular check of one server. It has a connection of its own each time: an idle one says nothing of new ones."""

    def __init__(self, pool: Pool, settings: HealthSettings) -> None:
        self._pool = pool
        self._settings = settings
        self._failed = 0  # checks in a row
        self._task: asyncio.Task[None] | None = None
        host = settings.host.encode() if settings.host else pool.authority
        self._head = (
            b"GET %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: Postern-Health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            % (settings.path.encode(), host)
        )

    def start(self) -> None:
        """Begin to check, until `stop`. Needs a running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Check no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def check(self) -> str | None:
        """Ask once. Returns what is wrong with the server, None when it is well."""
        connection = None
        try:
            async with asyncio.timeout(self._settings.timeout):
                connection = await self._pool.open()
                probe = _Probe()
                connection.begin(probe, b"GET", self._head, complete=True)
                status = await probe.status
        except TimeoutError:
            return f"no answer within {self._settings.timeout:g} s"
        except UpstreamFailed as error:
            return f"{error.problem.value}: {error}"
        finally:
            if connection is not None:
                connection.abort()
        least, most = self._settings.status
        return None if least <= status <= most else f"it answers with status {status}"

    async def _run(self) -> None:
        # Workers and servers out of step with each other: a check must not be a burst.
        await asyncio.sleep(random.uniform(0.0, min(self._settings.interval, FIRST_WITHIN)))  # noqa: S311 -- not a secret
        while True:
            self._take_note(await self.check())
            await asyncio.sleep(self._settings.interval * random.uniform(0.9, 1.1))  # noqa: S311 -- not a secret

    def _take_note(self, wrong: str | None) -> None:
        standing = self._pool.standing
        self._failed = self._failed + 1 if wrong is not None else 0
        if wrong is None and not standing.healthy:
            standing.healthy = True
            _log.info("upstream %s is well again", self._pool.url)
        elif self._failed >= FAILED_CHECKS and standing.healthy:
            standing.healthy = False
            _log.warning("upstream %s is not well: %s; set aside until it is", self._pool.url, wrong)


class _Probe:
    """What a check's answer goes to: only its status counts."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def upstream_head(self, head: ResponseHead) -> None:
        """The status, if it is a final one (Sink)."""
        if head.status >= 200 and not self.status.done():
            self.status.set_result(head.status)

    def upstream_failed(self, error: UpstreamFailed) -> None:
        """No answer (Sink)."""
        if not self.status.done():
            self.status.set_exception(error)

    def upstream_flush(self) -> None:
        """Nothing is held back here (Sink)."""

    def upstream_data(self, data: bytes) -> None:
        """The body says nothing (Sink)."""

    def upstream_done(self, trailers: Fields) -> None:
        """Nor does its end (Sink)."""

    def upstream_eof(self) -> None:
        """There is no tunnel (Sink)."""

    def upstream_writable(self, writable: bool) -> None:
        """One head always fits (Sink)."""
