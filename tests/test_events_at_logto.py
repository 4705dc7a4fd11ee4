"""What happens at Logto, row by row, and what becomes of somebody's session here: a gateway set up by `postern logto`, for real.

A stand-in Logto that holds nothing is set up over HTTP; a gateway runs with the settings that came out; somebody signs in; then
something happens to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.logto_api import LogtoApi, Manager, Place
from proxy.logto_http import LogtoHttp
from proxy.logto_setup import ADMIN_CLIENT
from proxy.sandbox import SANDBOX_ADMIN_SECRET, SandboxConfig
from proxy.sandbox.run import RunningLogto, running_logto
from proxy.sandbox.visitor import LostError, visit
from proxy.serve import serve
from proxy.settings import load
from tests.e2e.processes import free_port
from tests.logto_stand import Stand

ADA, MAX = "ada000000001", "max000000002"
WITHIN = 10.0  # seconds; what is awaited happens at once or not at all


@dataclass
class World:
    """A Logto, a gateway before nothing in particular, and the Management API."""

    logto: RunningLogto
    url: str
    api: LogtoApi
    offline: bool

    @contextlib.asynccontextmanager
    async def sign_in(self, sub: str) -> AsyncIterator[httpx2.AsyncClient]:
        async with httpx2.AsyncClient(trust_env=False, follow_redirects=False) as client:
            await self._sign_in(client, sub)
            yield client

    async def _sign_in(self, client: httpx2.AsyncClient, sub: str) -> None:
        begun = await client.get(self.url + "/.postern/sign-in", headers={"accept": "text/html"})
        callback = await visit(client, begun.headers["location"], sub)
        assert callback.startswith(self.url + "/.postern/callback?")
        assert (await client.get(callback)).status_code == 303
        assert await self.status(client) == 200

    async def status(self, client: httpx2.AsyncClient) -> int:
        """200 while somebody is signed in, else 401."""
        await client.get(self.url + "/app")  # what a session is for, and what has it rechecked
        return (await client.get(self.url + "/.postern/me")).status_code

    async def signed_out(self, client: httpx2.AsyncClient) -> bool:
        """Whether the session is over before long."""
        deadline = time.monotonic() + WITHIN
        while await self.status(client) == 200:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def heard(self) -> None:
        """Return when every webhook that was on its way has arrived."""
        while self.logto.state.sending:
            await asyncio.gather(*self.logto.state.sending)

    async def session_of(self, sub: str) -> str:
        found = (await self.api.one(f"users/{sub}/sessions"))["sessions"]
        return str(found[-1]["payload"]["uid"])


@contextlib.asynccontextmanager
async def place(**environ: str) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        config = SandboxConfig(client_id="", client_secret="")
        logto = await stack.enter_async_context(running_logto(config))
        url = f"http://localhost:{free_port()}"
        stand = Stand(logto)
        await stand.run(public_url=url)
        async with stand.setup(public_url=url) as setup:
            told = await setup.result()
        settings = load(
            Path(os.devnull),
            {
                "POSTERN_PUBLIC_URL": url,
                "POSTERN_LISTEN": "127.0.0.1:" + url.rpartition(":")[2],
                "POSTERN_UPSTREAM": "http://127.0.0.1:9",
                "LOGTO_ENDPOINT": logto.url,
                **{name: value for name, value in told.items() if not name.startswith("LOGTO_M2M")},
                **environ,
            },
        )
        listening = asyncio.Event()
        task = asyncio.create_task(serve(settings, started=listening.set))
        stack.push_async_callback(_ended, task)
        await asyncio.wait_for(listening.wait(), WITHIN)
        http = LogtoHttp(WITHIN)
        stack.push_async_callback(http.close)
        here = Place(logto.url, logto.url)
        api = LogtoApi(http, here, Manager(ADMIN_CLIENT, SANDBOX_ADMIN_SECRET, here))
        yield World(logto, url, api, settings.logto.refresh == "offline")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def run(conversation: Callable[[World], Awaitable[None]], **environ: str) -> None:
    async def hold() -> None:
        async with place(**environ) as it:
            await conversation(it)

    asyncio.run(hold())


def test_what_the_setup_tells_lets_people_in_and_their_tokens_end_with_their_logto_session() -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            me = (await client.get(it.url + "/.postern/me")).json()
            assert (me["sub"], me["roles"]) == (ADA, ["admin"])
        assert it.logto.state.says_sid()
        assert it.logto.state.config.always_issue_refresh_token

    run(conversation)


def test_signing_out_at_logto_ends_that_session_and_no_other() -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as here, it.sign_in(ADA) as elsewhere, it.sign_in(MAX) as other:
            end = f"{it.logto.url}/oidc/session/end?client_id={it.logto.state.config.client_id}"
            page = await here.get(end)
            xsrf = page.text.split('name="xsrf" value="')[1].split('"')[0]
            await here.post(f"{it.logto.url}/oidc/session/end/confirm", data={"xsrf": xsrf, "logout": "yes"})
            # Sent before the answer: there is nothing to wait for.
            assert [await it.status(client) for client in (here, elsewhere, other)] == [401, 200, 200]

    run(conversation)


@pytest.mark.parametrize("reach", ["here", "everywhere"])
def test_a_sign_out_here_leaves_the_person_signed_in_at_logto_and_one_from_everywhere_does_not(reach: str) -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            headers = {"origin": it.url, "accept": "text/html"}
            answer = await client.post(f"{it.url}/.postern/sign-out?from={reach}", headers=headers)
            if reach == "everywhere":
                assert (await visit(client, answer.headers["location"], ADA)) == it.url + "/.postern/signed-out"
            assert await it.status(client) == 401
            again = await client.get(it.url + "/.postern/sign-in", headers={"accept": "text/html"})
            assert await _silently(client, again.headers["location"]) is (reach == "here")
            # What the button on the page asks for: a question, whatever Logto remembers.
            again = await client.get(it.url + "/.postern/sign-in?prompt=login", headers={"accept": "text/html"})
            assert not await _silently(client, again.headers["location"])
            deadline = time.monotonic() + WITHIN
            while not it.logto.state.received("revocation"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    run(conversation)


async def _silently(client: httpx2.AsyncClient, url: str) -> bool:
    """Whether Logto leads back without a question that only a person could answer."""
    try:
        await visit(client, url, "nobody")
    except LostError:
        return False
    return True


Happening = Callable[[World], Awaitable[Any]]
BY_WEBHOOK: dict[str, Happening] = {
    "suspended": lambda it: it.api.ask("PATCH", f"users/{ADA}/is-suspended", {"isSuspended": True}),
    "deleted": lambda it: it.api.ask("DELETE", f"users/{ADA}"),
}


@pytest.mark.parametrize("name", BY_WEBHOOK)
def test_who_may_not_go_on_is_out_at_once_everywhere(name: str) -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as here, it.sign_in(ADA) as elsewhere, it.sign_in(MAX) as other:
            await BY_WEBHOOK[name](it)
            assert await it.signed_out(here)
            assert await it.signed_out(elsewhere)
            assert await it.status(other) == 200

    run(conversation)


async def _unsuspended(it: World) -> None:
    # Somebody else's: her own would have ended her session when it began.
    await it.api.ask("PATCH", f"users/{MAX}/is-suspended", {"isSuspended": True})
    await it.api.ask("PATCH", f"users/{MAX}/is-suspended", {"isSuspended": False})


async def _end_session(it: World, query: str = "") -> None:
    await it.api.ask("DELETE", f"users/{ADA}/sessions/{await it.session_of(ADA)}{query}")


async def _revoke_grant(it: World) -> None:
    grants = (await it.api.one(f"users/{ADA}/grants"))["grants"]
    await it.api.ask("DELETE", f"users/{ADA}/grants/{grants[0]['id']}")


async def _take_role(it: World) -> None:
    (role,) = [role for role in await it.api.all("roles") if role["name"] == "admin"]
    await it.api.ask("DELETE", f"users/{ADA}/roles/{role['id']}")


async def _session_over(it: World) -> None:
    it.logto.state.clock.offset += 14 * 86400 + 20


QUIET: dict[str, Happening] = {
    "somebody else un-suspended": _unsuspended,
    "session deleted": _end_session,
    "session and grants deleted": lambda it: _end_session(it, "?revokeGrantsTarget=all"),
    "grant deleted": _revoke_grant,
    "password changed": lambda it: it.api.ask("PATCH", f"users/{ADA}/password", {"password": "Other-Horse-11"}),
    "role removed": _take_role,
    "organization role removed": lambda it: it.api.ask(
        "PUT", f"organizations/acme00000001/users/{ADA}/roles", {"organizationRoleIds": []}
    ),
    "organization left": lambda it: it.api.ask("DELETE", f"organizations/acme00000001/users/{ADA}"),
    "name and custom data changed": lambda it: it.api.ask(
        "PATCH", f"users/{ADA}", {"name": "New Name", "customData": {"plan": "free"}}
    ),
    "custom data changed": lambda it: it.api.ask("PATCH", f"users/{ADA}/custom-data", {"customData": {"plan": "free"}}),
    "Discord unlinked": lambda it: it.api.ask("DELETE", f"users/{ADA}/identities/discord"),
    "Discord linked": lambda it: it.api.ask("PUT", f"users/{ADA}/identities/discord", {"userId": "7"}),
    "session's time passed": _session_over,
    "application deleted": lambda it: it.api.ask("DELETE", f"applications/{it.logto.state.config.client_id}"),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_logto_says_nothing_of_or_what_ends_nobody_leaves_the_session_for_the_next_renewal(name: str) -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            await QUIET[name](it)
            await it.heard()
            assert await it.status(client) == 200

    run(conversation)


# -- what a recheck finds ---------------------------------------------------------------------------------------------

RECHECK = {"POSTERN_LOGTO__RECHECK": "1s", "POSTERN_LOGTO__WEBHOOK_KEY": ""}  # no webhook: nothing depends on one
ENDS = {
    "suspended": BY_WEBHOOK["suspended"],
    "deleted": BY_WEBHOOK["deleted"],
    **{name: QUIET[name] for name in ("session deleted", "session and grants deleted", "grant deleted")},
}
ORGANIZATIONS = "email,identities,roles,urn:logto:scope:organizations,urn:logto:scope:organization_roles"
CHANGES: dict[str, tuple[str, Any]] = {
    "password changed": ("sub", ADA),
    "role removed": ("roles", []),
    "organization role removed": ("organization_roles", []),
    "organization left": ("organizations", []),
    "name and custom data changed": ("name", "New Name"),
    "Discord unlinked": ("discord", None),
    "Discord linked": ("discord", {"id": "7", "username": None}),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_recheck_finds_who_may_not_go_on(name: str) -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client, it.sign_in(MAX) as other:
            await ENDS[name](it)
            assert await it.signed_out(client)
            assert await it.status(other) == 200

    run(conversation, **RECHECK)


@pytest.mark.parametrize("name", CHANGES)
def test_a_recheck_brings_what_is_so_today(name: str) -> None:
    key, value = CHANGES[name]

    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            await QUIET[name](it)
            asked = len(it.logto.state.received("token"))
            deadline = time.monotonic() + WITHIN
            found = None
            while found != value or len(it.logto.state.received("token")) == asked:
                assert time.monotonic() < deadline, found
                await asyncio.sleep(0.02)
                assert await it.status(client) == 200
                found = (await client.get(it.url + "/.postern/me")).json()[key]

    run(conversation, POSTERN_LOGTO__SCOPES=ORGANIZATIONS, **RECHECK)


def test_a_sign_out_at_logto_that_nobody_told_of_is_found_unless_the_tokens_live_on_their_own() -> None:
    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            await _end_session(it)
            asked = len(it.logto.state.received("token"))
            deadline = time.monotonic() + WITHIN
            while await it.status(client) == 200 and len(it.logto.state.received("token")) < asked + 2:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
            assert await it.status(client) == (200 if it.offline else 401)

    run(conversation, **RECHECK)
    run(conversation, POSTERN_LOGTO__REFRESH="offline", **RECHECK)


def test_an_application_that_is_gone_signs_nobody_out() -> None:
    """Logto refuses the gateway then, not the person."""

    async def conversation(it: World) -> None:
        async with it.sign_in(ADA) as client:
            asked = len(it.logto.state.received("token"))
            await QUIET["application deleted"](it)
            deadline = time.monotonic() + WITHIN
            while len(it.logto.state.received("token")) == asked:
                assert time.monotonic() < deadline
                assert await it.status(client) == 200
                await asyncio.sleep(0.02)
            assert await it.status(client) == 200

    run(conversation, **RECHECK)
