"""Sessions in a real Redis Cluster: found wherever they are by now, known without asking only where changes are reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from proxy.claims import Grant
from proxy.errors import StoreUnavailable
from proxy.session import Miss, Session
from proxy.session_cluster import Cluster
from proxy.session_redis import RedisStore
from proxy.session_servers import Reach
from tests.redis_groups import RedisCluster, redis_cluster, text
from tests.redis_server import RedisServer
from tests.redis_worlds import Load, hears, known, sign_in, store_at, until, workers

# What is promised, with room for a busy machine.
PROMISED_SECONDS = Reach().patience + 3


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisCluster]:
    with redis_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: RedisCluster) -> RedisCluster:
    shared.do_on_masters("FLUSHALL")
    return shared


@pytest.fixture
def replicated() -> Iterator[RedisCluster]:
    """With a replica for each master, for tests that hurt it."""
    with redis_cluster(replicas=1) as cluster:
        yield cluster


def home(cluster: RedisCluster, session: Session) -> RedisServer:
    """The master that has `session`."""
    return next(node for node in cluster.masters if node.port == _owner(cluster, key_of(session)))


def _owner(cluster: RedisCluster, key: str) -> int:
    slot = key_slot(key.encode())
    for node in cluster.nodes:
        with contextlib.suppress(redis.RedisError):
            for first, last, master, *_ in _slots(node):
                if first <= slot <= last:
                    return int(master[1])
    raise AssertionError("nobody has it")


def _slots(node: RedisServer) -> list[Any]:
    with contextlib.closing(node.client()) as client:
        client.response_callbacks.clear()
        found: list[Any] = client.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        return found


def key_of(session: Session) -> str:
    return f"postern:s:{session.id}"


async def in_each_master(cluster: RedisCluster, store: RedisStore) -> list[tuple[Session, str]]:
    """Sessions in every master, one each."""
    found: dict[int, tuple[Session, str]] = {}
    while len(found) < len(cluster.masters):
        session, cookie = await sign_in(store)
        found[home(cluster, session).port] = (session, cookie)
    return list(found.values())


def test_sessions_are_spread_and_known_and_end_everywhere(cluster: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(cluster.url) as (one, two):
            assert len(two._records.servers.masters()) == 3
            for session, cookie in await in_each_master(cluster, one):
                assert (await known(two, cookie)).id == session.id
                heard: list[str] = []
                two.on_end(heard.append)
                await one.end(session.id)
                await until(lambda cookie=cookie: two.peek(cookie) is None)  # type: ignore[misc]  # mypy cannot infer it
                await until(lambda heard=heard, session=session: session.id in heard)  # type: ignore[misc]  # the same

    asyncio.run(conversation())


def test_all_of_a_person_are_found_and_ended_over_all_masters(cluster: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(cluster.url) as (one, two):
            made = {(await sign_in(one))[0].id for _ in range(30)}
            assert {session.id for session in await two.of_user("alice")} == made
            assert {session.id async for session in two.everything()} == made
            assert await two.end_user("alice") == 30
            assert [session async for session in one.everything()] == []

    asyncio.run(conversation())


def test_a_slot_that_moves_is_followed(cluster: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(cluster.url) as (one, two):
            session, cookie = await sign_in(one)
            await known(two, cookie)
            slot = key_slot(key_of(session).encode())
            source = home(cluster, session)
            target = next(node for node in cluster.masters if node is not source)
            begin_move(cluster, slot, source, target)
            assert await two.load(cookie) is not None
            migrate(source, target, key_of(session))
            await until(lambda: two.peek(cookie) is Miss.MISS)  # it has left the server that was listened to
            for _ in range(5):
                assert await two.load(cookie) is not None
                assert two.peek(cookie) is Miss.MISS, "in the middle of a move nothing is kept"
            assert await one.tokens(cookie) is not None
            assert await one.once("in-the-meantime", 60)
            end_move(cluster, slot, target)
            assert (await known(two, cookie)).id == session.id
            await one.end(session.id)
            await until(lambda: two.peek(cookie) is None)
            begin_move(cluster, slot, target, source)
            end_move(cluster, slot, source)

    asyncio.run(conversation())


def begin_move(cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.node_id(source))
    source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.node_id(target))


def migrate(source: RedisServer, target: RedisServer, key: str) -> None:
    source.do("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)


def end_move(cluster: RedisCluster, slot: int, target: RedisServer) -> None:
    for node in (target, *(node for node in cluster.masters if node is not target)):
        node.do("CLUSTER", "SETSLOT", slot, "NODE", cluster.node_id(target))


def test_batches_follow_moves_too(cluster: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(cluster.url) as (one, two):
            session, _ = await sign_in(one)
            slot = key_slot(key_of(session).encode())
            source = home(cluster, session)
            target = next(node for node in cluster.masters if node is not source)
            begin_move(cluster, slot, source, target)
            migrate(source, target, key_of(session))
            assert [it.id for it in await two.of_user("alice")] == [session.id]
            end_move(cluster, slot, target)
            assert [it.id for it in await one.of_user("alice")] == [session.id]
            assert await one.end_each([session.id], leave_tokens=False) == 1
            begin_move(cluster, slot, target, source)
            end_move(cluster, slot, source)

    asyncio.run(conversation())


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_master_lost_under_load(replicated: RedisCluster, how: str) -> None:
    async def conversation() -> None:
        async with workers(replicated.url) as stores:
            living = [(await sign_in(stores[0]))[1] for _ in range(30)]
            ended = [(await sign_in(stores[0])) for _ in range(30)]
            replicated.do_on_masters("WAIT", 1, 5000)
            victim = home(replicated, ended[0][0])
            async with Load(stores, living, [cookie for _, cookie in ended]) as load:
                load.wrong.clear()
                for session, _ in ended[:25]:
                    await stores[0].end(session.id)
                # These end at the very moment: the replica may not have heard of it, the workers have.
                await asyncio.gather(*(stores[0].end(session.id) for session, _ in ended[25:]))
                load.wrong.clear()  # those that were still alive until now
                if how == "killed":
                    victim.stop()
                else:
                    victim.pause()
                await until(lambda: load.unavailable > 0, within=30)
                await load.well_again()
                for store in stores:
                    await until(lambda store=store: hears(store), within=30)  # type: ignore[misc]  # mypy cannot infer it
                for cookie in living:
                    assert isinstance(await known(stores[1], cookie), Session)
            assert load.wrong == []
            assert load.longest < PROMISED_SECONDS
            assert load.answers > 500
            if how == "frozen":
                victim.resume()

    asyncio.run(conversation())


def test_a_planned_change_of_masters(replicated: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(replicated.url) as (one, two):
            session, cookie = await sign_in(one)
            await known(two, cookie)
            old = home(replicated, session)
            new = replicated.replicas[replicated.masters.index(old)]
            replicated.do_on_masters("WAIT", 1, 5000)
            new.do("CLUSTER", "FAILOVER")
            await until(lambda: text(new.do("ROLE")[0]) == "master", within=30)
            await until(lambda: _follows(two, new), within=30)
            await known(two, cookie)
            await one.end(session.id)
            await until(lambda: two.peek(cookie) is None)

    asyncio.run(conversation())


def _follows(store: RedisStore, node: RedisServer) -> bool:
    return hears(store) and any(str(node.port) in master.name for master in store._records.servers.masters())


def test_nobody_there_then_all(caplog: pytest.LogCaptureFixture) -> None:
    cluster = RedisCluster()

    async def conversation() -> None:
        store = store_at(cluster.url)
        began = time.monotonic()
        await store.start()
        with pytest.raises(StoreUnavailable):
            await store.load("1." + "a" * 22 + "." + "b" * 43)
        with pytest.raises(StoreUnavailable):
            await store.of_user("alice")
        with pytest.raises(StoreUnavailable):
            await store.ping()
        assert time.monotonic() - began < 4 * PROMISED_SECONDS
        await asyncio.to_thread(cluster.start)
        await store.ping()
        await until(lambda: hears(store))
        _, cookie = await sign_in(store)
        await known(store, cookie)
        await store.close()

    try:
        with caplog.at_level(logging.WARNING):
            asyncio.run(conversation())
    finally:
        cluster.stop()
    assert "no session can be read yet" in caplog.text


def test_not_a_cluster() -> None:
    async def conversation() -> None:
        with RedisServer() as single:
            store = store_at(single.url.replace("redis://", "redis+cluster://"))
            with pytest.raises(StoreUnavailable, match="cluster support disabled"):
                await store.ping()
            await store.close()

    asyncio.run(conversation())


def test_a_cluster_that_lacks_slots_says_so() -> None:
    cluster = RedisCluster(masters=1)

    async def conversation() -> None:
        async with _bare(cluster) as store:
            with pytest.raises(StoreUnavailable):
                await store.load("1." + "a" * 22 + "." + "b" * 43)
            first = cluster.masters[0]
            first.do("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            await until(lambda: "cluster_slots_ok:8192" in cluster.info(first))
            failures = 0
            for _ in range(6):
                try:
                    await sign_in(store)
                except StoreUnavailable:
                    failures += 1
            assert failures > 0

    asyncio.run(conversation())


@contextlib.asynccontextmanager
async def _bare(cluster: RedisCluster) -> AsyncIterator[RedisStore]:
    try:
        cluster.masters[0].start()
        store = store_at(cluster.url)
        yield store
        await store.close()
    finally:
        cluster.stop()


def test_answers_that_are_no_map_are_survived() -> None:
    cluster = Cluster([("127.0.0.1", 1)], {}, Reach(), limit=4)

    async def conversation() -> None:
        changes: list[int] = []
        cluster.on_change = lambda: changes.append(1)
        cluster._arrange(("10.0.0.1", 7000), [[0, 16383, [b"", 7000, b"id"], [None, 7001, b"id"]]])
        assert [server.name for server in cluster.masters()] == ["master 10.0.0.1:7000"]
        cluster._arrange(("10.0.0.1", 7000), [[0, 16383, [b"", 7000, b"id"]]])
        assert changes == [1], "it is the same one"
        cluster._arrange(("10.0.0.1", 7000), [[0, 16383, [b"10.0.0.2", 7000, b"id"]]])
        assert changes == [1, 1]
        assert [server.name for server in cluster.masters()] == ["master 10.0.0.2:7000"]
        await cluster.close()

    asyncio.run(conversation())


def test_grants_are_the_same_everywhere(cluster: RedisCluster) -> None:
    async def conversation() -> None:
        async with workers(cluster.url) as (one, two):
            _, cookie = await sign_in(one)
            tokens = await one.tokens(cookie)
            assert tokens is not None
            session = await known(two, cookie)
            assert await two.replace(cookie, Grant(session.identity, tokens, "another-sid", 0.0)) is not None
            assert [it.sid for it in await one.of_sid("another-sid")] == ["another-sid"]
            mark = await one.claim("x", 60)
            assert mark is not None
            assert await two.claim("x", 60) is None
            assert await one.extend("x", mark, 60)
            await one.release("x", mark)
            assert await two.claim("x", 60) is not None

    asyncio.run(conversation())
