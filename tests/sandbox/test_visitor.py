"""The visitor that other tests send through the pages."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest

from proxy.sandbox import SANDBOX_APP_ID
from proxy.sandbox.run import RunningLogto, running_logto
from proxy.sandbox.visitor import LostError, visit

CALLBACK = "http://localhost:3000/.postern/callback"
SIGNED_OUT = "http://localhost:3000/.postern/signed-out"


def authorize(logto: RunningLogto, **more: str) -> str:
    query = {
        "client_id": SANDBOX_APP_ID,
        "redirect_uri": CALLBACK,
        "response_type": "code",
        "scope": "openid",
        "state": "s",
    }
    return f"{logto.url}/oidc/auth?{urlencode(query | more)}"


def test_a_visitor_signs_in_and_out_in_every_way() -> None:
    async def scenario() -> None:
        async with running_logto() as logto, httpx2.AsyncClient(trust_env=False) as client:
            for more in ({"direct_sign_in": "social:discord"}, {"prompt": "login"}, {"first_screen": "register"}):
                target = await visit(client, authorize(logto, **more), "ada000000001")
                assert target.startswith(CALLBACK + "?code=")
                assert parse_qs(urlsplit(target).query)["state"] == ["s"]
            switched = await visit(client, authorize(logto, prompt="login"), "max000000002")
            assert "code=" in switched
            query = urlencode({"client_id": SANDBOX_APP_ID, "post_logout_redirect_uri": SIGNED_OUT})
            assert await visit(client, f"{logto.url}/oidc/session/end?{query}", "") == SIGNED_OUT

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "sub", "says"),
    [
        ("/unknown-session", "ada000000001", "no sign-in under way"),
        ("/oidc/auth?client_id=other", "ada000000001", "invalid_client"),
        ("/oidc/session/end/success", "", "signed out"),
    ],
)
def test_a_visitor_who_is_lost_says_where(path: str, sub: str, says: str) -> None:
    async def scenario() -> None:
        async with running_logto() as logto, httpx2.AsyncClient(trust_env=False) as client:
            with pytest.raises(LostError, match=says):
                await visit(client, logto.url + path, sub)

    asyncio.run(scenario())


def test_a_visitor_does_not_walk_in_circles_for_ever() -> None:
    async def scenario() -> None:
        async with running_logto() as logto, httpx2.AsyncClient(trust_env=False) as client:
            logto.state.faults.clear()
            logto.state.change_person("ada000000001", suspended=True)
            with pytest.raises(LostError, match="suspended"):
                await visit(client, authorize(logto), "ada000000001")

    asyncio.run(scenario())


def test_a_redirect_to_itself_ends() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(302, headers={"location": str(request.url)})

    async def scenario() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
            with pytest.raises(LostError, match="circles"):
                await visit(client, "http://somewhere.test/", "")

    asyncio.run(scenario())
