"""The settings: everything the operator decides, read once, checked as a whole, frozen.

`load` is the way in. It reports every problem of a file and an environment at once, so that nobody has to start a gateway
five times to learn of five mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.addresses import LISTEN, PUBLIC_URL, Listen, default_url, parse_url
from proxy.consistency import contradictions
from proxy.header_settings import CommonHeaders, CommonResponse, HeaderSettings, ResponseSettings
from proxy.notation import NETWORK, PREFIX, choice, count, is_loopback, one_or_more, secret
from proxy.problems import Place, Problem, SettingsError, problems_in
from proxy.reference import json_schema, table
from proxy.route_settings import RouteSettings, RuleSettings
from proxy.sections import (
    ApplicationSettings,
    AppPasswordSettings,
    CookieSettings,
    DiscordSettings,
    DrainSettings,
    IdentitySettings,
    LimitSettings,
    LogSettings,
    LogtoSettings,
    MetricsSettings,
    SessionSettings,
    Tls,
    TracingSettings,
    written,
)  # fmt: skip
from proxy.sources import CONFIG, EnvironmentSource, FileSource
from proxy.templating import Template
from proxy.tree import UPSTREAM

__all__ = [
    "AppPasswordSettings", "ApplicationSettings", "CookieSettings", "DiscordSettings", "DrainSettings", "HeaderSettings",
    "IdentitySettings", "LimitSettings", "Listen", "LogSettings", "LogtoSettings", "MetricsSettings", "Problem",
    "ResponseSettings", "RouteSettings",
    "RuleSettings", "SessionSettings", "Settings", "SettingsError", "Tls", "TracingSettings", "load", "reference", "schema",
]  # fmt: skip

DEFAULT_FILE: Final = Path("config/postern.toml")
_SANDBOX_SECRET: Final = "sandbox-secret-of-no-value-00001"  # noqa: S105 -- opens nothing but the stand-in Logto

_Secret = Annotated[SecretStr, secret(32, "a secret of at least 32 bytes, as `postern secret` prints")]

# Where `Settings()` reads from. Empty outside `load`: no test and no tool picks up a stray variable.
_sources: ContextVar[tuple[PydanticBaseSettingsSource, ...]] = ContextVar("_sources", default=())


def _none_if_blank(value: Any) -> Any:
    blank = isinstance(value, dict) and value.keys() <= {"cert", "key"} and not any(value.values())
    return None if blank else value


_IN_ORGANIZATIONS: Final = "urn:logto:resource:organizations"
_ORGANIZATIONS: Final = ("urn:logto:scope:organizations", "urn:logto:scope:organization_roles")


class Settings(BaseSettings):
    """Settings of the gateway."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
        nested_model_default_partial_update=False,
    )

    public_url: Annotated[str, PUBLIC_URL] = Field(description="The gateway as browsers see it, without a path.")
    listen: Annotated[Listen, LISTEN] = written("127.0.0.1:3000", 'Where to listen: `"host:port"` or `"unix:/path"`.')
    workers: Annotated[int, count(1, 256)] = written(
        1,
        "Processes that share the work, one for each core at most. More than one needs a session store they can share.",
    )
    reload: Annotated[Literal["signal", "watch"], choice("signal", "watch")] = written(
        "signal", "When settings and certificates are read again: on SIGHUP, or as well when their files change."
    )
    tls: Annotated[Tls | None, BeforeValidator(_none_if_blank)] = written(
        None, "Certificate to speak TLS with. Default: none, TLS is the edge's."
    )
    secret: Annotated[
        tuple[_Secret, ...], BeforeValidator(one_or_more, json_schema_input_type=_Secret | tuple[_Secret, ...])
    ] = written(
        (),
        "Secrets that seal sessions and sign-in attempts; the first seals, all open. Default: derived from "
        "`logto.app_secret`.",
    )
    prefix: Annotated[str, PREFIX] = written("/.postern", "The gateway's own paths are below this.")
    trusted_proxies: tuple[Annotated[IPv4Network | IPv6Network, NETWORK], ...] = written(
        (), "Networks of proxies whose `X-Forwarded-*` is believed."
    )
    logto: LogtoSettings = Field(description="Logto.")
    session: SessionSettings = written({}, "Sessions.")
    app_passwords: AppPasswordSettings = written({}, "App passwords.")
    discord: DiscordSettings | None = written(None, "Discord, where rules name guilds. Default: none.")
    identity: IdentitySettings = written({}, "How apps learn who is there.")
    limits: LimitSettings = written({}, "Limits.")
    log: LogSettings = written({}, "The log.")
    drain: DrainSettings = written({}, "How the gateway stops.")
    metrics: MetricsSettings = written({}, "Metrics.")
    tracing: TracingSettings = written({}, "Tracing.")
    headers: CommonHeaders = written({}, "Header fields for every app; what a route says of one goes before.")
    response: CommonResponse = written(
        {}, "Header fields of every app's answers; what a route says of one goes before."
    )
    route: tuple[RouteSettings, ...] = Field(min_length=1, description="The routes.")

    _notes: tuple[str, ...] = PrivateAttr(default=())
    _whole: Settings | None = PrivateAttr(default=None)  # of which these are those of one application

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 -- the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- replaced by `sources.py`
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- not wanted
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- replaced by `_FILE` variables
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given in Python, then what `load` says."""
        return (init_settings, *_sources.get())

    @model_validator(mode="before")
    @classmethod
    def _name_each_missing_key(cls, data: Any) -> Any:
        return {"logto": {}, **data} if isinstance(data, dict) else data

    @property
    def seal_secrets(self) -> tuple[bytes, ...]:
        """The secrets for the key ring. Without any, one derived from the application's secret (RFC 5869)."""
        if self._whole is not None:
            return self._whole.seal_secrets
        if self.secret:
            return tuple(item.get_secret_value().encode() for item in self.secret)
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"postern seal secret")
        return (derive.derive(self.logto.app_secret.get_secret_value().encode()),)

    def of(self, application: ApplicationSettings) -> Settings:
        """These settings as they are for one of `logto.application`, as if it were the only one. What seals is the same."""
        cookie = self.session.cookie.model_copy(update={"domain": application.cookie_domain})
        own = {"app_id": application.app_id, "app_secret": application.app_secret, "application": ()}
        settings = self.model_copy(
            update={
                "public_url": application.public_url or default_url(parse_url(self.public_url), application.hosts),
                "logto": self.logto.model_copy(update=own),
                "session": self.session.model_copy(update={"cookie": cookie}),
            }
        )
        settings._whole = self  # noqa: SLF001 -- ours
        return settings

    @property
    def alone(self) -> bool:
        """Whether the gateway has one application and no other."""
        return self._whole is None and not self.logto.application

    @property
    def app_ids(self) -> frozenset[str]:
        """The ids of all applications."""
        return frozenset((self.logto.app_id, *(application.app_id for application in self.logto.application)))

    @property
    def admits(self) -> frozenset[str]:
        """The applications whose sessions count under these settings: the one. Those from before there were several have none."""
        return frozenset((self.logto.app_id,) if self._whole is not None else (self.logto.app_id, ""))

    @property
    def https(self) -> bool:
        """Whether browsers speak TLS to the gateway, or to the edge in front of it."""
        return self.public_url.startswith("https://")

    @property
    def times_sign_ins(self) -> bool:
        """Whether a rule asks when people last signed in."""
        return any(
            rule.signed_in_within is not None
            for route in self.route
            if not isinstance(route.allow, str)
            for rule in route.allow
        )

    @property
    def scopes(self) -> tuple[str, ...]:
        """What a sign-in asks of Logto beyond `openid profile`: `logto.scopes`, and what the routes cannot do without."""
        told = any("{organization" in value for value in self.headers.set.values())
        needed = _ORGANIZATIONS if told or any(route.speaks_of_organizations for route in self.route) else ()
        return tuple(dict.fromkeys((*self.logto.scopes, *needed)))

    @property
    def resources(self) -> tuple[str, ...]:
        """What a sign-in asks access to: `logto.resources`, and what header templates name tokens for.

        Logto gives no token for what has not been asked for, and says what somebody may do in an organization only to whoever
        has asked for all of them.
        """
        templates = [
            Template.parse(value, route.organization)
            for route in self.route
            for value in (*self.headers.set.values(), *route.headers.set.values())
        ]
        needed = [it.resource or _IN_ORGANIZATIONS for template in templates for it in template.audiences]
        return tuple(dict.fromkeys((*self.logto.resources, *needed)))

    @property
    def public_host(self) -> str:
        """The host of `public_url`, without port."""
        return parse_url(self.public_url).host

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one sentence each."""
        return (*self._notes, *_doubts(self))


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings that the TOML file at `path` and `environ` give.

    Without `path`, POSTERN_CONFIG says where the file is; without either it is config/postern.toml, which may be missing.
    Raises SettingsError with every problem there is.
    """
    named = path or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)
    file = FileSource(Settings, named or DEFAULT_FILE, required=named is not None)
    if file.problems:
        raise SettingsError(file.problems)  # whatever else there is to say would be about keys that may be in it
    environment = EnvironmentSource(Settings, environ, file.tree)
    place = Place(environment.tree, environment.origin, environment.unusable)
    settings, problems = _read((environment, file), place)
    problems = [*environment.problems, *problems]
    problems += [
        Problem(place.name(where), what, accepted) for where, what, accepted in contradictions(environment.tree)
    ]
    if settings is None or problems:
        raise SettingsError(problems)
    replaced = file.tree.get("route") if environment.origin.get(("route",)) == UPSTREAM else None
    if replaced:
        settings._notes = (f"{UPSTREAM} replaces the {len(replaced)} routes of {named or DEFAULT_FILE}",)  # noqa: SLF001 -- ours
    return settings


