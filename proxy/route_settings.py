"""The settings of a route: which requests it takes, where they go, who may pass, and what the app is told.

A rule that would quietly match nobody, or everybody, is an error: an empty rule, an empty list, a claim that nobody verified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from proxy.addresses import ROUTE_HOST, UPSTREAM
from proxy.header_settings import HeaderSettings, ResponseSettings
from proxy.notation import (
    DOMAIN,
    DURATION,
    FLAG,
    NETWORK,
    PATH,
    Notation,
    NotationError,
    choice,
    count,
    kind,
    lowered,
    mistake,
    one_or_more,
    optional,
    pattern,
    quoted,
    size,
    string,
)  # fmt: skip
from proxy.presets import PRESETS, filled_in
from proxy.sections import HTTP_TOKEN, SNOWFLAKE, Section, written
from proxy.templating import UNVERIFIED_CLAIMS, Template
from proxy.upstream_settings import PREFIX, HealthSettings, Server, UpstreamTls

Scalar = str | int | float | bool


def _read_open(value: object) -> str:
    text = string(value)
    return PATH.read(text) if text.startswith("/") else text


_NAME: Final = pattern(r"[a-z0-9-]{1,63}", "a route's name", "lower-case letters, digits and hyphens")
_TEXT: Final = Notation(string, "a string", {"type": "string", "minLength": 1})
_SCOPES: Final = pattern(
    r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*",
    "scopes",
    'a scope such as "read:reports", or several with spaces',
)
_AUDIENCE: Final = pattern(
    r"[A-Za-z][A-Za-z0-9+.-]*:[^\s#]+",
    "an API resource",
    'an API resource\'s identifier such as "https://api.example.com"',
)
_PRESET: Final = optional(choice(*PRESETS))
_OPEN: Final = Notation(_read_open, "a path, or a word of the preset's such as health", {"type": "string"})
_COOKIE: Final = pattern(HTTP_TOKEN, "a cookie's name", "a cookie's name such as sessionid")
_METHOD: Final = pattern(HTTP_TOKEN, "a method", "a method such as GET")
_EMAIL: Final = pattern(r"[^@\s]+@[^@\s]+", "an e-mail address", "an e-mail address")
_ORGANIZATION: Final = optional(
    pattern(r"[A-Za-z0-9_-]{1,64}", "an organization's id", "an organization's id from Logto's console")
)
_ORGANIZATION_ROLE: Final = pattern(
    r"[^:\s]+:\S(?:.*\S)?", "an organization's role", '"organization:role", with the organization\'s id'
)

_ORIGIN: Final = lowered(
    pattern(
        r"(?i:[a-z][a-z0-9+.-]*)://[^\s/?#@*]+",
        "an origin",
        'an origin such as "https://app.example.com": scheme and host, a port that is not the usual one, nothing else',
    )
)


def _read_freshness(value: object) -> float:
    seconds: float = DURATION.read(value)
    # Less than coming back from a sign-in may take would ask for the next one at once.
    if seconds < 60:
        raise NotationError("is less than a minute")
    return seconds


def _read_claim_path(value: object) -> str:
    text = string(value)
    if text in UNVERIFIED_CLAIMS:
        raise NotationError("may be unverified")
    return text


def _read_claim_values(value: object) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list | tuple):
        if not value:
            raise NotationError("is empty")
        return tuple(_read_scalar(item) for item in value)
    return _read_scalar(value)


def _read_scalar(value: object) -> Scalar:
    if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise NotationError(f"is {kind(value)}")
    return value


_SCALAR: Final = {"type": ["string", "number", "boolean"]}
_CLAIM_PATH: Final = Notation(
    _read_claim_path,
    "the path of a claim, such as team or custom_data.team; for addresses use emails",
    {"type": "string"},
)
_CLAIM_VALUES: Final = Notation(
    _read_claim_values,
    "a string, a number, true or false, or a list of these",
    {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]},
)
_FRESHNESS: Final = Notation(_read_freshness, "a duration of a minute or more, such as 15m", DURATION.schema)


class DiscordRule(Section):
    """Whom of Discord a rule is about."""

    users: tuple[Annotated[str, SNOWFLAKE], ...] | None = Field(
        default=None, min_length=1, description="Discord accounts, by id."
    )
    guild: Annotated[str, SNOWFLAKE] | None = Field(default=None, description="Members of this guild.")
    roles: tuple[Annotated[str, SNOWFLAKE], ...] | None = Field(
        default=None, min_length=1, description="Who has one of these roles in the guild, by id."
    )
    all_roles: tuple[Annotated[str, SNOWFLAKE], ...] | None = Field(
        default=None, min_length=1, description="Who has all of these roles in the guild, by id."
    )
    owner: Annotated[bool, FLAG] | None = Field(default=None, description="`true`: the guild's owner alone.")
    member_for: Annotated[float, DURATION] | None = Field(
        default=None, description="Shortest time since joining the guild."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if all(value is None for _, value in self):
            raise mistake("is empty, which would match everybody", "users or guild")
        about = [name for name, value in self if name not in ("users", "guild") and value is not None]
        if about and self.guild is None:
            raise mistake(f"has {', '.join(about)} without a guild", "guild too")
        if self.owner is False:
            raise mistake("has owner = false, which asks nothing", "owner = true, or no owner")
        if self.guild in (*(self.roles or ()), *(self.all_roles or ())):
            raise mistake("names the guild's own id as a role, which Discord lists for nobody", "other roles, or none")
        return self


class RuleSettings(Section):
    """Who may pass, or may not. Every key given must hold; the values of one key are alternatives."""

    users: tuple[Annotated[str, _TEXT], ...] | None = Field(
        default=None, min_length=1, description="Users, by Logto's id (`sub`)."
    )
    usernames: tuple[Annotated[str, _TEXT], ...] | None = Field(
        default=None, min_length=1, description="Users, by username."
    )
    emails: tuple[Annotated[str, _EMAIL], ...] | None = Field(
        default=None, min_length=1, description="Verified e-mail addresses."
    )
    email_domains: tuple[Annotated[str, DOMAIN], ...] | None = Field(
        default=None, min_length=1, description="Domains of verified e-mail addresses; subdomains are others."
    )
    roles: tuple[Annotated[str, _TEXT], ...] | None = Field(default=None, min_length=1, description="Roles, by name.")
    organizations: tuple[Annotated[str, _TEXT], ...] | None = Field(
        default=None, min_length=1, description="Organizations, by id."
    )
    organization_roles: tuple[Annotated[str, _ORGANIZATION_ROLE], ...] | None = Field(
        default=None, min_length=1, description='Roles in organizations, `"organization:role"`.'
    )
    claims: Mapping[Annotated[str, _CLAIM_PATH], Annotated[Scalar | tuple[Scalar, ...], _CLAIM_VALUES]] | None = Field(
        default=None, min_length=1, description="Claims by dotted path, and the values each may have."
    )
    networks: tuple[Annotated[IPv4Network | IPv6Network, NETWORK], ...] | None = Field(
        default=None,
        min_length=1,
        description="Networks of the client. Alone in a rule of `allow`: no sign-in from there.",
    )
    methods: tuple[Annotated[str, _METHOD], ...] | None = Field(
        default=None, min_length=1, description="Request methods."
    )
    paths: tuple[Annotated[str, PATH], ...] | None = Field(
        default=None, min_length=1, description="Paths as browsers see them, each with everything below."
    )
    discord: DiscordRule | None = Field(default=None, description="The linked Discord account.")
    clients: tuple[Annotated[str, _TEXT], ...] | None = Field(
        default=None, min_length=1, description="Programs, by their application's id in Logto. Holds for no session."
    )
    scopes: tuple[Annotated[str, _SCOPES], ...] | None = Field(
        default=None,
        min_length=1,
        description='Scopes of an access token; `"read write"` asks for both. Holds for no session.',
    )
    signed_in_within: Annotated[float, _FRESHNESS] | None = Field(
        default=None,
        description="Longest time since the person last signed in for real; later they are asked to again. Only in `allow`.",
    )

    @field_validator("methods")
    @classmethod
    def _in_capitals(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(method.upper() for method in value)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if all(value is None for _, value in self):
            raise mistake(
                "is an empty rule, which would match everybody", "at least one of " + ", ".join(type(self).model_fields)
            )
        return self


_Upstream = Annotated[str, UPSTREAM]
_Audience = Annotated[str, _AUDIENCE]


def _meet(one: str, other: str) -> bool:
    """Whether a path is at or below both of these."""
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)


# Tags end up in the location of errors; no key of a file looks like these, so they can be told apart there.
_WORD, _RULES = "<word>", "<rules>"
Allow = Annotated[
    Annotated[Literal["everyone", "signed-in"], choice("everyone", "signed-in", other="a list of rules"), Tag(_WORD)]
    | Annotated[tuple[RuleSettings, ...], Field(min_length=1), Tag(_RULES)],
    Discriminator(lambda value: _WORD if isinstance(value, str) else _RULES),
]


class RouteSettings(Section):
    """One route: the first that fits a request takes it."""

    name: Annotated[str, _NAME] = Field(description="Its name, for logs and for `postern explain`.")
    host: Annotated[str | None, optional(ROUTE_HOST)] = written(
        None, 'Host it answers for: exact, or `"*.example.com"`. Default: any.'
    )
    path: Annotated[str, PATH] = written("/", "Path it answers for, with everything below.")
    upstream: Annotated[
        tuple[_Upstream, ...], BeforeValidator(one_or_more, json_schema_input_type=_Upstream | tuple[_Upstream, ...])
    ] = Field(min_length=1, description="Where the app is: one URL, or several to balance between.")
    allow: Allow = written(
        "signed-in", 'Who may pass: `"everyone"` without sign-in, `"signed-in"`, or a list of rules.'
    )
    deny: tuple[RuleSettings, ...] = written((), "Rules for who may not, whatever `allow` says.")
    organization: Annotated[str | None, _ORGANIZATION] = written(
        None,
        "Organization in Logto whose members alone may pass, of those whom `allow` lets in. The app is told of no other "
        "organization. Default: none.",
    )
    preset: Annotated[str | None, _PRESET] = written(
        None, "The app behind, by name: sets what it wants to be told, and where its own sign-out is. Default: none."
    )
    headers: HeaderSettings = written({}, "Header fields for the app.")
    response: ResponseSettings = written({}, "Header fields of the app's answers.")
    encoding: Annotated[
        Literal["utf-8", "percent", "rfc2047"] | None, optional(choice("utf-8", "percent", "rfc2047"))
    ] = written(None, "How values outside ASCII are written for this app. Default: `identity.encoding`.")
    logout: tuple[Annotated[str, PATH], ...] = written(
        (), "Paths of the app's own sign-out, as browsers see them: whoever goes there is led on to Postern's."
    )
    login_cookies: tuple[Annotated[str, _COOKIE], ...] = written(
        (), "Cookies by which the app itself knows people again: it gets none that was not set in the session at hand."
    )
    open: tuple[Annotated[str, _OPEN], ...] = written(
        (), "What is open to everyone all the same: paths, or the preset's words for some, such as `health`."
    )
    strip_prefix: Annotated[str, PREFIX] = written(
        "", "Beginning of `path` that the app does not get to see; redirects and cookies get it back."
    )
    add_prefix: Annotated[str, PREFIX] = written("", "What the app's paths begin with instead.")
    preserve_host: Annotated[bool, FLAG] = written(
        True, "Pass on the browser's `Host`. `false`: the upstream's own; `X-Forwarded-Host` has the browser's."
    )
    websocket_origins: tuple[Annotated[str, _ORIGIN], ...] = written(
        (), "Origins whose pages may open WebSockets with a session, besides this site's own."
    )
    bearer: Annotated[
        tuple[_Audience, ...], BeforeValidator(one_or_more, json_schema_input_type=_Audience | tuple[_Audience, ...])
    ] = written(
        (),
        "API resources in Logto, by identifier, whose access tokens programs may present as `Authorization: Bearer`. "
        "Default: none.",
    )
    app_passwords: Annotated[bool, FLAG] = written(
        False,
        "Let people make passwords for programs of theirs, on `/passwords` below `prefix`; they come as Basic or Bearer.",
    )
    pass_authorization: Annotated[bool, FLAG] = written(
        False, "Let the app see the credential that a program was let in by."
    )
    body_bytes: Annotated[int | None, optional(size(0, 1 << 50))] = written(
        None, "The body of a request; 0: no limit. Default: `limits.body_bytes`."
    )
    max_connections: Annotated[int, count(0, 1_000_000)] = written(
        0, "Connections to each upstream at once, in each worker; more requests queue. 0: any number."
    )
    tls: UpstreamTls | None = written(None, "TLS towards `https` upstreams. Default: trust in whom the system trusts.")
    health: HealthSettings | None = written(None, "How to ask each upstream whether it is well. Default: not at all.")

    @field_validator("deny")
    @classmethod
    def _keeps_out(cls, value: tuple[RuleSettings, ...]) -> tuple[RuleSettings, ...]:
        """Somebody kept out for having just signed in is hardly what anybody means."""
        if any(rule.signed_in_within is not None for rule in value):
            raise mistake("has a rule with signed_in_within", "signed_in_within in allow only")
        return value

    @field_validator("allow", "deny")
    @classmethod
    def _within_its_path(cls, value: Any, info: ValidationInfo) -> Any:
        route = str(info.data.get("path", "/"))
        for rule in () if isinstance(value, str) else value:
            for path in rule.paths or ():
                if not _meet(path, route):
                    raise mistake(
                        f"names the path {quoted(path)}, where the route is not", f"paths below {quoted(route)}"
                    )
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_its_preset(cls, value: object) -> object:
        return filled_in(value)

    @field_validator("logout", "open")
    @classmethod
    def _below_its_path(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        route = str(info.data.get("path", "/"))
        for path in value:
            if path.startswith("/") and not f"{path}/".startswith(route.rstrip("/") + "/"):
                raise mistake(f"names the path {quoted(path)}, where the route is not", f"paths below {quoted(route)}")
        return value

    @field_validator("open")
    @classmethod
    def _known_words(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        preset = PRESETS.get(info.data.get("preset") or "")
        words = sorted(preset.open) if preset is not None else []
        for word in value:
            if not word.startswith("/") and word not in words:
                raise mistake(f"has {quoted(word)}", "paths" + "".join(f", or {quoted(known)}" for known in words))
        return value

    @field_validator("organization")
    @classmethod
    def _for_somebody(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("allow") == "everyone":
            raise mistake('is given, but allow is "everyone"', "signed-in or rules in allow, or no organization")
        return value

    @field_validator("headers")
    @classmethod
    def _of_its_organization(cls, value: HeaderSettings, info: ValidationInfo) -> HeaderSettings:
        if info.data.get("organization", "") is None:  # "": it could not be read
            for name, source in value.set.items():
                if Template.parse(source).wants_organization:
                    what = f"sets {quoted(name)} to {{organization_token}}, but the route is for no organization"
                    raise mistake(what, "an organization on the route, or {organization_token:ORGANIZATION}")
        return value

    @field_validator("strip_prefix")
    @classmethod
    def _of_its_path(cls, value: str, info: ValidationInfo) -> str:
        path = info.data.get("path")
        if path is not None and not f"{path}/".startswith(f"{value}/"):
            raise mistake(f"{quoted(value)} is not how path begins", "path, or whole segments of its beginning")
        return value

    @field_validator("tls")
    @classmethod
    def _for_https(cls, value: UpstreamTls | None, info: ValidationInfo) -> UpstreamTls | None:
        if value is not None and not any(url.startswith("https:") for url in info.data.get("upstream", ("https:",))):
            raise mistake("is given, but no upstream is https", "an https upstream, or no tls")
        return value

    @property
    def speaks_of_organizations(self) -> bool:
        """Whether who may pass, or what the app is told, depends on organizations."""
        rules = (*(() if isinstance(self.allow, str) else self.allow), *self.deny)
        return (
            self.organization is not None
            or any(rule.organizations is not None or rule.organization_roles is not None for rule in rules)
            or any("{organization" in value for value in self.headers.set.values())
        )

    @property
    def servers(self) -> tuple[Server, ...]:
        """Its upstreams, with what is said about them all."""
        return tuple(Server(url, self.tls, self.health, self.max_connections) for url in self.upstream)
