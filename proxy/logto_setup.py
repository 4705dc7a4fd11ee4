"""`postern logto setup`, `check`, `remove`: what a Logto holds is read, the steps of logto_plan.py are made, settings come out.

Nothing here decides what a step is; here is only how to get at a Logto, and what to do with what it answers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from proxy.errors import LogtoUnavailable, PosternError, Side
from proxy.logto_api import LogtoApi, Manager, Place
from proxy.logto_http import LogtoHttp, printable
from proxy.logto_plan import (
    MANAGEMENT_ROLE,
    Client,
    Found,
    Step,
    Wanted,
    find_applications,
    find_hook,
    find_machine,
    plan,
    plan_removal,
)
from proxy.problems import Problem
from proxy.settings import ApplicationSettings, Settings, SettingsError, load
from proxy.tree import variable

ADMIN_CLIENT: Final = "m-default"
_SECRET_QUERY: Final = "select secret from applications where tenant_id = 'admin' and id = 'm-default'"  # noqa: S105 -- SQL
# What the settings cannot have before the setup has made it.
_PENDING: Final = {"logto.app_id": "LOGTO_APP_ID", "logto.app_secret": "LOGTO_APP_SECRET", "route": "POSTERN_UPSTREAM"}
_FURTHER: Final = re.compile(r"logto\.application\[([0-9]+)\]\.(app_id|app_secret)")
_PLACEHOLDER: Final = "pending"
_LOGTOS_OWN: Final = "urn:logto:"  # API resources that every Logto has


class NotSetUp(PosternError):
    """What is missing for a setup, and what to do about it."""

    side = Side.GATEWAY


@dataclass(frozen=True, slots=True)
class Access:
    """How to get at the Management API, as given; what is empty is not given.

    `client_id`, `client_secret`: a machine-to-machine application with the role for the API. Else, at a Logto of one's own, the
    seeded client: its secret `admin_secret` or the database `database_url` to read it from, and `admin` where it is known.
    """

    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    admin: str = ""
    internal_admin: str = ""
    admin_secret: str = field(default="", repr=False)
    database_url: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Extras:
    """What to make beyond the necessary."""

    app_name: str = "Postern"
    gateway_url: str = ""  # the gateway as Logto reaches it; default: public_url
    discord: tuple[str, str] | None = field(default=None, repr=False)
    discord_only: bool = False
    roles: tuple[str, ...] = ()
    organization: str | None = None
    machine: bool = True


def settings_before(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, frozenset[str]]:
    """Settings of a gateway whose application may not exist yet, and the keys that have no value yet. Raises SettingsError."""
    try:
        return load(path, environ), frozenset()
    except SettingsError as error:
        missing = {key for problem in error.problems if (key := _pending(problem)) is not None}
        if not missing:
            raise
    values = {"route": "http://127.0.0.1:9"}
    given = {_variable(key): values.get(key, f"{_PLACEHOLDER}-{key}") for key in missing}  # no two alike
    return load(path, {**environ, **given}), frozenset(missing)


def _variable(key: str) -> str:
    """The variable that gives a key its value."""
    further = _FURTHER.fullmatch(key)
    return _PENDING[key] if further is None else variable(("logto", "application", int(further[1]), further[2]))


def _pending(problem: Problem) -> str | None:
    further = _FURTHER.fullmatch(problem.key)
    if further is not None and problem.what == "is missing":
        return problem.key
    names = {**{key: key for key in _PENDING}, **{variable: key for key, variable in _PENDING.items()}}
    return names.get(problem.key)


def wanted_for(settings: Settings, pending: Iterable[str], extras: Extras) -> Wanted:
    """What the gateway of `settings` needs of its Logto."""
    pending = frozenset(pending)
    main, *others = (
        _client(site, "logto.app_id" if index == 0 else f"logto.application[{index - 1}].app_id", pending, extras)
        for index, site in enumerate((settings, *map(settings.of, settings.logto.application)))
    )
    return Wanted(
        **asdict(main),
        hook=(extras.gateway_url or settings.public_url) + settings.prefix + "/hooks/logto",
        home=settings.public_url + "/",
        scopes=settings.scopes,
        resources=tuple(it for it in settings.resources if not it.startswith(_LOGTOS_OWN)),
        roles=extras.roles,
        organization=extras.organization,
        discord=extras.discord,
        discord_only=extras.discord_only,
        machine=extras.machine,
        others=tuple(others),
    )


def _client(site: Settings, key: str, pending: Collection[str], extras: Extras) -> Client:
    """The application of one site: `key` is where the settings have its id."""
    own, seen = site.public_url + site.prefix, (extras.gateway_url or site.public_url) + site.prefix
    return Client(
        app_name=extras.app_name if key == "logto.app_id" else f"{extras.app_name} ({site.public_host})",
        app_id="" if key in pending else site.logto.app_id,
        callback=own + "/callback",
        signed_out=own + "/signed-out",
        backchannel=seen + "/backchannel-logout",
    )


def manager_for(settings: Settings, access: Access) -> Manager:
    """The client to use. Raises NotSetUp when none is given, or the database does not tell."""
    logto = Place(settings.logto.endpoint, settings.logto.internal_endpoint)
    if access.client_id and access.client_secret:
        return Manager(access.client_id, access.client_secret, logto)
    secret = access.admin_secret or (admin_secret(access.database_url) if access.database_url else "")
    if not secret:
        raise NotSetUp(
            "no way into Logto's Management API: give LOGTO_M2M_ID and LOGTO_M2M_SECRET of a machine-to-machine application "
            f'with the role "{MANAGEMENT_ROLE}"; or, for a Logto of your own, LOGTO_ADMIN_SECRET or LOGTO_DB_URL'
        )
    admin = access.admin or _admin_of(settings.logto.endpoint)
    return Manager(ADMIN_CLIENT, secret, Place(admin, access.internal_admin or admin))


def _admin_of(endpoint: str) -> str:
    """Where a Logto of one's own has its admin endpoint unless told otherwise: the same host, port 3002."""
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:3002"


