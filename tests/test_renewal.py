"""Renewing sessions: one worker asks, all profit, and only Logto's own word ends anything."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable, StoreUnavailable
from proxy.renewal import Renewals
from proxy.session import Bounds, MemoryStore, Miss, Session, SessionStore
from proxy.turns import CLAIM_SECONDS
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import store_at, until

LIFE = 3600.0
ALICE = Identity(sub="alice", roles=("dev",))


class Clock:
    """Real time, and as much more as the test wants."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


@dataclass
class Logto:
    """Who refreshes tokens: counts, rotates, takes its time, and refuses when told to."""

    clock: Clock
    delay: float = 0.0
    error: Exception | None = None
    roles: tuple[str, ...] = ("ops",)
    asked: list[str] = field(default_factory=list)
    going_on: int = 0
    most: int = 0

    async def refresh(self, tokens: Tokens, identity: Identity) -> Grant:
        self.asked.append(tokens.refresh_token or "")
        self.going_on += 1
        self.most = max(self.most, self.going_on)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.going_on -= 1
        if self.error is not None:
            raise self.error
        return self.grant(Identity(sub=identity.sub, roles=self.roles))

    def grant(self, identity: Identity = ALICE) -> Grant:
        number = len(self.asked)
        tokens = Tokens(f"id-{number}", f"access-{number}", self.clock() + LIFE, f"refresh-{number}")
        return Grant(identity, tokens, "sid", 1.0)


@dataclass
class World:
    """Workers on one store, each with its own renewals, all asking one Logto."""

    clock: Clock
    logto: Logto
    stores: list[SessionStore]
    renewals: list[Renewals]
    cookie: str

    @property
    def store(self) -> SessionStore:
        return self.stores[0]

    async def load(self, worker: int = 0) -> Session | None:
        return await self.stores[worker].load(self.cookie)

    async def settled(self) -> None:
        await until(lambda: not any(it._jobs for it in self.renewals))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


