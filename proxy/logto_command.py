"""The `postern logto` commands: what the setup needs, from options and the environment; the plan, in words; the end of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.logto_plan import Step
from proxy.logto_setup import (
    Access,
    Extras,
    NotSetUp,
    Setup,
    manager_for,
    settings_before,
    setup_of,
    wanted_for,
    write_config,
    write_env,
)
from proxy.settings import Settings, SettingsError

FAILED: Final = 1
BAD_SETTINGS: Final = 2
# Read by these commands alone; those of secrets also with _FILE.
VARIABLES: Final = (
    *(
        "LOGTO_M2M_ID",
        "LOGTO_M2M_SECRET",
        "LOGTO_ADMIN_ENDPOINT",
        "LOGTO_INTERNAL_ADMIN_ENDPOINT",
        "LOGTO_ADMIN_SECRET",
    ),
    *("LOGTO_DB_URL", "LOGTO_GATEWAY_URL"),
)
_COLOURS: Final = {"create": "green", "change": "yellow", "delete": "red", "keep": "dim"}
_DONE: Final = {"create": "created", "change": "changed", "delete": "deleted", "keep": "as it should be"}
_LARGEST_SECRET: Final = 64 * 1024

Work = Callable[[Setup, Settings, Console], Coroutine[Any, Any, int]]


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What all three commands need to know: where Logto is, what the gateway is called there, and what else it should have."""
    for option in reversed(
        (
            click.option(
                "--config",
                type=click.Path(dir_okay=False, path_type=Path),
                envvar="POSTERN_CONFIG",
                help="Settings file (TOML), for public_url, prefix and the section logto.",
            ),
            click.option(
                "--name", default="Postern", show_default=True, help="What the application is called in Logto."
            ),
            click.option(
                "--gateway-url",
                envvar="LOGTO_GATEWAY_URL",
                default="",
                metavar="URL",
                help="The gateway as Logto itself reaches it, where that is not public_url.",
            ),
            click.option("--discord-only", envvar="DISCORD_ONLY", is_flag=True, help="Make Discord the only way in."),
            click.option("--role", "roles", multiple=True, help="A role for people that shall exist. Repeatable."),
            click.option("--organization", help="An organization that shall exist."),
            click.option(
                "--machine/--no-machine",
                default=True,
                show_default=True,
                help="Make a machine-to-machine application that later runs use.",
            ),
        )
    ):
        command = option(command)
    return command


@click.group()
def logto() -> None:
    """Set Logto up for the gateway, check it, or take that back.

    The way into its Management API comes from the environment, each variable also as a file's path with _FILE appended:
    LOGTO_M2M_ID and LOGTO_M2M_SECRET of a machine-to-machine application; or, for a Logto of your own, LOGTO_ADMIN_SECRET, or
    LOGTO_DB_URL to read that from; with LOGTO_ADMIN_ENDPOINT where its admin endpoint is not port 3002, and
    LOGTO_INTERNAL_ADMIN_ENDPOINT where it is reached otherwise from here. DISCORD_CLIENT_ID and DISCORD_CLIENT_SECRET add
    Discord.
    """


@logto.command()
@_options
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option(
    "--write-env", type=click.Path(dir_okay=False, path_type=Path), help="Write the settings into this .env file."
)
@click.option(
    "--write-config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what the gateway needs of them as a settings file of its own.",
)
def setup(dry_run: bool, write_env: Path | None, write_config: Path | None, **given: Any) -> None:
    """Make what the gateway needs in Logto, and tell its settings. Safe to run again."""

    async def work(it: Setup, settings: Settings, console: Console) -> int:
        steps = await it.plan()
        _show(console, steps)
        if dry_run:
            console.print("nothing was done (--dry-run)")
            return 0
        if any(step.method for step in steps):
            await _carry_out(it, steps, console)
        else:
            console.print("everything is as it should be: nothing to do")
        await _tell(it, settings, console, write_env, write_config)
        return 0

    _run(work, given)


@logto.command()
@_options
def check(**given: Any) -> None:
    """Compare what Logto holds with what the gateway needs, and name each difference. Exit status 1 when there is one."""

    async def work(it: Setup, _: Settings, console: Console) -> int:
        steps = await it.plan()
        for step in steps:
            mark = "[green]ok[/green]  " if step.action == "keep" else "[red]fail[/red]"
            console.print(f"{mark}  ", end="")
            remedy = {"create": "is missing; `postern logto setup` makes it", "keep": "is as it should be"}.get(
                step.action, f"differs ({', '.join(step.details)}); `postern logto setup` corrects it"
            )
            console.print(f"{step.what}: {remedy}", markup=False)
        return FAILED if any(step.action != "keep" for step in steps) else 0

    _run(work, given)


