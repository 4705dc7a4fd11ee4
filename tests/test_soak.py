"""Many at once: slow clients that nobody else notices, bodies larger than any buffer, and an app that hangs up at random."""

from __future__ import annotations

import asyncio
import random
import resource
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest
from typing_extensions import override

from tests.relay_world import Client, World, relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
CROWD = 300
GET = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
BODY = bytes(4 << 20)


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Enough of them for clients, gateway and app in one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def app(world: World, reader: Reader, writer: Writer) -> None:
    """Has much to say on /much, and listens to the end everywhere else."""
    while True:
        head = await world.upstream.head(reader)
        if head.startswith(b"GET /much"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            await writer.drain()
            continue
        await world.upstream.body(reader, head)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class TestSlowClients:
    @pytest.mark.parametrize(
        ("beginning", "receive_buffer", "answered"),
        [
            (b"GET / HTTP/1.1\r\nHost: local", 0, 408),
            (b"POST / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 100\r\n\r\nabc", 0, 408),
            (b"GET /much HTTP/1.1\r\nHost: localhost:3000\r\n\r\n", 4096, None),
        ],
        ids=["slow head", "slow body", "slow reader"],
    )
    def test_nobody_else_notices(self, beginning: bytes, receive_buffer: int, answered: int | None) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.script = lambda reader, writer: app(world, reader, writer)
                slow = [await world.connect(receive_buffer=receive_buffer) for _ in range(CROWD)]
                for client in slow:
                    client.send(beginning)
                await world.until(
                    lambda: sum(_is_slow(it, answered) for it in world.gateway.relay.connections) == CROWD
                )
                await _fast(world)
                await world.ages_until(lambda: not world.gateway.relay.connections)
                if answered:
                    assert Counter([(await client.response())[0] for client in slow]) == {answered: CROWD}
                await world.until(lambda: world.upstream.open < CROWD)
                await _fast(world)

        run(talk())


def _is_slow(connection: Any, answered: int | None) -> bool:
    if answered is None:
        return bool(connection._blocked)
    return bool(connection._held) or connection._received == 3


async def _fast(world: World) -> None:
    """Twenty clients that get what they ask for, ten times each, one after the other."""

    async def one() -> None:
        client = await world.connect()
        for _ in range(10):
            assert (await client.ask(GET))[::2] == (200, b"ok")
        client.close()

    await asyncio.gather(*(one() for _ in range(20)))


class Most:
    """The most that is held in memory for any one connection, looked at all the time."""

    def __init__(self, world: World) -> None:
        self.bytes = 0
        self._world = world
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            for connection in self._world.gateway.relay.connections:
                any_connection: Any = connection
                work = any_connection._request.work if any_connection._request is not None else None
                upstream = getattr(work, "_connection", None)
                held = len(any_connection._held) + any_connection._transport.get_write_buffer_size()
                if upstream is not None and upstream._transport is not None:
                    held += len(upstream._held) + upstream._transport.get_write_buffer_size()
                self.bytes = max(self.bytes, held)
            await asyncio.sleep(0)

    async def stop(self) -> int:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.bytes


class TestLargeBodies:
    SIZE = 96 << 20
    BOUND = 1 << 20

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    @pytest.mark.parametrize("slow", ["reader", "writer"])
    def test_take_no_more_memory_than_small_ones(self, framing: str, slow: str) -> None:
        """Up and down at once, whichever side is the slower one."""

        async def talk() -> None:
            async with relay_world() as world:
                piece = bytes(65536)
                count = self.SIZE // len(piece)
                length = b"Content-Length: %d" % self.SIZE if framing == "length" else b"Transfer-Encoding: chunked"
                framed = piece if framing == "length" else b"10000\r\n" + piece + b"\r\n"
                end = b"" if framing == "length" else b"0\r\n\r\n"

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
                    await asyncio.gather(_write(writer, framed, count - 1, b""), _swallow(reader, self.SIZE))
                    writer.write(framed + end)  # an answer that is complete would end the upload

                world.upstream.script = script
                client = await world.connect()
                client.send(b"POST / HTTP/1.1\r\nHost: localhost:3000\r\n" + length + b"\r\n\r\n")
                most = Most(world)
                sending = asyncio.create_task(_write(client.writer, framed, count, end))
                await client.head()
                got = await _count(client, slow == "reader")
                await sending
                assert got >= self.SIZE
                assert await most.stop() < self.BOUND

        run(talk())


async def _write(writer: Writer, piece: bytes, count: int, end: bytes) -> None:
    for _ in range(count):
        writer.write(piece)
        await writer.drain()
    writer.write(end)


async def _swallow(reader: Reader, size: int) -> None:
    """Read so much, give or take what frames it: the gateway makes chunks of its own."""
    while size > 0:
        data = await reader.read(1 << 20)
        assert data
        size -= len(data)


async def _count(client: Client, slowly: bool) -> int:
    """Read about as much as the body has; `slowly`: in little pieces, with everybody else's turn in between."""
    got = 0
    while got < TestLargeBodies.SIZE:
        data = await client.reader.read(16384 if slowly else 1 << 20)
        assert data
        got += len(data)
        if slowly:
            await asyncio.sleep(0)
    return got


class Moody(asyncio.Protocol):
    """An app that answers with what it was asked, and hangs up when it feels like it: at once, or a moment later."""

    def __init__(self, dice: random.Random, seen: Counter[bytes]) -> None:
        self._dice = dice
        self._seen = seen
        self._held = b""
        self._transport: asyncio.Transport

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0 and not self._transport.is_closing():
            head, rest = self._held[:end], self._held[end + 4 :]
            size = 4 if head.startswith(b"POST") else 0
            if len(rest) < size:
                return
            self._held = rest[size:]
            path = head.split(b" ", 2)[1]
            self._seen[path] += 1
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
            mood = self._dice.random()
            if mood < 0.1:
                self._transport.close()
            elif mood < 0.3:
                asyncio.get_running_loop().call_later(self._dice.random() / 500, self._transport.close)


def test_an_app_that_hangs_up_at_random_costs_nobody_a_request() -> None:
    """Twenty thousand of them: each is answered, and what must not be done twice is not."""
    clients, each = 40, 500

    async def talk() -> None:
        dice, seen = random.Random(2), Counter[bytes]()
        server = await asyncio.get_running_loop().create_server(lambda: Moody(dice, seen), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with relay_world(POSTERN_ROUTE__0__UPSTREAM=url) as world:

            async def ask(number: int) -> None:
                client = await world.connect()
                for turn in range(each):
                    post = turn % 4 == 0
                    path = b"/%s/%d/%d" % (b"post" if post else b"get", number, turn)
                    head = b"%b %b HTTP/1.1\r\nHost: localhost:3000\r\n" % (b"POST" if post else b"GET", path)
                    raw = head + (b"Content-Length: 4\r\n\r\nbody" if post else b"\r\n")
                    assert (await client.ask(raw))[::2] == (200, path)

            await asyncio.gather(*(ask(number) for number in range(clients)))
        server.close()
        assert len(seen) == clients * each
        assert {count for path, count in seen.items() if path.startswith(b"/post")} == {1}
        assert sum(seen.values()) >= clients * each

    run(talk())
