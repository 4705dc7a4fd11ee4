"""The way out: the session ends here at once, at Logto by way of the browser, and its refresh token in the background.

Or here alone, by `logto.sign_out` or at the person's choice: then Logto knows the person still, and whoever wants in again is
asked who they are. Without that a click on "sign in" would undo the sign-out in silence, for whoever sits there next.

A sign-out is only done for a POST that provably comes from a page of this very site: otherwise any site could sign people
out, or, worse, have them sign in again as somebody else (login CSRF). A GET shows the button.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Literal
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import Response

from proxy import cookies
from proxy.account import Visit, Visits
from proxy.answers import Answers, account_fact, call_of, locale_of, redirect
from proxy.applications import Applications
from proxy.claims import Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.identity import RelyingParty
from proxy.pages import Action, Pages
from proxy.provenance import from_own_page
from proxy.redirects import ReturnPaths
from proxy.session import SessionStore, clear_cookie_header
from proxy.settings import Settings

_log = logging.getLogger("postern.signout")

Reach = Literal["everywhere", "here"]

_LOGTO_PATIENCE: Final = 3.0  # seconds to find out where Logto's sign-out is; the person is signed out here already
_REMEMBERED_SECONDS: Final = 600
_REMEMBERED_BYTES: Final = 2048  # a cookie may have 4096 (RFC 6265 6.1), this path in it up to three for each byte


class Revocations:
    """Hands refresh tokens back to Logto without letting anybody wait for it."""

    def __init__(self, relying_party: RelyingParty | Applications) -> None:
        self._relying_party = relying_party
        self._running: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks only weakly

    def start(self, tokens: Tokens) -> None:
        """Revoke the refresh token of `tokens` soon. Failures are logged by the relying party."""
        task = asyncio.get_running_loop().create_task(self._relying_party.revoke(tokens))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def drain(self, seconds: float) -> None:
        """Wait up to `seconds` for what is under way: a worker that stops must not leave tokens alive."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)