@logto.command()
@_options
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
def remove(dry_run: bool, yes: bool, **given: Any) -> None:
    """Take back what `setup` made. What existed before stays."""

    async def work(it: Setup, _: Settings, console: Console) -> int:
        steps = await it.plan_removal()
        _show(console, steps)
        if not steps:
            console.print("there is nothing of the gateway's in this Logto")
        elif dry_run:
            console.print("nothing was done (--dry-run)")
        elif yes or click.confirm("Nobody will be able to sign in any more. Go on?"):
            await _carry_out(it, steps, console)
        else:
            return FAILED
        return 0

    _run(work, given)


def _run(work: Work, given: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    environ = os.environ
    try:
        settings, pending = settings_before(given["config"], environ)
        extras = Extras(
            app_name=given["name"],
            gateway_url=given["gateway_url"].rstrip("/"),
            discord=_discord(environ),
            discord_only=given["discord_only"],
            roles=tuple(given["roles"]),
            organization=given["organization"],
            machine=given["machine"],
        )
        manager, wanted = manager_for(settings, _access(environ)), wanted_for(settings, pending, extras)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(BAD_SETTINGS)
    except NotSetUp as error:
        click.echo(str(error), err=True)
        sys.exit(BAD_SETTINGS)

    async def hold() -> int:
        async with setup_of(settings, manager, wanted) as it:
            return await work(it, settings, console)

    try:
        status = asyncio.run(hold())
    except LogtoRefused as error:
        click.echo(f"Logto refused: {error}; is this client allowed to use the Management API?", err=True)
        sys.exit(FAILED)
    except (LogtoUnavailable, OSError) as error:
        click.echo(f"{error}; run the command again: it goes on where it stopped", err=True)
        sys.exit(FAILED)
    if status:
        sys.exit(status)


def _access(environ: Mapping[str, str]) -> Access:
    return Access(
        client_id=environ.get("LOGTO_M2M_ID", ""),
        client_secret=_secret(environ, "LOGTO_M2M_SECRET"),
        admin=environ.get("LOGTO_ADMIN_ENDPOINT", "").rstrip("/"),
        internal_admin=environ.get("LOGTO_INTERNAL_ADMIN_ENDPOINT", "").rstrip("/"),
        admin_secret=_secret(environ, "LOGTO_ADMIN_SECRET"),
        database_url=_secret(environ, "LOGTO_DB_URL"),
    )


def _discord(environ: Mapping[str, str]) -> tuple[str, str] | None:
    client_id, secret = environ.get("DISCORD_CLIENT_ID", ""), _secret(environ, "DISCORD_CLIENT_SECRET")
    if bool(client_id) != bool(secret):
        raise NotSetUp("of DISCORD_CLIENT_ID and DISCORD_CLIENT_SECRET only one is given")
    return (client_id, secret) if client_id else None


def _secret(environ: Mapping[str, str], name: str) -> str:
    """The value of a variable, or of the file that `name` + _FILE leads to."""
    file = environ.get(name + "_FILE")
    if environ.get(name) or not file:
        return environ.get(name, "")
    try:
        text = Path(file).read_bytes()[: _LARGEST_SECRET + 1].decode()
    except (OSError, ValueError) as error:
        raise NotSetUp(f"{name}_FILE: the file cannot be read ({type(error).__name__})") from None
    return text.strip()


def _show(console: Console, steps: Sequence[Step]) -> None:
    for step in steps:
        console.print(f"[{_COLOURS[step.action]}]{step.action:<6}[/{_COLOURS[step.action]}]  ", end="")
        details = f" ({'; '.join(step.details)})" if step.details else ""
        console.print(step.what + details, markup=False)


async def _carry_out(it: Setup, steps: Sequence[Step], console: Console) -> None:
    async for step in it.carry_out(step for step in steps if step.method or step.binds):
        if step.method:
            console.print(f"{_DONE[step.action]}: {step.what}", markup=False)


async def _tell(it: Setup, settings: Settings, console: Console, env: Path | None, config: Path | None) -> None:
    values = await it.result()
    redirect = it.discord_redirect(settings.logto.endpoint)
    if redirect is not None:
        console.print("Discord's developer portal has to know this redirect (OAuth2, Redirects):")
        console.print(f"  {redirect}", markup=False)
    if env is not None:
        write_env(env, values)
        console.print(f"wrote {', '.join(values)} to {env}", markup=False)
    if config is not None:
        write_config(config, values, settings.logto.application)
        console.print(f"wrote the section logto to {config}", markup=False)
    if env is not None or config is not None:
        return
    console.print("the gateway's settings:")
    for name, value in values.items():
        console.print(f"{name}={value}", markup=False)
