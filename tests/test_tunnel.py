"""Tunnels: opened only as asked, bytes both ways at the pace of the slower end, and an end that each side can tell."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from tests.relay_world import Client, World, relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: Upgrade\r\nX-Extra: 1\r\n\r\n"
SIGNED_IN = {"POSTERN_ROUTE__0__ALLOW": "signed-in"}


def ask(protocol: bytes = b"foo", *fields: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    line = method + b" /live " + version
    return b"\r\n".join(
        [line, b"Host: localhost:3000", b"Connection: Upgrade", b"Upgrade: " + protocol, *fields, b"", b""]
    )


def switching(world: World, then: Callable[[Reader, Writer], Awaitable[None]], answer: bytes = SWITCH) -> None:
    """Script: switch protocols, then do as `then` says."""

    async def script(reader: Reader, writer: Writer) -> None:
        head = await world.upstream.head(reader)
        await world.upstream.body(reader, head)
        writer.write(answer)
        await then(reader, writer)

    world.upstream.script = script


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def opened(world: World, *fields: bytes, **how: bytes) -> Client:
    """A client whose tunnel is open."""
    client = await world.connect()
    client.send(ask(b"foo", *fields, **how))
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    return client


class TestOpening:
    def test_as_asked(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                switching(world, echo)
                client = await world.connect()
                client.send(ask() + b"early")  # bytes of the new protocol, sent before it is agreed on
                head = await client.head()
                assert (
                    head
                    == b"HTTP/1.1 101 Switching Protocols\r\nX-Extra: 1\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n"
                )
                assert b"\r\nConnection: Upgrade\r\n" in world.upstream.heads[0]
                assert b"\r\nUpgrade: foo\r\n" in world.upstream.heads[0]
                assert await client.exactly(5) == b"early"
                data = bytes(range(256)) * 4096
                client.send(data)
                assert await client.exactly(len(data)) == data

        run(talk())

    def test_with_a_body_first(self) -> None:
        """As container engines do for an interactive process: POST with a body, then bytes both ways."""

        async def talk() -> None:
            async with relay_world() as world:
                for fields, body in (
                    ((b"Content-Length: 5",), b"hello"),
                    ((b"Transfer-Encoding: chunked",), b"5\r\nhello\r\n0\r\n\r\n"),
                ):
                    switching(world, echo)
                    client = await world.connect()
                    client.send(ask(b"foo", *fields, method=b"POST") + body + b"early")
                    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
                    assert await client.exactly(5) == b"early"
                    assert world.upstream.bodies[-1] == b"hello"
                    client.close()

        run(talk())

    @pytest.mark.parametrize(
        "answer",
        [
            SWITCH.replace(b"Upgrade: foo", b"Upgrade: bar"),
            SWITCH.replace(b"Upgrade: foo\r\n", b""),
            SWITCH.replace(b"Upgrade: foo", b"Upgrade: foo, bar"),
            SWITCH.replace(b"Upgrade: foo", b"Upgrade: h2c"),
        ],
    )
    def test_not_to_what_nobody_asked_for(self, answer: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                switching(world, echo, answer)
                status, _, body = await world.ask(ask())
                assert (status, b"upstream_garbage" in body) == (502, True)

        run(talk())

    def test_not_before_the_request_is_all_there(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(SWITCH)
                    await echo(reader, writer)

                world.upstream.script = script
                client = await world.connect()
                client.send(ask(b"foo", b"Content-Length: 50", method=b"POST"))
                assert (await client.response())[0] == 502

        run(talk())

    @pytest.mark.parametrize(
        "raw", [ask(version=b"HTTP/1.0"), ask(b"h2c"), ask().replace(b"Connection: Upgrade\r\n", b"")]
    )
    def test_not_without_asking(self, raw: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                status, _, body = await world.ask(raw)
                assert (status, body) == (200, b"hello")
                assert b"Upgrade" not in world.upstream.heads[0]

        run(talk())

    def test_an_app_may_decline(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                assert (await client.ask(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"))[0] == 200
                client.send(ask() + b"GET /next HTTP/1.1\r\nHost: localhost:3000\r\n\r\n")
                assert (await client.response())[::2] == (200, b"hello")
                assert (await client.response())[::2] == (200, b"hello"), "what came behind is a request"
                assert world.upstream.heads[2].startswith(b"GET /next ")
                assert world.upstream.connections == 2, "no upgrade on a pooled connection"

        run(talk())


class TestPace:
    def test_a_client_that_does_not_read_stops_the_app(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                size, sent = 64 << 20, 0

                async def pour(_reader: Reader, writer: Writer) -> None:
                    nonlocal sent
                    while sent < size:
                        writer.write(bytes(65536))
                        sent += 65536
                        await writer.drain()

                switching(world, pour)
                client = await world.connect(receive_buffer=65536)
                client.send(ask())
                await client.head()
                await world.until(lambda: any(it._blocked for it in world.gateway.relay.connections))
                assert sent < size // 2
                assert len(await client.exactly(size)) == size

        run(talk())

    def test_an_app_that_does_not_read_stops_the_client(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go, size, got = asyncio.Event(), 32 << 20, 0

                async def swallow(reader: Reader, _writer: Writer) -> None:
                    nonlocal got
                    await go.wait()
                    while got < size:
                        got += len(await reader.read(1 << 20))

                switching(world, swallow)
                client = await opened(world)
                client.send(bytes(size))
                await world.until(lambda: any(not it._reading for it in world.gateway.relay.connections))
                go.set()
                await world.until(lambda: got == size)

        run(talk())


class TestEnding:
    def test_each_half_by_itself(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def answer_at_the_end(reader: Reader, writer: Writer) -> None:
                    data = await reader.read()
                    writer.write(data[::-1])

                switching(world, answer_at_the_end)
                client = await opened(world)
                client.send(b"abc")
                client.writer.write_eof()
                assert await client.rest() == b"cba"
                await world.until(lambda: not world.gateway.relay.connections)
                line = world.lines()[-1]
                assert (line["status"], line["outcome"], line["bytes"]) == (101, "everyone", 3)

        run(talk())

    def test_the_apps_half_first(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                got = b""

                async def finish_then_listen(reader: Reader, writer: Writer) -> None:
                    nonlocal got
                    writer.write(b"bye")
                    writer.write_eof()
                    got = await reader.read()

                switching(world, finish_then_listen)
                client = await opened(world)
                assert await client.rest() == b"bye"
                client.send(b"still here")
                client.close()
                await world.until(lambda: got == b"still here")
                await world.until(lambda: not world.gateway.relay.connections)

        run(talk())

    def test_by_a_reset_of_either_side(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def break_off(_reader: Reader, writer: Writer) -> None:
                    await writer.drain()
                    _reset(writer)

                switching(world, break_off)
                client = await opened(world)
                assert await client.ends() == "reset"
                assert world.lines()[-1]["outcome"] == "cut_short"
                switching(world, echo)
                client = await opened(world)
                _reset(client.writer)
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_by_idleness(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__TUNNEL_IDLE_TIMEOUT="100s") as world:
                switching(world, echo)
                client = await opened(world)
                world.later(90)
                client.send(b"x")
                await client.exactly(1)
                world.later(150)
                client.send(b"y")
                assert await client.exactly(1) == b"y"
                world.later(400)
                assert await client.ends() == "closed"
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_a_client_that_takes_nothing_is_not_waited_for(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def pour(_reader: Reader, writer: Writer) -> None:
                    while True:
                        writer.write(bytes(65536))
                        await writer.drain()

                switching(world, pour)
                client = await world.connect(receive_buffer=4096)
                client.send(ask())
                await world.until(lambda: any(it._blocked for it in world.gateway.relay.connections))
                await world.ages_until(lambda: not world.gateway.relay.connections)
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_a_client_that_left_while_nothing_was_read_from_it(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def ignore(_reader: Reader, _writer: Writer) -> None:
                    await asyncio.Event().wait()

                switching(world, ignore)
                client = await opened(world)
                client.send(bytes(32 << 20))
                await world.until(lambda: any(not it._reading for it in world.gateway.relay.connections))
                _reset(client.writer)
                await world.until(lambda: not world.gateway.relay.connections)

        run(talk())


def _reset(writer: Writer) -> None:

    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class TestSessions:
    @pytest.mark.parametrize("end", ["sign-out", "lifetime"])
    @pytest.mark.parametrize("protocol", ["foo", "websocket"])
    def test_the_end_of_the_session_is_the_end_of_the_tunnel(self, end: str, protocol: str) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                switching(world, echo, SWITCH.replace(b"foo", protocol.encode()))
                cookie = b"Cookie: " + await world.sign_in()
                client = await world.connect()
                client.send(ask(protocol.encode(), cookie))
                await client.head()
                if end == "sign-out":
                    await world.end_sessions()
                else:
                    world.much_later(8 * 86400)
                if protocol == "foo":
                    assert await client.ends() == "reset"
                else:
                    assert await client.rest() == b"\x88\x02\x03\xe9", "a WebSocket is told"
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_somebody_elses_session_changes_nothing(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                switching(world, echo)
                client = await opened(world, b"Cookie: " + await world.sign_in())
                sessions = set(world.gateway.store._sessions)  # type: ignore[attr-defined]
                await world.sign_in(sub="other")
                other = next(iter(set(world.gateway.store._sessions) - sessions))  # type: ignore[attr-defined]
                await world.gateway.store.end(other)
                client.send(b"x")
                assert await client.exactly(1) == b"x"

        run(talk())


@asynccontextmanager
async def websocket(
    world: World, handler: Callable[[ServerConnection], Awaitable[None]]
) -> AsyncIterator[ClientConnection]:
    """A real client, connected through the gateway to a real server that does as `handler` says."""
    async with serve(handler, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]

        async def script(reader: Reader, writer: Writer) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            tasks = [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))]
            await asyncio.wait(tasks)
            back.close()

        world.upstream.script = script
        url = f"ws://127.0.0.1:{world.port}/live"
        async with connect(url, origin=Origin("http://localhost:3000"), proxy=None, close_timeout=5) as client:
            yield client


async def _pump(reader: Reader, writer: Writer) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


class TestGoodbye:
    def test_a_websocket_hears_that_the_worker_stops(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def handler(server: ServerConnection) -> None:
                    async for message in server:
                        await server.send(message)

                async with websocket(world, handler) as client:
                    await client.send("hello " * 1000)
                    assert await client.recv() == "hello " * 1000
                    for connection in list(world.gateway.relay.connections):
                        connection.shutdown()
                    with pytest.raises(ConnectionClosed) as caught:
                        await client.recv()
                    assert caught.value.rcvd is not None
                    assert caught.value.rcvd.code == 1001
                    assert caught.value.sent is not None
                await world.until(lambda: not world.gateway.relay.connections)

        run(talk())

    @pytest.mark.parametrize(
        ("before", "goodbye"),
        [
            (b"", True),
            (b"\x81\x05hello", True),
            (b"\x81\x05hel", False),  # within a frame
            (b"\x81", False),  # within a frame's head
            (b"\x01\x03hel", True),  # between the frames of one message: a control frame may come there
            (b"\x88\x02\x03\xe8", False),  # the app has said goodbye itself
        ],
    )
    def test_only_between_two_frames(self, before: bytes, goodbye: bool) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def begin(reader: Reader, writer: Writer) -> None:
                    writer.write(before)
                    await reader.read()

                switching(world, begin, SWITCH.replace(b"foo", b"websocket"))
                client = await world.connect()
                client.send(ask(b"WebSocket"))
                await client.head()
                assert await client.exactly(len(before)) == before
                for connection in list(world.gateway.relay.connections):
                    connection.shutdown()
                assert await client.rest() == (b"\x88\x02\x03\xe9" if goodbye else b"")
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_other_protocols_are_just_closed(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                switching(world, echo)
                client = await opened(world)
                for _ in range(2):
                    for connection in list(world.gateway.relay.connections):
                        connection.shutdown()
                assert await client.ends() == "closed"

        run(talk())

    def test_what_comes_after_it_is_not_for_the_app_any_more(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                got = b""

                async def listen(reader: Reader, _writer: Writer) -> None:
                    nonlocal got
                    while data := await reader.read(100):
                        got += data

                switching(world, listen, SWITCH.replace(b"foo", b"websocket"))
                client = await world.connect()
                client.send(ask(b"websocket"))
                await client.head()
                for connection in list(world.gateway.relay.connections):
                    connection.shutdown()
                client.send(b"late")
                assert await client.rest() == b"\x88\x02\x03\xe9"
                client.close()
                await world.until(lambda: not world.gateway.relay.connections)
                assert got == b""

        run(talk())
