"""What a worker may believe of sessions without asking, and when it must not."""

from __future__ import annotations

import gc
from dataclasses import replace as changed_copy
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.claims import Identity
from proxy.session_cache import LEASE_SECONDS, Entry, Line, Miss, SessionCache
from proxy.session_codec import Holder, Session

START = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class World:
    """A cache, its clock, and a server's line to it."""

    def __init__(self, *, entries: int = 100, size: int = 10_000_000) -> None:
        self.clock = Clock()
        self.line = Line()
        self.attended: list[float] = []
        self.quiet: float | None = 60.0  # how long an entry needs no attention once it has had some
        self.cache = SessionCache(entries=entries, size=size, clock=self.clock, attend=self._attend)
        self.confirm()

    def _attend(self, entry: Entry, now: float) -> float | None:
        self.attended.append(now)
        return None if self.quiet is None else now + self.quiet

    def confirm(self) -> None:
        self.line.confirm(self.clock.now)

    def entry(self, holder: Holder | None = None, *, stored: int = 100, **changes: Any) -> Entry:
        holder = holder or Holder.new()
        session = session_for(holder, **changes)
        return Entry(holder.cookie, self.cache.adopt(session), self.line, session.seen_at, stored)

    def keep(self, entry: Entry | None = None) -> Entry:
        entry = entry or self.entry()
        ticket = self.cache.reading(entry.session.id)
        self.cache.keep(ticket, entry)
        self.cache.done(ticket)
        return entry


def session_for(holder: Holder, **changes: Any) -> Session:
    made = Session(holder.id, Identity(sub="alice"), None, START, START, START + 86400, START, "b", "a")
    return changed_copy(made, **changes)


@pytest.fixture
def world() -> World:
    return World()


def test_what_was_kept_is_found_by_its_very_cookie(world: World) -> None:
    entry = world.keep()
    assert world.cache.peek(entry.cookie) is entry.session
    other = Holder(entry.session.id, Holder.new().secret).cookie
    assert world.cache.peek(other) is Miss.MISS
    assert world.cache.peek(Holder.new().cookie) is Miss.MISS
    assert world.cache.peek("1.not.a-cookie") is None


def test_a_use_is_attended_to_once_in_a_while(world: World) -> None:
    entry = world.keep()
    for _ in range(5):
        assert world.cache.peek(entry.cookie) is entry.session
    assert world.attended == [START]
    world.clock.now += 60
    world.confirm()
    assert world.cache.peek(entry.cookie) is entry.session
    assert world.attended == [START, START + 60]


def test_a_use_moves_the_session_on_and_never_back(world: World) -> None:
    entry = world.keep()
    for moment in (1.0, 2.0, 1.5):
        world.clock.now = START + moment
        world.confirm()
        world.cache.peek(entry.cookie)
    assert entry.session.seen_at == START + 2


def test_what_is_not_to_be_decided_here_is_a_miss(world: World) -> None:
    world.quiet = None
    assert world.cache.peek(world.keep().cookie) is Miss.MISS


def test_a_silent_line_is_good_for_its_lease(world: World) -> None:
    entry = world.keep()
    world.clock.now += LEASE_SECONDS - 0.001
    assert world.cache.peek(entry.cookie) is entry.session
    world.clock.now += 0.001
    assert world.cache.peek(entry.cookie) is Miss.MISS
    world.confirm()
    assert world.cache.peek(entry.cookie) is entry.session, "nothing was missed: it has answered"


def test_a_clock_set_back_makes_no_line_good_for_longer(world: World) -> None:
    entry = world.keep()
    world.clock.now -= 600
    assert world.cache.peek(entry.cookie) is Miss.MISS
    world.confirm()
    assert world.cache.peek(entry.cookie) is entry.session


def test_a_cut_line_covers_nothing(world: World) -> None:
    entry = world.keep()
    world.line.cut()
    assert world.cache.peek(entry.cookie) is Miss.MISS
    world.cache.interrupted()
    assert len(world.cache) == 0
    assert world.cache.stale(entry.cookie) is None


