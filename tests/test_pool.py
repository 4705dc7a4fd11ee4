"""Idle connections kept and given up, places, the choice among servers, and what is remembered of failures."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import time
from pathlib import Path

import pytest

from proxy import pool as pool_module
from proxy.errors import UpstreamFailed, UpstreamProblem
from proxy.pool import Pool, Upstreams, by_load
from proxy.upstream_settings import HealthSettings, Server
from tests.upstream_world import HELLO, REQUEST, answering, ask, once, peer, pool_of, run, send, silent, until


def nobody() -> str:
    """The URL of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


async def refused(pool: Pool) -> UpstreamFailed:
    with pytest.raises(UpstreamFailed) as caught:
        await pool.connect()
    assert caught.value.retry_safe
    return caught.value


class TestIdleConnections:
    def test_are_used_again_the_latest_first(self) -> None:
        async def reuse() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                both = [await pool.connect(), await pool.connect()]
                for connection in both:
                    await send(connection).wait()
                assert pool.active == 0
                assert pool.take() is both[1]
                assert pool.take() is both[0]
                assert pool.take() is None
                assert pool.active == 2
                pool.close()

        run(reuse())

    def test_that_the_server_closes_are_forgotten(self) -> None:
        async def closed() -> None:
            async with peer(once(HELLO)) as server:
                pool = pool_of(server.url)
                await ask(pool)
                await until(lambda: not pool._open)
                assert pool.take() is None
                assert pool.active == 0

        run(closed())

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\r\n",
        ],
    )
    def test_that_must_not_be_used_again_are_not(self, answer: bytes) -> None:
        async def never_again() -> None:
            async with peer(answering(answer)) as server:
                pool = pool_of(server.url)
                assert (await ask(pool)).body == b"hello"
                assert pool.take() is None
                await until(lambda: not server.open and not pool.active)

        run(never_again())

    def test_that_have_served_their_last_request_are_closed_and_hold_no_place(self) -> None:
        ends: list[bytes] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
            ends.append(await reader.read())

        async def end() -> None:
            async with peer(script) as server:
                pool = pool_of(server.url, max_connections=1)
                recorder = send(await pool.connect())
                actives: list[int] = []
                recorder.on_end = lambda: actives.append(pool.active)
                await recorder.wait()
                assert actives == [0], "before the connection is gone"
                await until(lambda: ends == [b""])

        run(end())

    def test_of_http_1_0_are_kept_when_the_server_says_so(self) -> None:
        async def kept() -> None:
            answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
            async with peer(answering(answer)) as server:
                pool = pool_of(server.url)
                for _ in range(3):
                    await ask(pool)
                assert server.connections == 1
                pool.close()

        run(kept())

    def test_on_which_bytes_come_unasked_are_dropped(self) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
            await silent(reader, writer)

        go_on = asyncio.Event()

        async def unasked() -> None:
            async with peer(script) as server:
                pool = pool_of(server.url)
                await ask(pool)
                go_on.set()
                await until(lambda: not pool._open)
                assert pool.take() is None

        run(unasked())

    def test_are_bounded_in_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool_module, "IDLE_KEPT", 3)

        async def many() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                connections = [await pool.connect() for _ in range(6)]
                for connection in connections:
                    await send(connection).wait()
                await until(lambda: server.open == 3)
                assert [pool.take() for _ in range(4)] == [*connections[:2:-1], None]
                pool.close()

        run(many())

    def test_are_no_more_than_were_used_at_once(self) -> None:
        """A request with a body opens a connection of its own, and leaves it here: there would be more and more of them."""

        async def posts() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                for connection in [await pool.connect() for _ in range(4)]:
                    await send(connection).wait()
                for _ in range(10):
                    await send(await pool.connect()).wait()
                    assert len(pool._idle) == 4
                for expected in (2, 1, 1):
                    pool.prune(time.monotonic())
                    for _ in range(4):
                        await send(await pool.connect()).wait()
                    assert len(pool._idle) == expected
                await until(lambda: server.open == 1)
                pool.close()

        run(posts())

    def test_that_are_too_old_are_not_taken_and_are_pruned(self) -> None:
        async def old() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                for connection in [await pool.connect() for _ in range(3)]:
                    await send(connection).wait()
                newest = pool._idle[-1]
                for connection in pool._idle:
                    connection.fresh_until = time.monotonic() - 1
                assert pool.take() is None
                assert not newest.alive
                assert pool.active == 0
                await ask(pool)
                pool.prune(time.monotonic())
                assert len(pool._idle) == 1
                pool.prune(time.monotonic() + pool_module.IDLE_SECONDS)
                assert not pool._idle
                await until(lambda: not server.open)

        run(old())

    @pytest.mark.parametrize(
        ("hint", "seconds"),
        [
            (b"timeout=5", 4.0),
            (b"Timeout = 5 , max=100", 4.0),
            (b"max=100, timeout=1", 0.5),
            (b"timeout=0", 0.5),
            (b"timeout=3600", pool_module.IDLE_SECONDS),
            (b"max=7", pool_module.IDLE_SECONDS),
            (b"timeout=soon", pool_module.IDLE_SECONDS),
        ],
    )
    def test_are_given_up_before_the_server_closes_them(self, hint: bytes, seconds: float) -> None:
        async def hinted() -> None:
            answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: " + hint + b"\r\nContent-Length: 5\r\n\r\nhello"
            async with peer(answering(answer)) as server:
                pool = pool_of(server.url)
                await ask(pool)
                before = time.monotonic()
                await ask(pool)
                (connection,) = pool._idle
                assert seconds <= connection.fresh_until - before <= seconds + time.monotonic() - before
                pool.close()

        run(hinted())

    def test_do_not_live_for_ever_however_busy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def busy() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                for _ in range(3):
                    await ask(pool)
                assert server.connections == 1
                monkeypatch.setattr(pool_module, "LONGEST_LIFE", 0.0)
                await ask(pool)
                await ask(pool)
                assert server.connections == 2
                await until(lambda: not server.open and not pool.active)

        run(busy())


