"""Access tokens for the APIs behind apps: got when an app is first to be told one, renewed in time, by one worker for all.

They are kept with the session's other tokens, sealed with the cookie's secret. Whoever asks Logto for one uses the session's
refresh token, which that may replace, and so takes a turn like an ordinary renewal (turns.py) and stores what came of it before
anybody goes by it. Most of its life a token is at hand; then it is renewed in the background, and only who comes when it is
over waits.

Logto's no is an answer: the app is told nothing, and decides. It is kept for some minutes, or every request would ask again.
It ends no session, not even where it speaks of the person: then the ordinary renewal, which has the last word on that, is to
come soon. No answer is none: LogtoUnavailable, and the request is not relayed, for an app cannot tell "may not" from "nobody
knows".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from proxy import turns
from proxy.api_tokens import due, handed_out, missing, refused, with_token
from proxy.claims import Audience, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable, StoreUnavailable
from proxy.session import Session, SessionStore
from proxy.session_codec import cookie_id

Ask = Callable[[Session, Tokens, Audience], Awaitable[Tokens]]

_WAIT_SECONDS: Final = 15.0  # how long a request waits at most; Logto's own time limit is shorter
_DRAIN_SECONDS: Final = 5.0
# What Logto says about the person and the audience; any other error is about this gateway or about Logto itself.
_ANSWERS: Final = frozenset(("invalid_target", "invalid_scope", "insufficient_scope", "access_denied", "invalid_grant"))
# And what may be about the person's session, or what is known of them.
_PERSONAL: Final = frozenset(("access_denied", "invalid_grant"))
_TOLD: Final = 1000
_log = logging.getLogger("postern.renewal")


class _Job:
    """Asking for the tokens of one session in this process. `urgent`: a request waits for it."""

    __slots__ = ("cookie", "task", "urgent", "wanted")

    def __init__(self, cookie: str) -> None:
        self.cookie = cookie
        self.wanted: list[Audience] = []
        self.urgent = False
        self.task: asyncio.Task[bool] = None  # type: ignore[assignment]  # set as soon as it is made


class ResourceTokens:
    """The tokens of the sessions of `store`, with those for APIs. Set `ask` to whoever gets one from Logto."""

    def __init__(self, store: SessionStore, *, clock: Callable[[], float] = time.time) -> None:
        self.ask: Ask | None = None
        self._store = store
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._pauses = turns.Pauses()
        self._told: dict[tuple[Audience | None, str], None] = {}

    async def of(self, cookie: str, audiences: Collection[Audience]) -> Tokens | None:
        """The tokens of the session of `cookie`; of those for APIs the ones for `audiences` that Logto gives.

        None when there is no session. Raises StoreUnavailable, and LogtoUnavailable when Logto does not say what it gives.
        """
        tokens, session_id = await self._store.tokens(cookie), cookie_id(cookie)
        if tokens is None or session_id is None or not audiences:
            return tokens
        if tokens.refresh_token is None:
            self._tell(None, "there is no refresh token to get it with")
            return tokens
        deadline = time.monotonic() + _WAIT_SECONDS
        while wanted := missing(tokens, audiences, self._clock()):
            answered = await self._wait_for(cookie, session_id, wanted, deadline)
            tokens = await self._store.tokens(cookie)
            if tokens is None:
                return None
            if not answered and missing(tokens, audiences, self._clock()):
                raise LogtoUnavailable("Logto does not say which access tokens the app may be given")
        old = [it for it in due(tokens, audiences, self._clock()) if self._pauses.over((session_id, it))]
        if old and session_id not in self._jobs:
            self._start(cookie, session_id).wanted += old  # in the background
        return handed_out(tokens, audiences, self._clock())

    async def close(self) -> None:
        """Let what is under way come to its end: refresh tokens may have been replaced already."""
        await turns.ended((job.task for job in self._jobs.values()), _DRAIN_SECONDS)

    async def _wait_for(self, cookie: str, session_id: str, wanted: list[Audience], deadline: float) -> bool:
        """Wait for the asking that is under way, or begin it; False when it fails, has just failed, or takes too long."""
        if not self._worth_asking(session_id, wanted):
            return False
        job = self._jobs.get(session_id) or self._start(cookie, session_id)
        job.wanted += [audience for audience in wanted if audience not in job.wanted]
        job.urgent = True
        finished, _ = await asyncio.wait([job.task], timeout=deadline - time.monotonic())
        return bool(finished) and job.task.result() and self._worth_asking(session_id, wanted)

    def _worth_asking(self, session_id: str, wanted: list[Audience]) -> bool:
        """Whether none of `wanted` has just failed. Each for itself: what one app wants in vain is nothing to another."""
        return all(self._pauses.over((session_id, audience)) for audience in wanted)

    def _start(self, cookie: str, session_id: str) -> _Job:
        # A task of its own: it belongs to no request, and no client that leaves ends it.
        job = self._jobs[session_id] = _Job(cookie)
        job.task = asyncio.get_running_loop().create_task(self._run(job, session_id))
        return job

    async def _run(self, job: _Job, session_id: str) -> bool:
        """Ask for what is wanted; False when there was no turn to be had, though somebody waits. Raises nothing."""
        try:
            mark = await turns.take(self._store, session_id, lambda: job.urgent, _WAIT_SECONDS)
            if mark is None:
                return not job.urgent
            async with turns.held(self._store, session_id, mark):
                while job.wanted:
                    await self._try(job.cookie, session_id, job.wanted.pop(0))
        except StoreUnavailable as error:
            _log.warning("no access tokens are got for session %s: %s", session_id, error)
            return False
        finally:
            del self._jobs[session_id]
        return True

    async def _try(self, cookie: str, session_id: str, audience: Audience) -> None:
        try:
            got = await self._get(cookie, audience)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 -- nobody else would say so
            _log.exception("no access token for %s is got for session %s", audience, session_id)
            got = False
        if got:
            self._pauses.succeeded((session_id, audience))
        else:
            self._pauses.failed((session_id, audience))

    async def _get(self, cookie: str, audience: Audience) -> bool:
        """Get one token, when it is our turn; True when it is there, or Logto has said that there is none."""
        session, tokens = await self._store.read(cookie), await self._store.tokens(cookie)
        if session is None or tokens is None or not due(tokens, [audience], self._clock()):
            return True  # signed out, or another worker has asked
        if self.ask is None:
            return False
        try:
            given = await self.ask(session, tokens, audience)
        except LogtoUnavailable as error:
            _log.warning("no access token for %s is got for session %s: %s", audience, session.id, error)
            return False
        except LogtoRefused as refusal:
            if refusal.error not in _ANSWERS:
                _log.error("no access token for %s is got for session %s: %s", audience, session.id, refusal)
                return False
            self._tell(audience, str(refusal))
            given = with_token(tokens, audience, refused(self._clock()), self._clock())
            if refusal.error in _PERSONAL:
                await self._store.renew_soon([session.id])
        if not await turns.stored(lambda: self._store.keep_tokens(cookie, given, after=tokens)):
            self._store.left_over(given)
        return not due(given, [audience], self._clock())

    def _tell(self, audience: Audience | None, why: str) -> None:
        """Say once in the log why apps are told of no token: it is mostly the settings, here or at Logto, and for everybody."""
        if (audience, why) in self._told or len(self._told) >= _TOLD:
            return
        self._told[audience, why] = None
        _log.warning("Logto gives no access token%s: %s", f" for {audience}" if audience is not None else "", why)
