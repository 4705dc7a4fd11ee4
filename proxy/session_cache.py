"""What one worker knows of sessions without asking: decoded, bounded, and only while it is told of every change.

An entry counts as long as the server it came from is known to report changes: its `Line` is good. A line that falls
silent is good for LEASE_SECONDS more, measured from the moment the last answered question was put: that is the longest a
change can go unnoticed, and only when the network loses what was sent.

The law: what was read before a change must not be kept after it. A read takes a ticket before its question leaves, and a
change that comes in meanwhile voids the ticket. No I/O, and nothing here awaits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, Literal
from weakref import WeakValueDictionary

from proxy.session_codec import Session, cookie_id

LEASE_SECONDS: Final = 3.0
_ABSENT: Final = 4096
_ENDED: Final = 10_000
_ENDED_SECONDS: Final = 600.0
# Entries that were used since they were queued go round again instead of out; so many of them for each that goes out.
_SECOND_CHANCES: Final = 16
# What a session takes in memory, roughly: the objects themselves, and its claims in their ten times larger form.
_ENTRY_BYTES: Final = 2048
_BYTES_PER_STORED: Final = 8


class Miss(Enum):
    """What `peek` answers when only I/O could tell."""

    MISS = 1


class Line:
    """One server's word that it reports every change. Good from `since` until `until` (epoch seconds)."""

    __slots__ = ("since", "until")

    def __init__(self) -> None:
        self.since = math.inf
        self.until = -math.inf

    def confirm(self, asked_at: float) -> None:
        """The server has answered what was asked at `asked_at`: it has reported everything before that."""
        # Both bounds, so that a clock that is set back gives no old line new life.
        self.since = asked_at
        self.until = asked_at + LEASE_SECONDS

    def cut(self) -> None:
        """The server reports no longer."""
        self.since = math.inf
        self.until = -math.inf

    def good(self, now: float) -> bool:
        """Whether what was read from this server can be believed at `now`."""
        return self.since <= now < self.until


class Entry:
    """A session at hand, with the cookie that opens it."""

    __slots__ = ("cookie", "line", "noted_at", "queued_at", "quiet_until", "session", "weight")

    def __init__(self, cookie: str, session: Session, line: Line, noted_at: float, stored: int) -> None:
        """`noted_at`: the last use that the store knows of; `stored`: the length of the record."""
        self.cookie = cookie
        self.session = session
        self.line = line
        self.noted_at = noted_at
        self.queued_at = noted_at
        self.quiet_until = 0.0  # before then a use needs no attention but this entry's
        self.weight = _ENTRY_BYTES + _BYTES_PER_STORED * stored


class Ticket:
    """A read under way. `void` once its answer may be older than a change that has been reported."""

    __slots__ = ("epoch", "session_id", "void")

    def __init__(self, session_id: str, epoch: int) -> None:
        self.session_id = session_id
        self.epoch = epoch
        self.void = False


