"""The Management API against recordings of a real one: the same calls in the same order, the same statuses and shapes."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox import SANDBOX_ADMIN_SECRET
from proxy.sandbox.management import AUDIENCE
from tests.sandbox.stand import CLIENT_ID, SECRET, Browser, Stand, recording, serving

ADA, MAX, ORGANIZATION = "ada000000001", "max000000002", "acme00000001"


class Desk:
    """Somebody with the Management API at hand. Ids that calls give are put where a later call says `$name`."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.client = httpx2.Client(base_url=stand.url, headers={"host": "localhost:3001"}, trust_env=False)
        self.ids: dict[str, str] = {}
        self.client.headers["authorization"] = (
            "Bearer " + self.token("m-default", SANDBOX_ADMIN_SECRET).json()["access_token"]
        )

    def token(self, client_id: str, secret: str, **more: str) -> httpx2.Response:
        form = {"grant_type": "client_credentials", "resource": AUDIENCE, "scope": "all", **more}
        host = form.pop("host", "localhost:3001")
        return self.client.post("/oidc/token", data=form, auth=(client_id, secret), headers={"host": host})

    def call(self, method: str, path: str, body: Any = None, binds: str | None = None) -> httpx2.Response:
        text = json.dumps(body)
        for name, value in sorted(self.ids.items(), reverse=True):  # $hook2 before $hook
            path, text = path.replace("$" + name, value), text.replace("$" + name, value)
        content = None if body is None else text.encode()
        answer = self.client.request(method, "/api/" + path, content=content)
        if binds is not None:
            self.ids[binds] = answer.json()["id"]
        return answer


@pytest.fixture
def desk(stand: Stand) -> Iterator[Desk]:
    desk = Desk(stand)
    yield desk
    desk.client.close()


def test_every_recorded_call_is_answered_as_recorded(desk: Desk) -> None:
    desk.stand.state.console.roles = {
        it: role for it, role in desk.stand.state.console.roles.items() if role["type"] == "MachineToMachine"
    }
    for entry in recording("management"):
        got = desk.call(entry["method"], entry["path"], entry["body"], entry["binds"])
        call = f"{entry['method']} {entry['path']}"
        assert got.status_code == entry["status"], (call, got.text)
        if entry["status"] >= 300:
            assert {"code", "message"} <= set(entry["keys"])
            assert set(got.json()) == {"code", "message"}
        elif isinstance(entry["keys"], list) and entry["keys"] and isinstance(entry["keys"][0], str):
            assert set(got.json()) <= set(entry["keys"]), call
        elif isinstance(entry["keys"], list) and entry["keys"]:
            assert set(got.json()[0]) <= set(entry["keys"][0]), call


def test_patch_replaces_whole_objects(desk: Desk) -> None:
    addresses = {
        "redirectUris": ["http://localhost:3000/cb"],
        "postLogoutRedirectUris": [],
        "backchannelLogoutUri": "http://x/",
    }
    body = {
        "name": "p",
        "type": "Traditional",
        "oidcClientMetadata": addresses,
        "customClientMetadata": {"a": 1, "b": 2},
    }
    desk.call("POST", "applications", body, "app")
    assert desk.stand.state.config.client_id == desk.ids["app"]
    assert desk.stand.state.config.backchannel_logout_uri == "http://x/"
    less: dict[str, list[str]] = {"redirectUris": [], "postLogoutRedirectUris": []}
    changed = desk.call(
        "PATCH", "applications/$app", {"oidcClientMetadata": less, "customClientMetadata": {"a": 3}}
    ).json()
    assert (changed["oidcClientMetadata"], changed["customClientMetadata"]) == (less, {"a": 3})
    assert not desk.stand.state.config.backchannel_logout_uri
    incomplete: dict[str, Any] = {"oidcClientMetadata": {"redirectUris": []}}
    assert desk.call("PATCH", "applications/$app", incomplete).status_code == 400
    assert desk.call("DELETE", "applications/$app").status_code == 204
    assert desk.stand.state.config.app_deleted


def test_applications_and_webhooks_double_without_a_word_and_lists_have_pages(desk: Desk) -> None:
    for _ in range(3):
        desk.call("POST", "hooks", {"name": "h", "events": ["User.Deleted"], "config": {"url": "http://x/"}})
        desk.call("POST", "applications", {"name": "a", "type": "MachineToMachine"})
    assert len(desk.call("GET", "hooks").json()) == 3
    assert len(desk.call("GET", "hooks?page=2&page_size=2").json()) == 1
    assert len(desk.call("GET", "applications?types=MachineToMachine").json()) == 3