Make = Callable[..., Any]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a world; with sessions in memory it has one worker."""

    @asynccontextmanager
    async def world(workers: int = 1, *, grace: float = 600.0, **options: Any) -> AsyncIterator[World]:
        clock = Clock()
        logto = Logto(clock, **options)
        bounds = Bounds(renewal_grace=grace)
        stores: list[SessionStore] = []
        if request.param == "memory":
            stores.append(MemoryStore(idle=1e6, lifetime=1e7, clock=clock, bounds=bounds))
        else:
            url = request.getfixturevalue("server").url
            stores += [store_at(url, idle=1e6, lifetime=1e7, clock=clock, bounds=bounds) for _ in range(workers)]
        renewals = [Renewals(store, clock=clock) for store in stores]
        for one in renewals:
            one.refresh = logto.refresh
        for store in stores:
            await store.start()
        _, cookie = await stores[0].create(logto.grant(), browser="b", address="a")
        try:
            yield World(clock, logto, stores, renewals, cookie)
        finally:
            for one in renewals:
                await one.close()
            for store in stores:
                await store.close()

    return world


def run(conversation: Awaitable[None]) -> None:
    async def hold() -> None:
        await conversation

    asyncio.run(hold())


def test_in_time_and_in_the_background(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.05) as world:
            assert (await world.load()).identity.roles == ("dev",)
            await world.settled()
            assert world.logto.asked == []
            world.clock.offset += 0.85 * LIFE
            assert (await world.load()).identity.roles == ("dev",), "nobody waits"
            await world.settled()
            assert world.logto.asked == ["refresh-0"]
            assert (await world.load()).identity.roles == ("ops",)
            assert (await world.store.tokens(world.cookie)).refresh_token == "refresh-1"
            await used(world)
            await world.settled()
            assert world.logto.asked == ["refresh-0"]

    run(conversation())


def test_another_interval_holds_from_the_next_renewal_on(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            world.store.bounds = replace(world.store.bounds, recheck=60.0)
            world.clock.offset += 61
            await world.load()
            await world.settled()
            assert world.logto.asked == [], "this one was promised its time at the sign-in"
            world.clock.offset += LIFE
            await world.load()
            world.clock.offset += 61
            await world.load()
            await world.settled()
            assert world.logto.asked == ["refresh-0", "refresh-1"]

    run(conversation())


def test_while_the_store_is_away_the_background_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    class Away(MemoryStore):
        async def claim(self, name: str, ttl: float) -> str | None:
            raise StoreUnavailable("away")

    async def conversation() -> None:
        clock = Clock()
        store = Away(idle=1e6, lifetime=1e7, clock=clock, bounds=Bounds(renewal_grace=600.0))
        renewals = Renewals(store, clock=clock)
        renewals.refresh = Logto(clock).refresh
        _, cookie = await store.create(Logto(clock).grant(), browser="b", address="a")
        clock.offset += 0.85 * LIFE
        began = time.monotonic()
        for _ in range(100):
            assert await store.load(cookie) is not None
            await until(lambda: not renewals._jobs)
        lines = [record for record in caplog.records if record.name == "postern.renewal"]
        assert 1 <= len(lines) <= 1 + (time.monotonic() - began)
        await renewals.close()
        await store.close()

    asyncio.run(conversation())


async def used(world: World) -> Session:
    """Use the session as the gate does: peek, and load where that does not tell."""
    deadline = time.monotonic() + 15
    while not isinstance(found := world.store.peek(world.cookie), Session):
        assert found is Miss.MISS
        assert time.monotonic() < deadline
        assert await world.load() is not None
        await asyncio.sleep(0.001)
    return found


def test_past_expiry_everybody_waits_and_one_asks(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2, delay=0.3) as world:
            for worker in range(len(world.stores)):
                await world.load(worker)
            world.clock.offset += LIFE + 1
            asked = [world.load(number % len(world.stores)) for number in range(30)]
            found = await asyncio.gather(*asked)
            assert [session.identity.roles for session in found if session] == [("ops",)] * 30
            assert world.logto.asked == ["refresh-0"]

    run(conversation())


def test_a_slow_logto_keeps_its_claim(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2, delay=CLAIM_SECONDS * 1.5) as world:
            world.clock.offset += LIFE + 1
            found = await asyncio.gather(*(world.load(number % len(world.stores)) for number in range(4)))
            assert [session.identity.roles for session in found if session] == [("ops",)] * 4
            assert world.logto.asked == ["refresh-0"]
            assert world.logto.most == 1

    run(conversation())


def test_a_client_that_leaves_stops_nothing(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.2) as world:
            world.clock.offset += LIFE + 1
            request = asyncio.ensure_future(world.load())
            await until(lambda: world.logto.going_on)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await world.settled()
            assert (await world.store.tokens(world.cookie)).refresh_token == "refresh-1"
            assert (await world.load()).identity.roles == ("ops",)
            assert world.logto.asked == ["refresh-0"]

    run(conversation())


@pytest.mark.parametrize(
    ("error", "left"),
    [(LogtoRefused("invalid_grant"), []), (LogtoRefused("access_denied", status=403), ["refresh-0"])],
)
def test_logtos_no_ends_the_session(make: Make, error: Exception, left: list[str]) -> None:
    async def conversation() -> None:
        async with make(workers=2, error=error) as world:
            heard: list[str] = []
            over: list[Tokens] = []
            for store in world.stores:
                await store.load(world.cookie)
            for store in world.stores:
                store.on_end(heard.append)
                store.on_leftover(over.append)
            world.clock.offset += LIFE + 1
            assert await world.load() is None
            for worker in range(len(world.stores)):
                assert await world.load(worker) is None
            await until(lambda: [tokens.refresh_token for tokens in over] == left)
            assert set(heard) == {world.cookie.split(".")[1]}

    run(conversation())


ERRORS = [
    LogtoUnavailable("down"),
    LogtoRefused("server_error", status=500),
    LogtoRefused("invalid_client", status=401),
    LogtoRefused("invalid_id_token", "garbage"),
    RuntimeError("a bug of ours"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_logtos_failure_ends_it_only_after_the_grace(make: Make, error: Exception) -> None:
    async def conversation() -> None:
        async with make(error=error, grace=600.0) as world:
            world.clock.offset += LIFE + 1
            for _ in range(5):
                assert (await world.load()).identity.roles == ("dev",)
            assert len(world.logto.asked) == 1, "not asked again at once"
            assert (await used(world)).failing_since is not None
            world.clock.offset += 590
            assert await world.load() is not None
            world.clock.offset += 20
            assert await world.load() is None
            assert await world.store.tokens(world.cookie) is None

    run(conversation())


def test_a_failure_that_passes_leaves_no_trace(make: Make) -> None:
    async def conversation() -> None:
        async with make(error=LogtoUnavailable("down")) as world:
            world.clock.offset += LIFE + 1
            assert await world.load() is not None
            world.logto.error = None
            world.renewals[0]._pauses.clear()  # its pause is over
            deadline = time.monotonic() + 15
            while (await used(world)).identity.roles != ("ops",):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert (await world.load()).failing_since is None
            assert len(world.renewals[0]._pauses) == 0

    run(conversation())


def test_without_grace_a_failure_ends_it(make: Make) -> None:
    async def conversation() -> None:
        async with make(error=LogtoUnavailable("down"), grace=0.0) as world:
            world.clock.offset += LIFE + 1
            assert await world.load() is None

    run(conversation())


def test_without_a_refresh_token_a_session_lives_by_its_own_times(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            grant = Grant(ALICE, Tokens("id", "access", world.clock() + LIFE, None), None, 1.0)
            _, world.cookie = await world.store.create(grant, browser="b", address="a")
            world.clock.offset += 5 * LIFE
            assert (await used(world)).identity == ALICE
            await world.store.renew_soon([world.cookie.split(".")[1]])
            assert await world.load() is not None
            await used(world)
            await world.settled()
            assert world.logto.asked == []

    run(conversation())


def test_what_comes_for_a_session_that_was_ended_meanwhile_is_left_for_revocation(make: Make) -> None:
    """The end has revoked the refresh token that was there then, at best: the one that took its place must not go on."""

    async def conversation() -> None:
        async with make(delay=0.2) as world:
            over: list[str | None] = []
            world.store.on_leftover(lambda tokens: over.append(tokens.refresh_token))
            world.clock.offset += LIFE + 1
            waiting = asyncio.ensure_future(world.load())
            await until(lambda: world.logto.going_on)
            await world.store.end(world.cookie.split(".")[1], "signed out", leave_tokens=False)
            assert await waiting is None
            await world.settled()
            assert over == ["refresh-1"]

    run(conversation())


def test_asked_for_soon_it_is_renewed_at_the_next_use(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            await used(world)
            await world.store.renew_soon([world.cookie.split(".")[1]])
            deadline = time.monotonic() + 15
            while (await used(world)).identity.roles != ("ops",):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            assert world.logto.asked == ["refresh-0"]

    run(conversation())


def test_nobody_to_ask(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            world.renewals[0].refresh = None
            world.clock.offset += LIFE + 1
            assert (await world.load()).identity.roles == ("dev",)

    run(conversation())


def test_a_waiting_request_is_not_taken_in_by_one_in_the_background(make: Make) -> None:
    """The background's is content when another worker is at it; whoever waits wants it done."""

    async def conversation() -> None:
        async with make() as world:
            session_id = world.cookie.split(".")[1]
            mark = await world.store.claim(f"renew:{session_id}", 1e6)
            assert mark is not None
            world.clock.offset += 0.85 * LIFE
            await used(world)
            world.clock.offset += 0.2 * LIFE
            waiting = asyncio.ensure_future(world.load())
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not waiting.done()
            await world.store.release(f"renew:{session_id}", mark)
            assert (await waiting).identity.roles == ("ops",)

    run(conversation())


