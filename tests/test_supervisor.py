"""Several real workers on one port: together at work, replaced when they end, of one mind after a reload, gone in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from proxy.errors import CannotServe
from proxy.settings import Settings
from proxy.supervisor import Supervisor
from tests.relay_world import run, settings_for

PATIENCE = 30.0  # seconds, on a busy machine
NO_CERTIFICATE = {"POSTERN_TLS__CERT": "/nowhere/cert.pem", "POSTERN_TLS__KEY": "/nowhere/key.pem"}


def settings(**environ: str) -> Settings:
    """For two workers. Nobody asks for a session here, so nobody is at the store's address."""
    plain = {"POSTERN_WORKERS": "2", "REDIS_URL": "redis://127.0.0.1:9/0", "POSTERN_LOG__ACCESS": "off"}
    return settings_for("http://127.0.0.1:9", **{**plain, **environ})


class Crew:
    """A supervisor at work, and the port that its workers share."""

    def __init__(self, supervisor: Supervisor, port: int) -> None:
        self.supervisor = supervisor
        self.port = port
        self.ready = 0

    def pids(self) -> set[int]:
        """The workers at work."""
        return {child.process.pid for child in self.supervisor._children if child.ready and not child.leaving.is_set()}

    async def count(self, series: str) -> int:
        """One number, summed over the workers."""
        return int(sum(row[-1] for row in (await self.supervisor.numbers()).get(series, [])))

    async def status(self, path: str) -> int:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
        return int(answer.split(b" ")[1])


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def crew(told: Settings) -> AsyncIterator[Crew]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    crew = Crew(Supervisor(told, [listening]), listening.getsockname()[1])

    def ready() -> None:
        crew.ready += 1

    task = asyncio.create_task(crew.supervisor.run(ready))
    try:
        await until(lambda: crew.ready or task.done())
        yield crew
    finally:
        listening_pids = {child.process.pid for child in crew.supervisor._children}
        crew.supervisor.stop_at_once()
        with suppress(CannotServe):
            await asyncio.wait_for(task, PATIENCE)
        listening.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in listening_pids), "a worker is left behind"


def test_all_of_them_serve_before_it_is_ready_and_none_is_left_in_the_end() -> None:
    async def work() -> None:
        async with crew(settings()) as it:
            assert it.ready == 1
            assert len(it.pids()) == 2
            assert [await it.status("/.postern/healthz") for _ in range(5)] == [200] * 5
            assert await it.count("postern_workers") == 2
            assert await it.count("postern_worker_restarts_total") == 0
            it.supervisor.stop()
            it.supervisor.stop()
            await until(lambda: not it.supervisor._children)
            with pytest.raises(ConnectionError):
                await it.status("/.postern/healthz")

    run(work())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced_while_the_others_serve(number: signal.Signals) -> None:
    async def work() -> None:
        async with crew(settings()) as it:
            first, second = it.pids()
            os.kill(first, number)
            await until(lambda: first not in it.pids())
            assert await it.status("/.postern/healthz") == 200
            await until(lambda: len(it.pids()) == 2)
            assert second in it.pids()
            assert it.ready == 1, "said once"
            assert await it.count("postern_worker_restarts_total") == 1

    run(work())


def test_other_settings_are_every_workers_and_every_later_ones() -> None:
    async def work() -> None:
        async with crew(settings()) as it:
            assert await it.supervisor.reload(settings(POSTERN_PREFIX="/.gate"), 2) == []
            assert [await it.status("/.gate/healthz") for _ in range(5)] == [200] * 5
            first, _ = it.pids()
            os.kill(first, signal.SIGKILL)
            await until(lambda: first not in it.pids() and len(it.pids()) == 2)
            assert [await it.status("/.gate/healthz") for _ in range(5)] == [200] * 5
            (problem,) = await it.supervisor.reload(settings(**NO_CERTIFICATE), 3)
            assert "/nowhere/cert.pem" in problem
            assert await it.status("/.gate/healthz") == 200
            it.supervisor.reopen_logs()
            assert await it.status("/.gate/healthz") == 200

    run(work())


def test_what_no_worker_can_serve_is_said_and_not_tried_for_ever() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            supervisor = Supervisor(settings(**NO_CERTIFICATE), [listening])
            with pytest.raises(CannotServe, match="could not start"):
                await asyncio.wait_for(supervisor.run(lambda: None), PATIENCE)
            assert supervisor._children == set()

    run(work())


def test_a_worker_that_does_not_answer_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with crew(settings()) as it:
            stuck, _ = it.pids()
            deadline = time.monotonic() + PATIENCE
            while await it.count("postern_workers") < 2:
                assert time.monotonic() < deadline, "they never tell their numbers"
            os.kill(stuck, signal.SIGSTOP)
            try:
                assert await it.count("postern_workers") == 2, "of one the last numbers"
                (problem,) = await it.supervisor.reload(settings(POSTERN_PREFIX="/.gate"), 2)
                assert problem == f"worker {stuck} did not answer"
            finally:
                os.kill(stuck, signal.SIGCONT)

    monkeypatch.setattr("proxy.supervisor._RELOAD_WITHIN", 3.0)
    run(work())


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with crew(settings()) as it:
            stuck, _ = it.pids()
            os.kill(stuck, signal.SIGSTOP)
            it.supervisor.stop_at_once()
            await until(lambda: not it.supervisor._children)
            assert not Path(f"/proc/{stuck}").exists()

    monkeypatch.setattr("proxy.supervisor._AT_ONCE", 0.2)
    run(work())
