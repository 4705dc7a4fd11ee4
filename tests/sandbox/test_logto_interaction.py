"""The pages between authorization and callback, and the experience API that a program may drive instead."""

from __future__ import annotations

import dataclasses
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.sandbox.stand import CLIENT_ID, CONFIG, HOST, Browser, Stand

ADA, NOE, NEW = "ada000000001", "noe000000003", "new000000005"


def at_discord(browser: Browser, **choice: str) -> httpx2.Response:
    """Choose at the page that plays discord.com, and come back to Logto."""
    return browser.get(browser.get("/sandbox/discord/authorize", params=choice).headers["location"])


def test_the_sign_in_page_leads_to_discord_and_to_its_twin(browser: Browser) -> None:
    page = browser.get(browser.authorize(direct_sign_in=None).headers["location"])
    assert "Continue with Discord" in page.text
    assert "for development only" in page.text
    assert f'href="/direct/social/discord?app_id={CLIENT_ID}&amp;fallback=sign-in"' in page.text
    twin = browser.get(f"/register?app_id={CLIENT_ID}")
    assert "Create your account" in twin.text
    assert f'href="/sign-in?app_id={CLIENT_ID}"' in twin.text


def test_discord_shows_everybody_once_and_a_way_out(stand: Stand, browser: Browser) -> None:
    page = browser.get(browser.authorize().headers["location"])
    for sub in stand.state.people:
        assert page.text.count(f'data-sub="{sub}"') == 1
    assert "Cancel" in page.text
    assert "汉字 é 😀" in page.text


def test_what_plays_discord_can_be_reached_as_discord_is(browser: Browser) -> None:
    page = browser.get("/sandbox/discord/authorize", params={"client_id": "1", "state": "a&b"})
    assert page.status_code == 200
    assert "person=ada000000001&amp;state=a%26b" in page.text


def test_pages_allow_no_foreign_content(browser: Browser) -> None:
    page = browser.get(browser.authorize().headers["location"])
    policy = page.headers["content-security-policy"]
    for directive in ("default-src 'none'", "style-src 'self'", "frame-ancestors 'none'", "form-action 'self'"):
        assert directive in policy
    assert "unsafe" not in policy
    for attribute in ('src="http', 'href="http', "style="):
        assert attribute not in page.text
    assert browser.get("/sandbox/static/sandbox.css").headers["content-type"].startswith("text/css")


def test_cancelling_at_discord_never_calls_back(browser: Browser) -> None:
    browser.authorize()
    page = at_discord(browser, cancel="1", state="d1")
    assert (page.status_code, page.headers.get("location")) == (200, None)
    assert "denied the request" in page.text
    assert f'href="/sign-in?app_id={CLIENT_ID}"' in page.text


def test_a_suspended_person_gets_no_further_than_logto(stand: Stand, browser: Browser) -> None:
    stand.state.change_person(ADA, suspended=True)
    browser.authorize()
    page = at_discord(browser, person=ADA)
    assert page.status_code == 200
    assert "suspended" in page.text


@pytest.mark.parametrize("query", ["", "?code=unknown&state=x", "?error=access_denied"])
def test_a_callback_out_of_nowhere_is_a_page(browser: Browser, query: str) -> None:
    assert browser.get("/callback/sandboxdiscd" + query).status_code == 200


def test_an_unknown_code_from_discord_is_refused(browser: Browser) -> None:
    browser.authorize()
    page = browser.get("/callback/sandboxdiscd", params={"code": "guessed", "state": "x"})
    assert "the code is unknown" in page.text


def test_a_connector_that_does_not_exist_shows_a_page(browser: Browser) -> None:
    browser.authorize()
    page = browser.get(f"/direct/social/nope?app_id={CLIENT_ID}&fallback=sign-in")
    assert (page.status_code, "one connector" in page.text) == (200, True)
    evil = browser.get("/direct/social/nope?fallback=/evil.example")
    assert 'href="/evil.example' in evil.text
    assert 'href="//evil' not in evil.text


def test_a_newcomer_is_registered(stand: Stand, browser: Browser) -> None:
    assert not stand.state.people[NEW].registered
    tokens = browser.tokens(NEW)
    claims = browser.userinfo(tokens["access_token"]).json()
    assert stand.state.people[NEW].registered
    assert claims["sub"] == NEW
    assert claims["created_at"] == claims["updated_at"] or claims["created_at"] < claims["updated_at"]


