"""Sessions: who is signed in, kept in memory or in Redis, found again by the cookie.

Two laws hold for every store. What cannot be asked lets nobody in and signs nobody out: StoreUnavailable, and the cookie
stays. What cannot be read is no session: a damaged record, another version, another key are logged and count as absent.

The idle timeout slides with use, without a write for each request: a store may note a session's use late, by up to a
tenth of the timeout and at most a minute, so a session may end that much earlier than its last use would have it.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from typing_extensions import override

from proxy import cookies
from proxy.claims import Grant, Tokens
from proxy.sealing import KeyRing
from proxy.session_codec import Holder, Session

if TYPE_CHECKING:
    from proxy.settings import Settings

__all__ = [
    "MEMORY_SESSIONS",
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
_BROWSER_CHARS: Final = 256  # a User-Agent is shown to its owner, not archived
_log = logging.getLogger("postern.session")


class Miss(Enum):
    """What `peek` answers when only I/O could tell."""

    MISS = 1


class SessionStore(ABC):
    """Where sessions are. Cookie values go in as they came from the browser: whatever is no session gives None.

    All but `peek` may raise StoreUnavailable, and nothing else for the store's sake.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[[str], None]] = []

    @abstractmethod
    def peek(self, cookie: str) -> Session | Literal[Miss.MISS] | None:
        """Answer without I/O: the session, None when there certainly is none, or MISS: ask `load`."""

    @abstractmethod
    async def load(self, cookie: str) -> Session | None:
        """Find the session of `cookie` and note that it was used."""

    @abstractmethod
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        """Start a session under a new id; returns it with its cookie's value."""

    @abstractmethod
    async def tokens(self, cookie: str) -> Tokens | None:
        """Return the tokens of the session of `cookie`."""

    @abstractmethod
    async def replace(self, cookie: str, grant: Grant) -> Session | None:
        """Put a refreshed grant in the place of the session's; None when there is no session (any more).

        Id, absolute end and time of sign-in stay: a refresh is no sign-in. ValueError for somebody else's grant.
        """

    @abstractmethod
    async def end(self, session_id: str) -> bool:
        """End a session; True when there was one."""

    @abstractmethod
    async def end_user(self, sub: str) -> int:
        """End every session of a person; returns how many there were."""

    @abstractmethod
    async def end_sid(self, sid: str) -> int:
        """End every session that came of one session at Logto; returns how many there were."""

    @abstractmethod
    async def once(self, key: str, ttl: float) -> bool:
        """Claim `key` for `ttl` seconds: True for one caller only, over all workers on this store."""

    @abstractmethod
    async def ping(self) -> None:
        """Return when the store answers."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready. Does not fail because the store is down: it may come up later."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and background work."""

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the session's id when this process learns that a session has ended."""
        self._callbacks.append(callback)

    def _ended(self, session_id: str) -> None:
        for callback in self._callbacks:
            try:
                callback(session_id)
            except Exception:  # noqa: BLE001 -- the session has ended whatever one listener makes of it; the rest must hear
                _log.exception("a listener to the end of session %s failed", session_id)


