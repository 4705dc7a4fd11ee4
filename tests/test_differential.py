"""No server behind ever sees a request that was not decided on: a corpus of odd requests, against servers that read differently.

What the gate judged is written down, and so is what each server made of the bytes it got. Whatever a server believes to
have been asked must be a request that was judged and passed, with the same method, target and host, once, in order, and
for nobody but the one whose session it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import uvicorn
from typing_extensions import override

from proxy.accesslog import AccessLog
from proxy.gate import Gate
from proxy.headers import FAMILIES, fold
from proxy.http1 import RequestHead
from proxy.request import Request
from proxy.verdict import Kind, Verdict
from tests.corpus.reading import FILES, Case, cases
from tests.e2e.processes import free_port
from tests.relay_world import World, relay_world, run

ROUTES = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "a"
app_secret = "s"
[identity]
families = ["forwarded", "remote", "auth-request"]
[[route]]
name = "open"
upstream = "APP"
allow = "everyone"
[[route]]
name = "admin"
path = "/admin"
upstream = "APP"
allow = [{ roles = ["admin"] }]
"""
IDENTITY = {fold(name.encode()).decode() for family in FAMILIES.values() for name in family.values()} | {
    "x-real-ip", "x-postern-assertion", "forwarded", "remote-user",
}  # fmt: skip
BODIES: dict[str, list[bytes]] = {}  # what the first server got for bodies
SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n"


@dataclass
class Seen:
    """A request as a server understood it. `paths`: everything it may take for the path."""

    method: str
    target: str
    host: str
    paths: tuple[str, ...]
    fields: list[tuple[str, str]]
    body: bytes
    refused: bool = False  # by the server itself, before it made sense of the fields

    @property
    def identity(self) -> dict[str, str]:
        """What this request says about who sends it, for the most careless reader of names."""
        found = {}
        for name, value in self.fields:
            folded = fold(name.encode("latin-1")).decode()
            if folded in IDENTITY or folded.startswith("x-forwarded-"):
                assert folded not in found, f"{folded} twice"
                found[folded] = value
        return found


def careless(path: str) -> tuple[str, ...]:
    """What servers make of a path before they look for a file or a route."""
    once = unquote(path.partition("?")[0], errors="surrogateescape")
    return once, posixpath.normpath(once), posixpath.normpath("/" + once.lstrip("/"))


class Server:
    """A server that writes down what it sees."""

    def __init__(self, url: str) -> None:
        self.url = url

    def seen(self) -> list[Seen]:
        """Everything since the last call."""
        raise NotImplementedError


# -- three servers that share no parser


class StandardLibrary(Server):
    """`http.server`: line by line, headers by the e-mail package."""

    def __init__(self, server: ThreadingHTTPServer, log: list[Seen]) -> None:
        super().__init__(f"http://127.0.0.1:{server.server_port}")
        self._log = log

    @override
    def seen(self) -> list[Seen]:
        found, self._log[:] = list(self._log), []
        return found


@contextmanager
def standard_library(_: Path) -> Iterator[Server]:
    log: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self.serve
            raise AttributeError(name)

        def serve(self) -> None:
            body = self._body()
            fields = [(name, str(value)) for name, value in self.headers.items()]
            seen = Seen(self.command, self.path, self.headers["Host"], careless(self.path), fields, body)
            log.append(seen)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                assert self.rfile.readline() == b"\r\n"
            while self.rfile.readline().strip():
                pass
            return body

        @override
        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield StandardLibrary(server, log)
        server.shutdown()
        thread.join()


