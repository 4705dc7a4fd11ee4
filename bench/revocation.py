"""How long an ended session still passes: `python -m bench.revocation [--tries 200] [--workers 4]`.

As many gateways as workers, each a process of its own with a port of its own so that each can be asked, on one Redis. Each try
signs somebody in, has every worker know the session and serve it without a question, ends it from outside as
`postern sessions revoke` does, and asks every worker over and over until the last of them refuses. What is printed is the time
from the call that ends the session to that last refusal. Exit status 1 when the worst is beyond the goal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from bench.figures import percentile
from bench.processes import Fleet, Trouble, environment, fleet, free_port
from proxy.claims import Grant, Identity, Tokens
from proxy.sealing import KeyRing
from proxy.session import SessionStore, cookie_name, open_store
from proxy.settings import Settings, load

GOAL_MS: Final = 50.0
_PAUSE: Final = 0.0005  # seconds between two questions to one worker: what a try cannot tell apart
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: %b\r\n\r\n"
_APP: Final = """
import asyncio, sys
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


class Worker:
    """One connection to one gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def passes(self, cookie: bytes) -> bool:
        """Whether a request with `cookie` reaches the app."""
        self.writer.write(_REQUEST % cookie)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        await self._reader.readexactly(length)
        status = head[9:12]
        if status not in (b"200", b"401"):
            raise Trouble(f"neither served nor refused: {head.decode('latin-1').splitlines()[0]}")
        return status == b"200"

    async def refuses(self, cookie: bytes) -> float:
        """Ask until it refuses; the moment at which the first refusal was asked for."""
        while True:
            asked_at = time.perf_counter()
            if not await self.passes(cookie):
                return asked_at
            await asyncio.sleep(_PAUSE)


async def measure(ports: Sequence[int], settings: Settings, tries: int) -> list[float]:
    """Milliseconds from the end of a session to the last worker's refusal, for each try."""
    async with _store(settings) as store:
        streams = [await asyncio.open_connection("127.0.0.1", port) for port in ports]
        workers = [Worker(reader, writer) for reader, writer in streams]
        found = []
        for number in range(tries):
            grant = Grant(Identity(sub=f"user{number}"), Tokens("i.d.t", "access", 9e9, "refresh"), None, time.time())
            session, value = await store.create(grant, browser="bench", address="127.0.0.1")
            cookie = f"{cookie_name(settings)}={value}".encode()
            for worker in workers:
                for _ in range(3):
                    if not await worker.passes(cookie):
                        raise Trouble("a living session was refused")
            began = time.perf_counter()
            ending = asyncio.create_task(store.end(session.id, "revoked"))
            moments = await asyncio.gather(*(worker.refuses(cookie) for worker in workers))
            await ending
            found.append((max(moments) - began) * 1000)
        for worker in workers:
            worker.writer.close()
        return found


@contextlib.asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[SessionStore]:
    store = open_store(settings, KeyRing(settings.seal_secrets))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def _start(programs: Fleet, workers: int) -> tuple[list[int], Settings]:
    redis, app = free_port(), free_port()
    options = ["--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    everywhere = min(os.sched_getaffinity(0))
    programs.start("redis", ["redis-server", *options], everywhere).listening(redis)
    programs.start("app", [sys.executable, "-c", _APP, str(app)], everywhere).listening(app)
    environ = {
        "POSTERN_PUBLIC_URL": "http://localhost",
        "POSTERN_UPSTREAM": f"http://127.0.0.1:{app}",
        "POSTERN_LOG__ACCESS": "off",
        "LOGTO_ENDPOINT": "http://127.0.0.1:9",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "secret",
        "REDIS_URL": f"redis://127.0.0.1:{redis}/0",
    }
    command: list[str | Path] = [Path(sys.executable).with_name("postern"), "serve", "--config", os.devnull]
    cores = sorted(os.sched_getaffinity(0))
    ports = []
    for number in range(workers):
        port = free_port()
        core = cores[number % len(cores)]
        argv = [*command, "--listen", f"127.0.0.1:{port}"]
        programs.start(f"worker {number}", argv, core, environ).listening(port)
        ports.append(port)
    return ports, load(Path(os.devnull), environment(programs.directory) | environ)


def report(found: Sequence[float], workers: int) -> str:
    """What was found, as a line of a table with its head."""
    figures = " | ".join(f"{percentile(sorted(found), share):.1f}" for share in (0.5, 0.95, 0.99))
    return (
        "| workers | tries | median, ms | 95 %, ms | 99 %, ms | worst, ms |\n|--:|--:|--:|--:|--:|--:|\n"
        f"| {workers} | {len(found)} | {figures} | {max(found):.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="postern-bench-") as name, fleet(Path(name)) as programs:
            ports, settings = _start(programs, given.workers)
            found = asyncio.run(measure(ports, settings, given.tries))
    except (Trouble, subprocess.SubprocessError) as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    print(report(found, given.workers))
    return 0 if max(found) < GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
