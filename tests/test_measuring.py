"""One worker's numbers, as they are after real requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.measuring import measured
from tests.redis_server import RedisServer
from tests.relay_world import World, relay_world, run

ON = {"POSTERN_METRICS__LISTEN": "127.0.0.1:9464"}
GET = b"GET /x HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"


def series(world: World) -> dict[tuple[str, ...], Any]:
    """Name and labels -> number."""
    return {(name, *map(str, row[:-1])): row[-1] for name, rows in measured(world.gateway, 3).items() for row in rows}


def test_requests_bytes_and_connections() -> None:
    async def work() -> None:
        async with relay_world(**ON) as world:
            client = await world.connect()
            await client.ask(GET)
            await client.ask(b"POST /x HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 4\r\n\r\nbody")
            found = series(world)
            assert found["postern_requests_total", "app", "GET", "2xx", "everyone"] == 1
            assert found["postern_requests_total", "app", "POST", "2xx", "everyone"] == 1
            assert found["postern_request_bytes_total", "app"] == 4
            assert found["postern_response_bytes_total", "app"] == 10
            assert found["postern_connections",] == found["postern_connections_accepted_total",] == 1
            assert found["postern_tunnels",] == 0
            assert found["postern_settings_generation",] == 3
            assert found["postern_workers",] == 1
            assert found["postern_log_lines_lost_total",] == 0
            for name in ("postern_request_duration_seconds", "postern_first_byte_seconds"):
                row = found[name, "app"]
                assert sum(row[1:]) == 2
                assert 0 < row[0] < 60

    run(work())


def test_what_has_no_route() -> None:
    async def work() -> None:
        async with relay_world(
            POSTERN_ROUTE__0__HOST="apps.localhost", POSTERN_SESSION__COOKIE__DOMAIN="", **ON
        ) as world:
            assert (await world.ask(GET))[0] == 404
            assert (await world.ask(b"GET /.postern/healthz HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"))[0] == 200
            found = series(world)
            assert found["postern_requests_total", "", "GET", "4xx", "no_route"] == 1
            assert found["postern_requests_total", "", "GET", "2xx", "own"] == 1

    run(work())


def test_a_websocket() -> None:
    async def work() -> None:
        async with relay_world(**ON) as world:

            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await world.upstream.head(reader)
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
                while data := await reader.read(100):
                    writer.write(data)

            world.upstream.script = echo
            client = await world.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            await client.head()
            client.send(b"ping")
            await client.exactly(4)
            assert series(world)["postern_tunnels",] == series(world)["postern_connections",] == 1
            client.close()
            await world.until(lambda: not world.gateway.relay.connections)
            found = series(world)
            assert found["postern_tunnels",] == 0
            assert found["postern_requests_total", "app", "GET", "1xx", "everyone"] == 1
            assert found["postern_request_bytes_total", "app"] == found["postern_response_bytes_total", "app"] == 4
            assert sum(found["postern_request_duration_seconds", "app"]) == 0
            assert sum(found["postern_first_byte_seconds", "app"][1:]) == 1

    run(work())


def test_a_client_that_does_not_wait() -> None:
    async def work() -> None:
        async with relay_world(**ON) as world:
            asked = asyncio.Event()

            async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await world.upstream.head(reader)
                asked.set()
                await reader.read()

            world.upstream.script = never
            client = await world.connect()
            client.send(GET)
            await asked.wait()
            client.abort()
            await world.until(lambda: not world.gateway.relay.connections)
            found = series(world)
            assert found["postern_requests_total", "app", "GET", "4xx", "cut_short"] == 1
            assert sum(found["postern_first_byte_seconds", "app"]) == 0

    run(work())


class TestUpstreams:
    def test_connections_in_use_and_idle(self) -> None:
        async def work() -> None:
            async with relay_world(**ON) as world:
                await world.ask(GET)
                url = world.upstream.url
                found = series(world)
                assert found["postern_upstream_connections", url, "active"] == 0
                assert found["postern_upstream_connections", url, "idle"] == 1
                assert found["postern_upstream_waiting", url] == 0
                assert found["postern_upstream_aside", url] == 0
                assert found["postern_upstream_retries_total", url] == 0

        run(work())

    def test_a_server_that_is_gone(self) -> None:
        async def work() -> None:
            async with relay_world(**ON, POSTERN_ROUTE__0__UPSTREAM="http://127.0.0.1:9") as world:
                assert (await world.ask(GET))[0] == 502
                found = series(world)
                assert found["postern_upstream_failures_total", "http://127.0.0.1:9", "upstream_refused"] == 1
                assert found["postern_upstream_aside", "http://127.0.0.1:9"] == 1
                assert found["postern_requests_total", "app", "GET", "5xx", "upstream_refused"] == 1

        run(work())

    def test_a_request_that_was_sent_again(self) -> None:
        async def work() -> None:
            async with relay_world(**ON) as world:
                # A server that closes an idle connection at the very moment it is used.
                async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                    await world.upstream.head(reader)

                world.upstream.script = once
                client = await world.connect()
                assert (await client.ask(GET))[0] == (await client.ask(GET))[0] == 200
                assert series(world)["postern_upstream_retries_total", world.upstream.url] == 1

        run(work())


class TestSessions:
    def test_in_memory(self) -> None:
        async def work() -> None:
            async with relay_world(**ON, POSTERN_ROUTE__0__ALLOW="signed-in") as world:
                cookie = await world.sign_in()
                for _ in range(3):
                    await world.ask(GET.replace(b"\r\n\r\n", b"\r\nCookie: " + cookie + b"\r\n\r\n"))
                found = series(world)
                assert found["postern_sessions_held",] == 1
                assert found["postern_session_lookups_total", "memory"] == 3
                assert found["postern_session_lookups_total", "store"] == 0

        run(work())

    def test_in_a_store_that_answers_and_one_that_does_not(self) -> None:
        with RedisServer() as redis:

            async def work() -> None:
                environ = {**ON, "POSTERN_ROUTE__0__ALLOW": "signed-in", "REDIS_URL": redis.url}
                async with relay_world(**environ) as world:
                    cookie = await world.sign_in()
                    ask = GET.replace(b"\r\n\r\n", b"\r\nCookie: " + cookie + b"\r\n\r\n")
                    assert (await world.ask(ask))[0] == 200
                    unknown = ask.replace(cookie[-6:], b"AAAAAA")
                    assert (await world.ask(unknown))[0] == 401
                    found = series(world)
                    lookups = [
                        found["postern_session_lookups_total", where] for where in ("memory", "store", "nowhere")
                    ]
                    assert sum(lookups) == 2
                    assert lookups[2] == 1
                    redis.stop()
                    other = ask.replace(cookie.partition(b".")[2][:6], b"BBBBBB")
                    status = (await world.ask(other))[0]
                    assert status == 503
                    found = series(world)
                    assert found["postern_store_errors_total",] == 1
                    assert sum(found["postern_store_seconds",][1:]) == lookups[1] + lookups[2] + 1

            run(work())


def test_sign_ins_by_result() -> None:
    async def work() -> None:
        async with relay_world(**ON) as world:
            assert (await world.ask(b"GET /.postern/callback?code=x HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"))[
                0
            ] == 400
            assert series(world)["postern_sign_ins_total", "no_attempt"] == 1

    run(work())


def test_routes_of_earlier_settings_go() -> None:
    async def work() -> None:
        async with relay_world(**ON) as world:
            await world.ask(GET)
            old = world.gateway.settings
            route = old.route[0].model_copy(update={"name": "new"})
            world.gateway.adopt(old.model_copy(update={"route": (route,)}))
            await world.ask(GET)
            routes = {labels[1] for labels in series(world) if labels[0] == "postern_requests_total"}
            assert routes == {"new"}

    run(work())


def test_what_nobody_asks_for_is_not_counted() -> None:
    async def work() -> None:
        async with relay_world() as world:
            assert world.gateway.relay.tally is None
            await world.ask(GET)
            assert not any(labels[0] == "postern_requests_total" for labels in series(world))

    run(work())


@pytest.mark.parametrize("forbidden", ["user00000001", "127.0.0.1:5"])
def test_no_person_is_in_the_numbers(forbidden: str) -> None:
    async def work() -> str:
        async with relay_world(**ON, POSTERN_ROUTE__0__ALLOW="signed-in") as world:
            cookie = await world.sign_in(username="user00000001")
            await world.ask(GET.replace(b"\r\n\r\n", b"\r\nCookie: " + cookie + b"\r\n\r\n"))
            return str(series(world)).replace(world.upstream.url, "")

    assert forbidden not in run(work())