def test_who_may_and_who_may_not(desk: Desk) -> None:
    made = desk.call("POST", "applications", {"name": "m", "type": "MachineToMachine"}, "machine").json()
    secret = desk.call("GET", "applications/$machine/secrets").json()[0]["value"]
    powerless = desk.token(made["id"], secret).json()
    assert powerless["scope"] == ""
    call = {"authorization": f"Bearer {powerless['access_token']}"}
    assert desk.client.get("/api/roles", headers=call).status_code == 403
    role = desk.call("GET", "roles?type=MachineToMachine").json()[0]["id"]
    assert desk.call("POST", f"roles/{role}/applications", {"applicationIds": [made["id"]]}).status_code == 201
    assert desk.call("POST", f"roles/{role}/applications", {"applicationIds": [made["id"]]}).status_code == 422
    assert [it["id"] for it in desk.call("GET", f"roles/{role}/applications").json()] == [made["id"]]
    powerful = {"authorization": f"Bearer {desk.token(made['id'], secret).json()['access_token']}"}
    assert desk.client.get("/api/roles", headers=powerful).status_code == 200
    desk.call("DELETE", "applications/$machine")
    assert desk.call("GET", f"roles/{role}/applications").json() == []


@pytest.mark.parametrize(
    ("client_id", "secret", "more", "status", "error"),
    [
        ("m-default", "wrong", {}, 401, "invalid_client"),
        ("m-default", SANDBOX_ADMIN_SECRET, {"host": "elsewhere:3002"}, 400, "invalid_client"),
        ("m-default", SANDBOX_ADMIN_SECRET, {"resource": "https://other/"}, 400, "invalid_target"),
        ("unknown", "x", {}, 400, "invalid_client"),
        (CLIENT_ID, SECRET, {}, 400, "invalid_request"),
    ],
)
def test_tokens_are_for_machines_that_prove_themselves(
    desk: Desk, client_id: str, secret: str, more: dict[str, str], status: int, error: str
) -> None:
    answer = desk.token(client_id, secret, **more)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_without_a_good_token_nothing_is_answered(desk: Desk, browser: Browser) -> None:
    assert desk.client.get("/api/roles", headers={"authorization": "Basic x"}).json()["code"] == (
        "auth.authorization_header_missing"
    )
    for token in ("junk", browser.exchange(browser.sign_in(ADA))["id_token"]):
        answer = desk.client.get("/api/roles", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "auth.unauthorized")
    desk.stand.state.clock.offset = 3601
    assert desk.call("GET", "roles").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "applications/unknown", None, 404),
        ("DELETE", "hooks/unknown", None, 404),
        ("GET", "users/unknown", None, 404),
        ("POST", "applications", {"name": "x"}, 400),
        ("POST", "connectors", {"connectorId": "github-universal", "config": {}}, 422),
        ("PATCH", "sign-in-exp", {"unheardOf": 1}, 400),
        ("PUT", "configs/id-token", {"enabledExtendedClaims": ["unheard"]}, 400),
        ("PATCH", f"users/{ADA}", {"unheardOf": 1}, 400),
        ("PATCH", f"users/{ADA}/password", {"password": 1}, 400),
        ("POST", f"users/{ADA}/roles", {"roleIds": ["unknown"]}, 404),
        ("DELETE", f"users/{ADA}/sessions/unknown", None, 404),
        ("DELETE", f"users/{ADA}/grants/unknown", None, 404),
    ],
)
def test_what_is_not_there_or_makes_no_sense(desk: Desk, method: str, path: str, body: Any, status: int) -> None:
    assert desk.call(method, path, body).status_code == status


# -- people -----------------------------------------------------------------------------------------------------------


