"""The client's end of the wire: how slow a client may be, how it is noticed to have left, and how a connection ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.relay_world import World, relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
GET = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
LENGTH = 8 << 20


@asynccontextmanager
async def over_tls(folder: Path, **environ: str) -> AsyncIterator[tuple[World, ssl.SSLContext]]:
    """A gateway that speaks TLS itself, and what a client needs to speak it, too."""
    authority = Authority(folder)
    cert, key = authority.issue("gateway", "localhost")
    context = ssl.create_default_context(cafile=str(authority.file))
    async with relay_world(POSTERN_TLS__CERT=str(cert), POSTERN_TLS__KEY=str(key), **environ) as world:
        yield world, context


def pouring(world: World, size: int = LENGTH) -> None:
    world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))


def connection(world: World) -> Any:
    (only,) = world.gateway.relay.connections
    return only


class TestSlowReaders:
    def test_whoever_takes_a_little_now_and_then_is_waited_for(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__SEND_TIMEOUT="10s") as world:
                pouring(world)
                client = await world.connect(receive_buffer=65536)
                client.send(GET)
                await client.head()
                await world.until(lambda: connection(world)._blocked)
                got = 0
                for seconds in range(9, 180, 9):  # less than `send_timeout` each, much more together
                    before = connection(world)._untaken()
                    while connection(world)._untaken() >= before:
                        got += len(await client.reader.read(65536))
                        await asyncio.sleep(0)
                    world.later(seconds)
                got += len(await client.exactly(LENGTH - got))
                assert got == LENGTH

        run(talk())

    @pytest.mark.parametrize("answered", [False, True])
    def test_whoever_takes_nothing_is_cut_off(self, answered: bool) -> None:
        """Whether the answer is still coming, or all of it is with us and the kernel."""

        async def talk() -> None:
            async with relay_world(POSTERN_LIMITS__SEND_TIMEOUT="10s") as world:
                pouring(world, (1 << 20) if answered else LENGTH)
                client = await world.connect(receive_buffer=4096)
                client.send(GET)
                await world.until(lambda: bool(world.gateway.relay.connections))
                await world.until(lambda: connection(world)._blocked or connection(world)._untaken() > 100_000)
                await world.ages_until(lambda: not world.gateway.relay.connections)
                await world.until(lambda: world.upstream.open == 0 or answered)

        run(talk())

    def test_the_next_request_waits_until_the_last_answer_is_taken(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                pouring(world)
                client = await world.connect(receive_buffer=65536)
                client.send(GET)
                await world.until(lambda: world.upstream.heads != [] and connection(world)._blocked)
                client.send(GET * 3000)
                for _ in range(3):
                    assert len((await client.response())[2]) == LENGTH
                assert len(world.upstream.heads) < 10
                client.abort()

        run(talk())


class TestLeaving:
    def test_nothing_is_looked_for_where_something_would_be_read(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                assert (await client.ask(GET))[0] == 200
                wire = connection(world)
                wire.probe()
                wire.pause()
                wire.pause()
                wire.probe()
                assert not wire._transport.is_closing()
                wire.resume()
                wire.resume()
                assert (await client.ask(GET))[0] == 200

        run(talk())

    def test_a_connection_that_is_gone_has_nothing_left_to_do(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                assert (await client.ask(GET))[0] == 200
                wire = connection(world)
                client.abort()
                await world.until(lambda: not world.gateway.relay.connections)
                wire.pause()
                for ending in (wire.probe, wire.close, wire.linger, wire.expire, wire.reset):
                    ending()
                assert wire._untaken() == 0
                assert not wire._has_left()

        run(talk())


class TestTls:
    def test_all_the_same(self, tmp_path: Path) -> None:
        async def talk() -> None:
            async with over_tls(tmp_path) as (world, tls):
                client = await world.connect(tls=tls)
                for _ in range(2):
                    assert (await client.ask(GET))[::2] == (200, b"hello")
                assert b"\r\nX-Forwarded-Proto: https\r\n" in world.upstream.heads[0]
                client.close()
                await client.writer.wait_closed()

        run(talk())

    def test_an_answer_arrives_though_the_request_was_not_read(self, tmp_path: Path) -> None:
        """There is no half of a TLS connection to close: it stays until the client closes it, or a deadline does."""

        async def talk() -> None:
            async with over_tls(tmp_path, POSTERN_ROUTE__0__ALLOW="signed-in") as (world, tls):
                for patient in (True, False):
                    client = await world.connect(tls=tls)
                    client.send(GET[:-2] + b"Content-Length: 400000\r\n\r\n" + bytes(200_000))
                    assert (await client.response())[0] == 401
                    if patient:
                        for seconds in (10, 20):
                            world.later(seconds)
                    else:
                        client.close()
                    await world.until(lambda: not world.gateway.relay.connections)

        run(talk())

    def test_an_answer_cut_short_does_not_look_complete(self, tmp_path: Path) -> None:
        async def talk() -> None:
            async with over_tls(tmp_path) as (world, tls):
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
                    await go.wait()

                world.upstream.script = script
                client = await world.connect(tls=tls)
                client.send(GET.replace(b"1.1", b"1.0"))
                await client.head()
                assert await client.exactly(3) == b"abc"
                go.set()
                assert await client.ends() == "reset"

        run(talk())

    def test_a_tunnel_ends_as_a_whole(self, tmp_path: Path) -> None:
        async def talk() -> None:
            async with over_tls(tmp_path) as (world, tls):

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 101 Go\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n")
                    writer.write(await reader.readexactly(5))
                    if world.upstream.connections == 1:
                        return
                    await reader.read()

                world.upstream.script = script
                ask = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: foo\r\n\r\n"
                client = await world.connect(tls=tls)
                client.send(ask + b"hello")
                await client.head()
                assert await client.rest() == b"hello"
                client = await world.connect(tls=tls)
                client.send(ask + b"again")
                await client.head()
                assert await client.exactly(5) == b"again"
                client.close()
                await world.until(lambda: world.upstream.open == 0)
                await world.until(lambda: not world.gateway.relay.connections)

        run(talk())


class TestUnixSockets:
    def test_all_the_same(self, tmp_path: Path) -> None:
        async def talk() -> None:
            async with relay_world("", tmp_path / "postern.sock") as world:
                client = await world.connect()
                assert (await client.ask(GET))[::2] == (200, b"hello")
                assert b"X-Forwarded-For" not in world.upstream.heads[0]
                wire = connection(world)
                wire.pause()
                wire.probe()
                wire.resume()
                assert (await client.ask(GET))[0] == 200
                assert world.lines()[-1]["client"] == ""

        run(talk())

    def test_an_answer_cut_short_ends_in_the_middle(self, tmp_path: Path) -> None:
        async def talk() -> None:
            async with relay_world("", tmp_path / "postern.sock") as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

                world.upstream.script = script
                client = await world.connect()
                client.send(GET)
                await client.head()
                with pytest.raises(asyncio.IncompleteReadError):
                    await client.exactly(10)

        run(talk())


@pytest.mark.parametrize("extra", [lambda _: None, lambda wire: setattr(wire, "_behind", 1 << 40)])
def test_a_deadline_is_not_put_off_for_who_owes_nothing(extra: Callable[[Any], None]) -> None:
    async def talk() -> None:
        async with relay_world() as world:
            client = await world.connect()
            assert (await client.ask(GET))[0] == 200
            extra(connection(world))
            world.later(10_000)
            assert await client.ends() == "closed"

    run(talk())
