"""How a worker ends: not ready first, then nobody new, then what is under way, then the rest is cut. Nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from tests.relay_world import Client, Upstream, World, relay_world, run

GET = b"GET /x HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
READY = b"GET /.postern/readyz HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
WEBSOCKET = (
    b"GET /live HTTP/1.1\r\nHost: localhost:3000\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Slow(Upstream):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.script = self.wait

    async def wait(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.head(reader)
        self.asked.set()
        await self.go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async def in_two_parts(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await self.go_on.wait()
        writer.write(b"llo")
        self.script = self.hello
        await self.hello(reader, writer)

    async def switch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.head(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read()


def slow(world: World) -> Slow:
    """Have the upstream of `world` answer when it is told to."""
    upstream = Slow()
    world.upstream.script = lambda reader, writer: upstream.script(reader, writer)  # noqa: PLW0108 -- tests change it
    return upstream


async def ended(world: World) -> None:
    """Wait until the server has ended by itself."""
    (serving,) = (task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") == "serve")
    await world.until(serving.done)


async def refused(world: World) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    except ConnectionRefusedError:
        return True
    writer.transport.abort()
    return False


def test_while_it_waits_it_is_not_ready_and_serves_everybody() -> None:
    async def work() -> None:
        async with relay_world(POSTERN_DRAIN__DELAY="60s") as world:
            assert (await world.ask(READY))[0] == 200
            old = await world.connect()
            assert (await old.ask(GET))[0] == 200
            world.server.stop()
            await world.until(lambda: world.gateway.app.state.health.draining)
            status, head, body = await world.ask(READY)
            assert (status, b'"draining"' in body) == (503, True)
            assert b"retry-after:" in head.lower()
            for client in (old, await world.connect()):
                status, head, _ = await client.ask(GET)
                assert status == 200
                assert b"connection: close" not in head.lower()

    run(work())


def test_nobody_new_is_taken() -> None:
    async def work() -> None:
        async with relay_world() as world:
            world.server.stop()
            async with asyncio.timeout(5):
                while not await refused(world):
                    await asyncio.sleep(0.01)

    run(work())


class TestLastCall:
    """A request may be on its way when the worker stops, and the client cannot know whether it was served."""

    def drained(self, world: World) -> None:
        world.server.close_listeners()
        world.gateway.relay.drain()

    @pytest.mark.parametrize("served", [0, 1])
    def test_one_more_request_on_an_idle_connection(self, served: int) -> None:
        async def work() -> None:
            async with relay_world() as world:
                client = await world.connect()
                for _ in range(served):
                    await client.ask(GET)
                await world.until(lambda: len(world.gateway.relay.connections) == 1)
                self.drained(world)
                status, head, body = await client.ask(GET)
                assert (status, body) == (200, b"hello")
                assert b"connection: close\r\n" in head.lower()
                assert await client.ends() == "closed"

        run(work())

    def test_without_one_the_connection_is_closed_soon(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                client = await world.connect()
                await client.ask(GET)
                self.drained(world)
                world.later(1.5)
                assert len(world.gateway.relay.connections) == 1
                world.later(2.5)
                assert await client.ends() == "closed"

        run(work())

    def test_half_a_head_is_waited_for(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                client = await world.connect()
                client.send(GET[:20])
                await world.until(lambda: any(getattr(it, "_held", b"") for it in world.gateway.relay.connections))
                self.drained(world)
                world.later(10)
                status, head, _ = await client.ask(GET[20:])
                assert status == 200
                assert b"connection: close\r\n" in head.lower()

        run(work())

    def test_after_an_answer_that_did_not_say_so(self) -> None:
        """The head was sent before the worker was told to stop: the client believes that it may ask again."""

        async def work() -> None:
            async with relay_world() as world:
                upstream = slow(world)
                upstream.script = upstream.in_two_parts
                client = await world.connect()
                client.send(GET)
                head = await client.head()
                assert b"connection: close" not in head.lower()
                self.drained(world)
                upstream.go_on.set()
                assert await client.exactly(5) == b"hello"
                status, head, _ = await client.ask(GET)
                assert status == 200
                assert b"connection: close\r\n" in head.lower()
                assert await client.ends() == "closed"

        run(work())

    def test_a_connection_that_was_taken_last(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                client = await world.connect()  # the loop has had no turn to take it
                self.drained(world)
                status, head, _ = await client.ask(GET)
                assert status == 200
                assert b"connection: close\r\n" in head.lower()

        run(work())


def test_what_is_under_way_finishes_and_says_that_it_was_the_last() -> None:
    async def work() -> None:
        async with relay_world() as world:
            upstream = slow(world)
            client = await world.connect()
            client.send(GET)
            await upstream.asked.wait()
            world.server.stop()
            await world.until(lambda: world.gateway.relay.draining)
            upstream.go_on.set()
            status, head, body = await client.response()
            assert (status, body) == (200, b"hello")
            assert b"connection: close\r\n" in head.lower()
            assert await client.ends() == "closed"
            await ended(world)
            assert world.lines()[-1]["status"] == 200

    run(work())


async def websocket(world: World) -> Client:
    upstream = slow(world)
    upstream.script = upstream.switch
    client = await world.connect()
    client.send(WEBSOCKET)
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    return client


def test_websockets_are_told_that_the_server_goes_away() -> None:
    async def work() -> None:
        async with relay_world() as world:
            client = await websocket(world)
            world.server.stop()
            assert await client.rest() == b"\x88\x02\x03\xe9"
            client.close()
            await ended(world)

    run(work())


def test_what_does_not_finish_in_time_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with relay_world(POSTERN_DRAIN__TIMEOUT="200ms") as world:
            upstream = slow(world)
            upstream.script = upstream.in_two_parts
            client = await world.connect()
            client.send(GET)
            await client.head()
            world.server.stop()
            await ended(world)
            await world.gateway.close()
            with pytest.raises(ConnectionResetError):
                await client.rest()
            assert world.lines()[-1]["outcome"] == "cut_short"

    with caplog.at_level(logging.WARNING):
        run(work())
    assert "1 connections did not finish in time" in caplog.text


@pytest.mark.parametrize("environ", [{"POSTERN_DRAIN__DELAY": "60s"}, {"POSTERN_DRAIN__TIMEOUT": "60s"}])
def test_at_once_means_at_once(environ: dict[str, str]) -> None:
    async def work() -> float:
        async with relay_world(**environ) as world:
            upstream = slow(world)
            client = await world.connect()
            client.send(GET)
            await upstream.asked.wait()
            world.server.stop()
            before = time.monotonic()
            world.server.stop_at_once()
            await ended(world)
            return time.monotonic() - before

    assert run(work()) < 20


def test_a_sign_in_whose_browser_has_left_is_finished() -> None:
    """Answers of the gateway's own are tasks of their own: the worker waits for them as it does for connections."""

    async def work() -> None:
        async with relay_world() as world:
            finish = asyncio.Event()

            async def answer() -> None:
                await finish.wait()

            task = asyncio.create_task(answer())
            world.gateway.relay.keep(task)
            assert world.gateway.relay.busy
            world.server.stop()
            await world.until(lambda: world.gateway.relay.draining)
            finish.set()
            await ended(world)
            assert task.done()

    run(work())


def test_a_connection_that_comes_about_while_the_worker_is_told_to_stop_is_told_so_too() -> None:
    """Taken off the queue before, set up after: nobody who was told stood for it, and it would go on for ever."""

    async def conversation() -> None:
        async with relay_world() as world:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.setblocking(False)
            made = world.server._protocol()
            world.gateway.relay.drain()
            await asyncio.get_running_loop().connect_accepted_socket(lambda: made, theirs)
            client = Client(*await asyncio.open_connection(sock=ours))
            status, head, _ = await client.ask(GET)
            assert (status, b"\r\nConnection: close\r\n" in head) == (200, True)
            assert await client.ends() == "closed"
            client.close()

    run(conversation())
