"""Turns at Logto: one holder at a time, a claim that is kept up, what Logto gave stored in the end, pauses after failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from proxy import turns
from proxy.errors import StoreUnavailable
from proxy.session import MemoryStore
from tests.redis_worlds import until

ID = "A" * 22


class Store(MemoryStore):
    """One in memory, which may be away; counts what is asked about claims."""

    def __init__(self) -> None:
        super().__init__(idle=3600, lifetime=3600)
        self.away = False
        self.extended = 0

    async def extend(self, name: str, mark: str, ttl: float) -> bool:
        self.extended += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().extend(name, mark, ttl)

    async def release(self, name: str, mark: str) -> None:
        if self.away:
            raise StoreUnavailable("away")
        await super().release(name, mark)


def run(conversation: Callable[[Store], Awaitable[None]]) -> None:
    async def hold() -> None:
        await conversation(Store())

    asyncio.run(hold())


def test_one_has_it_and_who_waits_gets_it_next() -> None:
    async def conversation(store: Store) -> None:
        mark = await turns.take(store, ID, lambda: False, 10)
        assert mark is not None
        assert await turns.take(store, ID, lambda: False, 10) is None, "nobody waits, so nobody waits"
        assert await turns.take(store, ID, lambda: True, 0) is None, "not for ever"
        assert await turns.take(store, "B" * 22, lambda: False, 10) is not None, "other sessions are others' turns"
        next_one = asyncio.ensure_future(turns.take(store, ID, lambda: True, 30))
        async with turns.held(store, ID, mark):
            await asyncio.sleep(0)
            assert not next_one.done()
        assert await next_one not in (None, mark)

    run(conversation)


def test_who_ceases_to_wait_is_let_go() -> None:
    async def conversation(store: Store) -> None:
        await turns.take(store, ID, lambda: False, 0)
        waits = [True]
        waiting = asyncio.ensure_future(turns.take(store, ID, lambda: waits[0], 30))
        await asyncio.sleep(0)
        waits[0] = False
        assert await waiting is None

    run(conversation)


@pytest.mark.parametrize("away", [False, True])
def test_a_turn_is_kept_up_and_its_end_outlives_the_stores(monkeypatch: pytest.MonkeyPatch, *, away: bool) -> None:
    monkeypatch.setattr(turns, "_EXTEND_SECONDS", 0.001)

    async def conversation(store: Store) -> None:
        mark = await turns.take(store, ID, lambda: False, 0)
        assert mark is not None
        async with turns.held(store, ID, mark):
            store.away = away
            await until(lambda: store.extended >= 3)
        asked = store.extended
        await asyncio.sleep(0.01)
        assert store.extended == asked, "nobody keeps it up any more"

    run(conversation)


def test_a_turn_that_ends_in_an_error_is_given_back() -> None:
    async def conversation(store: Store) -> None:
        mark = await turns.take(store, ID, lambda: False, 0)
        assert mark is not None
        with pytest.raises(ValueError, match="a bug"):
            async with turns.held(store, ID, mark):
                raise ValueError("a bug")
        assert await turns.take(store, ID, lambda: False, 0) is not None

    run(conversation)


def test_what_logto_gave_is_stored_as_soon_as_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_POLL_SECONDS", 0.001)
    tries = 0

    async def third_time() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnavailable("away")

    asyncio.run(turns.stored(third_time))
    assert tries == 3


def test_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(turns, "_STORE_SECONDS", 0.0)

    async def never() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        asyncio.run(turns.stored(never))


def test_the_end_waits_for_what_ends_and_not_for_what_does_not() -> None:
    async def conversation(_: Store) -> None:
        async def brief() -> str:
            await asyncio.sleep(0)
            return "done"

        short = asyncio.ensure_future(brief())
        hanging = asyncio.ensure_future(asyncio.Event().wait())
        await turns.ended([short, hanging], 0.05)
        assert short.result() == "done"
        assert hanging.cancelled()
        await turns.ended([], 0.05)

    run(conversation)


def test_pauses_grow_up_to_a_minute_and_are_kept_for_a_bounded_number() -> None:
    pauses = turns.Pauses()
    assert pauses.over("a")
    assert [pauses.failed("a") for _ in range(6)] == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    assert not pauses.over("a")
    pauses.succeeded("a")
    assert pauses.over("a")
    assert pauses.failed("a") == 5.0
    for number in range(10_020):
        pauses.failed(str(number))
    assert len(pauses) == 10_000
    assert pauses.over("a"), "the oldest is forgotten first"
    pauses.clear()
    assert pauses.over("10019")


def test_a_pause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_AGAIN_SECONDS", 0.0)
    pauses = turns.Pauses()
    pauses.failed("a")
    assert pauses.over("a")
