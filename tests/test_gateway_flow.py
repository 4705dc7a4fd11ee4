"""Sign-in and sign-out from end to end over real HTTP: a person with a browser, the gateway app, the stand-in Logto."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from proxy import cookies
from proxy.forwarding import parse_address
from proxy.gate import Gate
from proxy.gateway import create_app
from proxy.http1 import read_request
from proxy.identity import RelyingParty
from proxy.pages import Pages
from proxy.redirects import ReturnPaths
from proxy.routes import RouteTable
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig, SandboxState
from proxy.sandbox.run import address, listen, running, running_logto
from proxy.sealing import KeyRing
from proxy.session import MemoryStore
from proxy.settings import Settings, load
from proxy.verdict import Call, Kind
from tests.e2e.person import Page, Person

ROUTES = """
[[route]]
name = "wiki"
upstream = "http://127.0.0.1:9"
[[route]]
name = "vault"
path = "/vault"
upstream = "http://127.0.0.1:9"
allow = [{ users = ["nobody"] }]
[[route]]
name = "safe"
path = "/safe"
upstream = "http://127.0.0.1:9"
allow = [{ signed_in_within = "15m" }]
"""


@dataclass
class Site:
    """The running gateway."""

    url: str
    settings: Settings
    store: MemoryStore
    logto: SandboxState
    app: Any


def in_front(site: Site, gate: Gate) -> Any:
    """The relay's part in small: ask the gate, let "the app" answer what passes and the gateway all else."""

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = scope["raw_path"] + query
        fields = b"".join(b"%b: %b\r\n" % field for field in scope["headers"])
        read = read_request(b"%b %b HTTP/1.1\r\n%b\r\n" % (scope["method"].encode(), target, fields))
        assert read is not None
        head, client = read[0], scope["client"][0]
        host = head.host.decode()
        verdict = await gate.judge_later(head, host, parse_address(client))
        if verdict.kind is Kind.PASS:
            assert verdict.session is not None
            await PlainTextResponse(f"{verdict.session.identity.sub} at {target.decode()}")(scope, receive, send)
            return
        scope["postern"] = Call(verdict, "request-1", client, "http", host, f"http://{host}{target.decode('latin-1')}")
        await site.app(scope, receive, send)

    return front


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    config = SandboxConfig(
        always_issue_refresh_token=True,
        redirect_uris=(url + "/.postern/callback",),
        post_logout_redirect_uris=(url + "/.postern/signed-out",),
    )
    async with contextlib.AsyncExitStack() as stack:
        logto = await stack.enter_async_context(running_logto(config))
        file = folder / "postern.toml"
        file.write_text(
            f'public_url = "{url}"\n[logto]\nendpoint = "{logto.url}"\napp_id = "{SANDBOX_APP_ID}"\n'
            f'app_secret = "{SANDBOX_APP_SECRET}"\ntimeout = "2s"\n{ROUTES}'
        )
        settings = load(file, {})
        store = MemoryStore(idle=settings.session.idle, lifetime=settings.session.lifetime)
        relying_party = RelyingParty(settings, KeyRing(settings.seal_secrets), store.once)
        stack.push_async_callback(relying_party.close)
        gate = Gate(settings, RouteTable.from_settings(settings), store)
        returns = ReturnPaths(url, lambda _: False, settings.prefix)
        app = create_app(settings, gate, store, relying_party, Pages.from_settings(settings), returns)
        site = Site(url, settings, store, logto.state, app)
        await stack.enter_async_context(running(in_front(site, gate), listener))
        yield site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The site, on an event loop in a thread of its own: the person's browser blocks this one."""
    ready, over = threading.Event(), asyncio.Event()
    found: list[Site] = []
    loop = asyncio.new_event_loop()

    async def live() -> None:
        async with serving(tmp_path) as site:
            found.append(site)
            ready.set()
            await over.wait()

    def run() -> None:
        try:
            loop.run_until_complete(live())
        finally:
            loop.close()
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    assert found, "the site did not come up"
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)


def walk_in(person: Person, url: str, who: str = "Ada") -> Page:
    page = person.browse(url)
    if any("Continue with Discord" in label for label, _ in page.links):
        page = person.follow(page, "Continue with Discord")
    return onward(person, person.choose(page, who))


def onward(person: Person, page: Page) -> Page:
    """Let Logto's pages that submit themselves do so: on the way out, and when another account takes over."""
    while "/oidc/" in page.url:
        assert len(page.forms) == 1, page
        page = person.press(page)
    return page


def test_there_and_back_again(site: Site) -> None:
    with Person() as person:
        page = walk_in(person, site.url + "/deep/link?x=%2F&y=1|2")
        assert page.url == site.url + "/deep/link?x=%2F&y=1|2"
        assert page.text.endswith(" at /deep/link?x=%2F&y=1|2")
        home = person.browse(site.url + "/.postern/")
        assert "You can open" in home.text
        assert "wiki" in home.text
        assert "vault" not in home.text
        asked = person.browse(site.url + "/.postern/sign-out?return_to=/deep/link")
        page = onward(person, person.press(asked, "Sign out"))
        assert page.url == site.url + "/.postern/signed-out"
        assert "You are signed out" in page.text
        assert page.link("Continue") == site.url + "/deep/link"
        assert person.request("GET", site.url + "/.postern/me").status_code == 401
        # Signed out at Logto as well: the next visit asks who it is.
        assert "Continue with Discord" in str(person.browse(site.url + "/x").links)


