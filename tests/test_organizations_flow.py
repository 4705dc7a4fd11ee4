"""An app of one organization, from the sign-in to what the app is told, with a stand-in Logto over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from proxy.sandbox.people import Person
from tests.test_logto_trouble import ADA, PAGE, World, place, stranger

ACME = "acme00000001"
EVE = "eve000000009"  # in no organization
ROUTE = {"POSTERN_ROUTE__0__ORGANIZATION": ACME, "POSTERN_LOGTO__SCOPES": "roles"}


def run(conversation: Callable[[World, httpx2.AsyncClient], Awaitable[None]], **environ: str) -> None:
    async def hold() -> None:
        async with place(**environ) as world, stranger() as client:
            world.state.people[EVE] = Person(EVE, "Eve", "eve", None, "100000000000000009", "eve", "eve")
            await conversation(world, client)

    asyncio.run(hold())


def told(world: World, name: bytes) -> bytes | None:
    """The field `name` of the last request that the app got."""
    fields = [line.split(b": ", 1) for line in world.upstream.heads[-1].split(b"\r\n")[1:] if b": " in line]
    return next((value for field, value in fields if field.lower() == name), None)


def test_a_member_passes_and_the_app_hears_of_this_organization_alone() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        ada = world.state.people[ADA]
        ada.organization_roles = {**ada.organization_roles, "other0000001": ("org-admin",)}
        begun = await client.get(world.url + "/page", headers=PAGE)
        asked = parse_qs(urlsplit(begun.headers["location"]).query)
        assert asked["organization_id"] == [ACME]
        assert {"urn:logto:scope:organizations", "urn:logto:scope:organization_roles"} < set(asked["scope"][0].split())
        assert (await world.sign_in(client)).status_code == 303
        assert (await client.get(world.url + "/page")).text == "hello"
        assert told(world, b"x-forwarded-user") == ADA.encode()
        assert told(world, b"x-forwarded-groups") == b"admin,acme00000001:org-admin"

    run(conversation, **ROUTE)


def test_somebody_else_is_told_why_not_and_offered_another_account() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        assert (await world.sign_in(client, EVE)).status_code == 303
        answer = await client.get(world.url + "/page", headers=PAGE)
        assert answer.status_code == 403
        assert "This is for the members of an organization, and this account is not one of them." in answer.text
        assert "prompt=login" in answer.text
        refused = await client.get(world.url + "/page", headers={"accept": "application/json"})
        assert json.loads(refused.text)["reason"] == "not_a_member"
        assert world.upstream.heads == []

    run(conversation, **ROUTE)


def test_who_leaves_the_organization_is_out_with_the_next_recheck_and_back_when_back() -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        assert (await world.sign_in(client)).status_code == 303
        ada = world.state.people[ADA]
        before = dict(ada.organization_roles)

        async def becomes(expected: int) -> None:
            async with asyncio.timeout(20):
                while (await client.get(world.url + "/page")).status_code != expected:
                    await asyncio.sleep(0.02)

        await becomes(200)
        ada.organization_roles = {}
        await becomes(403)
        ada.organization_roles = before
        await becomes(200)

    run(conversation, **ROUTE)


@pytest.mark.parametrize("environ", [{}, {"POSTERN_LOGTO__SCOPES": "roles"}])
def test_a_gateway_without_such_routes_asks_for_no_organization(environ: dict[str, str]) -> None:
    async def conversation(world: World, client: httpx2.AsyncClient) -> None:
        asked = parse_qs(urlsplit((await world.begin(client)).headers["location"]).query)
        assert "organization_id" not in asked
        assert "organization" not in asked["scope"][0]

    run(conversation, **environ)
