"""The demo in a real browser: Chromium, driven as a person would, with the browser's own cookies, caches and rules."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.certificates import Authority
from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.processes import Processes, free_port

# What keeps a browser from calling home and from trying what a loopback test has no use for.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DEEP_LINK = "/reports/2026?quarter=3&q=a%20b"
PATIENCE = 15_000  # milliseconds

Open = Callable[..., BrowserContext]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, or the one that playwright has been told to install: see scripts/browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=FLAGS,
            # Playwright turns the back-forward cache off; what it may show after a sign-out is part of the question.
            ignore_default_args=["--disable-back-forward-cache"],
        )
        yield browser
        browser.close()


@pytest.fixture
def someone(browser: Browser) -> Iterator[Open]:
    """Open a fresh browser profile; at the end no page of it may have broken its own security policy or thrown."""
    opened: list[BrowserContext] = []
    complaints: list[str] = []

    def open_profile(**options: Any) -> BrowserContext:
        context = browser.new_context(**{"locale": "en-GB", **options})
        context.set_default_timeout(PATIENCE)
        context.on("console", lambda message: complaints.append(message.text) if _grave(message.text) else None)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        opened.append(context)
        return context

    yield open_profile
    for context in opened:
        context.close()
    assert complaints == []


@pytest.fixture
def page(someone: Open) -> Page:
    return someone().new_page()


def test_a_deep_link_survives_the_sign_in_and_asks_again_after_the_sign_out(demo: Gateway, page: Page) -> None:
    page.goto(demo.url + DEEP_LINK)
    _sign_in(page, "Ada")
    expect(page).to_have_url(demo.url + DEEP_LINK)
    expect(page.locator("#user")).to_contain_text("Ada")
    expect(page.locator("#path")).to_contain_text(DEEP_LINK)
    _ticks(page, "#ws-tick")
    _ticks(page, "#sse-tick")
    _sign_out(page)
    expect(page).to_have_url(re.compile(re.escape(demo.url) + r"/\.postern/signed-out"))
    page.goto(demo.url + DEEP_LINK)
    expect(page.get_by_role("link", name=re.compile("Ada"))).to_be_visible()


def test_the_back_button_shows_nothing_private_after_the_sign_out(demo: Gateway, page: Page) -> None:
    page.goto(demo.url + DEEP_LINK)
    _sign_in(page, "Ada")
    expect(page.locator("#user")).to_contain_text("Ada")
    _sign_out(page)
    page.wait_for_url(re.compile("/signed-out"))
    statuses: list[int] = []
    page.on("response", lambda answer: statuses.append(answer.status) if answer.url == demo.url + DEEP_LINK else None)
    while page.url != "about:blank":
        page.go_back()
        expect(page.locator("#user")).to_have_count(0)
        assert "ada@example.test" not in page.content()
    assert statuses == [302], "the private page was asked for anew, and refused"


def test_two_tabs_that_ask_at_once_both_arrive(demo: Gateway, someone: Open) -> None:
    profile = someone()
    older, newer = profile.new_page(), profile.new_page()
    older.goto(demo.url + "/reports/older")
    newer.goto(demo.url + "/reports/newer")
    _sign_in(newer, "Ada")
    expect(newer).to_have_url(demo.url + "/reports/newer")
    # Logto knows one sign-in per browser, and this was it: the other tab has only to ask again.
    older.goto(demo.url + "/reports/older")
    expect(older).to_have_url(demo.url + "/reports/older")
    for tab in (older, newer):
        expect(tab.locator("#user")).to_contain_text("Ada")


def test_the_older_of_two_tabs_is_not_turned_away(demo: Gateway, someone: Open) -> None:
    """Logto finishes the newer attempt whichever tab it is finished in: its state must be known, and one session result."""
    profile = someone()
    older, newer = profile.new_page(), profile.new_page()
    older.goto(demo.url + "/reports/older")
    newer.goto(demo.url + "/reports/newer")
    _sign_in(older, "Ada")
    expect(older).to_have_url(demo.url + "/reports/newer")
    newer.goto(demo.url + "/reports/newer")
    for tab in (older, newer):
        expect(tab.locator("#user")).to_contain_text("Ada")


def test_signing_out_in_one_tab_ends_what_is_live_in_another(demo: Gateway, someone: Open) -> None:
    """A tunnel that outlives its session would go on telling what nobody may read any more."""
    profile = someone()
    live, other = profile.new_page(), profile.new_page()
    live.goto(demo.url + "/")
    _sign_in(live, "Ada")
    expect(live.locator("#ws-state")).to_have_text("connected")
    expect(live.locator("#sse-state")).to_have_text("connected")
    other.goto(demo.url + "/")
    _sign_out(other)
    expect(live.locator("#ws-state")).not_to_have_text("connected")
    expect(live.locator("#sse-state")).not_to_have_text("connected")


def test_ones_other_sessions_are_ended_from_the_page_about_oneself(demo: Gateway, someone: Open) -> None:
    here, lost = someone().new_page(), someone().new_page()
    here.goto(demo.url + "/.postern/sign-in")
    _sign_in(here, "Max")
    for button in ("End all others", re.compile("^End the session: Chrome on Linux, ")):
        lost.goto(demo.url + "/")
        _sign_in(lost, "Max")
        expect(lost.locator("#ws-state")).to_have_text("connected")
        here.goto(demo.url + "/.postern/")
        expect(here.get_by_text("this one")).to_have_count(1)
        here.get_by_role("button", name=button).click()
        expect(lost.locator("#ws-state")).not_to_have_text("connected")
        expect(here).to_have_url(demo.url + "/.postern/")
        expect(here.get_by_role("button", name=re.compile("^End"))).to_have_count(0)
        lost.context.clear_cookies()  # Logto knows the person there still, and would let them in again without a question
        lost.goto(demo.url + "/")
        expect(lost.get_by_role("link", name=re.compile("Max"))).to_be_visible()


def test_a_name_in_any_script_is_shown_as_it_is(demo: Gateway, page: Page) -> None:
    page.goto(demo.url + "/")
    _sign_in(page, "汉字 é 😀")
    expect(page.locator("#user")).to_contain_text("汉字 é 😀")
    page.goto(demo.url + "/.postern/")
    expect(page.locator("body")).to_contain_text("汉字 é 😀")


def test_somebody_who_says_no_to_discord_finds_a_way_back(demo: Gateway, page: Page) -> None:
    page.goto(demo.url + DEEP_LINK)
    _to_discord(page)
    page.get_by_role("link", name=re.compile("Cancel")).click()
    expect(page.locator("#user")).to_have_count(0)
    page.get_by_role("link", name=re.compile("again|back", re.IGNORECASE)).first.click()
    _sign_in(page, "Max")
    expect(page).to_have_url(demo.url + DEEP_LINK)
    expect(page.locator("#user")).to_contain_text("Max")


def test_the_sign_out_page_works_by_keyboard_alone(demo: Gateway, page: Page) -> None:
    page.goto(demo.url + "/")
    _sign_in(page, "Max")
    expect(page.locator("#user")).to_contain_text("Max")
    page.goto(demo.url + "/.postern/sign-out")
    for _ in range(10):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => ({text: document.activeElement.innerText, outline: getComputedStyle(document.activeElement).outlineStyle})"
        )
        assert focused["outline"] != "none", focused  # whoever cannot see where they are cannot work by keyboard
        if focused["text"] == "Sign out":
            break
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/signed-out"))
    assert page.request.get(demo.url + "/.postern/me").status == 401


def test_a_chinese_browser_reads_chinese(demo: Gateway, someone: Open) -> None:
    page = someone(locale="zh-CN").new_page()
    page.goto(demo.url + "/")
    _sign_in(page, "Ada")
    for path, words in (("/.postern/", "您已登录"), ("/.postern/sign-out", "退出登录"), ("/.postern/nowhere", "没有")):
        page.goto(demo.url + path)
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("body")).to_contain_text(words)


def test_a_script_whose_session_has_ended_is_told_so_and_not_sent_elsewhere(demo: Gateway, someone: Open) -> None:
    """A redirect to another origin would make fetch fail for CORS, and the page could not tell why."""
    profile = someone()
    page = profile.new_page()
    page.goto(demo.url + "/")
    _sign_in(page, "Ada")
    assert page.evaluate("() => fetch('/api/me').then(answer => answer.status)") == 200
    profile.clear_cookies()
    answer = page.evaluate(
        "() => fetch('/api/me').then(async answer => ({status: answer.status, problem: await answer.json()}))"
    )
    assert answer["status"] == 401
    assert answer["problem"]["sign_in"].startswith(demo.url + "/.postern/sign-in?return_to=")


def test_over_tls_the_cookies_are_the_gateways_alone(
    group: Processes, start_gateway: StartGateway, someone: Open, tmp_path: Path
) -> None:
    """`__Host-`: no other host, no plain HTTP and no script can set or read it. Browsers count another scheme as another
    site, so this is also a sign-in at a foreign site, which the cookie of the attempt has to survive."""
    port = free_port()
    group.postern("sandbox", "--port", str(free_port()), "--app-port", str(port)).ready(
        f"http://127.0.0.1:{port}/api/me"
    )
    gateway = start_gateway("tls", f"http://127.0.0.1:{port}", env=_certificate(tmp_path))
    profile = someone(ignore_https_errors=True)
    page = profile.new_page()
    page.goto(gateway.url + DEEP_LINK)
    _sign_in(page, "Max")
    expect(page).to_have_url(gateway.url + DEEP_LINK)
    expect(page.locator("#ws-state")).to_have_text("connected")
    ours = [cookie for cookie in profile.cookies() if "postern" in cookie["name"]]
    assert [(cookie["name"], cookie["path"]) for cookie in ours] == [("__Host-postern", "/")]
    assert (ours[0]["secure"], ours[0]["httpOnly"], ours[0]["sameSite"]) == (True, True, "Lax")
    assert "__Host-postern" not in page.evaluate("() => document.cookie")
    _sign_out(page)
    expect(page).to_have_url(re.compile(re.escape(gateway.url) + r"/\.postern/signed-out"))
    assert [cookie["name"] for cookie in profile.cookies() if "postern" in cookie["name"]] == []


def _certificate(directory: Path) -> dict[str, str]:
    """A certificate for localhost that nobody vouches for, as settings in the environment."""
    cert, key = Authority(directory).issue("gateway", "localhost")
    return {"POSTERN_TLS__CERT": str(cert), "POSTERN_TLS__KEY": str(key)}


def _to_discord(page: Page) -> None:
    button = page.get_by_text("Continue with Discord")
    button.or_(page.get_by_role("link", name=re.compile("Cancel"))).first.wait_for()
    if button.count():
        button.click()


def _sign_in(page: Page, who: str) -> None:
    _to_discord(page)
    page.get_by_role("link", name=re.compile(who)).or_(page.get_by_role("button", name=re.compile(who))).first.click()


def _sign_out(page: Page) -> None:
    page.locator("#sign-out").click()


def _ticks(page: Page, where: str) -> None:
    """What stands at `where` changes by itself: something live feeds it."""
    clock = page.locator(where)
    expect(clock).to_have_text(re.compile(r"\d"))
    seen = clock.inner_text()
    expect(clock).not_to_have_text(seen)


def _grave(text: str) -> bool:
    return "Content Security Policy" in text or "Refused to" in text