class TestConnecting:
    def test_to_a_unix_socket(self, tmp_path: Path) -> None:
        async def over_unix() -> None:
            path = str(tmp_path / "app.sock")
            pool = pool_of(f"unix:{path}")
            failure = await refused(pool)
            assert (failure.problem, str(failure)) == (UpstreamProblem.REFUSED, "No such file or directory")

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(asyncio.IncompleteReadError):
                    await answering()(reader, writer)
                writer.close()

            async with await asyncio.start_unix_server(serve, path):
                for _ in range(2):
                    assert (await ask(pool)).body == b"hello"
                assert pool.authority == b"localhost"
                pool.close()
                await until(lambda: not pool._open)

        run(over_unix())

    def test_to_nobody(self) -> None:
        failure = run(refused(pool_of(nobody())))
        assert (failure.problem, str(failure)) == (UpstreamProblem.REFUSED, "Connection refused")

    def test_to_a_name_that_is_none(self) -> None:
        failure = run(refused(pool_of("http://" + "a" * 64 + ".example")))  # no label is that long
        assert (failure.problem, str(failure)) == (UpstreamProblem.REFUSED, "its name cannot be resolved")

    def test_to_a_server_whose_backlog_is_full(self) -> None:
        async def full(port: int) -> UpstreamFailed:
            return await refused(pool_of(f"http://127.0.0.1:{port}", timeout=0.1))

        with socket.socket() as server, contextlib.ExitStack() as held:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(3):
                client = held.enter_context(socket.socket())
                client.setblocking(False)
                assert client.connect_ex(server.getsockname()) == errno.EINPROGRESS
            failure = run(full(server.getsockname()[1]))
        assert (failure.problem, str(failure)) == (UpstreamProblem.CONNECT_TIMEOUT, "no connection within 0.1 s")

    def test_without_a_descriptor_left_is_not_the_servers_fault(self, caplog: pytest.LogCaptureFixture) -> None:
        async def exhausted() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                with socket.socket() as highest:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
                    try:
                        failure = await refused(pool)
                    finally:
                        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert failure.ours
                assert str(failure) == "Too many open files"
                assert not pool.standing.failures
                assert (await ask(pool)).body == b"hello"
                pool.close()

        run(exhausted())
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    def test_that_is_given_up_leaves_nothing_behind(self) -> None:
        async def give_up() -> None:
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                server.listen(0)
                pool = pool_of(f"http://127.0.0.1:{server.getsockname()[1]}", max_connections=1)
                (await pool.connect()).abort()
                await until(lambda: not pool.active)
                attempt = asyncio.ensure_future(pool.connect())
                await until(lambda: pool.active == 1)
                attempt.cancel()
                await asyncio.wait([attempt])
                assert attempt.cancelled()
                assert not pool.active

        run(give_up())

    def test_to_a_server_that_hangs_up_at_once(self) -> None:
        async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        async def connect() -> None:
            async with peer(hang_up) as server:
                pool = pool_of(server.url)
                # The kernel accepts; whether we learn of the end before or after the request is a matter of luck.
                try:
                    recorder = await send(await pool.connect()).wait()
                    failure = recorder.error
                except UpstreamFailed as error:
                    failure = error
                assert failure is not None
                assert failure.problem is UpstreamProblem.RESET
                await until(lambda: not pool.active)

        run(connect())

    def test_to_a_server_that_speaks_first(self) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example.com ESMTP\r\n")
            await silent(reader, writer)

        async def connect() -> None:
            async with peer(greet) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                await until(lambda: not connection.alive)
                await until(lambda: not pool.active)

        run(connect())


