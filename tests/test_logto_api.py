"""The Management API's client: tokens, pages, names, and what its answers mean."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.logto_api import LogtoApi, Manager, Place, resource_of
from proxy.logto_http import LogtoHttp

LOGTO = Place("https://auth.example.com", "http://logto:3001")
ADMIN = Manager("m-default", "the-secret", Place("https://admin.example.com", "http://logto:3002"))
Reply = Callable[[httpx2.Request], httpx2.Response]


def reply_of(status: int, body: Any = None) -> httpx2.Response:
    """An answer that has yet to be read, as one from a network has."""

    async def content() -> AsyncIterator[bytes]:
        yield b"" if body is None else json.dumps(body).encode()

    return httpx2.Response(status, content=content())


class Wire:
    """What was asked, and the answers to give; tokens are numbered."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[httpx2.Request] = []
        self.tokens = 0
        self.token_answer: httpx2.Response | None = None

    async def answer(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.asked.append(request)
        if request.url.path != "/oidc/token":
            return self.reply(request)
        self.tokens += 1
        return self.token_answer or reply_of(200, {"access_token": f"t{self.tokens}", "expires_in": 3600})


def run(reply: Reply, conversation: Callable[[LogtoApi, Wire, list[float]], Awaitable[None]]) -> None:
    wire, now = Wire(reply), [0.0]

    async def hold() -> None:
        http = LogtoHttp(5, httpx2.MockTransport(wire.answer))
        await conversation(LogtoApi(http, LOGTO, ADMIN, clock=lambda: now[0]), wire, now)
        await http.close()

    asyncio.run(hold())


def always(status: int, body: Any = None) -> Reply:
    return lambda _: reply_of(status, body)


def test_each_is_asked_where_it_is_reached_under_the_name_it_knows() -> None:
    async def conversation(api: LogtoApi, wire: Wire, _: list[float]) -> None:
        assert await api.ask("POST", "hooks", {"a": 1}) == {"id": "x"}
        token, call = wire.asked
        assert (str(token.url), token.headers["host"]) == ("http://logto:3002/oidc/token", "admin.example.com")
        assert b"resource=https%3A%2F%2Fdefault.logto.app%2Fapi" in token.content
        assert (str(call.url), call.headers["host"]) == ("http://logto:3001/api/hooks", "auth.example.com")
        assert (call.headers["authorization"], json.loads(call.content)) == ("Bearer t1", {"a": 1})
        assert "the-secret" not in repr(ADMIN)

    run(always(201, {"id": "x"}), conversation)


def test_a_token_is_used_until_shortly_before_its_end() -> None:
    async def conversation(api: LogtoApi, wire: Wire, now: list[float]) -> None:
        for moment, tokens in ((0.0, 1), (3539.0, 1), (3540.0, 2)):
            now[0] = moment
            await api.one("sign-in-exp")
            assert wire.tokens == tokens

    run(always(200, {}), conversation)


def test_lists_are_read_to_their_last_page() -> None:
    things = [{"id": str(number)} for number in range(250)]

    def page(request: httpx2.Request) -> httpx2.Response:
        number, size = int(request.url.params["page"]), int(request.url.params["page_size"])
        return reply_of(200, things[(number - 1) * size : number * size])

    async def conversation(api: LogtoApi, wire: Wire, _: list[float]) -> None:
        assert await api.all("roles?type=User") == things
        assert wire.asked[-1].url.params["type"] == "User"

    run(page, conversation)
    whole = [{"id": str(number)} for number in range(100)]

    async def no_pages(api: LogtoApi, _wire: Wire, _: list[float]) -> None:
        assert await api.all("connectors") == whole

    run(always(200, whole), no_pages)


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (422, {"code": "role.name_in_use", "message": "in use\x1b"}, LogtoRefused, r"role.name_in_use: in use\? \(GET"),
        (404, {"code": "entity.not_found", "message": "m"}, LogtoRefused, "entity.not_found"),
        (401, {"code": "auth.unauthorized"}, LogtoRefused, "auth.unauthorized"),
        (400, {"message": "without a code"}, LogtoUnavailable, "status 400"),
        (429, {"code": "request.too_many"}, LogtoUnavailable, "status 429"),
        (500, {"message": "Internal server error."}, LogtoUnavailable, "status 500"),
        (302, None, LogtoUnavailable, "status 302"),
        (200, [1], LogtoUnavailable, "no JSON object"),
        (200, None, LogtoUnavailable, "no JSON object"),
    ],
)
def test_answers_other_than_hoped_for(status: int, body: Any, error: type[Exception], match: str) -> None:
    async def conversation(api: LogtoApi, _wire: Wire, _: list[float]) -> None:
        with pytest.raises(error, match=match):
            await api.one("sign-in-exp")

    run(always(status, body), conversation)


@pytest.mark.parametrize("body", [None, {}, ["text"], "text"])
def test_what_is_no_list_of_objects_is_no_list(body: Any) -> None:
    async def conversation(api: LogtoApi, _wire: Wire, _: list[float]) -> None:
        with pytest.raises(LogtoUnavailable, match="no list"):
            await api.all("hooks")

    run(always(200, body), conversation)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((400, {"error": "invalid_client"}), LogtoRefused),
        ((503, None), LogtoUnavailable),
        ((200, {"access_token": "t"}), LogtoUnavailable),
        ((200, {"access_token": 1, "expires_in": 3600}), LogtoUnavailable),
    ],
)
def test_without_a_token_nothing_is_asked(answer: tuple[int, Any], error: type[Exception]) -> None:
    async def conversation(api: LogtoApi, wire: Wire, _: list[float]) -> None:
        wire.token_answer = reply_of(*answer)
        with pytest.raises(error) as caught:
            await api.ask("GET", "hooks")
        assert "the-secret" not in str(caught.value)
        assert len(wire.asked) == 1

    run(always(200, []), conversation)


@pytest.mark.parametrize(
    ("endpoint", "resource"),
    [
        ("https://auth.example.com", "https://default.logto.app/api"),
        ("http://localhost:3001", "https://default.logto.app/api"),
        ("https://abc123.logto.app", "https://abc123.logto.app/api"),
        ("https://logto.app.example.com", "https://default.logto.app/api"),
    ],
)
def test_the_api_of_a_cloud_tenant_has_its_own_name(endpoint: str, resource: str) -> None:
    assert resource_of(endpoint) == resource
