"""Logto slow, cut short, enormous, gone: an outage within the deadline, and well again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy.errors import LogtoUnavailable
from tests.identity_bench import Bench, run
from tests.lying_provider import CLIENT_SECRET, DISCOVERY, KEYS, SUB, LyingProvider, response


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def vanish(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    writer.close()


async def garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x16\x03\x01\x00\x05 SSH-2.0\r\n\r\n")
    await writer.drain()


async def huge(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10485760\r\n\r\n")
    for _ in range(160):
        writer.write(b" " * 65536)
        await writer.drain()


async def zipped(writer: asyncio.StreamWriter) -> None:
    writer.write(response(200, b"\x1f\x8b" * 50, "content-encoding: gzip"))
    await writer.drain()


async def moved(writer: asyncio.StreamWriter) -> None:
    writer.write(response(301, b"", "location: https://evil.example/"))
    await writer.drain()


PROMISED_SECONDS = 10.0  # far above the half second set below, far below a server's patience
FAULTS = {
    "hangs": hang, "drips": drip, "vanishes": vanish, "is cut": cut, "talks garbage": garbage, "10 MB": huge,
    "compresses": zipped, "redirects": moved,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("path", [DISCOVERY, KEYS, "/oidc/token", "/oidc/me"])
def test_outages_in_a_sign_in(path: str, fault: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.faults[path] = fault
        began = asyncio.get_running_loop().time()
        with pytest.raises(LogtoUnavailable) as caught:
            await it.sign_in()
        assert asyncio.get_running_loop().time() - began < PROMISED_SECONDS
        assert CLIENT_SECRET not in str(caught.value)
        it.logto.faults.clear()
        assert (await it.sign_in()).grant.identity.sub == SUB  # and all is well again by itself

    quick = "0.5s" if fault in (hang, drip) else "5s"
    run(conversation, LOGTO__TIMEOUT=quick)


def test_logto_is_down() -> None:
    async def conversation() -> None:
        logto = LyingProvider()
        async with logto.running():
            it = Bench(logto)
        with pytest.raises(LogtoUnavailable):
            await it.begin()
        with pytest.raises(LogtoUnavailable):
            await it.rp.check()
        with pytest.raises(LogtoUnavailable):
            await it.rp.sign_out_url(None)
        async with logto.running():
            finished = await it.sign_in()
        # What is known goes on without it.
        begun, jar = await it.begin()
        assert (await it.rp.sign_out_url(finished.grant.tokens)).startswith(logto.url)
        with pytest.raises(LogtoUnavailable):
            await it.rp.finish(logto.authorize(begun.url), jar)
        with pytest.raises(LogtoUnavailable):
            await it.rp.refresh(finished.grant.tokens, finished.grant.identity)
        await it.rp.revoke(finished.grant.tokens)
        async with logto.running():
            await it.rp.refresh(finished.grant.tokens, finished.grant.identity)
            await it.rp.close()

    asyncio.run(conversation())
