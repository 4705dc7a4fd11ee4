"""The sections of the settings, less those of a route: one frozen model each.

What every key means is written at the key and nowhere else.

Keys that are added here appear by themselves in the file, the environment, the messages, the JSON Schema and the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from proxy.addresses import ENDPOINT, LISTEN, PUBLIC_URL, ROUTE_HOST, Listen
from proxy.notation import (
    DOMAIN,
    DURATION,
    FLAG,
    PAUSE,
    STORE,
    Notation,
    NotationError,
    choice,
    count,
    mistake,
    optional,
    pattern,
    quoted,
    secret,
    size,
    string,
)

Seconds = Annotated[float, DURATION]

HTTP_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 5.6.2  # noqa: S105 -- a grammar's token
_FILE: Final = Notation(
    lambda value: Path(string(value)),
    "the path of a PEM file; cert and key are given together or not at all",
    {"type": "string"},
)
_APP_ID: Final = pattern(r"[\x21-\x7e]+", "an application's id", "the application's id from Logto's console")
_APP_SECRET: Final = secret(1, "the application's secret from Logto's console")
_WEBHOOK_KEY: Final = optional(secret(16, "the signing key that Logto shows for the webhook"))
_CONNECTOR: Final = optional(
    pattern(
        r"[A-Za-z0-9][A-Za-z0-9_.-]*", "a connector", 'the target of a social connector in Logto, such as "discord"'
    )
)
_SSO: Final = optional(
    pattern(r"[A-Za-z0-9_-]{1,64}", "an SSO connector", "the id of an enterprise SSO connector in Logto")
)
# RFC 6749 3.3; RFC 8707 2: a resource is an absolute URI without fragment.
_SCOPE: Final = pattern(r"[\x21\x23-\x5b\x5d-\x7e]+", "a scope", 'a scope such as "email", without spaces')
_RESOURCE: Final = pattern(
    r"[A-Za-z][A-Za-z0-9+.-]*:[\x21\x24-\x5b\x5d-\x7e]+",
    "an API resource",
    "an API resource's indicator, an absolute URI without fragment",
)
_COOKIE_NAME: Final = pattern(
    rf"(?!__(?:[Hh][Oo][Ss][Tt]|[Ss][Ee][Cc][Uu][Rr][Ee])-){HTTP_TOKEN}",
    "a cookie's name",
    "letters, digits and -_ without __Host- or __Secure-, which are added where they can be",
)


def written(default: Any, description: str) -> Any:
    """A field whose default is given as one would write it in the file: `12h`, not 43200.0."""
    return Field(default=default, description=description)


class Section(BaseModel):
    """A table of the settings: frozen, no unknown key, and no value in any error (it may be a secret)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


class Tls(Section):
    """The certificate to speak TLS with."""

    cert: Annotated[Path, _FILE] = Field(description="Certificate chain, PEM.")
    key: Annotated[Path, _FILE] = Field(description="Its private key, PEM.")


def _without_dot(value: Any) -> Any:
    return value.removeprefix(".") if isinstance(value, str) else value  # RFC 6265 5.2.3


_CookieDomain = Annotated[str, optional(DOMAIN, ""), BeforeValidator(_without_dot)]


class ApplicationSettings(Section):
    """Another application at the same Logto, with hosts of its own."""

    hosts: tuple[Annotated[str, ROUTE_HOST], ...] = Field(
        min_length=1,
        description='Hosts whose people sign in to this application: exact, or `"*.example.com"`. A session made there opens '
        "no other host.",
    )
    public_url: Annotated[str, optional(PUBLIC_URL, "")] = written(
        "",
        "Where its sign-ins come back to, on one of `hosts`. Default: `public_url` with the first host that is exact.",
    )
    cookie_domain: _CookieDomain = written(
        "", "As `session.cookie.domain`, for its hosts. Default: the host of its `public_url` alone."
    )
    app_id: Annotated[str, _APP_ID] = Field(description="The application's id.")
    app_secret: Annotated[SecretStr, _APP_SECRET] = Field(description="The application's secret.")


