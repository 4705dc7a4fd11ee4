"""Tokens beyond the recordings: what the client must say, narrowing, organizations, and the lies."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jwt
import pytest

from proxy.sandbox.state import LIES
from tests.sandbox.stand import CLIENT_ID, CONFIG, SECRET, Browser, Stand

ADA, MAX, NOE = "ada000000001", "max000000002", "noe000000003"


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def accepted(stand: Stand, token: str) -> bool:
    """Whether a strict relying party would take `token`, by signature and times, from the published keys."""
    header = jwt.get_unverified_header(token)
    keys = {key["kid"]: jwt.PyJWK(key) for key in stand.state.keys.jwks()["keys"]}
    if header["kid"] not in keys:
        return False
    try:
        jwt.decode(
            token,
            keys[header["kid"]],
            algorithms=["ES384"],
            audience=CLIENT_ID,
            issuer=CONFIG.issuer,
            options={"require": ["exp", "iat", "sub", "iss", "aud"]},
        )
    except jwt.PyJWTError:
        return False
    return True


def test_an_honest_id_token_is_good(stand: Stand, browser: Browser) -> None:
    tokens = browser.tokens(ADA)
    assert accepted(stand, tokens["id_token"])
    assert len(tokens["access_token"]) == len(tokens["refresh_token"]) == 43
    assert abs(claims_of(tokens["id_token"])["iat"] - time.time()) < 30


@pytest.mark.parametrize(
    "lie",
    [
        *("wrong_iss", "wrong_aud", "expired", "issued_in_future", "no_sub", "no_iat", "no_exp", "no_iss", "no_aud"),
        *("alg_none", "hs256", "unknown_kid", "bad_signature"),
    ],
)
def test_lies_make_the_id_token_unacceptable(stand: Stand, browser: Browser, lie: str) -> None:
    stand.state.lie(lie)
    assert not accepted(stand, browser.tokens(ADA)["id_token"])


def test_lies_that_only_a_careful_reader_sees(stand: Stand, browser: Browser) -> None:
    def told(lie: str) -> dict[str, Any]:
        stand.state.lie(lie)
        return claims_of(browser.tokens(ADA, nonce="right")["id_token"])

    assert told("wrong_nonce")["nonce"] == "another-nonce"
    assert "nonce" not in told("no_nonce")
    assert told("wrong_azp")["azp"] == "another-application"
    assert told("many_aud")["aud"] == [CLIENT_ID, "another-application"]
    assert told("other_sub")["sub"] != ADA


def test_a_secret_signature_is_a_valid_one_for_whoever_lets_the_header_choose(stand: Stand, browser: Browser) -> None:
    stand.state.lie("hs256")
    token = browser.tokens(ADA)["id_token"]
    assert jwt.decode(token, SECRET, algorithms=["HS256"], audience=CLIENT_ID)["sub"] == ADA


def test_lies_about_what_is_there(stand: Stand, browser: Browser) -> None:
    stand.state.lie("no_id_token")
    assert "id_token" not in browser.tokens(ADA)
    stand.state.lie("userinfo_other_sub")
    assert browser.userinfo(browser.tokens(ADA)["access_token"]).json()["sub"] != ADA
    stand.state.lie()
    assert browser.userinfo(browser.tokens(ADA)["access_token"]).json()["sub"] == ADA


def test_an_unknown_lie_is_named(stand: Stand) -> None:
    with pytest.raises(ValueError, match="white_lie"):
        stand.state.lie("white_lie")
    assert "expired" in LIES


def test_extended_claims_are_in_the_id_token_only_when_configured(stand: Stand, browser: Browser) -> None:
    stand.state.config = dataclasses.replace(CONFIG, id_token_claims=frozenset({"roles"}))
    claims = claims_of(browser.tokens(ADA)["id_token"])
    assert claims["roles"] == ["admin"]
    assert not {"identities", "organizations", "custom_data"} & claims.keys()
    userinfo = browser.userinfo(browser.tokens(ADA)["access_token"]).json()
    assert {"identities", "sso_identities", "custom_data"} <= userinfo.keys()


def test_somebody_without_email_has_null_and_false(browser: Browser) -> None:
    claims = claims_of(browser.tokens(NOE)["id_token"])
    assert (claims["email"], claims["email_verified"], claims["username"]) == (None, False, None)
    assert "preferred_username" not in claims


def test_sid_only_with_back_channel_logout_that_wants_it(stand: Stand, browser: Browser) -> None:
    assert "sid" not in claims_of(browser.tokens(ADA)["id_token"])
    stand.state.config = dataclasses.replace(CONFIG, backchannel_logout_uri="http://127.0.0.1:9/b")
    assert len(claims_of(browser.tokens(ADA)["id_token"])["sid"]) == 43


@pytest.mark.parametrize(
    "header",
    ["Basic !!!", "Basic bm9jb2xvbg==", "Basic"],
)
def test_broken_basic_credentials_are_a_bad_request(browser: Browser, header: str) -> None:
    got = browser.post("/oidc/token", {"grant_type": "x"}, headers={"authorization": header})
    assert (got.status_code, got.json()["error"]) == (400, "invalid_request")


def test_a_client_must_say_who_it_is(browser: Browser) -> None:
    got = browser.post("/oidc/token", {"grant_type": "refresh_token"})
    assert got.json()["error_description"] == "no client authentication mechanism provided"


def test_a_body_may_be_json_and_garbage_counts_as_none(browser: Browser) -> None:
    auth = (CLIENT_ID, SECRET)
    for content in (b"{", b"[]", b'{"grant_type": 7}'):
        got = browser.client.post(
            "/oidc/token", content=content, headers={"content-type": "application/json"}, auth=auth
        )
        assert got.json()["error_description"] == "missing required parameter 'grant_type'"
    tokens = browser.tokens(ADA)
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert browser.client.post("/oidc/token", json=form, auth=auth).status_code == 200


def test_an_organization_token_needs_the_organizations_scope(browser: Browser) -> None:
    tokens = browser.tokens(ADA, scope="openid offline_access")
    got = browser.refresh(tokens["refresh_token"], organization_id="acme00000001")
    assert (got.status_code, got.json()["error"]) == (403, "insufficient_scope")


def test_an_organization_that_is_gone_grants_nothing(browser: Browser) -> None:
    # Ada is a member of one that this configuration does not know.
    scope = "openid offline_access urn:logto:scope:organizations invite:member"
    tokens = browser.tokens(ADA, scope=scope, resource="urn:logto:resource:organizations")
    got = browser.refresh(tokens["refresh_token"], organization_id="acme00000001").json()
    assert got["scope"] == ""
    assert claims_of(got["access_token"])["aud"] == "urn:logto:organization:acme00000001"


def test_an_access_token_without_openid_cannot_ask_userinfo(browser: Browser) -> None:
    tokens = browser.tokens(ADA)
    narrow = browser.refresh(tokens["refresh_token"], scope="profile").json()
    got = browser.userinfo(narrow["access_token"])
    assert (got.status_code, got.json()["error"]) == (403, "insufficient_scope")
    assert got.headers["www-authenticate"].startswith("Bearer ")


def test_an_access_token_gets_fifteen_seconds_of_grace(stand: Stand, browser: Browser) -> None:
    stand.state.clock.stop()
    tokens = browser.tokens(ADA)
    stand.state.clock.offset = 3600 + 14
    assert browser.userinfo(tokens["access_token"]).status_code == 200
    stand.state.clock.offset = 3600 + 15
    assert browser.userinfo(tokens["access_token"]).status_code == 401
    assert browser.endpoint("/oidc/token/introspection", {"token": tokens["access_token"]}).json() == {"active": False}


def test_userinfo_may_be_posted_and_introspection_has_no_sid_without_one(browser: Browser) -> None:
    tokens = browser.tokens(MAX)
    header = {"authorization": f"bearer {tokens['access_token']}"}
    assert browser.post("/oidc/me", headers=header).json()["sub"] == MAX
    found = browser.endpoint("/oidc/token/introspection", {"token": tokens["access_token"]}).json()
    assert found["active"]
    assert "sid" not in found
    refused = browser.endpoint("/oidc/token/introspection", {"token": "x"}, "post:wrong")
    assert refused.status_code == 401
