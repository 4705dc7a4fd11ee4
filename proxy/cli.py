"""The `postern` command. Exit status: 0 fine, 1 something it needs failed, 2 bad usage or settings."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from proxy.errors import CannotServe, MalformedRequest
from proxy.logto_command import logto
from proxy.passwords_command import passwords
from proxy.sessions_command import sessions
from proxy.settings import Settings, SettingsError, load, schema

FAILED: Final = 1
BAD_SETTINGS: Final = 2

_config_option: Final = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="POSTERN_CONFIG",
    help="Settings file (TOML). Default: config/postern.toml where it exists; the environment alone is enough.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="postern", prog_name="postern")
def main() -> None:
    """Postern: sign-in through Logto in front of any web application."""


main.add_command(logto)
main.add_command(passwords)
main.add_command(sessions)


@main.command()
@_config_option
@click.option("--listen", metavar="HOST:PORT", help="Where to listen, instead of the settings' `listen`.")
@click.option("--workers", metavar="N", help="How many processes share the work, instead of the settings' `workers`.")
def serve(config: Path | None, listen: str | None, workers: str | None) -> None:
    """Run the gateway, until SIGTERM or SIGINT. SIGHUP reads the settings again."""
    from proxy.lifecycle import run
    from proxy.reloading import Source

    given = {"POSTERN_LISTEN": listen, "POSTERN_WORKERS": workers}
    overrides = {name: value for name, value in given.items() if value}
    settings = _load(config, overrides)
    try:
        run(settings, Source(config, {**os.environ, **overrides}))
    except CannotServe as error:
        _fail(str(error))


@main.command()
@_config_option
@click.option("--offline", is_flag=True, help="Only validate the settings; ask nobody.")
def check(config: Path | None, offline: bool) -> None:
    """Validate the settings, then try the session store, Logto and every upstream."""
    from proxy.checkup import check_surroundings, doubtful_rules

    settings = _load(config)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[green]ok[/green]    settings: {len(settings.route)} route(s) for {settings.public_url}")
    for warning in (*settings.warnings, *doubtful_rules(settings)):
        console.print("[yellow]warn[/yellow]  ", end="")
        console.print(warning, markup=False)
    if offline:
        return

    # Every failure gets its line below: what adapters would log of it, on a standard error nobody has set up, is noise here.
    logging.getLogger().addHandler(logging.NullHandler())

    async def look() -> bool:
        fine = True
        async for finding in check_surroundings(settings):
            mark = "[green]ok[/green]  " if finding.ok else "[red]fail[/red]"
            console.print(f"{mark}  ", end="")
            console.print(
                f"{finding.what}: {finding.outcome}" + (f"; {finding.remedy}" if finding.remedy else ""), markup=False
            )
            fine = fine and finding.ok
        return fine

    if not asyncio.run(look()):
        sys.exit(FAILED)


@main.command()
@click.option("--port", default=3000, show_default=True, help="The gateway's port; the two after it are used as well.")
def demo(port: int) -> None:
    """Run the stand-in Logto, a sample app and the gateway in front of it, to try Postern out."""
    from proxy.demo import run_demo

    try:
        run_demo(port)
    except OSError as error:
        _fail(f"cannot use the ports {port} to {port + 2}: {error.strerror or error}; choose others with --port")


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3001, show_default=True, help="The stand-in Logto's port.")
@click.option("--app-port", type=int, help="Also run the sample app, on this port.")
@click.option("--public-url", default="http://localhost:3000", show_default=True, help="The gateway's public URL.")
def sandbox(host: str, port: int, app_port: int | None, public_url: str) -> None:
    """Run only the stand-in Logto, for development and tests. Never for people you do not trust: it asks no password."""
    from proxy.sandbox.run import Addresses, serve_sandbox

    def ready(addresses: Addresses) -> None:
        click.echo(
            f"stand-in Logto on {addresses.logto}" + (f", sample app on {addresses.app}" if addresses.app else "")
        )

    _run_until_interrupted(serve_sandbox(host, port, app_port=app_port, public_url=public_url, ready=ready))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=3002, show_default=True, help="Port to listen on.")
def sample(host: str, port: int) -> None:
    """Run only the sample app, which shows who it was told you are and every header it got."""
    from proxy.sandbox.run import serve_sample

    _run_until_interrupted(serve_sample(host, port))


@main.command()
@_config_option
@click.option("--url", required=True, help="Absolute URL to judge, as a browser would ask for it.")
@click.option("--method", default="GET", show_default=True, help="Request method.")
@click.option("--client", default="127.0.0.1", show_default=True, help="Address of the client.")
@click.option(
    "--claims",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON file with the claims of the person who asks; without it nobody is signed in.",
)
def explain(config: Path | None, url: str, method: str, client: str, claims: Path | None) -> None:
    """Tell which route and which rule decide about a URL, and which headers the app would get."""
    from proxy.explain import explain_asking, preset_of

    settings = _load(config)
    try:
        explanation = asyncio.run(explain_asking(settings, url, method, _claims_in(claims), client))
    except MalformedRequest as error:
        click.echo(f"verdict  bad request ({error.status}): {error.reason}")
        return
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    verdict = explanation.verdict
    click.echo(f"verdict  {verdict.kind.value}" + (f" ({verdict.status})" if verdict.status else ""))
    click.echo(f"route    {verdict.route.name if verdict.route is not None else '-'}")
    if verdict.route is not None and (preset := preset_of(settings, verdict.route)) is not None:
        click.echo(f"preset   {preset}")
    click.echo(f"reason   {verdict.reason}")
    if verdict.decision is not None and verdict.decision.rule is not None:
        click.echo(f"rule     {verdict.decision.rule}")
    detail = verdict.detail or (verdict.decision.detail if verdict.decision is not None else "")
    if detail:
        click.echo(f"detail   {detail}")
    if explanation.head is not None:
        click.echo("the app gets")
        for line in explanation.head.decode("utf-8", "replace").rstrip().split("\r\n"):
            click.echo(f"  {line}")


@main.command()
def secret() -> None:
    """Print a fresh secret for the settings' `secret`."""
    click.echo(secrets.token_urlsafe(48))


@main.command(name="schema")
def print_schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    click.echo(json.dumps(schema(), indent=2, ensure_ascii=False))


def _load(config: Path | None, overrides: dict[str, str] | None = None) -> Settings:
    try:
        return load(config, {**os.environ, **(overrides or {})})
    except SettingsError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(BAD_SETTINGS)


def _claims_in(file: Path | None) -> dict[str, Any] | None:
    """The claims that a file holds; None without one. ValueError when it is no JSON object."""
    if file is None:
        return None
    claims = json.loads(file.read_bytes())
    if not isinstance(claims, dict):
        raise ValueError("the claims must be a JSON object")  # noqa: TRY004 -- what is in a file is a value, whatever its type
    return claims


def _run_until_interrupted(work: Any) -> None:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        return
    except OSError as error:
        _fail(f"cannot listen: {error.strerror or error}")


def _fail(message: str) -> None:
    click.echo(message, err=True)
    sys.exit(FAILED)
