"""The sample app: something worth looking at behind the gateway, which shows all that reached it.

It trusts the identity headers blindly, as an app behind a gateway may, and only an app that nobody can reach otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

_HERE = Path(__file__).parent
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_MOST_BYTES = 16 * 1024**3
_MOST_SECONDS = 3600.0
_CHUNK = bytes(range(256)) * 256  # 64 KiB whose every byte tells its place
_TICK = 1.0  # seconds between the ticks of the live parts

# No form-action: signing out posts to the gateway, which redirects to Logto, and browsers apply the directive to every
# address that follows a form.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who the gateway says this is; None where it says nothing."""

    sub: str | None
    username: str | None
    name: str | None
    email: str | None
    groups: tuple[str, ...]
    discord_id: str | None

    @property
    def display(self) -> str:
        """The best name to greet with."""
        return self.name or self.username or self.email or self.sub or "stranger"


def create_sample(*, prefix: str = "/.postern") -> Starlette:
    """The app. `prefix` is where the gateway keeps its own paths: for the sign-out button and the account link.

    Setting the event `app.state.closing` ends what would go on for ever.
    """
    app = Starlette(
        routes=[
            Mount("/_sample", StaticFiles(directory=_HERE / "static" / "sample")),
            Route("/api/me", me),
            Route("/events", events),
            WebSocketRoute("/live", live),
            Route("/echo", echo, methods=_METHODS),
            Route("/bytes/{count:int}", stream_bytes),
            Route("/slow", slow, methods=_METHODS),
            Route("/status/{code:int}", status, methods=_METHODS),
            Route("/{path:path}", home),
        ],
        middleware=[Middleware(_NoStore)],
    )
    app.state.closing = asyncio.Event()
    app.state.prefix = prefix
    return app


async def home(request: Request) -> Response:
    """Every page: who you are, what was asked, and the live parts."""
    text = _TEMPLATES.get_template("sample.html").render(
        visitor=visitor(request),
        target=target(request.scope),
        url=_seen_url(request),
        headers=_headers(request),
        prefix=request.app.state.prefix,
    )
    return HTMLResponse(text, headers={"content-security-policy": _POLICY, "referrer-policy": "same-origin"})


async def me(request: Request) -> Response:
    """Who you are and every header, as JSON."""
    who = visitor(request)
    return JSONResponse(
        {
            "user": who.sub,
            "username": who.username,
            "name": who.name,
            "email": who.email,
            "groups": list(who.groups),
            "discord_id": who.discord_id,
            "target": target(request.scope),
            "headers": _headers(request),
        }
    )


async def events(request: Request) -> Response:
    """A clock as server-sent events, one a second."""

    async def ticks() -> AsyncIterator[str]:
        number = 0
        while not request.app.state.closing.is_set():
            number += 1
            yield f"id: {number}\ndata: {json.dumps({'tick': number, 'time': _now()})}\n\n"
            await _pause(request, _TICK)

    return StreamingResponse(ticks(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


async def live(websocket: WebSocket) -> None:
    """A WebSocket that ticks once a second and echoes what it is told, text as text and bytes as bytes."""
    await websocket.accept()
    ticking = asyncio.create_task(_tick(websocket))
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                break
            if (said := message.get("text")) is not None:
                await websocket.send_json({"echo": said})
            else:
                await websocket.send_bytes(message.get("bytes") or b"")
    except WebSocketDisconnect:  # gone while we answered
        pass
    finally:
        ticking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticking


async def _tick(websocket: WebSocket) -> None:
    number = 0
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # gone between two ticks
        while True:
            number += 1
            await websocket.send_json({"tick": number, "time": _now(), "user": visitor(websocket).sub})
            await asyncio.sleep(_TICK)


async def echo(request: Request) -> Response:
    """What arrived: method, target, every header in order, and the body's length and SHA-256."""
    digest, length = hashlib.sha256(), 0
    async for chunk in request.stream():
        digest.update(chunk)
        length += len(chunk)
    return JSONResponse(
        {
            "method": request.method,
            "target": target(request.scope),
            "headers": _headers(request),
            "length": length,
            "sha256": digest.hexdigest(),
        }
    )


async def stream_bytes(request: Request) -> Response:
    """`count` bytes with a Content-Length, or with ?chunked in chunks of unknown number."""
    count = request.path_params["count"]
    if count > _MOST_BYTES:
        return JSONResponse({"error": f"at most {_MOST_BYTES}"}, 400)

    async def content() -> AsyncIterator[bytes]:
        left = count
        while left > 0:
            yield _CHUNK[:left]
            left -= len(_CHUNK)

    headers = {} if "chunked" in request.query_params else {"content-length": str(count)}
    return StreamingResponse(content(), media_type="application/octet-stream", headers=headers)


async def slow(request: Request) -> Response:
    """Answers after ?seconds= (default 5); with ?early the head comes at once and only the body late."""
    try:
        seconds = float(request.query_params.get("seconds", "5"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        return JSONResponse({"error": f"seconds: 0 to {_MOST_SECONDS:.0f}"}, 400)
    if "early" not in request.query_params:
        await _pause(request, seconds)
        return JSONResponse({"slept": seconds})

    async def content() -> AsyncIterator[str]:
        yield "begin\n"
        await _pause(request, seconds)
        yield "end\n"

    return StreamingResponse(content(), media_type="text/plain")


async def status(request: Request) -> Response:
    """An answer with that status."""
    code = request.path_params["code"]
    if not 200 <= code <= 599:
        return JSONResponse({"error": "200 to 599"}, 400)
    if code in (204, 205, 304):  # no content by definition (RFC 9110 15.3.5, 15.3.6, 15.4.5)
        return Response(status_code=code)
    return JSONResponse({"status": code}, code)


# -- reading the request ------------------------------------------------------------------------------------------------


def visitor(connection: HTTPConnection) -> Visitor:
    """Who the identity headers name."""
    said: Mapping[str, str] = {name.lower(): value for name, value in _headers(connection)}
    groups = said.get("x-forwarded-groups", "")
    return Visitor(
        sub=said.get("x-forwarded-user"),
        username=said.get("x-forwarded-preferred-username"),
        name=said.get("x-forwarded-name"),
        email=said.get("x-forwarded-email"),
        groups=tuple(part.strip() for part in groups.split(",") if part.strip()),
        discord_id=said.get("x-forwarded-discord-id"),
    )


def target(scope: Scope) -> str:
    """The request target byte for byte, as it came over the wire."""
    path: str = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query: str = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _seen_url(request: Request) -> str:
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    host = request.headers.get("x-forwarded-host", request.headers.get("host", ""))
    return f"{scheme}://{host}{target(request.scope)}"


def _headers(connection: HTTPConnection) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), _text(value)) for name, value in connection.scope["headers"]]


def _text(value: bytes) -> str:
    # The gateway sends UTF-8; what a client sends may be anything.
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _now() -> str:
    return datetime.now(UTC).strftime("%H:%M:%S")


async def _pause(request: Request, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(request.app.state.closing.wait(), seconds)


class _NoStore:
    """`Cache-Control: no-store` on every answer: all of them are about one person."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add it."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
            await send(message)

        await self.app(scope, receive, marked)
