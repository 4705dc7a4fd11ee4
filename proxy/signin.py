"""The way in: a browser goes to Logto with an attempt, comes back to the callback, leaves it with a session.

The protocol is identity.py's, sessions are session.py's; this is where a sign-in's outcome becomes an answer: a session and
a redirect, or a page that says what happened and offers to try again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from proxy import cookies
from proxy.account import Visit, Visits
from proxy.answers import RETRY_AFTER, Answers, call_of, is_prefetch, is_too_old, locale_of, redirect
from proxy.errors import LogtoRefused, LogtoUnavailable, SignInFailed, SignInProblem
from proxy.identity import Finished, RelyingParty
from proxy.pages import Action, Pages
from proxy.redirects import ReturnPaths
from proxy.session import SessionStore, cookie_header
from proxy.settings import Settings
from proxy.signout import Revocations

_log = logging.getLogger("postern.signin")

# Status of a sign-in that failed: a "no" is 403, Logto's fault is 502, an attempt that cannot be finished is 400.
_STATUS: Final = {
    SignInProblem.DENIED: 403,
    SignInProblem.LOGTO_ERROR: 502,
    SignInProblem.BAD_TOKEN: 502,
    SignInProblem.NOT_FRESH: 403,
}

# What a link to /sign-in may wish for at Logto. Each is judged before it goes there (authorization.py).
_PASSED_ON: Final = ("screen", "connector", "ui_locales", "identifier", "login_hint")

# With these the attempt is gone, but whether the person is signed in is another question.
_STALE: Final = frozenset((SignInProblem.NO_ATTEMPT, SignInProblem.REPLAYED, SignInProblem.EXPIRED))


class SignIn:
    """Starts sign-ins and finishes them."""

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
        results: Counter[str],
        organization_at: Callable[[str], str | None],
    ) -> None:
        """`results` counts the sign-ins that have ended; `organization_at` names the one whose members a URL is for."""
        self._settings = settings
        self._store = store
        self._relying_party = relying_party
        self._visits = visits
        self._pages = pages
        self._answers = answers
        self._returns = returns
        self._revocations = revocations
        self._results = results
        self._organization_at = organization_at
        self._strict = settings.session.cookie.same_site == "strict"

    async def intercept(self, request: Request) -> Response:
        """Answer a navigation without a session: on to Logto, to come back to this very URL."""
        call = call_of(request)
        if call.verdict.leaves and call.verdict.route is not None:  # nobody signs in to sign out
            forget = cookies.leaving(call.verdict.route.path, seconds=0)
            return redirect(self._answers.sign_out_url, 303, set_cookies=[forget])
        return_to = self._answers.return_url(call)
        again = is_too_old(call.verdict)
        if self._answers.cookies_return(call):
            return await self._begin(request, return_to, prompt="login" if again else None)
        # Started here, the attempt's cookie would stay behind at a name that the callback does not have. `/sign-in` never
        # comes this way, whatever Host it is asked under, so even a proxy in front that rewrites Host makes no loop.
        return redirect(self._answers.sign_in_url(return_to, switch=again))

    async def start(self, request: Request) -> Response:
        """GET /sign-in: start one, whoever is signed in already."""
        if is_prefetch(request.headers) or request.headers.get("sec-fetch-mode", "navigate") != "navigate":
            # Neither a browser that guesses links nor an image on some page may fill the jar with attempts.
            return self._answers.unauthenticated(request)
        query = request.query_params
        return await self._begin(
            request,
            self._returns.safe(query.get("return_to")),
            prompt="login" if query.get("prompt") == "login" else None,  # a link may ask for that one, and no other
            **{name: query.get(name) for name in _PASSED_ON},
        )

    async def _begin(self, request: Request, return_to: str, **wishes: str | None) -> Response:
        """`wishes`: as `RelyingParty.begin` takes them."""
        try:
            organization = self._organization_at(return_to)
            begun = await self._relying_party.begin(return_to, organization=organization, **wishes)
        except (LogtoUnavailable, LogtoRefused) as error:
            return self._logto_trouble(request, error, return_to)
        return redirect(begun.url, set_cookies=[begun.set_cookie])

    async def callback(self, request: Request) -> Response:
        """GET /callback: where Logto sends the browser back to."""
        before = await self._visits.of(request)
        header = "; ".join(request.headers.getlist("cookie"))
        # Of two cookies of one name the first has the longer path (RFC 6265 5.4): an attempt's is set for this very path.
        sent = dict(reversed(cookies.parse(header)))
        response = await self._finish(request, sent, before)
        for line in self._relying_party.stale_attempts(sent):
            response.headers.append("set-cookie", line)
        return response

    async def _finish(self, request: Request, sent: Mapping[str, str], before: Visit | None) -> Response:
        try:
            finished = await self._relying_party.finish(request.scope["query_string"].decode("latin-1"), sent)
        except SignInFailed as failure:
            return self._failed(request, failure, before)
        except (LogtoUnavailable, LogtoRefused) as error:
            return self._logto_trouble(request, error, None)
        return await self._signed_in(request, finished, before)

    async def _signed_in(self, request: Request, finished: Finished, before: Visit | None) -> Response:
        """A new session under a new id, whatever this browser had before (session fixation)."""
        self._results["signed_in"] += 1
        call, grant = call_of(request), finished.grant
        browser = request.headers.get("user-agent", "")
        _, value = await self._store.create(grant, browser=browser, address=call.client)
        if before is not None:
            await self._replace(before, grant.identity.sub)
        set_cookies = [cookie_header(self._settings, value), finished.clear_cookie]
        target = self._returns.safe(finished.return_to)
        if self._strict:
            # The chain of redirects started at Logto, so a SameSite=Strict cookie is not sent with its last hop: the gate
            # would see a stranger and send them round again. A page of ours that goes on by itself starts a new chain.
            response: Response = self._pages.render(
                "signed_in",
                locale=locale_of(request),
                request_id=call.request_id,
                actions=[Action("action.continue", target)],
                refresh=target,
            )
            for cookie in set_cookies:
                response.headers.append("set-cookie", cookie)
            return response
        # 303: the callback has done its work and the answer is elsewhere, to be fetched with GET (RFC 9110 15.4.4). Cookies
        # set on a redirect are kept by every current browser, Safari included, for a site that is visited in the tab itself.
        return redirect(target, 303, set_cookies=set_cookies)

    async def _replace(self, before: Visit, sub: str) -> None:
        if before.session.identity.sub != sub:
            # Logto keeps one grant per person and browser: revoking the same person's old token would kill the new ones.
            tokens = await self._store.tokens(before.cookie)
            if tokens is not None:
                self._revocations.start(tokens)
        await self._store.end(before.session.id, "replaced by another sign-in", leave_tokens=False)

    def _failed(self, request: Request, failure: SignInFailed, before: Visit | None) -> Response:
        problem = failure.problem
        self._results[problem.value] += 1
        _log.warning(
            "sign-in failed: %s",
            problem.value,
            extra={"request_id": call_of(request).request_id, "detail": failure.detail},
        )
        return_to = self._returns.safe(failure.return_to)
        if before is not None and problem in _STALE:
            # The Back button, a reload, the other one of two tabs. Whoever is signed in has nothing to be told off for.
            if failure.return_to is not None:
                return redirect(return_to, 303)
            actions = [Action("action.continue", return_to), Action("action.home", self._answers.prefix + "/")]
            return self._answers.answer(request, "already", 200, as_page=True, actions=actions)
        again = Action("action.try_again", self._answers.sign_in_url(return_to))
        status = _STATUS.get(problem, 400)
        return self._answers.answer(request, problem.value, status, actions=[again], sign_in=again.url)

    def _logto_trouble(
        self, request: Request, error: LogtoUnavailable | LogtoRefused, return_to: str | None
    ) -> Response:
        """Logto does not answer: 503, it will pass. Logto says that we are not who we should be: 502, it will not."""
        call = call_of(request)
        self._results["logto_refused" if isinstance(error, LogtoRefused) else "logto_unavailable"] += 1
        _log.error("sign-in is not possible: %s", error, extra={"request_id": call.request_id})
        if isinstance(error, LogtoRefused):
            return self._answers.answer(request, "logto_refused", 502, reason="logto_refused")
        again = Action("action.try_again", self._answers.sign_in_url(return_to))
        headers = {"Retry-After": RETRY_AFTER}
        return self._answers.answer(
            request, "logto_down", 503, reason="logto_unavailable", actions=[again], headers=headers
        )
