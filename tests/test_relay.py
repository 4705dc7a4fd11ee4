"""What all connections of a worker share."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from tests.relay_world import World, relay_world, run

GET = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"


def test_request_ids_are_never_the_same() -> None:
    async def talk() -> None:
        async with relay_world() as one, relay_world() as other:
            ids = [world.gateway.relay.new_request_id() for world in (one, other) for _ in range(1000)]
            assert len(set(ids)) == len(ids)
            assert all(re.fullmatch(rb"[0-9a-f]{12}-[0-9a-f]{8}", it) for it in ids)

    run(talk())


def test_the_clock_goes_on() -> None:
    async def talk() -> None:
        async with relay_world() as world:
            relay = world.gateway.relay
            assert relay.date.endswith(b" GMT")
            first = relay.now
            await world.until(lambda: relay.now > first)
            relay.start()  # once more does no harm
            sweeper = relay._sweeper
            relay.start()
            assert relay._sweeper is sweeper

    run(talk())


class TestCounting:
    @staticmethod
    def crowd(world: World) -> dict[Any, int]:
        return dict(world.gateway.relay._crowds)

    def test_connections_are_counted_in_and_out(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                clients = [await world.connect() for _ in range(3)]
                for client in clients:
                    await client.ask(GET)
                assert self.crowd(world) == {"127.0.0.1": 3}
                for client in clients:
                    client.close()
                await world.until(lambda: not world.gateway.relay.connections)
                assert self.crowd(world) == {}

        run(talk())

    def test_a_tunnel_counts_as_the_connection_it_was(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 101 Go\r\nUpgrade: foo\r\n\r\n")
                    await reader.read()

                world.upstream.script = script
                client = await world.connect()
                client.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: foo\r\n\r\n")
                await client.head()
                assert self.crowd(world) == {"127.0.0.1": 1}
                assert len(world.gateway.relay.connections) == 1
                client.close()
                await world.until(lambda: not world.gateway.relay.connections)
                assert self.crowd(world) == {}

        run(talk())

    def test_whoever_is_not_there_cannot_leave(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                await client.ask(GET)
                relay = world.gateway.relay
                (connection,) = relay.connections
                for _ in range(3):
                    relay.leave(connection, "127.0.0.1")
                assert self.crowd(world) == {}
                relay.admit(connection, None)
                relay.leave(connection, None)
                assert self.crowd(world) == {}
                relay.admit(connection, "127.0.0.1")

        run(talk())


def test_a_worker_that_stops_cuts_what_is_left() -> None:
    async def talk() -> None:
        async with relay_world() as world:
            clients = [await world.connect() for _ in range(3)]
            for client in clients:
                await client.ask(GET)
            world.gateway.relay.close()
            assert [await client.ends() for client in clients] == ["reset"] * 3
            world.gateway.relay.close()

    run(talk())


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_left_when_everybody_has_gone(count: int) -> None:
    async def talk() -> None:
        async with relay_world() as world:
            for _ in range(count):
                for path in (b"/", b"/.postern/healthz"):
                    assert (await world.ask(GET.replace(b"/ ", path + b" ")))[0] == 200
            await world.until(lambda: not world.gateway.relay.connections)
            assert not world.gateway.relay.busy
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await world.until(lambda: world.gateway.relay._tasks == set())
            assert len(others) < 10

    run(talk())


def test_a_bug_in_one_connection_is_no_reason_to_forget_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def talk() -> None:
        async with relay_world() as world:
            first = await world.connect()
            await first.ask(GET)
            (broken,) = world.gateway.relay.connections
            second = await world.connect()
            await second.ask(GET)

            def bug() -> None:
                raise ZeroDivisionError

            broken._expire = bug
            world.later(10_000)
            assert await first.ends() == "reset"
            assert await second.ends() == "closed"

    with caplog.at_level(logging.CRITICAL):
        run(talk())