def test_what_logto_gave_is_stored_even_if_redis_is_away_for_a_while(server: RedisServer) -> None:
    async def conversation() -> None:
        clock = Clock()
        logto = Logto(clock, delay=0.2)
        store = store_at(server.url, idle=1e6, lifetime=1e7, clock=clock)
        renewals = Renewals(store, clock=clock)
        renewals.refresh = logto.refresh
        _, cookie = await store.create(logto.grant(), browser="b", address="a")
        clock.offset += LIFE + 1
        request = asyncio.ensure_future(store.load(cookie))
        await until(lambda: logto.going_on)
        server.pause()
        await until(lambda: not logto.going_on)
        with pytest.raises(StoreUnavailable):
            await store.ping()
        server.resume()
        found = await request
        assert found is not None
        assert found.identity.roles == ("ops",)
        stored = await store.tokens(cookie)
        assert stored is not None
        assert stored.refresh_token == "refresh-1"
        assert logto.asked == ["refresh-0"]
        await renewals.close()
        await store.close()

    asyncio.run(conversation())


def test_closing_waits_for_what_logto_may_have_done_already(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.2) as world:
            world.clock.offset += LIFE + 1
            request = asyncio.ensure_future(world.load())
            await until(lambda: world.logto.going_on)
            await world.renewals[0].close()
            assert (await world.store.tokens(world.cookie)).refresh_token == "refresh-1"
            await request

    run(conversation())