def test_an_outage_can_be_survived_by_what_is_stale(world: World) -> None:
    entry = world.keep()
    world.line.cut()
    world.cache.interrupted(forget=False)
    assert world.cache.peek(entry.cookie) is Miss.MISS
    assert world.cache.stale(entry.cookie) is entry.session
    world.line = Line()  # what the connection after it covers is another matter
    world.confirm()
    assert world.cache.peek(entry.cookie) is Miss.MISS
    world.cache.interrupted()
    assert world.cache.stale(entry.cookie) is None


def test_only_what_the_lost_line_covered_is_forgotten(world: World) -> None:
    lost = world.keep()
    world.line, first = Line(), world.line
    world.confirm()
    other = world.keep()
    first.cut()
    world.cache.interrupted()
    assert world.cache.peek(other.cookie) is other.session
    assert world.cache.peek(lost.cookie) is Miss.MISS


@pytest.mark.parametrize("happens", ["changed", "interrupted", "flushed"])
def test_what_was_read_before_a_change_is_not_kept_after_it(world: World, happens: str) -> None:
    entry = world.entry()
    ticket = world.cache.reading(entry.session.id)
    if happens == "changed":
        world.cache.changed(entry.session.id)
    else:
        getattr(world.cache, happens)()
    world.cache.keep(ticket, entry)
    world.cache.keep_absent(ticket, world.line)
    world.cache.done(ticket)
    assert world.cache.peek(entry.cookie) is Miss.MISS
    assert len(world.cache) == 0


def test_another_sessions_change_voids_no_ticket(world: World) -> None:
    entry = world.entry()
    first, second = world.cache.reading(entry.session.id), world.cache.reading(entry.session.id)
    world.cache.changed(Holder.new().id)
    world.cache.done(first)
    world.cache.keep(second, entry)
    world.cache.done(second)
    assert world.cache.peek(entry.cookie) is entry.session
    assert world.cache._tickets == {}


def test_a_reported_change_says_who_cares(world: World) -> None:
    entry = world.keep()
    assert world.cache.changed(entry.session.id) == (True, entry)
    assert world.cache.changed(entry.session.id) == (True, None), "an open connection may hold it still"
    session_id = entry.session.id
    del entry
    gc.collect()
    assert world.cache.changed(session_id) == (False, None)


def test_absence_is_known_until_it_is_reported_otherwise(world: World) -> None:
    holder = Holder.new()
    ticket = world.cache.reading(holder.id)
    world.cache.keep_absent(ticket, world.line)
    world.cache.done(ticket)
    assert world.cache.peek(holder.cookie) is None
    world.clock.now += LEASE_SECONDS
    assert world.cache.peek(holder.cookie) is Miss.MISS
    world.confirm()
    assert world.cache.peek(holder.cookie) is None
    world.cache.changed(holder.id)
    assert world.cache.peek(holder.cookie) is Miss.MISS


def test_guesses_cannot_fill_the_memory(world: World) -> None:
    holders = [Holder.new() for _ in range(5000)]
    for holder in holders:
        ticket = world.cache.reading(holder.id)
        world.cache.keep_absent(ticket, world.line)
        world.cache.done(ticket)
    known = [world.cache.peek(holder.cookie) is None for holder in holders]
    assert sum(known) == 4096
    assert all(known[-4096:])
    assert world.cache._tickets == {}


def test_an_ended_session_stays_ended_whatever_comes_back(world: World) -> None:
    entry = world.keep()
    assert world.cache.end(entry.session.id) is True
    assert world.cache.end(entry.session.id) is False
    assert world.cache.peek(entry.cookie) is None
    assert world.cache.has_ended(entry.session.id)
    assert world.cache.lately_ended() == [entry.session.id]
    world.clock.now += 600
    assert not world.cache.has_ended(entry.session.id)
    assert world.cache.end(Holder.new().id) is True
    assert entry.session.id not in world.cache.lately_ended()


def test_memory_of_ends_is_bounded(world: World) -> None:
    ids = [Holder.new().id for _ in range(10_050)]
    for session_id in ids:
        world.cache.end(session_id)
    assert world.cache.lately_ended() == ids[50:]


def test_no_more_entries_than_allowed_and_the_used_ones_stay() -> None:
    world = World(entries=10)
    kept = [world.keep() for _ in range(10)]
    world.clock.now += 1
    world.confirm()
    for entry in kept[:5]:
        world.cache.peek(entry.cookie)
    for _ in range(5):
        world.keep(world.entry(seen_at=world.clock.now))
    assert [world.cache.peek(entry.cookie) is entry.session for entry in kept] == [True] * 5 + [False] * 5
    assert len(world.cache) == 10