class MemoryStore(SessionStore):
    """Sessions in this process alone: for one worker, gone with it."""

    def __init__(
        self,
        *,
        idle: float,
        lifetime: float,
        clock: Callable[[], float] = time.time,
        limit: int = MEMORY_SESSIONS,
    ) -> None:
        """`idle` and `lifetime` in seconds; beyond `limit` sessions (and claims of `once`) the oldest go."""
        super().__init__()
        self._idle = idle
        self._lifetime = lifetime
        self._clock = clock
        self._limit = limit
        self._sweep_at = 0.0
        self._sessions: dict[str, tuple[Session, str, Tokens]] = {}  # id -> session, proof of the secret, tokens
        self._claims: dict[str, float] = {}  # key of `once` -> when it is free again

    @override
    def peek(self, cookie: str) -> Session | None:
        found = self._find(cookie)
        return found[1] if found else None

    @override
    async def load(self, cookie: str) -> Session | None:
        return self.peek(cookie)

    @override
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        now = self._clock()
        self._sweep(now)
        if len(self._sessions) >= self._limit:
            oldest = next(iter(self._sessions))
            _log.warning("session %s ended early: no room for more than %d in memory", oldest, self._limit)
            self._drop(oldest)
        holder = Holder.new()
        session = new_session(holder, grant, now, self._lifetime, browser=browser, address=address)
        self._sessions[holder.id] = (session, holder.proof, grant.tokens)
        return session, holder.cookie

    @override
    async def tokens(self, cookie: str) -> Tokens | None:
        found = self._find(cookie)
        return self._sessions[found[0].id][2] if found else None

    @override
    async def replace(self, cookie: str, grant: Grant) -> Session | None:
        found = self._find(cookie)
        if found is None:
            return None
        holder, old = found
        session = refreshed(old, grant)
        self._sessions[holder.id] = (session, holder.proof, grant.tokens)
        return session

    @override
    async def end(self, session_id: str) -> bool:
        return self._drop(session_id)

    @override
    async def end_user(self, sub: str) -> int:
        return self._drop_where(lambda session: session.identity.sub == sub)

    @override
    async def end_sid(self, sid: str) -> int:
        return self._drop_where(lambda session: session.sid == sid)

    @override
    async def once(self, key: str, ttl: float) -> bool:
        now = self._clock()
        if self._claims.get(key, now) > now:
            return False
        self._sweep(now)
        if len(self._claims) >= self._limit:
            del self._claims[next(iter(self._claims))]
        self._claims.pop(key, None)
        self._claims[key] = now + ttl
        return True

    @override
    async def ping(self) -> None:
        return

    @override
    async def start(self) -> None:
        return

    @override
    async def close(self) -> None:
        return

    def _find(self, cookie: str) -> tuple[Holder, Session] | None:
        holder = Holder.read(cookie)
        record = self._sessions.get(holder.id) if holder else None
        if holder is None or record is None or not holder.proves(record[1]):
            return None
        session, now = record[0], self._clock()
        if not session.alive(now, self._idle):
            self._drop(session.id)
            return None
        session.seen_at = max(session.seen_at, now)
        return holder, session

    def _drop(self, session_id: str) -> bool:
        found = self._sessions.pop(session_id, None) is not None
        if found:
            self._ended(session_id)
        return found

    def _drop_where(self, ends: Callable[[Session], bool]) -> int:
        """Look through all of them: in one process there are few, and they are at hand."""
        now = self._clock()
        chosen = [
            (it, session.alive(now, self._idle)) for it, (session, _, _) in self._sessions.items() if ends(session)
        ]
        for session_id, _ in chosen:
            self._drop(session_id)
        return sum(alive for _, alive in chosen)

    def _sweep(self, now: float) -> None:
        """Forget what has run out, at most once a minute: its cost is spread over the sign-ins of that minute."""
        if 0 <= self._sweep_at - now <= _SWEEP_SECONDS:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for session_id in [it for it, record in self._sessions.items() if not record[0].alive(now, self._idle)]:
            self._drop(session_id)
        for key in [key for key, until in self._claims.items() if until <= now]:
            del self._claims[key]


def new_session(holder: Holder, grant: Grant, now: float, lifetime: float, *, browser: str, address: str) -> Session:
    """Make the session that begins at `now` (epoch seconds) with `grant`."""
    return Session(
        id=holder.id,
        identity=grant.identity,
        sid=grant.sid,
        created_at=now,
        seen_at=now,
        expires_at=now + lifetime,
        signed_in_at=grant.signed_in_at,
        browser=browser[:_BROWSER_CHARS],
        address=address,
    )


def refreshed(old: Session, grant: Grant) -> Session:
    """Make the session that follows `old` when `grant` was refreshed; ValueError when that is somebody else's."""
    if grant.identity.sub != old.identity.sub:
        raise ValueError("a refresh cannot change whose session it is")
    return Session(
        id=old.id,
        identity=grant.identity,
        sid=grant.sid or old.sid,
        created_at=old.created_at,
        seen_at=old.seen_at,
        expires_at=old.expires_at,
        signed_in_at=old.signed_in_at,
        browser=old.browser,
        address=old.address,
    )


def open_store(settings: Settings, keyring: KeyRing, *, clock: Callable[[], float] = time.time) -> SessionStore:
    """Make the store that the settings name, without touching it. ValueError when its URL cannot be one."""
    if settings.session.store.startswith("memory:"):
        return MemoryStore(idle=settings.session.idle, lifetime=settings.session.lifetime, clock=clock)
    # Loaded only where it is wanted: a gateway with sessions in memory starts without the Redis client.
    from proxy.session_redis import RedisStore  # noqa: PLC0415 -- see above; it also imports this module

    return RedisStore(
        settings.session.store, keyring, idle=settings.session.idle, lifetime=settings.session.lifetime, clock=clock
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
