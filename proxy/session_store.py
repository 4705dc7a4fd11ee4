"""What every session store owes, in memory or in Redis.

Two laws hold for all of them. What cannot be asked lets nobody in and signs nobody out: StoreUnavailable, and the cookie
stays. What cannot be read is no session: a damaged record, another version, another key are logged and count as absent.

The idle timeout slides with use, without a write for each request: a store may note a session's use late, by up to a
tenth of the timeout and at most a minute, so a session may end that much earlier than its last use would have it.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from proxy.claims import Grant, Identity, Tokens
from proxy.session_cache import Miss
from proxy.session_codec import Holder, Session, renewal_times

_BROWSER_CHARS: Final = 256  # a User-Agent is shown to its owner, not archived
_log = logging.getLogger("postern.session")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a worker may keep of sessions, and how long it may go on when somebody does not answer (seconds)."""

    cache_entries: int = 50_000
    cache_bytes: int = 256 * 1024 * 1024
    recheck: float = math.inf  # after this long a session in use has its tokens renewed, whether they have to be or not
    renewal_grace: float = 3600.0  # a session whose tokens cannot be renewed, through Logto's fault
    outage_grace: float = 0.0  # sessions known to this worker, while the store is away


class Board(Protocol):
    """A place for short words between workers. Raises StoreUnavailable, and nothing else for the store's sake."""

    async def remember(self, name: str, value: bytes, ttl: float) -> None:
        """Leave `value` under `name` for `ttl` seconds."""

    async def recall(self, name: str) -> tuple[bytes, float] | None:
        """What was left under `name`, and for how many seconds it is still there."""

    async def claim(self, name: str, ttl: float) -> str | None:
        """As `SessionStore.claim`."""

    async def release(self, name: str, mark: str) -> None:
        """As `SessionStore.release`."""


