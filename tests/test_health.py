"""Servers that are asked whether they are well, and what comes of the answer."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from proxy import health as health_module
from proxy.health import HealthCheck
from proxy.pool import Pool, Upstreams, by_load
from proxy.upstream_settings import HealthSettings, Server
from tests.upstream_world import HELLO, Script, answering, once, peer, pool_of, run, silent, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
SICK = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


def settings(**values: Any) -> HealthSettings:
    return HealthSettings.model_validate({"path": "/healthz", "interval": 0.01, "timeout": 5} | values)


def checked(script: Script, **values: Any) -> str | None:
    """What one check of a server with `script` finds wrong."""

    async def check() -> str | None:
        async with peer(script) as server:
            pool = pool_of(server.url)
            found = await HealthCheck(pool, settings(**values)).check()
            assert not pool.active
            await until(lambda: not pool._open and not pool._idle)
            return found

    return run(check())


class TestOneCheck:
    @pytest.mark.parametrize("status", [200, 204, 301, 399])
    def test_finds_nothing_wrong(self, status: int) -> None:
        assert checked(answering(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)) is None

    @pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
    def test_finds_a_status(self, status: int) -> None:
        answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
        assert checked(answering(answer)) == f"it answers with status {status}"

    @pytest.mark.parametrize(
        ("expected", "status", "well"),
        [("204", 204, True), ("204", 200, False), ("200-299", 299, True), ("200-299", 300, False), (401, 401, True)],
    )
    def test_expects_what_was_said(self, expected: str | int, status: int, well: bool) -> None:
        answer = b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
        assert (checked(answering(answer), status=expected) is None) is well

    def test_waits_for_the_final_answer(self) -> None:
        assert checked(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + SICK)) == "it answers with status 503"

    def test_does_not_wait_for_the_body(self) -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nx")
            await silent(reader, writer)

        assert checked(endless) is None

    def test_takes_an_answer_that_is_whole_at_once(self) -> None:
        assert checked(once(HELLO)) is None

    def test_takes_no_answer_for_one(self) -> None:
        assert checked(silent, timeout=0.05) == "no answer within 0.05 s"

    @pytest.mark.parametrize(
        ("script", "wrong"),
        [
            (once(b"SSH-2.0-OpenSSH\r\n"), "upstream_garbage: the response does not begin like HTTP/1"),
            (once(b"HTTP/1.1 200"), "upstream_reset: it closed the connection before its answer was complete"),
        ],
    )
    def test_finds_a_broken_answer(self, script: Script, wrong: str) -> None:
        assert checked(script) == wrong

    def test_finds_nobody(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            pool = pool_of(f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert run(HealthCheck(pool, settings()).check()) == "upstream_refused: Connection refused"
        assert not pool.standing.failures, "requests and checks are counted apart"

    @pytest.mark.parametrize(("host", "expected"), [(None, None), ("app.example.com", b"app.example.com")])
    def test_asks_for_what_was_said(self, host: str | None, expected: bytes | None) -> None:
        heads: list[bytes] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(OK)

        async def check() -> bytes:
            async with peer(script) as server:
                pool = pool_of(server.url)
                assert await HealthCheck(pool, settings(path="/up?full=1", host=host)).check() is None
                return pool.authority

        authority = run(check())
        assert heads == [
            b"GET /up?full=1 HTTP/1.1\r\nHost: %b\r\nUser-Agent: Postern-Health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            % (expected or authority)
        ]

    def test_needs_no_place(self) -> None:
        async def check() -> None:
            async with peer(answering(OK)) as server:
                pool = pool_of(server.url, max_connections=1)
                held = await pool.connect()
                assert await HealthCheck(pool, settings()).check() is None
                assert pool.active == 1
                held.abort()
                await until(lambda: not pool.active)

        run(check())


class TestRegularChecks:
    def test_set_a_sick_server_aside_until_it_is_well(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)

        async def fall_ill() -> tuple[Pool, ...]:
            async with peer(answering(OK)) as server, peer(answering(OK)) as other:
                upstreams = Upstreams(5.0)
                pools = upstreams.pools([Server(one.url, health=settings()) for one in (server, other)])
                upstreams.start()
                await until(lambda: server.connections > 2)
                assert all(pool.standing.healthy for pool in pools)
                server.script = answering(SICK)
                await until(lambda: not pools[0].standing.healthy)
                assert [by_load(pools)[0] for _ in range(4)] == [pools[1]] * 4
                server.script = answering(OK)
                await until(lambda: pools[0].standing.healthy)
                upstreams.close()
                return pools

        pools = run(fall_ill())
        assert [record.getMessage() for record in caplog.records] == [
            f"upstream {pools[0].url} is not well: it answers with status 503; set aside until it is",
            f"upstream {pools[0].url} is well again",
        ]

    def test_one_failed_check_is_none(self) -> None:
        async def hiccup() -> None:
            pool = pool_of("http://app")
            check = HealthCheck(pool, settings())
            for _ in range(10):
                check._take_note("x")
                assert pool.standing.healthy
                check._take_note(None)
            for _ in range(health_module.FAILED_CHECKS):
                check._take_note("x")
            assert not pool.standing.healthy

        run(hiccup())

    def test_begin_and_end_with_the_worker(self) -> None:
        async def work() -> None:
            async with peer(answering(OK)) as server:
                upstreams = Upstreams(5.0)
                upstreams.pools([Server(server.url, health=settings())])
                before = asyncio.all_tasks()
                upstreams.start()
                upstreams.start()
                (check,) = asyncio.all_tasks() - before
                await until(lambda: server.connections > 0)
                upstreams.close()
                await until(check.done)

        run(work())

    def test_of_servers_that_come_with_new_settings(self) -> None:
        async def replace() -> None:
            async with peer(answering(OK)) as old, peer(answering(OK)) as new:
                upstreams = Upstreams(5.0)
                upstreams.pools([Server(old.url, health=settings())])
                upstreams.start()
                await until(lambda: old.connections > 0)
                wanted = [Server(new.url, health=settings()), Server(old.url)]
                upstreams.pools(wanted)
                await until(lambda: new.connections > 0)
                upstreams.keep(wanted, 5.0)
                # A check that was broken off may still stand in the server's queue. Whoever comes now stands behind it.
                reader, writer = await asyncio.open_connection("127.0.0.1", old.port)
                writer.write(b"GET / HTTP/1.1\r\nHost: old\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                writer.close()
                await until(lambda: not old.open)
                count = old.connections
                await until(lambda: new.connections > 5)
                assert old.connections == count
                upstreams.close()

        run(replace())

    def test_are_not_all_made_in_the_same_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither at the start nor later: the waits differ from one check to the next."""
        waits: list[float] = []
        sleep = asyncio.sleep

        async def noted(seconds: float) -> None:
            waits.append(seconds)
            await sleep(0)

        async def work() -> None:
            async with peer(answering(OK)) as server:
                upstreams = Upstreams(5.0)
                upstreams.pools([Server(server.url, health=settings(interval=10))])
                # In that module alone: whoever else sleeps meanwhile is not meant.
                monkeypatch.setattr(health_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": noted}))
                upstreams.start()
                while len(waits) < 12:
                    await sleep(0.001)
                upstreams.close()
                monkeypatch.undo()

        run(work())
        assert 0 <= waits[0] <= health_module.FIRST_WITHIN
        assert all(9 <= wait <= 11 for wait in waits[1:])
        assert len(set(waits)) > 10
