"""A server in the event loop that does what a script says, and a request's end of a connection to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from proxy.errors import UpstreamFailed
from proxy.http1 import Fields, ResponseHead
from proxy.pool import Pool
from proxy.upstream import UpstreamConnection
from proxy.upstream_settings import Server
from tests.loops import run as run  # noqa: PLC0414 -- found where worlds are: every test runs in one

T = TypeVar("T")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENCE = 30.0  # seconds; no test waits that long unless it fails
REQUEST = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def until(true: Callable[[], bool]) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.002)


class Peer:
    """The server: each connection runs the script of the moment; `connections` counts them, `open` are those still there."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.open = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(reader, writer)
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def peer(script: Script) -> AsyncIterator[Peer]:
    found = Peer(script)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found
    await until(lambda: not found.open)


def answering(answer: bytes = HELLO) -> Script:
    """Answer every request (without a body) with these bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

    return script


def once(answer: bytes, *, abort: bool = False) -> Script:
    """Answer one request with these bytes, then close the connection, or reset it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if abort:
            reset(writer)

    return script


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take everything, answer nothing, until the other side leaves."""
    while await reader.read(65536):
        pass


class Recorder:
    """A Sink that writes down what it is told; `wait` until it is told the end."""

    def __init__(self) -> None:
        self.heads: list[ResponseHead] = []
        self._body = bytearray()
        self.trailers: Fields | None = None
        self.error: UpstreamFailed | None = None
        self.blocked: list[bool] = []
        self.eof = False
        self.flushed = 0
        self.ended = asyncio.Event()
        self.on_head: Callable[[ResponseHead], None] = lambda _head: None
        self.on_data: Callable[[bytes], None] = lambda _data: None
        self.on_end: Callable[[], None] = lambda: None

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    def upstream_head(self, head: ResponseHead) -> None:
        self.heads.append(head)
        self.on_head(head)

    def upstream_flush(self) -> None:
        self.flushed += 1

    def upstream_data(self, data: bytes) -> None:
        self._body += data
        self.on_data(data)

    def upstream_done(self, trailers: Fields) -> None:
        self.trailers = trailers
        self.on_end()
        self.ended.set()

    def upstream_eof(self) -> None:
        self.eof = True

    def upstream_failed(self, error: UpstreamFailed) -> None:
        self.error = error
        self.ended.set()

    def upstream_writable(self, writable: bool) -> None:
        self.blocked.append(not writable)

    async def wait(self) -> Recorder:
        await asyncio.wait_for(self.ended.wait(), PATIENCE)
        return self


def pool_of(url: str, *, timeout: float = 5.0, **server: Any) -> Pool:
    return Pool(Server(url, **server), timeout)


def send(connection: UpstreamConnection, request: bytes = REQUEST) -> Recorder:
    recorder = Recorder()
    connection.begin(recorder, request.split(b" ", 1)[0], request, complete=True)
    return recorder


async def ask(pool: Pool) -> Recorder:
    """One GET, as an exchange sends it: on an idle connection if there is one."""
    return await send(pool.take() or await pool.connect()).wait()
