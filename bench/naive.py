"""The gateway that everyone writes first: Starlette, httpx, the session read from Redis on each request, answers streamed.

It is here for honesty, as the other end of the scale, and it is treated well: uvloop and httptools underneath, no access log,
one httpx client with a large pool, both bodies streamed. It asks for a role and sets identity headers, as Postern does; signing
in it leaves to whoever put the session into Redis.

Run it with: uvicorn bench.naive:app --factory
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator

import httpx
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

COOKIE = "naive"
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
IDENTITY = frozenset((b"x-forwarded-user", b"x-forwarded-email", b"x-forwarded-groups"))


def app() -> Starlette:
    """The gateway in front of NAIVE_UPSTREAM (a base URL), sessions in NAIVE_REDIS (a redis:// URL)."""
    upstream = os.environ["NAIVE_UPSTREAM"]
    redis = Redis.from_url(os.environ["NAIVE_REDIS"])
    client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100))

    async def forward(request: Request) -> Response:
        stored = await redis.get(f"naive:{request.cookies.get(COOKIE, '')}")
        if stored is None:
            return RedirectResponse("/sign-in")
        session = json.loads(stored)
        if "admin" not in session["roles"]:
            return PlainTextResponse("forbidden", 403)
        target = f"{upstream}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        asked = client.build_request(
            request.method,
            target,
            headers=request_headers(request, session),
            content=request.stream() if "content-length" in request.headers else None,
        )
        answer = await client.send(asked, stream=True)
        response = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        response.raw_headers = [
            (key.lower(), value) for key, value in answer.headers.raw if key.lower() not in HOP_BY_HOP
        ]
        return response

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield
        await redis.aclose()

    return Starlette(routes=[Route("/{path:path}", forward, methods=METHODS)], lifespan=lifespan)


def request_headers(request: Request, session: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """What the app behind gets: the client's fields less what is not to pass, and who is there."""
    kept = [(key, value) for key, value in request.headers.raw if key not in HOP_BY_HOP and key not in IDENTITY]
    return [
        *kept,
        (b"x-forwarded-user", session["sub"].encode()),
        (b"x-forwarded-email", session["email"].encode()),
        (b"x-forwarded-groups", ",".join(session["roles"]).encode()),
    ]