def admin_secret(database_url: str) -> str:
    """Read the seeded client's secret out of Logto's database, with psql. Raises NotSetUp; no message holds the password.

    psql and no driver: this is asked once in a Logto's life, by whoever has its database at hand, and so its tools.
    """
    psql = shutil.which("psql")
    if psql is None:
        raise NotSetUp("reading Logto's database needs psql (package postgresql-client), or give LOGTO_ADMIN_SECRET")
    try:
        url = urlsplit(database_url)
        parts = {"PGHOST": url.hostname, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    except ValueError:
        raise NotSetUp("LOGTO_DB_URL is no URL such as postgres://user:password@host:5432/logto") from None
    # By the environment: the arguments of a program can be read by everybody on its machine.
    given = {name: unquote(str(value)) for name, value in parts.items() if value is not None}
    environ = {**os.environ, **given, "PGDATABASE": unquote(url.path.lstrip("/")) or "logto", "PGCONNECT_TIMEOUT": "10"}
    command = [psql, "--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--command", _SECRET_QUERY]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 -- no part of it comes from a stranger
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotSetUp(f"Logto's database cannot be read ({type(error).__name__})") from None
    if done.returncode != 0:
        raise NotSetUp(f"Logto's database cannot be read: {printable(done.stderr.strip())}")
    secret = done.stdout.strip()
    if not secret:
        raise NotSetUp("Logto's database has no client m-default: has Logto been started once?")
    return secret


class Setup:
    """One Logto, looked at and changed."""

    def __init__(self, api: LogtoApi, wanted: Wanted) -> None:
        self._api = api
        self._wanted = wanted
        self.found: Found | None = None

    async def survey(self) -> Found:
        """Read everything that matters."""
        api = self._api
        roles = await api.all("roles")
        machine_roles = await api.all("roles?type=MachineToMachine")
        role = next((it for it in machine_roles if it["name"] == MANAGEMENT_ROLE), None)
        managers = await api.all(f"roles/{role['id']}/applications") if role is not None else []
        known = {it["id"] for it in roles}
        self.found = Found(
            applications=await api.all("applications"),
            connectors=await api.all("connectors"),
            hooks=await api.all("hooks"),
            roles=[*roles, *(it for it in machine_roles if it["id"] not in known)],
            resources=await api.all("resources"),
            organizations=await api.all("organizations"),
            experience=await api.one("sign-in-exp"),
            claims=tuple((await api.one("configs/id-token")).get("enabledExtendedClaims", ())),
            managers=frozenset(it["id"] for it in managers),
        )
        return self.found

    async def plan(self) -> tuple[Step, ...]:
        """The steps from what is there to what is wanted."""
        return plan(self._wanted, await self.survey())

    async def plan_removal(self) -> tuple[Step, ...]:
        """The steps that take back what was made."""
        return plan_removal(self._wanted, await self.survey())

    async def carry_out(self, steps: Iterable[Step]) -> AsyncIterator[Step]:
        """Make each step, giving it when it is done. Killed anywhere, the next plan holds what is left."""
        bound: dict[str, str] = {}
        for step in steps:
            if step.method:
                made = await self._api.ask(step.method, step.path, _filled(step.body, bound))
                if step.binds and not step.bound and isinstance(made, dict):
                    bound[step.binds] = str(made["id"])
            if step.binds and step.bound:
                bound[step.binds] = step.bound
            yield step

    async def result(self) -> dict[str, str]:
        """The settings as variables, once all steps are made. Raises LogtoUnavailable when something is not there after all."""
        found = await self.survey()
        applications, hook = find_applications(self._wanted, found), find_hook(self._wanted, found)
        ids = [str(it["id"]) for it in applications if it is not None]
        if len(ids) < len(applications) or hook is None:
            raise LogtoUnavailable("what was made is not there: is somebody else changing this Logto?")
        result = {
            "LOGTO_APP_ID": ids[0],
            "LOGTO_APP_SECRET": await self._secret(ids[0]),
            "POSTERN_LOGTO__WEBHOOK_KEY": str(hook["signingKey"]),
        }
        for index, app_id in enumerate(ids[1:]):
            where = ("logto", "application", index)
            result |= {
                variable((*where, "app_id")): app_id,
                variable((*where, "app_secret")): await self._secret(app_id),
            }
        machine = find_machine(self._wanted, found)
        if machine is not None:
            result |= {"LOGTO_M2M_ID": str(machine["id"]), "LOGTO_M2M_SECRET": await self._secret(machine["id"])}
        return result

    def discord_redirect(self, endpoint: str) -> str | None:
        """The redirect URL that Discord's developer portal has to know; None while there is no connector."""
        connectors = self.found.connectors if self.found is not None else ()
        ids = [it["id"] for it in connectors if it.get("target") == "discord"]
        return f"{endpoint}/callback/{ids[0]}" if ids else None

    async def _secret(self, application_id: str) -> str:
        """The newest secret of an application that has not expired."""
        found = await self._api.ask("GET", f"applications/{application_id}/secrets")
        usable = [it for it in found or () if it.get("expiresAt") is None]
        if not usable:
            raise LogtoUnavailable("the application has no secret that does not expire: make one in the console")
        return str(max(usable, key=lambda it: it.get("createdAt", 0))["value"])


@asynccontextmanager
async def setup_of(settings: Settings, manager: Manager, wanted: Wanted) -> AsyncIterator[Setup]:
    """A Setup whose connections end with the block."""
    http = LogtoHttp(settings.logto.timeout)
    try:
        logto = Place(settings.logto.endpoint, settings.logto.internal_endpoint)
        yield Setup(LogtoApi(http, logto, manager), wanted)
    finally:
        await http.close()


def _filled(body: Any, bound: Mapping[str, str]) -> Any:
    """`body` with the ids in the places that earlier steps were to fill."""
    if isinstance(body, dict) and "applicationIds" in body:
        return {**body, "applicationIds": [it.format(**bound) for it in body["applicationIds"]]}
    return body


def write_env(path: Path, values: Mapping[str, str]) -> None:
    """Put `values` into the .env file at `path`, every other line as it was. Whole or not at all, and for its owner alone."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    left = dict(values)
    for index, line in enumerate(lines):
        match = re.match(r"\s*(?:#\s*)?(?:export\s+)?([A-Z][A-Z0-9_]*)=", line)
        if match and match[1] in left:
            lines[index] = f"{match[1]}={left.pop(match[1])}"
    lines += [f"{name}={value}" for name, value in left.items()]
    _replace(path, "\n".join(lines) + "\n")


def write_config(path: Path, values: Mapping[str, str], applications: Sequence[ApplicationSettings] = ()) -> None:
    """Write the settings file at `path` with what the gateway itself needs of `values`; all else comes from its environment."""
    keys = {"LOGTO_APP_ID": "app_id", "LOGTO_APP_SECRET": "app_secret", "POSTERN_LOGTO__WEBHOOK_KEY": "webhook_key"}
    lines = [f"{key} = {json.dumps(values[name])}" for name, key in keys.items()]  # a JSON string is a TOML string, too
    for index, application in enumerate(applications):
        table: dict[str, Any] = application.model_dump(include={"hosts", "public_url", "cookie_domain"})
        table |= {key: values[variable(("logto", "application", index, key))] for key in ("app_id", "app_secret")}
        lines += ["[[logto.application]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    _replace(path, "\n".join(["# made by `postern logto setup`", "[logto]", *lines]) + "\n")


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=".postern-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:  # mkstemp makes it 0600
            file.write(text)
        Path(temporary).replace(path.resolve())
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
