"""App passwords on a real Redis: what lies there, what workers hear of each other, and what two of them do at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from proxy.claims import Identity
from proxy.errors import StoreUnavailable
from proxy.password_redis import RedisPasswords
from proxy.password_store import IDLE, LIFETIME
from proxy.sealing import KeyRing
from proxy.session import Session
from proxy.session_codec import Errand, Holder
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import RING, hears, known, sign_in, store_at, until

ADA = Identity(sub="ada", roles=("ops",))


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


@contextlib.asynccontextmanager
async def workers(url: str, count: int = 2, ring: KeyRing = RING) -> AsyncIterator[list[RedisPasswords]]:
    stores = [RedisPasswords(url, ring, idle=IDLE, lifetime=LIFETIME) for _ in range(count)]
    try:
        for store in stores:
            await store.start()
        for store in stores:
            await until(lambda store=store: hears(store))  # type: ignore[misc]  # mypy cannot infer it
        yield stores
    finally:
        for store in stores:
            await store.close()


async def issued(store: RedisPasswords, seconds: float = 3600.0) -> tuple[Session, Holder]:
    now, holder = round(time.time() - 1, 3), Holder.new()
    errand = Errand("calendar", "dav", now)
    session = Session(holder.id, ADA, None, now, now, now + seconds, 0.0, "b", "a", via="password", errand=errand)
    return await store.issue(holder, session), holder


def test_what_lies_there_is_sealed_and_ends_by_itself(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            session, holder = await issued(store, 3600)
            keys = {key.decode() for key in server.do("KEYS", "*")}
            assert {key.rpartition(":")[0] for key in keys} == {"postern:p", "postern:pu"}
            assert all(3500_000 < server.do("PTTL", key) <= 3600_000 for key in keys)
            fields = server.do("HGETALL", f"postern:p:{session.id}")
            assert set(fields) == {b"s", b"n"}
            for told in (b"ada", b"calendar", holder.secret):
                assert not any(told in value for value in fields.values())
            await store.load(holder.cookie)
            assert server.do("PTTL", f"postern:p:{session.id}") > 3500_000

    asyncio.run(conversation())


def test_the_first_use_is_noted_at_once_and_the_next_in_their_time(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 2) as (store, other):
            session, holder = await issued(store)
            assert session.seen_at == session.created_at, "not used"
            await other.load(holder.cookie)
            await other.settled()
            found = await store.find(session.id)
            assert found is not None
            assert found.seen_at > session.created_at
            await store.load(holder.cookie)
            await store.settled()
            again = await other.find(session.id)
            assert again is not None
            assert again.seen_at == found.seen_at

    asyncio.run(conversation())


def test_a_record_moved_to_where_the_other_kind_is_does_not_open(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can write to Redis, and knows an app password, still has no session."""

    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            sessions = store_at(server.url)
            try:
                password, holder = await issued(store)
                session, cookie = await sign_in(sessions)
                server.do("COPY", f"postern:p:{password.id}", f"postern:s:{password.id}")
                server.do("COPY", f"postern:s:{session.id}", f"postern:p:{session.id}")
                assert await sessions.load(holder.cookie) is None
                assert await store.load(cookie) is None
            finally:
                await sessions.close()

    asyncio.run(conversation())
    assert caplog.text.count("does not open") == 2


def test_every_worker_hears_of_an_end_and_of_a_change(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, other):
            session, holder = await issued(one)
            ended: list[str] = []
            other.on_end(ended.append)
            seen = await known(other, holder.cookie)
            await one.amend(session.id, lambda it: replace(it, identity=replace(ADA, roles=())))
            await until(lambda: seen.identity.roles == ())
            await known(other, holder.cookie)
            await one.end(session.id)
            await until(lambda: other.peek(holder.cookie) is None)
            assert ended == [session.id]

    asyncio.run(conversation())


def test_sessions_and_app_passwords_are_reported_apart(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            sessions = store_at(server.url)
            try:
                await sessions.start()
                await until(lambda: hears(sessions))
                _, holder = await issued(store)
                _, cookie = await sign_in(sessions)
                await known(store, holder.cookie)
                await known(sessions, cookie)
                await sessions.end_user("alice")
                assert isinstance(store.peek(holder.cookie), Session)
            finally:
                await sessions.close()

    asyncio.run(conversation())


def test_who_comes_has_theirs_sealed_anew_before_an_old_secret_goes(server: RedisServer) -> None:
    old, new = b"k" * 32, b"n" * 32

    async def conversation() -> None:
        async with workers(server.url, 1, KeyRing([old])) as (store,):
            (come, known_holder), (stays, other_holder) = await issued(store), await issued(store)
        async with workers(server.url, 1, KeyRing([new, old])) as (store,):
            assert await store.amend(come.id, lambda it: it) is not None
        async with workers(server.url, 1, KeyRing([new])) as (store,):
            assert await store.load(known_holder.cookie) is not None
            assert await store.load(other_holder.cookie) is None
            assert await store.find(stays.id) is None

    asyncio.run(conversation())


def test_of_two_changes_at_once_neither_is_lost(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, other):
            session, _ = await issued(one)

            def role(name: str, it: Session) -> Session:
                return replace(it, identity=replace(it.identity, roles=(*it.identity.roles, name)))

            await asyncio.gather(
                one.amend(session.id, lambda it: role("a", it)), other.amend(session.id, lambda it: role("b", it))
            )
            found = await one.find(session.id)
            assert found is not None
            assert set(found.identity.roles) == {"ops", "a", "b"}

    asyncio.run(conversation())


def test_a_change_that_never_gets_its_turn_is_the_stores_failure(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            session, _ = await issued(store)

            async def too_late(*_: object) -> bool:
                return False

            monkeypatch.setattr(store._records, "amend", too_late)
            with pytest.raises(StoreUnavailable):
                await store.amend(session.id, lambda it: it)

    asyncio.run(conversation())


def test_what_cannot_be_read_is_left_alone(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,), workers(server.url, 1, KeyRing([b"x" * 32])) as (stranger,):
            session, holder = await issued(store)
            assert await stranger.amend(session.id, lambda it: it) is None
            assert await store.load(holder.cookie) is not None

            async def gone(*_: object) -> None:
                """It has ended between question and change."""

            monkeypatch.setattr(store._records, "amend", gone)
            assert await store.amend(session.id, lambda it: it) is None

    asyncio.run(conversation())