class SessionStore(ABC):
    """Where sessions are. Cookie values go in as they came from the browser: whatever is no session gives None.

    All but `peek` may raise StoreUnavailable, and nothing else for the store's sake.
    """

    def __init__(self, *, idle: float, lifetime: float, clock: Callable[[], float], bounds: Bounds) -> None:
        """`idle` and `lifetime` in seconds."""
        self._idle = idle
        self._lifetime = lifetime
        self._clock = clock
        self.bounds = bounds  # others may be set, to hold from each session's next renewal on
        # For sessions that must not wait: set by whoever can renew their tokens.
        self.renewer: Callable[[str, Session], Awaitable[Session | None]] | None = None
        # Where workers leave word for each other, in a store that they share.
        self.board: Board | None = None
        self._on_end: list[Callable[[str], None]] = []
        self._on_due: list[Callable[[str, Session], None]] = []
        self._on_leftover: list[Callable[[Tokens], None]] = []
        self._on_vouched: list[Callable[[Identity, str], None]] = []

    def alive(self, session: Session) -> bool:
        """Whether a session counts now: it has neither come to its end nor been idle for too long."""
        return session.alive(self._clock(), self._idle)

    @abstractmethod
    def peek(self, cookie: str) -> Session | Literal[Miss.MISS] | None:
        """Answer without I/O: the session, None when there certainly is none, or MISS: ask `load`."""

    async def load(self, cookie: str) -> Session | None:
        """Find the session of `cookie` and note that it was used; with its tokens renewed, where that cannot wait."""
        session, now = await self.read(cookie), self._clock()
        if session is None or self.renewer is None:
            return session
        if now < session.held_from(self.bounds.renewal_grace):
            if now >= session.renew_at:  # what never peeks, or finds nothing there, is use as well
                self._due(cookie, session)
            return session
        return await self.renewer(cookie, session)

    @abstractmethod
    async def read(self, cookie: str) -> Session | None:
        """As `load`, whatever the state of its tokens."""

    @abstractmethod
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        """Start a session under a new id; returns it with its cookie's value."""

    @abstractmethod
    async def tokens(self, cookie: str) -> Tokens | None:
        """Return the tokens of the session of `cookie`."""

    @abstractmethod
    async def replace(self, cookie: str, grant: Grant, *, after: Tokens | None = None) -> Session | None:
        """Put a refreshed grant in the place of the session's; None when there is no session (any more).

        With `after`, only while those are its tokens: otherwise somebody else has renewed them, and the session is returned as
        it is. Id, absolute end and time of sign-in stay: a refresh is no sign-in. ValueError for somebody else's grant.
        """

    @abstractmethod
    async def keep_tokens(self, cookie: str, tokens: Tokens, *, after: Tokens) -> bool:
        """Put tokens in the place of the session's, as long as those are `after`; False when there is no session (any more).

        All else stays: when it is due, above all, for Logto has not been asked about the person.
        """

    @abstractmethod
    async def renewal_failed(self, cookie: str, at: float) -> None:
        """Note that the session's tokens are overdue and could not be renewed at `at`; the first such time counts."""

    @abstractmethod
    async def renew_soon(self, ids: Sequence[str]) -> None:
        """Have the tokens of these sessions renewed at their next use: something about their people has changed."""

    @abstractmethod
    async def end(self, session_id: str, why: str = "ended", *, leave_tokens: bool = True) -> bool:
        """End a session; True when there was one.

        For this process it has ended when this is called, even if StoreUnavailable is raised: the store is then told as soon
        as it answers. With `leave_tokens`, its tokens are handed to `on_leftover` by whichever process has its cookie.
        """

    @abstractmethod
    async def end_each(self, ids: Sequence[str], why: str = "ended", *, leave_tokens: bool = True) -> int:
        """End several sessions; returns how many of them there were."""

    @abstractmethod
    async def end_user(self, sub: str, why: str = "ended", *, spare: str | None = None) -> int:
        """End every session of a person, but the one whose id is `spare`; returns how many there were."""

    @abstractmethod
    async def end_sid(self, sid: str, why: str = "ended") -> int:
        """End every session that came of one session at Logto; returns how many there were."""

    @abstractmethod
    async def find(self, session_id: str) -> Session | None:
        """The session with that id, for whoever is not its holder but runs the gateway."""

    @abstractmethod
    async def of_user(self, sub: str, most: int | None = None) -> list[Session]:
        """All sessions of a person, or those that began last, up to `most`; the one used last first."""

    @abstractmethod
    async def of_sid(self, sid: str) -> list[Session]:
        """All sessions that began with one session at Logto."""

    @abstractmethod
    def everything(self) -> AsyncIterator[Session]:
        """All sessions, in no order, as they are found; one may come twice."""

    @abstractmethod
    async def claim(self, name: str, ttl: float) -> str | None:
        """Claim `name` for `ttl` seconds, over all workers: a mark to extend and release it with, None when it is taken."""

    @abstractmethod
    async def extend(self, name: str, mark: str, ttl: float) -> bool:
        """Keep a claim for another `ttl` seconds; False when it has been lost."""

    @abstractmethod
    async def release(self, name: str, mark: str) -> None:
        """Give a claim back, unless it has been lost."""

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
    async def settled(self) -> None:
        """Return when nothing is going on behind the scenes; what the store does not answer to is left."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and background work."""

    @property
    @abstractmethod
    def held(self) -> int:
        """How many sessions are in this process's memory."""

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Have `callback` called with the session's id when this process learns that a session has ended."""
        self._on_end.append(callback)

    def on_due(self, callback: Callable[[str, Session], None]) -> None:
        """Have `callback` called with cookie and session when one is used whose tokens should be renewed; more than once."""
        self._on_due.append(callback)

    def on_leftover(self, callback: Callable[[Tokens], None]) -> None:
        """Have `callback` called with tokens whose session has ended without them: they should be revoked."""
        self._on_leftover.append(callback)

    def on_vouched(self, callback: Callable[[Identity, str], None]) -> None:
        """Have `callback` called with who somebody is, when Logto has just said so, for a session here and its application."""
        self._on_vouched.append(callback)

    def _ended(self, session_id: str) -> None:
        _tell(self._on_end, session_id)

    def _due(self, cookie: str, session: Session) -> None:
        _tell(self._on_due, cookie, session)

    def left_over(self, tokens: Tokens) -> None:
        """Have tokens revoked that no session has (any more)."""
        _tell(self._on_leftover, tokens)

    def _vouched(self, session: Session) -> None:
        _tell(self._on_vouched, session.identity, session.application)


def _tell(callbacks: Sequence[Callable[..., None]], *news: object) -> None:
    for callback in callbacks:
        try:
            callback(*news)
        except Exception:  # noqa: BLE001 -- it has happened, whatever one listener makes of it; the rest must hear of it
            _log.exception("a listener to the session store failed")


def new_session(
    holder: Holder,
    grant: Grant,
    now: float,
    lifetime: float,
    *,
    browser: str,
    address: str,
    recheck: float = math.inf,
) -> Session:
    """Make the session that begins at `now` (epoch seconds) with `grant`."""
    renew_at, fresh_until = renewal_times(grant.tokens, now, recheck)
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
        application=grant.application,
        renew_at=renew_at,
        fresh_until=fresh_until,
    )


def refreshed(old: Session, grant: Grant, now: float, recheck: float = math.inf) -> Session:
    """Make the session that follows `old` when `grant` was refreshed at `now`; ValueError when that is somebody else's."""
    if grant.identity.sub != old.identity.sub:
        raise ValueError("a refresh cannot change whose session it is")
    renew_at, fresh_until = renewal_times(grant.tokens, now, recheck)
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
        application=old.application,
        renew_at=renew_at,
        fresh_until=fresh_until,
    )
