"""What is asked of Redis about sessions, at a real one: what each script leaves behind, twice as well as once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator

import pytest

from proxy.errors import StoreUnavailable
from proxy.session_records import BATCH, NOTHING, Record, Records, sid_index, stamp, user_index
from proxy.session_servers import Reach, open_servers
from tests.redis_server import RedisServer, redis_server

ID = "A" * 22
OTHER = "B" * 22


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


def talk(url: str, conversation: Callable[[Records], Awaitable[None]], reach: Reach = Reach()) -> None:  # noqa: B008 -- frozen
    async def whole() -> None:
        records = Records(open_servers(url, reach), reach)
        try:
            await conversation(records)
        finally:
            await records.servers.close()

    asyncio.run(whole())


async def begin(records: Records, session_id: str = ID, tokens: bytes = b"tokens") -> None:
    await records.create(session_id, b"sealed", tokens, 100.0, 60.0)


def test_what_is_created_is_read_and_has_its_time(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        record, line = await records.read(ID)
        assert record == Record(b"sealed", b"100.000", None, None, None, b"tokens")
        assert line is None, "nobody has asked this server to report changes"
        assert 59_000 < server.do("PTTL", f"postern:s:{ID}") <= 60_000
        assert (await records.read(OTHER))[0] == NOTHING

    talk(server.url, conversation)


def test_creating_twice_is_once_and_taking_a_taken_id_is_refused(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        await begin(records)
        with pytest.raises(StoreUnavailable):
            await records.create(ID, b"another", b"tokens", 100.0, 60.0)

    talk(server.url, conversation)


def test_use_is_noted_forward_only_and_never_brings_a_session_back(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        await records.touch(ID, 90.0, 600.0)
        assert (await records.read(ID))[0].seen == b"100.000", "a clock that is behind ages nobody"
        await records.touch(ID, 110.0, 600.0)
        assert (await records.read(ID))[0].seen == b"110.000"
        assert server.do("PTTL", f"postern:s:{ID}") > 60_000
        await records.end([ID], "signed out", leave_tokens=False)
        await records.touch(ID, 120.0, 600.0)
        await records.renew([ID], 1.0)
        await records.fail(ID, 1.0)
        assert server.do("KEYS", "*") == []

    talk(server.url, conversation)


def test_renewed_tokens_replace_only_those_that_were_renewed(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        await records.fail(ID, 105.0)
        await records.fail(ID, 106.0)
        await records.renew([ID], 107.0)
        assert (await records.read(ID))[0] == Record(b"sealed", b"100.000", b"105.000", None, b"107.000", b"tokens")
        for _ in range(2):  # the same once more, as after a connection that broke
            assert await records.replace(ID, b"sealed-2", b"tokens-2", b"tokens") is True
        assert (await records.read(ID))[0] == Record(b"sealed-2", b"100.000", None, None, None, b"tokens-2")
        assert await records.replace(ID, b"late", b"late", b"tokens") is False
        assert await records.replace(OTHER, b"late", b"late", b"tokens") is None
        assert (await records.read(ID))[0].stored == b"sealed-2"

    talk(server.url, conversation)


def test_tokens_alone_replace_those_they_were_made_from_and_nothing_else(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        await records.fail(ID, 105.0)
        await records.renew([ID], 107.0)
        for _ in range(2):  # the same once more, as after a connection that broke
            assert await records.keep_tokens(ID, b"tokens-2", b"tokens") is True
        assert (await records.read(ID))[0] == Record(b"sealed", b"100.000", b"105.000", None, b"107.000", b"tokens-2")
        assert await records.keep_tokens(ID, b"late", b"tokens") is False
        assert await records.keep_tokens(OTHER, b"late", b"tokens") is None
        assert (await records.read(ID))[0].tokens == b"tokens-2"
        await records.end([ID], "suspended", leave_tokens=True)
        assert await records.keep_tokens(ID, b"late", b"tokens-2") is None
        assert (await records.read(ID))[0].tokens == b"tokens-2"

    talk(server.url, conversation)


def test_what_an_end_leaves_behind_is_taken_once(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        assert await records.leftover(ID) is None, "it lives"
        assert await records.end([ID, OTHER], "suspended", leave_tokens=True) == 1
        assert await records.end([ID], "suspended", leave_tokens=True) == 0
        assert (await records.read(ID))[0] == Record(None, None, None, b"suspended", None, b"tokens")
        assert server.do("PTTL", f"postern:s:{ID}") > 0
        assert await records.leftover(ID) == b"tokens"
        assert await records.leftover(ID) is None
        assert server.do("KEYS", "*") == []

    talk(server.url, conversation)


def test_garbage_under_a_sessions_name_is_no_session_and_can_be_ended(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        server.do("SET", f"postern:s:{ID}", "no hash")
        assert (await records.read(ID))[0] == NOTHING
        assert await records.read_each([ID, OTHER]) == [NOTHING, NOTHING]
        assert await records.end([ID], "damaged", leave_tokens=True) == 1
        assert server.do("KEYS", "*") == []

    talk(server.url, conversation)


def test_an_index_forgets_what_has_expired_and_goes_with_the_last(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        key = user_index("ada")
        await records.index(key, ID, 200.0, 100.0)
        await records.index(key, OTHER, 400.0, 100.0)
        assert await records.indexed(key) == [(OTHER, 400.0), (ID, 200.0)]
        assert await records.indexed(key, 1) == [(OTHER, 400.0)]
        assert 200_000 < server.do("PTTL", key) <= 300_000
        await records.index(key, OTHER, 400.0, 300.0)
        assert await records.indexed(key) == [(OTHER, 400.0)]
        await records.unindex([(key, OTHER)])
        assert server.do("KEYS", "*") == []

    talk(server.url, conversation)


def test_more_than_fits_in_one_batch_or_page(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        ids = [f"{number:022d}" for number in range(6 * BATCH + 1)]
        key = sid_index("logto-sid")
        for it in ids:
            await records.index(key, it, 1000.0, 100.0)
        assert [it for it, _ in await records.indexed(key)] == ids[::-1]
        assert [it for it, _ in await records.indexed(key, 2 * BATCH + 1)] == ids[: -2 * BATCH - 2 : -1]
        await begin(records, ids[0])
        await begin(records, ids[-1])
        found = await records.read_each(ids)
        assert [number for number, record in enumerate(found) if record.stored] == [0, len(ids) - 1]
        assert {it async for batch in records.scan() for it in batch} == {ids[0], ids[-1]}
        assert await records.end(ids, "all", leave_tokens=False) == 2

    talk(server.url, conversation)


def test_a_claim_is_one_callers_until_it_is_given_back_or_lost(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        mark = await records.claim("renew", 60.0)
        assert mark is not None
        assert await records.claim("renew", 60.0) is None
        assert await records.extend("renew", mark, 120.0)
        assert server.do("PTTL", "postern:lock:renew") > 60_000
        assert not await records.extend("renew", "another's", 1.0)
        await records.release("renew", "another's")
        assert await records.claim("renew", 60.0) is None
        await records.release("renew", mark)
        assert await records.claim("renew", 60.0) is not None
        assert [await records.once("attempt", 60.0) for _ in range(3)] == [True, False, False]

    talk(server.url, conversation)


def test_a_word_is_there_for_everybody_until_its_time_is_up(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        assert await records.recall("it") is None
        await records.remember("it", b"first", 5.0)
        await records.remember("it", b"\xff\x00", 60.0)
        found = await records.recall("it")
        assert found is not None
        assert (found[0], 30 < found[1] <= 60) == (b"\xff\x00", True)
        server.do("PEXPIRE", "postern:word:it", 1)
        while await records.recall("it") is not None:
            pass
        server.do("LPUSH", "postern:word:it", "something else")
        assert await records.recall("it") is None

    talk(server.url, conversation)


def test_every_key_has_an_end(server: RedisServer) -> None:
    async def conversation(records: Records) -> None:
        await begin(records)
        await records.index(user_index("ada"), ID, 10_000.0, 100.0)
        await records.once("x", 60.0)
        await records.claim("y", 60.0)
        names = server.do("KEYS", "*")
        assert len(names) == 4
        assert all(server.do("PTTL", name) > 0 for name in names)

    talk(server.url, conversation)


@pytest.mark.parametrize("person", ["ada", "ada@example.com", "\ud800", ""])
def test_names_of_keys_name_nobody(person: str) -> None:
    for key in (user_index(person), sid_index(person)):
        assert re.fullmatch(r"postern:[ul]:[A-Za-z0-9_-]{24}", key)
        assert not person or person not in key
    assert user_index(person) != sid_index(person)


def test_times_are_stored_in_milliseconds() -> None:
    assert stamp(1764547200.12345) == "1764547200.123"


def test_a_server_that_is_gone_or_hangs_is_unavailable_and_the_moment_is_noted() -> None:
    async def refused(question: Awaitable[object]) -> None:
        with pytest.raises(StoreUnavailable):
            await question

    async def conversation(records: Records, running: RedisServer) -> None:
        noted: list[float | None] = []
        await records.ping()
        noted.append(records.down_since)
        running.pause()
        await refused(records.read(ID))
        noted.append(records.down_since)
        await refused(records.ping())
        noted.append(records.down_since)
        running.resume()
        await records.ping()
        noted.append(records.down_since)
        running.stop()
        await refused(records.once("x", 1.0))
        before, first, second, after = noted
        assert (before, after) == (None, None)
        assert first is not None
        assert second == first, "since the first failure"
        assert records.down_since is not None
        assert records.down_since > first

    with redis_server() as running:
        talk(running.url, lambda it: conversation(it, running), Reach(connect_timeout=0.2, command_timeout=0.3))
