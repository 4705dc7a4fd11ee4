"""The `postern passwords` commands: which app passwords there are, and the end of them. What they are, nobody can show."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from proxy.session import Session
from proxy.sessions_command import FAILED, WHY, Stores, chosen, config_option, end_all, iso, printable, run_with, span

_LINE: Final = "{:<22}  {:<12}  {:<20.20}  {:<15}  {:>6}  {:>7}  {}"


@click.group()
def passwords() -> None:
    """List app passwords, or end them: everywhere and at once."""


@passwords.command(name="list")
@config_option
@click.option("--user", metavar="SUB", help="Only those of this person, by Logto's user id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def list_passwords(config: Path | None, user: str | None, as_json: bool) -> None:
    """List all app passwords, or those of one person."""

    async def work(stores: Stores) -> int:
        if not as_json:
            click.echo(_LINE.format("ID", "USER", "NAME", "ROUTE", "USED", "ENDS IN", "OWNER SEEN"))
        async for password in chosen(stores.passwords, user):
            click.echo(json.dumps(_fields(password), ensure_ascii=False) if as_json else _line(password))
        return 0

    run_with(config, work)


@passwords.command()
@config_option
@click.argument("password_id", metavar="ID", required=False)
@click.option("--user", metavar="SUB", help="End every app password of this person, by Logto's user id.")
@click.option("--all", "everybody", is_flag=True, help="End every app password there is.")
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
def revoke(config: Path | None, password_id: str | None, user: str | None, everybody: bool, yes: bool) -> None:
    """End app passwords: one, those of a person, or all. Sessions go on, and their owners can make others."""
    if [password_id is not None, user is not None, everybody].count(True) != 1:
        raise click.UsageError("give one of ID, --user SUB and --all")
    if everybody and not yes:
        click.confirm("End every app password?", abort=True)

    async def work(stores: Stores) -> int:
        store = stores.passwords
        if password_id is not None:
            if not await store.end(password_id, WHY):
                click.echo(f"there is no app password {printable(password_id)}", err=True)
                return FAILED
            count = 1
        else:
            count = await store.end_user(user, WHY) if user is not None else await end_all(store)
        click.echo(f"{count} app password{'' if count == 1 else 's'} ended")
        return 0

    run_with(config, work)


def _line(password: Session) -> str:
    now, fields = time.time(), _fields(password)
    errand = password.errand
    return _LINE.format(
        password.id,
        printable(fields["sub"]),
        printable(fields["name"]),
        printable(fields["route"]),
        span(now - password.seen_at) if password.seen_at > password.created_at else "never",
        span(password.expires_at - now),
        f"{span(now - errand.vouched_at)} ago" if errand is not None and errand.vouched_at else "waits for them",
    )


def _fields(password: Session) -> dict[str, Any]:
    errand = password.errand
    return {
        "id": password.id,
        "sub": password.identity.sub,
        "username": password.identity.username,
        "name": errand.name if errand is not None else "",
        "route": errand.route if errand is not None else "",
        "created_at": iso(password.created_at),
        "seen_at": iso(password.seen_at) if password.seen_at > password.created_at else None,
        "expires_at": iso(password.expires_at),
        "owner_seen_at": iso(errand.vouched_at) if errand is not None and errand.vouched_at else None,
        "address": password.address,
    }
