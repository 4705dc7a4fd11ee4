"""Logto asked over HTTP: with deadlines, with a limit on what is read, and without keeping anybody's cookies.

Whatever goes wrong on the way is LogtoUnavailable. What Logto answers is read with suspicion: JSON or nothing, an OAuth error
(RFC 6749 5.2) is its decision, every other unexpected answer an outage.
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from proxy.errors import LogtoRefused, LogtoUnavailable

ANSWER_BYTES: Final = 1024 * 1024
_CONNECT_SECONDS: Final = 5.0
_KEEP_ALIVE_SECONDS: Final = 3.0  # Logto closes idle connections after 5: a code must not be sent into a closing one
_TEXT_CHARS: Final = 200
_TEMPORARY: Final = frozenset({"server_error", "temporarily_unavailable", "slow_down"})


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its status, its body when that is JSON, else None, and where it sends a browser."""

    status: int
    body: Any
    location: str = ""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The body's members; none when it is not an object."""
        return self.body if isinstance(self.body, dict) else {}

    def failure(self, what: str) -> LogtoRefused | LogtoUnavailable:
        """Say what an answer means that is not the one hoped for: an OAuth error is Logto's decision, all else an outage."""
        error = self.fields.get("error")
        if (
            400 <= self.status < 500
            and self.status not in (408, 429)
            and isinstance(error, str)
            and error not in _TEMPORARY
        ):
            return LogtoRefused(printable(error), printable(self.fields.get("error_description")), self.status)
        return LogtoUnavailable(f"{what}: unexpected answer with status {self.status}")


def printable(text: object) -> str:
    """Cut a stranger's words to one line of ASCII that may stand in a log or on a page."""
    cleaned = "".join(char if " " <= char <= "~" else "?" for char in text) if isinstance(text, str) else ""
    return cleaned[:_TEXT_CHARS]


class LogtoHttp:
    """Asks Logto over HTTP. Every failure on the way is LogtoUnavailable."""

    def __init__(self, seconds: float, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """`seconds`: how long one request may take, all of it; `transport` replaces the network in tests."""
        self._seconds = seconds
        self._client = httpx2.AsyncClient(
            transport=transport,
            timeout=httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
            limits=httpx2.Limits(max_connections=100, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            follow_redirects=False,
            # One client serves everybody: a jar that kept cookies would send one person's to Logto for the next.
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            # Not compressed: a megabyte limit is worth nothing against a gzip bomb.
            headers={"User-Agent": "postern", "Accept": "application/json", "Accept-Encoding": "identity"},
        )

    async def get(self, url: str, what: str, *, bearer: str | None = None) -> Answer:
        """GET `url`; `what` names it in errors."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return await self._ask("GET", url, what, headers=headers)

    async def post(self, url: str, what: str, form: Mapping[str, str], *, host: str | None = None) -> Answer:
        """POST `form`, URL-encoded, to `url`, under the name `host` when that is not the one in `url`."""
        return await self._ask("POST", url, what, data=form, headers={"Host": host} if host else {})

    async def call(self, method: str, url: str, what: str, *, bearer: str, body: Any, host: str) -> Answer:
        """Ask an API: `body` is sent as JSON unless it is None."""
        headers = {"Authorization": f"Bearer {bearer}", "Host": host}
        return await self._ask(method, url, what, headers=headers, **({} if body is None else {"json": body}))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, url: str, what: str, **request: Any) -> Answer:
        try:
            # httpx2's timeouts count between two bytes; a server that drips must not hold a sign-in for ever either.
            async with asyncio.timeout(self._seconds), self._client.stream(method, url, **request) as response:
                return Answer(response.status_code, await _json(response, what), response.headers.get("location", ""))
        except (TimeoutError, httpx2.TimeoutException):
            raise LogtoUnavailable(f"{what}: no answer within {self._seconds:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            raise LogtoUnavailable(f"{what}: {type(error).__name__}: {printable(str(error))}") from None


async def _json(response: httpx2.Response, what: str) -> Any:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise LogtoUnavailable(f"{what}: a compressed answer, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > ANSWER_BYTES:
            raise LogtoUnavailable(f"{what}: an answer of more than {ANSWER_BYTES} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
