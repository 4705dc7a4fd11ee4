"""Authorization requests beyond the recordings: order of checks, ways of delivery, who is asked to sign in again."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest

from proxy.sandbox import Lifetimes
from tests.sandbox.stand import CALLBACK, CLIENT_ID, CONFIG, EVERYTHING, Browser, Stand, forms

ADA, MAX = "ada000000001", "max000000002"


def error_of(location: str) -> str | None:
    parts = urlsplit(location)
    return parse_qs(parts.query or parts.fragment).get("error", [None])[0]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "code id_token"}, "invalid_request"),
        ({"response_mode": "smoke_signal"}, "unsupported_response_mode"),
        ({"max_age": "soon"}, "invalid_request"),
        ({"prompt": "create"}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"resource": ["https://api.example.test", "https://other.test"]}, "invalid_target"),
    ],
)
def test_a_bad_request_goes_back_with_its_error(browser: Browser, changes: dict[str, Any], error: str) -> None:
    got = browser.authorize(**changes)
    assert (got.status_code, error_of(got.headers["location"])) == (303, error)


@pytest.mark.parametrize(
    "changes",
    [{"client_id": None}, {"client_id": "other"}, {"redirect_uri": None}, {"redirect_uri": CALLBACK + "/"}],
)
def test_nothing_is_redirected_to_an_address_that_is_not_registered(browser: Browser, changes: dict[str, Any]) -> None:
    got = browser.authorize(**changes)
    assert got.status_code == 400
    assert "location" not in got.headers
    assert got.json()["iss"] == CONFIG.issuer


def test_a_repeated_parameter_is_refused(browser: Browser) -> None:
    got = browser.authorize(scope=["openid", "profile"])
    assert got.json()["error_description"] == "'scope' parameter must not be provided twice"


def test_the_request_may_be_posted(browser: Browser) -> None:
    query, _ = browser.query()
    assert browser.post("/oidc/auth", query).headers["location"].startswith("/direct/social/discord")


@pytest.mark.parametrize(
    ("screen", "path"),
    [
        ("register", "/register"),
        ("reset_password", "/reset-password"),
        ("identifier:sign_in", "/identifier-sign-in"),
        ("single_sign_on", "/single-sign-on"),
    ],
)
def test_first_screen_chooses_the_page(browser: Browser, screen: str, path: str) -> None:
    location = browser.authorize(first_screen=screen, direct_sign_in=None).headers["location"]
    assert urlsplit(location).path == path
    assert browser.get(location).status_code == 200


def test_interaction_mode_sign_up_is_the_old_name_of_register(browser: Browser) -> None:
    location = browser.authorize(interaction_mode="signUp", direct_sign_in=None).headers["location"]
    assert urlsplit(location).path == "/register"


def test_direct_sign_in_cannot_climb_out_of_its_path(browser: Browser) -> None:
    location = browser.authorize(direct_sign_in="social:../../evil?x").headers["location"]
    assert location.startswith("/direct/social/..%2F..%2Fevil%3Fx?")


def test_form_post_delivers_in_a_page(browser: Browser) -> None:
    browser.sign_in(ADA)
    got = browser.authorize(response_mode="form_post", prompt="none", state="s&<")
    form = forms(got.text) or {}
    assert got.status_code == 200
    assert (form["action"], form["fields"]["state"]) == (CALLBACK, "s&<")
    assert "code" in form["fields"]


def test_fragment_delivers_behind_the_hash(browser: Browser) -> None:
    browser.sign_in(ADA)
    assert "#code=" in browser.authorize(response_mode="fragment", prompt="none").headers["location"]


def test_max_age_asks_again_only_when_the_sign_in_is_older_and_says_when_it_was(stand: Stand, browser: Browser) -> None:
    stand.state.clock.stop()
    browser.sign_in(ADA)
    stand.state.clock.offset = 100
    fresh = browser.exchange(browser.sign_in(ADA, prompt=None, max_age="200"))
    claims = jwt.decode(fresh["id_token"], options={"verify_signature": False})
    assert claims["iat"] - claims["auth_time"] == 100
    assert browser.authorize(prompt=None, max_age="50").headers["location"].startswith("/direct/")
    again = browser.exchange(browser.sign_in(ADA, prompt=None, max_age="0"))
    claims = jwt.decode(again["id_token"], options={"verify_signature": False})
    assert claims["iat"] - claims["auth_time"] == 0


def test_signing_in_again_keeps_the_session_and_changes_its_cookie(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    (session,) = stand.state.sessions.values()
    before = (session.uid, session.cookie)
    browser.sign_in(ADA, prompt="login")
    (session,) = stand.state.sessions.values()
    assert session.uid == before[0]
    assert session.cookie != before[1]


def test_offline_access_needs_the_consent_prompt(browser: Browser) -> None:
    assert "refresh_token" not in browser.tokens(ADA, prompt=None)
    tokens = browser.tokens(ADA, prompt="consent")
    assert "refresh_token" in tokens
    assert tokens["scope"] == EVERYTHING


def test_a_session_ends_with_its_time_and_every_visit_prolongs_it(stand: Stand, browser: Browser) -> None:
    stand.state.clock.stop()
    stand.state.config = dataclasses.replace(CONFIG, lifetimes=Lifetimes(session=1000))
    browser.sign_in(ADA)
    for _ in range(3):
        stand.state.clock.offset += 900
        assert "code" in browser.walk(browser.authorize(prompt="none"))
    stand.state.clock.offset += 1100
    assert browser.walk(browser.authorize(prompt="none"))["error"] == "login_required"


def test_tokens_without_offline_access_die_with_the_session_and_its_tolerance(stand: Stand, browser: Browser) -> None:
    stand.state.clock.stop()
    lifetimes = Lifetimes(session=1000, tolerance=15)
    stand.state.config = dataclasses.replace(CONFIG, always_issue_refresh_token=True, lifetimes=lifetimes)
    tokens = browser.tokens(ADA, prompt=None)
    stand.state.clock.offset = 1014
    assert browser.refresh(tokens["refresh_token"]).status_code == 200
    stand.state.clock.offset = 1015
    assert browser.refresh(tokens["refresh_token"]).status_code == 400


def test_a_pushed_request_works_once(stand: Stand, browser: Browser) -> None:
    query, _ = browser.query()
    uri = browser.endpoint("/oidc/request", query).json()["request_uri"]
    first = browser.get("/oidc/auth", params={"client_id": CLIENT_ID, "request_uri": uri})
    second = browser.get("/oidc/auth", params={"client_id": CLIENT_ID, "request_uri": uri})
    assert first.headers["location"].startswith("/direct/")
    assert (second.status_code, second.json()["error"]) == (400, "invalid_request_uri")
    refused = browser.endpoint("/oidc/request", query, "basic:wrong")
    assert refused.status_code == 401


def test_an_error_can_be_ordered(stand: Stand, browser: Browser) -> None:
    stand.state.authorize_error = "server_error"
    callback = browser.walk(browser.authorize(state="x"))
    assert (callback["error"], callback["state"], callback["iss"]) == ("server_error", "x", CONFIG.issuer)


@pytest.mark.parametrize(
    ("lie", "name", "value"),
    [
        ("callback_no_iss", "iss", None),
        ("callback_foreign_iss", "iss", "https://other.example.test/oidc"),
        ("callback_foreign_state", "state", "another-state"),
    ],
)
def test_callbacks_can_lie(stand: Stand, browser: Browser, lie: str, name: str, value: str | None) -> None:
    browser.sign_in(ADA)
    stand.state.lie(lie)
    assert browser.walk(browser.authorize(prompt="none")).get(name) == value


def test_a_cookie_without_its_signature_does_not_count(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    (session,) = stand.state.sessions.values()
    with stand.browser() as thief:
        thief.client.cookies.set("_session", session.cookie)
        assert thief.walk(thief.authorize(prompt="none"))["error"] == "login_required"
        thief.client.cookies.set("_session.sig", "guess")
        assert thief.walk(thief.authorize(prompt="none"))["error"] == "login_required"


def test_an_interaction_expires_after_an_hour(stand: Stand, browser: Browser) -> None:
    browser.authorize()
    (interaction,) = stand.state.interactions.values()
    stand.state.clock.offset = 3601
    assert browser.get(f"/oidc/auth/{interaction.uid}").status_code == 400
    assert browser.get("/sign-in").headers["location"].endswith("/unknown-session")


def test_coming_back_before_the_page_has_decided_shows_the_page_again(stand: Stand, browser: Browser) -> None:
    browser.authorize()
    (interaction,) = stand.state.interactions.values()
    assert browser.get(f"/oidc/auth/{interaction.uid}").headers["location"].startswith("/direct/")
    browser.sign_in(ADA, prompt="login")
    browser.authorize(prompt="consent")
    (interaction,) = (item for item in stand.state.interactions.values() if item.prompt == "consent")
    assert browser.get(f"/oidc/auth/{interaction.uid}").headers["location"] == f"/consent?app_id={CLIENT_ID}"


def test_an_organization_is_remembered_for_the_page(browser: Browser) -> None:
    got = browser.authorize(organization_id="acme")
    assert any('"organizationId":"acme"' in line for line in got.headers.get_list("set-cookie"))


def test_another_person_gets_a_session_of_their_own(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    browser.sign_in(MAX, prompt="login")
    assert [session.sub for session in stand.state.sessions.values()] == [MAX]