def test_when_all_are_used_one_goes_all_the_same() -> None:
    world = World(entries=50)
    kept = [world.keep() for _ in range(50)]
    for _ in range(5):
        world.clock.now += 1
        world.confirm()
        for entry in kept:
            world.cache.peek(entry.cookie)
        kept.append(world.keep())
        assert len(world.cache) == 50


def test_no_more_bytes_than_allowed() -> None:
    world = World(size=30_000)
    for _ in range(20):
        world.keep(world.entry(stored=1000))
        assert world.cache.weight <= 30_000
    assert len(world.cache) == 2
    too_large = world.keep(world.entry(stored=10_000))
    assert world.cache.peek(too_large.cookie) is Miss.MISS
    assert len(world.cache) == 2


def test_a_cache_without_room_keeps_nothing() -> None:
    world = World(entries=0)
    entry = world.keep()
    assert world.cache.peek(entry.cookie) is Miss.MISS
    ticket = world.cache.reading("x")
    world.cache.keep_absent(ticket, world.line)
    assert world.cache._absent == {}


def test_keeping_again_replaces(world: World) -> None:
    holder = Holder.new()
    first, second = world.keep(world.entry(holder)), world.keep(world.entry(holder, seen_at=START + 1))
    assert len(world.cache) == 1
    assert world.cache.weight == second.weight
    assert world.cache.entry(holder.id) is second
    assert first.session is second.session, "one object for each session"


def test_everybody_holds_the_same_object(world: World) -> None:
    holder = Holder.new()
    mine = world.cache.adopt(session_for(holder))
    again = world.cache.adopt(session_for(holder, identity=Identity(sub="alice", roles=("ops",))))
    assert again is mine
    assert mine.identity.roles == ("ops",)
    assert world.cache.holds(holder.id)
    assert [session.id for session in world.cache.held()] == [holder.id]
    del mine, again
    gc.collect()
    assert not world.cache.holds(holder.id)
    assert list(world.cache.held()) == []


class Reality(RuleBasedStateMachine):
    """A server with versions of sessions; reads and reports travel apart, each in its own order. The cache may be behind
    only as far as reports that have not arrived yet explain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World(entries=3)
        self.holders = [Holder.new() for _ in range(5)]
        self.versions = dict.fromkeys(range(5), 0)
        self.reports: list[int] = []  # sent by the server, not yet here
        self.reads: list[tuple[int, Any, int]] = []  # answered by the server, not yet here

    holders_of = st.integers(0, 4)

    @rule(which=holders_of)
    def write(self, which: int) -> None:
        self.versions[which] += 1
        self.reports.append(which)

    @rule(which=holders_of)
    def ask(self, which: int) -> None:
        self.reads.append((which, self.world.cache.reading(self.holders[which].id), self.versions[which]))

    @precondition(lambda self: self.reads)
    @rule(data=st.data())
    def answer_arrives(self, data: st.DataObject) -> None:
        which, ticket, version = self.reads.pop(data.draw(st.integers(0, len(self.reads) - 1)))
        session = session_for(self.holders[which], browser=str(version))
        self.world.cache.keep(ticket, Entry(self.holders[which].cookie, session, self.world.line, START, 10))
        self.world.cache.done(ticket)

    @precondition(lambda self: self.reports)
    @rule()
    def report_arrives(self) -> None:
        self.world.cache.changed(self.holders[self.reports.pop(0)].id)

    @rule()
    def connection_is_lost_and_found(self) -> None:
        self.world.line.cut()
        self.world.cache.interrupted()
        self.reports.clear()
        self.world.line = Line()
        self.world.confirm()
        self.world.cache.interrupted()

    @invariant()
    def nothing_older_than_the_reports_explain(self) -> None:
        for which, holder in enumerate(self.holders):
            found = self.world.cache.peek(holder.cookie)
            if isinstance(found, Session):
                behind = self.versions[which] - int(found.browser)
                assert behind <= self.reports.count(which)


TestReality = Reality.TestCase
TestReality.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