def test_a_claim_lost_meanwhile_undoes_nothing(server: RedisServer) -> None:
    """A worker that was stopped in the middle comes back with older tokens, or with a no to a token that is no longer used."""

    async def conversation() -> None:
        clock = Clock()
        logto = Logto(clock)
        one, two = (store_at(server.url, idle=1e6, lifetime=1e7, clock=clock) for _ in range(2))
        first, second = Renewals(one, clock=clock), Renewals(two, clock=clock)
        second.refresh = logto.refresh
        reached, gate = asyncio.Event(), asyncio.Event()
        outcome: list[Exception | None] = [None]

        async def stopped(tokens: Tokens, identity: Identity) -> Grant:
            reached.set()
            await gate.wait()
            if outcome[0] is not None:
                raise outcome[0]
            return Grant(identity, Tokens("late", "late", clock() + LIFE, "late"), None, 1.0)

        first.refresh = stopped
        for error in (None, LogtoRefused("invalid_grant")):
            outcome[0] = error
            reached.clear()
            gate.clear()
            _, cookie = await one.create(logto.grant(), browser="b", address="a")
            clock.offset += LIFE + 1
            waiting = asyncio.ensure_future(one.load(cookie))
            await reached.wait()
            for key in server.do("KEYS", "postern:lock:*"):
                server.do("DEL", key)
            renewed = await two.load(cookie)
            assert renewed is not None
            assert renewed.identity.roles == ("ops",)
            tokens = await two.tokens(cookie)
            gate.set()
            found = await waiting
            assert found is not None
            assert await one.tokens(cookie) == tokens
            assert tokens is not None
            assert tokens.refresh_token != "late"
        for one_of in (first, second):
            await one_of.close()
        for store in (one, two):
            await store.close()

    asyncio.run(conversation())


def _refresh_and_hang(url: str, cookie: str, offset: float, pipe: Any) -> None:
    """A worker that is killed while it asks Logto."""

    async def work() -> None:
        clock = Clock()
        clock.offset = offset
        store = store_at(url, idle=1e6, lifetime=1e7, clock=clock)
        renewals = Renewals(store, clock=clock)

        async def hang(tokens: Tokens, identity: Identity) -> Grant:
            pipe.send("asking")
            await asyncio.Event().wait()
            raise AssertionError

        renewals.refresh = hang
        await store.load(cookie)

    asyncio.run(work())


def test_a_worker_killed_while_it_refreshes_is_replaced(server: RedisServer) -> None:
    async def conversation() -> None:
        clock = Clock()
        logto = Logto(clock)
        store = store_at(server.url, idle=1e6, lifetime=1e7, clock=clock)
        renewals = Renewals(store, clock=clock)
        renewals.refresh = logto.refresh
        _, cookie = await store.create(logto.grant(), browser="b", address="a")
        clock.offset += LIFE + 1
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(
            target=_refresh_and_hang, args=(server.url, cookie, clock.offset, theirs)
        )
        worker.start()
        try:
            assert await asyncio.to_thread(ours.poll, 30)
            waiting = asyncio.ensure_future(store.load(cookie))
            await asyncio.sleep(0.2)
            assert logto.asked == [], "the other one is at it"
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            began = time.monotonic()
            found = await waiting
            assert found is not None
            assert found.identity.roles == ("ops",)
            assert logto.asked == ["refresh-0"]
            assert time.monotonic() - began < CLAIM_SECONDS + 3
        finally:
            worker.kill()
            worker.join()
            ours.close()
            theirs.close()
        await renewals.close()
        await store.close()

    asyncio.run(conversation())


def test_tokens_that_cannot_be_read_end_the_session_after_the_grace(server: RedisServer) -> None:
    async def conversation() -> None:
        clock = Clock()
        logto = Logto(clock)
        store = store_at(server.url, idle=1e6, lifetime=1e7, clock=clock, bounds=Bounds(renewal_grace=600.0))
        renewals = Renewals(store, clock=clock)
        renewals.refresh = logto.refresh
        session, cookie = await store.create(logto.grant(), browser="b", address="a")
        server.do("HSET", f"postern:s:{session.id}", "t", "garbage")
        clock.offset += LIFE + 1
        assert await store.load(cookie) is not None
        clock.offset += 601
        assert await store.load(cookie) is None
        assert logto.asked == []
        await renewals.close()
        await store.close()

    asyncio.run(conversation())


def test_nobody_waits_for_ever_and_closing_neither(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.renewal._WAIT_SECONDS", 0.1)
    monkeypatch.setattr("proxy.renewal._DRAIN_SECONDS", 0.1)

    async def conversation() -> None:
        async with make(workers=2, delay=3600.0) as world:
            world.clock.offset += LIFE + 1
            for worker in range(len(world.stores)):
                assert (await world.load(worker)).identity.roles == ("dev",)
            assert world.logto.asked == ["refresh-0"]

    run(conversation())


def test_a_store_that_goes_away_meanwhile_is_said_to_be_away(server: RedisServer) -> None:
    async def conversation() -> None:
        clock = Clock()
        store = store_at(server.url, idle=1e6, lifetime=1e7, clock=clock)
        renewals = Renewals(store, clock=clock)
        session, cookie = await store.create(Logto(clock).grant(), browser="b", address="a")
        clock.offset += LIFE + 1
        server.pause()
        try:
            with pytest.raises(StoreUnavailable):
                await renewals.renewed(cookie, session)
        finally:
            server.resume()
        await renewals.close()
        await store.close()

    asyncio.run(conversation())
