"""The ready people of the stand-in Logto, and the claims a Logto makes of them.

Shapes, nulls, order and millisecond times are the recorded ones: `username`, `picture` and `email` are null when there
is none, `preferred_username` is then absent, and `email_verified` is false.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .config import ACME, Organization

_AVATAR = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="8" fill="#5865f2"/>'
    '<circle cx="4" cy="3" r="1.5" fill="#fff"/><path d="M1 8a3 3 0 0 1 6 0" fill="#fff"/></svg>'
)

# Claims that the ID token carries only when the configuration says so; userinfo always does.
EXTENDED_CLAIMS = frozenset(
    {
        "custom_data",
        "identities",
        "sso_identities",
        "roles",
        "organizations",
        "organization_data",
        "organization_roles",
    }
)

_SCOPE_CLAIMS: Mapping[str, tuple[str, ...]] = {
    "profile": ("name", "preferred_username", "picture", "updated_at", "username", "created_at"),
    "email": ("email", "email_verified"),
    "phone": ("phone_number", "phone_number_verified"),
    "identities": ("identities", "sso_identities"),
    "roles": ("roles",),
    "custom_data": ("custom_data",),
    "urn:logto:scope:organizations": ("organizations", "organization_data"),
    "urn:logto:scope:organization_roles": ("organization_roles",),
}


@dataclass(slots=True)
class Person:
    """Somebody with a Discord account, and what Logto keeps of them. `registered` is false until a first sign-in."""

    sub: str
    name: str | None
    username: str | None
    email: str | None
    discord_id: str
    discord_username: str
    discord_name: str
    about: str = ""
    picture: str | None = None
    roles: tuple[str, ...] = ()
    organization_roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # organization id -> roles there
    custom_data: Mapping[str, Any] = field(default_factory=dict)
    linked: bool = True  # the Discord identity is still linked
    discord_details: Mapping[str, Any] | None = None  # the snapshot to show; None: as a first sign-in would take it
    registered: bool = True
    suspended: bool = False
    deleted: bool = False
    created_at: int = 1_735_689_600_000  # milliseconds, as Logto counts
    updated_at: int = 1_735_689_600_000

    def identities(self) -> dict[str, Any]:
        """`identities` as recorded: details are a snapshot from the day of linking, with Discord's own answer inside."""
        if not self.linked:
            return {}
        if self.discord_details is not None:
            return {"discord": {"userId": self.discord_id, "details": dict(self.discord_details)}}
        details: dict[str, Any] = {"id": self.discord_id, "name": self.discord_username}
        if self.email is not None:
            details["email"] = self.email
        details["rawData"] = self.discord_answer()
        return {"discord": {"userId": self.discord_id, "details": details}}

    def discord_answer(self) -> dict[str, Any]:
        """What Discord's users/@me says about this account."""
        return {
            "id": self.discord_id,
            "email": self.email,
            "flags": 0,
            "avatar": None,
            "banner": None,
            "locale": "en-US",
            "username": self.discord_username,
            "verified": self.email is not None,
            "global_name": self.discord_name,
            "mfa_enabled": False,
            "accent_color": None,
            "premium_type": 0,
            "public_flags": 0,
            "discriminator": "0",
        }

    def claims(self, scopes: Iterable[str], organizations: Iterable[Organization]) -> dict[str, Any]:
        """Every claim that `scopes` give right to, `sub` first, in the recorded order."""
        known = self._all_claims(organizations)
        wanted: dict[str, Any] = {"sub": self.sub}
        granted = set(scopes)
        for scope, names in _SCOPE_CLAIMS.items():
            if scope in granted:
                wanted.update((name, known[name]) for name in names if name in known)
        return wanted

    def _all_claims(self, organizations: Iterable[Organization]) -> dict[str, Any]:
        mine = [organization for organization in organizations if organization.id in self.organization_roles]
        claims: dict[str, Any] = {"name": self.name}
        if self.username is not None:
            claims["preferred_username"] = self.username
        return claims | {
            "picture": self.picture,
            "updated_at": self.updated_at,
            "username": self.username,
            "created_at": self.created_at,
            "email": self.email,
            "email_verified": self.email is not None,
            "phone_number": None,
            "phone_number_verified": False,
            "identities": self.identities(),
            "sso_identities": [],
            "roles": list(self.roles),
            "custom_data": dict(self.custom_data),
            "organizations": [organization.id for organization in mine],
            "organization_data": [
                {"id": organization.id, "name": organization.name, "description": organization.description}
                for organization in mine
            ],
            "organization_roles": [
                f"{organization.id}:{role}"
                for organization in mine
                for role in self.organization_roles[organization.id]
            ],
        }


def ready_people() -> dict[str, Person]:
    """The people every stand-in starts with, by `sub`; a fresh, changeable copy at each call."""
    return {person.sub: replace(person) for person in _READY}


_READY = (
    Person(
        sub="ada000000001",
        name="Ada",
        username="ada",
        email="ada@example.test",
        discord_id="100000000000000001",
        discord_username="ada",
        discord_name="Ada the admin",
        about="role admin, administers the organization Acme",
        picture="data:image/svg+xml;base64," + base64.b64encode(_AVATAR.encode()).decode(),
        roles=("admin",),
        organization_roles={ACME.id: ("org-admin",)},
        custom_data={"plan": "pro"},
    ),
    Person(
        sub="max000000002",
        name="Max",
        username="max",
        email="max@example.test",
        discord_id="100000000000000002",
        discord_username="max",
        discord_name="Max the member",
        about="role member, in the organization Acme",
        roles=("member",),
        organization_roles={ACME.id: ("org-member",)},
    ),
    Person(
        sub="noe000000003",
        name="Noe",
        username=None,
        email=None,
        discord_id="100000000000000003",
        discord_username="noe",
        discord_name="Noe without e-mail",
        about="no verified e-mail, no username, no role",
    ),
    Person(
        sub="han000000004",
        name="汉字 é 😀",
        username="hanzi",
        email="hanzi@example.test",
        discord_id="100000000000000004",
        discord_username="hanzi",
        discord_name="汉字 é 😀",
        about="a name beyond ASCII",
        roles=("member",),
    ),
    Person(
        sub="new000000005",
        name="newcomer",
        username=None,
        email="newcomer@example.test",
        discord_id="100000000000000005",
        discord_username="newcomer",
        discord_name="Newcomer",
        about="not registered yet: the first sign-in creates the account",
        registered=False,
    ),
)
