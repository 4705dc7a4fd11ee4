"""Workers that share a real Redis: what one of them does, the others know at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator

import pytest

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.session import Bounds, Miss, Session
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import GRANT, TOKENS, hears, known, sign_in, store_at, until, workers


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """For tests that hurt it."""
    with redis_server() as server:
        yield server


def test_what_was_read_once_is_known(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            session, cookie = await sign_in(store)
            assert await known(store, cookie) == session
            asked = server.do("INFO", "commandstats")["cmdstat_hmget"]["calls"]
            for _ in range(100):
                assert store.peek(cookie) is session
            assert server.do("INFO", "commandstats")["cmdstat_hmget"]["calls"] == asked

    asyncio.run(conversation())


def test_an_end_is_known_everywhere_at_once(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 3) as (one, two, three):
            session, cookie = await sign_in(one)
            heard: list[str] = []
            for store in (two, three):
                await known(store, cookie)
                store.on_end(heard.append)
            began = time.monotonic()
            assert await one.end(session.id) is True
            assert one.peek(cookie) is None, "here before the store has even been told"
            await until(lambda: two.peek(cookie) is None and three.peek(cookie) is None)
            assert time.monotonic() - began < 5, "milliseconds, in truth"
            await until(lambda: heard == [session.id] * 2)

    asyncio.run(conversation())


def test_who_only_holds_a_session_hears_of_its_end(server: RedisServer) -> None:
    """As a tunnel does: its session is no longer in the cache, or never was."""

    async def conversation() -> None:
        async with workers(server.url, 2, bounds=Bounds(cache_entries=0)) as (one, two):
            session, cookie = await sign_in(one)
            held = await two.load(cookie)
            heard: list[str] = []
            two.on_end(heard.append)
            await one.end(session.id)
            await until(lambda: heard == [session.id])
            assert held is not None

    asyncio.run(conversation())


def test_new_roles_are_known_everywhere_at_once(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            _, cookie = await sign_in(one)
            session = await known(two, cookie)
            session.blocks["route"] = b"X-Forwarded-Groups: none\r\n"
            fresh = Grant(Identity(sub="alice", roles=("ops",)), Tokens("i2", "a2", 9e9, "r2"), None, 0.0)
            assert await one.replace(cookie, fresh) is not None
            await until(lambda: two.peek(cookie) is Miss.MISS or session.identity.roles == ("ops",))
            assert (await known(two, cookie)).identity.roles == ("ops",)
            assert session.identity.roles == ("ops",), "whoever holds it sees it"
            assert session.blocks == {}

    asyncio.run(conversation())


def test_a_use_noted_by_another_worker_keeps_it_alive_here(server: RedisServer) -> None:
    now = [1_000_000.0]

    async def conversation() -> None:
        async with workers(server.url, clock=lambda: now[0], idle=100.0) as (one, two):
            _, cookie = await sign_in(one)
            session = await known(two, cookie)
            for _ in range(4):
                now[0] += 60
                await one.load(cookie)
                await until(lambda: session.seen_at == now[0])
            assert await two.load(cookie) is session

    asyncio.run(conversation())


def test_everything_flushed(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            session, cookie = await sign_in(store)
            await known(store, cookie)
            heard: list[str] = []
            store.on_end(heard.append)
            server.do("FLUSHALL")
            await until(lambda: store.peek(cookie) is None)
            assert heard == [session.id]
            _, cookie = await sign_in(store)
            await known(store, cookie)

    asyncio.run(conversation())


def test_a_record_that_turns_bad_closes_what_rests_on_it(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1) as (store,):
            session, cookie = await sign_in(store)
            await known(store, cookie)
            heard: list[str] = []
            store.on_end(heard.append)
            server.do("HSET", f"postern:s:{session.id}", "s", "garbage")
            await until(lambda: heard == [session.id])
            assert await store.load(cookie) is None

    asyncio.run(conversation())


def test_absence_is_known_and_its_end_too(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            session, cookie = await sign_in(one)
            record = server.do("DUMP", f"postern:s:{session.id}")
            server.do("DEL", f"postern:s:{session.id}")
            deadline = time.monotonic() + 15
            while two.peek(cookie) is Miss.MISS:
                assert await two.load(cookie) is None
                assert time.monotonic() < deadline
            assert two.peek(cookie) is None
            server.do("RESTORE", f"postern:s:{session.id}", 10_000, record)
            await until(lambda: two.peek(cookie) is Miss.MISS)
            assert await two.load(cookie) is not None

    asyncio.run(conversation())


def test_a_lost_connection_empties_the_cache_until_it_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            session, cookie = await sign_in(one)
            held = await known(two, cookie)
            heard: list[str] = []
            two.on_end(heard.append)
            for _ in range(3):
                await cut_reports(server)
                await until(lambda: two.peek(cookie) is Miss.MISS)
                assert await two.load(cookie) is held, "it is asked for instead"
                await until(lambda: hears(two))
                assert await known(two, cookie) is held
            assert heard == []
            await cut_reports(server)
            server.do("DEL", f"postern:s:{session.id}")
            # What changes in between is learnt of afterwards.
            await until(lambda: heard == [session.id])

    with caplog.at_level(logging.INFO, "postern.session"):
        asyncio.run(conversation())
    assert "does not report changes" in caplog.text
    assert "Redis reports changes" in caplog.text


async def cut_reports(server: RedisServer) -> None:
    for line in server.do("CLIENT", "LIST").decode().splitlines():
        if "name=postern-tracking" in line:
            server.do("CLIENT", "KILL", "ID", line.split()[0].removeprefix("id="))
    await asyncio.sleep(0)


def test_a_server_that_freezes_is_not_believed_for_long(own_server: RedisServer) -> None:
    """No connection is lost, nothing is answered: what is known counts for the length of a lease."""

    async def conversation() -> None:
        async with workers(own_server.url, 1) as (store,):
            _, cookie = await sign_in(store)
            await known(store, cookie)
            own_server.pause()
            began = time.monotonic()
            await until(lambda: store.peek(cookie) is Miss.MISS)
            assert time.monotonic() - began < 5
            own_server.resume()
            await until(lambda: hears(store))
            await known(store, cookie)

    asyncio.run(conversation())


def test_an_end_that_redis_forgets_is_told_again(own_server: RedisServer) -> None:
    """A failover to a replica that was behind brings the session back: it is ended once more, and nobody gets in."""

    async def conversation() -> None:
        async with workers(own_server.url) as (one, two):
            session, cookie = await sign_in(one)
            await known(two, cookie)
            own_server.do("SAVE")
            await one.end(session.id)
            await until(lambda: two.peek(cookie) is None)
            own_server.restart()
            assert own_server.do("HEXISTS", f"postern:s:{session.id}", "s") == 1, "it is back"
            for store in (one, two):
                assert store.peek(cookie) is None
                assert await store.load(cookie) is None
            await until(lambda: own_server.do("HEXISTS", f"postern:s:{session.id}", "s") == 0)
            async with workers(own_server.url, 1) as (three,):
                assert await three.load(cookie) is None

    asyncio.run(conversation())


def test_an_end_while_redis_is_away_is_told_when_it_is_back(own_server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(own_server.url) as (one, two):
            session, cookie = await sign_in(one)
            await known(two, cookie)
            own_server.do("CLIENT", "PAUSE", 60_000, "WRITE")
            with pytest.raises(StoreUnavailable):
                await one.end(session.id)
            assert one.peek(cookie) is None
            assert await one.load(cookie) is None
            own_server.do("CLIENT", "UNPAUSE")
            await until(lambda: two.peek(cookie) is None)
            assert not own_server.do("HEXISTS", f"postern:s:{session.id}", "s")

    asyncio.run(conversation())


@pytest.mark.parametrize(("grace", "lives"), [(0.0, False), (60.0, True)])
def test_an_outage_with_and_without_grace(own_server: RedisServer, grace: float, lives: bool) -> None:
    async def conversation() -> None:
        async with workers(own_server.url, 1, bounds=Bounds(outage_grace=grace)) as (store,):
            _, cookie = await sign_in(store)
            session = await known(store, cookie)
            own_server.stop()
            await until(lambda: store.peek(cookie) is Miss.MISS)
            if not lives:
                with pytest.raises(StoreUnavailable):
                    await store.load(cookie)
                return
            for _ in range(5):
                assert await store.load(cookie) is session
            with pytest.raises(StoreUnavailable):
                await store.load("1." + "a" * 22 + "." + "b" * 43)
            own_server.start()
            await until(lambda: hears(store))
            await until(lambda: store.peek(cookie) is None or store.peek(cookie) is Miss.MISS)
            assert await store.load(cookie) is None, "the store has the last word when it is back"

    asyncio.run(conversation())


def test_grace_runs_out(own_server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(own_server.url, 1, bounds=Bounds(outage_grace=0.2)) as (store,):
            _, cookie = await sign_in(store)
            await known(store, cookie)
            own_server.stop()
            await until(lambda: store.peek(cookie) is Miss.MISS)
            deadline = time.monotonic() + 15
            while True:
                try:
                    assert await store.load(cookie) is not None
                except StoreUnavailable:
                    break
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(conversation())


def test_a_session_ended_without_its_cookie_leaves_its_tokens_to_whoever_has_it(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            session, cookie = await sign_in(one)
            await known(two, cookie)
            left: list[Tokens] = []
            two.on_leftover(left.append)
            await one.end(session.id)
            await until(lambda: left == [TOKENS])
            assert server.do("EXISTS", f"postern:s:{session.id}") == 0
            # Nobody has this one's cookie at hand until its browser comes back, to a worker that has heard of nothing.
            other, other_cookie = await sign_in(one)
            await one.end(other.id)
            late = store_at(server.url)
            late.on_leftover(left.append)
            assert await late.load(other_cookie) is None
            await until(lambda: left == [TOKENS] * 2)
            await late.close()
            # One that is replaced by the same person's next sign-in keeps its tokens: they are one grant with the new ones.
            third, third_cookie = await sign_in(one)
            await known(two, third_cookie)
            await one.end(third.id, leave_tokens=False)
            await until(lambda: two.peek(third_cookie) is None)
            assert server.do("EXISTS", f"postern:s:{third.id}") == 0
            assert left == [TOKENS] * 2

    asyncio.run(conversation())


def test_a_storm_of_ends(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            cookies = [(await sign_in(one))[1] for _ in range(300)]
            for cookie in cookies:
                await known(two, cookie)
            heard: list[str] = []
            two.on_end(heard.append)
            assert await one.end_user("alice") == 300
            await until(lambda: all(two.peek(cookie) is None for cookie in cookies))
            await until(lambda: len(heard) == 300)
            assert sorted(heard) == sorted(cookie.split(".")[1] for cookie in cookies)

    asyncio.run(conversation())


def test_load_and_end_at_the_same_time_never_leave_a_stale_session(server: RedisServer) -> None:
    async def conversation() -> None:
        async with workers(server.url) as (one, two):
            for delay in range(40):
                session, cookie = await sign_in(one)

                async def end(session: Session = session, delay: int = delay) -> None:
                    for _ in range(delay % 10):
                        await asyncio.sleep(0)
                    await one.end(session.id)

                await asyncio.gather(end(), *(two.load(cookie) for _ in range(5)))
                await until(lambda cookie=cookie: not isinstance(two.peek(cookie), Session))  # type: ignore[misc]  # mypy cannot infer it
                assert await two.load(cookie) is None

    asyncio.run(conversation())


def test_start_while_redis_is_down_and_up_later(own_server: RedisServer) -> None:
    own_server.stop()

    async def conversation() -> None:
        store = store_at(own_server.url)
        await store.start()
        own_server.start()
        await until(lambda: hears(store))
        _, cookie = await sign_in(store)
        await known(store, cookie)
        await store.close()
        assert GRANT.tokens == TOKENS

    asyncio.run(conversation())


def test_a_store_that_is_closed_lets_go_of_every_connection(own_server: RedisServer) -> None:
    """Its end is no loss of reports, which would have it read again whatever it holds."""

    def connections() -> int:
        return bytes(own_server.do("CLIENT", "LIST")).count(b" name=postern")

    async def conversation() -> None:
        async with workers(own_server.url, 1) as (store,):
            for _ in range(5):
                _, cookie = await sign_in(store)
                await known(store, cookie)
            assert connections() > 1
        await asyncio.sleep(0)
        await until(lambda: connections() == 0)

    asyncio.run(conversation())
