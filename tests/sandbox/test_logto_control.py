"""The control interface."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.stand import CALLBACK, Browser, Stand

ADA = "ada000000001"


def test_the_state_can_be_seen_without_secrets(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    seen = browser.client.get("/sandbox/api/state")
    assert seen.json()["sessions"][0]["sub"] == ADA
    assert (seen.json()["grants"], seen.json()["kid"]) == (1, stand.state.keys.current.kid)
    assert stand.state.config.client_secret not in seen.text
    assert "access-control-allow-origin" not in seen.headers


def test_reset_forgets_people_sessions_lies_faults_and_the_log(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    stand.state.change_person(ADA, name="Other")
    stand.state.lie("expired")
    stand.state.clock.offset = 5
    assert browser.client.post("/sandbox/api/reset").json() == {}
    assert stand.state.people[ADA].name == "Ada"
    assert not stand.state.sessions
    assert not stand.state.lies
    assert stand.state.clock.offset == 0
    assert len(stand.state.log) == 0


def test_lies_are_set_and_taken_back(stand: Stand, browser: Browser) -> None:
    assert browser.client.put("/sandbox/api/lies", json={"lies": ["expired", "no_sub"]}).json() == {
        "lies": ["expired", "no_sub"]
    }
    browser.client.put("/sandbox/api/lies", json={"lies": []})
    assert stand.state.lies == frozenset()


def test_the_clock_is_moved_and_set(stand: Stand, browser: Browser) -> None:
    assert browser.client.put("/sandbox/api/clock", json={"advance": 60}).json()["offset"] == 60
    assert browser.client.put("/sandbox/api/clock", json={"advance": 60}).json()["offset"] == 120
    assert browser.client.put("/sandbox/api/clock", json={"offset": 0}).json()["offset"] == 0
    assert browser.client.put("/sandbox/api/clock", json={"stopped": True}).json()["stopped"]
    assert stand.state.clock.now() == stand.state.clock.now()
    assert not browser.client.put("/sandbox/api/clock", json={"stopped": False}).json()["stopped"]


def test_an_authorization_error_is_ordered_and_called_off(stand: Stand, browser: Browser) -> None:
    browser.client.put("/sandbox/api/authorize-error", json={"error": "access_denied"})
    assert browser.walk(browser.authorize())["error"] == "access_denied"
    browser.client.put("/sandbox/api/authorize-error", json={"error": None})
    assert stand.state.authorize_error is None


def test_configuration_changes_while_running(stand: Stand, browser: Browser) -> None:
    changes = {
        "redirect_uris": [CALLBACK, "http://localhost:9/cb"],
        "always_issue_refresh_token": True,
        "id_token_claims": ["roles"],
    }
    assert browser.client.patch("/sandbox/api/config", json=changes).json() == changes
    assert stand.state.config.redirect_uris == (CALLBACK, "http://localhost:9/cb")
    assert stand.state.config.id_token_claims == frozenset({"roles"})
    assert "refresh_token" in browser.tokens(ADA, prompt=None)


def test_people_are_shown_changed_and_deleted(stand: Stand, browser: Browser) -> None:
    shown = browser.client.get("/sandbox/api/people").json()["people"]
    assert ADA in {person["sub"] for person in shown}
    changes = {"roles": ["ops"], "email": None, "organization_roles": {"acme00000001": ["org-member"]}}
    changed = browser.client.patch(f"/sandbox/api/people/{ADA}", json=changes).json()
    assert (changed["roles"], changed["email"]) == (["ops"], None)
    assert stand.state.people[ADA].organization_roles == {"acme00000001": ("org-member",)}
    assert browser.client.delete(f"/sandbox/api/people/{ADA}").json()["deleted"]


def test_sessions_and_grants_of_a_person_are_ended(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    assert browser.client.delete(f"/sandbox/api/people/{ADA}/sessions").json() == {"ended": 1}
    assert len(stand.state.grants) == 1  # offline_access outlives the session
    assert browser.client.delete(f"/sandbox/api/people/{ADA}/grants").json() == {}
    assert not stand.state.grants


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/lies", {"lies": ["white_lie"]}, 400),
        ("PUT", "/lies", {}, 404),
        ("PUT", "/lies", {"lies": 7}, 400),
        ("PUT", "/clock", {}, 404),
        ("PUT", "/clock", {"advance": "soon"}, 400),
        ("PUT", "/authorize-error", {"error": 7}, 400),
        ("POST", "/keys", {"kind": "DSA"}, 400),
        ("PATCH", "/config", {"client_secret": "x"}, 400),
        ("PATCH", "/people/nobody", {}, 404),
        ("PATCH", f"/people/{ADA}", {"sub": "x"}, 400),
        ("PATCH", f"/people/{ADA}", {"shoe_size": 42}, 400),
        ("DELETE", "/people/nobody/sessions", None, 404),
        ("POST", "/keys", [], 400),
    ],
)
def test_what_cannot_be_is_refused(browser: Browser, method: str, path: str, body: Any, status: int) -> None:
    got = browser.client.request(method, "/sandbox/api" + path, json=body)
    assert got.status_code == status, got.text
    assert "error" in got.json()


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_foreign_page_could_send_is_refused(stand: Stand, browser: Browser, kind: str) -> None:
    headers = {"content-type": kind} if kind else {}
    got = browser.client.post("/sandbox/api/faults", content=b'{"endpoint": "jwks", "status": 500}', headers=headers)
    assert got.status_code == 400
    assert not stand.state.faults


def test_the_front_page_says_what_this_is(browser: Browser) -> None:
    page = browser.get(browser.get("/").headers["location"])
    assert "for development only" in page.text
    assert ADA in page.text


def test_unknown_paths_are_not_found_in_json(browser: Browser) -> None:
    assert browser.get("/nowhere").json()["code"] == "guard.not_found"
    found = browser.get("/oidc/nowhere")
    assert (found.status_code, found.json()["error"]) == (404, "invalid_request")
    assert browser.get("/api/status").status_code == 204
