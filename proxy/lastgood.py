"""A value fetched when it is needed, by one fetch at a time, and kept when the next fetch fails.

Made for what Logto publishes, discovery and keys: nothing of it is fetched at start-up, nothing good is lost because Logto is
away for a while, and however many requests want it at once, or want it anew, Logto is asked once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from proxy.errors import LogtoUnavailable

Value = TypeVar("Value")
_log = logging.getLogger("postern.logto")


class LastGood(Generic[Value]):
    """One value and how to get it.

    `fetch` returns it or raises LogtoUnavailable; whatever it returns is good. After `ttl` seconds the value is fetched anew.
    `pause` seconds must pass between two fetches while there is a value: strangers can ask for a new one (with a token whose
    key id they made up), so that wish must not become a flood.
    """

    def __init__(
        self,
        what: str,
        fetch: Callable[[], Awaitable[Value]],
        *,
        ttl: float,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._fetch = fetch
        self._ttl = ttl
        self._pause = pause
        self._clock = clock
        self._value: Value | None = None
        self._fetched_at = 0.0
        self._tried_at = 0.0
        self._flight: asyncio.Task[Value] | None = None

    @property
    def value(self) -> Value | None:
        """What was fetched last, whatever its age."""
        return self._value

    async def get(self) -> Value:
        """Return the value, fetched at most `ttl` ago, or older while it cannot be fetched.

        Raises LogtoUnavailable when there has never been one.
        """
        if self._value is not None and not self._over(self._fetched_at, self._ttl):
            return self._value
        return await self.renew()

    async def renew(self) -> Value:
        """Return the value, fetched anew unless that was tried less than `pause` ago; else as `get`."""
        if self._value is not None and not self._over(self._tried_at, self._pause):
            return self._value
        try:
            return await self.fetch()
        except LogtoUnavailable as error:
            if self._value is None:
                raise
            _log.warning("%s cannot be fetched, the last one is kept: %s", self._what, error)
            return self._value

    async def fetch(self) -> Value:
        """Fetch the value now, or wait for the fetch that is under way; raises LogtoUnavailable."""
        if self._flight is None:
            self._flight = asyncio.get_running_loop().create_task(self._run())
            self._flight.add_done_callback(self._landed)
        # Shielded: one waiting request that is given up must not take the fetch away from the others.
        return await asyncio.shield(self._flight)

    async def _run(self) -> Value:
        try:
            self._value = await self._fetch()
            self._fetched_at = self._clock()
        finally:
            self._tried_at = self._clock()
        return self._value

    def _landed(self, flight: asyncio.Task[Value]) -> None:
        self._flight = None
        if not flight.cancelled():
            flight.exception()  # looked at here, in case nobody waits for it any more

    def _over(self, since: float, seconds: float) -> bool:
        return not 0 <= self._clock() - since < seconds  # also when the clock was set back
