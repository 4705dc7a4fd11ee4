"""A supervised worker as a process, with the test in the place of its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.control import Channel, Message, packed
from proxy.listening import Loads, bind
from proxy.settings import Listen
from tests.life_world import GET, NOTHING, ROOT, serving
from tests.relay_world import PATIENCE, Client, Upstream, run, settings_for


class Supervised:
    """A worker process, and the supervisor's end of the talk with it."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: Channel, listener: socket.socket, loads: Loads
    ) -> None:
        self.process = process
        self.channel = channel
        self.loads = loads
        self._address = listener.getsockname()

    async def hear(self, kind: str) -> Message:
        """What it says next, which must be of this kind."""
        async with asyncio.timeout(PATIENCE):
            message = await self.channel.hear()
        assert message is not None, "it says no more"
        assert message["kind"] == kind
        return message

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            while self.process.poll() is None:
                await asyncio.sleep(0.01)
        return int(self.process.returncode)

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection(*self._address))

    async def ask(self) -> int:
        client = await self.connect()
        try:
            return (await client.ask(GET))[0]
        finally:
            client.close()


@asynccontextmanager
async def supervised(
    upstream: str = "http://127.0.0.1:9", environ: Mapping[str, str] = NOTHING, *, start: bool = True
) -> AsyncIterator[Supervised]:
    ours, theirs = socket.socketpair()
    (listener,) = bind(Listen("127.0.0.1", 0))
    loads = Loads.shared(2)
    passed = (theirs.fileno(), listener.fileno(), loads)
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COVERAGE_")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "proxy.worker", str(theirs.fileno())],
        pass_fds=passed,
        env={**kept, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    channel = await Channel.over(ours)
    worker = Supervised(process, channel, listener, Loads(loads, 2))
    try:
        if start:
            settings = packed(settings_for(upstream, **{"POSTERN_LOG__ACCESS": "off", **environ}))
            more: dict[str, Any] = {"index": 0, "workers": 2, "loads": loads, "listen": [listener.fileno()]}
            channel.say("start", settings=settings, generation=5, **more)
        theirs.close()
        listener.close()
        yield worker
    finally:
        await channel.close()  # by which it ends: what it has covered is then known
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 5)
        process.kill()
        process.wait()
        theirs.close()
        listener.close()
        os.close(loads)


def test_it_serves_says_so_and_tells_its_numbers() -> None:
    async def work() -> None:
        environ = {"POSTERN_METRICS__LISTEN": "127.0.0.1:9464"}
        async with serving(Upstream()) as upstream, supervised(upstream.url, environ) as worker:
            await worker.hear("ready")
            assert await worker.ask() == 200
            worker.channel.say("numbers")
            numbers = (await worker.hear("numbers"))["numbers"]
            assert numbers["postern_requests_total"] == [["app", "GET", "2xx", "everyone", 1]]
            assert numbers["postern_settings_generation"] == [[5]]
            worker.loads.publish(1, 100)
            assert not worker.loads.fair(1), "it has published how many connections it has"

    run(work())


def test_other_settings_are_taken_or_what_prevents_it_is_said() -> None:
    async def work() -> None:
        async with serving(Upstream()) as upstream, supervised() as worker:
            await worker.hear("ready")
            assert await worker.ask() == 502
            bad = {"POSTERN_TLS__CERT": "/nowhere/a", "POSTERN_TLS__KEY": "/nowhere/b"}
            worker.channel.say("reload", settings=packed(settings_for(upstream.url, **bad)), generation=6)
            answer = await worker.hear("reloaded")
            assert answer["generation"] == 6
            assert "/nowhere/a" in answer["problems"][0]
            assert await worker.ask() == 502
            worker.channel.say("reload", settings=packed(settings_for(upstream.url)), generation=7)
            assert await worker.hear("reloaded") == {"kind": "reloaded", "generation": 7, "problems": []}
            assert await worker.ask() == 200

    run(work())


def test_it_drains_when_told_to_and_tells_its_numbers_once_more() -> None:
    async def work() -> None:
        async with supervised() as worker:
            await worker.hear("ready")
            worker.channel.say("stop")
            await worker.hear("draining")
            worker.channel.say("stop")
            assert "postern_workers" in (await worker.hear("numbers"))["numbers"]
            assert await worker.channel.hear() is None
            assert await worker.ended() == 0
            worker.loads.publish(1, 100)
            assert worker.loads.fair(1), "it has said that it takes no more"

    run(work())


@pytest.mark.parametrize("how", ["told", "signal"])
def test_it_waits_for_what_is_under_way_unless_it_is_to_end_at_once(how: str) -> None:
    async def work() -> None:
        upstream = Upstream()
        asked = asyncio.Event()

        async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            await upstream.head(reader)
            asked.set()
            await reader.read()

        upstream.script = never
        async with serving(upstream), supervised(upstream.url) as worker:
            await worker.hear("ready")
            client = await worker.connect()
            client.send(GET)
            await asked.wait()
            if how == "told":
                worker.channel.say("stop")
            else:
                worker.process.send_signal(signal.SIGTERM)
            await worker.hear("draining")
            # A service manager that signals the whole group, and a supervisor that then says the same: no second wish.
            worker.process.send_signal(signal.SIGTERM)
            worker.channel.say("numbers")
            await worker.hear("numbers")
            assert worker.process.poll() is None
            worker.channel.say("stop_at_once")
            assert await worker.ended() == 0
            client.abort()

    run(work())


def test_what_is_meant_for_the_supervisor_leaves_it_cold() -> None:
    async def work() -> None:
        async with supervised() as worker:
            await worker.hear("ready")
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                worker.process.send_signal(number)
            worker.channel.say("nonsense")
            worker.channel.say("numbers")
            await worker.hear("numbers")
            assert await worker.ask() == 502

    run(work())


def test_without_its_supervisor_it_drains_and_ends() -> None:
    async def work() -> None:
        async with supervised() as worker:
            await worker.hear("ready")
            await worker.channel.close()
            assert await worker.ended() == 0

    run(work())


def test_a_supervisor_that_is_gone_before_the_first_order() -> None:
    async def work() -> None:
        async with supervised(start=False) as worker:
            await worker.channel.close()
            assert await worker.ended() == 0

    run(work())


def test_what_cannot_be_served_ends_it_with_1() -> None:
    async def work() -> None:
        bad = {"POSTERN_TLS__CERT": "/nowhere/a", "POSTERN_TLS__KEY": "/nowhere/b"}
        async with supervised(environ=bad) as worker:
            assert await worker.channel.hear() is None
            assert await worker.ended() == 1

    run(work())


def test_it_opens_its_log_anew(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "access.log"
        async with supervised(environ={"POSTERN_LOG__ACCESS": str(path)}) as worker:
            await worker.hear("ready")
            path.rename(tmp_path / "moved")
            worker.channel.say("reopen_logs")
            worker.channel.say("numbers")
            await worker.hear("numbers")
            assert path.exists()

    run(work())
