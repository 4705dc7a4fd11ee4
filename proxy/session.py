"""Sessions: who is signed in, kept in memory or in Redis, found again by the cookie.

What every store owes is written in session_store.py; here are the one in memory, the way to the one that the settings name,
and the cookie.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

from typing_extensions import override

from proxy import cookies
from proxy.claims import Grant, Tokens
from proxy.sealing import KeyRing
from proxy.session_cache import Miss
from proxy.session_codec import Holder, Session
from proxy.session_store import Bounds, SessionStore, new_session, refreshed

if TYPE_CHECKING:
    from proxy.settings import Settings

__all__ = [
    "MEMORY_SESSIONS",
    "Bounds",
    "MemoryStore",
    "Miss",
    "Session",
    "SessionStore",
    "clear_cookie_header",
    "cookie_header",
    "cookie_name",
    "open_store",
]

MEMORY_SESSIONS: Final = 100_000
_SWEEP_SECONDS: Final = 60.0
_DUE_AGAIN_SECONDS: Final = 1.0
_log = logging.getLogger("postern.session")


class _Kept:
    """A session in memory."""

    __slots__ = ("cookie", "quiet_until", "session", "tokens")

    def __init__(self, cookie: str, session: Session, tokens: Tokens | None) -> None:
        self.cookie = cookie
        self.session = session
        self.tokens = tokens
        self.quiet_until = 0.0  # before then a use needs no attention


class MemoryStore(SessionStore):
    """Sessions in this process alone: for one worker, gone with it."""

    def __init__(
        self,
        *,
        idle: float,
        lifetime: float,
        clock: Callable[[], float] = time.time,
        limit: int = MEMORY_SESSIONS,
        bounds: Bounds = Bounds(),  # noqa: B008 -- frozen
    ) -> None:
        """`idle` and `lifetime` in seconds; beyond `limit` sessions (and claims) the oldest go."""
        super().__init__(idle=idle, lifetime=lifetime, clock=clock, bounds=bounds)
        self._limit = limit
        self._sweep_at = 0.0
        self._sweeper: asyncio.Task[None] | None = None
        self._by_cookie: dict[str, _Kept] = {}
        self._sessions: dict[str, _Kept] = {}  # by id
        self._indexes: dict[tuple[str, str], dict[str, _Kept]] = {}  # ("sub" | "sid", value) -> by id
        self._claims: dict[str, tuple[str, float]] = {}  # name -> mark, and when it is free again

    @override
    def peek(self, cookie: str) -> Session | Literal[Miss.MISS] | None:
        # Looking the whole cookie up compares its secret: bytes are compared only where a keyed hash of all is equal.
        kept = self._by_cookie.get(cookie)
        if kept is None:
            return None
        now, session = self._clock(), kept.session
        if now < kept.quiet_until and now - session.seen_at < self._idle:
            if now > session.seen_at:  # noqa: PLR1730 -- for every request; max() costs more than all else here
                session.seen_at = now
            return session
        found = self._find(cookie)
        if found is None:
            return None
        held_from = session.held_from(self.bounds.renewal_grace)
        if now >= held_from:
            return Miss.MISS
        kept.quiet_until = min(held_from, session.expires_at, session.renew_at)
        if now >= session.renew_at:
            self._due(cookie, session)
            kept.quiet_until = min(held_from, session.expires_at, now + _DUE_AGAIN_SECONDS)
        return session

    @override
    async def read(self, cookie: str) -> Session | None:
        found = self._find(cookie)
        return found.session if found is not None else None

    @override
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        now = self._clock()
        self._sweep(now)
        if len(self._sessions) >= self._limit:
            oldest = next(iter(self._sessions))
            _log.warning("session %s ended early: no room for more than %d in memory", oldest, self._limit)
            self._drop(oldest)
        holder = Holder.new()
        recheck = self.bounds.recheck
        session = new_session(holder, grant, now, self._lifetime, browser=browser, address=address, recheck=recheck)
        self._put(holder, session, grant.tokens)
        self._vouched(session)
        return session, holder.cookie

    def _put(self, holder: Holder, session: Session, tokens: Tokens | None) -> None:
        kept = self._sessions[holder.id] = self._by_cookie[holder.cookie] = _Kept(holder.cookie, session, tokens)
        for index in _indexes(session):
            self._indexes.setdefault(index, {})[session.id] = kept

    @override
    async def tokens(self, cookie: str) -> Tokens | None:
        found = self._find(cookie)
        return found.tokens if found is not None else None

    @override
    async def replace(self, cookie: str, grant: Grant, *, after: Tokens | None = None) -> Session | None:
        found = self._find(cookie)
        if found is None:
            return None
        session = found.session
        if after is not None and found.tokens != after:
            return session
        self._unindex(session)
        session.become(refreshed(session, grant, self._clock(), self.bounds.recheck))
        for index in _indexes(session):
            self._indexes.setdefault(index, {})[session.id] = found
        found.tokens = grant.tokens
        found.quiet_until = 0.0
        self._vouched(session)
        return session

    @override
    async def keep_tokens(self, cookie: str, tokens: Tokens, *, after: Tokens) -> bool:
        found = self._find(cookie)
        if found is not None and found.tokens == after:
            found.tokens = tokens
        return found is not None

    @override
    async def renewal_failed(self, cookie: str, at: float) -> None:
        found = self._find(cookie)
        if found is not None and found.session.failing_since is None:
            found.session.failing_since = at

    @override
    async def renew_soon(self, ids: Sequence[str]) -> None:
        for kept in filter(None, map(self._sessions.get, ids)):
            if kept.session.renew_at < math.inf:  # else there is nothing to renew it with
                kept.session.renew_at = min(kept.session.renew_at, self._clock())
                kept.quiet_until = 0.0

    @override
    async def end(self, session_id: str, why: str = "ended", *, leave_tokens: bool = True) -> bool:
        kept = self._sessions.get(session_id)
        if kept is None:
            return False
        _log.debug("session %s has ended: %s", session_id, why)
        self._drop(session_id)
        if leave_tokens and kept.tokens is not None:
            self.left_over(kept.tokens)
        return True

    @override
    async def end_each(self, ids: Sequence[str], why: str = "ended", *, leave_tokens: bool = True) -> int:
        return sum([await self.end(session_id, why, leave_tokens=leave_tokens) for session_id in ids])

    @override
    async def end_user(self, sub: str, why: str = "ended", *, spare: str | None = None) -> int:
        return await self.end_each([session.id for session in await self.of_user(sub) if session.id != spare], why)

    @override
    async def end_sid(self, sid: str, why: str = "ended") -> int:
        return await self.end_each([session.id for session in await self.of_sid(sid)], why)

    @override
    async def find(self, session_id: str) -> Session | None:
        kept = self._sessions.get(session_id)
        return kept.session if kept is not None and self.alive(kept.session) else None

    @override
    async def of_user(self, sub: str, most: int | None = None) -> list[Session]:
        return self._on_index("sub", sub, most)

    @override
    async def of_sid(self, sid: str) -> list[Session]:
        return self._on_index("sid", sid)

    @override
    async def everything(self) -> AsyncIterator[Session]:
        for kept in list(self._sessions.values()):
            if self.alive(kept.session):
                yield kept.session

    @override
    async def once(self, key: str, ttl: float) -> bool:
        return await self.claim(f"once:{key}", ttl) is not None

    @override
    async def claim(self, name: str, ttl: float) -> str | None:
        now = self._clock()
        taken = self._claims.get(name)
        if taken is not None and taken[1] > now:
            return None
        self._sweep(now)
        if len(self._claims) >= self._limit:
            del self._claims[next(iter(self._claims))]
        self._claims.pop(name, None)
        mark = secrets.token_urlsafe(12)
        self._claims[name] = (mark, now + ttl)
        return mark

    @override
    async def extend(self, name: str, mark: str, ttl: float) -> bool:
        taken = self._claims.get(name)
        if taken is None or taken[0] != mark:
            return False
        self._claims[name] = (mark, self._clock() + ttl)
        return True

    @override
    async def release(self, name: str, mark: str) -> None:
        taken = self._claims.get(name)
        if taken is not None and taken[0] == mark:
            del self._claims[name]

    @override
    async def ping(self) -> None:
        return

    @property
    @override
    def held(self) -> int:
        return len(self._sessions)

    @override
    async def start(self) -> None:
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_now_and_then())

    @override
    async def settled(self) -> None:
        return

    @override
    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def _find(self, cookie: str) -> _Kept | None:
        kept = self._by_cookie.get(cookie)
        if kept is None:
            return None
        session, now = kept.session, self._clock()
        if not session.alive(now, self._idle):
            self._drop(session.id)
            return None
        session.seen_at = max(session.seen_at, now)
        return kept

    def _on_index(self, kind: str, value: str, most: int | None = None) -> list[Session]:
        kept = reversed(self._indexes.get((kind, value), {}).values())
        sessions = [it.session for it in itertools.islice(kept, most) if self.alive(it.session)]
        return sorted(sessions, key=lambda session: -session.seen_at)

    def _unindex(self, session: Session) -> None:
        for index in _indexes(session):
            known = self._indexes.get(index)
            if known is not None:
                known.pop(session.id, None)
                if not known:
                    del self._indexes[index]

    def _drop(self, session_id: str) -> None:
        kept = self._sessions.pop(session_id, None)
        if kept is not None:
            del self._by_cookie[kept.cookie]
            self._unindex(kept.session)
            self._ended(session_id)

    async def _sweep_now_and_then(self) -> None:
        """Nobody has to sign in, or come back, for a session to end in time: a tunnel may rest on it."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self._sweep(self._clock())

    def _sweep(self, now: float) -> None:
        """Forget what has run out, at most once a minute: its cost is spread over the sign-ins of that minute."""
        if 0 <= self._sweep_at - now <= _SWEEP_SECONDS:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for session_id in [it for it, kept in self._sessions.items() if not kept.session.alive(now, self._idle)]:
            self._drop(session_id)
        for name in [name for name, (_, until) in self._claims.items() if until <= now]:
            del self._claims[name]


