"""Sessions in a real Redis: what is in it, and every way it can fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.sealing import KeyRing
from proxy.session import Session
from proxy.session_cache import Line
from proxy.session_records import Record
from proxy.session_redis import RedisStore
from proxy.session_servers import Reach
from tests.certificates import Authority
from tests.redis_server import RedisServer, redis_server

RING = KeyRing([b"k" * 32])
GRANT = Grant(
    Identity(sub="alice", email="alice@example.test"), Tokens("id-token", "access", 5.0, "refresh"), "sid", 1.0
)
# What is promised, with room for a busy machine.
PROMISED_SECONDS = Reach().patience + 2
RECOVERY_SECONDS = 15.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def run(
    url: str,
    conversation: Callable[[RedisStore], Awaitable[None]],
    *,
    idle: float = 3600.0,
    ring: KeyRing = RING,
    clock: Callable[[], float] = time.time,
) -> None:
    async def hold() -> None:
        store = RedisStore(url, ring, idle=idle, lifetime=86400.0, clock=clock)
        await store.start()
        try:
            await conversation(store)
        finally:
            await store.close()

    asyncio.run(hold())


async def sign_in(store: RedisStore) -> tuple[Session, str]:
    return await store.create(GRANT, browser="b", address="a")


async def unavailable(attempt: Awaitable[object]) -> str:
    """Expect StoreUnavailable, within what is promised; returns its message."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        await attempt
    assert time.monotonic() - began < PROMISED_SECONDS
    assert "id-token" not in str(caught.value)
    return str(caught.value)


async def everything_fails(store: RedisStore, cookie: str) -> str:
    """Whatever is asked at once: nobody is let in, and nobody is said to have no session."""
    session_id = cookie.split(".")[1]
    questions: list[Awaitable[object]] = [
        *(store.load(cookie), store.tokens(cookie), store.replace(cookie, GRANT), sign_in(store)),
        *(store.end(session_id), store.once("key", 60), store.ping()),
    ]
    messages = await asyncio.gather(*(unavailable(question) for question in questions))
    return messages[0]


async def recovered(attempt: Callable[[], Awaitable[Session | None]]) -> Session | None:
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


