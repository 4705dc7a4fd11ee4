"""The ready people and their claims."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from proxy.claims import identity_from_claims
from proxy.sandbox.config import ACME
from proxy.sandbox.people import ready_people

ALL = (
    *("profile", "email", "phone", "identities", "roles", "custom_data"),
    *("urn:logto:scope:organizations", "urn:logto:scope:organization_roles"),
)


def test_ids_are_stable_and_look_like_logtos_and_discords() -> None:
    people = ready_people()
    assert list(people) == ["ada000000001", "max000000002", "noe000000003", "han000000004", "new000000005"]
    for sub, person in people.items():
        assert re.fullmatch(r"[a-z0-9]{12}", sub)
        assert re.fullmatch(r"[0-9]{18}", person.discord_id)
        assert urlsplit(person.picture or "").scheme in ("", "data")


def test_each_call_gives_people_that_can_be_changed_alone() -> None:
    one, other = ready_people(), ready_people()
    one["ada000000001"].name = "changed"
    assert other["ada000000001"].name == "Ada"


def test_scopes_decide() -> None:
    ada = ready_people()["ada000000001"]
    assert ada.claims([], [ACME]) == {"sub": "ada000000001"}
    assert set(ada.claims(["openid", "email"], [ACME])) == {"sub", "email", "email_verified"}
    everything = ada.claims(ALL, [ACME])
    assert everything["organization_roles"] == ["acme00000001:org-admin"]
    assert everything["organization_data"] == [{"id": ACME.id, "name": "Acme", "description": "Acme Inc"}]
    assert (everything["phone_number"], everything["phone_number_verified"]) == (None, False)
    assert everything["created_at"] > 10**12


def test_the_gateway_reads_them_as_people() -> None:
    people = ready_people()
    ada = identity_from_claims(people["ada000000001"].claims(ALL, [ACME]))
    assert (ada.username, ada.email, ada.roles, ada.organizations) == (
        "ada",
        "ada@example.test",
        ("admin",),
        (ACME.id,),
    )
    assert (ada.discord_id, ada.discord_username) == ("100000000000000001", "ada")
    noe = identity_from_claims(people["noe000000003"].claims(ALL, [ACME]))
    assert (noe.email, noe.username, noe.groups) == (None, None, ())
    assert identity_from_claims(people["han000000004"].claims(ALL, [ACME])).display == "汉字 é 😀"


def test_an_unlinked_account_has_no_identity() -> None:
    ada = ready_people()["ada000000001"]
    ada.linked = False
    assert ada.claims(["identities"], [])["identities"] == {}
