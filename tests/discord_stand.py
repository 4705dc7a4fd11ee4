"""A stand-in for Discord's API, spoken to over real HTTP, on a clock that runs as fast as a test likes.

It counts requests in buckets as Discord does, says so in its answers, and keeps a list of whoever does not listen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.sandbox.run import address, listen, running

TOKEN = "a-bot-token-of-the-stand-in"
GUILD, OTHER_GUILD = "200000000000000001", "200000000000000002"
OPS, DEV = "300000000000000001", "300000000000000002"
ADA, EVE, BOSS = "100000000000000001", "100000000000000002", "100000000000000003"


class Clock:
    """A clock that goes on when it is told to, and when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def member(*roles: str, **more: Any) -> dict[str, Any]:
    """A guild member object as Discord sends it, with fields that nobody asked for."""
    about = {"nick": None, "avatar": None, "flags": 0, "mute": False, "joined_at": "2020-01-01T00:00:00.000000+00:00"}
    return {**about, "user": {"id": "0", "username": "x"}, "pending": False, "roles": list(roles), **more}


class DiscordStand:
    """The API. Set what it is to say; `asked` holds the paths it was asked for, `unheard` those asked against its word."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.url = ""
        self.guilds: dict[str, dict[str, Any]] = {
            GUILD: {"id": GUILD, "name": "The guild", "owner_id": BOSS, "features": ["COMMUNITY"]}
        }
        self.members: dict[tuple[str, str], Any] = {(GUILD, ADA): member(OPS), (GUILD, BOSS): member()}
        self.tokens = {TOKEN}
        self.forbidden: set[str] = set()
        self.down = False
        self.answer: bytes | None = None  # said to everything instead
        self.limit = 0  # requests in a bucket within `window` seconds; 0: any number
        self.window = 10.0
        self.storm = 0  # so many more answers are 429
        self.global_limit = False
        self.asked: list[str] = []
        self.unheard: list[str] = []
        self._used: dict[str, tuple[int, float]] = {}
        self._silent_until: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[DiscordStand]:
        app = Starlette(routes=[Route("/api/v10/{path:path}", self._serve)])
        listener = listen("127.0.0.1", 0)
        self.url = address(listener) + "/api/v10"
        async with running(app, listener):
            yield self

    async def _serve(self, request: Request) -> Response:
        parts = request.path_params["path"].split("/")
        self.asked.append("/".join(parts))
        bucket = "members" if len(parts) == 4 else "guild"
        if self.down:
            return Response("<html>upstream connect error</html>", 503)
        limits = self._limited(f"{bucket} {parts[1]}", bucket)
        if isinstance(limits, Response):
            return limits
        status, body = self._say(request.headers.get("authorization", ""), parts)
        if self.answer is not None:
            return Response(self.answer, 200, limits, media_type="application/json")
        return JSONResponse(body, status, limits)

    def _limited(self, key: str, bucket: str) -> dict[str, str] | Response:
        now = self.clock.now
        if max(self._silent_until.get(name, 0) for name in (key, "")) > now:
            self.unheard.append(key)
        headers = {"X-RateLimit-Bucket": f"hash-of-{bucket}"}
        if self.storm:
            self.storm -= 1
            self._silent_until["" if self.global_limit else key] = now + 2
            scope = {"X-RateLimit-Global": "true"} if self.global_limit else headers
            return JSONResponse({"retry_after": 2.0, "global": self.global_limit}, 429, {**scope, "Retry-After": "2"})
        if not self.limit:
            return headers
        used, full_at = self._used.get(key, (0, now + self.window))
        used, full_at = (0, now + self.window) if now >= full_at else (used, full_at)
        self._used[key] = used + 1, full_at
        after = f"{full_at - now:.3f}"
        if used >= self.limit:
            self._silent_until[key] = full_at
            return JSONResponse({"retry_after": full_at - now}, 429, {**headers, "Retry-After": after})
        remaining = str(self.limit - used - 1)
        return {**headers, "X-RateLimit-Remaining": remaining, "X-RateLimit-Reset-After": after}

    def _say(self, authorization: str, parts: list[str]) -> tuple[int, Any]:
        if authorization.removeprefix("Bot ") not in self.tokens:
            return 401, {"message": "401: Unauthorized", "code": 0}
        guild = parts[1]
        if guild in self.forbidden:
            return 403, {"message": "Missing Access", "code": 50001}
        if guild not in self.guilds:
            return 404, {"message": "Unknown Guild", "code": 10004}
        if len(parts) == 2:
            return 200, self.guilds[guild]
        found = self.members.get((guild, parts[3]))
        return (404, {"message": "Unknown Member", "code": 10007}) if found is None else (200, found)
