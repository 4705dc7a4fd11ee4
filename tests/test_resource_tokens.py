"""Tokens for the APIs behind apps: one worker asks, all profit, and an app is told today's token of this person or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from proxy.api_tokens import issued, with_token
from proxy.claims import Audience, Grant, Identity, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable, StoreUnavailable
from proxy.renewal import Renewals
from proxy.resource_tokens import ResourceTokens
from proxy.session import Bounds, MemoryStore, Session, SessionStore
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import store_at, until
from tests.test_renewal import Clock

LIFE = 3600.0
ALICE = Identity(sub="alice", roles=("dev",))
API = Audience("https://api.example.com")
OTHER = Audience("https://other.example.com")
ACME = Audience(None, "acme00000001")


@dataclass
class Logto:
    """Who gives tokens: counts, rotates the refresh token each time, takes its time, and refuses when told to."""

    clock: Clock
    delay: float = 0.0
    errors: dict[Audience, Exception] = field(default_factory=dict)
    asked: list[tuple[str, Audience | None]] = field(default_factory=list)  # with which refresh token, for what
    going_on: int = 0
    most: int = 0

    async def ask(self, session: Session, tokens: Tokens, audience: Audience) -> Tokens:
        number = await self._answer(tokens, audience)
        assert session.identity.sub == "alice"
        made = issued(f"{audience} {number}", self.clock(), self.clock() + LIFE)
        return with_token(replace(tokens, refresh_token=f"refresh-{number}"), audience, made, self.clock())

    async def refresh(self, tokens: Tokens, identity: Identity) -> Grant:
        number = await self._answer(tokens, None)
        renewed = Tokens(f"id-{number}", f"access-{number}", self.clock() + LIFE, f"refresh-{number}", tokens.for_apis)
        return Grant(identity, renewed, "sid", 1.0)

    async def _answer(self, tokens: Tokens, audience: Audience | None) -> int:
        self.asked.append((tokens.refresh_token or "", audience))
        number = len(self.asked)
        self.going_on += 1
        self.most = max(self.most, self.going_on)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.going_on -= 1
        if audience in self.errors:
            raise self.errors[audience]
        return number

    def count(self, audience: Audience | None = API) -> int:
        return sum(asked == audience for _, asked in self.asked)


@dataclass
class World:
    """Workers on one store, all asking one Logto."""

    clock: Clock
    logto: Logto
    stores: list[SessionStore]
    renewals: list[Renewals]
    workers: list[ResourceTokens]
    cookie: str

    @property
    def session_id(self) -> str:
        return self.cookie.split(".")[1]

    async def given(self, *audiences: Audience, worker: int = 0) -> list[str | None]:
        """What an app is told that wants these."""
        found = await self.workers[worker % len(self.workers)].of(self.cookie, audiences or (API,))
        assert found is not None
        tokens = found.for_apis
        assert set(tokens) <= set(audiences or (API,))
        return [tokens[it].value if it in tokens else None for it in audiences or (API,)]

    async def settled(self) -> None:
        await until(lambda: not any(it._jobs for it in self.renewals) and not any(it._jobs for it in self.workers))

    async def refresh_token(self) -> str | None:
        tokens = await self.stores[0].tokens(self.cookie)
        return tokens.refresh_token if tokens is not None else None


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


Make = Callable[..., Any]


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a world; with sessions in memory it has one worker."""

    @asynccontextmanager
    async def world(
        workers: int = 1, *, refresh_token: str | None = "refresh-0", **options: Any
    ) -> AsyncIterator[World]:
        clock = Clock()
        logto = Logto(clock, **options)
        bounds = Bounds(renewal_grace=600.0)
        stores: list[SessionStore] = []
        if request.param == "memory":
            stores.append(MemoryStore(idle=1e6, lifetime=1e7, clock=clock, bounds=bounds))
        else:
            url = request.getfixturevalue("server").url
            stores += [store_at(url, idle=1e6, lifetime=1e7, clock=clock, bounds=bounds) for _ in range(workers)]
        renewals = [Renewals(store, clock=clock) for store in stores]
        resource_tokens = [ResourceTokens(store, clock=clock) for store in stores]
        for one in renewals:
            one.refresh = logto.refresh
        for it in resource_tokens:
            it.ask = logto.ask
        for store in stores:
            await store.start()
        tokens = Tokens("id-0", "access-0", clock() + LIFE, refresh_token)
        _, cookie = await stores[0].create(Grant(ALICE, tokens, "sid", 1.0), browser="b", address="a")
        try:
            yield World(clock, logto, stores, renewals, resource_tokens, cookie)
        finally:
            for renewal, worker, store in zip(renewals, resource_tokens, stores, strict=True):
                await renewal.close()
                await worker.close()
                await store.close()

    return world


