"""Two workers, many requests, and tokens that have run out: Logto is asked once, and a worker that dies over it is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig
from proxy.sandbox.config import Lifetimes
from proxy.sandbox.faults import Fault
from proxy.sandbox.run import running_logto
from proxy.sandbox.state import SandboxState
from proxy.sandbox.visitor import visit
from tests.life_world import Life, life, peers
from tests.redis_server import RedisServer, redis_server
from tests.relay_world import Client, run

LIFE = 5.0  # seconds that tokens live: the least that counts
SLOW = 4.0  # seconds that Logto takes
ANONYMOUS = b"GET /page HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
ROUTE = """
[[route]]
name = "app"
upstream = "{upstream}"
"""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@dataclass(frozen=True)
class Expired:
    """Two workers of one gateway, both of which know somebody whose tokens have run out by now."""

    gateway: Life
    logto: SandboxState
    request: bytes

    def refreshes(self) -> int:
        """How often Logto has been asked for new tokens."""
        return sum(it.params.get("grant_type") == "refresh_token" for it in self.logto.received("token"))

    async def both(self) -> tuple[list[Client], list[Client]]:
        """Sixty connections, by the worker that has them."""
        clients = [await self.gateway.connect() for _ in range(60)]
        for client in clients:
            while (await client.ask(ANONYMOUS))[0] != 401:
                await asyncio.sleep(0.01)  # the route that was there before is open to everyone
        first, second = ({*peers(pid, self.gateway.port)} for pid in self.gateway.workers())
        port = {client: client.writer.get_extra_info("sockname")[1] for client in clients}
        return [it for it in clients if port[it] in first], [it for it in clients if port[it] in second]


async def signed_in(port: int) -> bytes:
    """A session by a sign-in at the stand-in, as the value of a Cookie field."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        here = f"http://127.0.0.1:{port}"
        headers = {"host": "localhost:3000", "accept": "text/html"}
        begun = await browser.get(here + "/.postern/sign-in", headers=headers)
        callback = urlsplit(await visit(browser, begun.headers["location"], "ada000000001"))
        attempt = begun.headers["set-cookie"].partition(";")[0]
        target = f"{here}{callback.path}?{callback.query}"
        landed = await browser.get(target, headers=headers | {"cookie": attempt})
        cookies = [line.partition(";")[0] for line in landed.headers.get_list("set-cookie")]
    return next(cookie for cookie in cookies if cookie.startswith("postern=")).encode()


@asynccontextmanager
async def expired(folder: Path, redis: RedisServer) -> AsyncIterator[tuple[Expired, list[Client], list[Client]]]:
    """See Expired; and connections to either worker, fifteen at least."""
    lifetimes = Lifetimes(access=LIFE, id_token=LIFE)
    config = replace(SandboxConfig.for_gateway("http://127.0.0.1:1", "http://localhost:3000"), lifetimes=lifetimes)
    async with running_logto(config) as logto:
        environ = {
            "REDIS_URL": redis.url,
            "LOGTO_ENDPOINT": logto.url,
            "LOGTO_APP_ID": SANDBOX_APP_ID,
            "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
        }
        async with life(folder, environ, "--workers", "2") as gateway:
            await gateway.until(lambda: len(gateway.workers()) == 2, "two workers")
            await gateway.reload(ROUTE.format(upstream=gateway.upstream.url))
            await gateway.until_said("settings reloaded: generation 2")
            cookie = await signed_in(gateway.port)
            request = b"GET /page HTTP/1.1\r\nHost: localhost:3000\r\nCookie: %s\r\n\r\n" % cookie
            world = Expired(gateway, logto.state, request)
            first, second = await world.both()
            assert [(await client.ask(request))[0] for client in (first[0], second[0])] == [200, 200]
            await asyncio.sleep(LIFE + 1)
            assert min(len(first), len(second)) >= 15
            yield world, first, second


def test_thirty_requests_at_two_workers_past_expiry_ask_a_slow_logto_once(tmp_path: Path, redis: RedisServer) -> None:
    async def conversation() -> None:
        async with expired(tmp_path, redis) as (world, first, second):
            before = world.refreshes()
            world.logto.faults.append(Fault("token", delay=SLOW))
            began = time.monotonic()
            answers = await asyncio.gather(*(client.ask(world.request) for client in first[:15] + second[:15]))
            assert [status for status, *_ in answers] == [200] * 30
            assert time.monotonic() - began >= SLOW, "nobody got by without the answer"
            assert world.refreshes() - before == 1

    run(conversation())


def test_a_worker_killed_while_it_asks_logto_costs_its_own_requests_and_no_session(
    tmp_path: Path, redis: RedisServer
) -> None:
    async def conversation() -> None:
        async with expired(tmp_path, redis) as (world, first, second):
            before, pid = world.refreshes(), world.gateway.workers()[0]
            world.logto.faults.append(Fault("token", hang=True, times=1))
            lost = asyncio.ensure_future(first[0].ask(world.request))
            await world.gateway.until(lambda: world.refreshes() == before + 1, "Logto is asked")
            waiting = [asyncio.ensure_future(client.ask(world.request)) for client in second[:15]]
            os.kill(pid, signal.SIGKILL)
            assert [status for status, *_ in await asyncio.gather(*waiting)] == [200] * 15
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await lost
            assert world.refreshes() == before + 2
            assert (await world.gateway.ask(world.request))[0] == 200, "the session lives"

    run(conversation())
