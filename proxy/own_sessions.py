"""A person's own sessions: where they are signed in, and the end of what they no longer want.

Only their own: an id of anybody else's is treated like one that nobody has. What is ended here is refused in every worker
at once, what is open for it is closed, and its refresh token goes back to Logto as soon as a worker has the cookie that opens
it (see session_store.py on what an end leaves behind).
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from proxy.account import Visit, Visits
from proxy.answers import Answers, call_of, redirect
from proxy.browsers import browser_name
from proxy.pages import Action, SignedIn
from proxy.provenance import from_own_page
from proxy.session import Session, SessionStore
from proxy.settings import Settings
from proxy.texts import Locale, text

_log = logging.getLogger("postern.sessions")

_SHOWN: Final = 20  # a page that lists thousands helps nobody, and would hold up everybody else


class OwnSessions:
    """Lists somebody's sessions for the page about them, and ends those that they point at."""

    def __init__(self, settings: Settings, store: SessionStore, visits: Visits, answers: Answers) -> None:
        self._public_url = settings.public_url
        self._admits = settings.admits
        self._alone = settings.alone
        self._here = settings.prefix + "/sessions"
        self._home = settings.prefix + "/"
        self._store = store
        self._visits = visits
        self._answers = answers

    async def listed(self, visit: Visit, locale: Locale) -> tuple[list[SignedIn], Action | None, bool]:
        """The sessions that began last, this one first; what ends all others; whether there are more than are listed."""
        found = await self._store.of_user(visit.session.identity.sub, _SHOWN + 1)
        others = [session for session in found if session.id != visit.session.id and self._is_ours(session)]
        more = len(found) > _SHOWN
        rows = [self._row(visit.session, locale, current=True)]
        rows += [self._row(session, locale) for session in others[: _SHOWN - 1]]
        end_others = Action("action.end_others", self._here + "/end-others", post=True) if others else None
        return rows, end_others, more

    def _is_ours(self, session: Session) -> bool:
        """Whether a session is this site's: what an app on one application's hosts can show and end stays among those."""
        return session.application in self._admits

    def _row(self, session: Session, locale: Locale, *, current: bool = False) -> SignedIn:
        return SignedIn(
            browser=browser_name(session.browser) or text(locale, "home.some_browser"),
            address=session.address,
            since=_minute(session.created_at),
            seen=_minute(session.seen_at),
            end=None if current else f"{self._here}/{session.id}/end",
        )

    async def end(self, request: Request) -> Response:
        """POST /sessions/{id}/end: end one of one's own sessions."""
        visit = await self._visits.of(request)
        refusal = self._refusal(request, visit)
        if refusal is not None or visit is None:
            return refusal or redirect(self._home, 303)
        session_id = request.path_params["id"]
        if session_id == visit.session.id:
            return redirect(self._answers.prefix + "/sign-out", 303)  # there is more to that, and a page that asks
        session = await self._store.find(session_id)
        if session is not None and session.identity.sub == visit.session.identity.sub and self._is_ours(session):
            await self._store.end(session_id, "ended by its owner, from another session")
            _log.info("session %s was ended by its owner", session_id, extra=_where(request, visit))
        # What was not there, or was not theirs, looks the same: the list, without it.
        return redirect(self._home, 303)

    async def end_others(self, request: Request) -> Response:
        """POST /sessions/end-others: end all of one's sessions but this one."""
        visit = await self._visits.of(request)
        refusal = self._refusal(request, visit)
        if refusal is not None or visit is None:
            return refusal or redirect(self._home, 303)
        sub, own = visit.session.identity.sub, visit.session.id
        why = "ended by its owner, with all others"
        if self._alone:
            count = await self._store.end_user(sub, why, spare=own)
        else:
            ids = [it.id for it in await self._store.of_user(sub) if it.id != own and self._is_ours(it)]
            count = await self._store.end_each(ids, why)
        _log.info("%d sessions were ended by their owner", count, extra=_where(request, visit))
        return redirect(self._home, 303)

    def _refusal(self, request: Request, visit: Visit | None) -> Response | None:
        if visit is None or from_own_page(request, self._public_url):
            return None
        return self._answers.answer(
            request, "end_refused", 403, reason="foreign_origin", actions=[Action("action.home", self._home)]
        )


def _where(request: Request, visit: Visit) -> dict[str, str]:
    return {"request_id": call_of(request).request_id, "session": visit.session.id}


def _minute(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