class LogtoSettings(Section):
    """Where Logto is, and which of its applications the gateway is."""

    endpoint: Annotated[str, ENDPOINT] = Field(description="Logto as browsers see it; its issuer is this with `/oidc`.")
    internal_endpoint: Annotated[str, optional(ENDPOINT, "")] = written(
        "", "Logto as this server reaches it. Default: `endpoint`."
    )
    app_id: Annotated[str, _APP_ID] = Field(description='The application\'s id; its type is "Traditional web".')
    app_secret: Annotated[SecretStr, _APP_SECRET] = Field(description="The application's secret.")
    connector: Annotated[str | None, _CONNECTOR] = written(
        None, "Go straight to this social connector instead of Logto's own page."
    )
    sso: Annotated[str | None, _SSO] = written(None, "Go straight to this enterprise SSO connector, instead.")
    scopes: tuple[Annotated[str, _SCOPE], ...] = written(
        ("email", "identities", "roles"), "Scopes beyond `openid profile`."
    )
    refresh: Annotated[Literal["session", "offline"], choice("session", "offline")] = written(
        "session",
        "What a refresh token lives by: the session at Logto, so that each renewal asks whether that goes on (needs the "
        "application's setting to always issue one), or `offline`, until it expires.",
    )
    recheck: Seconds = written(
        "5m",
        "How often Logto is asked anew about somebody whose session is in use: still signed in, with which roles. Nobody waits "
        "for it.",
    )
    sign_out: Annotated[Literal["everywhere", "here"], choice("everywhere", "here")] = written(
        "everywhere",
        "What a sign-out ends: the session here and the one at Logto, or the one `here` alone, after which Logto still knows "
        "the person. The sign-out page offers the other one too.",
    )
    resources: tuple[Annotated[str, _RESOURCE], ...] = written(
        (), "API resources to ask access for at sign-in, beside those that header templates name."
    )
    timeout: Seconds = written("10s", "How long one request to Logto may take.")
    webhook_key: Annotated[SecretStr | None, _WEBHOOK_KEY] = written(
        None, "Signing key of Logto's webhook to `/hooks/logto` below `prefix`. Default: none, and no webhook is taken."
    )
    application: tuple[ApplicationSettings, ...] = written((), "Further applications, by host.")

    @field_validator("internal_endpoint")
    @classmethod
    def _as_browsers_do(cls, value: str, info: ValidationInfo) -> str:
        return value or str(info.data.get("endpoint", ""))

    @field_validator("sso")
    @classmethod
    def _one_way_straight_on(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("connector"):
            raise mistake("is given, and so is logto.connector", "one of the two")
        return value

    @property
    def issuer(self) -> str:
        """The `iss` of everything Logto signs, and in its callbacks."""
        return self.endpoint + "/oidc"


SNOWFLAKE: Final = pattern(r"[0-9]{15,20}", "a Discord id", "a Discord id: 15 to 20 digits, in quotes")
_GROUP: Final = pattern(
    r"[^\s,\x00-\x1f\x7f](?:[^,\x00-\x1f\x7f]*[^\s,\x00-\x1f\x7f])?", "a group", "a group's name, without a comma"
)


class DiscordSettings(Section):
    """Discord, asked for who is in a guild."""

    bot_token: Annotated[SecretStr, secret(20, "the token of a bot that is in the guilds")] = Field(
        description="Token of a bot that is a member of every guild that rules name. It needs no permission there."
    )
    api: Annotated[str, pattern(r"https?://[^\s?#]*[^\s?#/]", "a URL", "the URL of Discord's API")] = written(
        "https://discord.com/api/v10", "Discord's API."
    )
    ttl: Seconds = written("60s", "How long an answer of Discord's counts: a role that is taken away is gone by then.")
    grace: Seconds = written("15m", "How much longer the last answer counts while Discord cannot be asked.")
    groups: Mapping[Annotated[str, SNOWFLAKE], Annotated[str, _GROUP]] = written(
        {}, "Names of roles, by id: the groups that apps are told of on routes whose rules name the guild."
    )


class CookieSettings(Section):
    """The session cookie."""

    name: Annotated[str, _COOKIE_NAME] = written("postern", "Its name, less the `__Host-` prefix.")
    domain: _CookieDomain = written(
        "", "Share the session with every host below this domain. Default: the host of `public_url` alone."
    )
    same_site: Annotated[Literal["lax", "strict", "none"], choice("lax", "strict", "none")] = written(
        "lax", "When browsers send it along from other sites."
    )


class SessionSettings(Section):
    """How long people stay signed in, and where that is kept."""

    store: Annotated[str, STORE] = written(
        "memory://", "Where sessions are: in this process (`memory://`) or in Redis, see [sessions](sessions.md)."
    )
    idle: Seconds = written("12h", "A session ends after this long without a request.")
    lifetime: Seconds = written("7d", "A session ends this long after the sign-in, whatever happens.")
    cookie: CookieSettings = written({}, "The session cookie.")
    renewal_grace: Annotated[float, PAUSE] = written(
        "1h", "How long a session goes on when its tokens are due to be renewed and Logto fails to; then it ends."
    )
    outage_grace: Annotated[float, PAUSE] = written(
        "0", "How long a worker lets people in by what it knows while the store is unreachable."
    )
    connect_timeout: Seconds = written("1s", "How long connecting to Redis may take.")
    command_timeout: Seconds = written("2s", "How long an answer of Redis may take.")
    connections: Annotated[int, count(1, 10_000)] = written(64, "Connections to each Redis server, in each worker.")
    retries: Annotated[int, count(0, 10)] = written(
        1, "How often a question is put again, on a new connection, when the old one turns out dead."
    )
    cache_entries: Annotated[int, count(0, 10_000_000)] = written(
        50_000, "Sessions from Redis that each worker keeps at hand; 0: none, every request asks Redis."
    )
    cache_bytes: Annotated[int, size(0, 1 << 40)] = written("256MiB", "Memory they may take, roughly, in each worker.")

    @field_validator("lifetime")
    @classmethod
    def _no_shorter_than_idle(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("idle", 0.0):
            raise mistake("is shorter than session.idle", "a duration of at least session.idle")
        return value


class AppPasswordSettings(Section):
    """What people make for programs of theirs, on routes that take such."""

    lifetime: Seconds = written("365d", "Longest time until one expires.")
    sign_in_within: Seconds = written(
        "30d",
        "How long one goes on without its owner: since a sign-in of theirs, or a recheck of a session in use. Then it waits "
        "until they have signed in again.",
    )
    fresh: Seconds = written(
        "1h",
        "How long after a sign-in one can be made; later people sign in again first: a stolen cookie is not enough.",
    )
    per_user: Annotated[int, count(1, 1000)] = written(20, "How many anybody may have.")

    @field_validator("lifetime")
    @classmethod
    def _a_day_or_more(cls, value: float) -> float:
        if value < 86400:
            raise mistake("is shorter than a day", "a duration of at least 1d")
        return value


class IdentitySettings(Section):
    """How the apps behind learn who is there."""

    families: tuple[
        Annotated[Literal["forwarded", "remote", "auth-request"], choice("forwarded", "remote", "auth-request")], ...
    ] = written(
        ("forwarded",),
        "Header families: `forwarded` (X-Forwarded-User, …), `remote` (Remote-User, …), `auth-request` "
        "(X-Auth-Request-User, …).",
    )
    encoding: Annotated[Literal["utf-8", "percent", "rfc2047"], choice("utf-8", "percent", "rfc2047")] = written(
        "utf-8",
        "How values outside ASCII are written: as they are, percent-encoded (RFC 3986), or as encoded words (RFC 2047).",
    )
    assertion: Annotated[bool, FLAG] = written(
        True, "Also tell them in a signed token, `X-Postern-Assertion`, checked against `/jwks.json`."
    )
    assertion_lifetime: Seconds = written(
        "5m", "How long one such token is valid; a fresh one is sent at half of that."
    )


class LimitSettings(Section):
    """How much of anything a client or an app may take."""

    head_bytes: Annotated[int, size(1024, 1 << 20)] = written("64KiB", "The head of a request.")
    header_count: Annotated[int, count(10, 2000)] = written(200, "Header fields in a request.")
    uri_bytes: Annotated[int, size(256, 1 << 20)] = written("16KiB", "The target of a request.")
    body_bytes: Annotated[int, size(0, 1 << 50)] = written(0, "The body of a request; 0: no limit.")
    head_timeout: Seconds = written("15s", "How long the head of a request may take to arrive.")
    body_timeout: Seconds = written("60s", "How long a request's body may make no progress.")
    send_timeout: Seconds = written("60s", "How long a client may take nothing of what it is sent.")
    keep_alive: Seconds = written("75s", "How long an idle connection of a client is kept.")
    connect_timeout: Seconds = written("5s", "How long connecting to an app may take.")
    first_byte_timeout: Seconds = written("60s", "How long an app may take to begin its answer.")
    idle_timeout: Seconds = written("15m", "How long a running exchange may carry no byte in either direction.")
    tunnel_idle_timeout: Seconds = written("1h", "The same for WebSockets and other tunnels.")
    max_connections: Annotated[int, count(1, 1_000_000)] = written(
        10_000, "Connections of clients at once, in each worker."
    )
    max_connections_per_client: Annotated[int, count(0, 1_000_000)] = written(
        1000, "The same for each address, an IPv6 /64 counting as one; trusted proxies are exempt. 0: any number."
    )

    @field_validator("uri_bytes")
    @classmethod
    def _within_head(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("head_bytes", value):
            raise mistake("is larger than limits.head_bytes", "a size up to limits.head_bytes")
        return value


class DrainSettings(Section):
    """How the gateway stops."""

    delay: Annotated[float, PAUSE] = written(
        "0s", "How long it still takes new connections when told to stop, answering `/readyz` with 503 meanwhile."
    )
    timeout: Seconds = written("30s", "How long requests under way may then take to finish.")


class MetricsSettings(Section):
    """Numbers about what the gateway does, for Prometheus."""

    listen: Annotated[Listen | None, optional(LISTEN)] = written(
        None, "Where to serve them, never to the public: such as `127.0.0.1:9464`. Default: nowhere."
    )


class TracingSettings(Section):
    """OpenTelemetry spans."""

    enabled: Annotated[bool, FLAG] = written(
        False,
        "One span for each relayed request. Needs `postern[otel]`; the SDK's own `OTEL_` variables say where they go.",
    )


def _read_access_log(value: object) -> str:
    text = string(value)
    if text.lower() in ("stdout", "stderr", "off"):
        return text.lower()
    if not text.startswith("/") or text.endswith("/"):
        raise NotationError(f"{quoted(text)} is neither a known place nor an absolute path")
    return text


_ACCESS_LOG: Final = Notation(
    _read_access_log,
    '"stdout", "stderr", "off", or the absolute path of a file',
    {"type": "string", "pattern": "^(?:stdout|stderr|off|/.*[^/])$"},
)


class LogSettings(Section):
    """The log, on standard error, and the access log, one line for each request."""

    format: Annotated[Literal["auto", "json", "console"], choice("auto", "json", "console")] = written(
        "auto", "`json`, `console`, or by whether a terminal reads it."
    )
    level: Annotated[Literal["debug", "info", "warning", "error"], choice("debug", "info", "warning", "error")] = (
        written("info", "The least important line that is written.")
    )
    access: Annotated[str, _ACCESS_LOG] = written(
        "stdout", "Where the line of each request goes: `stdout`, `stderr`, `off`, or a file's absolute path."
    )
