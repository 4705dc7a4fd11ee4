"""`postern logto` as it is typed: options, environment, exit status, what it says and what it never says."""

from __future__ import annotations

import asyncio
import re
import threading
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.logto_command import VARIABLES
from proxy.sandbox import SANDBOX_ADMIN_SECRET, SandboxConfig, SandboxState
from proxy.sandbox.faults import Fault
from proxy.sandbox.run import running_logto
from tests.logto_stand import DISCORD, PUBLIC


@dataclass
class Desk:
    """A stand-in Logto in a thread, and somebody at a terminal."""

    url: str
    state: SandboxState
    folder: Path

    def type(self, *arguments: str, answer: str = "", env: Mapping[str, str | None] | None = None) -> Result:
        known = dict.fromkeys([*VARIABLES, "DISCORD_CLIENT_ID", "DISCORD_CLIENT_SECRET", "POSTERN_CONFIG"])
        given = {
            "POSTERN_PUBLIC_URL": PUBLIC,
            "LOGTO_ENDPOINT": self.url,
            "LOGTO_ADMIN_ENDPOINT": self.url,
            "LOGTO_ADMIN_SECRET": SANDBOX_ADMIN_SECRET,
        }
        config = self.folder / "empty.toml"
        config.touch()
        result = CliRunner().invoke(
            main,
            ["logto", arguments[0], "--config", str(config), *arguments[1:]],
            answer,
            {**known, **given, **(env or {})},
        )
        assert SANDBOX_ADMIN_SECRET not in result.output
        assert DISCORD[1] not in result.output
        return result


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, str, SandboxState]] = []
    ready = threading.Event()

    async def hold() -> None:
        stop = asyncio.Event()
        async with running_logto(SandboxConfig(client_id="", client_secret="")) as logto:
            loops.append((asyncio.get_running_loop(), stop, logto.url, logto.state))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    assert ready.wait(20)
    loop, stop, url, state = loops[0]
    try:
        yield Desk(url, state, tmp_path)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


def test_from_nothing_to_settings_and_back(desk: Desk) -> None:
    secret = desk.folder / "discord"
    secret.write_text(DISCORD[1] + "\n")
    discord: dict[str, str | None] = {"DISCORD_CLIENT_ID": DISCORD[0], "DISCORD_CLIENT_SECRET_FILE": str(secret)}
    plan = desk.type("setup", "--dry-run", env=discord)
    assert (plan.exit_code, desk.state.console.applications) == (0, {})
    assert re.search(
        r"^create\s+application Postern \(redirectUris: https://apps.example.com", plan.output, re.MULTILINE
    )
    assert "nothing was done" in plan.output
    assert desk.type("check", env=discord).exit_code == 1

    env = desk.folder / ".env"
    made = desk.type("setup", "--write-env", str(env), "--role", "ops", "--discord-only", env=discord)
    assert made.exit_code == 0, made.output
    assert f"{desk.url}/callback/sandboxdiscd" in made.output
    assert desk.state.config.client_secret not in made.output  # it is in the file
    written = dict(line.split("=", 1) for line in env.read_text().splitlines())
    assert written["LOGTO_APP_SECRET"] == desk.state.config.client_secret

    config = desk.folder / "made.toml"
    assert desk.type("setup", "--discord-only", "--write-config", str(config), env=discord).exit_code == 0
    assert tomllib.loads(config.read_text())["logto"]["app_id"] == desk.state.config.client_id

    own: dict[str, str | None] = {"LOGTO_ADMIN_SECRET": None, **written, **discord}
    again = desk.type("setup", "--role", "ops", "--discord-only", env=own)
    assert "nothing to do" in again.output
    assert f"LOGTO_APP_ID={desk.state.config.client_id}" in again.output
    assert desk.type("check", "--role", "ops", env=own).exit_code == 0

    desk.state.console.hooks.clear()
    differing = desk.type("check", env=own)
    assert differing.exit_code == 1
    assert "is missing; `postern logto setup` makes it" in differing.output
    (connector,) = desk.state.console.connectors.values()
    connector["config"]["clientId"] = "another"
    assert "differs (clientId); `postern logto setup` corrects it" in desk.type("check", env=own).output

    assert desk.type("remove", answer="n\n", env=own).exit_code == 1
    assert desk.type("remove", "--dry-run", env=own).exit_code == 0
    assert len(desk.state.console.applications) == 2
    assert desk.type("remove", "--yes", env=own).exit_code == 0
    assert desk.state.console.applications == {}
    assert "nothing of the gateway's" in desk.type("remove", "--yes").output


@pytest.mark.parametrize(
    ("environ", "status", "said"),
    [
        ({"LOGTO_ADMIN_SECRET": None}, 2, "LOGTO_M2M_ID"),
        ({"LOGTO_ADMIN_SECRET": None, "LOGTO_ADMIN_SECRET_FILE": "/nonexistent"}, 2, "LOGTO_ADMIN_SECRET_FILE"),
        ({"DISCORD_CLIENT_ID": "1"}, 2, "only one is given"),
        ({"DISCORD_CLIENT_SECRET": DISCORD[1]}, 2, "only one is given"),
        ({"POSTERN_PUBLIC_URL": "nonsense"}, 2, "POSTERN_PUBLIC_URL"),
        ({"LOGTO_ADMIN_SECRET": "wrong"}, 1, "Logto refused: invalid_client"),
        ({"LOGTO_ADMIN_ENDPOINT": "http://127.0.0.1:9"}, 1, "goes on where it stopped"),
    ],
)
def test_what_is_missing_or_wrong_is_said(desk: Desk, environ: dict[str, str | None], status: int, said: str) -> None:
    result = desk.type("setup", env=environ)
    assert (result.exit_code, desk.state.console.applications) == (status, {})
    assert said in result.output


def test_an_outage_in_the_middle_says_how_to_go_on(desk: Desk) -> None:
    desk.state.faults.append(Fault("page", status=502))
    result = desk.type("setup")
    assert (result.exit_code, "run the command again" in result.output) == (1, True)
    desk.state.faults.clear()
    assert desk.type("setup").exit_code == 0


def test_an_env_file_that_cannot_be_written_is_said_so(desk: Desk) -> None:
    result = desk.type("setup", "--write-env", str(desk.folder / "missing" / ".env"))
    assert result.exit_code == 1
    assert "No such file" in result.output
