"""What a store does for sessions while nobody waits: started, kept, complained about now and then, and called off in the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final

from proxy.errors import StoreUnavailable

_COMPLAINT_SECONDS: Final = 10.0
_log = logging.getLogger("postern.session")


class Chores:
    """Work in the background of one store."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # the event loop itself holds tasks only weakly
        self._complain_at = 0.0

    def run(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Do something that nobody waits for. When Redis does not answer it is left, and said of `what`."""

        def done(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, StoreUnavailable):
                self.complain(f"{what} cannot be brought up to date", error)
            elif error is not None:
                _log.error("%s cannot be brought up to date", what, exc_info=error)

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def complain(self, what: str, error: StoreUnavailable) -> None:
        """Say that something was left, every few seconds at most: a read-only Redis would else fill the log with it."""
        if time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + _COMPLAINT_SECONDS
            _log.warning("%s: %s", what, error)

    async def settled(self, *others: asyncio.Task[Any]) -> None:
        """Return when all of it, and `others`, has come to its end."""
        if tasks := [*self._tasks, *others]:
            await asyncio.wait(tasks)

    async def close(self, *others: asyncio.Task[Any]) -> None:
        """Call off what is still under way, and `others` with it."""
        tasks = [*self._tasks, *others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
