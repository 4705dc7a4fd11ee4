"""A gateway and a scripted upstream in one event loop, spoken to in raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from proxy import cookies
from proxy.accesslog import AccessLog
from proxy.claims import Grant, Identity, Tokens
from proxy.serve import Gateway, Server, build, make_server
from proxy.session import SessionStore
from proxy.settings import Settings, load
from tests.loops import run as run  # noqa: PLC0414 -- found where worlds are: every test runs in one

T = TypeVar("T")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENCE = 30.0  # seconds; no test waits that long unless it fails


class Upstream:
    """A server that does what a script says; the heads and bodies that its scripts read are kept in `heads`, `bodies`.

    A script gets each connection; when it returns, the connection is closed. `open` counts those that are not closed yet.
    """

    def __init__(self) -> None:
        self.script: Script = self.hello
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.trailers: list[bytes] = []
        self.connections = 0
        self.open = 0
        self._answer = b"", False
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(reader, writer)
        finally:
            self.open -= 1
            writer.close()

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request's head; IncompleteReadError when the gateway closes instead."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def body(self, reader: asyncio.StreamReader, head: bytes) -> bytes:
        """Read the body that `head` announces."""
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while True:
                size = int((await reader.readline()).split(b";")[0], 16)
                if size == 0:
                    while (line := await reader.readline()) not in (b"\r\n", b""):
                        self.trailers.append(line)
                    break
                body += (await reader.readexactly(size + 2))[:-2]
        else:
            length = next((line for line in lower.split(b"\r\n") if line.startswith(b"content-length:")), b":0")
            body = await reader.readexactly(int(length.partition(b":")[2]))
        self.bodies.append(body)
        return body

    async def hello(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every request with `hello`."""
        while True:
            head = await self.head(reader)
            await self.body(reader, head)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello")

    def answering(self, answer: bytes, *, then_close: bool = False) -> None:
        """Script: answer every request from now on with these bytes, on open connections too."""
        self._answer = answer, then_close

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = await self.head(reader)
                await self.body(reader, head)
                answer, then_close = self._answer
                writer.write(answer)
                await writer.drain()
                if then_close:
                    return

        self.script = script


class Client:
    """A raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        """Read the head of a response."""
        return await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)

    async def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)

    async def response(self, *, head_only: bool = False) -> tuple[int, bytes, bytes]:
        """Read one response: status, head, body (chunked coding taken off)."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        status = int(head.split(b" ", 2)[1])
        if head_only or status in (101, 204, 304) or status < 200:
            return status, head, b""
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while True:
                size = int(await asyncio.wait_for(self.reader.readline(), PATIENCE), 16)
                piece = await asyncio.wait_for(self.reader.readexactly(size + 2), PATIENCE)
                if size == 0:
                    return status, head, body
                body += piece[:-2]
        for line in lower.split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
                return status, head, await asyncio.wait_for(self.reader.readexactly(length), PATIENCE)
        return status, head, await self.rest()

    async def rest(self) -> bytes:
        """Everything until the gateway closes; ConnectionError when it resets."""
        return await asyncio.wait_for(self.reader.read(-1), PATIENCE)

    async def ask(self, raw: bytes) -> tuple[int, bytes, bytes]:
        self.send(raw)
        return await self.response(head_only=raw.startswith(b"HEAD "))

    async def ends(self) -> str:
        """How the connection ends: "closed" cleanly or "reset". AssertionError when anything comes before that."""
        try:
            rest = await self.rest()
        except ConnectionResetError:
            return "reset"
        assert rest == b""
        return "closed"

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


