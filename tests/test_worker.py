"""A supervised worker, as the process that it is: what it says, what it does when told, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from proxy.control import Channel, Message, packed
from proxy.listening import Loads
from proxy.settings import Settings
from tests.relay_world import run, settings_for

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 20.0  # seconds, on a busy machine


class Worker:
    """The process, the talk with it, and the port that it serves."""

    def __init__(self, process: Process, channel: Channel, port: int) -> None:
        self.process = process
        self.channel = channel
        self.port = port

    async def hears(self, kind: str) -> Message:
        """The next message of that kind."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self.channel.hear()
                assert message is not None, f"it ended before it said {kind}"
                if message["kind"] == kind:
                    return message

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def status(self, path: str) -> int:
        """What it answers to a GET."""
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
        return int(answer.split(b" ")[1])


@asynccontextmanager
async def worker(settings: Settings | None) -> AsyncIterator[Worker]:
    """A worker that has been told to serve by `settings`; None: it has been told nothing yet."""
    ours, theirs = socket.socketpair()
    loads = Loads.shared(1)
    with socket.create_server(("127.0.0.1", 0)) as listening, theirs:
        fds = (theirs.fileno(), listening.fileno(), loads)
        command = (sys.executable, "-m", "proxy.worker", str(theirs.fileno()))
        process = await asyncio.create_subprocess_exec(*command, pass_fds=fds, cwd=ROOT)
        theirs.close()
        channel = await Channel.over(ours)
        try:
            if settings is not None:
                order = {"settings": packed(settings), "generation": 1, "index": 0, "workers": 1, "loads": loads}
                channel.say("start", **order, listen=[listening.fileno()])
            yield Worker(process, channel, listening.getsockname()[1])
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await channel.close()
            os.close(loads)


def settings(**environ: str) -> Settings:
    return settings_for("http://127.0.0.1:9", POSTERN_LOG__ACCESS="off", **environ)


def test_it_serves_tells_its_numbers_and_drains_when_told_to() -> None:
    async def work() -> None:
        async with worker(settings()) as it:
            await it.hears("ready")
            assert await it.status("/.postern/healthz") == 200
            it.channel.say("numbers")
            numbers = (await it.hears("numbers"))["numbers"]
            assert numbers["postern_workers"] == [[1]]
            assert numbers["postern_settings_generation"] == [[1]]
            it.channel.say("stop")
            await it.hears("draining")
            assert "postern_workers" in (await it.hears("numbers"))["numbers"], "its last ones"
            assert await it.ended() == 0

    run(work())


def test_other_settings_hold_from_then_on_and_wrong_ones_never() -> None:
    async def work() -> None:
        async with worker(settings()) as it:
            await it.hears("ready")
            it.channel.say("reload", settings=packed(settings(POSTERN_PREFIX="/.gate")), generation=2)
            assert await it.hears("reloaded") == {"kind": "reloaded", "generation": 2, "problems": []}
            assert await it.status("/.gate/healthz") == 200
            nowhere = {"POSTERN_TLS__CERT": "/nowhere/cert.pem", "POSTERN_TLS__KEY": "/nowhere/key.pem"}
            it.channel.say("reload", settings=packed(settings(**nowhere)), generation=3)
            refused = await it.hears("reloaded")
            assert refused["generation"] == 3
            assert len(refused["problems"]) == 1
            assert await it.status("/.gate/healthz") == 200
            it.channel.say("numbers")
            assert (await it.hears("numbers"))["numbers"]["postern_settings_generation"] == [[2]]

    run(work())


def test_without_its_supervisor_it_drains() -> None:
    async def work() -> None:
        async with worker(settings()) as it:
            await it.hears("ready")
            await it.channel.close()
            assert await it.ended() == 0

    run(work())


def test_sigterm_is_meant_for_it_and_the_signals_of_a_terminal_for_the_supervisor() -> None:
    async def work() -> None:
        async with worker(settings()) as it:
            await it.hears("ready")
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                it.process.send_signal(number)
            assert await it.status("/.postern/healthz") == 200
            it.process.terminate()
            await it.hears("draining")
            assert await it.ended() == 0

    run(work())


def test_told_not_to_wait_it_leaves_what_is_under_way() -> None:
    async def work() -> None:
        async with worker(settings(POSTERN_DRAIN__DELAY="10m")) as it:
            await it.hears("ready")
            it.channel.say("stop")
            await it.hears("draining")
            it.channel.say("stop_at_once")
            assert await it.ended() == 0

    run(work())


def test_what_cannot_be_served_ends_it() -> None:
    async def work() -> None:
        nowhere = {"POSTERN_TLS__CERT": "/nowhere/cert.pem", "POSTERN_TLS__KEY": "/nowhere/key.pem"}
        async with worker(settings(**nowhere)) as it:
            assert await it.ended() == 1

    run(work())


def test_told_nothing_it_goes_again() -> None:
    async def work() -> None:
        async with worker(None) as it:
            await it.channel.close()
            assert await it.ended() == 0

    run(work())
