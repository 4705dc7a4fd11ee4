"""App passwords: what a person makes for a program of theirs that knows only user name and password.

One is good for one route, until it expires, is revoked, or its owner has not been seen for too long. It is 256 random bits, so
nobody can guess it, and a plain hash of them is enough to know it again; it is shown once and kept nowhere. Whoever makes some
up costs one question to the store for each id, and none for the same id again, as with cookies.

A program cannot be sent to Logto. It goes by what Logto said of its owner last: at the sign-in, and at each recheck of a session
of theirs. Until then, whoever has lost a role still has it here, for `sign_in_within` at most; where Logto announces that
something about a person has changed, their app passwords wait until it has told what.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from proxy.claims import Identity
from proxy.credentials import APP_PASSWORD, Credential, Programs, Rejected
from proxy.errors import PosternError, Side
from proxy.password_store import PasswordStore
from proxy.session import Miss, Session
from proxy.session_chores import Chores
from proxy.session_codec import Errand, Holder
from proxy.settings import Settings

_VALUE: Final = re.compile(APP_PASSWORD + r"([A-Za-z0-9_-]{22})([A-Za-z0-9_-]{43})")
_UNREADABLE: Final = Rejected("it is no app password of this gateway")
_UNKNOWN: Final = Rejected("it does not exist, or no longer")
_ELSEWHERE: Final = Rejected("it was made for another app")
_EXPIRED: Final = Rejected("it has expired")
# How much of `sign_in_within` may have passed before a recheck is noted anew: not each one is worth a write.
_NOTED_AFTER: Final = 1 / 20
_NOTED_AFTER_MOST: Final = 3600.0
NAME_CHARS: Final = 64
_audit = logging.getLogger("postern.audit")


class TooMany(PosternError):
    """Somebody has as many app passwords as anybody may have."""

    side = Side.CLIENT


class TooLongAgo(PosternError):
    """Somebody has signed in too long ago to make one: whoever holds their cookie need not be them."""

    side = Side.CLIENT


class AppPasswords:
    """The app passwords of one gateway: made, believed, and ended with their owner's access."""

    def __init__(self, settings: Settings, store: PasswordStore, *, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self._clock = clock
        self._chores = Chores()
        self._running = False
        self._read(settings)

    def _read(self, settings: Settings) -> None:
        self.terms = settings.app_passwords
        self._main = settings.logto.app_id
        self.wanted = any(route.app_passwords for route in settings.route)
        self._noted_after = min(self.terms.sign_in_within * _NOTED_AFTER, _NOTED_AFTER_MOST)

    # -- believing

    def peek(self, credential: Credential) -> Session | Rejected | Literal[Miss.MISS]:
        """Whom an app password lets in where it was presented, without waiting; MISS: ask `verify`."""
        holder = _holder(credential.value)
        if holder is None:
            return _UNREADABLE
        found = self.store.peek(holder.cookie)
        return found if found is Miss.MISS else self._judged(found, credential.programs)

    async def verify(self, credential: Credential) -> Session | Rejected:
        """Whom an app password lets in where it was presented. Raises StoreUnavailable."""
        holder = _holder(credential.value)
        if holder is None:
            return _UNREADABLE
        return self._judged(await self.store.load(holder.cookie), credential.programs)

    def _judged(self, session: Session | None, programs: Programs) -> Session | Rejected:
        if session is None or session.errand is None:
            return _UNKNOWN
        if session.errand.route != programs.route:
            return _ELSEWHERE
        if self._clock() >= session.created_at + self.terms.lifetime:  # shorter by now than when it was made
            return _EXPIRED
        return session

    def waits(self, session: Session) -> bool:
        """Whether one counts for nothing until its owner has signed in again."""
        errand = session.errand
        return errand is None or self._clock() >= errand.vouched_at + self.terms.sign_in_within

    # -- making and ending

    def may_make(self, owner: Session) -> bool:
        """Whether whoever holds the session `owner` has signed in lately enough to make one."""
        return self._clock() < owner.signed_in_at + self.terms.fresh

    async def issue(self, owner: Session, name: str, route: str, seconds: float) -> tuple[Session, str]:
        """Make one for whoever holds the session `owner`: what is kept of it, and the password itself, which is kept nowhere.

        It ends after `seconds`, or as soon as one may at most. Raises TooLongAgo, TooMany, StoreUnavailable.
        """
        if not self.may_make(owner):
            raise TooLongAgo("the sign-in was too long ago")
        # Two at the same moment may both be the last one: the limit keeps lists readable, and nobody out.
        if len(await self.store.of_user(owner.identity.sub)) >= self.terms.per_user:
            raise TooMany(f"there are {self.terms.per_user} already")
        now, holder = round(self._clock(), 3), Holder.new()  # as a use is noted: later is used, and nothing else
        session = replace(
            owner,
            id=holder.id,
            sid=None,
            created_at=now,
            seen_at=now,
            expires_at=now + min(seconds, self.terms.lifetime),
            signed_in_at=0.0,  # nobody can tell whether a person is there when a program comes
            renew_at=math.inf,  # there are no tokens
            fresh_until=math.inf,
            failing_since=None,
            via="password",
            errand=Errand(name, route, now),
            blocks={},
            decisions={},
        )
        session = await self.store.issue(holder, session)
        _audit.info("app password made", extra={"user": owner.identity.sub, "password_id": session.id, "route": route})
        return session, f"{APP_PASSWORD}{holder.id}{holder.secret.decode()}"

    async def revoke(self, owner: str, password_id: str) -> bool:
        """End one of the person `owner`'s; False when they have none of that id. Raises StoreUnavailable."""
        session = await self.store.find(password_id)
        if session is None or session.identity.sub != owner:
            return False
        ended = await self.store.end(password_id, "revoked by its owner", leave_tokens=False)
        _audit.info("app password revoked", extra={"user": owner, "password_id": password_id})
        return ended

    # -- what becomes of their owners

    def vouched(self, identity: Identity, application: str = "") -> None:
        """Logto has just said who somebody is, to an application (its id): their app passwords made there go by that from now
        on, in the background.
        """
        if self.wanted:
            self._chores.run(self.vouch(identity, application), "app passwords")

    async def vouch(self, identity: Identity, application: str = "") -> None:
        """Bring a person's app passwords up to date with what Logto says of them now. Raises StoreUnavailable.

        Those of one application alone: Logto may let somebody in there and keep them out of another.
        """
        now = self._clock()
        for known in await self.store.of_user(identity.sub):
            if (known.application or self._main) != (application or self._main):
                continue
            errand = known.errand
            lately = errand is not None and now - errand.vouched_at < self._noted_after
            if not lately or known.identity != identity:
                await self.store.amend(known.id, lambda it: _vouched(it, identity, now))

    async def doubt(self, sub: str) -> None:
        """Let a person's app passwords wait until Logto has said anew who they are. Raises StoreUnavailable."""
        if self.wanted:
            for known in await self.store.of_user(sub):
                await self.store.amend(known.id, lambda it: _vouched(it, it.identity, 0.0))

    async def end_user(self, sub: str, why: str) -> int:
        """End all of a person who may not go on; how many there were. Whether any route takes them now does not matter."""
        return await self.store.end_user(sub, why)

    # -- the worker's life

    async def start(self) -> None:
        """Have changes reported, where a route takes app passwords at all. Does not fail because the store is down."""
        if self.wanted and not self._running:
            self._running = True
            await self.store.start()

    def adopt(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        bounds = self.store.bounds
        self.store.bounds = replace(bounds, outage_grace=settings.session.outage_grace)
        self._read(settings)
        self._chores.run(self.start(), "app passwords")

    async def close(self) -> None:
        """Let what is under way come to its end, and let go of the store."""
        await self._chores.settled()
        await self.store.close()


def _holder(value: str) -> Holder | None:
    """The two halves of an app password; None for anything that `issue` cannot have made."""
    match = _VALUE.fullmatch(value)
    return Holder(match[1], match[2].encode()) if match else None


def _vouched(session: Session, identity: Identity, at: float) -> Session:
    errand = session.errand
    return replace(session, identity=identity, errand=None if errand is None else replace(errand, vouched_at=at))
