"""Logto in trouble: what people see who want in, and that nobody who is in already notices.

A stand-in Logto misbehaves on request before a real gateway, while somebody who is signed in goes on working with an app and
sessions are rechecked every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from proxy import oidc
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig, SandboxState
from proxy.sandbox.faults import Fault
from proxy.sandbox.people import Person
from proxy.sandbox.run import RunningLogto, running_logto
from proxy.sandbox.visitor import visit
from proxy.serve import serve
from proxy.settings import load
from tests.e2e.processes import free_port
from tests.relay_world import Upstream

ADA, MAX = "ada000000001", "max000000002"
PAGE = {"accept": "text/html"}
WITHIN = 20.0  # seconds; no test waits that long unless it fails
PATIENT = 120.0  # seconds that somebody waits for one answer: a crowd and a Logto share this process
SLOW = 4.0  # seconds that a slow Logto takes for one answer
_TRUST = ssl.create_default_context()  # made once: a thousand people have a client each


@dataclass
class World:
    """A gateway before an app that says hello, and a Logto that can be taken away and brought back."""

    url: str
    logto_port: int
    logto: contextlib.AsyncExitStack
    upstream: Upstream
    running: RunningLogto | None = None

    @property
    def state(self) -> SandboxState:
        assert self.running is not None
        return self.running.state

    async def up(self) -> None:
        config = SandboxConfig.for_gateway(f"http://127.0.0.1:{self.logto_port}", self.url)
        self.running = await self.logto.enter_async_context(running_logto(config, port=self.logto_port))

    async def down(self) -> None:
        await self.logto.aclose()
        self.running = None

    async def begin(self, client: httpx2.AsyncClient) -> httpx2.Response:
        return await client.get(self.url + "/.postern/sign-in?return_to=/page", headers=PAGE)

    async def sign_in(self, client: httpx2.AsyncClient, sub: str = ADA) -> httpx2.Response:
        """The answer to the callback, or what came in the place of a way to Logto."""
        begun = await self.begin(client)
        if begun.status_code != 302:
            return begun
        return await client.get(await visit(client, begun.headers["location"], sub), headers=PAGE)

    async def rechecked(self, times: int = 1) -> None:
        """Return when Logto has been asked about somebody's session so often from now on."""
        before = self.rechecks
        await until(lambda: self.rechecks >= before + times)

    @property
    def rechecks(self) -> int:
        return sum(one.params.get("grant_type") == "refresh_token" for one in self.state.received("token"))


@dataclass
class Insider:
    """Somebody who is signed in and works with the app."""

    client: httpx2.AsyncClient
    url: str

    async def works(self) -> None:
        answer = await self.client.get(self.url + "/app")
        assert (answer.status_code, answer.text) == (200, "hello")

    async def works_during(self, work: Coroutine[Any, Any, Any]) -> int:
        """Work with the app, one request after the other, until `work` is done; how many answers came meanwhile."""
        task, answers = asyncio.ensure_future(work), 0
        while not task.done():
            await self.works()
            answers += 1
            await asyncio.sleep(0.005)
        await task
        return answers


@contextlib.asynccontextmanager
async def stranger() -> AsyncIterator[httpx2.AsyncClient]:
    # Each request on a connection of its own: in a crowd one may lie idle for longer than a server keeps it.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        trust_env=False, follow_redirects=False, timeout=PATIENT, verify=_TRUST, limits=limits
    ) as client:
        yield client


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def place(**environ: str) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        upstream = Upstream()
        await upstream.start()
        stack.push_async_callback(upstream.stop)
        world = World(
            f"http://localhost:{free_port()}",
            free_port(),
            await stack.enter_async_context(contextlib.AsyncExitStack()),
            upstream,
        )
        await world.up()
        settings = load(
            Path(os.devnull),
            {
                "POSTERN_PUBLIC_URL": world.url,
                "POSTERN_LISTEN": "127.0.0.1:" + world.url.rpartition(":")[2],
                "POSTERN_ROUTE__0__NAME": "app",
                "POSTERN_ROUTE__0__UPSTREAM": upstream.url,
                "LOGTO_ENDPOINT": f"http://127.0.0.1:{world.logto_port}",
                "LOGTO_APP_ID": SANDBOX_APP_ID,
                "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
                "POSTERN_LOGTO__RECHECK": "1s",
                **environ,
            },
        )
        listening = asyncio.Event()
        task = asyncio.create_task(serve(settings, started=listening.set))
        stack.push_async_callback(_ended, task)
        await asyncio.wait_for(listening.wait(), WITHIN)
        yield world


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def run(conversation: Callable[[World, Insider], Awaitable[None]], **environ: str) -> None:
    """Hold `conversation` in a world where Ada is signed in."""

    async def hold() -> None:
        async with place(**environ) as world, stranger() as client:
            assert (await world.sign_in(client)).status_code == 303
            await conversation(world, Insider(client, world.url))

    asyncio.run(hold())


