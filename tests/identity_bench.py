"""A provider that lies, a relying party on its clock, and the browsers in between: the bench of the identity tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.errors import SignInFailed, StoreUnavailable
from proxy.identity import Begun, Finished, RelyingParty
from proxy.sealing import KeyRing
from proxy.settings import Settings, load
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, LyingProvider

RING = KeyRing([b"k" * 32])
RETURN_TO = "https://apps.example.com/reports?year=2026&x=%2F"
TIMEOUT = 2.0


def settings(endpoint: str, **changes: str) -> Settings:
    environ = {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": endpoint,
        "LOGTO_APP_ID": CLIENT_ID,
        "LOGTO_APP_SECRET": CLIENT_SECRET,
        "POSTERN_LOGTO__TIMEOUT": f"{TIMEOUT:g}s",
    }
    return load(None, environ | {f"POSTERN_{key}": value for key, value in changes.items()})


class Bench:
    """A provider, a relying party on its clock, and the browsers in between."""

    def __init__(self, logto: LyingProvider, **changes: str) -> None:
        self.logto = logto
        self.used: set[str] = set()
        self.store_down = False
        endpoint = logto.issuer_base or logto.url
        self.settings = settings(endpoint, **({"LOGTO__INTERNAL_ENDPOINT": logto.url} | changes))
        self.rp = self.worker()

    def worker(self) -> RelyingParty:
        return RelyingParty(self.settings, RING, self.once, clock=lambda: self.logto.now)

    async def once(self, key: str, ttl: float) -> bool:
        assert ttl >= 600
        if self.store_down:
            raise StoreUnavailable("down")
        fresh = key not in self.used
        self.used.add(key)
        return fresh

    async def begin(self, **how: Any) -> tuple[Begun, dict[str, str]]:
        begun = await self.rp.begin(RETURN_TO, **how)
        return begun, dict([cookie(begun.set_cookie)])

    async def sign_in(self) -> Finished:
        begun, jar = await self.begin()
        return await self.rp.finish(self.logto.authorize(begun.url), jar)


def cookie(set_cookie: str) -> tuple[str, str]:
    name, _, value = set_cookie.partition(";")[0].partition("=")
    return name, value


@contextlib.asynccontextmanager
async def bench(logto: LyingProvider | None = None, **changes: str) -> AsyncIterator[Bench]:
    logto = logto or LyingProvider()
    async with logto.running():
        it = Bench(logto, **changes)
        try:
            yield it
        finally:
            await it.rp.close()


def run(conversation: Callable[[Bench], Awaitable[None]], logto: LyingProvider | None = None, **changes: str) -> None:
    async def hold() -> None:
        async with bench(logto, **changes) as it:
            await conversation(it)

    asyncio.run(hold())


async def failed(attempt: Awaitable[Any]) -> SignInFailed:
    with pytest.raises(SignInFailed) as caught:
        await attempt
    assert CLIENT_SECRET not in str(caught.value)
    return caught.value
