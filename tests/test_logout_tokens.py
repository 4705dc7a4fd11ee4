"""Logout tokens as values: what must be in one. Forged ones sent to a running gateway are in test_notices.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.id_tokens import LEEWAY, BadToken
from proxy.logout_tokens import EVENT, LONGEST_LIFE, LogoutToken, read_logout_token

NOW = 1_795_213_000.0
GOOD: dict[str, Any] = {
    "iss": "https://auth.example.com/oidc",
    "aud": "app",
    "iat": NOW,
    "exp": NOW + 120,
    "jti": "j1",
    "sub": "ada",
    "sid": "s1",
    "events": {EVENT: {}},
}


def read(**changes: Any) -> LogoutToken:
    claims = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return read_logout_token(claims, issuer="https://auth.example.com/oidc", client_id="app", now=NOW)


@pytest.mark.parametrize(
    ("changes", "sub", "sid"),
    [
        ({}, "ada", "s1"),
        ({"sid": ...}, "ada", None),
        ({"sub": ...}, None, "s1"),
        ({"sid": None}, "ada", None),
        ({"events": {EVENT: {}, "https://example.com/other": {"a": 1}}}, "ada", "s1"),
        ({"aud": ["app"]}, "ada", "s1"),
        ({"exp": NOW - LEEWAY + 1}, "ada", "s1"),
        ({"iat": NOW + LEEWAY}, "ada", "s1"),
        ({"exp": NOW + LONGEST_LIFE}, "ada", "s1"),
    ],
)
def test_a_good_one_says_whom_it_signs_out(changes: dict[str, Any], sub: str | None, sid: str | None) -> None:
    found = read(**changes)
    assert (found.sub, found.sid, found.jti) == (sub, sid, "j1")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://auth.example.com"},
        {"iss": ...},
        {"aud": "another"},
        {"aud": ["app", "another"]},
        {"aud": ...},
        {"azp": "another"},
        {"exp": NOW - LEEWAY},
        {"exp": ...},
        {"exp": "soon"},
        {"exp": NOW + LONGEST_LIFE + 1},
        {"exp": NOW + 86400, "iat": NOW + 20},
        {"iat": NOW - LONGEST_LIFE, "exp": NOW + 60},
        {"iat": NOW + LEEWAY + 1},
        {"iat": ...},
        {"nbf": NOW + LEEWAY + 1},
        {"jti": ...},
        {"jti": ""},
        {"jti": 7},
        {"jti": "j" * 256},
        {"events": ...},
        {"events": []},
        {"events": EVENT},
        {"events": {}},
        {"events": {EVENT: None}},
        {"events": {EVENT: True}},
        {"events": {EVENT.replace("http:", "https:"): {}}},
        {"nonce": "n"},
        {"nonce": None},
        {"sub": ..., "sid": ...},
        {"sub": None, "sid": None},
        {"sub": ""},
        {"sid": ""},
        {"sid": 7},
        {"sid": ["s1"]},
        {"sub": {"ada": 1}},
        {"sid": "s" * 256},
    ],
    ids=str,
)
def test_nothing_else_signs_anybody_out(changes: dict[str, Any]) -> None:
    with pytest.raises(BadToken):
        read(**changes)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)


@given(name=st.sampled_from(sorted(GOOD)), value=values)
def test_any_value_is_judged_and_none_widens_the_logout(name: str, value: Any) -> None:
    try:
        found = read(**{name: value})
    except BadToken:
        return
    # What cannot be read never turns the end of one session into the end of all.
    assert found.sid == "s1" or (name == "sid" and (value is None or found.sid == value))
