"""Several workers on one port: connections shared out, workers replaced, told, asked and ended; and nothing lost by any of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.errors import CannotServe
from proxy.listening import bind
from proxy.settings import Listen, Settings
from proxy.supervisor import Supervisor, pause_after
from tests.e2e.processes import free_port
from tests.life_world import GET, Life, Load, life, metrics, peers
from tests.redis_server import RedisServer
from tests.relay_world import Upstream, run, settings_for


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with RedisServer() as server:
        yield server.url


@contextlib.asynccontextmanager
async def two(folder: Path, redis: str, **environ: str) -> AsyncIterator[tuple[Life, int]]:
    """A gateway with two workers, and the port of its metrics."""
    port = free_port()
    settings = {"REDIS_URL": redis, "POSTERN_METRICS__LISTEN": f"127.0.0.1:{port}", **environ}
    async with life(folder, settings, "--workers", "2") as running:
        await running.until(lambda: len(running.workers()) == 2, "two workers")
        yield running, port


async def number(port: int, *series: str) -> float:
    return (await metrics(port)).get(series, 0.0)


async def until_number(running: Life, port: int, value: float, *series: str) -> None:
    found = float("nan")
    for _ in range(300):
        found = await number(port, *series)
        if found == value:
            return
        await asyncio.sleep(0.05)
    raise AssertionError((series, value, found, running.said))


def answered(*route: str) -> tuple[str, ...]:
    return ("postern_requests_total", "GET", "everyone", *(route or ("app",)), "2xx")


class TestWork:
    def test_connections_are_shared_out_and_numbers_added_up(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                for _ in range(40):
                    assert (await (await running.connect()).ask(GET))[0] == 200
                assert await number(port, *answered()) == 40
                assert await number(port, "postern_connections") == 40
                assert await number(port, "postern_workers") == 2
                first, second = (len(peers(pid, running.port)) for pid in running.workers())
                assert first + second == 40
                assert min(first, second) >= 8, (first, second)

        run(work())

    def test_sessions_in_memory_are_refused(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path, {}, "--workers", "2", wait=False) as running:
                assert await running.ended() == 2
                assert running.said.startswith("POSTERN_WORKERS: is more than one, and sessions in memory")

        run(work())

    def test_a_worker_that_cannot_start_is_the_end(self, redis: str) -> None:
        """What the supervisor itself does not look at: here a log that nobody can write to."""

        async def work() -> None:
            settings = settings_for(
                "http://127.0.0.1:9", POSTERN_WORKERS="2", REDIS_URL=redis, POSTERN_LOG__ACCESS="/proc/x"
            )
            supervisor = Supervisor(settings, bind(Listen("127.0.0.1", 0)))
            with pytest.raises(CannotServe, match="could not start"):
                await supervisor.run(lambda: pytest.fail("nobody is ready"))

        run(work())


class TestEnds:
    def test_a_worker_that_is_told_to_stop_under_load_loses_nothing(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                load = Load(running, 16)
                async with load:
                    await load.more(300)
                    first, second = running.workers()
                    os.kill(first, signal.SIGTERM)
                    await running.until(lambda: first not in running.workers(), "the first one's end")
                    await load.more(300)
                    await running.until(lambda: len(running.workers()) == 2, "another one in its place")
                    await until_number(running, port, 2, "postern_workers")
                    os.kill(second, signal.SIGTERM)
                    await running.until(lambda: second not in running.workers(), "the second one's end")
                    await load.more(300)
                assert load.lost == []
                assert load.refused == 0
                assert await number(port, *answered()) == load.answered
                assert await number(port, "postern_worker_restarts_total") == 2
                assert running.process.poll() is None

        run(work())

    def test_all_of_it_under_load_loses_nothing_that_was_sent(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, _):
                workers = running.workers()
                load = Load(running, 16)
                async with load:
                    await load.more(300)
                    running.signal(signal.SIGTERM)
                    assert await running.ended() == 0
                assert load.lost == []
                assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
                assert "Traceback" not in running.said
                assert running.events()[-1] == "stopped"

        run(work())

    def test_a_manager_that_signals_every_process_does_not_hurry_any(self, tmp_path: Path, redis: str) -> None:
        """systemd's KillMode=control-group: the workers hear of it from both sides, which is one wish and not two."""

        async def work() -> None:
            async with two(tmp_path, redis) as (running, _):
                asked, go_on = asyncio.Event(), asyncio.Event()

                async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await running.upstream.head(reader)
                    asked.set()
                    await go_on.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

                running.upstream.script = slow
                client = await running.connect()
                client.send(GET)
                await asked.wait()
                for pid in (*running.workers(), running.process.pid):
                    os.kill(pid, signal.SIGTERM)
                await running.until_said("stopping")
                go_on.set()
                assert (await client.response())[::2] == (200, b"hello")
                client.close()
                assert await running.ended() == 0
                assert not any("takes its place" in event for event in running.events())

        run(work())

    def test_a_second_signal_does_not_wait(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis, POSTERN_DRAIN__DELAY="60s") as (running, _):
                workers = running.workers()
                running.signal(signal.SIGINT)
                await running.until_said("stopping")
                assert running.process.poll() is None
                running.signal(signal.SIGINT)
                assert await running.ended() == 0
                assert not any(Path(f"/proc/{pid}").exists() for pid in workers)

        run(work())

    def test_a_supervisor_that_is_killed_takes_its_workers_along(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, _):
                workers = running.workers()
                running.signal(signal.SIGKILL)
                await running.ended()
                await running.until(lambda: not any(alive(pid) for pid in workers), "the workers' end")

        run(work())


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


