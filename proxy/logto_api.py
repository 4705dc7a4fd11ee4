"""Logto's Management API: tokens for it, and requests to it.

Logto tells its tenants apart by the name it is asked under, so that every request carries the name that browsers use, whichever
address it is sent to: the seeded client of a self-hosted Logto is unknown under any other than the admin endpoint's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.logto_http import LogtoHttp, printable

SELF_HOSTED: Final = "https://default.logto.app/api"  # the API's name in every Logto of one's own
_PAGE: Final = 100
_SPARE_SECONDS: Final = 60.0  # a token is replaced this long before it expires


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is: `public`, its base URL as browsers see it, and `reach`, as this program reaches it."""

    public: str
    reach: str

    @property
    def host(self) -> str:
        """The name to ask under."""
        return urlsplit(self.public).netloc


@dataclass(frozen=True, slots=True)
class Manager:
    """A client that may use the Management API, and where it gets its tokens: at Logto, or `m-default` at the admin endpoint."""

    client_id: str
    secret: str = field(repr=False)
    tokens_at: Place


def resource_of(endpoint: str) -> str:
    """The API's name as an audience: that of a tenant of Logto Cloud, or the one that all others share."""
    host = urlsplit(endpoint).hostname or ""
    return f"https://{host}/api" if host.endswith(".logto.app") else SELF_HOSTED


class LogtoApi:
    """The Management API of one Logto, asked as one client. Raises LogtoRefused and LogtoUnavailable."""

    def __init__(
        self, http: LogtoHttp, logto: Place, manager: Manager, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._logto = logto
        self._manager = manager
        self._clock = clock
        self._token = ""
        self._good_until = float("-inf")

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask for `path` below /api; returns the JSON that is answered, None where there is none.

        LogtoRefused: Logto's decision, with its code. LogtoUnavailable: everything else that is no answer.
        """
        what = f"{method} /api/{path.partition('?')[0]}"
        token = await self._bearer()
        url = f"{self._logto.reach}/api/{path}"
        answer = await self._http.call(method, url, what, bearer=token, body=body, host=self._logto.host)
        if 200 <= answer.status < 300:
            return answer.body
        code = answer.fields.get("code")
        if 400 <= answer.status < 500 and answer.status not in (408, 429) and isinstance(code, str):
            message = f"{printable(answer.fields.get('message'))} ({what}, {answer.status})"
            raise LogtoRefused(printable(code), message, answer.status)
        raise LogtoUnavailable(f"{what}: unexpected answer with status {answer.status}")

    async def one(self, path: str) -> Mapping[str, Any]:
        """GET an object."""
        found = await self.ask("GET", path)
        if not isinstance(found, dict):
            raise LogtoUnavailable(f"GET /api/{path}: no JSON object")
        return found

    async def all(self, path: str) -> list[Mapping[str, Any]]:
        """GET a list, to its last page."""
        found: list[Mapping[str, Any]] = []
        number, joint = 1, "&" if "?" in path else "?"
        while True:
            page = await self.ask("GET", f"{path}{joint}page={number}&page_size={_PAGE}")
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise LogtoUnavailable(f"GET /api/{path}: no list of JSON objects")
            # Some lists know no pages and come whole, again and again.
            if page and found and page[0] == found[0]:
                return found
            found += page
            if len(page) < _PAGE:
                return found
            number += 1

    async def _bearer(self) -> str:
        if self._clock() < self._good_until:
            return self._token
        place = self._manager.tokens_at
        form = {
            "grant_type": "client_credentials",
            "client_id": self._manager.client_id,
            "client_secret": self._manager.secret,
            "resource": resource_of(self._logto.public),
            "scope": "all",
        }
        answer = await self._http.post(f"{place.reach}/oidc/token", "token", form, host=place.host)
        if answer.status != 200:
            raise answer.failure("token")
        token, seconds = answer.fields.get("access_token"), answer.fields.get("expires_in")
        if not isinstance(token, str) or not isinstance(seconds, int):
            raise LogtoUnavailable("token: not a token answer")
        self._token, self._good_until = token, self._clock() + seconds - _SPARE_SECONDS
        return token
