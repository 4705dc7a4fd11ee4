"""Claims become somebody only when they are an access token's, of this issuer, and of now."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access_tokens import read_access_token
from proxy.id_tokens import LEEWAY, BadToken

NOW = 1_795_213_000.0
ISSUER = "https://auth.example.com/oidc"
CLAIMS: dict[str, Any] = {
    "jti": "WcYfGTfJDQUDQyWYkGqVU",
    "sub": "user00000001",
    "iat": int(NOW),
    "exp": int(NOW) + 3600,
    "scope": "read:things write:things",
    "client_id": "app000000001",
    "iss": ISSUER,
    "aud": "https://api.example.com",
}


def changed(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CLAIMS | changes).items() if value is not ...}


def test_who_it_speaks_of() -> None:
    made = read_access_token(changed(), issuer=ISSUER, now=NOW)
    assert made.identity.sub == "user00000001"
    assert (made.identity.client, made.identity.scopes) == ("app000000001", ("read:things", "write:things"))
    assert made.identity.is_program
    assert made.audiences == {"https://api.example.com"}
    assert made.expires_at == NOW + 3600 + LEEWAY
    assert "jti" not in made.identity.claims
    assert made.identity.claims["client_id"] == "app000000001"


def test_what_was_put_into_it_counts_and_organizations_only_by_its_own() -> None:
    made = read_access_token(
        changed(
            roles=["staff"], organization_id="acme", organizations=["x", "y"], organization_roles=["x:admin"], scope=...
        ),
        issuer=ISSUER,
        now=NOW,
    )
    assert (made.identity.roles, made.identity.organizations, made.identity.scopes) == (("staff",), ("acme",), ())
    assert made.identity.organization_roles == ()


@pytest.mark.parametrize("aud", [["a", "b"], "a"])
def test_for_several(aud: Any) -> None:
    assert "a" in read_access_token(changed(aud=aud), issuer=ISSUER, now=NOW).audiences


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": ISSUER + "/"}, {"iss": ...}, {"exp": NOW - LEEWAY}, {"exp": ...}, {"exp": "x"}, {"iat": NOW + 31},
        {"iat": ...}, {"nbf": NOW + 31}, {"sub": ...}, {"sub": ""}, {"sub": 7}, {"client_id": ...}, {"client_id": ""},
        {"client_id": "x" * 256}, {"scope": ["a"]}, {"scope": 7}, {"aud": ...}, {"aud": []}, {"aud": [""]},
        {"aud": ["a", 7]}, {"aud": {}}, {"aud": None},
    ],
)  # fmt: skip
def test_what_is_not_believed(changes: dict[str, Any]) -> None:
    with pytest.raises(BadToken):
        read_access_token(changed(**changes), issuer=ISSUER, now=NOW)


@given(
    st.dictionaries(
        st.sampled_from(sorted(CLAIMS)),
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_whatever_it_says_gives_somebody_or_a_named_error(changes: dict[str, Any]) -> None:
    try:
        made = read_access_token(CLAIMS | changes, issuer=ISSUER, now=NOW)
    except BadToken:
        return
    assert made.identity.sub
    assert made.audiences
