"""One client's connection in raw bytes: what it refuses, what it waits for and how long, and how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from proxy.connection import ClientConnection
from proxy.exchange import Exchange
from tests.relay_world import World, relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
HOST = b"Host: localhost:3000"
LATER = 10_000.0  # seconds; past every deadline


def get(path: bytes = b"/", *fields: bytes, version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" " + version, HOST, *fields, b"", b""])


async def hang(reader: Reader, _writer: Writer) -> None:
    """An app that reads and says nothing."""
    while await reader.read(65536):
        pass


def problem(body: bytes) -> dict[str, object]:
    found = json.loads(body)
    assert isinstance(found, dict)
    return found


class TestRefusals:
    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
            (b"GET / HTTP/1.1\nHost: a\n\n", 400),
            (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"e" * 600, 400),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 400),
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417),
            (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET /" + b"a" * 20_000, 414),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 70_000, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 201 + b"\r\n", 431),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
            (b"\r\n" * 5, 400),
        ],
    )
    def test_what_cannot_be_read_is_answered_and_closed(self, raw: bytes, status: int) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                client.send(raw + get(b"/smuggled"))
                got, head, body = await client.response()
                assert got == status
                assert problem(body)["status"] == status
                assert b"\r\nConnection: close\r\n" in head
                assert b"\r\nContent-Type: application/problem+json\r\n" in head
                assert b"\r\nCache-Control: no-store\r\n" in head
                assert (b"\r\nAllow: " in head) is (status == 405)
                assert await client.ends() == "closed"
                assert not any(b"smuggled" in head for head in world.upstream.heads)
                line = world.lines()[-1]
                assert (line["status"], line["outcome"]) == (status, "bad_request")
                assert line["client"] == "127.0.0.1"

        run(talk())

    def test_the_same_with_every_byte_in_a_packet_of_its_own(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n":
                    client.send(bytes([byte]))
                    await asyncio.sleep(0)
                assert (await client.response())[0] == 400

        run(talk())

    def test_a_declared_body_over_the_limit_is_refused_before_it_comes(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__BODY_BYTES="1KiB") as world:
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 1025", method=b"POST"))
                status, head, body = await client.response()
                assert (status, problem(body)["reason"]) == (413, "bad_request")
                assert b"connection: close\r\n" in head.lower()
                assert world.upstream.heads == []
                assert (await world.ask(get(b"/", b"Content-Length: 1024", method=b"POST") + b"a" * 1024))[0] == 200

        run(talk())

    def test_a_body_in_chunks_is_refused_when_it_grows_over_the_limit(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__BODY_BYTES="1KiB") as world:
                complete = False

                async def script(reader: Reader, _writer: Writer) -> None:
                    nonlocal complete
                    head = await world.upstream.head(reader)
                    await world.upstream.body(reader, head)
                    complete = True

                world.upstream.script = script
                client = await world.connect()
                client.send(
                    get(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"400\r\n" + b"a" * 1024 + b"\r\n"
                )
                await world.until(lambda: len(world.upstream.heads) == 1)
                client.send(b"1\r\na\r\n0\r\n\r\n")
                assert (await client.response())[0] == 413
                await world.until(lambda: world.upstream.open == 0)
                assert not complete, "what the app got must not look like a whole body"
                line = world.lines()[-1]
                assert (line["status"], line["route"], line["method"]) == (413, "app", "POST")

        run(talk())

    def test_a_route_may_have_a_limit_of_its_own(self) -> None:
        async def talk() -> None:
            environ = {"POSTERN_LIMITS__BODY_BYTES": "1KiB", "POSTERN_ROUTE__0__BODY_BYTES": "2KiB"}
            async with relay_world(**environ) as world:
                assert (await world.ask(get(b"/", b"Content-Length: 2048", method=b"POST") + b"a" * 2048))[0] == 200
                assert (await world.ask(get(b"/", b"Content-Length: 2049", method=b"POST")))[0] == 413
            async with relay_world(POSTERN_LIMITS__BODY_BYTES="1KiB", POSTERN_ROUTE__0__BODY_BYTES="0") as world:
                assert (await world.ask(get(b"/", b"Content-Length: 9999", method=b"POST") + b"a" * 9999))[0] == 200

        run(talk())

    def test_a_bad_chunk_when_the_answer_has_begun_cuts_it_short(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
                    await hang(reader, writer)

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST"))
                await client.head()
                await client.exactly(3)
                client.send(b"zz\r\n")
                assert await client.ends() == "reset"
                await world.until(lambda: world.upstream.open == 0)

        run(talk())


class TestTooMany:
    def test_connections_in_all(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__MAX_CONNECTIONS="3") as world:
                clients = [await world.connect() for _ in range(3)]
                for client in clients:
                    assert (await client.ask(get()))[0] == 200
                over = await world.connect()
                status, head, body = await over.response()
                assert (status, problem(body)["reason"]) == (503, "overloaded")
                assert b"\r\nRetry-After: " in head
                assert await over.ends() == "closed"
                over.close()
                assert world.lines()[-1]["outcome"] == "overloaded"
                clients[0].close()
                await world.until(lambda: len(world.gateway.relay.connections) == 2)
                assert (await world.ask(get()))[0] == 200
                assert (await clients[1].ask(get()))[0] == 200

        run(talk())

    def test_connections_of_one_client(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__MAX_CONNECTIONS_PER_CLIENT="2") as world:
                first, second = await world.connect(), await world.connect()
                assert (await first.ask(get()))[0] == (await second.ask(get()))[0] == 200
                third = await world.connect()
                assert (await third.response())[0] == 503
                third.close()
                first.close()
                await world.until(lambda: len(world.gateway.relay.connections) == 1)
                assert (await world.ask(get()))[0] == 200
                second.close()
                await world.until(lambda: not world.gateway.relay.connections)
                assert not world.gateway.relay._crowds, "nobody who has left is remembered"

        run(talk())

    def test_a_trusted_proxys_connections_are_everybodys(self) -> None:
        async def talk() -> None:
            environ = {"POSTERN_LIMITS__MAX_CONNECTIONS_PER_CLIENT": "1", "POSTERN_TRUSTED_PROXIES": "127.0.0.0/8"}
            async with relay_world(**environ) as world:
                for client in [await world.connect() for _ in range(5)]:
                    assert (await client.ask(get()))[0] == 200

        run(talk())


class TestPersistence:
    @pytest.mark.parametrize(
        ("version", "fields", "answered", "kept"),
        [
            (b"HTTP/1.1", (), None, True),
            (b"HTTP/1.1", (b"Connection: close",), b"close", False),
            (b"HTTP/1.0", (), b"close", False),
            (b"HTTP/1.0", (b"Connection: keep-alive",), b"keep-alive", True),
        ],
    )
    @pytest.mark.parametrize("path", [b"/", b"/.postern/healthz", b"/.postern/nothing"])
    def test_is_as_asked(
        self, path: bytes, version: bytes, fields: tuple[bytes, ...], answered: bytes | None, kept: bool
    ) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                _, head, _ = await client.ask(get(path, *fields, version=version))
                lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"connection:")]
                assert lines == ([b"connection: " + answered] if answered else [])
                if kept:
                    assert (await client.ask(get()))[0] == 200
                else:
                    assert await client.ends() == "closed"

        run(talk())

    def test_a_request_that_nobody_reads_the_body_of_is_the_last(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 1000000", method=b"POST"))
                status, head, _ = await client.response()
                assert status == 401
                assert b"connection: close\r\n" in head.lower()
                client.send(b"x" * 300_000)
                assert await client.ends() == "closed"

        run(talk())

    def test_a_small_body_with_a_refused_request_costs_nothing(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                client = await world.connect()
                for _ in range(3):
                    assert (await client.ask(get(b"/", b"Content-Length: 5", method=b"POST") + b"hello"))[0] == 401

        run(talk())

    def test_a_large_body_sent_at_once_with_a_refused_request_does_not_change_the_refusal(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 500000", method=b"POST") + b"x" * 500_000)
                assert (await client.response())[0] == 401

        run(talk())

    def test_thousands_of_requests_in_one_packet_leave_others_their_turn(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client, other = await world.connect(), await world.connect()
                client.send(get(b"*", method=b"OPTIONS") * 4000)
                assert (await other.ask(get()))[0] == 200
                for _ in range(4000):
                    assert (await client.response())[0] == 204

        run(talk())


class TestDeadlines:
    @pytest.mark.parametrize(
        ("sent", "status", "waits"),
        [
            (b"", None, lambda it: True),
            (get(), None, lambda it: True),  # answered, and then nothing more
            (b"\r\n", 408, lambda it: it._held),
            (b"GET / HTTP/1.1\r\nHost", 408, lambda it: it._held),
            (get(b"/hang", b"Content-Length: 10", method=b"POST") + b"abc", 408, lambda it: it._received == 3),
            (
                get(b"/hang", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nab",
                408,
                lambda it: it._received == 2,
            ),
            (get(b"/hang"), 504, lambda it: it._request.work._connection),
            (get(b"/hang", b"Content-Length: 3", method=b"POST") + b"abc", 504, lambda it: it._received == 3),
            (
                get(b"/hang", b"Expect: 100-continue", b"Content-Length: 3", method=b"PUT"),
                504,
                lambda it: it._request.work._connection,
            ),
        ],
    )
    def test_end_every_wait(self, sent: bytes, status: int | None, waits: Callable[[Any], object]) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                if b"/hang" in sent:
                    world.upstream.script = hang
                client = await world.connect()
                client.send(sent)
                if sent == get():
                    assert (await client.response())[0] == 200
                await world.until(lambda: _any(world, lambda it: it._request or b"hang" not in sent))
                await world.until(lambda: _any(world, waits))
                world.later(LATER)
                if status is not None:
                    got, _, body = await client.response()
                    assert got == status, body
                    await world.until(lambda: world.lines()[-1:] != [])
                    assert world.lines()[-1]["status"] == status
                if status != 504:
                    assert await client.ends() == "closed"
                await world.until(lambda: world.upstream.open == 0 or status != 504)

        run(talk())

    def test_progress_is_what_counts_for_a_body(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__BODY_TIMEOUT="10s") as world:
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 8", method=b"POST"))
                await world.until(lambda: len(world.upstream.heads) == 1)
                for seconds in range(8, 72, 8):
                    before = _received(world)
                    client.send(b"x")
                    await _more(world, before)
                    world.later(seconds)
                assert (await client.response())[0] == 200

        run(talk())

    def test_a_head_has_one_deadline_however_it_trickles(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__HEAD_TIMEOUT="10s") as world:
                client = await world.connect()
                raw = get()
                for position, seconds in enumerate(range(1, 12)):
                    client.send(raw[position : position + 1])
                    await _holding(world, position)
                    world.later(seconds)
                assert (await client.response())[0] == 408

        run(talk())

    def test_an_app_that_reads_slowly_is_not_taken_for_a_slow_client(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, _writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await asyncio.Event().wait()

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 50000000", method=b"POST") + bytes(30_000_000))
                await world.until(lambda: _any(world, lambda it: it._received and not it._reading))
                world.later(LATER)
                assert (await client.response())[0] == 504

        run(talk())

    def test_an_answer_without_an_end_is_cut_when_nothing_moves(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__IDLE_TIMEOUT="100s") as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
                    await hang(reader, writer)

                world.upstream.script = script
                client = await world.connect()
                client.send(get())
                await client.head()
                await client.exactly(6)
                world.later(50)
                world.later(150)
                assert await client.ends() == "reset"
                assert world.lines()[-1]["outcome"] == "cut_short"

        run(talk())

    def test_uploading_is_progress_for_an_answer_that_has_begun(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__IDLE_TIMEOUT="10s") as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    head = await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                    await world.upstream.body(reader, head)
                    writer.write(b"ok")

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 8", method=b"POST"))
                await client.head()
                for seconds in range(8, 72, 8):
                    before = _received(world)
                    client.send(b"x")
                    await _more(world, before)
                    world.later(seconds)
                assert await client.exactly(2) == b"ok"

        run(talk())

    def test_whoever_does_not_read_the_last_answer_is_not_waited_for(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                body = bytes(8 << 20)
                world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                client = await world.connect(receive_buffer=4096)
                client.send(get(b"/", b"Connection: close"))
                await world.until(lambda: _any(world, lambda it: it._blocked))
                await world.ages_until(lambda: not world.gateway.relay.connections)
                assert world.upstream.open == 0

        run(talk())


def _any(world: World, holds: Callable[[Any], object]) -> bool:
    """Whether something holds for a connection of the gateway."""
    return any(holds(connection) for connection in world.gateway.relay.connections)


def _received(world: World) -> int:
    return sum(getattr(connection, "_received", 0) for connection in world.gateway.relay.connections)


async def _holding(world: World, size: int) -> None:
    """Wait until more than so many bytes of a head are there, or the connection closes."""
    await world.until(lambda: _any(world, lambda it: len(it._held) > size or it._closing))


async def _more(world: World, before: int) -> None:
    """Wait until more than `before` bytes of a body have come, or all of it."""
    await world.until(lambda: _received(world) > before or bool(world.upstream.bodies))


class TestStopping:
    def test_what_is_under_way_finishes(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await go.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

                world.upstream.script = script
                client = await world.connect()
                client.send(get())
                await world.until(lambda: len(world.upstream.heads) == 1)
                for connection in list(world.gateway.relay.connections):
                    connection.shutdown()
                go.set()
                status, head, body = await client.response()
                assert (status, body) == (200, b"ok")
                assert b"\r\nConnection: close\r\n" in head
                assert await client.ends() == "closed"

        run(talk())

    def test_half_a_request_may_become_a_whole_one(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client, idle = await world.connect(), await world.connect()
                client.send(get()[:20])
                await world.until(lambda: _any(world, lambda it: it._held))
                await world.until(lambda: len(world.gateway.relay.connections) == 2)
                for connection in list(world.gateway.relay.connections):
                    connection.shutdown()
                client.send(get()[20:])
                status, head, _ = await client.response()
                assert status == 200
                assert b"\r\nConnection: close\r\n" in head
                world.later(LATER)
                assert await idle.ends() == "closed"

        run(talk())

    def test_the_end_of_the_process_is_not_the_end_of_an_answer(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\nabc")
                    await hang(reader, writer)

                world.upstream.script = script
                client = await world.connect()
                client.send(get(version=b"HTTP/1.0"))
                await client.reader.readuntil(b"abc")
                world.gateway.relay.close()
                assert await client.ends() == "reset"

        run(talk())


def test_absolute_targets_name_the_host() -> None:
    async def talk() -> None:
        async with relay_world() as world:
            await world.ask(b"GET http://other.example:81/x?y HTTP/1.1\r\nHost: localhost:3000\r\n\r\n")
            assert world.upstream.heads[0].startswith(b"GET /x?y HTTP/1.1\r\nHost: other.example:81\r\n")
            status, _, body = await world.ask(
                b"GET http://other.example/.postern/me HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
            )
            assert status == 401
            assert b"localhost" in body, "the sign-in is at the public URL, whatever a request says"

    run(talk())


class TestTurns:
    def test_a_request_waits_for_the_last_answer_to_be_taken(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                assert (await client.ask(get()))[0] == 200
                (connection,) = world.gateway.relay.connections
                connection.pause_writing()  # as the transport says when the client does not keep up
                client.send(get(b"/next"))
                await world.until(lambda: _any(world, lambda it: it._held))
                assert len(world.upstream.heads) == 1
                connection.resume_writing()
                assert (await client.response())[0] == 200
                connection.resume_writing()
                assert (await client.ask(get()))[0] == 200

        run(talk())

    def test_a_body_waits_for_the_app_to_be_reached(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                (pool,) = world.gateway.relay.plan.lanes[world.gateway.gate.routes.routes[0]].pools
                go, connect = asyncio.Event(), pool.connect

                async def slow(*, reuse: bool = False) -> Any:
                    await go.wait()
                    return await connect(reuse=reuse)

                pool.connect = slow  # type: ignore[method-assign]
                client.send(get(b"/", b"Content-Length: 300000", method=b"POST") + bytes(300_000))
                await world.until(lambda: _any(world, lambda it: len(it._held) > 65536 and not it._reading))
                go.set()
                assert (await client.response())[0] == 200
                assert len(world.upstream.bodies[0]) == 300_000

        run(talk())

    def test_a_bug_on_the_way_to_the_app_is_500(self, caplog: pytest.LogCaptureFixture) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                (pool,) = world.gateway.relay.plan.lanes[world.gateway.gate.routes.routes[0]].pools

                async def broken(*, reuse: bool = False) -> Any:
                    raise ZeroDivisionError

                pool.connect = broken  # type: ignore[method-assign]
                status, _, body = await client.ask(get())
                assert (status, problem(body)["reason"]) == (500, "internal_error")

        with caplog.at_level(logging.CRITICAL):
            run(talk())

    def test_nobody_switches_protocols_for_a_client_that_is_gone(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await go.wait()
                    writer.write(b"HTTP/1.1 101 Go\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n")
                    await reader.read()

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Connection: Upgrade", b"Upgrade: foo"))
                await world.until(lambda: len(world.upstream.heads) == 1)
                (connection,) = world.gateway.relay.connections
                assert isinstance(connection, ClientConnection)
                connection._transport.close()  # and before that is through, the app answers
                assert connection._request is not None
                work = connection._request.work
                assert isinstance(work, Exchange)
                assert connection.open_tunnel(work, b"HTTP/1.1 101 Go\r\n\r\n") is None
                go.set()
                await world.until(lambda: not world.gateway.relay.connections)
                await world.until(lambda: world.upstream.open == 0)

        run(talk())
