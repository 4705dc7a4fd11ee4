"""Stores on a real Redis as workers have them, and ways to wait for what they learn of each other."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.sealing import KeyRing
from proxy.session import Bounds, Miss, Session
from proxy.session_redis import RedisStore
from proxy.session_servers import Reach

RING = KeyRing([b"k" * 32])
TOKENS = Tokens("id-token", "access", 9e9, "refresh")
GRANT = Grant(Identity(sub="alice", email="alice@example.test"), TOKENS, "logto-sid", 1.0)
PATIENCE = 15.0  # for what takes milliseconds, on a busy machine


def store_at(
    url: str,
    *,
    ring: KeyRing = RING,
    idle: float = 3600.0,
    lifetime: float = 86400.0,
    clock: Callable[[], float] = time.time,
    bounds: Bounds = Bounds(),  # noqa: B008 -- frozen
    reach: Reach = Reach(),  # noqa: B008 -- frozen
) -> RedisStore:
    return RedisStore(url, ring, idle=idle, lifetime=lifetime, clock=clock, bounds=bounds, reach=reach)


@contextlib.asynccontextmanager
async def workers(url: str, count: int = 2, **options: Any) -> AsyncIterator[list[RedisStore]]:
    """Stores of several workers, started and hearing of changes."""
    stores = [store_at(url, **options) for _ in range(count)]
    try:
        for store in stores:
            await store.start()
        for store in stores:
            await until(lambda store=store: hears(store))  # type: ignore[misc]  # mypy cannot infer it
        yield stores
    finally:
        for store in stores:
            await store.close()


def hears(store: RedisStore) -> bool:
    """Whether every server of `store` reports changes."""
    masters = store._records.servers.masters()
    return bool(masters) and all(it.line is not None and it.line.good(store._clock()) for it in masters)


async def until(condition: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.002)


async def sign_in(store: RedisStore, grant: Grant = GRANT) -> tuple[Session, str]:
    return await store.create(grant, browser="Firefox", address="192.0.2.1")


async def known(store: RedisStore, cookie: str) -> Session:
    """The session of `cookie`, once it is in the cache of `store`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = store.peek(cookie)
        if isinstance(found, Session):
            return found
        assert found is Miss.MISS
        assert time.monotonic() < deadline, "it is never kept"
        assert await store.load(cookie) is not None
        await asyncio.sleep(0)


class Load:
    """People who use their sessions and try ended ones, all the time, at several workers.

    A wrong answer is a living session that is not found, an ended one that is, or anything but StoreUnavailable raised.
    """

    def __init__(self, stores: Sequence[RedisStore], living: Sequence[str], ended: Sequence[str]) -> None:
        self.stores = stores
        self.living = living
        self.ended = ended
        self.wrong: list[str] = []
        self.unavailable = 0
        self.answers = 0
        self.longest = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False

    async def __aenter__(self) -> Self:
        for number, store in enumerate(self.stores):
            self._tasks += [asyncio.create_task(self._use(store, number + offset)) for offset in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _use(self, store: RedisStore, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over:
            lives = chance.random() < 0.7
            cookie = chance.choice(self.living if lives else self.ended)
            began = time.monotonic()
            try:
                found = store.peek(cookie)
                if found is Miss.MISS or chance.random() < 0.2:
                    found = await store.load(cookie)
            except StoreUnavailable:
                self.unavailable += 1
                await asyncio.sleep(0.01)
            except Exception as error:
                self.wrong.append(repr(error))
            else:
                self.answers += 1
                if (found is not None) != lives:
                    self.wrong.append("a living session is not found" if lives else "an ended one is")
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(0.001)

    async def well_again(self) -> None:
        """Wait until a while has passed with answers and nothing else."""
        while True:
            failed, answered = self.unavailable, self.answers
            await until(lambda: self.answers > answered + 200 or self.unavailable > failed, within=60)  # noqa: B023 -- called within this turn
            if self.unavailable == failed:
                return
