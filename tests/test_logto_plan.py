"""Plans as values: what is kept, what is never lost, what never happens. Whole setups are in test_logto_setup.py."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logto_plan import (
    MANAGEMENT_ROLE,
    Client,
    Found,
    Wanted,
    find_application,
    find_applications,
    mark_of,
    plan,
    plan_removal,
)

WANTED = Wanted(
    app_name="Postern",
    app_id="",
    callback="https://a/cb",
    signed_out="https://a/out",
    backchannel="https://a/bcl",
    hook="https://a/hook",
    home="https://a/",
    scopes=("email", "roles", "identities"),
)
EMPTY = Found(
    applications=(),
    connectors=(),
    hooks=(),
    roles=({"id": "r1", "name": MANAGEMENT_ROLE},),
    resources=(),
    organizations=(),
    experience={},
    claims=(),
    managers=frozenset(),
)


def app(client_id: str, name: str = "x", kind: str = "Traditional", **more: Any) -> dict[str, Any]:
    addresses = {"redirectUris": more.pop("redirects", []), "postLogoutRedirectUris": []}
    return {"id": client_id, "name": name, "type": kind, "oidcClientMetadata": addresses, "customData": {}, **more}


def test_no_step_says_a_secret() -> None:
    wanted = dataclasses.replace(WANTED, discord=("id1", "discord-secret"))
    connector = {
        "id": "c",
        "connectorId": "discord-universal",
        "config": {"clientId": "id1", "clientSecret": "old-one"},
    }
    for found in (EMPTY, dataclasses.replace(EMPTY, connectors=(connector,))):
        for step in plan(wanted, found):
            assert "discord-secret" not in repr(step)
            assert "old-one" not in repr(step)
    assert "discord-secret" not in repr(wanted)


@pytest.mark.parametrize(
    ("applications", "app_id", "found"),
    [
        ([app("a", redirects=["https://a/cb"])], "", "a"),
        ([app("a", redirects=["https://a/cb"]), app("b")], "b", "b"),
        ([app("a", "Postern")], "", "a"),
        ([app("a", "Postern", redirects=["https://b/cb"])], "", None),
        ([app("a", "Postern", kind="SPA")], "", None),
        ([app("a", kind="SPA", redirects=["https://a/cb"])], "", None),
        ([app("a", redirects=["https://a/cb/"])], "", None),
        ([app("a", kind="MachineToMachine")], "a", None),
        ([], "gone", None),
    ],
)
def test_the_application_is_known_by_what_it_must_be(applications: list[Any], app_id: str, found: str | None) -> None:
    wanted = dataclasses.replace(WANTED, app_id=app_id)
    it = find_application(wanted, applications)
    assert (it["id"] if it else None) == found


OTHER = Client("Postern (b)", "", "https://b/cb", "https://b/out", "https://b/bcl")
SEVERAL = dataclasses.replace(
    WANTED, others=(OTHER, Client("Postern (c)", "c", "https://c/cb", "https://c/out", "https://c/bcl"))
)


@pytest.mark.parametrize(
    ("applications", "found"),
    [
        ([], [None, None, None]),
        ([app("a", redirects=["https://a/cb"]), app("b", redirects=["https://b/cb"]), app("c")], ["a", "b", "c"]),
        # whatever addresses an application has, it is not two of ours at once
        ([app("a", redirects=["https://a/cb", "https://b/cb"])], ["a", None, None]),
        ([app("c", redirects=["https://a/cb", "https://b/cb"])], [None, None, "c"]),
        ([app("a", redirects=["https://a/cb", "https://b/cb"]), app("b", "Postern (b)")], ["a", "b", None]),
        ([app("b", kind="SPA", redirects=["https://b/cb"])], [None, None, None]),
    ],
)
def test_each_application_by_host_is_one_of_its_own(applications: list[Any], found: list[str | None]) -> None:
    there = find_applications(SEVERAL, dataclasses.replace(EMPTY, applications=applications))
    assert [it["id"] if it is not None else None for it in there] == found


def test_what_is_planned_for_further_applications_and_taken_back() -> None:
    made, by_hand = app("b", "Postern (b)"), app("c", "Shop")
    steps = plan(SEVERAL, dataclasses.replace(EMPTY, applications=[by_hand]))
    assert [(step.action, step.what) for step in steps[:3]] == [
        ("create", "application Postern"),
        ("create", "application Postern (b)"),
        ("change", "application Shop"),
    ]
    assert steps[1].body["oidcClientMetadata"] == {
        "redirectUris": ["https://b/cb"],
        "postLogoutRedirectUris": ["https://b/out"],
        "backchannelLogoutUri": "https://b/bcl",
        "backchannelLogoutSessionRequired": True,
    }
    made |= {name: steps[1].body[name] for name in ("customData", "oidcClientMetadata", "customClientMetadata")}
    by_hand |= {name: steps[2].body[name] for name in ("oidcClientMetadata", "customClientMetadata")}
    there = dataclasses.replace(EMPTY, applications=[made, by_hand])
    assert [step.action for step in plan(SEVERAL, there)[1:3]] == ["keep", "keep"]
    assert [(step.action, step.what) for step in plan_removal(SEVERAL, there)] == [
        ("delete", "application Postern (b)")
    ]
    steps = plan(SEVERAL, dataclasses.replace(there, applications=[app("b", "Postern (b)"), by_hand]))
    assert all(step.action != "create" for step in steps[1:3])


def test_a_logto_without_the_role_is_set_up_without_an_application_for_later() -> None:
    steps = plan(WANTED, dataclasses.replace(EMPTY, roles=()))
    assert [step.what for step in steps if "setup" in step.what] == []


def test_a_foreign_mark_is_none() -> None:
    for data in ({"postern": "text"}, {"postern": None}, {}, None):
        assert mark_of(app("a", customData=data)) == {}
    assert mark_of(None) == {}
    machine = app("m", kind="MachineToMachine", customData={"postern": {"for": "https://another/cb"}})
    steps = plan_removal(WANTED, dataclasses.replace(EMPTY, applications=(machine,)))
    assert steps == ()


def test_discord_only_is_kept_back_until_there_is_discord() -> None:
    experience = {"signIn": {"methods": [{"identifier": "username"}]}, "signUp": {"identifiers": ["username"]}}
    wanted, found = dataclasses.replace(WANTED, discord_only=True), dataclasses.replace(EMPTY, experience=experience)
    bodies = [step.body for step in plan(wanted, found) if step.path == "sign-in-exp"]
    assert bodies == [{"unknownSessionRedirectUrl": "https://a/"}]
    connector = {"id": "c", "connectorId": "discord-universal", "config": {}}
    found = dataclasses.replace(found, connectors=(connector,))
    (body,) = [step.body for step in plan(wanted, found) if step.path == "sign-in-exp"]
    assert (body["signIn"]["methods"], body["socialSignInConnectorTargets"]) == ([], ["discord"])


texts = st.text(max_size=5)
uris = st.lists(st.sampled_from(["https://a/cb", "https://b/cb", "https://a/out"]), max_size=3, unique=True)
metadata = st.dictionaries(texts, st.one_of(texts, st.integers(), st.lists(texts, max_size=2)), max_size=4)


@given(redirects=uris, addresses=metadata, tokens=metadata, data=metadata, note=st.booleans())
def test_nothing_of_an_application_is_lost(redirects: Any, addresses: Any, tokens: Any, data: Any, note: bool) -> None:
    addresses = {**addresses, "redirectUris": ["https://a/cb", *redirects], "postLogoutRedirectUris": []}
    application = app("a", oidcClientMetadata=addresses, customClientMetadata=tokens, customData=data)
    wanted = dataclasses.replace(WANTED, roles=("ops",) if note else ())
    step = plan(wanted, dataclasses.replace(EMPTY, applications=(application,)))[0]
    body = step.body
    for key, value in addresses.items():
        if isinstance(value, list) and key in ("redirectUris", "postLogoutRedirectUris"):
            assert body["oidcClientMetadata"][key][: len(value)] == value
        else:
            assert body["oidcClientMetadata"][key] == value
    assert tokens.items() <= body["customClientMetadata"].items()
    if note:
        assert {key: it for key, it in data.items() if key != "postern"}.items() <= body["customData"].items()
        assert body["customData"]["postern"]["made"] == ["roles:ops"]
    else:
        assert "customData" not in body