@contextmanager
def h11(_: Path) -> Iterator[Server]:
    """uvicorn with h11: strict, event by event."""
    log: list[Seen] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] in ("http", "websocket")
        if scope["type"] == "websocket":
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        target = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        paths = (scope["path"], *careless(target))
        host = dict(fields)["host"]
        log.append(Seen(scope["method"], f"{target}?{query}" if query else target, host, paths, fields, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(
        app, port=0, http="h11", ws="none", log_config=None, access_log=False, lifespan="off", timeout_keep_alive=60,
        h11_max_incomplete_event_size=1 << 20, proxy_headers=False, loop="asyncio",
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    found = StandardLibrary.__new__(StandardLibrary)
    Server.__init__(found, f"http://127.0.0.1:{listener.getsockname()[1]}")
    found._log = log
    yield found
    server.should_exit = True
    server.force_exit = True
    thread.join()


class Nginx(Server):
    """nginx, which decodes, merges and resolves paths, and here takes names with underscores, too."""

    CONF = """
        {user} daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;
        events {{}}
        http {{
            log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","path":"$uri","host":"$http_host",'
                '"fields":{{{fields}}},"status":$status,"body":"$request_body"}}';
            access_log {folder}/seen.log seen;
            client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
            uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            underscores_in_headers on; ignore_invalid_headers off; large_client_header_buffers 8 64k;
            client_max_body_size 0; client_body_buffer_size 1m; client_body_in_single_buffer on; keepalive_requests 100000;
            server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://unix:{folder}/sink; }} }}
            server {{ listen unix:{folder}/sink; access_log off; return 200; }}
        }}
    """

    def __init__(self, url: str, log: Path) -> None:
        super().__init__(url)
        self._log = log
        self._read = 0

    @override
    def seen(self) -> list[Seen]:
        found = []
        for one in self._lines():
            seen = Seen(
                one["method"],
                one["target"],
                one["host"],
                paths=(one["path"], *careless(one["target"])),
                fields=[(name, value) for name, value in one["fields"].items() if value],
                body=one["body"].encode("latin-1"),
                refused=one["status"] == 400,
            )
            found.append(seen)
        return found

    def _lines(self) -> Iterator[dict[str, Any]]:
        """What the log says of everything until now. A line is written after its answer: one more request, answered by the same
        process in its turn, tells when all lines before it are there.
        """
        address = self.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as asking:
            asking.sendall(b"GET /until-here HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while asking.recv(4096):
                pass
        deadline = time.monotonic() + 20
        while b'"target":"/until-here"' not in (text := self._log.read_bytes()[self._read :]):
            assert time.monotonic() < deadline, text
            time.sleep(0.001)
        text = text[: text.rindex(b"\n") + 1]
        self._read += len(text)
        lines = (json.loads(line.decode("latin-1")) for line in text.splitlines())
        return (line for line in lines if line["target"] != "/until-here")


@contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    port = free_port()
    names = sorted(IDENTITY | {"x-forwarded-for", "x-forwarded-host", "x-request-id"})
    fields = ",".join(f'"{name}":"$http_{name.replace("-", "_")}"' for name in names)
    user = "user root root;" if os.getuid() == 0 else ""  # else nobody: who may not look into this folder
    (folder / "nginx.conf").write_text(Nginx.CONF.format(folder=folder, port=port, fields=fields, user=user))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    running = subprocess.Popen([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        _wait_for(port, running)
        yield Nginx(f"http://127.0.0.1:{port}", folder / "seen.log")
    finally:
        running.terminate()
        running.communicate(timeout=20)


def _wait_for(port: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert running.poll() is None, running.stderr and running.stderr.read()
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return


# -- the gateway, and what it decides


@dataclass
class Decided:
    """What has been decided and done since the last look."""

    passed: list[tuple[str, str, str, str | None]] = field(default_factory=list)  # method, target, host, user
    ended: list[str] = field(default_factory=list)  # what became of each request: "pass" or a status


class Recorder(AccessLog):
    """Writes down how requests end, in the place of the access log."""

    def __init__(self, decided: Decided) -> None:
        super().__init__(None, "json")
        self._decided = decided

    @override
    def write(self, request: Request, seconds: float, sent: int, *, cut: bool = False) -> None:
        passed = request.verdict is not None and request.verdict.kind is Kind.PASS and request.status != 204
        self._decided.ended.append("pass" if passed else str(request.status))

    @override
    def refused(self, peer: str, request_id: bytes, verdict: Verdict) -> None:
        self._decided.ended.append(str(verdict.status))


class Witness(Gate):
    """A gate that writes down what it lets pass."""

    decided: Decided

    @override
    def judge(self, head: RequestHead, host: str, client: Any) -> Verdict | None:
        verdict = super().judge(head, host, client)
        if verdict is not None and verdict.kind is Kind.PASS:
            session = verdict.session
            user = session.identity.sub if session is not None else None
            method, target = head.method.decode("latin-1"), head.target.decode("latin-1")
            self.decided.passed.append((method, target, host, user))
        return verdict


@asynccontextmanager
async def gateway(url: str) -> AsyncIterator[tuple[World, Decided]]:
    async with relay_world(ROUTES.replace("APP", url)) as world:
        decided = Decided()
        world.gateway.relay.log = Recorder(decided)
        gate = world.gateway.relay.plan.gate
        gate.__class__ = Witness
        gate.decided = decided  # type: ignore[attr-defined]
        yield world, decided


async def tell(world: World, decided: Decided, case: Case, cookie: bytes) -> list[str]:
    """Send a case and find out what becomes of its requests."""
    client = await world.connect()
    try:
        client.send(case.wire(cookie))
        expected = [outcome for outcome in case.outcomes if outcome != "wait"]
        deadline = time.monotonic() + 10
        while len(decided.ended) < len(expected) and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        if "wait" in case.outcomes:
            await world.until(lambda: any(it._held or it._request for it in world.gateway.relay.connections))
            return [*decided.ended, "wait"]
        # Whatever is left in the connection must be a place where a request can begin, or nothing at all.
        client.send(SENTINEL)
        await client.rest()
    except ConnectionError:
        pass
    finally:
        client.close()
        await world.until(lambda: not world.gateway.relay.connections)
    if decided.passed[-1:] and decided.passed[-1][1] == "/sentinel":
        decided.passed.pop()
        assert decided.ended.pop() == "pass"
    return decided.ended


def problems(case: Case, ended: list[str], decided: Decided, seen: list[Seen], user: str) -> Iterator[str]:
    """What is wrong between what was decided, what was seen, and what the corpus says."""
    if ended != list(case.outcomes):
        yield f"became {ended}, not {list(case.outcomes)}"
    judged = iter(decided.passed)
    for one in seen:
        # A request that was passed and then broke off may be seen or not; nothing else may be seen.
        verdict = next((it for it in judged if one.refused or _same(it, one)), None)
        if verdict is None:
            yield f"{one} was never decided on"
        elif not one.refused:
            yield from disagreements(one, verdict[2], verdict[3], user)
    if len(seen) < ended.count("pass") and all(target.isascii() for _, target, _, _ in decided.passed):
        yield f"only {seen} arrived"  # h11 refuses what is not ASCII, and is not obliged to do otherwise


def _same(judged: tuple[str, str, str, str | None], one: Seen) -> bool:
    method, target, host, _ = judged
    # A lone question mark is lost in what ASGI says of a target.
    return (method, target.removesuffix("?"), host) == (one.method, one.target.removesuffix("?"), one.host)


def disagreements(one: Seen, host: str, who: str | None, user: str) -> Iterator[str]:
    """Whatever a server may believe of a request beyond what was decided about it."""
    identity = one.identity
    if any("evil" in value or "6.6.6.6" in value for name, value in identity.items() if name != "x-forwarded-host"):
        yield f"believes {identity}"
    if identity.get("x-forwarded-user") != who or who not in (None, user):
        yield f"is {identity.get('x-forwarded-user')}, was judged as {who}"
    if identity.get("x-forwarded-host") != host or identity.get("x-forwarded-for") != "127.0.0.1":
        yield f"comes from {identity}"
    if any(path == "/admin" or path.startswith("/admin/") for path in one.paths):
        yield f"asks for {one.paths}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("start", [standard_library, h11, nginx])
def test_no_server_sees_what_was_not_decided(start: Any, file: Path, tmp_path: Path) -> None:
    async def talk(server: Server) -> list[str]:
        found = []
        async with gateway(server.url) as (world, decided):
            cookie = await world.sign_in(sub="ada1")
            for case in cases(file):
                ended = await tell(world, decided, case, cookie)
                seen = [one for one in server.seen() if one.target != "/sentinel"]
                found += [f"{case.name}: {problem}" for problem in problems(case, ended, decided, seen, "ada1")]
                bodies = [one.body for one in seen if not one.refused]
                if BODIES.setdefault(f"{file.stem}: {case.name}", bodies) != bodies and bodies:
                    found.append(f"{case.name}: other servers got other bodies than {bodies}")
                decided.passed.clear()
                decided.ended.clear()
        return found

    with start(tmp_path) as server:
        assert run(talk(server)) == []


SMUGGLED = b"GET /admin/evil HTTP/1.1\r\nHost: localhost:3000\r\nX-Forwarded-User: evil\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_server_that_does_not_read_bodies_does_not_take_them_for_requests(framing: str) -> None:
    """Whatever lies unread in a connection would be the next request on it, past the gate ("CL.0" desync)."""
    asked: list[tuple[str, str | None]] = []

    class Careless(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append((self.path, self.headers["X-Forwarded-User"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        @override
        def log_message(self, *_: Any) -> None:
            return

    async def talk(url: str) -> None:
        async with gateway(url) as (world, _):
            for number in range(20):
                if framing == "length":
                    start, body = b"Content-Length: %d" % len(SMUGGLED), SMUGGLED
                else:
                    start, body = b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
                raw = b"POST /%d HTTP/1.1\r\nHost: localhost:3000\r\n%b\r\n\r\n%b" % (number, start, body)
                assert (await world.ask(raw))[0] == 200
                assert (await world.ask(SENTINEL))[0] == 200

    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        run(talk(f"http://127.0.0.1:{server.server_port}"))
        server.shutdown()
        thread.join()
    assert [one for one in asked if one != ("/sentinel", None)] == [(f"/{number}", None) for number in range(20)]


def test_the_corpus_is_as_large_as_it_is_odd() -> None:
    everything = [case for file in FILES for case in cases(file)]
    assert len(everything) >= 250
    assert len({(case.name, case.text) for case in everything}) == len(everything)
