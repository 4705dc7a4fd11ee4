"""App passwords as people use them: made in a browser, then given to a calendar client, to git, to curl; and taken back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import caldav
import caldav.lib.error
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.person import Person
from tests.e2e.processes import Processes, eventually, free_port, start_redis

ROOT = Path(__file__).resolve().parent.parent.parent
ROUTES = """
[[route]]
name = "calendars"
path = "/dav"
upstream = "{radicale}"
preset = "radicale"
strip_prefix = "/dav"
headers = {{ set = {{ X-Script-Name = "/dav" }} }}
app_passwords = true

[[route]]
name = "git"
path = "/git"
upstream = "{git}"
strip_prefix = "/git"
app_passwords = true
"""
EVENT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Postern//end to end//EN
BEGIN:VEVENT
UID:board-meeting@example.com
DTSTAMP:20260101T000000Z
DTSTART:20260601T090000Z
DTEND:20260601T100000Z
SUMMARY:Board meeting
END:VEVENT
END:VCALENDAR
"""
VALUE = re.compile(r"ppw_[A-Za-z0-9_-]{65}")
COMMANDS = 60.0  # seconds for one run of git, curl or postern, on a busy machine


@dataclass(frozen=True)
class Site:
    """A gateway of two workers before a Radicale and a git server, with sessions in Redis."""

    gateway: Gateway
    env: dict[str, str]
    home: Path

    @property
    def url(self) -> str:
        return self.gateway.url

    def run(
        self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that knows nothing of whoever runs the tests, and asks nobody for anything."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "GIT_TERMINAL_PROMPT": "0", **(env or {})}
        arguments = [str(part) for part in command]
        return subprocess.run(
            arguments,
            cwd=cwd or self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMANDS,
            check=False,
        )

    def git(
        self, *arguments: str | Path, password: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run git as somebody whose credential helper knows `password`."""
        helper = '!f() { test "$1" = get && echo username=anybody && echo "password=$PASSWORD"; }; f'
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", f"credential.helper={helper}"]
        return self.run("git", *who, *arguments, cwd=cwd, env={"PASSWORD": password})

    def postern(self, *arguments: str) -> str:
        done = self.run(Path(sys.executable).with_name("postern"), *arguments, env=self.env)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def site(group: Processes, start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("home")
    radicale, git, repositories = free_port(), free_port(), home / "repositories"
    config = home / "radicale"
    config.write_text(
        f"[server]\nhosts = 127.0.0.1:{radicale}\n[auth]\ntype = http_x_remote_user\n[rights]\ntype = owner_only\n"
        f"[storage]\nfilesystem_folder = {home / 'collections'}\n"
    )
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", repositories / "notes.git"], check=True)
    _, redis = start_redis(group)
    servers = (
        (group.start("radicale", [sys.executable, "-m", "radicale", "--config", config]), radicale),
        (group.start("git", [sys.executable, "-m", "tests.e2e.git_server", str(git), repositories], cwd=ROOT), git),
    )
    for server, port in servers:
        server.ready(f"http://127.0.0.1:{port}/")
    routes = ROUTES.format(radicale=f"http://127.0.0.1:{radicale}", git=f"http://127.0.0.1:{git}")
    env = {"REDIS_URL": redis, "POSTERN_SECRET": "s" * 40, "POSTERN_WORKERS": "2"}
    gateway = start_gateway("passwords", routes, env=env)
    more = {
        "POSTERN_CONFIG": str(group.directory / "passwords.toml"),
        "POSTERN_PUBLIC_URL": gateway.url,
        "LOGTO_ENDPOINT": "http://localhost:9",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "s" * 32,
    }
    return Site(gateway, {**env, **more}, home)


@pytest.fixture
def ada(site: Site) -> Iterator[Person]:
    with site.gateway.signed_in("Ada") as person:
        yield person


def made(site: Site, person: Person, route: str) -> str:
    """An app password, as somebody makes one."""
    page = person.browse(site.url + "/.postern/passwords")
    page = person.press(page, "Make an app password", name=f"a program for {route}", route=route, days="30")
    assert page.status == 200, page
    (value,) = VALUE.findall(page.text)
    return str(value)


def test_a_calendar_client_works_until_its_password_is_revoked(site: Site, ada: Person) -> None:
    password = made(site, ada, "calendars")
    with caldav.DAVClient(site.url + "/dav/", username="whoever", password=password) as client:
        calendar = client.principal().make_calendar(name="Board")
        calendar.save_event(EVENT)
        assert [str(event.icalendar_component["SUMMARY"]) for event in calendar.events()] == ["Board meeting"]
        me = ada.request("GET", site.url + "/.postern/me").json()["username"]
        assert str(calendar.url.path).startswith(f"/dav/{me}/")
        page = ada.browse(site.url + "/.postern/passwords")
        assert "last used 20" in page.text
        page = ada.press(page, "Revoke")
        assert page.url == site.url + "/.postern/passwords"

        def refused() -> bool:
            try:
                calendar.events()
            except caldav.lib.error.AuthorizationError:
                return True
            return False

        eventually(refused, what="both workers refuse it")


def test_git_asks_for_a_password_and_pushes_as_its_owner(site: Site, ada: Person, tmp_path: Path) -> None:
    url, there = site.url + "/git/notes.git", tmp_path / "notes"
    password, other = made(site, ada, "git"), made(site, ada, "calendars")
    refused = site.git("clone", "-q", url, there, password=other)
    assert refused.returncode != 0
    assert "Authentication failed" in refused.stderr
    assert site.git("clone", "-q", url, there, password=password).returncode == 0
    (there / "note").write_bytes(os.urandom(300_000))
    for step in (("add", "note"), ("commit", "-q", "-m", "A note"), ("push", "-q", "origin", "HEAD:main")):
        done = site.git(*step, cwd=there, password=password)
        assert done.returncode == 0, done.stderr
    assert "refs/heads/main" in site.git("ls-remote", url, password=password).stdout
    log = site.run("git", "-C", site.home / "repositories" / "notes.git", "log", "-1", "--format=%s", "main")
    assert log.stdout == "A note\n"


def test_curl_by_either_way_until_an_operator_ends_it(site: Site, ada: Person) -> None:
    password, target = made(site, ada, "git"), site.url + "/git/notes.git/HEAD"

    def status(*how: str) -> str:
        return site.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *how, target).stdout

    assert status() == "401"
    assert status("-u", f"ada:{password}") == "200"
    assert status("-H", f"Authorization: Bearer {password}") == "200"
    listed = site.postern("passwords", "list")
    assert "a program for git" in listed
    assert password not in listed
    sub = ada.request("GET", site.url + "/.postern/me").json()["sub"]
    assert "ended" in site.postern("passwords", "revoke", "--user", sub)
    eventually(lambda: status("-u", f"ada:{password}") == "401", what="the gateway hears of the end")
    assert ada.request("GET", site.url + "/.postern/me").status_code == 200, "the session goes on"
    assert password not in site.gateway.running.output()


def test_in_a_real_browser_by_keyboard_alone(site: Site) -> None:
    """What the page's own policy forbids, a browser would not do."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_context(locale="en-GB", color_scheme="dark").new_page()
            page.set_default_timeout(30_000)
            page.on("console", lambda message: complaints.append(message.text))
            page.goto(site.url + "/.postern/")
            page.get_by_role("link", name="Sign in").click()
            if page.get_by_text("Continue with Discord").count():
                page.get_by_text("Continue with Discord").first.click()
            page.get_by_text("Max").first.click()
            page.get_by_role("link", name="App passwords").press("Enter")
            page.get_by_label("Name").fill("Kalender")
            page.get_by_label("Name").press("Enter")
            expect(page.get_by_role("heading", name="Your new app password")).to_be_visible()
            (value,) = VALUE.findall(page.locator("code").first.inner_text())
            assert value not in page.url
            page.get_by_role("link", name="App passwords").press("Enter")
            expect(page.get_by_text("Kalender")).to_be_visible()
            assert value not in page.content()
            page.get_by_role("button", name="Revoke the app password Kalender").press("Enter")
            expect(page.get_by_text("Kalender")).to_have_count(0)
        finally:
            browser.close()
    assert complaints == []
