"""The command as a process, an upstream in this one, and requests by the dozen: what a life cycle is tried with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.processes import free_port
from tests.relay_world import Client, Upstream

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
NOTHING: Mapping[str, str] = {}
GET = b"GET /x HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
BASE = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret-of-the-app"
"""
ROUTE = """
[[route]]
name = "{name}"
upstream = "{upstream}"
allow = "everyone"
"""


@asynccontextmanager
async def serving(upstream: Upstream) -> AsyncIterator[Upstream]:
    """Have `upstream` serve as long as the block runs."""
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


@dataclass(slots=True)
class Life:
    """A running gateway. `file` is its settings file; what it writes to standard error is in `said`."""

    process: subprocess.Popen[bytes]
    port: int
    file: Path
    upstream: Upstream
    log: Path
    clients: list[Client] = field(default_factory=list)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8")

    def events(self) -> list[str]:
        """The log so far, one sentence for each line."""
        return [json.loads(line)["event"] if line.startswith("{") else line for line in self.said.splitlines()]

    async def until(self, true: Callable[[], Any], what: str = "") -> None:
        """Wait until something has become true; AssertionError with the log when it does not, or the process ends."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"it never came true: {what}\n{self.said}"
            await asyncio.sleep(0.01)

    async def until_said(self, text: str, times: int = 1) -> None:
        await self.until(lambda: sum(text in event for event in self.events()) >= times, text)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process: its exit status."""
        await self.until(lambda: self.process.poll() is not None, "the end")
        return int(self.process.returncode)

    async def connect(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]

    async def ask(self, raw: bytes = GET) -> tuple[int, bytes, bytes]:
        client = await self.connect()
        try:
            return await client.ask(raw)
        finally:
            client.close()

    async def reload(self, *routes: str, more: str = "") -> None:
        """Write other settings and have them read."""
        self.write(*routes, more=more)
        self.signal(signal.SIGHUP)

    def write(self, *routes: str, more: str = "") -> None:
        self.file.write_text(BASE + more + "".join(routes), "utf-8")

    def route(self, name: str = "app", upstream: str = "") -> str:
        return ROUTE.format(name=name, upstream=upstream or self.upstream.url)

    def workers(self) -> list[int]:
        """The ids of its child processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


@asynccontextmanager
async def life(
    folder: Path, environ: Mapping[str, str] = NOTHING, *arguments: str, wait: bool = True
) -> AsyncIterator[Life]:
    """Run `postern serve` with one route, to an upstream that says hello, and `environ` for other settings."""
    upstream = Upstream()
    await upstream.start()
    port, file, log = free_port(), folder / "postern.toml", folder / "stderr"
    file.write_text(BASE + ROUTE.format(name="app", upstream=upstream.url), "utf-8")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "proxy",
                "serve",
                "--config",
                str(file),
                "--listen",
                f"127.0.0.1:{port}",
                *arguments,
            ],
            env={**_bare(), "POSTERN_LOG__FORMAT": "json", "POSTERN_LOG__ACCESS": "off", **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=folder,
        )
    running = Life(process, port, file, upstream, log)
    try:
        if wait:
            await running.until_said("listening on")
        yield running
    finally:
        for client in running.clients:
            client.abort()
        await _end(running)
        await upstream.stop()


async def _end(running: Life) -> None:
    """In order if that is possible, for the sake of whoever measures coverage; surely in any case."""
    if running.process.poll() is not None:
        return
    children = running.workers()
    running.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(running.process.wait, 5)
    for pid in (running.process.pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.process.wait()


def _bare() -> dict[str, str]:
    """Nothing of whoever runs the tests, but what measures them."""
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COVERAGE_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def peers(pid: int, port: int) -> list[int]:
    """The other ends' ports of the established connections to `port` that a process holds (proc(5))."""
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(str(fd.readlink()))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        int(row[2].split(":")[1], 16)
        for row in rows
        if int(row[1].split(":")[1], 16) == port and row[3] == "01" and f"socket:[{row[9]}]" in held
    ]


async def metrics(port: int) -> dict[tuple[str, ...], float]:
    """Series -> value: its name, then its labels' values in the order of their names."""
    async with httpx2.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Load:
    """Clients that ask again and again on connections that they keep, and what became of their requests.

    `lost` are requests that were sent and not answered completely. A client that finds its connection closed before it has
    sent anything opens another one, and so it does after an answer that said so.
    """

    def __init__(self, running: Life, clients: int) -> None:
        self._port = running.port
        self._clients = clients
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.answered = 0
        self.connections = 0
        self.refused = 0
        self.lost: list[str] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def more(self, requests: int) -> None:
        """Wait for so many more answers."""
        goal, deadline = self.answered + requests, time.monotonic() + PATIENCE
        while self.answered < goal:
            assert time.monotonic() < deadline, (self.answered, self.lost)
            await asyncio.sleep(0.01)

    async def _client(self) -> None:
        while not self._stop:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            self.connections += 1
            await self._requests(reader, writer)
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._stop and not reader.at_eof():
            writer.write(GET)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(5)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                self.lost.append(repr(error))
                return
            self.answered += 1
            if b"connection: close" in head.lower():
                return
            # Whatever the server has sent meanwhile, the end of the connection too, is seen before the next request.
            await asyncio.sleep(0)
