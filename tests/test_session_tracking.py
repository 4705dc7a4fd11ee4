"""One connection that hears of every change: at a real Redis, through its restarts and refusals."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from proxy.session_cache import Line
from proxy.session_codec import SESSIONS
from proxy.session_servers import Reach, Server, open_servers
from proxy.session_tracking import Listener, Tracker
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import until


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


class Heard:
    """What a tracker has told, in order."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self.lines: list[Line] = []
        self.breaks = False

    def listener(self) -> Listener:
        return Listener(self.changed, lambda: self.news.append("flushed"), self.up, lambda: self.news.append("down"))

    def changed(self, ids: Iterable[str]) -> None:
        if self.breaks:
            self.breaks = False
            raise RuntimeError("a listener that fails has not heard")
        self.news += ids

    def up(self, line: Line) -> None:
        self.news.append("up")
        self.lines.append(line)


class Wrong(Server):
    """A server whose answers show that it is the wrong one, as long as `wrong` says so."""

    wrong = True

    def check(self, answer: Any) -> None:
        super().check(answer)
        if self.wrong:
            raise RedisError("it is no master any more")


@contextlib.asynccontextmanager
async def tracking(url: str, *, user: type[Server] = Server) -> AsyncIterator[tuple[Tracker, Heard, Server]]:
    servers, heard = open_servers(url, Reach()), Heard()
    (server,) = servers.masters()
    server.__class__ = user
    tracker = Tracker(
        "Redis",
        server.reporting_connection,
        server.probe,
        server.check,
        heard.listener(),
        clock=time.time,
        timeout=2.0,
    )
    task = asyncio.create_task(tracker.run())
    try:
        yield tracker, heard, server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await servers.close()


def test_changes_deaths_and_flushes_of_sessions_are_told_and_nothing_else(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (tracker, heard, _):
            await until(lambda: heard.news == ["up"])
            assert tracker.line.good(time.time())
            server.do("SET", "postern:u:somebody", "1")
            server.do("HSET", SESSIONS.prefix + "one", "s", "x")
            await until(lambda: heard.news == ["up", "one"])
            server.do("PEXPIRE", SESSIONS.prefix + "one", 1)
            await until(lambda: heard.news[-1] == "one" and len(heard.news) >= 4)
            server.do("FLUSHALL")
            await until(lambda: heard.news[-1] == "flushed")

    asyncio.run(conversation())


def test_a_heartbeat_keeps_the_line_good(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (tracker, heard, _):
            await until(lambda: heard.news == ["up"])
            line, until_then = tracker.line, tracker.line.until
            await until(lambda: line.until > until_then)
            assert tracker.line is line

    asyncio.run(conversation())


def test_a_lost_connection_cuts_its_line_for_good_and_the_next_has_another(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (_, heard, _):
            await until(lambda: heard.news == ["up"])
            server.restart()
            await until(lambda: heard.news[-1] == "up" and len(heard.lines) == 2)
            assert heard.news[:2] == ["up", "down"]
            first, second = heard.lines
            assert not first.good(time.time())
            assert second.good(time.time())

    asyncio.run(conversation())


def test_a_change_that_was_not_heard_ends_the_connection(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (_, heard, _):
            await until(lambda: heard.news == ["up"])
            heard.breaks = True
            server.do("HSET", SESSIONS.prefix + "one", "s", "x")
            await until(lambda: len(heard.lines) == 2)
            assert heard.news == ["up", "down", "up"]

    asyncio.run(conversation())


def test_a_server_that_does_not_report_is_complained_of_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation() -> None:
        async with tracking(f"redis://reader:pw@127.0.0.1:{server.port}/0") as (tracker, heard, _):
            await until(lambda: heard.news == ["down"])
            assert not tracker.line.good(time.time())

    server.do("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-client|tracking")
    with caplog.at_level(logging.WARNING, "postern.session"):
        asyncio.run(conversation())
    (told,) = caplog.messages
    assert told.startswith("Redis does not report changes of sessions, each request asks it until it does: Refused")
    assert "pw" not in told


def test_a_server_that_is_the_wrong_one_covers_nothing_until_it_is_right(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url, user=Wrong) as (tracker, heard, wrong):
            assert isinstance(wrong, Wrong)
            await until(lambda: heard.news.count("down") >= 2)
            assert "up" not in heard.news
            assert not tracker.line.good(time.time())
            wrong.wrong = False
            await until(lambda: heard.news[-1] == "up")

    asyncio.run(conversation())


def test_nobody_there_is_told_once_and_tried_again(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (_, heard, _):
            await until(lambda: heard.news.count("down") >= 3)
            server.start()
            await until(lambda: heard.news[-1] == "up")

    server.stop()
    with caplog.at_level(logging.INFO, "postern.session"):
        asyncio.run(conversation())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_connections_that_report_are_told_apart_from_those_that_ask(server: RedisServer) -> None:
    async def conversation() -> None:
        async with tracking(server.url) as (_, heard, asked):
            await until(lambda: heard.news == ["up"])
            assert (await asked.ask("PING")) in (b"PONG", True)
            names = [line.split(" name=")[1].split(" ")[0] for line in clients()]
            assert names.count("postern-tracking") == 1

    def clients() -> list[str]:
        told = server.do("CLIENT", "LIST")
        return [f" name={one['name']} " for one in told] if isinstance(told, list) else told.decode().splitlines()

    asyncio.run(conversation())


def test_a_connection_in_the_making_is_none_yet() -> None:
    (server,) = open_servers("redis://127.0.0.1:9/0", Reach()).masters()
    connection = server.reporting_connection()
    assert isinstance(connection, AbstractConnection)
    assert not connection.is_connected
