"""Tokens for the APIs behind apps, from the sign-in to what the app is told, with a stand-in Logto over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import jwt
import pytest

from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig
from proxy.sandbox.faults import Fault
from proxy.sandbox.people import Person
from proxy.sandbox.run import running_logto
from proxy.sandbox.visitor import visit
from tests.life_world import life
from tests.redis_server import RedisServer, redis_server
from tests.test_logto_trouble import ADA, PAGE, World, place, stranger, until
from tests.test_renewal_flow import Expired, signed_in

API = "https://api.example.com"
ACME = "acme00000001"
EVE = "eve000000009"  # in no organization
QUIET = {"POSTERN_LOGTO__RECHECK": "1h"}  # no refresh but those that are asked for here


def route(value: str, **environ: str) -> dict[str, str]:
    """A route that sets `Authorization`, and how the gateway asks Logto."""
    return {
        **QUIET,
        "POSTERN_ROUTE__0__HEADERS__SET": json.dumps({"Authorization": f"Bearer {value}"}),
        "POSTERN_LOGTO__SCOPES": "email,roles,read:things,write:things,invite:member",
        **environ,
    }


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where sessions are."""
    return {} if request.param == "memory" else {"REDIS_URL": request.getfixturevalue("redis").url}


def run(
    conversation: Callable[[World, httpx2.AsyncClient], Awaitable[None]],
    environ: dict[str, str],
    sub: str | None = ADA,
) -> None:
    """Hold `conversation` in a world where `sub` is signed in."""

    async def hold() -> None:
        async with place(**environ) as world, stranger() as client:
            world.state.people[EVE] = Person(EVE, "Eve", "eve", None, "100000000000000009", "eve", "eve")
            if sub is not None:
                assert (await world.sign_in(client, sub)).status_code == 303
            await conversation(world, client)

    asyncio.run(hold())


async def told(world: World, client: httpx2.AsyncClient, name: bytes = b"authorization") -> str | None:
    """The field `name` of what the app is told with one more request."""
    before = len(world.upstream.heads)
    answer = await client.get(world.url + "/page")
    assert (answer.status_code, answer.text) == (200, "hello")
    assert len(world.upstream.heads) == before + 1
    fields = [line.split(b": ", 1) for line in world.upstream.heads[-1].split(b"\r\n")[1:] if b": " in line]
    return next((value.decode() for field, value in fields if field.lower() == name), None)


async def claims(world: World, client: httpx2.AsyncClient) -> dict[str, Any]:
    """What stands in the token that the app is given, whose signature is Logto's."""
    value = await told(world, client)
    assert value is not None
    token = value.removeprefix("Bearer ")
    async with httpx2.AsyncClient(trust_env=False) as asking:
        keys = (await asking.get(f"http://127.0.0.1:{world.logto_port}/oidc/jwks")).json()["keys"]
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "at+jwt"
    key = jwt.PyJWK(next(key for key in keys if key["kid"] == header["kid"]), header["alg"])
    read = jwt.decode(token, key, algorithms=[header["alg"]], options={"verify_aud": False})
    assert (read["sub"], read["client_id"]) == (ADA, SANDBOX_APP_ID)
    return dict(read)


def asked(world: World) -> list[tuple[str | None, str | None]]:
    """What Logto has been asked for with refresh tokens: resource and organization."""
    refreshes = [it.params for it in world.state.received("token") if it.params.get("grant_type") == "refresh_token"]
    return [(params.get("resource"), params.get("organization_id")) for params in refreshes]


def test_an_app_is_given_a_token_for_its_api_and_logto_is_asked_once(store: dict[str, str]) -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        first = await claims(world, client)
        assert (first["aud"], first["scope"]) == (API, "read:things write:things")
        assert "organization_id" not in first
        values = await asyncio.gather(*(client.get(world.url + "/page") for _ in range(10)))
        assert {answer.status_code for answer in values} == {200}
        assert (await claims(world, client))["jti"] == first["jti"]
        assert asked(world) == [(API, None)]

    run(conversation, {**route(f"{{access_token:{API}}}"), **store})


def test_thirty_requests_at_two_workers_ask_a_slow_logto_once(tmp_path: Path, redis: RedisServer) -> None:
    async def conversation() -> None:
        config = SandboxConfig.for_gateway("http://127.0.0.1:1", "http://localhost:3000")
        async with running_logto(config) as logto:
            environ = {
                "REDIS_URL": redis.url,
                "LOGTO_ENDPOINT": logto.url,
                "LOGTO_APP_ID": SANDBOX_APP_ID,
                "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
            }
            async with life(tmp_path, environ, "--workers", "2") as gateway:
                await gateway.until(lambda: len(gateway.workers()) == 2, "two workers")
                text = f'[[route]]\nname = "app"\nupstream = "{gateway.upstream.url}"\n'
                await gateway.reload(text + f'headers.set = {{ Authorization = "Bearer {{access_token:{API}}}" }}\n')
                await gateway.until_said("settings reloaded: generation 2")
                cookie = await signed_in(gateway.port)
                request = b"GET /page HTTP/1.1\r\nHost: localhost:3000\r\nCookie: %s\r\n\r\n" % cookie
                workers = Expired(gateway, logto.state, request)
                first, second = await workers.both()
                assert min(len(first), len(second)) >= 15
                logto.state.faults.append(Fault("token", delay=1.0))
                answers = await asyncio.gather(*(client.ask(request) for client in first[:15] + second[:15]))
                assert [status for status, *_ in answers] == [200] * 30
                assert workers.refreshes() == 1
                told = [line for head in gateway.upstream.heads for line in head.split(b"\r\n") if b"Bearer ey" in line]
                assert len(told) == 30
                assert len(set(told)) == 1

    asyncio.run(conversation())