def test_what_lies_in_redis(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        await store.once("attempt:x", 60)
        keys = {key.decode() for key in server.do("KEYS", "*")}
        indexes = {key for key in keys if key.startswith(("postern:u:", "postern:l:"))}
        assert keys - indexes == {f"postern:s:{session.id}", "postern:once:attempt:x"}
        assert len(indexes) == 2
        assert all(server.do("PTTL", key) > 0 for key in keys)
        assert 3590_000 < server.do("PTTL", f"postern:s:{session.id}") <= 3600_000
        record = server.do("HGETALL", f"postern:s:{session.id}")
        assert set(record) == {b"s", b"t", b"n"}
        everything = b"".join(record.values())
        for word in (b"alice", b"id-token", b"access", b"refresh", cookie.split(".")[2].encode()):
            assert word not in everything

    run(server.url, conversation)


def test_the_ttl_never_outlives_the_lifetime(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        session, _ = await sign_in(store)
        assert 0 < server.do("TTL", f"postern:s:{session.id}") <= 86400

    run(server.url, conversation, idle=1e9)


def test_redis_forgets_an_unused_session_by_itself(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        assert await store.once("a", 0.02) is True
        deadline = time.monotonic() + RECOVERY_SECONDS
        while server.do("KEYS", "postern:s:*") or server.do("KEYS", "postern:once:*"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert await store.load(cookie) is None
        assert await store.end(session.id) is False
        assert await store.once("a", 60) is True

    run(server.url, conversation, idle=0.1)


def test_two_workers_see_the_same(server: RedisServer) -> None:
    async def conversation(one: RedisStore) -> None:
        two = RedisStore(server.url, KeyRing([b"n" * 32, b"k" * 32]), idle=3600.0, lifetime=86400.0)
        session, cookie = await sign_in(one)
        assert await two.load(cookie) is not None
        assert await two.replace(cookie, Grant(Identity(sub="alice", roles=("new",)), GRANT.tokens, None, 0.0))
        found = await two.load(cookie)
        assert found is not None
        assert found.identity.roles == ("new",)
        # sealed by the newer secret, which `one` does not have: no session for it, and no crash
        assert await one.load(cookie) is None
        assert sorted(await asyncio.gather(one.once("k", 60), two.once("k", 60))) == [False, True]
        assert await two.end(session.id) is True
        assert await one.load(cookie) is None
        await two.close()

    run(server.url, conversation)


def test_use_is_noted_seldom_and_only_forward(server: RedisServer) -> None:
    now = [1_000_000.0]

    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        key = f"postern:s:{session.id}"
        server.do("PEXPIRE", key, 5000)
        writes = writes_of(server)
        for _ in range(10):
            now[0] += 5.75
            assert await store.load(cookie)
        assert not store._touching
        assert writes_of(server) == writes
        now[0] += 2.5
        await store.load(cookie)
        assert list(store._touching) == [session.id]
        await asyncio.gather(*store._touching.values())
        assert float(server.do("HGET", key, "n")) == now[0]
        assert server.do("PTTL", key) > 3_500_000
        await store._touch(session, now[0] - 500)
        assert float(server.do("HGET", key, "n")) == now[0]

    run(server.url, conversation, clock=lambda: now[0])


def writes_of(server: RedisServer) -> int:
    """Count the scripts and writes that Redis has run."""
    stats = server.do("INFO", "commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "hset", "pexpire", "del"))


def test_an_ended_session_stays_ended(server: RedisServer) -> None:
    """A late note of a use, or the refresh of another worker, must not bring it back."""

    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        await store.end(session.id)
        await store._touch(session, time.time())
        assert await store._records.replace(session.id, b"s", b"t", b"") is None
        await store._records.fail(session.id, time.time())
        assert set(server.do("HKEYS", f"postern:s:{session.id}")) == {b"x", b"t"}
        assert await store.load(cookie) is None

    run(server.url, conversation)


def test_a_refresh_that_meets_the_end_is_lost(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        original = store._records.read

        async def read(session_id: str) -> tuple[Record, Line | None]:
            answer = await original(session_id)
            server.do("DEL", f"postern:s:{session.id}")  # another worker's sign-out, between read and write
            return answer

        store._records.read = read  # type: ignore[method-assign]
        assert await store.replace(cookie, GRANT) is None
        assert server.do("KEYS", "postern:s:*") == []

    run(server.url, conversation)


GARBAGE: list[tuple[str, list[tuple[object, ...]]]] = [
    ("a text", [("DEL", "{key}"), ("SET", "{key}", "x")]),
    ("a list", [("DEL", "{key}"), ("LPUSH", "{key}", "x")]),
    ("an empty session", [("HSET", "{key}", "s", "")]),
    ("junk", [("HSET", "{key}", "s", b"\xff\xfe1")]),
    ("another version", [("HSET", "{key}", "s", "9abc")]),
    ("no session", [("HDEL", "{key}", "s")]),
    ("no time", [("HDEL", "{key}", "n")]),
    ("a time that is none", [("HSET", "{key}", "n", "now")]),
]


@pytest.mark.parametrize("commands", [case[1] for case in GARBAGE], ids=[case[0] for case in GARBAGE])
def test_garbage_is_no_session(
    server: RedisServer, commands: list[tuple[object, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        key = f"postern:s:{session.id}"
        for command in commands:
            server.do(*(key if word == "{key}" else word for word in command))
        assert await store.load(cookie) is None
        assert await store.tokens(cookie) is None
        assert await store.replace(cookie, GRANT) is None
        await store._touch(session, time.time() + 100)  # on its own way: complains at most
        assert await store.end(session.id) is True

    with caplog.at_level(logging.WARNING):
        run(server.url, conversation)
    assert "cannot be read" in caplog.text or "HDEL" in str(commands)


def test_damaged_tokens_leave_the_session(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        for junk in (b"1junk", b"", b"7"):
            server.do("HSET", f"postern:s:{session.id}", "t", junk)
            assert await store.tokens(cookie) is None
        server.do("HDEL", f"postern:s:{session.id}", "t")
        assert await store.tokens(cookie) is None
        assert await store.load(cookie) is not None

    with caplog.at_level(logging.WARNING):
        run(server.url, conversation)
    assert "tokens" in caplog.text


def test_a_record_moved_to_another_id_is_no_session(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        one, _ = await sign_in(store)
        two, cookie = await sign_in(store)
        server.do("COPY", f"postern:s:{one.id}", f"postern:s:{two.id}", "REPLACE")
        assert await store.load(cookie) is None

    run(server.url, conversation)


def test_refused_then_back(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        server.stop()
        assert "ConnectionError" in await everything_fails(store, cookie)
        server.start()
        # its memory is gone with it: a new sign-in, no error
        assert await recovered(lambda: store.load(cookie)) is None
        _, cookie = await sign_in(store)
        assert await store.load(cookie) is not None

    run(server.url, conversation)


def test_a_restart_is_not_noticed(server: RedisServer) -> None:
    """The connections in the pool are dead then; the very next question opens a new one."""

    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        server.do("SAVE")
        server.restart()
        assert await store.load(cookie) is not None

    run(server.url, conversation)


def test_connections_cut_by_the_server_are_not_noticed(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        for _ in range(3):
            await asyncio.gather(*(store.load(cookie) for _ in range(5)))
            server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            found = await asyncio.gather(*(store.load(cookie) for _ in range(5)))
            assert all(found)

    run(server.url, conversation)


def test_frozen_then_back(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        session, cookie = await sign_in(store)
        server.pause()
        assert "time" in (await everything_fails(store, cookie)).lower()
        server.resume()
        found = await recovered(lambda: store.load(cookie))
        # what was asked of the frozen server may have reached it; nothing of it may be half done
        assert found is None or found.id == session.id
        _, cookie = await sign_in(store)
        assert await store.load(cookie) is not None

    run(server.url, conversation)


def test_frozen_with_more_questions_than_connections(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        server.pause()
        await asyncio.gather(*(unavailable(store.load(cookie)) for _ in range(100)))
        server.resume()
        assert await recovered(lambda: store.load(cookie)) is not None
        assert all(await asyncio.gather(*(store.load(cookie) for _ in range(100))))

    run(server.url, conversation)


def test_a_question_given_up_leaves_no_answer_for_the_next(server: RedisServer) -> None:
    """A client that leaves cancels its question; the late answer must not be taken for somebody else's session."""

    async def conversation(store: RedisStore) -> None:
        cookies = [(await sign_in(store))[1] for _ in range(4)]
        for delay in range(12):
            tasks = [asyncio.ensure_future(store.load(cookie)) for cookie in cookies]
            for _ in range(delay):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            found = await asyncio.gather(*(store.load(cookie) for cookie in cookies))
            assert [session and session.id for session in found] == [cookie.split(".")[1] for cookie in cookies]

    run(server.url + "?max_connections=2", conversation)


def test_flushed(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        await store.load(cookie)
        server.do("FLUSHALL")
        server.do("SCRIPT", "FLUSH")
        assert await store.load(cookie) is None
        session, cookie = await sign_in(store)
        assert await store.replace(cookie, GRANT) is not None
        await store._touch(session, time.time() + 1)
        assert await store.load(cookie) is not None

    run(server.url, conversation)


@pytest.mark.parametrize("user", ["", ":wrong", "nobody:wrong"])
def test_wrong_or_missing_password(user: str) -> None:
    with redis_server("--requirepass", "right-password", user=user) as server:

        async def conversation(store: RedisStore) -> None:
            message = await everything_fails(store, "1." + "a" * 22 + "." + "b" * 43)
            assert "Authentication" in message
            assert "right-password" not in message
            assert ":wrong" not in message

        run(server.url, conversation)


def test_right_password() -> None:
    with redis_server("--requirepass", "right-password", user=":right-password") as server:

        async def conversation(store: RedisStore) -> None:
            _, cookie = await sign_in(store)
            assert await store.load(cookie) is not None

        run(server.url, conversation)


def test_no_permission_is_the_stores_fault(server: RedisServer) -> None:
    server.do("ACL", "SETUSER", "limited", "on", ">pw", "~other:*", "+@all")

    async def conversation(store: RedisStore) -> None:
        assert "permission" in (await unavailable(store.load("1." + "a" * 22 + "." + "b" * 43))).lower()

    run(server.url.replace("://", "://limited:pw@"), conversation)


def test_a_read_only_replica_still_reads(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    now = [time.time()]

    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        other, _ = await sign_in(store)
        server.do("REPLICAOF", "127.0.0.1", "1")
        assert await store.load(cookie) is not None
        for question in (sign_in(store), store.replace(cookie, GRANT), store.end(other.id), store.once("k", 60)):
            assert "read only" in await unavailable(question)
        now[0] += 120
        for _ in range(3):
            assert await store.load(cookie) is not None
            await asyncio.gather(*store._touching.values())
        server.do("REPLICAOF", "NO", "ONE")
        assert await store.replace(cookie, GRANT) is not None

    with caplog.at_level(logging.WARNING):
        run(server.url, conversation, clock=lambda: now[0])
    assert caplog.text.count("cannot be noted") == 1


def test_too_few_replicas(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        server.do("CONFIG", "SET", "min-replicas-to-write", "1")
        assert "replicas" in await unavailable(sign_in(store))
        assert await store.load(cookie) is not None
        server.do("CONFIG", "SET", "min-replicas-to-write", "0")
        await sign_in(store)

    run(server.url, conversation)


def test_out_of_memory(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        server.do("CONFIG", "SET", "maxmemory", "1")
        await unavailable(sign_in(store))
        assert await store.load(cookie) is not None
        assert len(server.do("KEYS", "postern:s:*")) == 1

    run(server.url, conversation)


def test_loading() -> None:
    slow = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024", "--rdbcompression", "no")
    with redis_server(*slow) as server:

        async def conversation(store: RedisStore) -> None:
            _, cookie = await sign_in(store)
            server.do("DEBUG", "POPULATE", "1000", "filler", "1100")
            server.do("SAVE")
            server.restart(wait=False)
            seen: set[str] = set()

            async def attempt() -> Session | None:
                try:
                    return await store.load(cookie)
                except StoreUnavailable as error:
                    seen.add(str(error))
                    raise

            assert await recovered(attempt) is not None
            assert any("BusyLoading" in message for message in seen), seen

        run(server.url, conversation)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n$-5\r\n", b"+OK\r\n" * 50, b"\x00" * 99, b""]
)
def test_something_else_listens_there(answer: bytes) -> None:
    async def conversation() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(answer)
            await shut(writer)

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener:
            for user in ("", "user:pw@"):
                store = RedisStore(f"redis://{user}127.0.0.1:{port}/0", RING, idle=60.0, lifetime=60.0)
                await unavailable(store.load("1." + "a" * 22 + "." + "b" * 43))
                await unavailable(sign_in(store))
                await store.close()

    asyncio.run(conversation())


def test_start_while_redis_is_down(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    server.stop()

    async def conversation(store: RedisStore) -> None:
        server.start()
        _, cookie = await sign_in(store)
        assert await store.load(cookie) is not None

    with caplog.at_level(logging.WARNING):
        run(server.url, conversation)
    assert "no session can be read yet" in caplog.text


def test_closing_stops_what_runs_behind(server: RedisServer) -> None:
    now = [time.time()]

    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        now[0] += 100
        await store.load(cookie)
        assert store._touching
        await store.close()
        assert not store._touching

    run(server.url, conversation, clock=lambda: now[0])


def test_over_a_unix_socket(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        assert await store.load(cookie) is not None

    run(server.unix_url + "?db=3", conversation)


def test_once_survives_a_lost_answer(server: RedisServer) -> None:
    """The connection breaks after Redis has taken the claim: the second try meets its own mark."""

    async def conversation() -> None:
        cut: list[bytes] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", server.port)
            while data := await reader.read(65536):
                up_writer.write(data)
                answer = await up_reader.read(65536)
                if b"postern:once:" in data and not cut:
                    cut.append(data)
                    break
                writer.write(answer)
            for side in (up_writer, writer):
                await shut(side)

        listener = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with listener:
            url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
            store = RedisStore(url, RING, idle=60.0, lifetime=60.0)
            assert await store.once("k", 60) is True
            assert cut
            assert await store.once("k", 60) is False
            await store.close()

    asyncio.run(conversation())


async def shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = map(str, authority.issue("redis", "127.0.0.1"))
    ca = str(authority.file)
    options = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", ca, "--tls-auth-clients", "no")
    with redis_server(*options, scheme="rediss", url_query=f"ssl_ca_certs={ca}") as server:

        async def conversation(store: RedisStore) -> None:
            _, cookie = await sign_in(store)
            assert await store.load(cookie) is not None

        run(server.url, conversation)

        async def stranger(store: RedisStore) -> None:
            await unavailable(store.ping())

        run(server.url.partition("?")[0], stranger)
        run(server.url.partition("?")[0] + f"?ssl_ca_certs={tmp_path}/none.pem", stranger)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1",
            "redis+sentinel://h",
            "redis://:p4ss@h?bogus=1",
            "redis://h:port/0",
        ),
        *("", "redis://h?socket_timeout=soon", "redis://:p4ss@h:99999999999x/0", "rediss://h?ssl_cert_reqs=perhaps"),
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as caught:
        RedisStore(url, RING, idle=60.0, lifetime=60.0)
    assert "p4ss" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_url_cannot_turn_answers_into_text(server: RedisServer) -> None:
    async def conversation(store: RedisStore) -> None:
        _, cookie = await sign_in(store)
        assert await store.load(cookie) is not None

    run(server.url + "?decode_responses=true", conversation)