class SessionCache:
    """Sessions by cookie, sessions known to be absent or ended, and every session that anybody in this process holds."""

    def __init__(
        self,
        *,
        entries: int,
        size: int,
        clock: Callable[[], float],
        attend: Callable[[Entry, float], float | None],
    ) -> None:
        """`entries`, `size` (bytes): the bounds; with 0 entries nothing is kept.

        `attend(entry, now)` is called for the first use of an entry after its `quiet_until`, and returns when the next one
        needs attention, or None: this use is not to be decided here.
        """
        self._limit = entries
        self._size = size
        self._clock = clock
        self._attend = attend
        self._by_cookie: dict[str, Entry] = {}
        self._by_id: dict[str, Entry] = {}
        self._weight = 0
        self._absent: dict[str, Line] = {}
        self._ended: dict[str, float] = {}  # id -> until when it is remembered
        self._tickets: dict[str, list[Ticket]] = {}
        self._epoch = 0
        self._held: WeakValueDictionary[str, Session] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._by_cookie)

    @property
    def weight(self) -> int:
        """Bytes that the entries take, roughly."""
        return self._weight

    # -- answers

    def peek(self, cookie: str) -> Session | Literal[Miss.MISS] | None:
        """Answer from what is known: the session, None when there certainly is none, or MISS.

        The secret is compared by looking the whole cookie up: a dictionary compares bytes only where a keyed hash of all
        of them is equal, so the time it takes says nothing of how much of a guess is right.
        """
        entry = self._by_cookie.get(cookie)
        if entry is None:
            return self._unknown(cookie)
        now, line = self._clock(), entry.line
        if now < entry.quiet_until and line.since <= now < line.until:
            session = entry.session
            if now > session.seen_at:  # noqa: PLR1730 -- for every request; max() costs more than all else here
                session.seen_at = now
            return session
        if not line.good(now):
            return Miss.MISS
        quiet_until = self._attend(entry, now)
        if quiet_until is None:
            return Miss.MISS
        entry.quiet_until = quiet_until
        entry.session.seen_at = max(entry.session.seen_at, now)
        return entry.session

    def _unknown(self, cookie: str) -> Literal[Miss.MISS] | None:
        session_id = cookie_id(cookie)
        if session_id is None or self.has_ended(session_id):
            return None
        line = self._absent.get(session_id)
        return None if line is not None and line.good(self._clock()) else Miss.MISS

    def stale(self, cookie: str) -> Session | None:
        """What was last known of `cookie`, whether or not that may still be believed."""
        entry = self._by_cookie.get(cookie)
        return entry.session if entry is not None else None

    def entry(self, session_id: str) -> Entry | None:
        """The entry of a session, if there is one."""
        return self._by_id.get(session_id)

    # -- reading

    def reading(self, session_id: str) -> Ticket:
        """Announce that the record of `session_id` is about to be asked for."""
        ticket = Ticket(session_id, self._epoch)
        self._tickets.setdefault(session_id, []).append(ticket)
        return ticket

    def done(self, ticket: Ticket) -> None:
        """The read is over, whatever came of it. A void ticket has been forgotten before."""
        tickets = self._tickets.get(ticket.session_id)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            if not tickets:
                del self._tickets[ticket.session_id]

    def keep(self, ticket: Ticket, entry: Entry) -> None:
        """Keep what a read has found, unless it may be outdated already or its server reports nothing."""
        now = self._clock()
        if not self._current(ticket, entry.line, now) or self._limit <= 0 or entry.weight > self._size:
            return
        self.drop(entry.session.id)
        entry.queued_at = now
        self._by_cookie[entry.cookie] = self._by_id[entry.session.id] = entry
        self._weight += entry.weight
        while len(self._by_cookie) > self._limit or self._weight > self._size:
            self._make_room(now)

    def keep_absent(self, ticket: Ticket, line: Line) -> None:
        """Keep that there is no such session. Safe as any other answer: were it created, that would be reported."""
        if self._limit > 0 and self._current(ticket, line, self._clock()):
            if len(self._absent) >= _ABSENT:
                del self._absent[next(iter(self._absent))]
            self._absent[ticket.session_id] = line

    def _current(self, ticket: Ticket, line: Line, now: float) -> bool:
        return not ticket.void and ticket.epoch == self._epoch and line.good(now)

    def _make_room(self, now: float) -> None:
        for _ in range(_SECOND_CHANCES):
            cookie, entry = next(iter(self._by_cookie.items()))
            if entry.session.seen_at <= entry.queued_at:
                break
            entry.queued_at = now
            del self._by_cookie[cookie]
            self._by_cookie[cookie] = entry
        self.drop(next(iter(self._by_cookie.values())).session.id)

    # -- changes

    def changed(self, session_id: str) -> tuple[bool, Entry | None]:
        """A change of a session has been reported. Tells whether anybody here cares, and the entry that was dropped."""
        for ticket in self._tickets.pop(session_id, ()):
            ticket.void = True
        self._absent.pop(session_id, None)
        entry = self.drop(session_id)
        return entry is not None or session_id in self._held, entry

    def drop(self, session_id: str) -> Entry | None:
        """Forget what was read of a session."""
        entry = self._by_id.pop(session_id, None)
        if entry is not None:
            del self._by_cookie[entry.cookie]
            self._weight -= entry.weight
        return entry

    def interrupted(self, *, forget: bool = True) -> None:
        """A server has ceased, or begun, to report: no read that is under way may be kept.

        With `forget`, entries that no good line covers go as well; else they stay for `stale` alone.
        """
        self._epoch += 1
        self._absent.clear()
        if forget:
            now = self._clock()
            for entry in [entry for entry in self._by_id.values() if not entry.line.good(now)]:
                self.drop(entry.session.id)

    def flushed(self) -> None:
        """Everything may have changed."""
        self._epoch += 1
        self._absent.clear()
        self._by_cookie.clear()
        self._by_id.clear()
        self._weight = 0

    # -- ends

    def end(self, session_id: str) -> bool:
        """Take a session for ended from now on; False when that is nothing new.

        It stays ended here even if the store brings it back, as a replica does that was promoted before it heard of the
        end. Ids are random and never given out twice: no living session can be meant.
        """
        self.drop(session_id)
        now = self._clock()
        while self._ended and (len(self._ended) >= _ENDED or next(iter(self._ended.values())) <= now):
            del self._ended[next(iter(self._ended))]
        if session_id in self._ended:
            return False
        self._ended[session_id] = now + _ENDED_SECONDS
        return True

    def has_ended(self, session_id: str) -> bool:
        """Whether this process knows that the session has ended."""
        until = self._ended.get(session_id)
        return until is not None and self._clock() < until

    def lately_ended(self) -> list[str]:
        """The sessions whose end is remembered."""
        return list(self._ended)

    # -- objects

    def adopt(self, fresh: Session) -> Session:
        """The one object of this process for the session that was read as `fresh`, brought up to date."""
        known = self._held.get(fresh.id)
        if known is None:
            self._held[fresh.id] = fresh
            return fresh
        known.become(fresh)
        return known

    def holds(self, session_id: str) -> bool:
        """Whether anybody in this process holds that session."""
        return session_id in self._held

    def held(self) -> Iterator[Session]:
        """Every session that anybody in this process holds: entries, and what open connections rest on."""
        return iter(list(self._held.values()))