class SignOut:
    """Ends sessions at their owners' wish."""

    def __init__(
        self,
        settings: Settings,
        store: SessionStore,
        relying_party: RelyingParty,
        visits: Visits,
        pages: Pages,
        answers: Answers,
        returns: ReturnPaths,
        revocations: Revocations,
    ) -> None:
        self._settings = settings
        self._store = store
        self._relying_party = relying_party
        self._visits = visits
        self._pages = pages
        self._answers = answers
        self._returns = returns
        self._revocations = revocations
        self._usual: Reach = settings.logto.sign_out
        self._memory = settings.session.cookie.name + "_return"

    async def sign_out(self, request: Request) -> Response:
        """GET asks, POST does."""
        return_to = self._returns.safe(given) if (given := request.query_params.get("return_to")) else None
        if request.method == "POST" and not from_own_page(request, self._settings.public_url):
            return self._answers.answer(
                request,
                "sign_out_refused",
                403,
                reason="foreign_origin",
                actions=[Action("action.sign_out", f"{self._answers.prefix}/sign-out")],
            )
        visit = await self._visits.of(request)
        if visit is None:
            here = self._reach(request) == "here"
            response = self._signed_out(request, return_to, page="signed_out_of_app" if here else "signed_out")
            if request.method == "POST":
                response.headers.append("set-cookie", clear_cookie_header(self._settings))
            return response
        if request.method == "POST":
            return await self._end(request, visit, return_to)
        return self._ask(request, visit, return_to)

    def _reach(self, request: Request) -> Reach:
        """How far a sign-out is to go: as its button says, else as the settings do."""
        match request.query_params.get("from"):
            case "everywhere" | "here" as chosen:
                return "here" if chosen == "here" else "everywhere"
            case _:
                return self._usual

    def _ask(self, request: Request, visit: Visit, return_to: str | None) -> Response:
        """The page with the buttons: first what the settings, or the link that led here, have in mind, then the other."""
        usual = self._reach(request)
        other = "everywhere" if usual == "here" else "here"
        back = [f"return_to={quote(return_to, safe='')}"] if return_to else []
        first = "&".join([*back, *([f"from={usual}"] if usual != self._usual else [])])
        url = f"{self._answers.prefix}/sign-out"
        return self._pages.render(
            "sign_out_of_app" if usual == "here" else "sign_out",
            locale=locale_of(request),
            request_id=call_of(request).request_id,
            facts=[account_fact(visit.session.identity)],
            actions=[
                Action("action.sign_out", f"{url}?{first}" if first else url, post=True),
                Action(f"action.sign_out_{other}", f"{url}?{'&'.join([*back, f'from={other}'])}", post=True),
                Action("action.stay", return_to or self._answers.prefix + "/"),
            ],
        )

    async def _end(self, request: Request, visit: Visit, return_to: str | None) -> Response:
        tokens = await self._store.tokens(visit.cookie)
        await self._store.end(visit.session.id, "signed out", leave_tokens=False)
        # From here on the person is signed out, whatever Logto does or does not.
        if tokens is not None:
            self._revocations.start(tokens)
        if self._reach(request) == "here":
            response = self._signed_out(request, return_to, page="signed_out_of_app")
        else:
            response = await self._on_to_logto(request, tokens, return_to)
        response.headers.append("set-cookie", clear_cookie_header(self._settings))
        # Apps say nothing of caches for most of what they send, and a Back button asks nobody: what the browser keeps of
        # this host goes with the session. Sent here only: it can take a browser a second, and this is worth it.
        response.headers["Clear-Site-Data"] = '"cache"'
        return response

    async def _on_to_logto(self, request: Request, tokens: Tokens | None, return_to: str | None) -> Response:
        try:
            async with asyncio.timeout(_LOGTO_PATIENCE):
                url = await self._relying_party.sign_out_url(tokens)
        except (LogtoUnavailable, LogtoRefused, TimeoutError) as error:
            _log.warning(
                "signed out here only, Logto does not answer: %s",
                error or "timeout",
                extra={"request_id": call_of(request).request_id},
            )
            return self._signed_out(request, return_to, page="signed_out_here")
        set_cookies = [self._remember(return_to)] if return_to is not None else []
        return redirect(url, 303, set_cookies=set_cookies)  # 303: a POST becomes a GET (RFC 9110 15.4.4)

    async def signed_out(self, request: Request) -> Response:
        """GET /signed-out: where Logto sends the browser after its own sign-out."""
        if await self._visits.of(request) is not None:
            return redirect(self._answers.prefix + "/", 303)  # somebody is signed in: do not say otherwise
        header = "; ".join(request.headers.getlist("cookie")).encode("latin-1")
        remembered = cookies.find(header, self._memory.encode())
        if remembered is None:
            return self._signed_out(request, None)
        response = self._signed_out(request, self._returns.safe(unquote(remembered.decode("ascii", "replace"))))
        response.headers.append("set-cookie", self._remember("", seconds=0))
        return response

    def _signed_out(self, request: Request, return_to: str | None, *, page: str = "signed_out") -> Response:
        known_still = page != "signed_out"
        actions = [Action("action.sign_in_again", self._answers.sign_in_url(return_to, switch=known_still))]
        if return_to is not None:
            # Where Logto knows the person still, going on may be going in again: that is not the first thing to offer.
            actions.insert(1 if known_still else 0, Action("action.continue", return_to))
        return self._pages.render(
            page, locale=locale_of(request), request_id=call_of(request).request_id, actions=actions
        )

    def _remember(self, return_to: str, *, seconds: int = _REMEMBERED_SECONDS) -> str:
        """The Set-Cookie that keeps the return path over the visit to Logto.

        A cookie and not `state`, so that the path stays between browser and gateway: Logto has no business with it. It is
        not sealed, as what it leads to is checked when it is read: whoever plants one can only pick another page of ours.
        """
        value = quote(return_to, safe="") if len(return_to) <= _REMEMBERED_BYTES else ""
        return cookies.build(
            self._settings,
            self._memory,
            value,
            path=f"{self._answers.prefix}/signed-out",
            max_age=seconds if value else 0,
            same_site="lax",  # the way back from Logto is cross-site
        )
