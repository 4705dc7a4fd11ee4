"""`postern check` asks everything the settings name, and says what to do about what fails."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from proxy.checkup import Finding, check_surroundings
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig
from proxy.sandbox.run import running_logto
from proxy.settings import load
from tests.redis_server import RedisServer


async def findings(**environ: str) -> list[Finding]:
    settings = load(
        Path(os.devnull),
        {
            "POSTERN_PUBLIC_URL": "http://localhost:3000",
            "LOGTO_APP_ID": SANDBOX_APP_ID,
            "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
            **environ,
        },
    )
    return [finding async for finding in check_surroundings(settings)]


def test_everything_answers() -> None:
    async def look() -> list[Finding]:
        async with running_logto(SandboxConfig()) as logto:
            with RedisServer() as redis, socket.create_server(("127.0.0.1", 0)) as app:
                return await findings(
                    LOGTO_ENDPOINT=logto.url,
                    REDIS_URL=redis.url,
                    POSTERN_UPSTREAM=f"http://127.0.0.1:{app.getsockname()[1]}",
                )

    found = asyncio.run(look())
    assert [finding.ok for finding in found] == [True, True, True], found
    assert found[0].what == "session store (redis)"


def test_what_fails_comes_with_its_remedy_and_stops_nothing() -> None:
    found = asyncio.run(
        findings(
            LOGTO_ENDPOINT="http://127.0.0.1:9",
            REDIS_URL="redis://someone:hunter2@127.0.0.1:9/0",
            POSTERN_UPSTREAM="http://nowhere.invalid:80",
        )
    )
    assert [finding.ok for finding in found] == [False, False, False]
    assert all(finding.remedy for finding in found)
    assert "hunter2" not in repr(found)


def test_a_logto_with_another_issuer_is_named() -> None:
    async def look() -> list[Finding]:
        async with running_logto(SandboxConfig()) as logto:
            return await findings(
                LOGTO_ENDPOINT="https://auth.example.com",
                POSTERN_LOGTO__INTERNAL_ENDPOINT=logto.url,
                POSTERN_UPSTREAM="http://127.0.0.1:9",
            )

    store, logto, upstream = asyncio.run(look())
    assert store.ok
    assert not logto.ok
    assert "issuer" in logto.outcome
    assert not upstream.ok
