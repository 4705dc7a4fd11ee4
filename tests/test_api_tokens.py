"""Access tokens for APIs: handed out while they are good, renewed before, forgotten when what they rest on has changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.api_tokens import carried_over, due, handed_out, issued, missing, refused, with_token
from proxy.claims import ApiToken, Audience, Identity, Tokens

NOW = 1_795_213_000.0
API = Audience("https://api.example.com")
WITHIN = Audience("https://api.example.com", "acme00000001")
ACME = Audience(None, "acme00000001")
TOKENS = Tokens("id", "access", NOW + 3600, "refresh")
ADA = Identity("ada", roles=("a", "b"), organizations=("acme00000001",), organization_roles=("acme00000001:admin",))


def test_what_a_token_is_for() -> None:
    assert [audience.claim for audience in (API, WITHIN, ACME)] == [
        "https://api.example.com",
        "https://api.example.com",
        "urn:logto:organization:acme00000001",
    ]
    assert [str(audience) for audience in (API, WITHIN, ACME)] == [
        "https://api.example.com",
        "https://api.example.com within organization acme00000001",
        "urn:logto:organization:acme00000001",
    ]
    assert len({API, WITHIN, ACME, Audience("https://api.example.com")}) == 3


def test_nothing_shows_a_token() -> None:
    assert "secret" not in repr(replace(TOKENS, for_apis={API: issued("secret", NOW, NOW + 60)}))
    assert "secret" not in repr(issued("secret", NOW, NOW + 60))


@pytest.mark.parametrize(
    ("later", "out", "asked", "awaited"),
    [
        (0, True, False, False),
        (0.79 * 3600, True, False, False),
        (0.8 * 3600, True, True, False),
        (3589, True, True, False),
        (3590, False, True, True),
        (3600, False, True, True),
        (1e9, False, True, True),
    ],
)
def test_a_tokens_life(later: float, out: bool, asked: bool, awaited: bool) -> None:
    tokens = replace(TOKENS, for_apis={API: issued("t", NOW, NOW + 3600)})
    assert (API in handed_out(tokens, [API], NOW + later).for_apis) is out
    assert due(tokens, [API], NOW + later) == [API] * asked
    assert missing(tokens, [API], NOW + later) == [API] * awaited


@pytest.mark.parametrize(("later", "asked", "awaited"), [(0, False, False), (300, True, False), (600, True, True)])
def test_the_life_of_a_no(later: float, asked: bool, awaited: bool) -> None:
    tokens = replace(TOKENS, for_apis={API: refused(NOW)})
    assert handed_out(tokens, [API], NOW + later).for_apis == {}
    assert due(tokens, [API], NOW + later) == [API] * asked
    assert missing(tokens, [API], NOW + later) == [API] * awaited


def test_what_was_never_asked_for_is_missing() -> None:
    assert missing(TOKENS, [API, ACME], NOW) == due(TOKENS, [API, ACME], NOW) == [API, ACME]
    assert missing(TOKENS, [], NOW) == []


def test_only_what_is_for_this_app_is_handed_out() -> None:
    tokens = replace(TOKENS, for_apis={it: issued(str(it), NOW, NOW + 3600) for it in (API, WITHIN, ACME)})
    out = handed_out(tokens, [WITHIN], NOW)
    assert out.for_apis.keys() == {WITHIN}
    assert replace(out, for_apis={}) == TOKENS


def test_one_more_token_takes_the_place_of_the_last_and_drops_what_is_over() -> None:
    tokens = with_token(TOKENS, API, issued("first", NOW, NOW + 60), NOW)
    tokens = with_token(tokens, API, issued("second", NOW, NOW + 3600), NOW)
    tokens = with_token(tokens, ACME, issued("brief", NOW, NOW + 60), NOW)
    assert {it: token.value for it, token in tokens.for_apis.items()} == {API: "second", ACME: "brief"}
    tokens = with_token(tokens, WITHIN, refused(NOW + 100), NOW + 100)
    assert {it: token.value for it, token in tokens.for_apis.items()} == {API: "second", WITHIN: ""}


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        (ADA, True),
        (replace(ADA, name="Ada", email="ada@example.com", roles=("b", "a")), True),
        (replace(ADA, roles=("a",)), False),
        (replace(ADA, roles=("a", "b", "c")), False),
        (replace(ADA, organizations=()), False),
        (replace(ADA, organization_roles=()), False),
    ],
)
def test_tokens_outlive_a_recheck_that_finds_nothing_new(after: Identity, kept: bool) -> None:
    for_apis = {API: issued("t", NOW, NOW + 3600), ACME: refused(NOW), WITHIN: issued("t", NOW, NOW + 60)}
    tokens = replace(TOKENS, for_apis=for_apis)
    assert carried_over(tokens, ADA, after, NOW + 100).keys() == ({API, ACME} if kept else set())


@given(
    life=st.floats(5, 1e7),
    later=st.floats(-1e3, 1e8),
)
def test_nothing_is_handed_out_after_its_end(life: float, later: float) -> None:
    token = issued("t", NOW, NOW + life)
    assert token.renew_at <= token.until < NOW + life
    tokens = replace(TOKENS, for_apis={API: token})
    if later >= life:
        assert handed_out(tokens, [API], NOW + later).for_apis == {}
        assert missing(tokens, [API], NOW + later)
    assert set(missing(tokens, [API], NOW + later)) <= set(due(tokens, [API], NOW + later))
    assert (API in handed_out(tokens, [API], NOW + later).for_apis) != bool(missing(tokens, [API], NOW + later))
    assert isinstance(token, ApiToken)