def says(answer: httpx2.Response, status: int, text: str) -> None:
    """`answer` is a page that says so, offers to try again where that helps, and sets no session."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert text in answer.text
    assert "/.postern/sign-in" in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert not any(line.startswith("postern=") for line in answer.headers.get_list("set-cookie"))


GONE = "The sign-in service cannot be reached right now."

# -- slow -------------------------------------------------------------------------------------------------------------


def test_a_slow_logto_keeps_those_waiting_who_sign_in_and_nobody_else() -> None:
    async def conversation(world: World, insider: Insider) -> None:
        world.state.faults.append(Fault("token", delay=SLOW))
        async with stranger() as client:
            begun = time.monotonic()
            answers = await insider.works_during(signs_in(world, client))
            assert time.monotonic() - begun >= SLOW
            assert answers >= 10, "who waits for Logto gets one answer in that time"

    run(conversation)


async def signs_in(world: World, client: httpx2.AsyncClient, sub: str = MAX) -> None:
    answer = await world.sign_in(client, sub)
    assert (answer.status_code, answer.headers["location"]) == (303, world.url + "/page")
    assert (await client.get(world.url + "/.postern/me")).json()["sub"] == sub


def test_a_logto_slower_than_its_time_limit_is_given_up_on_with_a_page() -> None:
    async def conversation(world: World, insider: Insider) -> None:
        world.state.faults.append(Fault("token", delay=SLOW))

        async def is_told() -> None:
            async with stranger() as client:
                begun = time.monotonic()
                says(await world.sign_in(client, MAX), 503, GONE)
                assert time.monotonic() - begun < SLOW

        await insider.works_during(is_told())
        await insider.works_during(world.rechecked())
        world.state.faults.clear()
        async with stranger() as client:
            await insider.works_during(signs_in(world, client))

    run(conversation, POSTERN_LOGTO__TIMEOUT="1s")


# -- nonsense ---------------------------------------------------------------------------------------------------------

NONSENSE: dict[str, dict[str, Any]] = {
    "HTML": {"status": 200, "body": "<!doctype html><title>Maintenance</title>"},
    "an error page": {"status": 502},
    "ten megabytes": {"huge": True},
    "JSON of another kind": {"json": [1, 2, 3]},
    "too many requests": {"status": 429, "json": {"error": "slow_down"}},
    "an error of its own": {"status": 500, "json": {"message": "Internal server error."}},
}


@pytest.mark.parametrize("endpoint", ["token", "userinfo"])
@pytest.mark.parametrize("name", NONSENSE)
def test_a_logto_that_talks_nonsense_lets_nobody_in_and_puts_nobody_out(endpoint: str, name: str) -> None:
    async def conversation(world: World, insider: Insider) -> None:
        world.state.faults.append(Fault(endpoint, **NONSENSE[name]))
        async with stranger() as client:
            answer = await world.sign_in(client, MAX)
            says(answer, 503, GONE)
            assert "Whoever is signed in already can go on working." in answer.text
            assert answer.headers["retry-after"] == "5"
            assert "Maintenance" not in answer.text
            assert (await client.get(world.url + "/.postern/me")).status_code == 401
        await insider.works_during(world.rechecked())
        await insider.works()
        world.state.faults.clear()
        async with stranger() as client:
            await signs_in(world, client)

    run(conversation)


@pytest.mark.parametrize("endpoint", ["discovery", "jwks"])
@pytest.mark.parametrize("name", NONSENSE)
def test_a_gateway_that_starts_before_logto_does_says_so_and_recovers_by_itself(endpoint: str, name: str) -> None:
    async def hold() -> None:
        async with place() as world, stranger() as client:
            world.state.faults.append(Fault(endpoint, **NONSENSE[name]))
            says(await world.sign_in(client), 503, GONE)
            assert (await client.get(world.url + "/.postern/healthz")).status_code == 200
            world.state.faults.clear()
            await signs_in(world, client, ADA)

    asyncio.run(hold())


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_published_badly_for_a_while_bothers_nobody_who_has_read_it_before(name: str) -> None:
    async def conversation(world: World, insider: Insider) -> None:
        world.state.faults += [Fault("discovery", **NONSENSE[name]), Fault("jwks", **NONSENSE[name])]
        async with stranger() as client:
            await insider.works_during(signs_in(world, client))

    run(conversation)


# -- down -------------------------------------------------------------------------------------------------------------


def test_a_logto_that_is_down_and_comes_back(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # A Logto that comes back here has new keys, within seconds of its old ones having been fetched.
    monkeypatch.setattr(oidc, "_PAUSE_SECONDS", 0.01)

    async def conversation(world: World, insider: Insider) -> None:
        async with stranger() as client:
            begun = await world.begin(client)
            callback = await visit(client, begun.headers["location"], MAX)
            await world.down()
            says(await client.get(callback, headers=PAGE), 503, GONE)
        await insider.works_during(until(lambda: "is not renewed" in caplog.text))
        await insider.works()
        await world.up()
        async with stranger() as client:
            await signs_in(world, client)

    run(conversation)


def test_who_signs_out_while_logto_is_down_is_out_here() -> None:
    async def conversation(world: World, insider: Insider) -> None:
        await world.down()
        headers = {**PAGE, "origin": world.url}
        await insider.client.post(world.url + "/.postern/sign-out", headers=headers)
        assert (await insider.client.get(world.url + "/app")).status_code == 401

    run(conversation)


# -- keys and clocks --------------------------------------------------------------------------------------------------


def test_keys_rotated_twice_are_followed_by_the_next_who_signs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "_PAUSE_SECONDS", 0.01)  # rotations are months apart, not seconds

    async def conversation(world: World, insider: Insider) -> None:
        for _ in range(2):
            world.state.keys.rotate()
            async with stranger() as client:
                await insider.works_during(signs_in(world, client))
        await insider.works_during(world.rechecked())
        await insider.works()

    run(conversation)


def test_both_keys_replaced_at_once_too_and_the_way_out_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "_PAUSE_SECONDS", 0.01)

    async def conversation(world: World, insider: Insider) -> None:
        world.state.keys.rotate("RSA")
        world.state.keys.rotate()
        async with stranger() as client:
            await insider.works_during(signs_in(world, client))
        # Logto does not take a hint that it cannot verify, and its page would leave the person signed in.
        headers = {**PAGE, "origin": world.url}
        out = await insider.client.post(world.url + "/.postern/sign-out", headers=headers)
        assert (await visit(insider.client, out.headers["location"], "nobody")) == world.url + "/.postern/signed-out"
        begun = await world.begin(insider.client)
        asked = await insider.client.get(begun.headers["location"])
        assert not asked.headers["location"].startswith(world.url)

    run(conversation, POSTERN_LOGTO__RECHECK="1h")


@pytest.mark.parametrize("seconds", [20.0, -20.0])
def test_a_clock_that_is_off_a_little_stops_nobody(seconds: float) -> None:
    async def conversation(world: World, insider: Insider) -> None:
        world.state.clock.offset = seconds
        async with stranger() as client:
            await insider.works_during(signs_in(world, client))
            await insider.works_during(world.rechecked(2))
            await insider.works()
            assert (await client.get(world.url + "/app")).status_code == 200

    run(conversation)


# -- many -------------------------------------------------------------------------------------------------------------

CROWD = 1000
AT_ONCE = 40  # of them under way at any moment: as many as one process can be all of, and Logto too


def test_a_crowd_of_a_thousand_all_get_in_as_themselves() -> None:
    async def conversation(world: World, insider: Insider) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            sub, snowflake = f"crowd{number:07}", str(10**17 + number)
            async with room, stranger() as client:
                # Known to Logto only now: its pages show everybody it knows, and a thousand faces on each take their time.
                world.state.people[sub] = Person(sub, f"No. {number}", sub, None, snowflake, sub, sub)
                await signs_in(world, client, sub)
                del world.state.people[sub]

        async def all_of_them() -> None:
            await asyncio.gather(*map(one, range(CROWD)))

        assert await insider.works_during(all_of_them()) > 1
        codes = [one.params["code"] for one in world.state.received("token") if "code" in one.params]
        assert len(codes) == CROWD + 1
        for published in ("discovery", "jwks"):
            assert len(world.state.received(published)) == 1, "asked once for everybody"

    run(conversation, POSTERN_LOGTO__RECHECK="1h", POSTERN_LOGTO__TIMEOUT="60s")


def test_a_crowd_before_a_logto_that_nobody_has_asked_yet_asks_it_once() -> None:
    async def hold() -> None:
        async with place() as world, stranger() as client:
            world.state.faults.append(Fault("discovery", delay=0.3))
            begun = await asyncio.gather(*(world.begin(client) for _ in range(50)))
            assert {answer.status_code for answer in begun} == {302}
            states = {parse_qs(urlsplit(answer.headers["location"]).query)["state"][0] for answer in begun}
            assert len(states) == 50
            assert len(world.state.received("discovery")) == 1

    asyncio.run(hold())