def _indexes(session: Session) -> list[tuple[str, str]]:
    keys = [("sub", session.identity.sub)]
    if session.sid is not None:
        keys.append(("sid", session.sid))
    return keys


def open_store(settings: Settings, keyring: KeyRing, *, clock: Callable[[], float] = time.time) -> SessionStore:
    """Make the store that the settings name, without touching it. ValueError when its URL cannot be one."""
    session, bounds = settings.session, bounds_of(settings)
    if session.store.startswith("memory:"):
        return MemoryStore(idle=session.idle, lifetime=session.lifetime, clock=clock, bounds=bounds)
    # Loaded only where it is wanted: a gateway with sessions in memory starts without the Redis client.
    from proxy.session_redis import RedisStore  # noqa: PLC0415 -- see above
    from proxy.session_servers import Reach  # noqa: PLC0415 -- see above

    reach = Reach(session.connect_timeout, session.command_timeout, session.connections, session.retries)
    idle, lifetime = session.idle, session.lifetime
    return RedisStore(session.store, keyring, idle=idle, lifetime=lifetime, clock=clock, bounds=bounds, reach=reach)


def bounds_of(settings: Settings) -> Bounds:
    """What a store keeps to under these settings."""
    session = settings.session
    return Bounds(
        cache_entries=session.cache_entries,
        cache_bytes=session.cache_bytes,
        renewal_grace=session.renewal_grace,
        outage_grace=session.outage_grace,
        recheck=settings.logto.recheck,
    )


def cookie_name(settings: Settings) -> str:
    """Name of the session cookie under these settings."""
    return cookies.session_name(settings)


def cookie_header(settings: Settings, value: str) -> str:
    """Set-Cookie value that hands a session to the browser for its whole lifetime."""
    return _cookie(settings, value, int(settings.session.lifetime))


def clear_cookie_header(settings: Settings) -> str:
    """Set-Cookie value that takes the session cookie back."""
    return _cookie(settings, "", 0)


def _cookie(settings: Settings, value: str, max_age: int) -> str:
    same_site = settings.session.cookie.same_site
    return cookies.build(settings, cookie_name(settings), value, path="/", max_age=max_age, same_site=same_site)