class TestPlaces:
    def test_are_waited_for_in_order(self) -> None:
        async def queue() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url, max_connections=2)
                first, second = await pool.connect(), await pool.connect()
                waiting = [asyncio.ensure_future(pool.connect(reuse=True)) for _ in range(3)]
                await until(lambda: pool.active == 5)
                await send(second).wait()
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert [task.done() for task in waiting] == [True, False, False]
                assert waiting[0].result() is second
                assert pool.take() is None, "nobody passes the queue"
                first.abort()
                await asyncio.wait(waiting[1:], return_when=asyncio.FIRST_COMPLETED)
                assert [task.done() for task in waiting] == [True, True, False]
                await send(second).wait()
                assert await waiting[2] is second
                assert server.connections == 3
                waiting[1].result().abort()
                second.abort()
                await until(lambda: not pool.active)

        run(queue())

    def test_a_request_that_needs_a_fresh_connection_gets_it_within_the_limit(self) -> None:
        async def fresh() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url, max_connections=1)
                first = await pool.connect()
                late = asyncio.ensure_future(pool.connect())
                await send(first).wait()
                second = await late
                assert second is not first
                assert not first.alive
                await until(lambda: server.open == 1)
                pool.close()
                await until(lambda: not pool.active)

        run(fresh())

    def test_idle_connections_hold_none(self) -> None:
        async def idle() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url, max_connections=1)
                for _ in range(3):
                    await ask(pool)
                assert server.connections == 1
                pool.close()

        run(idle())

    def test_waiting_has_an_end(self) -> None:
        async def wait() -> None:
            async with peer(silent) as server:
                pool = pool_of(server.url, timeout=0.1, max_connections=1)
                held = await pool.connect()
                failure = await refused(pool)
                assert failure.problem is UpstreamProblem.BUSY
                assert failure.problem.status == 503
                assert str(failure) == "no place among its 1 connections within 0.1 s"
                assert pool.active == 1
                assert not pool.standing.failures, "a full server is not a broken one"
                held.abort()
                (await pool.connect()).abort()
                await until(lambda: not pool.active)

        run(wait())

    def test_are_not_lost_with_those_who_leave_the_queue(self) -> None:
        async def leave() -> None:
            async with peer(silent) as server:
                pool = pool_of(server.url, max_connections=1)
                held = await pool.connect()
                gone, patient = asyncio.ensure_future(pool.connect()), asyncio.ensure_future(pool.connect())
                await until(lambda: pool.active == 3)
                gone.cancel()
                await asyncio.wait([gone])
                assert pool.active == 2
                held.abort()
                connection = await patient
                late = asyncio.ensure_future(pool.connect())
                last = asyncio.ensure_future(pool.connect())
                await until(lambda: pool.active == 3)
                pool.forget(connection)  # its place is given away...
                late.cancel()  # ...and the new owner leaves in the same moment
                await asyncio.wait([late])
                (await last).abort()
                connection.abort()
                await until(lambda: not pool.active)

        run(leave())

    def test_come_back_when_a_connection_cannot_be_opened(self) -> None:
        async def fail() -> None:
            pool = pool_of(nobody(), max_connections=1)
            for _ in range(3):
                assert (await refused(pool)).problem is UpstreamProblem.REFUSED
            assert not pool.active

        run(fail())


