"""An app that closes its keep-alive connections whenever it likes, and a gateway that must not let anybody notice.

Sends requests (100,000 unless told otherwise), GETs and POSTs mixed, through a gateway to an app that closes idle connections at
random: at once after an answer, a moment later, or just as the next request comes in. Counts what is lost, what is answered
wrongly, and which POST the app got twice. Exit status 1 when there is any.

    python bench/soak_keepalive.py [--requests N] [--connections N] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parent.parent
RESET = struct.pack("ii", 1, 0)
CLOSES = ("at once", "in a moment", "as the next request comes")


class App:
    """Answers each request with its id. The first request on a connection is always answered: only idle ones are closed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.posts: Counter[str] = Counter()
        self.gets: Counter[str] = Counter()
        self.connections = 0
        self.closed: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                if not await self._answer(reader, writer):
                    return
                if self._random.random() < 0.2:
                    await self._close(reader, writer)
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = head.split(" ", 2)[1]
        if target == "/totals":
            body = json.dumps([self.connections, dict(self.closed), len(self.gets), dict(self.posts)]).encode()
        else:
            number = target.removeprefix("/")
            if head.startswith("POST"):
                await reader.readexactly(4)
                self.posts[number] += 1
            else:
                self.gets[number] += 1
            body = number.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        return True

    async def _close(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        how = self._random.choice(CLOSES)
        self.closed[how] += 1
        await writer.drain()
        if how == "in a moment":
            await asyncio.sleep(self._random.random() / 100)
        elif how == "as the next request comes":
            await reader.read(1)
            # Not earlier: a reset may overtake the answer, and that would be an app that loses answers.
            if self._random.random() < 0.5:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()


async def run_app(port: int, seed: int) -> None:
    server = await asyncio.start_server(App(seed).serve, "127.0.0.1", port)
    await server.serve_forever()


class Load:
    """Clients that keep their connections to the gateway and ask one thing after the other."""

    def __init__(self, port: int, requests: int, seed: int) -> None:
        self._port = port
        self._numbers = iter(range(requests))
        self._random = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.post_numbers: set[str] = set()

    async def client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        for number in self._numbers:
            method = "POST" if self._random.random() < 0.3 else "GET"
            self.asked[method] += 1
            if method == "POST":
                self.post_numbers.add(str(number))
            length = "Content-Length: 4\r\n" if method == "POST" else ""
            body = "data" if method == "POST" else ""
            writer.write(f"{method} /{number} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}".encode())
            try:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
                answer = await reader.readexactly(
                    int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                )
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                self.wrong[f"{method}: {type(error).__name__}"] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                continue
            if not head.startswith(b"HTTP/1.1 200 ") or answer != str(number).encode():
                self.wrong[f"{method}: {head.split(b' ', 2)[1].decode()}"] += 1
            if self._random.random() < 0.05:
                await asyncio.sleep(self._random.random() / 50)  # lets connections be idle for a moment
        writer.close()


async def totals(port: int) -> tuple[int, dict[str, int], int, dict[str, int]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /totals HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    writer.close()
    connections, closed, gets, posts = json.loads(body)
    return connections, closed, gets, posts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def listening(port: int) -> None:
    for _ in itertools.repeat(None, 200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise SystemExit("nobody listens")


async def soak(gateway: int, app: int, arguments: argparse.Namespace) -> bool:
    await listening(gateway)
    await listening(app)
    load = Load(gateway, arguments.requests, arguments.seed)
    start = time.monotonic()
    await asyncio.gather(*(load.client() for _ in range(arguments.connections)))
    seconds = time.monotonic() - start
    connections, closed, gets, posts = await totals(app)
    doubled = {number: count for number, count in posts.items() if count > 1}
    missing = load.post_numbers - posts.keys()
    print(f"{arguments.requests} requests in {seconds:.1f} s: {load.asked['GET']} GET, {load.asked['POST']} POST")
    print(f"the app had {connections} connections and closed {sum(closed.values())} of them: {closed}")
    print(f"{gets} different GETs and {len(posts)} different POSTs arrived")
    print(f"lost or wrong: {dict(load.wrong) or 'none'}; POSTs doubled: {len(doubled)}; POSTs missing: {len(missing)}")
    return not (load.wrong or doubled or missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--app", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.app:
        uvloop.run(run_app(arguments.app, arguments.seed))
        return
    gateway, app = free_port(), free_port()
    with tempfile.TemporaryFile() as log:
        processes = [
            subprocess.Popen([sys.executable, __file__, "--app", str(app), "--seed", str(arguments.seed)]),
            subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--listen", f"127.0.0.1:{gateway}"],
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=ROOT,
                env={
                    **os.environ,
                    "POSTERN_CONFIG": os.devnull,
                    "POSTERN_PUBLIC_URL": "http://localhost:3000",
                    "POSTERN_ROUTE__0__NAME": "app",
                    "POSTERN_ROUTE__0__UPSTREAM": f"http://127.0.0.1:{app}",
                    "POSTERN_ROUTE__0__ALLOW": "everyone",
                    "LOGTO_ENDPOINT": "http://127.0.0.1:9",
                    "LOGTO_APP_ID": "app",
                    "LOGTO_APP_SECRET": "secret",
                },
            ),
        ]
        try:
            well = uvloop.run(soak(gateway, app, arguments))
        finally:
            processes[0].kill()
            processes[1].terminate()
            for process in processes:
                process.wait(10)
            log.seek(0)
            print(log.read().decode()[-2000:], file=sys.stderr)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
