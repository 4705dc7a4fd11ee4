"""Many requests over two gateways past the expiry of one session's tokens: Logto is asked once, and everybody is answered."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import pytest

from proxy import session_codec
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig
from proxy.sandbox.config import Lifetimes
from proxy.sandbox.faults import Fault
from proxy.sandbox.run import running_logto
from proxy.sandbox.visitor import visit
from tests.redis_server import redis_server
from tests.relay_world import World, relay_world, run

PUBLIC = "http://localhost:3000"
LIFE = 3.0  # seconds that tokens live
SLOW = 4.0  # seconds that Logto takes
ROUTES = f"""
public_url = "{PUBLIC}"
[logto]
endpoint = "LOGTO"
app_id = "{SANDBOX_APP_ID}"
app_secret = "{SANDBOX_APP_SECRET}"
[[route]]
name = "app"
upstream = "UPSTREAM"
"""


async def signed_in(world: World) -> bytes:
    """A session by a sign-in at the stand-in, as the value of a Cookie field."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        here = f"http://127.0.0.1:{world.port}"
        headers = {"host": "localhost:3000", "accept": "text/html"}
        begun = await browser.get(here + "/.postern/sign-in", headers=headers)
        callback = urlsplit(await visit(browser, begun.headers["location"], "ada000000001"))
        attempt = begun.headers["set-cookie"].partition(";")[0]
        target = f"{here}{callback.path}?{callback.query}"
        landed = await browser.get(target, headers=headers | {"cookie": attempt})
        cookies = [line.partition(";")[0] for line in landed.headers.get_list("set-cookie")]
    return next(cookie for cookie in cookies if cookie.startswith("postern=")).encode()


def test_thirty_requests_at_two_workers_past_expiry_ask_a_slow_logto_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_codec, "_SHORTEST_LIFE", 0.0)
    lifetimes = Lifetimes(access=LIFE, id_token=LIFE)
    config = replace(SandboxConfig.for_gateway("http://127.0.0.1:1", PUBLIC), lifetimes=lifetimes)

    async def conversation(redis_url: str) -> None:
        async with running_logto(config) as logto:
            toml = ROUTES.replace("LOGTO", logto.url)
            async with relay_world(toml, REDIS_URL=redis_url) as one, relay_world(toml, REDIS_URL=redis_url) as two:
                cookie = await signed_in(one)
                head = b"GET /page HTTP/1.1\r\nHost: localhost:3000\r\nCookie: %s\r\n\r\n" % cookie
                assert [(await world.ask(head))[0] for world in (one, two)] == [200, 200]
                await asyncio.sleep(LIFE)
                before = sum(it.params.get("grant_type") == "refresh_token" for it in logto.state.received("token"))
                logto.state.faults.append(Fault("token", delay=SLOW))
                began = time.monotonic()
                answers = await asyncio.gather(*(world.ask(head) for world in (one, two) for _ in range(15)))
                assert [status for status, *_ in answers] == [200] * 30
                assert time.monotonic() - began >= SLOW, "nobody got by without the answer"
                asked = sum(it.params.get("grant_type") == "refresh_token" for it in logto.state.received("token"))
                assert asked - before == 1

    with redis_server() as server:
        run(conversation(server.url))
