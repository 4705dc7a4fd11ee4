"""Claims as Logto sends them, and as it should not: read leniently, trusted narrowly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.claims import Grant, Identity, Tokens, identity_from_claims, lookup

# A userinfo answer as recorded from a Logto 1.42: nulls for what is absent, milliseconds for times.
ALICE: dict[str, Any] = {
    "sub": "s0062qn56eia",
    "name": "alice",
    "picture": "https://cdn.discordapp.com/avatars/80351110224678912/8342729096ea3675442027381ff50dfe",
    "updated_at": 1795213041315,
    "username": None,
    "created_at": 1795212883487,
    "email": "alice@example.test",
    "email_verified": True,
    "identities": {
        "discord": {
            "userId": "80351110224678912",
            "details": {
                "id": "80351110224678912",
                "name": "alice",
                "rawData": {"id": "80351110224678912", "username": "alice.l", "global_name": "Alice Liddell"},
            },
        }
    },
    "roles": ["ops"],
    "custom_data": {"team": {"name": "red", "size": 3}, "a.b": 1},
    "organizations": ["yaejrcggvkx6"],
    "organization_roles": ["yaejrcggvkx6:org-admin"],
}


def test_a_recorded_person() -> None:
    alice = identity_from_claims(ALICE)
    assert alice == Identity(
        sub="s0062qn56eia",
        username=None,
        name="alice",
        email="alice@example.test",
        picture=ALICE["picture"],
        roles=("ops",),
        organizations=("yaejrcggvkx6",),
        organization_roles=("yaejrcggvkx6:org-admin",),
        discord_id="80351110224678912",
        discord_username="alice.l",
        claims=ALICE,
    )
    assert alice.groups == ("ops", "yaejrcggvkx6:org-admin")


@pytest.mark.parametrize("sub", [None, "", 7, [], {}, True])
def test_without_a_sub_there_is_nobody(sub: Any) -> None:
    with pytest.raises(ValueError, match="sub"):
        identity_from_claims({"sub": sub})
    with pytest.raises(ValueError, match="sub"):
        identity_from_claims({})


@pytest.mark.parametrize(
    ("verified", "email"),
    [(True, "a@b.test"), (False, None), (None, None), ("true", None), (1, None), ("yes", None), ([], None)],
)
def test_an_address_counts_only_when_it_is_verified(verified: Any, email: str | None) -> None:
    assert identity_from_claims({"sub": "s", "email": "a@b.test", "email_verified": verified}).email == email


@pytest.mark.parametrize(
    ("identities", "discord_id", "username"),
    [
        (None, None, None),
        ([], None, None),
        ({}, None, None),
        ({"discord": None}, None, None),
        ({"discord": {"userId": 7, "details": "x"}}, None, None),
        ({"discord": {"userId": "1"}}, "1", None),
        ({"discord": {"userId": "1", "details": {"id": "2", "name": "n"}}}, "1", "n"),
        ({"discord": {"userId": "1", "details": {"name": "n", "rawData": {"id": "3", "username": "u"}}}}, "1", "u"),
        ({"discord": {"details": {"id": "2"}}}, None, None),
        ({"github": {"userId": "1"}}, None, None),
    ],
)
def test_of_a_linked_account_only_the_user_id_is_its_id(
    identities: Any, discord_id: str | None, username: str | None
) -> None:
    identity = identity_from_claims({"sub": "s", "identities": identities})
    assert (identity.discord_id, identity.discord_username) == (discord_id, username)


@pytest.mark.parametrize(
    ("claims", "username"),
    [
        ({"username": "u", "preferred_username": "p"}, "u"),
        ({"username": None, "preferred_username": "p"}, "p"),
        ({"username": "", "preferred_username": None}, None),
    ],
)
def test_usernames(claims: dict[str, Any], username: str | None) -> None:
    assert identity_from_claims({"sub": "s", **claims}).username == username


@pytest.mark.parametrize("name", ["roles", "organizations", "organization_roles"])
@pytest.mark.parametrize(
    ("value", "read"),
    [
        (["a", "b"], ("a", "b")),
        ("a", ()),
        (None, ()),
        ({"a": 1}, ()),
        (["a", None, 7, "", ["b"]], ("a",)),
        (("a",), ()),
    ],
)
def test_lists_of_names(name: str, value: Any, read: tuple[str, ...]) -> None:
    assert getattr(identity_from_claims({"sub": "s", name: value}), name) == read


@pytest.mark.parametrize(
    ("identity", "display"),
    [
        (Identity("s", username="u", name="n", email="e"), "n"),
        (Identity("s", username="u", email="e"), "u"),
        (Identity("s", email="e"), "e"),
        (Identity("s"), "s"),
    ],
)
def test_display(identity: Identity, display: str) -> None:
    assert identity.display == display


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sub", "s0062qn56eia"),
        ("username", None),
        ("custom_data.team.name", "red"),
        ("custom_data.team", {"name": "red", "size": 3}),
        ("custom_data.team.name.first", None),
        ("custom_data.none", None),
        ("custom_data..team", None),
        ("roles.0", None),
        ("", None),
        ("nothing", None),
    ],
)
def test_lookup(path: str, value: Any) -> None:
    assert lookup(ALICE, path) == value


@pytest.mark.parametrize(
    ("username", "login"),
    [
        (None, "s0062qn56eia"),
        ("", "s0062qn56eia"),
        ("ada", "ada"),
        ("ada_1815", "ada_1815"),
        ("Ada", "s0062qn56eia"),  # to many apps that is ada
        ("k3sx9d8w2q1a", "s0062qn56eia"),  # as ids look
        ("K3SX9D8W2Q1A", "s0062qn56eia"),
    ],
)
def test_the_name_for_apps(username: str | None, login: str) -> None:
    assert Identity("s0062qn56eia", username=username).login == login


# What Logto takes for a username, and its ids.
USERNAMES = st.none() | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,11}", fullmatch=True)
IDS = st.from_regex(r"[a-z0-9]{12}", fullmatch=True)


@given(st.tuples(USERNAMES, IDS), st.tuples(USERNAMES, IDS))
def test_no_two_people_have_one_name_whatever_apps_make_of_capitals(
    one: tuple[str | None, str], other: tuple[str | None, str]
) -> None:
    logins = {Identity(sub, username=username).login.casefold() for username, sub in (one, other)}
    assert len(logins) == 2 or one[1] == other[1] or one[0] == other[0]


def test_a_key_with_dots_wins_whole() -> None:
    claims = {"https://example.test/role": "admin", "https://example": {"test/role": "no"}}
    assert lookup(claims, "https://example.test/role") == "admin"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*ALICE, "preferred_username", "email_verified"])


@given(st.dictionaries(NAMES, JSON))
def test_any_claims_give_somebody_or_nobody(claims: dict[str, Any]) -> None:
    try:
        identity = identity_from_claims(claims)
    except ValueError:
        assert not (isinstance(claims.get("sub"), str) and claims["sub"])
        return
    assert identity.display
    for value in (identity.username, identity.name, identity.email, identity.picture, identity.discord_id):
        assert value is None or (isinstance(value, str) and value)
    assert all(isinstance(group, str) and group for group in identity.groups)


def test_no_token_and_no_claim_shows() -> None:
    tokens = Tokens("id-token", "access-token", 5.0, "refresh-token")
    shown = repr(Grant(Identity("s", claims={"custom": "treasure"}), tokens, "sid", 1.0)) + str(tokens)
    assert not any(word in shown for word in ("id-token", "access-token", "refresh-token", "treasure"))
    assert tokens.refresh_token == "refresh-token"


def test_an_organizations_app_hears_of_no_other_organization() -> None:
    person = Identity(
        sub="u",
        roles=("ops",),
        organizations=("acme", "acme2"),
        organization_roles=("acme:admin", "acme2:admin", "acme:a:b", "acmeadmin"),
    )
    inside = person.within("acme")
    assert (inside.sub, inside.organizations) == ("u", ("acme",))
    assert inside.groups == ("ops", "acme:admin", "acme:a:b")
    assert person.within("elsewhere").groups == ("ops",)
