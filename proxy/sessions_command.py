"""The `postern sessions` commands: who is signed in, and the end of that. They work on the store that the gateway uses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from proxy.browsers import browser_name
from proxy.errors import StoreUnavailable
from proxy.sealing import KeyRing
from proxy.session import Session, SessionStore, open_store
from proxy.settings import SettingsError, load

FAILED: Final = 1
BAD_SETTINGS: Final = 2
_WHY: Final = "revoked by an operator"
_AT_ONCE: Final = 1000
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))

_config_option: Final = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="POSTERN_CONFIG",
    help="Settings file (TOML): where the sessions are, and the secrets that open them.",
)


@click.group()
def sessions() -> None:
    """List sessions, look at one, or end them: everywhere and at once."""


@sessions.command(name="list")
@_config_option
@click.option("--user", metavar="SUB", help="Only those of this person, by Logto's user id.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def list_sessions(config: Path | None, user: str | None, as_json: bool) -> None:
    """List all sessions, or those of one person."""

    async def work(store: SessionStore) -> int:
        if not as_json:
            click.echo(_LINE.format("ID", "USER", "NAME", "SEEN", "ENDS IN", "ADDRESS", "BROWSER"))
        async for session in _chosen(store, user):
            click.echo(json.dumps(_fields(session), ensure_ascii=False) if as_json else _line(session))
        return 0

    _run(config, work)


@sessions.command()
@_config_option
@click.argument("session_id", metavar="ID")
def show(config: Path | None, session_id: str) -> None:
    """Show one session."""

    async def work(store: SessionStore) -> int:
        session = await store.find(session_id)
        if session is None:
            return _missing(session_id)
        for name, value in _fields(session).items():
            text = ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
            click.echo(f"{name:<14} {_printable(text)}")
        return 0

    _run(config, work)


@sessions.command()
@_config_option
@click.argument("session_id", metavar="ID", required=False)
@click.option("--user", metavar="SUB", help="End every session of this person, by Logto's user id.")
@click.option("--all", "everybody", is_flag=True, help="End every session there is.")
@click.option("--yes", is_flag=True, help="With --all: do not ask.")
def revoke(config: Path | None, session_id: str | None, user: str | None, everybody: bool, yes: bool) -> None:
    """End sessions: one, those of a person, or all. Whoever is cut off may sign in again."""
    if [session_id is not None, user is not None, everybody].count(True) != 1:
        raise click.UsageError("give one of ID, --user SUB and --all")
    if everybody and not yes:
        click.confirm("Sign everybody out?", abort=True)

    async def work(store: SessionStore) -> int:
        if session_id is not None:
            if not await store.end(session_id, _WHY):
                return _missing(session_id)
            count = 1
        else:
            count = await store.end_user(user, _WHY) if user is not None else await _end_all(store)
        click.echo(f"{count} session{'' if count == 1 else 's'} ended")
        return 0

    _run(config, work)


async def _end_all(store: SessionStore) -> int:
    count, batch = 0, list[str]()
    async for session in store.everything():
        batch.append(session.id)
        if len(batch) >= _AT_ONCE:
            count, batch = count + await store.end_each(batch, _WHY), []
    return count + await store.end_each(batch, _WHY)


async def _chosen(store: SessionStore, user: str | None) -> AsyncIterator[Session]:
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
        _printable(who.sub),
        _printable(who.display),
        _span(now - session.seen_at),
        _span(session.expires_at - now),
        _printable(session.address),
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
        "signed_in_at": _iso(session.signed_in_at),
        "created_at": _iso(session.created_at),
        "seen_at": _iso(session.seen_at),
        "expires_at": _iso(session.expires_at),
        "logto_session": session.sid,
        "address": session.address,
        "browser": session.browser,
    }


def _span(seconds: float) -> str:
    """`3h`, `2d`: one unit is enough."""
    seconds = max(0.0, seconds)
    size, unit = next((size, unit) for size, unit in _UNITS if seconds >= size or size == 1)
    return f"{int(seconds // size)}{unit}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _printable(text: str) -> str:
    # People choose their names, and browsers what they call themselves: none of it may steer a terminal.
    return "".join(char if char.isprintable() else "�" for char in text)


def _missing(session_id: str) -> int:
    click.echo(f"there is no session {_printable(session_id)}", err=True)
    return FAILED


def _run(config: Path | None, work: Callable[[SessionStore], Awaitable[int]]) -> None:
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
        store = open_store(settings, KeyRing(settings.seal_secrets))
        try:
            status = await work(store)
            await store.settled()
        finally:
            await store.close()
        return status

    try:
        sys.exit(asyncio.run(hold()))
    except StoreUnavailable as error:
        click.echo(f"the session store cannot be asked: {error}", err=True)
        sys.exit(FAILED)
