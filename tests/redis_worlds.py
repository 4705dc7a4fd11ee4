"""Stores on a real Redis as workers have them, and ways to wait for what they learn of each other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from proxy.claims import Grant, Identity, Tokens
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
