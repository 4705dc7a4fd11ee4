"""What the gateway says instead of the app: a page for people, problem+json (RFC 9457) for programs.

A verdict goes in, a response comes out; no I/O, no decision about who may pass. The Accept field decides which of the
two forms a request gets, so that `curl`, an app's own fetch and a person each read something they understand.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from proxy.claims import Identity
from proxy.credentials import REALM
from proxy.pages import Action, Fact, Pages
from proxy.policy import Reason
from proxy.redirects import ReturnPaths
from proxy.routes import normalise_host
from proxy.settings import Settings
from proxy.texts import Locale, choose_locale, has_text, text
from proxy.verdict import Call, Kind, Verdict, challenge

RETRY_AFTER: Final = "5"  # seconds; a store or Logto that restarts is back by then, and a person has not left yet

_WEIGHT: Final = re.compile(r";\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|\Z)", re.IGNORECASE)
_URL_SAFE: Final = string.punctuation

# Kind of verdict → page, for those that say the same to everybody.
_PLAIN: Final[Mapping[Kind, str]] = {
    Kind.FOREIGN_ORIGIN: "foreign_origin",
    Kind.NOT_FOUND: "not_found",
    Kind.AMBIGUOUS: "ambiguous",
    Kind.LOOP: "loop",
    Kind.BAD_REQUEST: "bad_request",
    Kind.UNAVAILABLE: "store_down",
    Kind.OVERLOADED: "overloaded",
}


def locale_of(request: Request) -> Locale:
    """The language to answer `request` in."""
    return choose_locale(request.headers.get("accept-language", ""))


def wants_page(headers: Headers) -> bool:
    """Whether whoever sent `headers` reads HTML rather than JSON (RFC 9110 12.5.1).

    `*/*` alone is a program: browsers name text/html when a person is to see the answer. `X-Requested-With` gives away
    an older XHR, whose Accept means nothing.
    """
    if "x-requested-with" in headers:
        return False
    weights = {"text/html": 0.0, "application/json": 0.0, "application/problem+json": 0.0}
    for element in ",".join(headers.getlist("accept")).lower().split(","):
        media_type, _, parameters = element.strip().partition(";")
        if media_type.strip() in weights:
            weight = _WEIGHT.search(";" + parameters)
            weights[media_type.strip()] = float(weight[1]) if weight else 1.0
    html = weights.pop("text/html")
    return html > 0 and html >= max(weights.values())


def is_too_old(verdict: Verdict) -> bool:
    """Whether a request was refused because its person signed in too long ago."""
    return verdict.decision is not None and verdict.decision.reason is Reason.SIGN_IN_TOO_OLD


def is_prefetch(headers: Headers) -> bool:
    """Whether a browser only guesses that the person may want this (Fetch metadata `Sec-Purpose`, older `Purpose`)."""
    return "prefetch" in headers.get("sec-purpose", headers.get("purpose", ""))


def redirect(url: str, status: int = 302, *, set_cookies: Iterable[str] = ()) -> Response:
    """A redirect to `url` with Set-Cookie fields.

    Only what cannot stand in a field at all is encoded: a return path goes back to the app byte for byte, and neither a
    line break nor anything else in it ends the Location field early.
    """
    response = Response(status_code=status, headers={"Location": quote(url, safe=_URL_SAFE)})
    for value in set_cookies:
        response.headers.append("set-cookie", value)
    return response


def json_response(content: Mapping[str, Any], status: int = 200) -> Response:
    """`content` as JSON."""
    return Response(json.dumps(content, ensure_ascii=False), status, media_type="application/json")


def call_of(request: Request) -> Call:
    """What the relay knows about `request`."""
    call = request.scope["postern"]
    if not isinstance(call, Call):
        raise TypeError("the gateway app runs behind the relay only")
    return call


def account_fact(identity: Identity) -> Fact:
    """The line that tells people who they are here: their best name, and what tells two people of that name apart."""
    more = next((value for value in (identity.email, identity.username) if value and value != identity.display), "")
    return Fact("label.account", identity.display, more)


class Answers:
    """Makes the gateway's answers for one site."""

    def __init__(self, settings: Settings, pages: Pages, returns: ReturnPaths) -> None:
        self._pages = pages
        self._returns = returns
        self._public_url = settings.public_url
        self._public = urlsplit(settings.public_url)
        self._public_host = normalise_host(self._public.netloc)
        self._cookie_domain = settings.session.cookie.domain.lower().lstrip(".")
        self.prefix = settings.prefix

    def sign_in_url(self, return_to: str | None = None, *, switch: bool = False) -> str:
        """Where a sign-in starts that comes back to `return_to`; `switch` asks Logto to forget who it knows.

        Always at the public host: that is where the callback is, so that is where the attempt's cookie has to be set.
        """
        query = [f"return_to={quote(return_to, safe='/:')}"] if return_to else []
        query += ["prompt=login"] if switch else []
        return f"{self._public_url}{self.prefix}/sign-in" + ("?" + "&".join(query) if query else "")

    @property
    def sign_out_url(self) -> str:
        """Where people sign out."""
        return f"{self._public_url}{self.prefix}/sign-out"

    def cookies_return(self, call: Call) -> bool:
        """Whether a cookie set in answer to `call` comes back at the callback.

        A browser that reached us under another name (an address, an alias) keeps the cookie for that name. On plain
        http it throws a Secure cookie away.
        """
        if self._public.scheme == "https" and call.scheme != "https":
            return False
        return self._is_ours(normalise_host(call.host))

    def _is_ours(self, host: str) -> bool:
        domain = self._cookie_domain
        return host == self._public_host or (domain != "" and (host == domain or host.endswith("." + domain)))

    def return_url(self, call: Call) -> str:
        """Return the page of `call`, to come back to: its own URL where that is ours, else its path at the public URL.

        Behind a proxy that terminates TLS and is not trusted, `call` says http though the browser is on https. Nobody
        is led back to a scheme other than the public one.
        """
        path = "/" + call.url.partition("://")[2].partition("/")[2]
        host = normalise_host(call.host)
        if host == self._public_host or not self._is_ours(host):
            return self._returns.safe(self._public_url + path)
        port = f":{self._public.port}" if self._public.port else ""
        return self._returns.safe(f"{self._public.scheme}://{host}{port}{path}")

    def page_url(self, request: Request) -> str:
        """Return the page that a request was made from, for a sign-in that somebody may start because of it.

        For a document that is the document. For anything else it is the page that asked (Referer), where it is ours:
        after signing in nobody wants to look at the answer of an API call.
        """
        call = call_of(request)
        mode = request.headers.get("sec-fetch-mode")
        document = mode == "navigate" or (mode is None and wants_page(request.headers))
        if document and request.method in ("GET", "HEAD"):
            return self.return_url(call)
        root = self.return_url(call).partition("://")
        home = f"{root[0]}://{root[2].partition('/')[0]}/"
        referer = request.headers.get("referer", "")
        safe = self._returns.safe(referer)
        return safe if referer and safe != self._public_url + "/" else self._returns.safe(home)

    def answer(
        self,
        request: Request,
        page: str,
        status: int,
        *,
        reason: str = "",
        detail: str = "",
        as_page: bool | None = None,
        actions: Sequence[Action] = (),
        facts: Sequence[Fact] = (),
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> Response:
        """The page `page`, or a problem document with its text: `extensions` are further members of that document.

        `reason` is the word for machines, by default the page's name; `detail` replaces the text in the document.
        """
        call, locale = call_of(request), locale_of(request)
        if wants_page(request.headers) if as_page is None else as_page:
            return self._pages.render(
                page,
                locale=locale,
                status=status,
                request_id=call.request_id,
                actions=actions,
                facts=facts,
                headers=headers,
            )
        problem = {
            "type": "about:blank",  # RFC 9457 4.2.1: the status says what kind of problem it is, `reason` which one
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail or text(locale, f"{page}.text"),
            "reason": reason or page,
            "request_id": call.request_id,
            **extensions,
        }
        response = Response(
            json.dumps(problem, ensure_ascii=False), status, headers, media_type="application/problem+json"
        )
        response.headers["Vary"] = "Accept, Accept-Language"
        response.headers["Content-Language"] = locale
        return response

    def refusal(self, request: Request) -> Response:
        """The answer to a request whose verdict lets it neither pass nor sign in."""
        verdict = call_of(request).verdict
        match verdict.kind:
            case Kind.UNAUTHENTICATED | Kind.SIGN_IN:
                return self.unauthenticated(request)
            case Kind.REJECTED:
                return self._rejected(request, verdict)
            case Kind.FORBIDDEN:
                return self._forbidden(request, verdict)
            case Kind.UPSTREAM:
                return self._upstream(request, verdict)
            case kind if kind in _PLAIN:
                return self._plain(request, verdict)
            case _:
                # PASS and OWN never come here. Should a verdict go astray, nobody is let in by it.
                return self.answer(request, "error", 500)

    def _upstream(self, request: Request, verdict: Verdict) -> Response:
        page = "upstream_slow" if verdict.status == HTTPStatus.GATEWAY_TIMEOUT else "upstream_down"
        busy = verdict.status == HTTPStatus.SERVICE_UNAVAILABLE
        return self.answer(
            request,
            verdict.reason if has_text(f"{verdict.reason}.title") else page,
            verdict.status,
            reason=verdict.reason,
            actions=self.reload(request),
            headers={"Retry-After": RETRY_AFTER} if busy else None,
        )

    def _plain(self, request: Request, verdict: Verdict) -> Response:
        busy = verdict.status == HTTPStatus.SERVICE_UNAVAILABLE
        return self.answer(
            request,
            verdict.reason if has_text(f"{verdict.reason}.title") else _PLAIN[verdict.kind],
            verdict.status,
            reason=verdict.reason,
            detail=verdict.detail if verdict.kind is Kind.BAD_REQUEST else "",
            actions=self.reload(request) if busy else (),
            headers={"Retry-After": RETRY_AFTER} if busy else None,
        )

    def store_down(self, request: Request) -> Response:
        """503: sessions cannot be read. No cookie is touched: nobody is signed out by a store that restarts."""
        headers = {"Retry-After": RETRY_AFTER}
        reason = Kind.UNAVAILABLE.value
        return self.answer(request, "store_down", 503, reason=reason, actions=self.reload(request), headers=headers)

    def unauthenticated(self, request: Request) -> Response:
        """401: sign in first. A form that a browser sends is the one case where a person, not a program, reads it."""
        again = is_too_old(call_of(request).verdict)
        sign_in = self.sign_in_url(self.page_url(request), switch=again)
        shown = request.headers.get("sec-fetch-mode") == "navigate" and wants_page(request.headers)
        return self.answer(
            request,
            "sign_in_too_old" if again else "sign_in_needed",
            401,
            reason="sign_in_too_old" if again else "not_signed_in",
            as_page=shown,
            actions=[Action("action.sign_in_again" if again else "action.sign_in", sign_in)],
            headers=_challenge(request),
            sign_in=sign_in,
        )

    def _rejected(self, request: Request, verdict: Verdict) -> Response:
        """401 for a program, never a page and never a way to sign in: it has nobody who could."""
        return self.answer(
            request,
            "invalid_credential",
            401,
            detail=f"{text(locale_of(request), 'invalid_credential.text')} ({verdict.detail})",
            as_page=False,
            headers=_challenge(request),
        )

    def _forbidden(self, request: Request, verdict: Verdict) -> Response:
        if verdict.session is None:
            return self.answer(request, "forbidden_guest", 403, reason=verdict.reason)
        identity = verdict.session.identity
        if verdict.session.via != "cookie":
            return self._program_forbidden(request, verdict)
        locale = locale_of(request)
        key = f"forbidden.{verdict.reason}"
        why = text(locale, key if has_text(key) else "forbidden.other")
        target = self.page_url(request)
        switch = self.sign_in_url(target, switch=True)
        return self.answer(
            request,
            "forbidden",
            403,
            reason=verdict.reason,
            detail=f"{text(locale, 'forbidden.text')} {why}",
            facts=[
                Fact("label.page", _without_query(self.return_url(call_of(request)))),
                account_fact(identity),
                Fact("label.reason", why),
            ],
            actions=[
                Action("action.switch", switch),
                Action("action.home", self.prefix + "/"),
            ],
            user={"sub": identity.sub, "name": identity.display},
            sign_in=switch,
        )

    def _program_forbidden(self, request: Request, verdict: Verdict) -> Response:
        """403 for a program; one with a token may have got too few scopes (RFC 6750 3.1)."""
        headers = None
        if verdict.session is not None and verdict.session.via == "bearer":
            headers = {"WWW-Authenticate": f'Bearer realm="{REALM}", error="insufficient_scope"'}
        return self.answer(
            request, "forbidden", 403, reason=verdict.reason, detail=verdict.detail, as_page=False, headers=headers
        )

    def reload(self, request: Request) -> Sequence[Action]:
        """A button that asks for the same page again, where asking again does nothing twice."""
        if request.method not in ("GET", "HEAD"):
            return ()
        return [Action("action.reload", self.return_url(call_of(request)))]


def _challenge(request: Request) -> Mapping[str, str]:
    """What a 401 has to say of how to do better."""
    values = {name.lower(): value for name, value in request.headers.raw}
    return {"WWW-Authenticate": challenge(call_of(request).verdict, values)}


def _without_query(url: str) -> str:
    return url.partition("://")[2].partition("?")[0]
