"""`postern sessions`: what operators see and end, on a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from proxy.claims import Grant, identity_from_claims
from proxy.cli import main
from proxy.sealing import KeyRing
from proxy.session import Session
from proxy.sessions_command import span
from tests.e2e.processes import free_port
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import TOKENS, known, store_at, until, workers

SECRET = "s" * 40
ADA = identity_from_claims(
    {"sub": "ada-sub", "username": "ada", "name": "Ada \x1b[31mL.", "email": "ada@example.test", "email_verified": True,
     "roles": ["ops", "dev"]}
)  # fmt: skip
BOB = identity_from_claims({"sub": "bob-sub"})
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.do("FLUSHALL")
    return shared


@pytest.fixture
def run(server: RedisServer) -> Run:
    def run(*arguments: str, given: str | None = None, **environ: str) -> Result:
        env = {
            "POSTERN_PUBLIC_URL": "https://apps.example.com",
            "POSTERN_UPSTREAM": "http://127.0.0.1:9",
            "POSTERN_SECRET": SECRET,
            "LOGTO_ENDPOINT": "https://auth.example.com",
            "LOGTO_APP_ID": "app",
            "LOGTO_APP_SECRET": "s" * 32,
            "REDIS_URL": server.url,
        }
        return CliRunner().invoke(main, ["sessions", *arguments], env=env | environ, input=given)

    return run


def made(server: RedisServer, *identities: Any) -> list[tuple[Session, str]]:
    async def make() -> list[tuple[Session, str]]:
        store = store_at(server.url, ring=KeyRing([SECRET.encode()]))
        found = [
            await store.create(Grant(who, TOKENS, "logto-sid", 1.0), browser=FIREFOX, address="192.0.2.7")
            for who in identities
        ]
        await store.close()
        return found

    return asyncio.run(make())


def test_list(server: RedisServer, run: Run) -> None:
    (ada, cookie), (bob, _) = made(server, ADA, BOB)
    result = run("list")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert set(lines) == {"ID", ada.id, bob.id}
    for part in ("ada-sub", "Ada �[31mL.", "192.0.2.7", "Firefox on Linux", "0s", "23h"):
        assert part in lines[ada.id]
    assert "\x1b" not in result.output
    assert cookie.split(".")[2] not in result.output
    assert run("list", "--user", "bob-sub").output.splitlines()[1].startswith(bob.id)
    assert len(run("list", "--user", "nobody").output.splitlines()) == 1


def test_list_for_programs(server: RedisServer, run: Run) -> None:
    ((ada, _),) = made(server, ADA)
    (line,) = run("list", "--json").output.splitlines()
    found = json.loads(line)
    assert found["id"] == ada.id
    assert found["roles"] == ["ops", "dev"]
    assert found["email"] == "ada@example.test"
    assert found["logto_session"] == "logto-sid"
    assert found["created_at"].endswith("+00:00")
    assert not any(token in line for token in ("id-token", "refresh"))


def test_show(server: RedisServer, run: Run) -> None:
    (ada, _), (bob, _) = made(server, ADA, BOB)
    result = run("show", ada.id)
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert shown["sub"] == "ada-sub"
    assert shown["roles"] == "ops, dev"
    assert shown["browser"] == FIREFOX
    assert shown["application"] == "-"
    assert "email          -" in run("show", bob.id).output


@pytest.mark.parametrize("session_id", ["A" * 22, "*", "\x1b[2J"])
@pytest.mark.parametrize("command", ["show", "revoke"])
def test_no_such_session(run: Run, command: str, session_id: str) -> None:
    result = run(command, session_id)
    assert result.exit_code == 1
    assert "there is no session" in result.output
    assert "\x1b" not in result.output


def test_revoke_one(server: RedisServer, run: Run) -> None:
    (ada, _), (bob, _) = made(server, ADA, BOB)
    assert "1 session ended" in run("revoke", ada.id).output
    assert run("show", ada.id).exit_code == 1
    assert run("show", bob.id).exit_code == 0
    assert run("revoke", ada.id).exit_code == 1


def test_revoke_a_persons(server: RedisServer, run: Run) -> None:
    _, _, (bob, _) = made(server, ADA, ADA, BOB)
    assert "2 sessions ended" in run("revoke", "--user", "ada-sub").output
    assert run("show", bob.id).exit_code == 0
    result = run("revoke", "--user", "ada-sub")
    assert (result.exit_code, result.output) == (0, "0 sessions ended\n")


def test_revoke_all(server: RedisServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.sessions_command._AT_ONCE", 2)
    made(server, *[ADA] * 3, BOB, BOB)
    assert run("revoke", "--all", given="n\n").exit_code == 1
    assert len(run("list").output.splitlines()) == 6
    result = run("revoke", "--all", given="y\n")
    assert "5 sessions ended" in result.output
    made(server, BOB)
    assert run("revoke", "--all", "--yes").output == "1 session ended\n"
    assert len(run("list").output.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("A" * 22, "--all"), ("--user", "x", "--all"), ("A" * 22, "--user", "x")])
def test_one_way_at_a_time(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("revoke", *arguments).exit_code == 2


def test_a_running_gateway_hears_of_it(server: RedisServer, run: Run) -> None:
    async def conversation() -> None:
        async with workers(server.url, 1, ring=KeyRing([SECRET.encode()])) as (store,):
            session, cookie = await store.create(Grant(ADA, TOKENS, None, 1.0), browser="b", address="a")
            await known(store, cookie)
            left: list[Any] = []
            store.on_leftover(left.append)
            assert (await asyncio.to_thread(run, "revoke", session.id)).exit_code == 0
            await until(lambda: store.peek(cookie) is None)
            await until(lambda: left == [TOKENS])

    asyncio.run(conversation())


def test_the_store_must_be_there_and_shared(run: Run) -> None:
    result = run("list", REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert result.exit_code == 1
    assert "the session store cannot be asked" in result.output
    result = run("list", REDIS_URL="memory://")
    assert result.exit_code == 1
    assert "own memory" in result.output
    result = run("list", LOGTO_ENDPOINT="nonsense")
    assert result.exit_code == 2
    assert "logto.endpoint" in result.output or "LOGTO_ENDPOINT" in result.output


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (7199, "1h"), (86400 * 3, "3d")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text
