"""How Logto words things on the wire: errors, redirects, cookies, request bodies. Values in, responses out; no state."""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_MESSAGES = {
    "invalid_grant": "Grant request is invalid.",
    "invalid_request": "Request is invalid.",
    "invalid_token": "Invalid token provided.",
    "invalid_redirect_uri": "`redirect_uri` did not match any of the client's registered `redirect_uris`.",
    "invalid_scope": "Invalid scope: {{error_description}}.",  # the hole in Logto's own template, as recorded
    "invalid_target": "Invalid resource indicator.",
    "access_denied": "Access denied.",
    "unsupported_grant_type": "Unsupported `grant_type` requested.",
}


class OidcError(Exception):
    """An error of the protocol: `status`, OAuth `error`, `description`; `extra` lands in the JSON (e.g. scope).

    `challenge` is the WWW-Authenticate scheme ("Basic", "Bearer") the answer carries, `bare` a challenge without error.
    """

    def __init__(
        self,
        error: str,
        description: str = "",
        *,
        status: int = 400,
        extra: Mapping[str, str] | None = None,
        challenge: str | None = None,
        bare: bool = False,
        code: str | None = None,
        message: str | None = None,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status
        self.extra = dict(extra or {})
        self.challenge = challenge
        self.bare = bare
        self.code = code or f"oidc.{error}"
        self.message = message or _MESSAGES.get(error, f"An OIDC error occurred: oidc.{error}.")

    def body(self) -> dict[str, str]:
        """The JSON body, keys in the recorded order."""
        body = {"code": self.code, "message": self.message}
        if self.error == "invalid_grant":
            body["error_uri"] = "https://openid.sh/debug/invalid_grant"
        body["error"] = self.error
        if self.description:
            body["error_description"] = self.description
        return body | self.extra

    def response(self, issuer: str, **more: str) -> Response:
        """Make an answer of this error of its own, not a redirect; `more` is appended to the body (state, iss)."""
        headers = {"cache-control": "no-store"}
        if self.challenge:
            value = f'{self.challenge} realm="{issuer}"'
            if not self.bare:
                value += f', error="{self.error}", error_description="{self.description}"'
            headers["www-authenticate"] = value
        return json_response(self.body() | more, self.status, headers)


def invalid_grant() -> OidcError:
    """The one answer for every code or refresh token that does not work: it never says why."""
    return OidcError("invalid_grant", "grant request is invalid")


def invalid_client(client_id: str) -> OidcError:
    """An unknown or deleted application: 400, not 401, as recorded."""
    return OidcError("invalid_client", f"invalid client {client_id}")


def session_not_found(description: str) -> OidcError:
    """An interaction that is gone: other tab finished it, cookies lost, too late."""
    return OidcError(
        "invalid_request",
        description,
        code="session.not_found",
        message="Session not found. Please go back and sign in again.",
    )


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON with the charset Logto names."""
    answer = JSONResponse(body, status, headers)
    answer.headers["content-type"] = "application/json; charset=utf-8"
    return answer


def redirect(location: str, status: int = 303, *, no_store: bool = True) -> Response:
    """A redirect the way koa writes it: 303 for the protocol, 302 for pages, with a line of text."""
    answer = Response(
        f"Redirecting to {html.escape(location)}.", status, media_type="text/html", headers={"location": location}
    )
    if no_store:
        answer.headers["cache-control"] = "no-store"
    return answer


def with_query(uri: str, params: Iterable[tuple[str, str]], *, fragment: bool = False) -> str:
    """`uri` with `params` in its query, or in the fragment."""
    if fragment:
        return f"{uri}#{urlencode(list(params))}"
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(list(params))}"


def token() -> str:
    """43 characters of base64url: what every opaque value of Logto's provider looks like."""
    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class CookieSigner:
    """Cookies with a `.sig` companion (koa's keygrip: HMAC-SHA1 of name=value); what is not signed does not count."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def set(
        self, answer: Response, name: str, value: str, *, path: str = "/", expires: float | None = None, **flags: bool
    ) -> None:
        """Add the pair of Set-Cookie lines. `expires` is epoch seconds, 0 deletes; flags: http_only, secure."""
        tail = f"; path={path}"
        if expires is not None:
            tail += f"; expires={formatdate(expires, usegmt=True)}"
        tail += "; samesite=lax"
        if flags.get("secure"):
            tail += "; secure"
        if flags.get("http_only", True):
            tail += "; httponly"
        answer.headers.append("set-cookie", f"{name}={value}{tail}")
        answer.headers.append("set-cookie", f"{name}.sig={self._sign(name, value)}{tail}")

    def get(self, request: Request, name: str) -> str | None:
        """The value of a cookie whose signature holds, else None."""
        value, signature = request.cookies.get(name), request.cookies.get(name + ".sig", "")
        if value is None or not hmac.compare_digest(self._sign(name, value).encode(), signature.encode()):
            return None
        return value

    def _sign(self, name: str, value: str) -> str:
        digest = hmac.new(self.key, f"{name}={value}".encode(), hashlib.sha1).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def single(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Parameters that may occur once, with `resource` (which may repeat) left out. OidcError on a repeated one."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name == "resource":
            continue
        if name in found:
            raise OidcError("invalid_request", f"'{name}' parameter must not be provided twice")
        found[name] = value
    return found


async def body_pairs(request: Request) -> list[tuple[str, str]]:
    """Parameters of a POST: a form, or JSON, which Logto reads too. An unreadable body counts as an empty one."""
    raw = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            parsed = json.loads(raw)
        except ValueError:
            return []
        return (
            [(name, value) for name, value in parsed.items() if isinstance(value, str)]
            if isinstance(parsed, dict)
            else []
        )
    return parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True)


def basic_credentials(header: str) -> tuple[str, str] | None:
    """Client id and secret of an `Authorization: Basic` header (RFC 6749 2.3.1: form-encoded), or None."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, found, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError as error:
        raise OidcError("invalid_request", "invalid authorization header value format") from error
    if not found:
        raise OidcError("invalid_request", "invalid authorization header value format")
    return unquote_plus(client_id), unquote_plus(secret)
