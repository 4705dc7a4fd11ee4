"""Header values made of a person's identity: `"{name} <{email}>"`, parsed once, rendered per session.

Placeholders: {sub} {username} {login} {name} {email} {roles} {groups} {organizations} {organization_roles} {discord.id}
{discord.username} {claims.PATH} {id_token} {access_token}. `{{` and `}}` are braces. What is absent renders as nothing, and a
value made of absent things alone is no value at all: an app must not take an empty header for somebody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from proxy.claims import Identity, lookup

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_CLAIMS: Final = "claims."


class TokenValues(Protocol):
    """What templates need of a session's tokens."""

    @property
    def id_token(self) -> str:
        """The ID token, as Logto issued it."""

    @property
    def access_token(self) -> str:
        """The access token."""


class TemplateError(ValueError):
    """A template that cannot be parsed. The message says what it has, and follows the key it stands at."""


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """What stands between braces: `read` is given the tokens if `token`, else the identity."""

    read: Callable[[Any], str | None]
    token: bool = False


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
ACCEPTED: Final = (
    "text with " + " ".join(f"{{{name}}}" for name in (*_PLACEHOLDERS, "claims.PATH")) + "; {{ and }} for braces"
)

# Logto hands these out whether or not the person has proved to own them; `{email}` is there only when they have.
UNVERIFIED_CLAIMS: Final = frozenset({"email", "phone_number"})


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed header value; two are equal when their sources are. `needs_tokens`: it holds {id_token} or {access_token}."""

    source: str
    needs_tokens: bool = field(compare=False, repr=False)
    _parts: tuple[str | _Placeholder, ...] = field(compare=False, repr=False)

    @classmethod
    def parse(cls, source: str) -> Template:
        """The template that `source` writes. Raises TemplateError, naming the placeholder that is not known."""
        parts = tuple(_part(match[0], match[1]) for match in _PIECE.finditer(source))
        return cls(source, any(isinstance(part, _Placeholder) and part.token for part in parts), parts)

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


def _part(text: str, placeholder: str | None) -> str | _Placeholder:
    if placeholder is None:
        if text in ("{", "}"):
            raise TemplateError(f'has a lone "{text}"')
        return text[0] if text in ("{{", "}}") else text
    if placeholder in _PLACEHOLDERS:
        return _PLACEHOLDERS[placeholder]
    path = placeholder.removeprefix(_CLAIMS)
    if path == placeholder or not path:
        raise TemplateError(f"has an unknown placeholder {{{placeholder}}}")
    if path in UNVERIFIED_CLAIMS:
        raise TemplateError(f"has {{{placeholder}}}, which nobody may have verified")
    return _Placeholder(lambda identity: _claim(lookup(identity.claims, path)))


def _claim(value: Any) -> str | None:
    """A claim as text: strings as they are, lists joined, what else JSON has as JSON (`true`, `5`, `{"a":1}`)."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return _joined(text for item in value if (text := _claim(item)))
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