def test_a_deleted_person_comes_back_as_somebody_new(stand: Stand, browser: Browser) -> None:
    stand.state.change_person(ADA, deleted=True)
    claims = browser.userinfo(browser.tokens(ADA)["access_token"]).json()
    assert claims["sub"] != ADA
    assert len(claims["sub"]) == 12
    assert (claims["roles"], claims["identities"]["discord"]["userId"]) == ([], "100000000000000001")


def test_without_a_session_there_is_no_consent(stand: Stand, browser: Browser) -> None:
    browser.sign_in(ADA)
    browser.authorize(prompt="consent")
    stand.state.sessions.clear()
    got = browser.get(f"/consent?app_id={CLIENT_ID}")
    assert got.headers["location"] == f"http://{HOST}/unknown-session"


def test_an_unknown_session_may_lead_back_to_the_application(stand: Stand, browser: Browser) -> None:
    stand.state.config = dataclasses.replace(CONFIG, unknown_session_redirect_url="http://localhost:3000/")
    assert browser.get("/sign-in").headers["location"] == "http://localhost:3000/"
    assert browser.get("/unknown-session").status_code == 200


# -- the experience API -----------------------------------------------------------------------------------------------


def begin(browser: Browser) -> dict[str, str]:
    browser.authorize()
    assert browser.client.put("/api/experience", json={"interactionEvent": "SignIn"}).status_code == 204
    path = "/api/experience/verification/social/sandboxdiscd/authorization-uri"
    found: dict[str, str] = browser.client.post(path, json={"state": "s1"}).json()
    return found


def verify(browser: Browser, verification: str, sub: str) -> httpx2.Response:
    back = browser.get("/sandbox/discord/authorize", params={"person": sub, "state": "s1"}).headers["location"]
    assert browser.get(back).status_code == 200  # a program drives: the page does not finish by itself
    code = parse_qs(urlsplit(back).query)["code"][0]
    path = "/api/experience/verification/social/sandboxdiscd/verify"
    return browser.client.post(path, json={"verificationId": verification, "connectorData": {"code": code}})


def identify(browser: Browser, verification: str) -> httpx2.Response:
    return browser.client.post("/api/experience/identification", json={"verificationId": verification})


def test_a_program_signs_somebody_known_in(browser: Browser) -> None:
    begun = begin(browser)
    assert begun["authorizationUri"].startswith(f"http://{HOST}/sandbox/discord/authorize?")
    assert verify(browser, begun["verificationId"], ADA).status_code == 200
    assert identify(browser, begun["verificationId"]).status_code == 204
    onward = browser.client.post("/api/experience/submit").json()["redirectTo"]
    assert "code" in browser.walk(browser.get(onward))


def test_a_program_registers_somebody_unknown(browser: Browser) -> None:
    verification = begin(browser)["verificationId"]
    verify(browser, verification, NEW)
    unknown = identify(browser, verification)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "user.identity_not_exist")
    assert unknown.json()["data"] == {}
    changed = browser.client.put("/api/experience/interaction-event", json={"interactionEvent": "Register"})
    assert changed.status_code == 204
    created = identify(browser, verification)
    assert (created.status_code, created.text) == (201, "Created")


def test_a_program_hears_of_suspension(stand: Stand, browser: Browser) -> None:
    stand.state.change_person(NOE, suspended=True)
    verification = begin(browser)["verificationId"]
    verify(browser, verification, NOE)
    refused = identify(browser, verification)
    assert (refused.status_code, refused.json()["code"]) == (401, "user.suspended")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("submit", {}, 404),
        ("nonsense", {}, 404),
        ("identification", {"verificationId": "other"}, 400),
        ("verification/social/sandboxdiscd/verify", {"verificationId": "other"}, 404),
        ("verification/social/sandboxdiscd/verify", [], 404),
    ],
)
def test_steps_out_of_order_are_refused(browser: Browser, path: str, body: object, status: int) -> None:
    begin(browser)
    assert browser.client.post(f"/api/experience/{path}", json=body).status_code == status


def test_a_wrong_code_and_a_body_that_is_no_json_are_refused(browser: Browser) -> None:
    verification = begin(browser)["verificationId"]
    path = "/api/experience/verification/social/sandboxdiscd/verify"
    body = {"verificationId": verification, "connectorData": {"code": "guessed"}}
    assert browser.client.post(path, json=body).json()["code"] == "connector.general"
    assert browser.client.post(path, content=b"{").json()["code"] == "guard.invalid_input"
