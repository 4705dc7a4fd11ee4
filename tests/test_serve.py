"""The parts joined: what one gateway holds, and that its parts answer to each other."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from proxy.serve import build, make_server, serve
from proxy.settings import load
from tests.certificates import Authority
from tests.relay_world import relay_world, run, settings_for

TOKENS = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[[route]]
name = "api"
path = "/api"
upstream = "UPSTREAM"
headers = { set = { X-Id-Token = "{id_token}" } }
[[route]]
name = "web"
upstream = "UPSTREAM"
allow = "everyone"
"""


def test_building_touches_nothing_outside() -> None:
    """Neither Redis nor Logto nor an upstream has to be there: all three point at closed ports."""
    gateway = build(settings_for("http://127.0.0.1:9", REDIS_URL="redis://127.0.0.1:9/0"))
    assert gateway.gate.routes.routes[0].name == "app"


def test_a_route_that_sets_a_token_gets_the_tokens_of_the_session() -> None:
    async def ask() -> None:
        async with relay_world(TOKENS) as world:
            cookie = await world.sign_in()
            status, _, body = await world.ask(
                b"GET /api/x HTTP/1.1\r\nHost: localhost:3000\r\nCookie: " + cookie + b"\r\n\r\n"
            )
            assert (status, body) == (200, b"hello")
            assert b"X-Id-Token: id.token.x\r\n" in world.upstream.heads[-1]

    run(ask())


def test_a_name_that_one_route_sets_is_stripped_on_all_of_them() -> None:
    async def ask() -> None:
        async with relay_world(TOKENS) as world:
            await world.ask(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nx_ID_token: forged\r\nX-Other: kept\r\n\r\n")
            assert b"forged" not in world.upstream.heads[-1]
            assert b"X-Other: kept" in world.upstream.heads[-1]

    run(ask())


def test_ending_a_session_closes_what_rests_on_it() -> None:
    async def ask() -> None:
        async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
            world.upstream.answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            cookie = await world.sign_in()
            client = await world.connect()
            client.send(b"GET /stream HTTP/1.1\r\nHost: localhost:3000\r\nCookie: " + cookie + b"\r\n\r\n")
            assert b"200 OK" in await client.reader.readuntil(b"hello\r\n")
            session_id = cookie.split(b".")[1].decode()
            assert await world.gateway.store.end(session_id)
            with pytest.raises(ConnectionError):
                await client.rest()

    run(ask())


def test_a_server_told_to_stop_is_not_ready_first() -> None:
    gateway = build(settings_for("http://127.0.0.1:9"))
    server = make_server(gateway)
    assert not gateway.app.state.health.draining
    server.stop()
    assert (gateway.app.state.health.draining, server.should_exit) == (True, True)


def test_it_listens_on_a_unix_socket(tmp_path: Path) -> None:
    async def ask() -> bytes:
        path = tmp_path / "postern.sock"
        listening = asyncio.Event()
        settings = settings_for("http://127.0.0.1:9", POSTERN_LISTEN=f"unix:{path}")
        task = asyncio.create_task(serve(settings, started=listening.set))
        await asyncio.wait_for(listening.wait(), 10)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /.postern/healthz HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer

    assert run(ask()).startswith(b"HTTP/1.1 200 OK")


def test_it_speaks_tls_and_tells_the_app_so(tmp_path: Path) -> None:
    async def ask() -> bytes:
        authority = Authority(tmp_path)
        cert, key = authority.issue("gateway", "localhost")
        settings = load(
            Path(os.devnull),
            {
                "POSTERN_PUBLIC_URL": "https://localhost:3443",
                "POSTERN_UPSTREAM": "http://127.0.0.1:9",
                "POSTERN_LISTEN": f"unix:{tmp_path / 'tls.sock'}",
                "POSTERN_TLS__CERT": str(cert),
                "POSTERN_TLS__KEY": str(key),
                "LOGTO_ENDPOINT": "http://127.0.0.1:9",
                "LOGTO_APP_ID": "app",
                "LOGTO_APP_SECRET": "secret",
            },
        )
        listening = asyncio.Event()
        task = asyncio.create_task(serve(settings, started=listening.set))
        await asyncio.wait_for(listening.wait(), 10)
        context = ssl.create_default_context(cafile=authority.file)
        reader, writer = await asyncio.open_unix_connection(
            tmp_path / "tls.sock", ssl=context, server_hostname="localhost"
        )
        writer.write(b"GET /.postern/healthz HTTP/1.1\r\nHost: localhost:3443\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(-1), 10)
        writer.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return answer

    assert run(ask()).startswith(b"HTTP/1.1 200 OK")
