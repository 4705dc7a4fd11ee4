"""`postern passwords`, and what `postern sessions revoke` does about app passwords, on a real Redis."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.app_passwords import AppPasswords
from proxy.claims import Grant, Identity
from proxy.cli import main
from proxy.password_store import open_passwords
from proxy.sealing import KeyRing
from proxy.session import Session, open_store
from proxy.settings import Settings, load
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import TOKENS

ADA = Identity(sub="ada-sub", username="ada")
BOB = Identity(sub="bob-sub", username="bob")
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


def environ(server: RedisServer) -> dict[str, str]:
    return {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_ROUTE__0__NAME": "dav",
        "POSTERN_ROUTE__0__UPSTREAM": "http://127.0.0.1:9",
        "POSTERN_ROUTE__0__APP_PASSWORDS": "true",
        "POSTERN_SECRET": "s" * 40,
        "LOGTO_ENDPOINT": "https://auth.example.com",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "s" * 32,
        "REDIS_URL": server.url,
    }


@pytest.fixture
def run(server: RedisServer) -> Run:
    def run(*arguments: str, given: str | None = None, **more: str) -> Result:
        return CliRunner().invoke(main, list(arguments), env=environ(server) | more, input=given)

    return run


def settings(server: RedisServer) -> Settings:
    return load(Path("/dev/null"), environ(server))


def made(
    server: RedisServer, *owners: Identity, name: str = "phone \x1b[31m", doubt: str = ""
) -> list[tuple[Session, str]]:
    """App passwords, each with a session of its owner's beside it."""

    async def make() -> list[tuple[Session, str]]:
        found, of = [], settings(server)
        ring = KeyRing(of.seal_secrets)
        sessions, passwords = open_store(of, ring), AppPasswords(of, open_passwords(of, ring))
        try:
            for who in owners:
                grant = Grant(who, TOKENS, None, time.time())
                owner, _ = await sessions.create(grant, browser="b", address="192.0.2.7")
                found.append(await passwords.issue(owner, name, "dav", 86400 * 30))
            await passwords.doubt(doubt)
        finally:
            await passwords.close()
            await sessions.close()
        return found

    return asyncio.run(make())


def left(run: Run, *arguments: str) -> list[str]:
    return [json.loads(line)["id"] for line in run("passwords", "list", "--json", *arguments).output.splitlines()]


def test_list(server: RedisServer, run: Run) -> None:
    (ada, value), (bob, _) = made(server, ADA, BOB)
    result = run("passwords", "list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert set(lines) == {"ID", ada.id, bob.id}
    for part in ("ada-sub", "phone �[31m", "dav", "never", "29d", "0s ago"):
        assert part in lines[ada.id].replace("1s ago", "0s ago")
    assert "\x1b" not in result.output
    assert value[26:] not in result.output
    assert left(run, "--user", "bob-sub") == [bob.id]
    assert left(run, "--user", "nobody") == []


def test_list_for_programs(server: RedisServer, run: Run) -> None:
    ((ada, value),) = made(server, ADA, doubt="ada-sub")
    (line,) = run("passwords", "list", "--json").output.splitlines()
    found = json.loads(line)
    assert (found["id"], found["sub"], found["username"], found["route"]) == (ada.id, "ada-sub", "ada", "dav")
    assert (found["seen_at"], found["owner_seen_at"], found["address"]) == (None, None, "192.0.2.7")
    assert value[26:] not in line
    assert "waits for them" in run("passwords", "list").output


def test_revoke_one_and_leave_sessions_alone(server: RedisServer, run: Run) -> None:
    (ada, _), (bob, _) = made(server, ADA, BOB)
    assert run("passwords", "revoke", ada.id).output == "1 app password ended\n"
    assert left(run) == [bob.id]
    again = run("passwords", "revoke", ada.id)
    assert again.exit_code == 1
    assert "there is no app password" in again.output
    assert len(run("sessions", "list", "--json").output.splitlines()) == 2


def test_revoke_a_persons(server: RedisServer, run: Run) -> None:
    _, _, (bob, _) = made(server, ADA, ADA, BOB)
    assert run("passwords", "revoke", "--user", "ada-sub").output == "2 app passwords ended\n"
    assert left(run) == [bob.id]


def test_revoke_all(server: RedisServer, run: Run) -> None:
    made(server, ADA, ADA, BOB)
    assert run("passwords", "revoke", "--all", given="n\n").exit_code == 1
    assert len(left(run)) == 3
    assert "3 app passwords ended" in run("passwords", "revoke", "--all", given="y\n").output
    assert run("passwords", "revoke", "--all", "--yes").output == "0 app passwords ended\n"


@pytest.mark.parametrize("arguments", [(), ("A" * 22, "--all"), ("--user", "x", "--all"), ("A" * 22, "--user", "x")])
def test_one_way_at_a_time(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("passwords", "revoke", *arguments).exit_code == 2


def test_who_is_cut_off_is_so_with_their_app_passwords(server: RedisServer, run: Run) -> None:
    _, _, (bob, _) = made(server, ADA, ADA, BOB)
    result = run("sessions", "revoke", "--user", "ada-sub")
    assert result.output == "2 sessions ended\n2 app passwords ended\n"
    assert left(run) == [bob.id]
    assert run("sessions", "revoke", "--user", "bob-sub", "--keep-passwords").output == "1 session ended\n"
    assert left(run) == [bob.id]
    made(server, ADA)
    result = run("sessions", "revoke", "--all", given="y\n")
    assert "end every app password?" in result.output
    assert result.output.endswith("1 session ended\n2 app passwords ended\n")
    assert left(run) == []


def test_one_session_is_not_the_whole_person(server: RedisServer, run: Run) -> None:
    ((ada, _),) = made(server, ADA)
    (session,) = [json.loads(line)["id"] for line in run("sessions", "list", "--json").output.splitlines()]
    assert run("sessions", "revoke", session).output == "1 session ended\n"
    assert left(run) == [ada.id]


def test_the_store_must_be_there_and_shared(run: Run) -> None:
    result = run("passwords", "list", REDIS_URL="memory://")
    assert result.exit_code == 1
    assert "own memory" in result.output
