"""Header values made of a person's identity: `"{name} <{email}>"`, parsed once, rendered per session.

Placeholders: {sub} {username} {login} {name} {email} {roles} {groups} {organizations} {organization_roles} {discord.id}
{discord.username} {claims.PATH} {id_token} {access_token} {access_token:RESOURCE} {organization_token}
{organization_token:ORGANIZATION}. `{{` and `}}` are braces. What is absent renders as nothing, and a value made of absent things
alone is no value at all: an app must not take an empty header for somebody.

For an app of one organization both of the last kinds are that organization's, an API resource within it included: what somebody
may do elsewhere is not handed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from proxy.claims import ApiToken, Audience, Identity, lookup

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_CLAIMS: Final = "claims."
_ACCESS_TOKEN: Final = "access_token:"  # noqa: S105 -- a placeholder
_ORGANIZATION_TOKEN: Final = "organization_token"  # noqa: S105 -- a placeholder
# RFC 8707 2: an absolute URI without fragment.
_RESOURCE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21\x24-\x5b\x5d-\x7e]+")
_ORGANIZATION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TokenValues(Protocol):
    """What templates need of a session's tokens."""

    @property
    def id_token(self) -> str:
        """The ID token, as Logto issued it."""

    @property
    def access_token(self) -> str:
        """The access token."""

    @property
    def for_apis(self) -> Mapping[Audience, ApiToken]:
        """Access tokens for APIs, those that are good now."""


class TemplateError(ValueError):
    """A template that cannot be parsed. The message says what it has, and follows the key it stands at."""


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """What stands between braces: `read` is given the tokens if `token`, else the identity. `audience`: of which one of them."""

    read: Callable[[Any], str | None]
    token: bool = False
    audience: Audience | None = None


def _joined(values: Iterable[str]) -> str | None:
    """`values` with commas between them.

    One with a comma inside is left out: it would arrive as two, and whoever may name one thing could so make up another
    (`a,admin`).
    """
    return ",".join(value for value in values if "," not in value) or None


_PLACEHOLDERS: Final[Mapping[str, _Placeholder]] = {
    "sub": _Placeholder(lambda identity: identity.sub),
    "username": _Placeholder(lambda identity: identity.username),
    "login": _Placeholder(lambda identity: identity.login),
    "name": _Placeholder(lambda identity: identity.name),
    "email": _Placeholder(lambda identity: identity.email),
    "roles": _Placeholder(lambda identity: _joined(identity.roles)),
    "groups": _Placeholder(lambda identity: _joined(identity.groups)),
    "organizations": _Placeholder(lambda identity: _joined(identity.organizations)),
    "organization_roles": _Placeholder(lambda identity: _joined(identity.organization_roles)),
    "discord.id": _Placeholder(lambda identity: identity.discord_id),
    "discord.username": _Placeholder(lambda identity: identity.discord_username),
    "id_token": _Placeholder(lambda tokens: tokens.id_token, token=True),
    "access_token": _Placeholder(lambda tokens: tokens.access_token, token=True),
}
_ASKED_FOR: Final = ("access_token:RESOURCE", "organization_token", "organization_token:ORGANIZATION")
ACCEPTED: Final = (
    "text with "
    + " ".join(f"{{{name}}}" for name in (*_PLACEHOLDERS, *_ASKED_FOR, "claims.PATH"))
    + "; {{ and }} for braces"
)

# Logto hands these out whether or not the person has proved to own them; `{email}` is there only when they have.
UNVERIFIED_CLAIMS: Final = frozenset({"email", "phone_number"})


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed header value; two are equal when their sources, and the organizations they are for, are."""

    source: str
    organization: str | None = field(default=None, repr=False)
    _parts: tuple[str | _Placeholder, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def parse(cls, source: str, organization: str | None = None) -> Template:
        """The template that `source` writes for an app, of one organization if one is named.

        Raises TemplateError, naming the placeholder that is not known.
        """
        parts = tuple(_part(match[0], match[1], organization) for match in _PIECE.finditer(source))
        return cls(source, organization, parts)

    @property
    def needs_tokens(self) -> bool:
        """Whether it holds one of Logto's tokens."""
        return any(isinstance(part, _Placeholder) and part.token for part in self._parts)

    @property
    def wants_organization(self) -> bool:
        """Whether it holds an {organization_token}, and no organization is named."""
        return _NOTHING in self._parts

    @property
    def audiences(self) -> tuple[Audience, ...]:
        """What the access tokens in it are for that have to be asked for."""
        found = (part.audience for part in self._parts if isinstance(part, _Placeholder))
        return tuple(dict.fromkeys(audience for audience in found if audience is not None))

    def render(self, identity: Identity | None, tokens: TokenValues | None) -> str | None:
        """The value for a person (None: nobody is signed in); None when every placeholder is absent.

        May hold the control characters that a claim holds: whoever makes a header of it refuses those.
        """
        out: list[str] = []
        absent = present = 0
        for part in self._parts:
            if isinstance(part, str):
                out.append(part)
                continue
            subject = tokens if part.token else identity
            value = part.read(subject) if subject is not None else None
            if value:
                present += 1
                out.append(value)
            else:
                absent += 1
        return None if absent and not present else "".join(out)


def _part(text: str, placeholder: str | None, organization: str | None) -> str | _Placeholder:
    if placeholder is None:
        if text in ("{", "}"):
            raise TemplateError(f'has a lone "{text}"')
        return text[0] if text in ("{{", "}}") else text
    if placeholder in _PLACEHOLDERS:
        return _PLACEHOLDERS[placeholder]
    if placeholder.startswith((_ACCESS_TOKEN, _ORGANIZATION_TOKEN)):
        return _for_api(placeholder, organization)
    path = placeholder.removeprefix(_CLAIMS)
    if path == placeholder or not path:
        raise TemplateError(f"has an unknown placeholder {{{placeholder}}}")
    if path in UNVERIFIED_CLAIMS:
        raise TemplateError(f"has {{{placeholder}}}, which nobody may have verified")
    return _Placeholder(lambda identity: _claim(lookup(identity.claims, path)))


def _for_api(placeholder: str, organization: str | None) -> _Placeholder:
    """A placeholder for a token that has to be asked for; without an organization there is none of the route's own."""
    if placeholder.startswith(_ACCESS_TOKEN):
        resource = placeholder.removeprefix(_ACCESS_TOKEN)
        if not _RESOURCE.fullmatch(resource):
            raise TemplateError(f"has {{{placeholder}}}, which names no API resource: an absolute URI without fragment")
        return _token_for(Audience(resource, organization))
    name = placeholder.removeprefix(_ORGANIZATION_TOKEN)
    if not name:
        return _token_for(Audience(None, organization)) if organization is not None else _NOTHING
    if not name.startswith(":") or not _ORGANIZATION.fullmatch(name[1:]):
        raise TemplateError(f"has an unknown placeholder {{{placeholder}}}")
    return _token_for(Audience(None, name[1:]))


# An {organization_token} where there is no organization.
_NOTHING: Final = _Placeholder(lambda _: None, token=True)


def _token_for(audience: Audience) -> _Placeholder:
    def read(tokens: TokenValues) -> str | None:
        token = tokens.for_apis.get(audience)
        return token.value if token is not None else None

    return _Placeholder(read, token=True, audience=audience)


def _claim(value: Any) -> str | None:
    """A claim as text: strings as they are, lists joined, what else JSON has as JSON (`true`, `5`, `{"a":1}`)."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return _joined(text for item in value if (text := _claim(item)))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