def run(conversation: Coroutine[Any, Any, None]) -> None:
    asyncio.run(conversation)


def test_got_once_and_kept_for_all_workers(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2) as world:
            assert await world.given() == ["https://api.example.com 1"]
            for worker in (0, 1, 0):
                assert await world.given(worker=worker) == ["https://api.example.com 1"]
            assert world.logto.asked == [("refresh-0", API)]
            assert await world.refresh_token() == "refresh-1", "what took its place is stored"

    run(conversation())


def test_thirty_at_once_ask_once(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2, delay=0.2) as world:
            given = await asyncio.gather(*(world.given(worker=number) for number in range(30)))
            assert given == [["https://api.example.com 1"]] * 30
            assert world.logto.asked == [("refresh-0", API)]

    run(conversation())


def test_several_for_one_app_one_after_the_other(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2, delay=0.01) as world:
            both = asyncio.gather(world.given(API, ACME), world.given(ACME, OTHER, worker=1))
            for tokens in await both:
                assert None not in tokens
            assert world.logto.most == 1, "each uses the refresh token that the one before left"
            assert sorted(str(audience) for _, audience in world.logto.asked) == sorted(map(str, (API, ACME, OTHER)))
            assert [token for token, _ in world.logto.asked] == ["refresh-0", "refresh-1", "refresh-2"]

    run(conversation())