def test_the_sign_in_asks_for_what_the_templates_name() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        query = parse_qs(urlsplit((await world.begin(client)).headers["location"]).query)
        assert query["resource"] == [API, "urn:logto:resource:organizations"]
        assert "urn:logto:scope:organizations" in query["scope"][0].split()

    run(conversation, route(f"{{access_token:{API}}}{{organization_token:{ACME}}}"))


@pytest.mark.parametrize("value", ["{organization_token}", f"{{organization_token:{ACME}}}"])
def test_an_app_of_an_organization_is_given_a_token_for_that(value: str, store: dict[str, str]) -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        read = await claims(world, client)
        assert (read["aud"], read["scope"]) == (f"urn:logto:organization:{ACME}", "invite:member")
        assert asked(world) == [(None, ACME)]

    within = {} if ":" in value else {"POSTERN_ROUTE__0__ORGANIZATION": ACME}
    run(conversation, {**route(value), **within, **store})


def test_an_api_resource_is_within_the_organization_that_the_app_is_of() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        read = await claims(world, client)
        assert (read["aud"], read["organization_id"]) == (API, ACME)
        assert asked(world) == [(API, ACME)]

    run(conversation, route(f"{{access_token:{API}}}", POSTERN_ROUTE__0__ORGANIZATION=ACME))


def test_who_is_no_member_has_no_token_and_stays_signed_in(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        for _ in range(3):
            assert await told(world, client) is None
            assert await told(world, client, b"x-forwarded-user") == EVE
        await until(lambda: (None, None) in asked(world))  # the ordinary renewal, which has the last word
        assert await told(world, client) is None
        assert asked(world).count((None, ACME)) == 1
        said = [line for line in caplog.messages if "gives no access token" in line]
        why = "access_denied: user is not a member of the organization"
        assert said == [f"Logto gives no access token for urn:logto:organization:{ACME}: {why}"]

    run(conversation, route(f"{{organization_token:{ACME}}}"), EVE)


def test_who_signed_in_before_the_resource_was_named_has_no_token_until_the_next_sign_in() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        assert await told(world, client) is None
        assert asked(world) == [("https://other.example.com", None)]

    async def before(world: World, client: httpx2.AsyncClient) -> None:
        """Sign in as if the resource had not been asked for."""
        begun = await world.begin(client)
        way = begun.headers["location"].replace("&resource=https%3A%2F%2Fother.example.com", "")
        landed = await client.get(await visit(client, way, ADA), headers=PAGE)
        assert landed.status_code == 303
        await conversation(world, client)

    run(before, route("{access_token:https://other.example.com}"), None)


def test_a_changed_role_brings_another_token() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        assert (await claims(world, client))["scope"] == "read:things write:things"
        world.state.people[ADA].roles = ("member",)

        async def becomes(scope: str) -> None:
            async with asyncio.timeout(20):
                while (await claims(world, client))["scope"] != scope:
                    await asyncio.sleep(0.02)

        await becomes("read:things")

    run(conversation, route(f"{{access_token:{API}}}", POSTERN_LOGTO__RECHECK="1s"))


def test_without_logto_nobody_can_tell_and_nobody_is_signed_out(store: dict[str, str]) -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        world.state.faults.append(Fault("token", status=503))
        answer = await client.get(world.url + "/page", headers=PAGE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "You are still signed in." in answer.text
        refused = await client.get(world.url + "/page", headers={"accept": "application/json"})
        assert (refused.status_code, json.loads(refused.text)["reason"]) == (503, "tokens_unavailable")
        assert world.upstream.heads == []
        assert (await client.get(world.url + "/.postern/me")).status_code == 200
        assert len(asked(world)) == 1

    run(conversation, {**route(f"{{access_token:{API}}}"), **store})


def test_routes_that_want_no_token_ask_for_none() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        assert await told(world, client) is None
        assert asked(world) == []

    run(conversation, QUIET)


def test_forward_auth_tells_them_too_or_says_that_nobody_can_tell() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        generic = {"x-forwarded-method": "GET", "x-forwarded-host": "localhost", "x-forwarded-uri": "/page"}
        nginx = {"x-original-method": "GET", "x-original-url": f"{world.url}/page"}
        world.state.faults.append(Fault("token", status=503))
        for path, headers in (("/auth", generic), ("/auth/nginx", nginx)):
            answer = await client.get(f"{world.url}/.postern{path}", headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        world.state.faults.clear()
        async with asyncio.timeout(30):
            while (answer := await client.get(f"{world.url}/.postern/auth", headers=generic)).status_code == 503:
                await asyncio.sleep(0.1)  # what has failed is let be for some seconds
        assert answer.status_code == 200
        token = answer.headers["authorization"].removeprefix("Bearer ")
        assert jwt.decode(token, options={"verify_signature": False})["aud"] == API

    run(conversation, route(f"{{access_token:{API}}}", POSTERN_TRUSTED_PROXIES="127.0.0.0/8,::1"))
