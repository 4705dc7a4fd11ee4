"""Work that nobody waits for: done, or said that it was not, and over when the store is closed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.errors import StoreUnavailable
from proxy.session_chores import Chores
from tests.redis_worlds import until


async def fails(error: Exception) -> None:
    raise error


def test_it_is_done_without_being_waited_for() -> None:
    async def conversation() -> None:
        chores, done = Chores(), asyncio.Event()

        async def work() -> None:
            done.set()

        chores.run(work(), "an index")
        assert not done.is_set()
        await asyncio.wait_for(done.wait(), 10)
        await chores.close()

    asyncio.run(conversation())


def test_a_store_that_is_away_is_complained_of_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        chores = Chores()
        for _ in range(50):
            chores.run(fails(StoreUnavailable("Redis did not answer in time")), "indexes")
        await until(lambda: not chores._tasks)

    with caplog.at_level(logging.WARNING, "postern.session"):
        asyncio.run(conversation())
    assert caplog.messages == ["indexes cannot be brought up to date: Redis did not answer in time"]


def test_a_mistake_of_ours_is_told_each_time_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        chores = Chores()
        for _ in range(2):
            chores.run(fails(RuntimeError("a mistake")), "ends")
        await until(lambda: not chores._tasks)

    with caplog.at_level(logging.ERROR, "postern.session"):
        asyncio.run(conversation())
    assert caplog.messages == ["ends cannot be brought up to date"] * 2
    assert all(record.exc_info for record in caplog.records)


def test_what_is_under_way_at_the_end_is_called_off_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        chores = Chores()
        chores.run(asyncio.Event().wait(), "tokens")
        await asyncio.sleep(0)
        await asyncio.wait_for(chores.close(), 10)
        await until(lambda: not chores._tasks)

    with caplog.at_level(logging.DEBUG, "postern.session"):
        asyncio.run(conversation())
    assert caplog.messages == []
