"""What every session store owes, asked of each of them; and what is the memory store's alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from proxy.claims import ApiToken, Audience, Grant, Identity, Tokens, identity_from_claims
from proxy.sealing import KeyRing
from proxy.session import (
    MemoryStore,
    Miss,
    Session,
    SessionStore,
    clear_cookie_header,
    cookie_header,
    cookie_name,
    open_store,
)
from proxy.session_redis import RedisStore
from proxy.settings import Settings, load
from tests.redis_groups import RedisCluster, SentinelSet, redis_cluster, sentinel_set
from tests.redis_server import RedisServer, redis_server

T = TypeVar("T")
IDLE, LIFETIME = 3600.0, 86400.0
RING = KeyRing([b"k" * 32])
ALICE = identity_from_claims(
    {
        "sub": "s0062qn56eia",
        "username": "alice",
        "name": "Алиса 爱丽丝 \ud800",
        "email": "alice@example.test",
        "email_verified": True,
        "picture": None,
        "roles": ["ops", "dev"],
        "organizations": ["o1"],
        "organization_roles": ["o1:admin"],
        "identities": {"discord": {"userId": "80351110224678912", "details": {"rawData": {"username": "al"}}}},
        "custom_data": {"plan": {"tier": 1.5, "on": True, "none": None}},
    }
)
TOKENS = Tokens("id.token.one", "access-one", 1_000_003_600.0, "refresh-one")
GRANT = Grant(ALICE, TOKENS, "logto-sid", 999_999_000.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """Runs a conversation with a fresh store of one kind, on a clock of its own."""

    def __init__(self, redis: RedisServer | RedisCluster | SentinelSet | None) -> None:
        self.clock = Clock()
        self._redis = redis

    @property
    def remembers(self) -> bool:
        """Whether another store object, as another worker has it, sees the same sessions."""
        return self._redis is not None

    def open(self, *, idle: float = IDLE, lifetime: float = LIFETIME, ring: KeyRing = RING) -> SessionStore:
        if self._redis is None:
            return MemoryStore(idle=idle, lifetime=lifetime, clock=self.clock)
        return RedisStore(self._redis.url, ring, idle=idle, lifetime=lifetime, clock=self.clock)

    def run(self, conversation: Callable[[SessionStore], Awaitable[T]]) -> T:
        async def hold() -> T:
            store = self.open()
            await store.start()
            try:
                return await conversation(store)
            finally:
                await store.close()

        return asyncio.run(hold())


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


async def sign_in(store: SessionStore, grant: Grant = GRANT) -> tuple[Session, str]:
    return await store.create(grant, browser="Firefox", address="192.0.2.1")


def test_a_session_is_found_by_its_cookie(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        found = await store.load(cookie)
        assert found == session
        assert found is not None
        assert found.identity == ALICE
        assert found.identity.claims == ALICE.claims
        assert (found.sid, found.browser, found.address) == ("logto-sid", "Firefox", "192.0.2.1")
        assert (found.created_at, found.seen_at, found.signed_in_at) == (
            bench.clock.now,
            bench.clock.now,
            999_999_000.0,
        )
        assert found.expires_at == bench.clock.now + LIFETIME
        assert await store.tokens(cookie) == TOKENS
        assert store.peek(cookie) in (session, Miss.MISS)

    bench.run(conversation)


def test_all_sessions_of_a_person_or_of_a_logto_session_end_and_no_other(bench: Bench) -> None:
    bob = Grant(identity_from_claims({"sub": "bob"}), TOKENS, None, 1.0)
    elsewhere = Grant(ALICE, TOKENS, "another-sid", 1.0)

    async def conversation(store: SessionStore) -> None:
        ended: list[str] = []
        store.on_end(ended.append)
        here, there = (await sign_in(store))[0], (await sign_in(store, elsewhere))[0]
        third, (_, cookie) = (await sign_in(store, elsewhere))[0], await sign_in(store, bob)
        assert (await store.end_sid("unknown"), await store.end_user("nobody")) == (0, 0)
        assert (await store.end_sid("logto-sid"), ended) == (1, [here.id])
        assert await store.end_user(ALICE.sub) == 2
        assert set(ended) >= {here.id, there.id, third.id}
        assert (await store.end_user(ALICE.sub), await store.end_sid("another-sid")) == (0, 0)
        assert await store.load(cookie) is not None

    bench.run(conversation)


def test_more_sessions_of_one_person_than_are_ended_at_once(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        cookies = [(await sign_in(store))[1] for _ in range(1200)]
        assert await store.end_user(ALICE.sub) == 1200
        assert [await store.load(cookie) for cookie in cookies[::100]] == [None] * 12

    bench.run(conversation)


def test_a_session_that_is_marked_is_due_at_its_next_use_and_a_renewal_takes_the_mark_off(bench: Bench) -> None:
    async def due_in(store: SessionStore, cookie: str, due: list[str]) -> bool:
        deadline = time.monotonic() + 10
        while not due and time.monotonic() < deadline:
            if store.peek(cookie) is Miss.MISS:
                await store.load(cookie)
            await asyncio.sleep(0.01)
        return bool(due)

    async def conversation(store: SessionStore) -> None:
        due: list[str] = []
        store.on_due(lambda _, session: due.append(session.id))
        session, cookie = await sign_in(store)
        other, _ = await sign_in(store)
        await store.load(cookie)
        store.peek(cookie)
        assert due == []
        await store.renew_soon([session.id, "unknown", "A" * 22])
        assert await due_in(store, cookie, due)
        assert set(due) == {session.id}
        renewed = await store.replace(cookie, GRANT)
        assert renewed is not None
        assert renewed.renew_at > bench.clock.now
        found = await store.load(cookie)
        assert found is not None
        assert found.renew_at > bench.clock.now
        assert (await store.find(other.id)) is not None

    bench.run(conversation)


def test_a_cookie_says_nothing_and_is_always_new(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        cookies = [(await sign_in(store))[1] for _ in range(20)]
        parts = [cookie.split(".") for cookie in cookies]
        assert {part[0] for part in parts} == {"1"}
        assert len({part[1] for part in parts}) == len({part[2] for part in parts}) == 20
        assert {(len(part[1]), len(part[2])) for part in parts} == {(22, 43)}

    bench.run(conversation)


BAD_COOKIES = [
    *("", "1", "1..", "x" * 5000, "2.{id}.{secret}", "1.{id}", "1.{id}.", "1.{id}.{secret}x", "1.é.ü"),
    *("1.{id}.{other}", "1.{other_id}.{secret}", " 1.{id}.{secret}", "1.{id}.{secret}\n", "1.{id}.{secret}.x"),
    *('"1.{id}.{secret}"', "1.*.{secret}", "1.{id}/../x.{secret}", "1.{id}.{flipped}"),
]


@pytest.mark.parametrize("bad", BAD_COOKIES)
def test_only_the_very_cookie_opens(bench: Bench, bad: str) -> None:
    async def conversation(store: SessionStore) -> None:
        _, cookie = await sign_in(store)
        _, other = await sign_in(store)
        _, session_id, secret = cookie.split(".")
        _, other_id, other_secret = other.split(".")
        flipped = secret[:-1] + ("A" if secret[-1] != "A" else "B")
        value = bad.format(id=session_id, secret=secret, other_id=other_id, other=other_secret, flipped=flipped)
        assert store.peek(value) in (None, Miss.MISS)
        assert await store.load(value) is None
        assert await store.tokens(value) is None
        assert await store.replace(value, GRANT) is None
        assert await store.load(cookie) is not None

    bench.run(conversation)


@pytest.mark.parametrize(
    "bad", ["", "1.a.b", "1." + "a" * 22, "1." + "a" * 22 + "." + "b" * 44, "1.ä" + "a" * 21 + "." + "b" * 43]
)
def test_what_cannot_be_a_cookie_costs_no_question(bench: Bench, bad: str) -> None:
    async def conversation(store: SessionStore) -> None:
        assert store.peek(bad) is None

    bench.run(conversation)


def test_idle_ends_a_session_and_use_prolongs_it(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        _, used = await sign_in(store)
        _, unused = await sign_in(store)
        for _ in range(3):
            bench.clock.now += IDLE - 1
            assert await found_soon(store, used)
        assert await store.load(unused) is None
        assert await store.tokens(unused) is None
        bench.clock.now += IDLE
        assert await store.load(used) is None

    bench.run(conversation)


async def found_soon(store: SessionStore, cookie: str) -> bool:
    """Load, and wait for the note of it, which runs in the background."""
    found = await store.load(cookie)
    if isinstance(store, RedisStore):
        await asyncio.gather(*store._touching.values())
    return found is not None


def test_lifetime_ends_a_session_whatever_its_use(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        _, cookie = await sign_in(store)
        for _ in range(int(LIFETIME / 2880)):
            assert await found_soon(store, cookie)
            bench.clock.now += 2880
        bench.clock.now -= 1
        assert await found_soon(store, cookie)
        bench.clock.now = 1_000_000_000 + LIFETIME
        assert await store.load(cookie) is None

    bench.run(conversation)


def test_a_clock_that_steps_back_ends_nothing(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        bench.clock.now -= 600
        found = await store.load(cookie)
        assert found is not None
        assert found.seen_at == session.created_at

    bench.run(conversation)


def test_end(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        ended: list[str] = []
        store.on_end(ended.append)
        session, cookie = await sign_in(store)
        other, other_cookie = await sign_in(store)
        assert await store.end(session.id) is True
        assert ended == [session.id]
        assert await store.load(cookie) is None
        assert store.peek(cookie) in (None, Miss.MISS)
        assert await store.tokens(cookie) is None
        assert await store.replace(cookie, GRANT) is None
        assert await store.end(session.id) is False
        assert await store.end("*") is False
        assert await store.end("") is False
        assert await store.load(other_cookie) == other

    bench.run(conversation)


def test_a_listener_that_fails_stops_neither_the_end_nor_the_others(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(store: SessionStore) -> None:
        ended: list[str] = []

        def failing(_: str) -> None:
            raise RuntimeError("boom")

        store.on_end(failing)
        store.on_end(ended.append)
        session, _ = await sign_in(store)
        assert await store.end(session.id) is True
        assert ended == [session.id]

    bench.run(conversation)
    assert "listener" in caplog.text


def test_a_refresh_changes_who_and_tokens_but_not_when(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        session.blocks["route"] = b"X-Forwarded-User: old\r\n"
        bench.clock.now += 100
        fresh = Grant(Identity(sub=ALICE.sub, roles=("none",)), Tokens("id2", "a2", 5.0, None), None, bench.clock.now)
        replaced = await store.replace(cookie, fresh)
        assert replaced is not None
        assert replaced.blocks == {}
        for found in (replaced, await store.load(cookie)):
            assert found is not None
            assert found.identity == fresh.identity
            assert (found.id, found.sid, found.created_at) == (session.id, "logto-sid", session.created_at)
            assert (found.expires_at, found.signed_in_at) == (session.expires_at, 999_999_000.0)
        assert await store.tokens(cookie) == fresh.tokens

    bench.run(conversation)


def test_a_refresh_takes_over_a_new_sid(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        _, cookie = await sign_in(store)
        replaced = await store.replace(cookie, Grant(ALICE, TOKENS, "other-sid", 0.0))
        assert replaced is not None
        assert replaced.sid == "other-sid"

    bench.run(conversation)


def test_tokens_alone_change_nothing_else(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        bench.clock.now += 100
        await store.renew_soon([session.id])
        before = await store.read(cookie)
        assert before is not None
        due = before.renew_at
        more = replace(TOKENS, refresh_token="replacement", for_apis={Audience("https://api"): ApiToken("t", 1.0, 2.0)})
        assert await store.keep_tokens(cookie, more, after=TOKENS)
        assert await store.tokens(cookie) == more
        found = await store.load(cookie)
        assert found == before
        assert found.renew_at == due <= bench.clock.now
        assert await store.keep_tokens(cookie, TOKENS, after=TOKENS), "somebody else's are left as they are"
        assert await store.tokens(cookie) == more
        await store.end(session.id)
        assert not await store.keep_tokens(cookie, TOKENS, after=more)

    bench.run(conversation)


def test_a_refresh_cannot_turn_one_person_into_another(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        with pytest.raises(ValueError, match="whose session"):
            await store.replace(cookie, Grant(Identity(sub="mallory"), TOKENS, None, 0.0))
        assert await store.load(cookie) == session

    bench.run(conversation)


def test_once_is_true_once(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        answers = await asyncio.gather(*(store.once("attempt:a", 600) for _ in range(10)))
        assert sorted(answers) == [False] * 9 + [True]
        assert await store.once("attempt:b", 600) is True
        assert await store.once("attempt:a", 600) is False

    bench.run(conversation)


def test_ping(bench: Bench) -> None:
    bench.run(lambda store: store.ping())


def test_the_browser_is_cut_to_a_sensible_length(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, _ = await store.create(GRANT, browser="x" * 10_000, address="")
        assert len(session.browser) == 256

    bench.run(conversation)


def test_nothing_of_a_secret_shows(bench: Bench) -> None:
    async def conversation(store: SessionStore) -> None:
        session, cookie = await sign_in(store)
        shown = repr(session) + repr(store) + repr(GRANT) + repr(TOKENS)
        assert cookie.split(".")[2] not in shown
        assert "refresh-one" not in shown
        assert "id.token.one" not in shown

    bench.run(conversation)


def test_memory_frees_a_claim_after_its_time() -> None:
    bench = Bench(None)

    async def conversation(store: SessionStore) -> None:
        assert await store.once("a", 10) is True
        bench.clock.now += 9.9
        assert await store.once("a", 10) is False
        bench.clock.now += 0.1
        assert await store.once("a", 10) is True

    bench.run(conversation)


def test_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(idle=IDLE, lifetime=LIFETIME, clock=Clock(), limit=3)
    ended: list[str] = []
    store.on_end(ended.append)

    async def conversation() -> None:
        cookies = [(await sign_in(store))[1] for _ in range(5)]
        assert [store.peek(cookie) is not None for cookie in cookies] == [False, False, True, True, True]
        assert ended == [cookie.split(".")[1] for cookie in cookies[:2]]
        for number in range(10):
            assert await store.once(str(number), 600)
        assert len(store._claims) == 3

    with caplog.at_level(logging.WARNING):
        asyncio.run(conversation())
    assert "no room for more than 3" in caplog.text


def test_memory_forgets_what_has_run_out() -> None:
    clock = Clock()
    store = MemoryStore(idle=IDLE, lifetime=LIFETIME, clock=clock)
    ended: list[str] = []
    store.on_end(ended.append)

    async def conversation() -> None:
        old, _ = await sign_in(store)
        await store.once("a", 10)
        clock.now += IDLE + 1
        await sign_in(store)
        assert ended == [old.id]
        assert len(store._sessions) == 1
        assert store._claims == {}
        clock.now -= 10 * IDLE  # a clock set back must not stop the sweeping until it has caught up
        await store.once("b", 1)
        clock.now += 2 * IDLE
        await store.once("c", 1)
        assert "b" not in store._claims

    asyncio.run(conversation())


def test_memory_learns_of_an_end_when_it_looks() -> None:
    clock = Clock()
    store = MemoryStore(idle=IDLE, lifetime=LIFETIME, clock=clock)
    ended: list[str] = []
    store.on_end(ended.append)

    async def conversation() -> None:
        session, cookie = await sign_in(store)
        clock.now += IDLE
        assert store.peek(cookie) is None
        assert ended == [session.id]

    asyncio.run(conversation())


def settings(**changes: str) -> Settings:
    environ = {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": "https://auth.example.com",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "s" * 32,
    }
    return load(None, environ | {f"POSTERN_{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "header", "cleared"),
    [
        (
            {},
            "__Host-postern=v; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax; Secure",
            "__Host-postern=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            {"SESSION__COOKIE__DOMAIN": "example.com", "SESSION__COOKIE__NAME": "gate", "SESSION__LIFETIME": "2d"},
            "gate=v; Domain=example.com; Path=/; Max-Age=172800; HttpOnly; SameSite=Lax; Secure",
            "gate=; Domain=example.com; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            {"PUBLIC_URL": "http://localhost:3000", "SESSION__COOKIE__SAME_SITE": "strict"},
            "postern=v; Path=/; Max-Age=604800; HttpOnly; SameSite=Strict",
            "postern=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict",
        ),
        (
            {"SESSION__COOKIE__SAME_SITE": "none"},
            "__Host-postern=v; Path=/; Max-Age=604800; HttpOnly; SameSite=None; Secure",
            "__Host-postern=; Path=/; Max-Age=0; HttpOnly; SameSite=None; Secure",
        ),
    ],
)
def test_cookie_headers(changes: dict[str, str], header: str, cleared: str) -> None:
    tree = settings(**changes)
    assert cookie_header(tree, "v") == header
    assert clear_cookie_header(tree) == cleared
    assert cookie_name(tree) == header.partition("=")[0]


def test_open_store() -> None:
    async def conversation() -> None:
        for url, kind in (
            ("memory://", MemoryStore),
            ("redis://127.0.0.1:1/0", RedisStore),
            ("unix:///none", RedisStore),
        ):
            store = open_store(settings(SESSION__STORE=url), RING)
            assert type(store) is kind
            await store.start()
            await store.close()

    asyncio.run(conversation())
