"""The bridge to the gateway's own app: what ASGI promises, at the end of a real connection."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.verdict import Call, Kind
from tests.relay_world import World, relay_world, run

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
HOST = b"Host: localhost:3000"


def ask(*fields: bytes, path: bytes = b"/.postern/x", method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([method + b" " + path + b" " + version, HOST, *fields, b"", b""])


@asynccontextmanager
async def world_of(app: App, **environ: str) -> AsyncIterator[World]:
    """A gateway whose own app is `app`."""
    async with relay_world(**environ) as world:
        world.gateway.relay.plan = dataclasses.replace(world.gateway.relay.plan, app=app)
        yield world


def answering(*messages: Message) -> App:
    async def app(_scope: Message, _receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def start(status: int = 200, *fields: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(fields)}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def read(receive: Receive) -> bytes:
    data = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        data += bytes(message["body"])
        if not message["more_body"]:
            return data


async def echo(_scope: Message, receive: Receive, send: Send) -> None:
    data = await read(receive)
    await send(start(200, (b"content-length", b"%d" % len(data))))
    await send(body(data))


class TestScope:
    def test_is_what_was_asked(self) -> None:
        async def talk() -> None:
            scopes = []

            async def app(scope: Message, receive: Receive, send: Send) -> None:
                scopes.append(scope)
                await echo(scope, receive, send)

            async with world_of(app) as world:
                await world.ask(ask(b"X-A: \xff", b"x-a: 2", path=b"/.postern/%E6%B1%89%2f?a=%20&b"))
                await world.ask(ask(path=b"http://other.example:81/.postern/", version=b"HTTP/1.0"))
            first, second = scopes
            assert (first["type"], first["method"], first["http_version"]) == ("http", "GET", "1.1")
            assert (first["path"], first["raw_path"]) == ("/.postern/汉/", b"/.postern/%E6%B1%89%2f")
            assert first["query_string"] == b"a=%20&b"
            assert first["headers"] == [(b"host", b"localhost:3000"), (b"x-a", b"\xff"), (b"x-a", b"2")]
            assert first["client"][0] == "127.0.0.1"
            call = first["postern"]
            assert isinstance(call, Call)
            assert (call.verdict.kind, call.url) == (Kind.OWN, "http://localhost:3000/.postern/%E6%B1%89%2f?a=%20&b")
            assert second["http_version"] == "1.0"
            assert second["headers"] == [(b"host", b"other.example:81")], "the authority of the target wins"

        run(talk())


class TestRequestBodies:
    @pytest.mark.parametrize(
        ("fields", "sent"),
        [
            ((b"Content-Length: 5",), b"hello"),
            ((b"Transfer-Encoding: chunked",), b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"),
        ],
    )
    def test_arrive(self, fields: tuple[bytes, ...], sent: bytes) -> None:
        async def talk() -> None:
            async with world_of(echo) as world:
                client = await world.connect()
                client.send(ask(*fields, method=b"POST"))
                for byte in sent:
                    client.send(bytes([byte]))
                    await asyncio.sleep(0)
                assert (await client.response())[2] == b"hello"
                assert (await client.ask(ask(*fields, method=b"POST") + sent))[2] == b"hello"

        run(talk())

    def test_are_asked_for_where_the_client_waits_for_that(self) -> None:
        async def talk() -> None:
            async with world_of(echo) as world:
                client = await world.connect()
                client.send(ask(b"Expect: 100-continue", b"Content-Length: 5", method=b"PUT"))
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                client.send(b"hello")
                assert (await client.response())[2] == b"hello"

        run(talk())

    def test_are_not_asked_for_by_a_refusal(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                client = await world.connect()
                client.send(ask(b"Expect: 100-continue", b"Content-Length: 5", path=b"/", method=b"PUT"))
                assert (await client.response())[0] == 401

        run(talk())

    def test_are_bounded(self) -> None:
        async def talk() -> None:
            async with world_of(echo) as world:
                assert (await world.ask(ask(b"Content-Length: 65536", method=b"POST") + bytes(65536)))[0] == 200
                client = await world.connect()
                client.send(ask(b"Content-Length: 70000", method=b"POST") + bytes(70000))
                assert (await client.response())[0] == 413
                assert await client.ends() == "closed"

        run(talk())

    def test_that_stop_coming_are_not_waited_for(self) -> None:
        async def talk() -> None:
            async with world_of(echo) as world:
                client = await world.connect()
                client.send(ask(b"Content-Length: 10", method=b"POST") + b"abc")
                await world.until(lambda: any(it._received == 3 for it in world.gateway.relay.connections))  # type: ignore[union-attr]
                world.later(50)
                client.send(b"d")
                await world.until(lambda: any(it._received == 4 for it in world.gateway.relay.connections))  # type: ignore[union-attr]
                world.later(100)
                world.later(1000)
                assert (await client.response())[0] == 408

        run(talk())

    def test_whoever_listens_longer_hears_the_client_leave(self) -> None:
        async def talk() -> None:
            heard: list[str] = []

            async def app(_scope: Message, receive: Receive, _send: Send) -> None:
                await read(receive)
                heard.append((await receive())["type"])
                heard.append((await receive())["type"])

            async with world_of(app) as world:
                client = await world.connect()
                client.send(ask(b"Content-Length: 2", method=b"POST") + b"hi")
                await world.until(lambda: any(it._received == 2 for it in world.gateway.relay.connections))  # type: ignore[union-attr]
                client.abort()
                await world.until(lambda: heard == ["http.disconnect", "http.disconnect"])
                assert world.lines()[-1]["status"] == 499

        run(talk())

    def test_a_refusal_has_none(self) -> None:
        async def talk() -> None:
            async with world_of(echo, POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                status, _, data = await world.ask(ask(b"Content-Length: 2", path=b"/", method=b"POST") + b"hi")
                assert (status, data) == (200, b"")

        run(talk())


class TestResponses:
    @pytest.mark.parametrize(
        ("messages", "version", "method", "expected", "framing"),
        [
            ((start(), body(b"ab", more=True), body(b"c")), b"HTTP/1.1", b"GET", b"abc", b"chunked"),
            ((start(), body(b"ab", more=True), body(b"c")), b"HTTP/1.0", b"GET", b"abc", b"close"),
            ((start(200, (b"Content-Length", b"3")), body(b"abc")), b"HTTP/1.0", b"GET", b"abc", b"length"),
            ((start(), body(b"abc")), b"HTTP/1.1", b"HEAD", b"", b"chunked"),
            ((start(200, (b"content-length", b"3")), body(b"abc")), b"HTTP/1.1", b"HEAD", b"", b"length"),
            ((start(204), body()), b"HTTP/1.1", b"GET", b"", b"none"),
            ((start(304), body(b"x")), b"HTTP/1.1", b"GET", b"", b"none"),
            ((start(), body()), b"HTTP/1.1", b"GET", b"", b"chunked"),
            (
                (start(299, (b"date", b"then"), (b"x-request-id", b"mine")), body()),
                b"HTTP/1.1",
                b"GET",
                b"",
                b"chunked",
            ),
        ],
    )
    def test_are_framed(
        self, messages: tuple[Message, ...], version: bytes, method: bytes, expected: bytes, framing: bytes
    ) -> None:
        async def talk() -> None:
            async with world_of(answering(*messages)) as world:
                client = await world.connect()
                client.send(ask(version=version, method=method))
                status, head, data = await client.response(head_only=method == b"HEAD")
                lower = head.lower()
                assert (status, data) == (messages[0]["status"], expected)
                assert (b"transfer-encoding: chunked" in lower) is (framing == b"chunked")
                assert (b"content-length: 3" in lower) is (framing == b"length")
                assert lower.count(b"\r\ndate: ") == lower.count(b"\r\nx-request-id: ") == 1
                if version == b"HTTP/1.0":
                    assert await client.ends() == "closed"
                else:
                    assert (await client.ask(ask(path=b"/")))[2] == b"hello"

        run(talk())

    def test_wait_for_a_client_that_reads_slowly(self) -> None:
        async def talk() -> None:
            sent = 0

            async def app(_scope: Message, _receive: Receive, send: Send) -> None:
                nonlocal sent
                await send(start())
                for _ in range(200):
                    await send(body(bytes(65536), more=True))
                    sent += 65536
                await send(body())

            async with world_of(app) as world:
                client = await world.connect(receive_buffer=65536)
                client.send(ask(b"Connection: close"))
                await world.until(lambda: any(it._blocked for it in world.gateway.relay.connections))
                assert sent < 200 * 65536
                assert len((await client.response())[2]) == 200 * 65536

        run(talk())


class TestMistakes:
    @pytest.mark.parametrize(
        "messages",
        [
            (),
            (start(),),
            (body(b"x"),),
            (start(200, (b"x", b"a\r\nset-cookie: evil")), body()),
            (start(200, (b"x\n", b"a")), body()),
            (start(200, (b"x", b"a\0")), body()),
        ],
    )
    def test_are_500_and_nothing_else(self, messages: tuple[Message, ...], caplog: pytest.LogCaptureFixture) -> None:
        async def talk() -> None:
            async with world_of(answering(*messages)) as world:
                client = await world.connect()
                status, head, data = await client.ask(ask())
                assert status == 500
                assert b"evil" not in head
                assert b"internal_error" in data
                assert await client.ends() == "closed"
                assert world.lines()[-1]["outcome"] == "internal_error"
                assert (await world.ask(ask(path=b"/")))[0] == 200, "the worker lives on"

        with caplog.at_level(logging.CRITICAL):
            run(talk())

    @pytest.mark.parametrize("error", [ValueError("a bug"), None])
    def test_in_the_middle_of_an_answer_cut_it_short(
        self, error: Exception | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def talk() -> None:
            go = asyncio.Event()

            async def app(_scope: Message, _receive: Receive, send: Send) -> None:
                await send(start())
                await send(body(b"abc", more=True))
                await go.wait()
                if error is not None:
                    raise error

            async with world_of(app) as world:
                client = await world.connect()
                client.send(ask())
                await client.head()
                assert await client.exactly(8) == b"3\r\nabc\r\n"
                go.set()
                assert await client.ends() == "reset"
                assert world.lines()[-1]["outcome"] == "cut_short"

        with caplog.at_level(logging.CRITICAL):
            run(talk())

    def test_behind_an_answer_are_not_the_next_requests(self, caplog: pytest.LogCaptureFixture) -> None:
        async def talk() -> None:
            go = asyncio.Event()

            async def app(scope: Message, _receive: Receive, send: Send) -> None:
                await send(start(200, (b"content-length", b"2")))
                await send(body(b"ok"))
                if scope["path"] == "/.postern/x":
                    await go.wait()
                    raise ValueError("a bug in what is done afterwards")

            async with world_of(app) as world:
                client = await world.connect()
                assert (await client.ask(ask()))[0] == 200
                client.send(ask(b"Content-Length: 3", path=b"/.postern/y", method=b"POST"))
                go.set()
                await world.until(lambda: not world.gateway.relay._tasks)
                client.send(b"abc")
                assert (await client.response())[2] == b"ok"

        with caplog.at_level(logging.CRITICAL):
            run(talk())

    def test_an_app_without_an_end_is_not_waited_for(self) -> None:
        async def talk() -> None:
            async def app(_scope: Message, _receive: Receive, _send: Send) -> None:
                await asyncio.Event().wait()

            async with world_of(app) as world:
                client = await world.connect()
                client.send(ask())
                await world.until(lambda: bool(world.gateway.relay._tasks))
                world.later(1000)
                assert (await client.response())[0] == 500

        run(talk())

    def test_a_client_that_leaves_does_not_stop_what_others_need(self) -> None:
        async def talk() -> None:
            go, done = asyncio.Event(), asyncio.Event()

            async def app(_scope: Message, _receive: Receive, send: Send) -> None:
                await go.wait()
                await send(start())
                await send(body(b"x"))
                done.set()

            async with world_of(app) as world:
                client = await world.connect()
                client.send(ask())
                await world.until(lambda: bool(world.gateway.relay._tasks))
                client.abort()
                await world.until(lambda: not world.gateway.relay.connections)
                go.set()
                await asyncio.wait_for(done.wait(), 5)

        run(talk())
