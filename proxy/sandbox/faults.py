"""Misbehaviour on request, and the log of what was asked: an ASGI layer around the stand-in Logto.

Latency, error statuses, endless waits, HTML where JSON belongs, ten megabytes, bad key sets: everything a relying party
must survive can be ordered per endpoint.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from .state import SandboxState

ENDPOINTS: Mapping[str, str] = {
    "/oidc/.well-known/openid-configuration": "discovery",
    "/oidc/jwks": "jwks",
    "/oidc/auth": "auth",
    "/oidc/request": "par",
    "/oidc/token": "token",
    "/oidc/me": "userinfo",
    "/oidc/session/end": "end_session",
    "/oidc/session/end/confirm": "end_session_confirm",
    "/oidc/token/revocation": "revocation",
    "/oidc/token/introspection": "introspection",
    "/api/status": "status",
}

# Values that are worth something, or carry somebody's data: the log keeps only their length.
_SECRET = frozenset(
    {"code", "code_verifier", "client_secret", "refresh_token", "token", "id_token_hint", "logout_token", "xsrf"}
)
_HUGE = 10 * 1024 * 1024
_LOGGED_BODY = 64 * 1024


@dataclass(slots=True)
class Fault:
    """One order of misbehaviour for `endpoint` (a name of ENDPOINTS, "page", or "*").

    delay: seconds before anything else happens. hang: no answer until released. status, body, content_type, json: the
    answer to give instead. huge: ten megabytes of JSON. times: how often, None for ever.
    """

    endpoint: str
    delay: float = 0.0
    hang: bool = False
    status: int | None = None
    body: str | None = None
    content_type: str = "text/html; charset=utf-8"
    json: Any = None
    huge: bool = False
    times: int | None = None

    def __post_init__(self) -> None:
        if self.endpoint not in {*ENDPOINTS.values(), "page", "*"}:
            raise ValueError(f"no such endpoint: {self.endpoint}")
        if not 0 <= self.delay <= 3600:
            raise ValueError("delay: seconds, up to 3600")

    @property
    def answers(self) -> bool:
        """Whether the endpoint itself is not asked any more."""
        return self.huge or self.status is not None or self.body is not None or self.json is not None

    def response(self) -> Response:
        """What is answered instead."""
        status = 200 if self.status is None else self.status
        if self.huge:
            return Response(json.dumps({"padding": "x" * _HUGE}), status, media_type="application/json")
        if self.json is not None:
            return Response(json.dumps(self.json), status, media_type="application/json")
        body = self.body if self.body is not None else f"<!doctype html><title>{status}</title><h1>{status}</h1>"
        return Response(body, status, headers={"content-type": self.content_type})


@dataclass(frozen=True, slots=True)
class Received:
    """One request, as the log keeps it: secrets by length only."""

    endpoint: str
    method: str
    path: str
    params: Mapping[str, Any]
    auth: str | None  # the scheme of the Authorization header
    user_agent: str | None
    cookies: tuple[str, ...]  # names
    at: float
    answered: list[int] = field(default_factory=list)  # the status, once there is one

    def as_json(self) -> dict[str, Any]:
        """For the control API."""
        return asdict(self)


def endpoint_of(path: str) -> str:
    """The name of what answers at `path`."""
    return ENDPOINTS.get(path, "page")


class Misbehaviour:
    """The ASGI layer. What is below /sandbox, the stand-in's own business, is neither logged nor disturbed."""

    def __init__(self, app: ASGIApp, state: SandboxState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: log it, then misbehave as ordered, or pass it on."""
        if scope["type"] != "http" or scope["path"].startswith("/sandbox/"):
            await self.app(scope, receive, send)
            return
        body = await _read(receive)
        entry = _received(scope, body, self.state.clock.now())
        self.state.log.append(entry)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.answered.append(message["status"])
            await send(message)

        fault = self._take(entry.endpoint)
        if fault is not None:
            await asyncio.sleep(fault.delay)
            if fault.hang and await self._hang(receive):
                return
            if fault.answers:
                await fault.response()(scope, receive, noting)
                return
        await self.app(scope, _replay(body, receive), noting)

    def _take(self, endpoint: str) -> Fault | None:
        for fault in self.state.faults:
            if fault.endpoint in (endpoint, "*"):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.state.faults.remove(fault)
                return fault
        return None

    async def _hang(self, receive: Receive) -> bool:
        """Wait until released (False) or the client has gone (True)."""
        gone = asyncio.ensure_future(_disconnected(receive))
        released = asyncio.ensure_future(self.state.released.wait())
        try:
            await asyncio.wait({gone, released}, return_when=asyncio.FIRST_COMPLETED)
            return gone.done()
        finally:
            for task in (gone, released):
                task.cancel()


async def _disconnected(receive: Receive) -> None:
    await receive()  # the body has been read: what comes now can only be http.disconnect


async def _read(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


def _received(scope: Scope, body: bytes, at: float) -> Received:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if headers.get(b"content-type", "").startswith("application/x-www-form-urlencoded"):
        pairs += parse_qsl(body[:_LOGGED_BODY].decode("utf-8", "replace"), keep_blank_values=True)
    params: dict[str, Any] = {}
    for name, value in pairs:
        kept = f"<{len(value)} characters>" if name in _SECRET else value
        params[name] = [*_as_list(params[name]), kept] if name in params else kept
    cookies = [part.split("=", 1)[0].strip() for part in headers.get(b"cookie", "").split(";") if part.strip()]
    return Received(
        endpoint=endpoint_of(scope["path"]),
        method=scope["method"],
        path=scope["path"],
        params=params,
        auth=headers[b"authorization"].partition(" ")[0] if b"authorization" in headers else None,
        user_agent=headers.get(b"user-agent"),
        cookies=tuple(cookies),
        at=at,
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
