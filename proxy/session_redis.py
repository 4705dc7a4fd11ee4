"""Sessions in Redis, shared by all workers, and what each worker knows of them without asking.

What lies in Redis is described in session_records.py, how a worker's memory of it stays true in session_mirror.py. Here is
what they mean: which record is a living session, when its use is noted, what its end brings with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar, Final, Literal

from typing_extensions import override

from proxy.claims import Grant, Tokens
from proxy.errors import StoreUnavailable
from proxy.sealing import KeyRing
from proxy.session_cache import Entry, Line, Miss, SessionCache
from proxy.session_chores import Chores
from proxy.session_codec import (
    SESSIONS,
    Damaged,
    Holder,
    Kind,
    Session,
    encode_session,
    encode_tokens,
    is_session_id,
)
from proxy.session_mirror import Mirror
from proxy.session_records import BATCH, Record, Records, indexes_of, opened, sid_index, tokens_in, user_index
from proxy.session_servers import Reach, all_of, open_servers
from proxy.session_store import Bounds, SessionStore, new_session, refreshed

_TOUCH_SECONDS: Final = 60.0
_DUE_AGAIN_SECONDS: Final = 1.0
_END_AGAIN_SECONDS: Final = 1.0
_TRY_AGAIN_SECONDS: Final = 1.0  # one request tries whether Redis is back, while the others live on its grace
_JUST_BEGUN_SECONDS: Final = 60.0  # one is on its indexes before it is there: so long, what is not there stays on them
_log = logging.getLogger("postern.session")


class RedisStore(SessionStore):
    """Sessions in Redis 6 or later; for the forms of `url` see session_servers.py."""

    kind: ClassVar[Kind] = SESSIONS

    def __init__(
        self,
        url: str,
        keyring: KeyRing,
        *,
        idle: float,
        lifetime: float,
        clock: Callable[[], float] = time.time,
        bounds: Bounds = Bounds(),  # noqa: B008 -- frozen
        reach: Reach = Reach(),  # noqa: B008 -- frozen
    ) -> None:
        """`idle`, `lifetime` in seconds. Touches nothing; ValueError when `url` cannot be one."""
        super().__init__(idle=idle, lifetime=lifetime, clock=clock, bounds=bounds)
        self._ring = keyring
        self._touch_every = min(_TOUCH_SECONDS, idle / 10)
        self._touching: dict[str, asyncio.Task[None]] = {}
        self._chores = Chores()
        self._try_at = 0.0
        self._unended: dict[str, tuple[str, bool]] = {}  # ended here, not yet in Redis: id -> (why, leave tokens)
        self._records = self.board = Records(open_servers(url, reach), reach, self.kind)
        self._cache = SessionCache(
            entries=bounds.cache_entries, size=bounds.cache_bytes, clock=clock, attend=self._attend
        )
        self._mirror = Mirror(
            self._records.servers,
            self._cache,
            reach,
            clock=clock,
            grace=bounds.outage_grace > 0,
            read_again=self._read_again,
            resumed=self._resumed,
            kind=self.kind,
        )

    # -- finding

    @override
    def peek(self, cookie: str) -> Session | Literal[Miss.MISS] | None:
        return self._cache.peek(cookie)

    @override
    async def read(self, cookie: str) -> Session | None:
        holder = Holder.read(cookie)
        if holder is None or self._cache.has_ended(holder.id):
            return None
        known = self._graceful(cookie)
        if known is not None and time.monotonic() < self._try_at:
            return known
        try:
            return await self._load(holder)
        except StoreUnavailable:
            self._try_at = time.monotonic() + _TRY_AGAIN_SECONDS
            known = self._graceful(cookie)
            if known is None:
                raise
            return known

    async def _load(self, holder: Holder) -> Session | None:
        ticket = self._cache.reading(holder.id)
        try:
            record, line = await self._records.read(holder.id)
            if self._cache.has_ended(holder.id):
                return None
            if record.stored is None:
                if record.ended is not None or self._cache.holds(holder.id):
                    self._learn_of_end(holder.id, record, holder)
                elif line is not None:
                    self._cache.keep_absent(ticket, line)
                return None
            found = self._decode(holder.id, record, holder)
            if found is None:
                return None
            entry = self._entry(holder, found, record, line)
            entry.session.seen_at = max(entry.session.seen_at, self._clock())
            self._cache.keep(ticket, entry)
            return entry.session
        finally:
            self._cache.done(ticket)

    def _decode(self, session_id: str, record: Record, holder: Holder | None = None) -> Session | None:
        """Decode and judge a record; None for whatever is not a living session, of `holder` if one is named."""
        if record.stored is None:
            return None
        try:
            session, proof = opened(self._ring, session_id, record, self.kind)
        except (Damaged, ValueError) as damage:
            _log.warning("%s %s cannot be read: %s", self.kind.purpose, session_id, damage)
            return None
        if (holder is not None and not holder.proves(proof)) or not session.alive(self._clock(), self._idle):
            return None
        return session

    def _entry(self, holder: Holder, found: Session, record: Record, line: Line | None) -> Entry:
        """Make what the cache may keep of a record, and note its use when that is due."""
        noted_at = found.seen_at
        entry = Entry(holder.cookie, self._cache.adopt(found), line or Line(), noted_at, len(record.stored or b""))
        self._note_use(entry, self._clock())
        return entry

    def _graceful(self, cookie: str) -> Session | None:
        """A session known from before Redis went away, while that is not longer ago than is allowed."""
        since = self._records.down_since
        if since is None or time.monotonic() - since >= self.bounds.outage_grace:
            return None
        session = self._cache.stale(cookie)
        return session if session is not None and session.alive(self._clock(), self._idle) else None

    def _attend(self, entry: Entry, now: float) -> float | None:
        """A session in the cache is used: note that when it is time to, have it renewed when it is time to."""
        session = entry.session
        held_from = session.held_from(self.bounds.renewal_grace)
        if now >= held_from or not session.alive(now, self._idle):
            return None
        self._note_use(entry, now)
        quiet_until = min(held_from, session.expires_at, entry.noted_at + self._touch_every)
        if now < session.renew_at:
            return min(quiet_until, session.renew_at)
        self._due(entry.cookie, session)
        return min(quiet_until, now + _DUE_AGAIN_SECONDS)

    # -- a session's life

    @override
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        holder, now = Holder.new(), self._clock()
        recheck = self.bounds.recheck
        session = new_session(holder, grant, now, self._lifetime, browser=browser, address=address, recheck=recheck)
        stored = encode_session(self._ring, session, holder.proof)
        tokens = encode_tokens(self._ring, grant.tokens, holder)
        # The indexes first: a session on none of them could not be found to be ended.
        await all_of(self._records.index(key, holder.id, session.expires_at, now) for key in indexes_of(session))
        await self._records.create(holder.id, stored, tokens, now, self._ttl(session, now))
        self._vouched(session)
        return self._cache.adopt(session), holder.cookie

    @override
    async def tokens(self, cookie: str) -> Tokens | None:
        opened = await self._open(cookie)
        return opened[2] if opened is not None else None

    @override
    async def replace(self, cookie: str, grant: Grant, *, after: Tokens | None = None) -> Session | None:
        opened = await self._open(cookie)
        if opened is None:
            return None
        holder, old, tokens, sealed = opened
        if after is not None and tokens != after:
            return self._cache.adopt(old)
        now = self._clock()
        session = refreshed(old, grant, now, self.bounds.recheck)
        if session.sid is not None and session.sid != old.sid:
            await self._records.index(sid_index(session.sid), holder.id, session.expires_at, now)
        stored = encode_session(self._ring, session, holder.proof)
        tokens_anew = encode_tokens(self._ring, grant.tokens, holder)
        replaced = await self._records.replace(holder.id, stored, tokens_anew, sealed)
        if replaced is None:
            return None
        # As will be reported in a moment: whoever waited for this must not meet the old one until then.
        self._cache.changed(holder.id)
        self._vouched(session)
        return self._cache.adopt(session) if replaced else await self.read(cookie)

    @override
    async def keep_tokens(self, cookie: str, tokens: Tokens, *, after: Tokens) -> bool:
        opened = await self._open(cookie)
        if opened is None:
            return False
        holder, _, before, sealed = opened
        anew = encode_tokens(self._ring, tokens, holder)
        return before != after or await self._records.keep_tokens(holder.id, anew, sealed) is not None

    @override
    async def renewal_failed(self, cookie: str, at: float) -> None:
        holder = Holder.read(cookie)
        if holder is not None:
            await self._records.fail(holder.id, at)

    async def _open(self, cookie: str) -> tuple[Holder, Session, Tokens | None, bytes] | None:
        """The living session of `cookie`, as it is in Redis now, with its tokens: None where they cannot be read."""
        holder = Holder.read(cookie)
        if holder is None or self._cache.has_ended(holder.id):
            return None
        record, _ = await self._records.read(holder.id)
        session = self._decode(holder.id, record, holder)
        if session is None:
            return None
        return holder, session, tokens_in(self._ring, holder, record.tokens), record.tokens or b""

    @override
    async def renew_soon(self, ids: Sequence[str]) -> None:
        await self._records.renew([it for it in ids if is_session_id(it)], self._clock())

    # -- its end

    @override
    async def end(self, session_id: str, why: str = "ended", *, leave_tokens: bool = True) -> bool:
        return is_session_id(session_id) and await self._end([session_id], why, leave_tokens=leave_tokens) > 0

    async def _end(self, ids: Sequence[str], why: str, *, leave_tokens: bool) -> int:
        """End sessions here at once, then in Redis; what Redis does not hear of now it hears of when it answers again."""
        entries = [entry for entry in map(self._cache.entry, ids) if entry is not None]
        for session_id in ids:
            if self._cache.end(session_id):
                self._ended(session_id)
        try:
            records = await self._records.read_each(ids)
            count = await self._records.end(ids, why, leave_tokens=leave_tokens)
        except StoreUnavailable:
            self._unended.update(dict.fromkeys(ids, (why, leave_tokens)))
            self._chores.run(self._end_again(), "ends")
            raise
        self._chores.run(self._unindex(ids, records), "indexes")
        if leave_tokens:
            for holder in filter(None, (Holder.read(entry.cookie) for entry in entries)):
                self._chores.run(self._take_leftover(holder), "leftover tokens")
        return count

    async def _end_again(self) -> None:
        """Try until Redis has heard of all ends."""
        while self._unended:
            await asyncio.sleep(_END_AGAIN_SECONDS)
            for session_id, (why, leave_tokens) in list(self._unended.items()):
                try:
                    await self._records.end([session_id], why, leave_tokens=leave_tokens)
                except StoreUnavailable:
                    break
                self._unended.pop(session_id, None)

    def _resumed(self) -> None:
        """Redis reports changes again. It may be another server now, which had not heard of the last ends yet."""
        if ids := self._cache.lately_ended():
            self._chores.run(self._records.end(ids, "ended before", leave_tokens=False), "ends")

    async def _read_again(self, session_id: str, cookie: str | None) -> None:
        """A session that somebody here holds has changed, or may have."""
        holder = Holder.read(cookie) if cookie is not None else None
        ticket = self._cache.reading(session_id)
        try:
            record, line = await self._records.read(session_id)
            found = self._decode(session_id, record, holder)
            if record.stored is None:
                self._learn_of_end(session_id, record, holder)
            elif found is None:
                self._ended(session_id)  # it counts no longer, or not here: this worker may lack the key
            elif not self._cache.has_ended(session_id):
                session = self._cache.adopt(found)
                if holder is not None:
                    seen_at, length = found.seen_at, len(record.stored)
                    self._cache.keep(ticket, Entry(holder.cookie, session, line or Line(), seen_at, length))
        finally:
            self._cache.done(ticket)

    def _learn_of_end(self, session_id: str, record: Record, holder: Holder | None) -> None:
        if self._cache.end(session_id):
            why = (record.ended or b"it is not there any more").decode("utf-8", "replace")
            _log.info("%s %s has ended: %s", self.kind.purpose, session_id, why)
            self._ended(session_id)
        if record.ended is not None and record.tokens is not None and holder is not None:
            self._chores.run(self._take_leftover(holder), "leftover tokens")

    async def _take_leftover(self, holder: Holder) -> None:
        """Hand over the tokens that an ended session has left behind: only its cookie opens them."""
        tokens = tokens_in(self._ring, holder, await self._records.leftover(holder.id))
        if tokens is not None:
            self.left_over(tokens)

    # -- all of them

    @override
    async def find(self, session_id: str) -> Session | None:
        if not is_session_id(session_id):
            return None
        record, _ = await self._records.read(session_id)
        return self._decode(session_id, record)

    @override
    async def of_user(self, sub: str, most: int | None = None) -> list[Session]:
        return await self._on_index(user_index(sub, self.kind), most)

    @override
    async def of_sid(self, sid: str) -> list[Session]:
        return await self._on_index(sid_index(sid))

    @override
    async def everything(self) -> AsyncIterator[Session]:
        async for ids in self._records.scan():
            known = [session_id for session_id in ids if is_session_id(session_id)]
            for session in filter(None, await self._decoded(known)):
                yield session

    @override
    async def end_each(self, ids: Sequence[str], why: str = "ended", *, leave_tokens: bool = True) -> int:
        known = [session_id for session_id in ids if is_session_id(session_id)]
        batches = [known[start : start + BATCH] for start in range(0, len(known), BATCH)]
        return sum([await self._end(batch, why, leave_tokens=leave_tokens) for batch in batches])

    @override
    async def end_user(self, sub: str, why: str = "ended", *, spare: str | None = None) -> int:
        return await self._end_on_index(user_index(sub, self.kind), why, spare)

    @override
    async def end_sid(self, sid: str, why: str = "ended") -> int:
        return await self._end_on_index(sid_index(sid), why)

    async def _end_on_index(self, key: str, why: str, spare: str | None = None) -> int:
        ids, count = [it for it, _ in await self._records.indexed(key) if it != spare], 0
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            records = await self._records.read_each(batch)
            # What is not there may be about to be: a sign-in of this very moment is not what was meant.
            there = [it for it, record in zip(batch, records, strict=True) if record.stored is not None]
            count += await self._end(there, why, leave_tokens=True)
        return count

    async def _on_index(self, key: str, most: int | None = None) -> list[Session]:
        ends = dict(await self._records.indexed(key, most))
        ids, found = list(ends), list[Session]()
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            sessions = await self._decoded(batch)
            found += [session for session in sessions if session is not None]
            settled = self._clock() + self._lifetime - _JUST_BEGUN_SECONDS
            gone = [it for it, session in zip(batch, sessions, strict=True) if session is None and ends[it] < settled]
            self._chores.run(self._records.unindex([(key, session_id) for session_id in gone]), "indexes")
        return sorted(found, key=lambda session: -session.seen_at)

    async def _decoded(self, ids: Sequence[str]) -> list[Session | None]:
        records = await self._records.read_each(ids)
        return [self._decode(session_id, record) for session_id, record in zip(ids, records, strict=True)]

    async def _unindex(self, ids: Sequence[str], records: Sequence[Record]) -> None:
        sessions = [self._decode(session_id, record) for session_id, record in zip(ids, records, strict=True)]
        await self._records.unindex(
            [(key, it.id) for it in sessions if it is not None for key in indexes_of(it, self.kind)]
        )

    # -- claims and the rest

    @override
    async def once(self, key: str, ttl: float) -> bool:
        return await self._records.once(key, ttl)

    @override
    async def claim(self, name: str, ttl: float) -> str | None:
        return await self._records.claim(name, ttl)

    @override
    async def extend(self, name: str, mark: str, ttl: float) -> bool:
        return await self._records.extend(name, mark, ttl)

    @override
    async def release(self, name: str, mark: str) -> None:
        await self._records.release(name, mark)

    @override
    async def ping(self) -> None:
        await self._records.ping()

    @property
    @override
    def held(self) -> int:
        return len(self._cache)

    @override
    async def start(self) -> None:
        try:
            async with self._records.asking():
                await self._mirror.start()
            await self.ping()
        except StoreUnavailable as error:
            _log.warning("no %s can be read yet: %s", self.kind.purpose, error)

    @override
    async def settled(self) -> None:
        await self._chores.settled(*self._touching.values())

    @override
    async def close(self) -> None:
        await self._mirror.close()
        await self._chores.close(*self._touching.values())
        await self._records.servers.close()

    def _note_use(self, entry: Entry, now: float) -> None:
        """Note a use in the background when the last one noted is long enough ago: no request waits for it."""
        session = entry.session
        if now - entry.noted_at < self._touch_every:
            return
        entry.noted_at = now
        if session.id not in self._touching:
            task = self._touching[session.id] = asyncio.create_task(self._touch(session, now))
            task.add_done_callback(lambda _: self._touching.pop(session.id, None))

    async def _touch(self, session: Session, now: float) -> None:
        try:
            await self._records.touch(session.id, now, self._ttl(session, now))
        except StoreUnavailable as error:
            self._chores.complain("the use of sessions cannot be noted", error)

    def _ttl(self, session: Session, now: float) -> float:
        return min(self._idle, session.expires_at - now)
