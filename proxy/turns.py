"""Turns at Logto: of all workers, one at a time asks it for new tokens of a session.

A refresh token may be replaced whenever it is used, and the one before is worth nothing a moment later. So whoever is about to
use one holds a claim in the store, and stores what Logto gave before anybody goes by it.

The claim is short and is kept up while Logto is slow. A worker that dies in the middle may have had the refresh token
replaced already; Logto takes the old one for another three seconds. Within that time another worker must be at it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from proxy.errors import StoreUnavailable
from proxy.session import SessionStore

CLAIM_SECONDS: Final = 2.0
_EXTEND_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.05
_STORE_SECONDS: Final = 120.0  # how long it is tried to store what Logto gave
_AGAIN_SECONDS: Final = 5.0  # after a failure; twice as long after each more, up to
_AGAIN_SECONDS_MOST: Final = 60.0
_FAILURES: Final = 10_000

Result = TypeVar("Result")


async def take(store: SessionStore, session_id: str, waits: Callable[[], bool], seconds: float) -> str | None:
    """Claim a session's turn, waiting up to `seconds` as long as somebody `waits` for that; None: another worker has it."""
    deadline = time.monotonic() + seconds
    while True:
        mark = await store.claim(_claim(session_id), CLAIM_SECONDS)
        if mark is not None or not waits() or time.monotonic() > deadline:
            return mark
        await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def held(store: SessionStore, session_id: str, mark: str) -> AsyncIterator[None]:
    """Keep a claim up, however long it takes, and give it back."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(_EXTEND_SECONDS)
            with suppress(StoreUnavailable):  # then it may be lost: what is stored in the end is compared anyway
                await store.extend(_claim(session_id), mark, CLAIM_SECONDS)

    keeper = asyncio.get_running_loop().create_task(keep())
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        with suppress(StoreUnavailable):  # it runs out by itself
            await store.release(_claim(session_id), mark)


async def stored(store_it: Callable[[], Awaitable[Result]]) -> Result:
    """Store what Logto gave, if need be for a while: the old refresh token may be worth nothing any more."""
    deadline, pause = time.monotonic() + _STORE_SECONDS, _POLL_SECONDS
    while True:
        try:
            return await store_it()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)


async def ended(tasks: Iterable[asyncio.Task[Any]], seconds: float) -> None:
    """Let what is under way come to its end, for `seconds` at most: tokens may have been replaced already."""
    waiting = list(tasks)
    if waiting:
        _, left = await asyncio.wait(waiting, timeout=seconds)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class Pauses:
    """When what Logto failed may be asked again: it may be down because it is asked too much."""

    def __init__(self) -> None:
        self._again_at: dict[
            Hashable, tuple[float, float]
        ] = {}  # what -> time.monotonic() of the next try, and its pause

    def __len__(self) -> int:
        return len(self._again_at)

    def over(self, what: Hashable) -> bool:
        """Whether it may be tried now."""
        known = self._again_at.get(what)
        return known is None or time.monotonic() >= known[0]

    def failed(self, what: Hashable) -> float:
        """It has failed (once more); returns for how many seconds it is let be."""
        _, pause = self._again_at.pop(what, (0.0, _AGAIN_SECONDS / 2))
        pause = min(pause * 2, _AGAIN_SECONDS_MOST)
        if len(self._again_at) >= _FAILURES:
            del self._again_at[next(iter(self._again_at))]
        self._again_at[what] = (time.monotonic() + pause, pause)
        return pause

    def succeeded(self, what: Hashable) -> None:
        """It has not."""
        self._again_at.pop(what, None)

    def clear(self) -> None:
        """Let everything be tried now."""
        self._again_at.clear()


def _claim(session_id: str) -> str:
    return f"renew:{session_id}"
