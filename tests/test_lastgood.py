"""One fetch at a time, the last good value kept, no flood."""

from __future__ import annotations

import asyncio
import logging

import pytest

from proxy.errors import LogtoUnavailable
from proxy.lastgood import LastGood


class Source:
    """Gives 1, 2, 3 … when let, or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await self.gate.wait()
        if self.down:
            raise LogtoUnavailable("down")
        return number


class Clock:
    now = 500.0

    def __call__(self) -> float:
        return self.now


def last_good(source: Source, clock: Clock) -> LastGood[int]:
    return LastGood("the number", source, ttl=100.0, pause=5.0, clock=clock)


def test_it_is_fetched_when_wanted_and_again_when_old() -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        assert (cache.value, source.asked) == (None, 0)
        assert [await cache.get(), await cache.get()] == [1, 1]
        clock.now += 99.9
        assert await cache.get() == 1
        clock.now += 0.1
        assert await cache.get() == 2
        clock.now -= 400  # a clock set back must not freeze it
        assert await cache.get() == 3

    asyncio.run(conversation())


def test_many_wait_for_one_fetch() -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        source.gate.clear()
        waiting = [asyncio.create_task(cache.get()) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # and the one that began it being given up changes nothing
        await asyncio.sleep(0)
        source.gate.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert answers[1:] == [1] * 49
        assert isinstance(answers[0], asyncio.CancelledError)
        assert source.asked == 1

    asyncio.run(conversation())


def test_a_failure_keeps_the_last_good_one(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        await cache.get()
        source.down = True
        clock.now += 1000
        assert await cache.get() == 1
        assert source.asked == 2
        assert [await cache.get() for _ in range(9)] == [1] * 9
        assert source.asked == 2  # asked again only after the pause
        clock.now += 5
        assert await cache.get() == 1
        assert source.asked == 3
        source.down = False
        clock.now += 5
        assert await cache.get() == 4
        source.down = True
        with pytest.raises(LogtoUnavailable):
            await cache.fetch()
        assert cache.value == 4

    with caplog.at_level(logging.WARNING):
        asyncio.run(conversation())
    assert "the last one is kept: down" in caplog.text


def test_without_any_value_a_failure_is_one_and_is_tried_again_at_once() -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        source.down = True
        for asked in (1, 2):
            with pytest.raises(LogtoUnavailable):
                await cache.get()
            assert source.asked == asked
        source.down = False
        assert await cache.get() == 3

    asyncio.run(conversation())


def test_renewing_is_no_flood() -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        assert await cache.get() == 1
        assert [await cache.renew() for _ in range(100)] == [1] * 100
        clock.now += 5
        assert [await cache.renew() for _ in range(100)] == [2] * 100
        assert source.asked == 2

    asyncio.run(conversation())


def test_a_fetch_nobody_waits_for_any_more_may_fail_quietly() -> None:
    async def conversation() -> None:
        source, clock = Source(), Clock()
        cache = last_good(source, clock)
        source.gate.clear()
        source.down = True
        waiting = asyncio.create_task(cache.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        source.gate.set()
        flight = cache._flight
        assert flight is not None
        await asyncio.wait([flight])
        source.down = False
        assert await cache.get() == 2

        source.gate.clear()
        clock.now += 1000
        waiting = asyncio.create_task(cache.get())
        await asyncio.sleep(0)
        assert cache._flight is not None
        cache._flight.cancel()  # as at the end of the program
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)

    asyncio.run(conversation())
