"""From a Logto that holds nothing to a Discord sign-in in a browser, by the commands that the documentation names."""

from __future__ import annotations

import asyncio
import re
import shutil
import stat
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from proxy.sandbox import SANDBOX_ADMIN_SECRET, SandboxConfig
from proxy.sandbox.run import RunningLogto, running_logto
from tests.e2e.processes import Processes, free_port, run_postern
from tests.e2e.test_browser import FLAGS, PATIENCE

DISCORD = {"DISCORD_CLIENT_ID": "111111111111111111", "DISCORD_CLIENT_SECRET": "discord-secret-of-no-value"}
DEEP_LINK = "/reports/2026?quarter=3&q=a%20b"


@pytest.fixture
def empty_logto() -> Iterator[RunningLogto]:
    """A stand-in Logto with people and no application, no connector, no webhook."""
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, RunningLogto]] = []
    ready = threading.Event()

    async def hold() -> None:
        stop = asyncio.Event()
        async with running_logto(SandboxConfig(client_id="", client_secret="")) as logto:
            running.append((asyncio.get_running_loop(), stop, logto))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    assert ready.wait(20)
    loop, stop, logto = running[0]
    try:
        yield logto
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


@pytest.fixture
def page() -> Iterator[Page]:
    """A fresh profile in the system's Chromium, or in the one that playwright has been told to install."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_context(locale="en-GB").new_page()
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def test_a_logto_set_up_by_command_lets_a_person_in_by_discord(
    empty_logto: RunningLogto, group: Processes, page: Page, tmp_path: Path
) -> None:
    port, app = free_port(), free_port()
    url, config = f"http://localhost:{port}", tmp_path / "logto.toml"
    known = {"POSTERN_PUBLIC_URL": url, "LOGTO_ENDPOINT": empty_logto.url}
    way_in = {"LOGTO_ADMIN_SECRET": SANDBOX_ADMIN_SECRET, "LOGTO_ADMIN_ENDPOINT": empty_logto.url}

    (tmp_path / "empty.toml").touch()
    before = ("--config", str(tmp_path / "empty.toml"))
    made = run_postern("logto", "setup", *before, "--write-config", config, env=known | way_in | DISCORD, cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    assert f"{empty_logto.url}/callback/" in made.stdout, "the redirect that Discord's portal has to be told"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    written = tomllib.loads(config.read_text("utf-8"))["logto"]
    for secret in (SANDBOX_ADMIN_SECRET, DISCORD["DISCORD_CLIENT_SECRET"]):
        assert secret not in made.stdout + made.stderr + config.read_text("utf-8")
    again = run_postern("logto", "check", *before, env=known | way_in | DISCORD, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr

    group.postern("sample", "--port", str(app)).ready(f"http://127.0.0.1:{app}/api/me")
    upstream = {"POSTERN_LISTEN": f"127.0.0.1:{port}", "POSTERN_UPSTREAM": f"http://127.0.0.1:{app}"}
    gateway = group.postern("serve", "--config", config, env=known | upstream)
    gateway.ready(url + "/.postern/readyz", status=lambda status: status == 200)

    page.goto(url + DEEP_LINK)
    expect(page).to_have_url(re.compile(re.escape(empty_logto.url)))
    page.get_by_text("Continue with Discord").click()
    page.get_by_role("link", name=re.compile("Ada")).click()
    expect(page).to_have_url(url + DEEP_LINK)
    expect(page.locator("#user")).to_contain_text("Ada")
    token = empty_logto.state.received("token")[-1]
    assert (token.params["client_id"], token.answered) == (written["app_id"], [200])

    # What the setup registered for the way out, too: back by way of Logto, and nobody is signed in any more.
    page.locator("#sign-out").click()
    expect(page).to_have_url(re.compile(re.escape(url) + r"/\.postern/signed-out"))
    assert page.request.get(url + "/.postern/me").status == 401
