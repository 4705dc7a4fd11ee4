"""Many visitors with open connections, in one process: `python -m bench.crowd PORT PATH [HEADER: VALUE]...`

Takes commands on stdin, one a line, and answers each with a line of JSON:

    open N        N more connections: how many answers began with which line
    watch SECONDS listen to event streams: how many events came, and how late (milliseconds)
    echo N        a message to and fro over N of the connections, which must be tunnels: how many came back

The end of stdin closes them all.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, Final, cast

import uvloop

from bench.figures import percentile

AT_ONCE: Final = 64  # connections being opened at the same moment: no listen queue overflows
ANSWER_SECONDS: Final = 20.0
_EVENT: Final = re.compile(rb"data: (\d+)\n")
_MESSAGE: Final = b"\x81\x85\x00\x00\x00\x00hello"  # one text frame, masked with zeros (RFC 6455 5.2)


class Visitor(asyncio.Protocol):
    """One open connection. `begun` is its answer's status line."""

    def __init__(self, crowd: Crowd) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[bytes] = loop.create_future()
        self.echoed: asyncio.Future[bool] | None = None
        self.transport: asyncio.Transport
        self._crowd = crowd
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self.transport.write(self._crowd.request)

    def data_received(self, data: bytes) -> None:
        if not self.begun.done():
            self._head += data
            if b"\r\n\r\n" in self._head:
                self.begun.set_result(self._head.partition(b"\r\n")[0])
                self._head = b""
        elif self.echoed is not None:
            self._head += data
            if len(self._head) >= len(_MESSAGE) and not self.echoed.done():
                self.echoed.set_result(self._head == _MESSAGE)
        elif self._crowd.watching:
            now = time.monotonic_ns()
            self._crowd.lags.extend((now - int(sent)) / 1e6 for sent in _EVENT.findall(data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self._crowd.lost += 1
        for future in (self.begun, self.echoed):
            if future is not None and not future.done():
                future.set_exception(ConnectionError("closed"))


class Crowd:
    """All of them."""

    def __init__(self, port: int, path: str, headers: list[str]) -> None:
        self.request = "\r\n".join((f"GET {path} HTTP/1.1", *headers, "", "")).encode()
        self.watching = False
        self.lags: list[float] = []
        self.lost = 0
        self._port = port
        self._visitors: list[Visitor] = []

    async def open(self, count: int) -> dict[str, Any]:
        """Open `count` connections; says how many answered with which status line."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def enter() -> bytes:
            async with gate:
                try:
                    loop = asyncio.get_running_loop()
                    _, visitor = await loop.create_connection(lambda: Visitor(self), "127.0.0.1", self._port)
                    self._visitors.append(visitor)
                    return await asyncio.wait_for(visitor.begun, ANSWER_SECONDS)
                except (OSError, TimeoutError) as error:
                    return f"no answer: {error!r}".encode()

        begun = [line.decode() for line in await asyncio.gather(*(enter() for _ in range(count)))]
        return {line: begun.count(line) for line in sorted(set(begun))}

    async def watch(self, seconds: int) -> dict[str, Any]:
        """Listen to events for `seconds`."""
        self.lags.clear()
        self.watching = True
        await asyncio.sleep(seconds)
        self.watching = False
        lags = sorted(self.lags)
        known = {f"p{share:g}".replace(".", ""): percentile(lags, share / 100) for share in (50, 99, 99.9, 100)}
        return {"events": len(lags), "lost": self.lost, **known}

    async def echo(self, count: int) -> dict[str, Any]:
        """Send a message over each of the first `count` connections and await the same one."""
        some = self._visitors[:count]
        for visitor in some:
            visitor.echoed = asyncio.get_running_loop().create_future()
            visitor.transport.write(_MESSAGE)
        echoes = await asyncio.gather(
            *(asyncio.wait_for(visitor.echoed, ANSWER_SECONDS) for visitor in some if visitor.echoed is not None)
        )
        return {"echoed": sum(echoes), "lost": self.lost}


async def _obey(crowd: Crowd) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command, argument = line.split()
        answer = await {"open": crowd.open, "watch": crowd.watch, "echo": crowd.echo}[command](int(argument))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_obey(Crowd(int(sys.argv[1]), sys.argv[2], sys.argv[3:])))
