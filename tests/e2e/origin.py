"""An upstream whose every byte the tests decide: HTTP/1.1 on a bare socket, in a thread with a loop of its own.

Frameworks are too well-behaved for what is tested here: answers that stop in the middle, informational answers, bodies
whose parts are released one by one by the test, and a count of what really left the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

MIB = 1024 * 1024
PATTERN = random.Random(20260101).randbytes(MIB)  # incompressible, so that nothing on the way can cheat
T = TypeVar("T")


@dataclass(slots=True)
class Asked:
    """A request as it arrived, byte for byte where it matters."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body_read: bool = field(default=False)

    def field(self, name: str) -> str:
        """The first field of that name, lower case; empty when absent."""
        return next((value for key, value in self.fields if key.lower() == name), "")

    async def body(self) -> AsyncIterator[bytes]:
        """The body's bytes, whether counted or chunked."""
        self.body_read = True
        if "chunked" in self.field("transfer-encoding").lower():
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                async for piece in self._exactly(size):
                    yield piece
                await self.reader.readexactly(2)
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers
        else:
            async for piece in self._exactly(int(self.field("content-length") or 0)):
                yield piece

    async def _exactly(self, left: int) -> AsyncIterator[bytes]:
        while left:
            piece = await self.reader.read(min(left, MIB))
            if not piece:
                raise ConnectionResetError("the body ended early")
            left -= len(piece)
            yield piece


Handler = Callable[[Asked], Awaitable[None]]


class Origin:
    """Serve while the block runs. `url` for HTTP, `ws_url` for WebSockets."""

    def __init__(self) -> None:
        self.sent = 0  # body bytes of /bytes that left our buffers
        self.cut = threading.Event()  # a client went away in the middle of an answer
        self.closes: list[tuple[int | None, str]] = []  # close codes and reasons that WebSockets ended with
        self.sockets: list[ServerConnection] = []
        self._loop = asyncio.new_event_loop()
        self._events: asyncio.Queue[str | None] = asyncio.Queue()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="origin", daemon=True)
        self._started = threading.Event()
        self._port = self._ws_port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def ws_url(self) -> str:
        return f"http://127.0.0.1:{self._ws_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the origin did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def emit(self, event: str | None) -> None:
        """Release one server-sent event; None ends the stream."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the origin's loop and wait for what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        http = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2 * MIB)
        ws: Server = await serve(self._websocket, "127.0.0.1", 0, max_size=32 * MIB)
        self._port = http.sockets[0].getsockname()[1]
        self._ws_port = next(iter(ws.sockets)).getsockname()[1]
        self._started.set()
        await self._over.wait()
        http.close()
        ws.close()
        await ws.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while asked := await _read_head(reader, writer):
                name = asked.target.partition("?")[0].strip("/").partition("/")[0]
                handler: Handler = getattr(self, f"_on_{name}", self._on_seen)
                await handler(asked)
                if writer.is_closing():
                    return
        writer.close()

    async def _on_seen(self, asked: Asked) -> None:
        """What arrived, as JSON."""
        body = b"".join([piece async for piece in asked.body()])
        seen = {"method": asked.method, "target": asked.target, "fields": asked.fields, "body": len(body)}
        await _answer(asked, json.dumps(seen).encode(), "application/json")

    async def _on_bytes(self, asked: Asked) -> None:
        """/bytes/N: N bytes of the pattern over and over; HEAD gets the same head."""
        left = int(asked.target.rpartition("/")[2])
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
        if asked.method == "HEAD":
            return await asked.writer.drain()
        asked.writer.transport.set_write_buffer_limits(high=MIB // 4)
        try:
            while left:
                piece = PATTERN[:left] if left < MIB else PATTERN
                asked.writer.write(piece)
                await asked.writer.drain()
                left -= len(piece)
                self.sent += len(piece)
        except ConnectionError:
            self.cut.set()
            raise
        return None

    async def _on_sink(self, asked: Asked) -> None:
        """Swallow the body; answer how long it was and its CRC."""
        length = crc = 0
        async for piece in asked.body():
            length += len(piece)
            crc = zlib.crc32(piece, crc)
        got = {"length": length, "crc": crc, "encoding": asked.field("transfer-encoding")}
        await _answer(asked, json.dumps(got).encode(), "application/json")

    async def _on_stall(self, asked: Asked) -> None:
        """Read nothing of the body until the test says so."""
        asked.reader._limit = 1  # type: ignore[attr-defined]  # the transport pauses as soon as the buffer holds two bytes
        await self._events.get()
        asked.reader._limit = 2 * MIB  # type: ignore[attr-defined]
        await self._on_sink(asked)

    async def _on_events(self, asked: Asked) -> None:
        """Server-sent events, each written when the test releases it."""
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (event := await self._events.get()) is not None:
            data = f"data: {event}\n\n".encode()
            asked.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await asked.writer.drain()
        asked.writer.write(b"0\r\n\r\n")
        await asked.writer.drain()

    async def _on_cut(self, asked: Asked) -> None:
        """/cut/<framing>/<how>: half of an answer, then the connection is reset or closed."""
        _, framing, how = asked.target.strip("/").split("/")
        half = PATTERN[: 64 * 1024]
        heads = {
            "length": b"Content-Length: %d\r\n\r\n%s" % (2 * len(half), half),
            "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(half), half),
            "chunk": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (2 * len(half), half),
            "until-close": b"Connection: close\r\n\r\n" + half,
        }
        asked.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n" + heads[framing])
        await asked.writer.drain()
        await self._events.get()  # the test has seen the first half
        if how == "reset":
            _abort(asked.writer)
        else:
            asked.writer.close()

    async def _on_status(self, asked: Asked) -> None:
        """/status/N: that status without a body, with the fields that describe one."""
        status = int(asked.target.rpartition("/")[2])
        length = b"" if status == 204 else b"Content-Length: 1234\r\n"
        asked.writer.write(b'HTTP/1.1 %d Whatever\r\nETag: "v1"\r\n%s\r\n' % (status, length))
        await asked.writer.drain()

    async def _on_hints(self, asked: Asked) -> None:
        """103 Early Hints, and only when the test has seen them the answer (RFC 8297)."""
        asked.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload; as=style\r\n\r\n")
        await asked.writer.drain()
        await self._events.get()
        await _answer(asked, b"final", "text/plain")

    async def _on_expect(self, asked: Asked) -> None:
        """Ask for the body with 100 Continue and swallow it."""
        if asked.field("expect").lower() == "100-continue":
            asked.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self._on_sink(asked)

    async def _on_refuse(self, asked: Asked) -> None:
        """Refuse the body on the head's strength alone."""
        asked.writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await asked.writer.drain()
        asked.writer.close()

    async def _websocket(self, connection: ServerConnection) -> None:
        """Echo; a text `close:<code>` makes this side close with it."""
        self.sockets.append(connection)
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                if isinstance(message, str) and message.startswith("close:"):
                    await connection.close(int(message.removeprefix("close:")), "as asked")
                else:
                    await connection.send(message)
        self.closes.append((connection.close_code, connection.close_reason or ""))


async def _read_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Asked(method, target, fields, reader, writer)


async def _answer(asked: Asked, body: bytes, kind: str) -> None:
    asked.writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind.encode(), len(body), body)
    )
    await asked.writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Reset rather than close: SO_LINGER of zero makes the kernel send RST."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
