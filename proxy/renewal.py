"""Renewing sessions: new tokens, and what Logto says of the person now, before the old ones run out.

A refresh is also how Logto tells that somebody may not go on. So it is done in time, in the background, when a session is
used after most of its tokens' life; who comes when they have run out waits for it. At any moment one worker at most asks
Logto for one session: it holds a claim in the store. What Logto gives is stored before anybody goes by it, and no client
that leaves stops that, for a refresh token may have been replaced by then. How that is done is in turns.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from proxy import turns
from proxy.claims import Grant, Identity, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable, StoreUnavailable
from proxy.session import Session, SessionStore

Refresh = Callable[[Tokens, Identity], Awaitable[Grant]]

_WAIT_SECONDS: Final = 20.0  # how long a request waits at most; Logto's own time limit is shorter
_STORE_AGAIN_SECONDS: Final = 1.0  # after the store has not answered, for what nobody waits for
_DRAIN_SECONDS: Final = 5.0
# What Logto says of a person and their sign-in; any other error is about this gateway or about Logto itself.
_FINAL: Final = frozenset(("invalid_grant", "access_denied"))
_log = logging.getLogger("postern.renewal")


class _Job:
    """The renewal of one session in this process. `urgent`: a request waits for it."""

    __slots__ = ("cookie", "task", "urgent")

    def __init__(self, cookie: str, *, urgent: bool) -> None:
        self.cookie = cookie
        self.urgent = urgent
        self.task: asyncio.Task[bool] = None  # type: ignore[assignment]  # set as soon as it is made


class Renewals:
    """Renews the sessions of `store`. Set `refresh` to whoever asks Logto."""

    def __init__(self, store: SessionStore, *, clock: Callable[[], float] = time.time) -> None:
        self.refresh: Refresh | None = None
        self._store = store
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._pauses = turns.Pauses()
        self._store_again_at = 0.0  # time.monotonic()
        store.on_due(self.due)
        store.renewer = self.renewed

    def due(self, cookie: str, session: Session) -> None:
        """Renew a session in the background, unless that is being done or has just failed."""
        if time.monotonic() < self._store_again_at:
            return  # without it there is neither claim nor token: one line a second says so, not one for each request
        if session.id not in self._jobs and self._pauses.over(session.id):
            self._start(cookie, session.id, urgent=False)

    async def renewed(self, cookie: str, session: Session) -> Session | None:
        """Wait until a session whose tokens have run out has been renewed; None when it has ended over that.

        While Logto cannot say, it goes on for the store's `renewal_grace`. Raises StoreUnavailable.
        """
        if await self._wait_for(cookie, session.id):
            current = await self._store.read(cookie)
            if current is None or self._counts(current):
                return current
        # Logto cannot say. From the first such moment on the grace runs, for all workers.
        current = await self._store.read(cookie)
        if current is not None and current.failing_since is None and self._store.bounds.renewal_grace > 0:
            await self._store.renewal_failed(cookie, self._clock())
            return current
        if current is None or self._counts(current):
            return current
        _log.warning("session %s ends: it could not be renewed in time", session.id)
        await self._store.end(session.id, "it could not be renewed in time")
        return None

    async def _wait_for(self, cookie: str, session_id: str) -> bool:
        """Wait for the renewal that is under way, or start one; False when it fails, has just failed, or takes too long."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            job = self._jobs.get(session_id)
            if job is None:
                if not self._pauses.over(session_id):
                    return False
                job = self._start(cookie, session_id, urgent=True)
            urgent, job.urgent = job.urgent, True
            finished, _ = await asyncio.wait([job.task], timeout=deadline - time.monotonic())
            if not finished or not job.task.result():
                return False
            if urgent:
                return True
            # One in the background is content when another worker is at it. It may have stopped before it saw us waiting.
            await asyncio.sleep(0)

    def _counts(self, session: Session) -> bool:
        return self._clock() < session.held_from(self._store.bounds.renewal_grace)

    async def close(self) -> None:
        """Let what is under way come to its end: tokens may have been replaced already."""
        await turns.ended((job.task for job in self._jobs.values()), _DRAIN_SECONDS)

    def _start(self, cookie: str, session_id: str, *, urgent: bool) -> _Job:
        # A task of its own: it belongs to no request, and no client that leaves ends it.
        job = self._jobs[session_id] = _Job(cookie, urgent=urgent)
        job.task = asyncio.get_running_loop().create_task(self._run(job, session_id))
        return job

    async def _run(self, job: _Job, session_id: str) -> bool:
        """Renew, by whichever worker; True when that is done. Raises nothing."""
        try:
            done = await self._claim_and_renew(job, session_id)
        except StoreUnavailable as error:
            _log.warning("session %s is not renewed: %s", session_id, error)
            self._store_again_at = time.monotonic() + _STORE_AGAIN_SECONDS
            return False
        except Exception:  # noqa: BLE001 -- the session goes on for its grace, whatever we stumbled over
            _log.exception("session %s is not renewed", session_id)
            done = False
        finally:
            del self._jobs[session_id]
        if done:
            self._pauses.succeeded(session_id)
        else:
            self._pauses.failed(session_id)
        return done

    async def _claim_and_renew(self, job: _Job, session_id: str) -> bool:
        """Renew when nobody else is at it; with somebody waiting, see to it that it gets done."""
        mark = await turns.take(self._store, session_id, lambda: job.urgent, _WAIT_SECONDS)
        if mark is None:
            return not job.urgent
        async with turns.held(self._store, session_id, mark):
            return await self._renew(job.cookie)

    async def _renew(self, cookie: str) -> bool:
        """Renew under a claim; True when it is done, or not to be done any more."""
        session, tokens = await self._store.read(cookie), await self._store.tokens(cookie)
        if session is None or tokens is None or tokens.refresh_token is None or self._clock() < session.renew_at:
            return True
        if self.refresh is None:
            return False
        try:
            grant = await self.refresh(tokens, session.identity)
        except LogtoUnavailable as error:
            _log.warning("session %s is not renewed: %s", session.id, error)
            return False
        except LogtoRefused as refusal:
            return await self._refused(cookie, session, tokens, refusal)
        if await turns.stored(lambda: self._store.replace(cookie, grant, after=tokens)) is None:
            self._store.left_over(grant.tokens)  # signed out meanwhile, which has revoked the old ones at best
        return True

    async def _refused(self, cookie: str, session: Session, tokens: Tokens, refusal: LogtoRefused) -> bool:
        if refusal.error not in _FINAL:
            _log.error("session %s is not renewed: %s", session.id, refusal)
            return False
        if await self._store.tokens(cookie) != tokens:
            return True  # our claim was lost, and another worker has renewed it: ours was the old token
        _log.info("session %s ends: Logto does not renew it: %s", session.id, refusal.error)
        # A token that was refused for who the person is works again for whoever lets them in again.
        await self._store.end(session.id, f"Logto: {refusal.error}", leave_tokens=refusal.error != "invalid_grant")
        return True