def test_nobody_is_asked_for_apps_that_want_none(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            tokens = await world.workers[0].of(world.cookie, ())
            assert tokens is not None
            assert tokens.access_token == "access-0"
            assert world.logto.asked == []

    run(conversation())


def test_renewed_in_time_and_in_the_background(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.05) as world:
            await world.given()
            world.clock.offset += 0.85 * LIFE
            assert await world.given() == ["https://api.example.com 1"], "nobody waits"
            await world.settled()
            assert await world.given() == ["https://api.example.com 2"]
            assert world.logto.count() == 2

    run(conversation())


def test_what_is_over_is_handed_to_nobody(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.05) as world:
            await world.given()
            world.clock.offset += LIFE
            assert await world.given() == ["https://api.example.com 2"]
            world.clock.offset += LIFE
            world.logto.errors[API] = LogtoUnavailable("down")
            with pytest.raises(LogtoUnavailable):
                await world.given()

    run(conversation())


REFUSALS = [
    LogtoRefused("invalid_target", "resource indicator is missing, or unknown"),
    LogtoRefused("access_denied", "user is not a member of the organization", 403),
    LogtoRefused("insufficient_scope", "refresh token missing required scope", 403),
    LogtoRefused("invalid_grant", "grant request is invalid"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: str(refusal.error))
def test_logtos_no_is_an_answer_that_counts_for_a_while(
    make: Make, refusal: LogtoRefused, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation() -> None:
        async with make(workers=2, errors={API: refusal}) as world:
            for worker in range(10):
                assert await world.given(API, OTHER, worker=worker) == [None, "https://other.example.com 2"]
            assert world.logto.count() == 1
            assert await world.stores[0].read(world.cookie) is not None, "the session goes on"
            world.clock.offset += 301
            del world.logto.errors[API]
            assert await world.given() == [None], "nobody waits to hear it again"
            await world.settled()
            assert await world.given() == ["https://api.example.com 3"]
            assert sum("gives no access token" in line for line in caplog.messages) == 1
            assert "alice" not in caplog.text

    run(conversation())


def test_a_no_takes_the_place_of_a_token_at_once(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            await world.given()
            world.logto.errors[API] = LogtoRefused("access_denied", "", 403)
            world.clock.offset += 0.85 * LIFE
            await world.given()
            await world.settled()
            assert await world.given() == [None]

    run(conversation())


@pytest.mark.parametrize(
    ("refusal", "due"),
    [
        (LogtoRefused("invalid_grant"), True),
        (LogtoRefused("access_denied", "Access denied."), True),
        (LogtoRefused("invalid_target"), False),
    ],
    ids=["invalid_grant", "access_denied", "invalid_target"],
)
def test_whether_the_session_goes_on_is_for_its_renewal_to_find_out(
    make: Make, refusal: LogtoRefused, due: bool
) -> None:
    async def conversation() -> None:
        async with make(errors={API: refusal}) as world:
            world.logto.errors[None] = LogtoRefused("invalid_grant")
            assert await world.given() == [None]
            world.clock.offset += 0.01
            await world.stores[0].load(world.cookie)
            await world.settled()
            assert world.logto.count(None) == int(due)
            assert (await world.stores[0].load(world.cookie) is None) is due

    run(conversation())


FAILURES = [
    LogtoUnavailable("down"),
    LogtoRefused("invalid_client", status=401),
    LogtoRefused("invalid_access_token", "its sub is another person's"),
    RuntimeError("a bug of ours"),
]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_no_answer_is_no_answer_and_is_not_asked_for_again_at_once(make: Make, error: Exception) -> None:
    async def conversation() -> None:
        async with make(errors={API: error}) as world:
            for _ in range(5):
                with pytest.raises(LogtoUnavailable):
                    await world.given()
            assert world.logto.count() == 1
            assert await world.stores[0].load(world.cookie) is not None
            assert await world.refresh_token() == "refresh-0"
            world.logto.errors.clear()
            world.workers[0]._pauses.clear()  # its pause is over
            assert await world.given() == ["https://api.example.com 2"]
            assert len(world.workers[0]._pauses) == 0

    run(conversation())


def test_what_one_app_wants_in_vain_is_nothing_to_another(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.02, errors={API: LogtoRefused("invalid_access_token")}) as world:
            for _ in range(3):
                found = await asyncio.gather(
                    *(world.given(API), world.given(API, OTHER), world.given(OTHER), world.given(ACME)),
                    return_exceptions=True,
                )
                assert [isinstance(one, LogtoUnavailable) for one in found] == [True, True, False, False]
                assert list(found[2:]) == [["https://other.example.com 2"], [f"{ACME} 3"]]
            assert world.logto.count() == 1
            world.clock.offset += 0.85 * LIFE
            await world.given(OTHER)
            await world.settled()
            assert world.logto.count(OTHER) == 2

    run(conversation())


def test_while_logto_is_down_what_is_good_is_handed_out(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            await world.given()
            world.logto.errors[API] = LogtoUnavailable("down")
            world.clock.offset += 0.85 * LIFE
            for _ in range(5):
                assert await world.given() == ["https://api.example.com 1"]
                await world.settled()
            assert world.logto.count() == 2

    run(conversation())


def test_a_refresh_token_that_was_replaced_is_kept_even_if_nothing_came_of_it(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:

            async def replaced(session: Session, tokens: Tokens, audience: Audience) -> Tokens:
                return replace(tokens, refresh_token="replacement")

            world.workers[0].ask = replaced
            with pytest.raises(LogtoUnavailable):
                await world.given()
            assert await world.refresh_token() == "replacement"

    run(conversation())


def test_a_client_that_leaves_stops_nothing(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.2) as world:
            request = asyncio.ensure_future(world.given())
            await until(lambda: world.logto.going_on)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await world.settled()
            assert await world.refresh_token() == "refresh-1"
            assert await world.given() == ["https://api.example.com 1"]
            assert world.logto.count() == 1

    run(conversation())


def test_an_ordinary_renewal_and_this_never_use_the_refresh_token_together(make: Make) -> None:
    async def conversation() -> None:
        async with make(workers=2, delay=0.1) as world:
            world.clock.offset += LIFE + 1
            renewed, given = await asyncio.gather(world.stores[0].load(world.cookie), world.given(worker=1))
            assert renewed is not None
            assert given != [None]
            assert world.logto.most == 1
            assert [token for token, _ in world.logto.asked] == ["refresh-0", "refresh-1"]
            assert await world.refresh_token() == "refresh-2"

    run(conversation())


def test_whoever_waits_waits_for_another_worker_and_then_asks(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            mark = await world.stores[0].claim(f"renew:{world.session_id}", 1e6)
            assert mark is not None
            world.workers[0]._start(world.cookie, world.session_id).wanted.append(API)
            await world.settled()
            assert world.logto.asked == [], "the background is content when another is at it"
            waiting = asyncio.ensure_future(world.given())
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert not waiting.done()
            await world.stores[0].release(f"renew:{world.session_id}", mark)
            assert await waiting == ["https://api.example.com 1"]

    run(conversation())


def test_signed_out_in_the_middle_the_new_refresh_token_is_left_for_revocation(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.2) as world:
            over: list[str | None] = []
            world.stores[0].on_leftover(lambda tokens: over.append(tokens.refresh_token))
            waiting = asyncio.ensure_future(world.workers[0].of(world.cookie, [API]))
            await until(lambda: world.logto.going_on)
            await world.stores[0].end(world.session_id, "signed out", leave_tokens=False)
            assert await waiting is None
            assert over == ["refresh-1"]

    run(conversation())


def test_nobody_and_a_cookie_that_is_none(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            assert await world.workers[0].of("garbage", [API]) is None
            await world.stores[0].end(world.session_id)
            assert await world.workers[0].of(world.cookie, [API]) is None
            assert world.logto.asked == []

    run(conversation())


def test_without_a_refresh_token_there_is_none_and_the_log_says_so_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation() -> None:
        async with make(refresh_token=None) as world:
            for _ in range(3):
                assert await world.given() == [None]
            assert world.logto.asked == []
            said = [record.getMessage() for record in caplog.records if record.name == "postern.renewal"]
            assert said == ["Logto gives no access token: there is no refresh token to get it with"]

    run(conversation())


def test_nobody_to_ask(make: Make) -> None:
    async def conversation() -> None:
        async with make() as world:
            world.workers[0].ask = None
            with pytest.raises(LogtoUnavailable):
                await world.given()

    run(conversation())


def test_nobody_waits_for_ever_and_closing_neither(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.resource_tokens._WAIT_SECONDS", 0.1)
    monkeypatch.setattr("proxy.resource_tokens._DRAIN_SECONDS", 0.1)

    async def conversation() -> None:
        async with make(workers=2, delay=3600.0) as world:
            for worker in range(len(world.workers)):
                with pytest.raises(LogtoUnavailable):
                    await world.given(worker=worker)
            await until(lambda: world.logto.asked)
            assert world.logto.count() == 1

    run(conversation())


def test_closing_waits_for_what_logto_may_have_done_already(make: Make) -> None:
    async def conversation() -> None:
        async with make(delay=0.2) as world:
            request = asyncio.ensure_future(world.given())
            await until(lambda: world.logto.going_on)
            await world.workers[0].close()
            assert await world.refresh_token() == "refresh-1"
            assert await request == ["https://api.example.com 1"]

    run(conversation())


def test_while_the_store_is_away_nobody_can_tell(server: RedisServer) -> None:
    async def conversation() -> None:
        clock = Clock()
        logto = Logto(clock, delay=0.2)
        store = store_at(server.url, idle=1e6, lifetime=1e7, clock=clock)
        worker = ResourceTokens(store, clock=clock)
        worker.ask = logto.ask
        tokens = Tokens("id-0", "access-0", clock() + LIFE, "refresh-0")
        _, cookie = await store.create(Grant(ALICE, tokens, "sid", 1.0), browser="b", address="a")
        try:
            request = asyncio.ensure_future(worker.of(cookie, [API]))
            await until(lambda: logto.going_on)
            server.pause()
            await until(lambda: not logto.going_on)
            with pytest.raises(StoreUnavailable):
                await worker.of(cookie, [API])
        finally:
            server.resume()
        found = await request
        assert found is not None
        assert found.for_apis[API].value == "https://api.example.com 1"
        assert found.refresh_token == "refresh-1"
        await worker.close()
        await store.close()

    asyncio.run(conversation())


@pytest.mark.parametrize("method", ["claim", "read"])
def test_a_store_that_goes_away_in_the_middle_is_said_to_be_away(
    method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StoreUnavailable("away")

    async def conversation() -> None:
        clock = Clock()
        store = MemoryStore(idle=1e6, lifetime=1e7, clock=clock)
        monkeypatch.setattr(store, method, away)
        worker = ResourceTokens(store, clock=clock)
        tokens = Tokens("id-0", "access-0", clock() + LIFE, "refresh-0")
        _, cookie = await store.create(Grant(ALICE, tokens, "sid", 1.0), browser="b", address="a")
        with pytest.raises(LogtoUnavailable):
            await worker.of(cookie, [API])
        assert "away" in caplog.text
        await worker.close()
        await store.close()

    asyncio.run(conversation())


def test_the_log_is_told_a_bounded_number_of_things(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.resource_tokens._TOLD", 3)
    worker = ResourceTokens(MemoryStore(idle=1.0, lifetime=1.0))
    for number in range(10):
        worker._tell(API, str(number))
    assert len(caplog.messages) == 3


def test_a_claim_lost_meanwhile_undoes_nothing(make: Make) -> None:
    """A worker that was stopped in the middle comes back with older tokens."""

    async def conversation() -> None:
        async with make() as world:

            async def late(session: Session, tokens: Tokens, audience: Audience) -> Tokens:
                newer = replace(tokens, refresh_token="newer", for_apis={API: issued("newer", world.clock(), 9e9)})
                assert await world.stores[0].keep_tokens(world.cookie, newer, after=tokens)
                return with_token(tokens, API, issued("late", world.clock(), 9e9), world.clock())

            world.workers[0].ask = late
            assert await world.given() == ["newer"]
            assert await world.refresh_token() == "newer"

    run(conversation())