class TestChoice:
    def test_one_server_needs_none(self) -> None:
        pools = (pool_of("http://a"),)
        assert by_load(pools) is pools

    def test_the_least_busy_comes_first(self) -> None:
        async def choose() -> None:
            async with peer(silent) as one, peer(silent) as two:
                pools = [pool_of(one.url), pool_of(two.url)]
                taken = [await by_load(pools)[0].connect() for _ in range(10)]
                assert [pool.active for pool in pools] == [5, 5]
                for connection in taken[:4]:
                    connection.abort()
                await until(lambda: sum(pool.active for pool in pools) == 6)
                for _ in range(4):
                    await by_load(pools)[0].connect()
                assert [pool.active for pool in pools] == [5, 5]
                for pool in pools:
                    pool.close()
                await until(lambda: not any(pool.active for pool in pools))

        run(choose())

    def test_idle_servers_take_turns(self) -> None:
        pools = [pool_of(f"http://{name}") for name in "abc"]
        chosen = [by_load(pools)[0] for _ in range(9)]
        assert chosen == pools * 3

    def test_those_that_wait_and_those_that_connect_count_as_well(self) -> None:
        async def count() -> None:
            async with peer(silent) as one, peer(silent) as two:
                pools = [pool_of(one.url, max_connections=1), pool_of(two.url, max_connections=1)]
                tasks = []
                for _ in range(6):
                    tasks.append(asyncio.ensure_future(by_load(pools)[0].connect()))
                    await asyncio.sleep(0)
                assert [pool.active for pool in pools] == [3, 3]
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for pool in pools:
                    pool.close()
                await until(lambda: not any(pool.active for pool in pools))

        run(count())

    def test_a_server_that_failed_is_asked_last_and_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pools = [pool_of("http://a"), pool_of("http://b")]
        failing, well = pools
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        failing.failed(UpstreamFailed(UpstreamProblem.REFUSED, "Connection refused"))
        assert [by_load(pools)[0] for _ in range(5)] == [well] * 5
        assert by_load(pools) == [well, failing], "where the other one fails, it is asked all the same"
        now += 1.0
        assert [by_load(pools)[0] for _ in range(5)] == [failing, well, well, well, well], "one request tries it"

    def test_where_all_failed_the_first_to_be_back_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pools = [pool_of(f"http://{name}") for name in "abc"]
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        for pool in (pools[2], pools[0], pools[1]):
            pool.failed(UpstreamFailed(UpstreamProblem.REFUSED))
            now += 0.1
        assert list(by_load(pools)) == [pools[2], pools[0], pools[1]]

    def test_a_sick_server_is_asked_last(self) -> None:
        pools = [pool_of("http://a"), pool_of("http://b")]
        pools[0].standing.healthy = False
        assert [by_load(pools)[0] for _ in range(4)] == [pools[1]] * 4

    def test_a_request_is_not_tried_everywhere(self) -> None:
        pools = [pool_of(f"http://{number}") for number in range(10)]
        assert len(by_load(pools)) == pool_module.TRIES