class World:
    """See the module."""

    def __init__(self, gateway: Gateway, upstream: Upstream, server: Server, listener: socket.socket) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.server = server
        self._family, self._address = listener.family, listener.getsockname()
        self.port: int = self._address[1] if isinstance(self._address, tuple) else 0
        self._clients: list[Client] = []
        self._log = io.StringIO()
        self.gateway.relay.log = AccessLog(self._log, "json")

    async def connect(self, *, receive_buffer: int = 0, tls: ssl.SSLContext | None = None) -> Client:
        """A new connection; with `receive_buffer`, one whose kernel takes about so many bytes that nobody has read."""
        sock = socket.socket(self._family)
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, self._address)
        name = "localhost" if tls is not None else None
        streams = await asyncio.open_connection(
            sock=sock, limit=receive_buffer or 1 << 22, ssl=tls, server_hostname=name
        )
        client = Client(*streams)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.abort()

    def later(self, seconds: float) -> None:
        """Let the gateway believe that so much time has passed, and do what is then due."""
        self.gateway.relay.sweep(asyncio.get_running_loop().time() + seconds, time.time() + seconds)

    def much_later(self, seconds: float) -> None:
        """Let so much time pass by the calendar, and none by any clock that deadlines are measured with."""
        for _ in range(5):
            self.gateway.relay.sweep(asyncio.get_running_loop().time(), time.time() + seconds)

    def lines(self) -> list[dict[str, Any]]:
        """The access log so far."""
        self.gateway.relay.log.flush()
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    async def ask(self, raw: bytes) -> tuple[int, bytes, bytes]:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(raw)
        finally:
            client.close()

    async def sign_in(self, **identity: Any) -> bytes:
        """A session, as the value of a Cookie field."""
        person = Identity(**{"sub": "user00000001", **identity})
        tokens = Tokens(id_token="id.token.x", access_token="opaque", access_expires_at=time.time() + 3600)
        grant = Grant(identity=person, tokens=tokens, sid=None, signed_in_at=time.time())
        _, value = await self.gateway.store.create(grant, browser="test", address="127.0.0.1")
        return f"{cookies.session_name(self.gateway.settings)}={value}".encode()

    async def end_sessions(self) -> None:
        """End every session there is."""
        for session_id in list(self.gateway.store._sessions):  # type: ignore[attr-defined]
            await self.gateway.store.end(session_id)

    async def ages_until(self, true: Callable[[], bool], step: float = 100) -> None:
        """Wait until something has become true, while time flies for the gateway."""
        passed = 0.0

        def look() -> bool:
            nonlocal passed
            passed += step
            self.later(passed)
            return true()

        await self.until(look)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something has become true."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0.005)


def settings_for(upstream: str, **environ: str) -> Settings:
    return load(
        Path(os.devnull),
        {
            "POSTERN_PUBLIC_URL": "http://localhost:3000",
            "POSTERN_ROUTE__0__NAME": "app",
            "POSTERN_ROUTE__0__UPSTREAM": upstream,
            "POSTERN_ROUTE__0__ALLOW": "everyone",
            "LOGTO_ENDPOINT": "http://127.0.0.1:9",
            "LOGTO_APP_ID": "app",
            "LOGTO_APP_SECRET": "secret",
            **environ,
        },
    )


def _listener(at: Path | None) -> socket.socket:
    if at is None:
        return socket.create_server(("127.0.0.1", 0))
    return socket.create_server(str(at), family=socket.AF_UNIX)


@contextlib.asynccontextmanager
async def relay_world(
    toml: str = "", at: Path | None = None, store: SessionStore | None = None, /, **environ: str
) -> AsyncIterator[World]:
    """A gateway whose one route, open to everyone, leads to the scripted upstream; `toml` or `environ` change that.

    It listens on a free port of the loopback interface, or at the unix socket `at`, and keeps sessions in `store`.
    """
    upstream = Upstream()
    await upstream.start()
    if toml:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "postern.toml"
            path.write_text(toml.replace("UPSTREAM", upstream.url))
            settings = load(path, environ)
    else:
        settings = settings_for(upstream.url, **environ)
    with mock.patch("proxy.serve.open_store", return_value=store) if store is not None else contextlib.nullcontext():
        gateway = build(settings)
    gateway.log._stream = None
    await gateway.store.start()
    listener = _listener(at)
    server = make_server(gateway)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.001)
    world = World(gateway, upstream, server, listener)
    try:
        yield world
    finally:
        world.close()
        server.force_exit = True
        server.should_exit = True
        await task
        await gateway.close()
        await upstream.stop()