def test_people_are_changed_and_shown(desk: Desk) -> None:
    assert {it["id"] for it in desk.call("GET", "users").json()} >= {ADA, MAX}
    changed = desk.call("PATCH", f"users/{ADA}", {"name": "New", "customData": {"plan": "free"}}).json()
    assert (changed["name"], changed["customData"]) == ("New", {"plan": "free"})
    assert desk.call("PATCH", f"users/{ADA}/custom-data", {"customData": {"a": 1}}).json() == {"plan": "free", "a": 1}
    assert desk.call("GET", f"users/{ADA}").json()["name"] == "New"
    roles = {role["name"]: role["id"] for role in desk.call("GET", "roles?type=User").json()}
    given = desk.call("POST", f"users/{ADA}/roles", {"roleIds": [roles["member"]]})
    assert (given.status_code, desk.stand.state.people[ADA].roles) == (201, ("admin", "member"))
    assert {it["name"] for it in desk.call("GET", f"users/{ADA}/roles").json()} == {"admin", "member"}
    assert desk.call("DELETE", f"users/{ADA}/roles/{roles['admin']}").status_code == 204
    assert desk.stand.state.people[ADA].roles == ("member",)
    assert desk.call("DELETE", f"roles/{roles['member']}").status_code == 204
    assert desk.stand.state.people[ADA].roles == ()
    assert desk.call("DELETE", f"users/{ADA}/identities/discord").json()["identities"] == {}
    linked = desk.call("PUT", f"users/{ADA}/identities/discord", {"userId": "7", "details": {"id": "7"}})
    assert (linked.status_code, linked.json()) == (201, {"discord": {"userId": "7", "details": {"id": "7"}}})
    assert desk.call("PUT", f"users/{ADA}/identities/discord", {"userId": "8"}).status_code == 200
    assert desk.call("DELETE", f"organizations/{ORGANIZATION}/users/{ADA}").status_code in (204, 404)
    assert desk.call("DELETE", f"users/{ADA}").status_code == 204
    assert desk.call("GET", f"users/{ADA}").status_code == 404


def test_sessions_and_grants_are_ended(desk: Desk, browser: Browser) -> None:
    tokens = browser.exchange(browser.sign_in(ADA))
    (session,) = desk.call("GET", f"users/{ADA}/sessions").json()["sessions"]
    assert session["payload"]["accountId"] == ADA
    assert desk.call("GET", f"users/{MAX}/sessions").json() == {"sessions": []}
    assert desk.call("DELETE", f"users/{ADA}/sessions/{session['payload']['uid']}").status_code == 204
    # offline_access outlives the session, as recorded
    assert browser.refresh(tokens["refresh_token"]).status_code == 200
    (grant,) = desk.call("GET", f"users/{ADA}/grants").json()["grants"]
    assert desk.call("DELETE", f"users/{ADA}/grants/{grant['id']}").status_code == 204
    assert browser.refresh(tokens["refresh_token"]).status_code == 400


def test_a_session_may_take_its_grants_along_and_a_grant_its_session(desk: Desk, browser: Browser) -> None:
    tokens = browser.exchange(browser.sign_in(ADA))
    (session,) = desk.call("GET", f"users/{ADA}/sessions").json()["sessions"]
    desk.call("DELETE", f"users/{ADA}/sessions/{session['payload']['uid']}?revokeGrantsTarget=all")
    assert browser.refresh(tokens["refresh_token"]).status_code == 400
    browser.exchange(browser.sign_in(ADA))
    (grant,) = desk.call("GET", f"users/{ADA}/grants").json()["grants"]
    desk.call("DELETE", f"users/{ADA}/grants/{grant['id']}")
    assert desk.call("GET", f"users/{ADA}/sessions").json() == {"sessions": []}


# -- webhooks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(desk: Desk) -> Iterator[list[tuple[bytes, dict[str, str]]]]:
    """What a webhook's receiver got; the stand-in sends it everything."""
    got: list[tuple[bytes, dict[str, str]]] = []

    async def take(request: Request) -> Response:
        got.append((await request.body(), dict(request.headers)))
        return Response(status_code=204)

    with serving(Starlette(routes=[Route("/hook", take, methods=["POST"])])) as url:
        events = ["PostSignIn", "User.Deleted", "User.Data.Updated", "User.SuspensionStatus.Updated"]
        events.append("Organization.Membership.Updated")
        body = {"name": "h", "events": events, "config": {"url": url + "/hook", "headers": {"x-own": "1"}}}
        desk.call("POST", "hooks", body, "hook")
        yield got


def wait_for(stand: Stand) -> None:
    async def empty() -> None:
        while stand.state.sending:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(empty(), 20))