class TestMemory:
    def test_every_answer_counts_as_one(self) -> None:
        async def recover() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                for _ in range(4):
                    pool.failed(UpstreamFailed(UpstreamProblem.RESET, "x"))
                assert pool.standing.aside(time.monotonic())
                await ask(pool)
                assert not pool.standing.aside(time.monotonic())
                pool.close()

        run(recover())

    def test_the_log_says_each_thing_once(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.INFO)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        pool = pool_of("http://app:8080")

        def lines() -> list[str]:
            found = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return found

        for _ in range(50):
            pool.failed(UpstreamFailed(UpstreamProblem.REFUSED, "Connection refused"))
        assert lines() == ["upstream http://app:8080: upstream_refused: Connection refused; set aside for 1 s"]
        pool.failed(UpstreamFailed(UpstreamProblem.TLS, "handshake failure"))
        assert lines() == ["upstream http://app:8080: upstream_tls: handshake failure"]
        now += 1.5
        pool.failed(UpstreamFailed(UpstreamProblem.TLS, "handshake failure"))
        assert lines() == ["upstream http://app:8080: upstream_tls: handshake failure; set aside for 2 s"]
        pool.failed(UpstreamFailed(UpstreamProblem.BUSY, "no place"))
        assert lines() == ["upstream http://app:8080: upstream_busy: no place"]
        for _ in range(50):
            pool.failed(UpstreamFailed(UpstreamProblem.BUSY, "no place"))
        assert lines() == []
        now += pool_module.REMINDER + 0.1
        pool.failed(UpstreamFailed(UpstreamProblem.BUSY, "no place"))
        assert lines() == ["upstream http://app:8080: upstream_busy: no place"]

    def test_the_log_says_when_it_is_over(self, caplog: pytest.LogCaptureFixture) -> None:
        async def recover() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                pool.failed(UpstreamFailed(UpstreamProblem.REFUSED, "Connection refused"))
                caplog.clear()
                caplog.set_level(logging.INFO)
                await ask(pool)
                await ask(pool)
                assert [record.getMessage() for record in caplog.records] == [f"upstream {server.url} answers again"]
                pool.close()

        run(recover())


class TestUpstreams:
    def test_routes_share_servers_that_they_use_alike(self) -> None:
        upstreams = Upstreams(5.0)
        health = HealthSettings.model_validate({"path": "/"})
        one, two = upstreams.pools([Server("http://a"), Server("http://b")])
        assert upstreams.pools([Server("http://b"), Server("http://a")]) == (two, one)
        assert upstreams.pools([Server("http://a", health=health)])[0] is not one
        assert upstreams.pools([Server("http://a", max_connections=1)])[0] is not one

    def test_idle_connections_are_pruned_everywhere(self) -> None:
        async def prune() -> None:
            async with peer(answering()) as server:
                upstreams = Upstreams(5.0)
                (pool,) = upstreams.pools([Server(server.url)])
                await ask(pool)
                upstreams.prune()
                assert len(pool._idle) == 1
                pool._idle[0].fresh_until = 0.0
                upstreams.prune()
                await until(lambda: not server.open)

        run(prune())

    def test_the_end_closes_everything(self) -> None:
        async def close() -> None:
            async with peer(silent) as server:
                upstreams = Upstreams(5.0)
                (pool,) = upstreams.pools([Server(server.url)])
                connection = await pool.connect()
                connection.write(REQUEST)
                upstreams.close()
                await until(lambda: not server.open and not pool.active)

        run(close())

    def test_new_settings_let_go_of_what_they_do_not_name(self) -> None:
        async def replace() -> None:
            async with peer(answering()) as server:
                upstreams = Upstreams(5.0)
                kept, dropped = Server(server.url), Server(server.url, max_connections=9)
                one, two = upstreams.pools([kept, dropped])
                await ask(one)
                await ask(two)
                under_way = two.take()
                assert under_way is not None
                upstreams.keep([kept], 1.0)
                assert upstreams.pools([kept]) == (one,)
                assert one.take() is not None
                assert one.connect_timeout == 1.0
                await send(under_way).wait()
                assert two.take() is None
                await until(lambda: server.open == 1)
                assert upstreams.pools([dropped])[0] is not two
                upstreams.close()

        run(replace())
