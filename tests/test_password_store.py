"""What a store of app passwords owes, in memory and in Redis alike; and that none is ever a session, nor a session one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from proxy.claims import Grant, Identity, Tokens
from proxy.password_store import IDLE, LIFETIME, MemoryPasswords, PasswordStore, open_passwords
from proxy.sealing import KeyRing
from proxy.session import MemoryStore, Session, SessionStore
from proxy.session_codec import Errand, Holder
from tests.gateway_world import settings_for
from tests.redis_groups import RedisCluster, SentinelSet, redis_cluster, sentinel_set
from tests.redis_server import RedisServer, redis_server

T = TypeVar("T")
RING = KeyRing([b"k" * 32])
ADA = Identity(sub="ada", name="Ada \ud800 爱达", roles=("ops",))
BOB = Identity(sub="bob")
TOKENS = Tokens("id-token", "access", 9e9, "refresh")
DAY = 86400.0


class Bench:
    """Runs a conversation with a fresh store of app passwords and the store of sessions beside it, on a clock of its own."""

    def __init__(self, redis: RedisServer | RedisCluster | SentinelSet | None) -> None:
        self.now = 1_000_000_000.0
        self._redis = redis

    def clock(self) -> float:
        return self.now

    def _open(self) -> tuple[PasswordStore, SessionStore]:
        if self._redis is None:
            passwords: PasswordStore = MemoryPasswords(idle=IDLE, lifetime=LIFETIME, clock=self.clock)
            return passwords, MemoryStore(idle=3600, lifetime=DAY, clock=self.clock)
        from proxy.password_redis import RedisPasswords
        from proxy.session_redis import RedisStore

        url = self._redis.url
        passwords = RedisPasswords(url, RING, idle=IDLE, lifetime=LIFETIME, clock=self.clock)
        return passwords, RedisStore(url, RING, idle=3600, lifetime=DAY, clock=self.clock)

    def run(self, conversation: Callable[[PasswordStore, SessionStore], Awaitable[T]]) -> T:
        async def hold() -> T:
            stores = self._open()
            try:
                for store in stores:
                    await store.start()
                return await conversation(*stores)
            finally:
                for store in stores:
                    await store.close()

        return asyncio.run(hold())

    async def issued(self, store: PasswordStore, who: Identity = ADA, days: float = 30) -> tuple[Session, Holder]:
        holder = Holder.new()
        session = Session(
            id=holder.id,
            identity=who,
            sid=None,
            created_at=self.now,
            seen_at=self.now,
            expires_at=self.now + days * DAY,
            signed_in_at=0.0,
            browser="Firefox",
            address="192.0.2.1",
            via="password",
            errand=Errand("calendar 日历", "dav", self.now),
        )
        return await store.issue(holder, session), holder


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RedisCluster]:
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared_sentinels() -> Iterator[SentinelSet]:
    with sentinel_set() as group:
        yield group


@pytest.fixture(params=["memory", "redis", "cluster", "sentinel"])
def bench(request: pytest.FixtureRequest) -> Bench:
    if request.param == "memory":
        return Bench(None)
    if request.param == "cluster":
        cluster: RedisCluster = request.getfixturevalue("shared_cluster")
        cluster.do_on_masters("FLUSHALL")
        return Bench(cluster)
    if request.param == "sentinel":
        group: SentinelSet = request.getfixturevalue("shared_sentinels")
        group.master.do("FLUSHALL")
        return Bench(group)
    server: RedisServer = request.getfixturevalue("shared_redis")
    server.do("FLUSHALL")
    return Bench(server)


def test_one_is_found_by_its_holder_and_stays_what_it_was(bench: Bench) -> None:
    async def conversation(store: PasswordStore, _: SessionStore) -> None:
        session, holder = await bench.issued(store)
        found = await store.load(holder.cookie)
        assert found == session
        assert found is not None
        assert (found.via, found.errand, found.identity) == ("password", session.errand, ADA)
        assert await store.load(Holder(holder.id, Holder.new().secret).cookie) is None, "the id alone opens nothing"
        bench.now += 29 * DAY
        assert await store.load(holder.cookie) is not None, "a program may rest for weeks"
        assert [it.id for it in await store.of_user("ada")] == [session.id]
        bench.now += DAY
        assert await store.load(holder.cookie) is None, "it has expired"
        assert await store.of_user("ada") == []

    bench.run(conversation)


def test_it_is_no_session_and_a_session_is_none(bench: Bench) -> None:
    async def conversation(store: PasswordStore, sessions: SessionStore) -> None:
        password, holder = await bench.issued(store)
        session, cookie = await sessions.create(Grant(ADA, TOKENS, "sid", 1.0), browser="b", address="a")
        assert await sessions.load(holder.cookie) is None
        assert await store.load(cookie) is None
        assert not isinstance(sessions.peek(holder.cookie), Session)
        assert not isinstance(store.peek(cookie), Session)
        assert [it.id for it in await sessions.of_user("ada")] == [session.id]
        assert [it.id async for it in sessions.everything()] == [session.id]
        assert [it.id async for it in store.everything()] == [password.id]
        assert await sessions.find(password.id) is None
        assert not await sessions.end(password.id)
        assert not await store.end(session.id)
        assert await sessions.end_user("ada") == 1
        assert await store.load(holder.cookie) is not None, "a sign-out ends no app password"

    bench.run(conversation)


def test_all_of_a_person_end_and_nobody_elses(bench: Bench) -> None:
    async def conversation(store: PasswordStore, _: SessionStore) -> None:
        ended: list[str] = []
        store.on_end(ended.append)
        mine = [await bench.issued(store) for _ in range(3)]
        other = (await bench.issued(store, BOB))[1]
        assert await store.end(mine[0][0].id, leave_tokens=False)
        assert await store.end_user("ada") == 2
        assert {session.id for session, _ in mine} == set(ended)
        assert [await store.load(holder.cookie) for _, holder in mine] == [None] * 3
        assert await store.end_user("ada") == 0
        assert await store.load(other.cookie) is not None

    bench.run(conversation)


def test_what_is_amended_is_so_for_whoever_holds_it(bench: Bench) -> None:
    async def conversation(store: PasswordStore, _: SessionStore) -> None:
        session, holder = await bench.issued(store)
        known = await store.load(holder.cookie)
        assert known is not None
        blocks = known.blocks
        blocks["route"] = "headers of earlier"
        amended = await store.amend(session.id, lambda it: replace(it, identity=replace(ADA, roles=())))
        assert amended is not None
        assert amended.identity.roles == ()
        assert await store.load(holder.cookie) == amended
        assert known.identity.roles == (), "what rests on it sees the change"
        assert not blocks
        assert (amended.id, amended.expires_at, amended.errand) == (session.id, session.expires_at, session.errand)

    bench.run(conversation)


def test_nothing_brings_back_what_has_ended_or_makes_it_somebody_elses(bench: Bench) -> None:
    async def conversation(store: PasswordStore, _: SessionStore) -> None:
        session, holder = await bench.issued(store)
        with pytest.raises(ValueError, match="somebody else's"):
            await store.amend(session.id, lambda it: replace(it, identity=BOB))
        await store.end(session.id, leave_tokens=False)
        assert await store.amend(session.id, lambda it: replace(it, identity=replace(ADA, roles=()))) is None
        assert await store.load(holder.cookie) is None
        assert await store.amend("A" * 22, lambda it: it) is None
        assert await store.amend("*", lambda it: it) is None

    bench.run(conversation)


def test_it_is_where_the_sessions_are_and_takes_less_memory(tmp_path: Path) -> None:
    memory = open_passwords(settings_for(tmp_path), RING)
    assert isinstance(memory, MemoryPasswords)
    redis = open_passwords(settings_for(tmp_path, REDIS_URL="redis://127.0.0.1:1/0"), RING)
    assert type(redis).__name__ == "RedisPasswords"
    assert redis.bounds.cache_entries == 10_000
    assert redis.bounds.recheck == math.inf
