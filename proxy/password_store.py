"""App passwords are sessions of another kind: kept, mirrored, indexed and ended like those, under keys and a seal of their own.

So none can be used as a cookie, nor a cookie's value as one: nothing is found where the other is looked for, and what lay there
all the same would not open. There is no idle timeout, as a program may rest for weeks, and there are no tokens: what Logto says
of the owner comes by way of their sessions.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from proxy.session import MemoryStore, bounds_of
from proxy.session_codec import Holder, Session
from proxy.session_store import SessionStore

if TYPE_CHECKING:
    from proxy.sealing import KeyRing
    from proxy.settings import Settings

# What a worker keeps at hand of them, at most: they are few, next to sessions.
_ENTRIES: Final = 10_000
_BYTES: Final = 64 * 1024 * 1024
IDLE: Final = math.inf
# Each has an end of its own. With none in common, no record counts as too young to be taken off its index for being absent.
LIFETIME: Final = 0.0


class PasswordStore(SessionStore):
    """Where app passwords are. `create` and `replace` are not for them."""

    @abstractmethod
    async def issue(self, holder: Holder, session: Session) -> Session:
        """Keep a new one, of `holder`, until it expires."""

    @abstractmethod
    async def amend(self, session_id: str, change: Callable[[Session], Session]) -> Session | None:
        """Put what `change` makes of one in its place; None when there is none (any more). Whose it is cannot be changed."""


class MemoryPasswords(MemoryStore, PasswordStore):
    """App passwords in this process alone."""

    @override
    async def issue(self, holder: Holder, session: Session) -> Session:
        self._sweep(self._clock())
        self._put(holder, session, None)
        return session

    @override
    async def amend(self, session_id: str, change: Callable[[Session], Session]) -> Session | None:
        session = await self.find(session_id)
        if session is not None:
            session.become(changed(session, change))
        return session


def changed(session: Session, change: Callable[[Session], Session]) -> Session:
    """What `change` makes of `session`; ValueError when that is somebody else's, or another one."""
    made = change(session)
    if (made.id, made.identity.sub) != (session.id, session.identity.sub):
        raise ValueError("no change can make a session somebody else's")
    return made


def open_passwords(settings: Settings, keyring: KeyRing, *, clock: Callable[[], float] = time.time) -> PasswordStore:
    """Make the store of app passwords, where the sessions are kept, without touching it."""
    session, bounds = settings.session, bounds_of(settings)
    bounds = replace(
        bounds,
        cache_entries=min(bounds.cache_entries, _ENTRIES),
        cache_bytes=min(bounds.cache_bytes, _BYTES),
        recheck=math.inf,
    )
    if session.store.startswith("memory:"):
        return MemoryPasswords(idle=IDLE, lifetime=LIFETIME, clock=clock, bounds=bounds)
    # As in session.py: the Redis client is loaded only where it is wanted.
    from proxy.password_redis import RedisPasswords  # noqa: PLC0415 -- see above
    from proxy.session_servers import Reach  # noqa: PLC0415 -- see above

    reach = Reach(session.connect_timeout, session.command_timeout, session.connections, session.retries)
    return RedisPasswords(session.store, keyring, idle=IDLE, lifetime=LIFETIME, clock=clock, bounds=bounds, reach=reach)
