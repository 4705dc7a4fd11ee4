"""The `postern sessions` commands: who is signed in, and the end of that. They work on the stores that the gateway uses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from proxy.browsers import browser_name
from proxy.errors import StoreUnavailable
from proxy.password_store import PasswordStore, open_passwords
from proxy.sealing import KeyRing
from proxy.session import Session, SessionStore, open_store
from proxy.settings import SettingsError, load

FAILED: Final = 1
BAD_SETTINGS: Final = 2
WHY: Final = "revoked by an operator"
_AT_ONCE: Final = 1000
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

config_option: Final = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="POSTERN_CONFIG",
    help="Settings file (TOML): where the sessions are, and the secrets that open them.",
)


class Stores(NamedTuple):
    """Where what people come in by is kept."""

    sessions: SessionStore
    passwords: PasswordStore


@click.group()
def sessions() -> None:
    """List sessions, look at one, or end them: everywhere and at once."""


@sessions.command(name="list")
@config_option
@click.option("--user", metavar="SUB", help="Only those of this person, by Logto's user id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def list_sessions(config: Path | None, user: str | None, as_json: bool) -> None:
    """List all sessions, or those of one person."""

    async def work(stores: Stores) -> int:
        store = stores.sessions
        if not as_json:
            click.echo(_LINE.format("ID", "USER", "NAME", "SEEN", "ENDS IN", "ADDRESS", "BROWSER"))
        async for session in chosen(store, user):
            click.echo(json.dumps(_fields(session), ensure_ascii=False) if as_json else _line(session))
        return 0

    run_with(config, work)


@sessions.command()
@config_option
@click.argument("session_id", metavar="ID")
def show(config: Path | None, session_id: str) -> None:
    """Show one session."""

    async def work(stores: Stores) -> int:
        store = stores.sessions
        session = await store.find(session_id)
        if session is None:
            return _missing(session_id)
        for name, value in _fields(session).items():
            text = ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
            click.echo(f"{name:<14} {printable(text)}")
        return 0

    run_with(config, work)


@sessions.command()
@config_option
@click.argument("session_id", metavar="ID", required=False)
@click.option("--user", metavar="SUB", help="End every session of this person, by Logto's user id.")
@click.option("--all", "everybody", is_flag=True, help="End every session there is.")
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
@click.option("--keep-passwords", is_flag=True, help="With --user and --all: leave app passwords alone.")
def revoke(
    config: Path | None, session_id: str | None, user: str | None, everybody: bool, yes: bool, keep_passwords: bool
) -> None:
    """End sessions: one, or those of a person or of all, and their app passwords. Whoever is cut off may sign in again."""
    if [session_id is not None, user is not None, everybody].count(True) != 1:
        raise click.UsageError("give one of ID, --user SUB and --all")
    if everybody and not yes:
        passwords = "" if keep_passwords else " and end every app password"
        click.confirm(f"Sign everybody out{passwords}?", abort=True)

    async def work(stores: Stores) -> int:
        store = stores.sessions
        if session_id is not None:
            if not await store.end(session_id, WHY):
                return _missing(session_id)
            click.echo("1 session ended")
            return 0
        # Sessions first: nobody makes an app password from then on that this would not find.
        for kept, what in ((store, "session"), (None if keep_passwords else stores.passwords, "app password")):
            if kept is not None:
                count = await kept.end_user(user, WHY) if user is not None else await end_all(kept)
                if count or what == "session":
                    click.echo(f"{count} {what}{'' if count == 1 else 's'} ended")
        return 0

    run_with(config, work)


async def end_all(store: SessionStore) -> int:
    """End everything in `store`; how much there was."""
    count, batch = 0, list[str]()
    async for session in store.everything():
        batch.append(session.id)
        if len(batch) >= _AT_ONCE:
            count, batch = count + await store.end_each(batch, WHY), []
    return count + await store.end_each(batch, WHY)


async def chosen(store: SessionStore, user: str | None) -> AsyncIterator[Session]:
    """Everything in `store`, or what is the person `user`'s."""
    if user is None:
        async for session in store.everything():
            yield session
    else:
        for session in await store.of_user(user):
            yield session


_LINE: Final = "{:<22}  {:<12}  {:<20.20}  {:>6}  {:>7}  {:<15}  {}"


def _line(session: Session) -> str:
    now, who = time.time(), session.identity
    return _LINE.format(
        session.id,
        printable(who.sub),
        printable(who.display),
        span(now - session.seen_at),
        span(session.expires_at - now),
        printable(session.address),
        browser_name(session.browser),
    )


def _fields(session: Session) -> dict[str, Any]:
    """What there is to know of a session. No token: only its owner's cookie opens those."""
    who = session.identity
    return {
        "id": session.id,
        "sub": who.sub,
        "username": who.username,
        "name": who.name,
        "email": who.email,
        "roles": list(who.groups),
        "signed_in_at": iso(session.signed_in_at),
        "created_at": iso(session.created_at),
        "seen_at": iso(session.seen_at),
        "expires_at": iso(session.expires_at),
        "logto_session": session.sid,
        "address": session.address,
        "application": session.application or None,
        "browser": session.browser,
    }


def span(seconds: float) -> str:
    """`3h`, `2d`: one unit is enough."""
    seconds = max(0.0, seconds)
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size or size == 1)
    return f"{int(seconds // size)}{unit}"


def iso(seconds: float) -> str:
    """Epoch seconds as ISO 8601, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def printable(text: str) -> str:
    """`text` without anything that a terminal would take for a command."""
    # People choose their names, and browsers what they call themselves: none of it may steer a terminal.
    return "".join(char if char.isprintable() else "�" for char in text)


def _missing(session_id: str) -> int:
    click.echo(f"there is no session {printable(session_id)}", err=True)
    return FAILED


def run_with(config: Path | None, work: Callable[[Stores], Awaitable[int]]) -> None:
    """Do `work` on the stores that the settings name, and exit with its status."""
    try:
        settings = load(config, os.environ)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(BAD_SETTINGS)
    if settings.session.store.startswith("memory:"):
        click.echo("sessions are in the gateway's own memory (session.store): nobody else can see them", err=True)
        sys.exit(FAILED)

    async def hold() -> int:
        keyring = KeyRing(settings.seal_secrets)
        stores = Stores(open_store(settings, keyring), open_passwords(settings, keyring))
        try:
            status = await work(stores)
            for store in stores:
                await store.settled()
        finally:
            for store in stores:
                await store.close()
        return status

    try:
        sys.exit(asyncio.run(hold()))
    except StoreUnavailable as error:
        click.echo(f"the session store cannot be asked: {error}", err=True)
        sys.exit(FAILED)