def test_a_sign_out_takes_its_tokens_back(site: Site) -> None:
    with Person() as person:
        walk_in(person, site.url + "/page")
        assert {ticket.kind for ticket in site.logto.tickets.values()} >= {"access", "refresh"}
        asked = person.browse(site.url + "/.postern/sign-out")
        # Only the gateway's answer: the browser never gets as far as Logto's own sign-out.
        answer = person.request(
            "POST", asked.form("Sign out").action, headers={"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
        )
        assert answer.status_code == 303
        deadline = time.monotonic() + 10
        while any(ticket.kind == "refresh" for ticket in list(site.logto.tickets.values())):
            assert time.monotonic() < deadline, "the refresh token is still good"
            time.sleep(0.01)


def test_the_back_button_after_a_sign_in_frightens_nobody(site: Site) -> None:
    with Person() as person:
        page = walk_in(person, site.url + "/page")
        callback = next(url for url in page.trail if "/.postern/callback" in url)
        again = person.browse(callback)
        assert again.status == 200
        assert "You are already signed in" in again.text
        assert person.browse(site.url + "/page").text.endswith(" at /page")


def test_somebody_elses_callback_signs_nobody_in(site: Site) -> None:
    """Login CSRF: the attacker's callback in the victim's browser."""
    with Person() as attacker, Person() as victim:
        first = attacker.browse(site.url + "/page")
        choice = attacker.follow(first, "Continue with Discord")
        url = next(target for label, target in choice.links if "Ada" in label)
        while "/.postern/callback" not in url:
            answer = attacker.request("GET", url)
            assert answer.is_redirect, answer.text
            url = str(answer.next_request.url) if answer.next_request else ""
        page = victim.browse(url)
        assert page.status == 400
        assert "This sign-in cannot be finished" in page.text
        assert victim.jar.named(cookies.session_name(site.settings)) is None
        again = victim.follow(page, "Try again")
        assert "Continue with Discord" in str(again.links)


def test_cancelled_at_discord_and_tried_again(site: Site) -> None:
    with Person() as person:
        page = person.follow(person.browse(site.url + "/page"), "Continue with Discord")
        page = person.choose(page, "Cancel")
        page = walk_in(person, site.url + "/page")
        assert page.text.endswith(" at /page")


def test_another_account_after_a_no(site: Site) -> None:
    with Person() as person:
        walk_in(person, site.url + "/page")
        refused = person.browse(site.url + "/vault/gold")
        assert refused.status == 403
        assert "No rule lets this account in." in refused.text
        before = person.jar.named(cookies.session_name(site.settings))
        page = walk_in(person, refused.link("Use another account"), "Max")
        assert page.url == site.url + "/vault/gold"
        assert page.status == 403
        assert "Max" in page.text
        after = person.jar.named(cookies.session_name(site.settings))
        assert before is not None
        assert after is not None
        assert before.value != after.value


def test_pages_speak_the_readers_language(site: Site) -> None:
    with Person(language="zh-CN,zh;q=0.9") as person:
        page = person.browse(site.url + "/.postern/")
        assert page.language == "zh-CN"
        assert "您尚未登录" in page.text


def test_after_a_sign_in_of_long_ago_one_signs_in_again_and_goes_on(site: Site) -> None:
    with Person() as person:
        assert walk_in(person, site.url + "/safe/x?y=1").text.endswith(" at /safe/x?y=1")
        for kept in site.store._sessions.values():
            kept.session.signed_in_at -= 3600
        answer = person.request("GET", site.url + "/safe/api", headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()["reason"]) == (401, "sign_in_too_old")
        assert "prompt=login" in answer.json()["sign_in"]
        assert person.browse(site.url + "/other").text.endswith(" at /other")
        page = person.browse(site.url + "/safe/x?y=1")
        assert "Continue with Discord" in str(page.links), "Logto knows the person, and asks all the same"
        page = onward(person, person.choose(person.follow(page, "Continue with Discord"), "Ada"))
        assert page.url == site.url + "/safe/x?y=1"
        assert page.text.endswith(" at /safe/x?y=1")


def test_a_new_sign_in_that_logto_does_not_confirm_ends_with_a_page(site: Site) -> None:
    """A browser that takes the question out of the way to Logto gets neither a session nor a redirect to go round in."""
    with Person() as person:
        walk_in(person, site.url + "/safe")
        for kept in site.store._sessions.values():
            kept.session.signed_in_at -= 3600
        asked = person.request("GET", site.url + "/safe", headers={"Sec-Fetch-Mode": "navigate"})
        assert asked.status_code == 302
        stripped = asked.headers["location"].replace("prompt=login", "prompt=consent").replace("&max_age=", "&_=")
        page = onward(person, person.browse(stripped))
        assert page.status == 403
        assert "That was not a new sign-in" in page.text
        assert page.url.startswith(site.url + "/.postern/callback")
