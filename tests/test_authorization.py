"""The authorization request as a URL: nothing of what the package made is lost, nothing that was asked for can add to it."""

from __future__ import annotations

from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.authorization import Wishes, authorization_url, with_query
from proxy.settings import LogtoSettings, SettingsError, load

MADE = "https://auth.example.com/oidc/auth?" + urlencode(
    [
        ("client_id", "app"),
        ("redirect_uri", "https://apps.example.com/.postern/callback"),
        ("response_type", "code"),
        ("scope", "email openid offline_access profile"),
        ("resource", "https://one.example.com"),
        ("resource", "https://two.example.com"),
        ("prompt", "consent"),
        ("code_challenge", "challenge"),
        ("code_challenge_method", "S256"),
        ("state", "state"),
    ]
)
KEPT = {"client_id", "redirect_uri", "response_type", "resource", "code_challenge", "code_challenge_method", "state"}


def logto(**changes: str) -> LogtoSettings:
    given = {"endpoint": "https://auth.example.com", "app_id": "app", "app_secret": "secret", **changes}
    return LogtoSettings.model_validate(given)


words = st.one_of(
    st.none(), st.text(max_size=20), st.sampled_from(["login", "register", "zh-CN", "a&state=other", "a b"])
)


@given(st.builds(Wishes, words, words, words, words, words, words), st.sampled_from(["session", "offline"]))
def test_whatever_is_wished_for_the_request_stays_the_packages(wishes: Wishes, refresh: str) -> None:
    url = authorization_url(MADE, logto(refresh=refresh), "nonce", wishes)
    before, after = parse_qs(urlsplit(MADE).query), parse_qs(urlsplit(url).query)
    assert urlsplit(url)[:3] == urlsplit(MADE)[:3]
    assert {name: after[name] for name in KEPT} == {name: before[name] for name in KEPT}
    assert after["nonce"] == ["nonce"]
    assert all(len(values) == 1 for name, values in after.items() if name != "resource")
    scopes, prompts = after["scope"][0].split(), after.get("prompt", [""])[0].split()
    assert ("offline_access" in scopes) == (refresh == "offline")
    assert set(prompts) <= {"login", "consent", "none"}


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5))),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_parameters_take_the_place_of_those_of_their_name(pairs: list[tuple[str, str]], extras: dict[str, str]) -> None:
    pairs = [(name, value) for name, value in pairs if name]
    extras = {name: value for name, value in extras.items() if name}
    url = with_query("https://auth.example.com/x?" + urlencode(pairs), extras)
    kept = [pair for pair in pairs if pair[0] not in extras]
    assert parse_qsl(urlsplit(url).query, keep_blank_values=True) == [*kept, *extras.items()]


def test_there_is_one_way_straight_on() -> None:
    environ = {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": "https://auth.example.com",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "secret",
        "POSTERN_LOGTO__CONNECTOR": "discord",
        "POSTERN_LOGTO__SSO": "abc123",
    }
    with pytest.raises(SettingsError, match=r"logto\.connector"):
        load(None, environ)
