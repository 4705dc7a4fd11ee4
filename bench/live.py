"""The app behind that keeps connections open: event streams, and WebSockets that echo. `python -m bench.live PORT`

    GET /live/events   one event per second, each with the moment it was sent (CLOCK_MONOTONIC, nanoseconds)
    GET /live/socket   101, then every byte comes back

Each stream begins its seconds when it is opened, so that events are spread over time as those of independent visitors are.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
import time
from typing import Final, cast

import uvloop

_EVENTS: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_SWITCH: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)
_NONE: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Live(asyncio.Protocol):
    """One connection: a request head, then whatever it asked for."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._head = b""
        self._echo = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        if self._echo:
            self._transport.write(data)
            return
        self._head += data
        if b"\r\n\r\n" not in self._head or self._timer is not None:
            return
        path = self._head.split(b" ", 2)[1]
        if path == b"/live/events":
            self._transport.write(_EVENTS)
            self._send_event()
        elif path == b"/live/socket":
            self._echo = True
            self._transport.write(_SWITCH % _accept(self._head))
        else:
            self._head = b""
            self._transport.write(_NONE)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        if self._timer is not None:
            self._timer.cancel()

    def _send_event(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(1.0, self._send_event)
        event = b"data: %d\n\n" % time.monotonic_ns()
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))


def _accept(head: bytes) -> bytes:
    key = next(
        (line[18:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")), b""
    )
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Live, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
