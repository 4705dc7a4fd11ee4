"""Who somebody is: Logto's claims (ID token merged with userinfo) turned into one value the gate can judge.

Everything here is read leniently and trusted narrowly. Logto sends `null` for absent values, milliseconds for
`created_at`, and in `identities.discord.details` a snapshot from the day the account was linked, of which only
`userId` can be trusted. An e-mail address counts only when it is verified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

# How Logto's ids look: of users, of applications.
_LIKE_AN_ID: Final = re.compile(r"[a-z0-9]{12}|[a-z0-9]{21}")


@dataclass(frozen=True, slots=True)
class Identity:
    """A signed-in person as policy and headers see them. Absent values are None or empty, never made up."""

    sub: str
    username: str | None = None
    name: str | None = None
    email: str | None = None  # verified, or None
    picture: str | None = None
    roles: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()
    organization_roles: tuple[str, ...] = ()  # "org:role"
    discord_id: str | None = None
    discord_username: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    guild_groups: tuple[str, ...] = ()  # names that the settings give to roles in Discord guilds; nothing Logto says
    client: str | None = None  # the application at Logto that an access token was issued to; only programs have one
    scopes: tuple[str, ...] = ()  # what that token is good for

    @property
    def groups(self) -> tuple[str, ...]:
        """Roles, then organization roles, then those of Discord guilds: what X-Forwarded-Groups carries."""
        return self.roles + self.organization_roles + self.guild_groups

    def within(self, organization: str) -> Identity:
        """The same person, as an app of `organization` (its id) is told: nothing of the other organizations.

        Roles keep the organization's id in front: `admin` of one organization must not be taken for `admin` of everything.
        """
        return replace(
            self,
            organizations=tuple(one for one in self.organizations if one == organization),
            organization_roles=tuple(role for role in self.organization_roles if role.startswith(organization + ":")),
        )

    @property
    def is_program(self) -> bool:
        """Whether this is who an access token speaks of: known only by what stands in it, whatever else may be true."""
        return self.client is not None

    @property
    def login(self) -> str:
        """The name that apps are to know this person by: the username, else the id.

        A username that looks like an id could be somebody's who has no username, and its owner would be that person to the app.
        So could one with capital letters: Logto tells `Ada` from `ada` unless it is told otherwise, and many apps do not.
        """
        name = self.username
        return name if name and name == name.casefold() and not _LIKE_AN_ID.fullmatch(name) else self.sub

    @property
    def display(self) -> str:
        """The best name a page can greet this person with."""
        return self.name or self.username or self.email or self.sub


@dataclass(frozen=True, slots=True)
class Audience:
    """What an access token is for: an API resource, an organization, or an API resource within an organization."""

    resource: str | None = None  # its indicator, a URI (RFC 8707)
    organization: str | None = None  # its id at Logto

    @property
    def claim(self) -> str:
        """The `aud` that Logto writes into such a token."""
        return self.resource or f"urn:logto:organization:{self.organization}"

    def __str__(self) -> str:
        if self.resource is None or self.organization is None:
            return self.claim
        return f"{self.resource} within organization {self.organization}"


@dataclass(frozen=True, slots=True)
class ApiToken:
    """An access token for one audience; with an empty `value`, Logto's word that there is none. Times are epoch seconds."""

    value: str = field(repr=False)
    renew_at: float  # from then on it is asked for anew; nobody waits for it
    until: float  # it is handed out no longer, and who needs it waits


@dataclass(frozen=True, slots=True)
class Tokens:
    """What Logto issued for one sign-in, as of its last refresh. The repr shows none of it."""

    id_token: str = field(repr=False)
    access_token: str = field(repr=False)  # opaque, for Logto's userinfo
    access_expires_at: float = field(repr=False)  # epoch seconds
    refresh_token: str | None = field(default=None, repr=False)
    for_apis: Mapping[Audience, ApiToken] = field(default_factory=dict, repr=False, hash=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """The outcome of a sign-in or a refresh: who, and with which tokens. Sessions are made of it."""

    identity: Identity
    tokens: Tokens
    sid: str | None  # Logto's session id; only in ID tokens of applications with back-channel logout
    signed_in_at: float  # epoch seconds; of the sign-in, not of the refresh
    application: str = ""  # the id of the application at Logto that the person signed in to


def identity_from_claims(claims: Mapping[str, Any]) -> Identity:
    """Read `claims` (an ID token's, updated with userinfo's) into an Identity.

    Raises ValueError when `sub` is missing or not a non-empty string: without it there is nobody.
    """
    sub = claims.get("sub")
    if not isinstance(sub, str) or not sub:
        raise ValueError("claims carry no sub")
    discord = _mapping(_mapping(claims.get("identities")).get("discord"))
    details = _mapping(discord.get("details"))
    raw = _mapping(details.get("rawData"))
    return Identity(
        sub=sub,
        username=_text(claims.get("username")) or _text(claims.get("preferred_username")),
        name=_text(claims.get("name")),
        email=_text(claims.get("email")) if claims.get("email_verified") is True else None,
        picture=_text(claims.get("picture")),
        roles=_texts(claims.get("roles")),
        organizations=_texts(claims.get("organizations")),
        organization_roles=_texts(claims.get("organization_roles")),
        discord_id=_text(discord.get("userId")),
        discord_username=_text(raw.get("username")) or _text(details.get("name")),
        claims=dict(claims),
    )


def lookup(claims: Mapping[str, Any], path: str) -> Any:
    """Follow a dotted `path` through nested claims; None when a step is missing. A key that holds dots wins whole."""
    if path in claims:
        return claims[path]
    here: Any = claims
    for step in path.split("."):
        if not isinstance(here, Mapping) or step not in here:
            return None
        here = here[step]
    return here


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