CALLS: dict[str, tuple[str, str, Any]] = {
    "User.SuspensionStatus.Updated:User.SuspensionStatus.Updated": ("PATCH", f"users/{ADA}/is-suspended", {"isSuspended": True}),
    "User.Data.Updated-profile:User.Data.Updated": ("PATCH", f"users/{ADA}", {"name": "N"}),
    "User.Data.Updated-custom-data:User.Data.Updated": ("PATCH", f"users/{ADA}/custom-data", {"customData": {"a": 1}}),
    "User.Data.Updated-password:User.Data.Updated": ("PATCH", f"users/{ADA}/password", {"password": "x"}),
    "User.Deleted:User.Deleted": ("DELETE", f"users/{ADA}", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_webhook_looks_as_recorded_and_is_signed(desk: Desk, heard: list[Any], name: str) -> None:
    recorded = next(json.loads(it["body"]) for it in recording("webhooks")["webhooks"] if it["name"] == name)
    desk.stand.state.people[ADA].custom_data = {}
    desk.call(*CALLS[name])
    wait_for(desk.stand)
    ((body, headers),) = heard
    got = json.loads(body)
    assert list(got) == list(recorded)
    assert (got["event"], got["method"], got["status"]) == (recorded["event"], recorded["method"], recorded["status"])
    assert (got["params"], got["matchedRoute"]) == ({"userId": ADA}, recorded["matchedRoute"])
    assert set(got["data"]) <= set(recorded["data"]) | {"hasPassword"}
    key = desk.stand.state.console.hooks[desk.ids["hook"]]["signingKey"]
    assert headers["logto-signature-sha-256"] == hmac.digest(key.encode(), body, hashlib.sha256).hex()
    assert (headers["user-agent"], headers["x-own"]) == ("Logto (https://logto.io/)", "1")


def test_a_sign_in_is_announced_and_a_visit_with_a_session_is_not(
    desk: Desk, browser: Browser, heard: list[Any]
) -> None:
    browser.sign_in(ADA)
    browser.walk(browser.authorize())
    wait_for(desk.stand)
    assert [json.loads(body)["userId"] for body, _ in heard] == [ADA]


def test_roles_and_sessions_say_nothing_and_the_end_of_a_suspension_is_said_twice(
    desk: Desk, browser: Browser, heard: list[Any]
) -> None:
    browser.sign_in(ADA)
    wait_for(desk.stand)
    heard.clear()
    (session,) = desk.call("GET", f"users/{ADA}/sessions").json()["sessions"]
    desk.call("DELETE", f"users/{ADA}/sessions/{session['payload']['uid']}")
    (role,) = [role for role in desk.call("GET", "roles").json() if role["name"] == "admin"]
    desk.call("DELETE", f"users/{ADA}/roles/{role['id']}")
    desk.call("DELETE", f"users/{ADA}/identities/discord")
    wait_for(desk.stand)
    assert heard == []
    desk.call("PATCH", f"users/{ADA}/is-suspended", {"isSuspended": True})
    desk.call("PATCH", f"users/{ADA}/is-suspended", {"isSuspended": False})
    wait_for(desk.stand)
    assert sorted(json.loads(body)["data"]["isSuspended"] for body, _ in heard) == [False, False, True]


def test_who_does_not_listen_misses_it_and_disabled_hooks_are_silent(desk: Desk, heard: list[Any]) -> None:
    desk.call("PATCH", "hooks/$hook", {"enabled": False})
    desk.call("PATCH", f"users/{ADA}", {"name": "N"})
    desk.call("PATCH", "hooks/$hook", {"enabled": True, "config": {"url": "http://127.0.0.1:9/"}})
    assert desk.call("PATCH", f"users/{ADA}", {"name": "M"}).status_code == 200
    wait_for(desk.stand)
    assert heard == []


def test_leaving_an_organization_is_announced(desk: Desk, heard: list[Any]) -> None:
    desk.stand.state.console.organizations[ORGANIZATION] = {"id": ORGANIZATION, "name": "Acme"}
    roles = desk.call("PUT", f"organizations/{ORGANIZATION}/users/{ADA}/roles", {"organizationRoleIds": []})
    assert (roles.status_code, desk.stand.state.people[ADA].organization_roles) == (204, {ORGANIZATION: ()})
    assert desk.call("DELETE", f"organizations/{ORGANIZATION}/users/{ADA}").status_code == 204
    wait_for(desk.stand)
    (body, _) = heard[0]
    recorded = next(
        it
        for it in recording("webhooks")["webhooks"]
        if it["name"].startswith("Organization.Membership.Updated-remove")
    )
    assert set(json.loads(body)) <= set(json.loads(recorded["body"]))
    assert json.loads(body)["removedUserIds"] == [ADA]


def test_the_seeded_client_is_known_under_the_admin_endpoint_alone(desk: Desk) -> None:
    config = desk.stand.state.config
    desk.stand.state.config = dataclasses.replace(config, admin_endpoint="http://admin.example.com")
    assert desk.token("m-default", SANDBOX_ADMIN_SECRET).status_code == 400
    assert desk.token("m-default", SANDBOX_ADMIN_SECRET, host="admin.example.com").status_code == 200
