"""end_session beyond the recordings, and back-channel logout to receivers that are slow, broken or gone."""

from __future__ import annotations

import dataclasses

import jwt
import pytest

from tests.sandbox.conftest import Receiver
from tests.sandbox.stand import CLIENT_ID, CONFIG, SIGNED_OUT, Browser, Stand, forms

ADA = "ada000000001"


def test_the_page_confirms_itself_and_has_a_button_without_a_script(browser: Browser) -> None:
    browser.sign_in(ADA)
    page = browser.get("/oidc/session/end", params={"client_id": CLIENT_ID})
    assert '<button class="button" name="logout" value="yes"' in page.text
    policy = page.headers["content-security-policy"]
    assert "form-action" not in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">' in page.text


def test_sign_out_ends_tokens_without_offline_access_and_spares_the_others(stand: Stand, browser: Browser) -> None:
    stand.state.config = dataclasses.replace(CONFIG, always_issue_refresh_token=True)
    bound = browser.tokens(ADA, prompt=None)
    assert browser.sign_out() == {}
    assert browser.refresh(bound["refresh_token"]).status_code == 400
    offline = browser.tokens(ADA)
    browser.sign_out()
    assert browser.refresh(offline["refresh_token"]).status_code == 200
    assert not stand.state.sessions


def test_without_logout_only_this_application_is_left(stand: Stand, browser: Browser) -> None:
    tokens = browser.tokens(ADA, prompt=None)
    form = forms(browser.get("/oidc/session/end", params={"client_id": CLIENT_ID}).text) or {}
    browser.post(form["action"], form["fields"])
    assert browser.userinfo(tokens["access_token"]).status_code == 401
    assert browser.walk(browser.authorize(prompt="none"))["error"] == "consent_required"


@pytest.mark.parametrize("form", [{}, {"xsrf": "guess"}])
def test_a_confirmation_needs_the_page_before_it(browser: Browser, form: dict[str, str]) -> None:
    got = browser.post("/oidc/session/end/confirm", form)
    assert got.json()["error_description"] == "could not find logout details"
    browser.sign_in(ADA)
    browser.get("/oidc/session/end", params={"client_id": CLIENT_ID})
    got = browser.post("/oidc/session/end/confirm", form)
    assert got.json()["error_description"] == "xsrf token invalid"
    assert "code" in browser.walk(browser.authorize(prompt="none"))


def test_an_unknown_application_is_refused(browser: Browser) -> None:
    got = browser.get("/oidc/session/end", params={"client_id": "other", "post_logout_redirect_uri": SIGNED_OUT})
    assert (got.status_code, got.json()["error"]) == (400, "invalid_client")


def test_success_says_so(browser: Browser) -> None:
    page = browser.get("/oidc/session/end/success")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
    assert "signed out" in page.text


@pytest.mark.parametrize("wants_sid", [True, False])
def test_a_logout_token_is_signed_and_names_the_session_when_wanted(
    stand: Stand, browser: Browser, receiver: Receiver, *, wants_sid: bool
) -> None:
    stand.state.config = dataclasses.replace(
        CONFIG, backchannel_logout_uri=receiver.url, backchannel_logout_session_required=wants_sid
    )
    browser.sign_in(ADA)
    browser.sign_out()
    (form,) = receiver.forms
    key = jwt.PyJWK(stand.state.keys.jwks()["keys"][0])
    claims = jwt.decode(form["logout_token"], key, algorithms=["ES384"], audience=CLIENT_ID, issuer=CONFIG.issuer)
    assert jwt.get_unverified_header(form["logout_token"])["typ"] == "logout+jwt"
    assert ("sid" in claims) == wants_sid
    assert (claims["sub"], claims["exp"] - claims["iat"]) == (ADA, 120)


@pytest.mark.parametrize("gone", [True, False])
def test_a_receiver_that_fails_changes_nothing(
    stand: Stand, browser: Browser, receiver: Receiver, *, gone: bool
) -> None:
    receiver.status = 500
    uri = "http://127.0.0.1:9/backchannel" if gone else receiver.url
    stand.state.config = dataclasses.replace(CONFIG, backchannel_logout_uri=uri)
    browser.sign_in(ADA)
    assert browser.sign_out() == {}
    assert len(receiver.forms) == (0 if gone else 1)
    assert not stand.state.sessions
