"""Random lives of sessions over two workers, against a model: no ended session ever passes, no living one is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from proxy.claims import Grant, Identity, Tokens
from proxy.sealing import KeyRing
from proxy.session import MemoryStore, Session, SessionStore
from proxy.session_redis import RedisStore
from tests.redis_server import RedisServer, redis_server

T = TypeVar("T")
IDLE, LIFETIME = 1000.0, 5000.0  # seconds
# Seconds: a use may be noted that much late, so a session may end that much before its last use would have it.
LATE = 60.0
RING = KeyRing([b"k" * 32])
SUBS, SIDS = ("ada", "bob"), ("sid-1", "sid-2", None)
HEARD_WITHIN = 20.0  # seconds of the real clock for one worker to hear of what another has done: milliseconds, in truth


@dataclass
class Life:
    """What the model knows of one session."""

    id: str
    cookie: str
    sub: str
    sid: str | None
    tokens: Tokens
    began: float
    seen: float
    ended: bool = False
    renewals: int = 0

    def certainly_lives(self, now: float) -> bool:
        return not self.ended and now < self.began + LIFETIME and now - self.seen < IDLE - LATE

    def certainly_over(self, now: float) -> bool:
        return self.ended or now >= self.began + LIFETIME or now - self.seen >= IDLE


class Lives(RuleBasedStateMachine):
    """Workers on one store and the people who use, renew and end their sessions there."""

    server: ClassVar[RedisServer | None] = None  # None: one worker, sessions in its memory

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000_000.0
        self.lives: list[Life] = []
        self.runner = asyncio.Runner()
        self.workers: list[SessionStore] = [self._store() for _ in range(2 if self.server else 1)]
        if self.server is not None:
            self.server.do("FLUSHALL")
        for worker in self.workers:
            self.do(worker.start())

    def _store(self) -> SessionStore:
        if self.server is None:
            return MemoryStore(idle=IDLE, lifetime=LIFETIME, clock=lambda: self.now)
        return RedisStore(self.server.url, RING, idle=IDLE, lifetime=LIFETIME, clock=lambda: self.now)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            for life in self.lives:
                for number in range(len(self.workers)):
                    self._use(life, number)
        finally:
            for worker in self.workers:
                self.do(worker.close())
            self.runner.close()

    def worker(self, number: int) -> SessionStore:
        return self.workers[number % len(self.workers)]

    def life(self, number: int) -> Life:
        return self.lives[number % len(self.lives)]

    # -- what people do

    @rule(sub=st.sampled_from(SUBS), sid=st.sampled_from(SIDS), at=st.integers(0, 1))
    def sign_in(self, sub: str, sid: str | None, at: int) -> None:
        tokens = Tokens("i.d.t", f"access-{len(self.lives)}", 9e9, f"refresh-{len(self.lives)}")
        grant = Grant(Identity(sub=sub, roles=("0",)), tokens, sid, self.now)
        session, cookie = self.do(self.worker(at).create(grant, browser="b", address="a"))
        self.lives.append(Life(session.id, cookie, sub, sid, tokens, self.now, self.now))

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def use(self, which: int, at: int) -> None:
        self._use(self.life(which), at)

    def _use(self, life: Life, at: int) -> None:
        over, lives = life.certainly_over(self.now), life.certainly_lives(self.now)
        found = self.do(self._asked(self.worker(at), life.cookie))
        assert not (found is not None and over), "an ended session passes"
        assert not (found is None and lives), "a living one is lost"
        if found is None:
            life.ended = True  # of idleness, within the time that uses are noted late
        else:
            assert (found.id, found.identity.sub, found.identity.roles) == (life.id, life.sub, (str(life.renewals),))
            life.seen = self.now

    async def _asked(self, worker: SessionStore, cookie: str) -> Session | None:
        """As the gate asks: what is at hand first."""
        at_hand = worker.peek(cookie)
        found = at_hand if isinstance(at_hand, Session) or at_hand is None else await worker.load(cookie)
        await worker.settled()
        return found

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def refresh(self, which: int, at: int) -> None:
        life = self.life(which)
        over, lives = life.certainly_over(self.now), life.certainly_lives(self.now)
        found = self.do(self._renewed(life, self.worker(at)))
        assert not (found is not None and over), "a refresh revives an ended session"
        assert not (found is None and lives)
        if found is not None:
            self._has_renewed(life)

    async def _renewed(self, life: Life, worker: SessionStore) -> Session | None:
        grant = Grant(Identity(sub=life.sub, roles=(str(life.renewals + 1),)), self._next(life), life.sid, life.began)
        return await worker.replace(life.cookie, grant, after=life.tokens)

    @staticmethod
    def _next(life: Life) -> Tokens:
        return replace(life.tokens, access_token=f"{life.tokens.access_token}+")

    def _has_renewed(self, life: Life) -> None:
        life.tokens, life.renewals = self._next(life), life.renewals + 1
        self._heard(lambda session: session is None or session.identity.roles == (str(life.renewals),), life)
        if life.certainly_lives(self.now):
            for worker in self.workers:
                assert self.do(worker.tokens(life.cookie)) == life.tokens

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def refresh_with_tokens_of_long_ago(self, which: int, at: int) -> None:
        life = self.life(which)
        stale = replace(life.tokens, access_token="somebody else's, or an earlier one")
        grant = Grant(Identity(sub=life.sub, roles=("stale",)), stale, life.sid, life.began)
        found = self.do(self.worker(at).replace(life.cookie, grant, after=stale))
        assert found is None or found.identity.roles == (str(life.renewals),)

    # -- how it ends

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def sign_out(self, which: int, at: int) -> None:
        life = self.life(which)
        self.do(self.worker(at).end(life.id, "signed out", leave_tokens=False))
        self._are_over([life])

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def sign_out_while_it_is_refreshed(self, which: int, at: int) -> None:
        life = self.life(which)

        async def both() -> None:
            await asyncio.gather(self._renewed(life, self.worker(at + 1)), self.worker(at).end(life.id, "signed out"))

        self.do(both())
        self._are_over([life])

    @rule(sub=st.sampled_from(SUBS), at=st.integers(0, 1))
    def revoke_a_persons(self, sub: str, at: int) -> None:
        self.do(self.worker(at).end_user(sub, "revoked"))
        self._are_over([life for life in self.lives if life.sub == sub])

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, 9), at=st.integers(0, 1))
    def end_all_others(self, which: int, at: int) -> None:
        spared = self.life(which)
        self.do(self.worker(at).end_user(spared.sub, "others", spare=spared.id))
        self._are_over([life for life in self.lives if life.sub == spared.sub and life is not spared])

    @rule(sid=st.sampled_from(SIDS[:2]), at=st.integers(0, 1))
    def logto_says_it_is_over(self, sid: str, at: int) -> None:
        self.do(self.worker(at).end_sid(sid, "back-channel logout"))
        self._are_over([life for life in self.lives if life.sid == sid])

    @rule(at=st.integers(0, 1))
    def revoke_all(self, at: int) -> None:
        async def all_of_them() -> None:
            store = self.worker(at)
            await store.end_each([session.id async for session in store.everything()], "revoked")

        self.do(all_of_them())
        self._are_over(self.lives)

    @rule(seconds=st.sampled_from([1.0, 59.0, 61.0, 400.0, IDLE - LATE - 1, IDLE, LIFETIME]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # -- what must hold

    def _are_over(self, lives: list[Life]) -> None:
        for life in lives:
            life.ended = True
            self._heard(lambda session: session is None, life)

    def _heard(self, good: Any, life: Life) -> None:
        """Every worker comes to know: what is at hand there says nothing else any more."""

        async def wait() -> None:
            deadline = time.monotonic() + HEARD_WITHIN
            for worker in self.workers:
                while isinstance(session := worker.peek(life.cookie), Session) and not good(session):
                    assert time.monotonic() < deadline, "a worker does not hear of it"
                    await asyncio.sleep(0.0005)

        self.do(wait())


def steps(examples: int) -> settings:
    """So many random lives, the same on every machine."""
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as it:
        yield it


def test_one_worker() -> None:
    run_state_machine_as_test(Lives, settings=steps(400))


def test_two_workers_on_one_redis(server: RedisServer) -> None:
    lives = type("LivesInRedis", (Lives,), {"server": server})
    run_state_machine_as_test(lives, settings=steps(600))