def _doubts(settings: Settings) -> Iterator[str]:
    local = is_loopback(settings.public_host)
    if not settings.https and not local:
        yield "public_url is plain http: whoever is on the way can read session cookies and use them"
    if settings.logto.endpoint.startswith("http://") and not is_loopback(parse_url(settings.logto.endpoint).host):
        yield "logto.endpoint is plain http: whoever is on the way can read and change sign-ins"
    if settings.logto.app_secret.get_secret_value() == _SANDBOX_SECRET and not local:
        yield "logto.app_secret is that of the sandbox, which everybody knows"
    if any(network.prefixlen == 0 for network in settings.trusted_proxies):
        yield "trusted_proxies holds every address: any client can say where it comes from"
    if settings.session.store == "memory://" and not local:
        yield "session.store is this process's memory: a restart signs everybody out, and workers do not share sessions"
    for index, route in enumerate(settings.route):
        if route.tls is not None and route.tls.insecure_skip_verify:
            key = f"route[{index}].tls.insecure_skip_verify"
            yield f"{key} is on: whoever is on the way to the app of route {route.name} can read and change everything"
    if settings.session.cookie.same_site == "strict" and _site(settings.logto.endpoint) != _site(settings.public_url):
        yield "session.cookie.same_site is strict and Logto is on another site: browsers will not send the cookie after a sign-in"
    if settings.session.cookie.domain and all(route.host is None for route in settings.route):
        yield "session.cookie.domain is set but no route names a host: a sign-in leads back to the host of public_url alone"
    for index, application in enumerate(settings.logto.application):
        for host in application.hosts:
            if not any(route.host is None or _meet(route.host, host) for route in settings.route):
                yield f"logto.application[{index}].hosts names {host}, where no route answers"


def _meet(one: str, other: str) -> bool:
    """Whether some host is meant by both, each exact or a wildcard."""
    return one == other or any(
        wild.startswith("*.") and name.endswith(wild[1:]) for wild, name in ((one, other), (other, one))
    )


def _site(url: str) -> str:
    """Roughly the site of `url` as SameSite counts: its last two labels. Public suffixes of two labels are not known here."""
    return ".".join(parse_url(url).host.split(".")[-2:])


def _read(sources: tuple[PydanticBaseSettingsSource, ...], place: Place) -> tuple[Settings | None, list[Problem]]:
    token = _sources.set(sources)
    try:
        return Settings.model_validate({}), []
    except ValidationError as error:
        # Returned, not raised from here: the error holds what was given, secrets too, and would hang on ours as its context.
        return None, list(problems_in(error, Settings, place))
    finally:
        _sources.reset(token)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the settings file."""
    return json_schema(Settings, "Postern settings")


def reference() -> str:
    """Every key as a Markdown table: path, environment variable, default, meaning."""
    return table(Settings)