class TestCrashes:
    def test_a_worker_that_crashes_is_replaced_and_its_numbers_are_kept(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                for _ in range(10):
                    assert (await running.ask())[0] == 200
                assert await number(port, *answered()) == 10
                first, second = running.workers()
                os.kill(first, signal.SIGKILL)
                await running.until_said(f"worker {first} ended unexpectedly: killed by signal 9")
                assert (await running.ask())[0] == 200, "the other one is there"
                await running.until(lambda: len(running.workers()) == 2, "another one in its place")
                assert second in running.workers()
                await until_number(running, port, 2, "postern_workers")
                assert await number(port, *answered()) == 11
                assert await number(port, "postern_worker_restarts_total") == 1

        run(work())

    def test_pauses_grow_while_workers_die_young(self) -> None:
        lives = (1, 1, 1, 1, 1, 1, 1, 1, 31, 5)
        pauses = list(itertools.accumulate(lives, pause_after, initial=0.0))
        assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 0, 0.5]

    def test_again_and_again_it_is_replaced(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                for crash in (1, 2, 3):
                    await until_number(running, port, 2, "postern_workers")
                    os.kill(running.workers()[0], signal.SIGKILL)
                    await running.until_said("ended unexpectedly", crash)
                    assert (await running.ask())[0] == 200
                await running.until(lambda: len(running.workers()) == 2, "another one in its place")

        run(work())


class TestStuck:
    """A worker that neither answers nor ends holds up nobody else."""

    @contextlib.asynccontextmanager
    async def one_stuck(self, redis: str) -> AsyncIterator[tuple[Supervisor, Settings, int]]:
        settings = settings_for(
            "http://127.0.0.1:9",
            POSTERN_WORKERS="2",
            REDIS_URL=redis,
            POSTERN_LOG__ACCESS="off",
            POSTERN_LOG__LEVEL="error",
            POSTERN_METRICS__LISTEN="127.0.0.1:9464",
            POSTERN_DRAIN__TIMEOUT="100ms",
        )
        ready = asyncio.Event()
        supervisor = Supervisor(settings, bind(Listen("127.0.0.1", 0)))
        running = asyncio.create_task(supervisor.run(ready.set))
        stuck = 0
        try:
            await asyncio.wait_for(ready.wait(), 30)
            stuck = next(iter(supervisor._children)).process.pid
            os.kill(stuck, signal.SIGSTOP)
            yield supervisor, settings, stuck
        finally:
            supervisor.stop()
            await asyncio.wait_for(running, 30)
        assert not Path(f"/proc/{stuck}").exists()

    @pytest.fixture(autouse=True)
    def _little_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("_NUMBERS_WITHIN", "_RELOAD_WITHIN", "_LETTING_GO", "_AT_ONCE"):
            monkeypatch.setattr(f"proxy.supervisor.{name}", 0.5)

    def test_it_is_killed_when_its_time_is_up(self, redis: str, caplog: pytest.LogCaptureFixture) -> None:
        async def work() -> int:
            async with self.one_stuck(redis) as (_, _, stuck):
                return stuck

        stuck = run(work())
        assert f"worker {stuck} does not end, and is killed" in caplog.text

    def test_it_is_killed_sooner_when_the_end_is_to_come_at_once(
        self, redis: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("proxy.supervisor._LETTING_GO", 600.0)

        async def work() -> None:
            async with self.one_stuck(redis) as (supervisor, _, _):
                supervisor.stop_at_once()

        run(work())

    def test_its_last_numbers_count(self, redis: str) -> None:
        async def work() -> None:
            async with self.one_stuck(redis) as (supervisor, _, stuck):
                assert (await supervisor.numbers())["postern_workers"] == [[1]], "it has never told any"
                os.kill(stuck, signal.SIGCONT)
                for _ in range(100):
                    if (await supervisor.numbers())["postern_workers"] == [[2]]:
                        break
                os.kill(stuck, signal.SIGSTOP)
                assert (await supervisor.numbers())["postern_workers"] == [[2]]

        run(work())

    def test_settings_are_not_waited_for_without_end(self, redis: str) -> None:
        async def work() -> None:
            async with self.one_stuck(redis) as (supervisor, settings, stuck):
                assert await supervisor.reload(settings, 2) == [f"worker {stuck} did not answer"]
                os.kill(stuck, signal.SIGCONT)
                for _ in range(100):
                    numbers = await supervisor.numbers()
                    if numbers["postern_settings_generation"] == [[2]]:
                        break
                assert numbers["postern_settings_generation"] == [[2]]

        run(work())


class TestReloading:
    def test_every_worker_takes_the_settings_and_so_do_those_that_come_after(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                other = Upstream()
                other.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")
                await other.start()
                try:
                    load = Load(running, 8)
                    async with load:
                        await load.more(100)
                        await running.reload(running.route("new", other.url))
                        await running.until_said("settings reloaded: generation 2")
                        await load.more(100)
                    assert (load.lost, load.refused, load.connections) == ([], 0, 8)
                    for _ in range(10):
                        assert (await running.ask())[2] == b"other"
                    assert await number(port, "postern_settings_generation") == 2
                    assert await number(port, *answered("app")) == 0
                    os.kill(running.workers()[0], signal.SIGTERM)
                    await until_number(running, port, 1, "postern_worker_restarts_total")
                    await until_number(running, port, 2, "postern_workers")
                    assert await number(port, "postern_settings_generation") == 2
                    for _ in range(10):
                        assert (await running.ask())[2] == b"other"
                finally:
                    await other.stop()

        run(work())

    def test_what_cannot_be_used_is_taken_by_none(self, tmp_path: Path, redis: str) -> None:
        async def work() -> None:
            async with two(tmp_path, redis) as (running, port):
                await running.reload(running.route("new"), more='[tls]\ncert = "/nowhere/a"\nkey = "/nowhere/b"\n')
                await running.until_said("the settings in force stay as they are: generation 1")
                assert await number(port, "postern_settings_generation") == 1
                await running.reload(running.route("new"))
                await running.until_said("settings reloaded: generation 2")
                assert (await running.ask())[0] == 200

        run(work())


def test_the_log_is_written_by_all_in_whole_lines_and_opened_anew_by_all(tmp_path: Path, redis: str) -> None:
    async def work() -> None:
        path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
        async with two(tmp_path, redis, POSTERN_LOG__ACCESS=str(path)) as (running, _):
            load = Load(running, 16)
            async with load:
                await load.more(200)
                path.rename(moved)
                running.signal(signal.SIGUSR1)
                await running.until(path.exists, "a new file")
                await load.more(200)

            def ids() -> list[str]:
                return [json.loads(line)["id"] for file in (moved, path) for line in file.read_text().splitlines()]

            await running.until(lambda: len(ids()) >= load.answered, "every line")
            assert len(set(ids())) == len(ids()) == load.answered

    run(work())
