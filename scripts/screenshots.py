"""Photograph every page, light and dark, 390 and 1280 pixels wide: `python scripts/screenshots.py DIRECTORY [--locale zh-CN]`.

Needs what `make test` installs. Starts the demo, and gateways whose surroundings are broken on purpose, walks through
all in Chromium, and writes DIRECTORY/<page>-<light|dark>-<width>.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET  # noqa: E402 -- found through the line above
from tests.e2e.processes import Processes, free_port, processes, start_sandbox  # noqa: E402 -- likewise

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDTHS = (390, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
BROKEN = """
[[route]]
name = "upstream-down"
path = "/down"
upstream = "http://127.0.0.1:{closed}"
allow = "everyone"

[[route]]
name = "forbidden"
path = "/forbidden"
upstream = "http://127.0.0.1:{closed}"
allow = [{{ roles = ["nobody-has-this-role"] }}]
"""


@dataclass(frozen=True, slots=True)
class Sites:
    """Base URLs: the demo, a gateway without its app, and one without Logto."""

    demo: str
    no_app: str
    no_logto: str


def main() -> None:
    """Read the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--locale", default="en-GB")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as logs, processes(Path(logs)) as group, sync_playwright() as playwright:
        sites = Sites(_start_demo(group), _start_broken(group, logto=True), _start_broken(group, logto=False))
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for scheme in SCHEMES:
            for width in WIDTHS:
                for name in _walk(browser, sites, given.locale, scheme, width, given.directory):
                    print(name)
        browser.close()


def _start_demo(group: Processes) -> str:
    port = free_port(3)
    running = group.postern("demo", "--port", str(port))
    url = f"http://localhost:{port}"
    running.ready(url + "/.postern/healthz")
    return url


def _start_broken(group: Processes, *, logto: bool) -> str:
    """A gateway whose app is gone and, without `logto`, Logto too."""
    port, closed = free_port(), free_port()
    url = f"http://localhost:{port}"
    config = group.directory / f"broken-{port}.toml"
    config.write_text(BROKEN.format(closed=closed), encoding="utf-8")
    settings = {
        "POSTERN_PUBLIC_URL": url,
        "POSTERN_LISTEN": f"127.0.0.1:{port}",
        "LOGTO_ENDPOINT": start_sandbox(group, url).url if logto else f"http://localhost:{closed}",
        "LOGTO_APP_ID": SANDBOX_APP_ID,
        "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
    }
    group.postern("serve", "--config", config, env=settings).ready(url + "/.postern/healthz")
    return url


def _walk(
    browser: Browser, sites: Sites, locale: str, scheme: Literal["light", "dark"], width: int, directory: Path
) -> Iterator[str]:
    """One browser profile's way past every page; yields the names of the pictures. A scene without a name is a step."""
    context = browser.new_context(
        locale=locale, color_scheme=scheme, viewport={"width": width, "height": 844}, device_scale_factor=2
    )
    page = context.new_page()
    for name, go in _scenes(page, sites):
        go()
        page.wait_for_load_state("load")
        if not name:
            continue
        target = directory / f"{name}-{scheme}-{width}.png"
        page.screenshot(path=target, full_page=True)
        yield target.name
    context.close()


def _scenes(page: Page, sites: Sites) -> Iterator[tuple[str, Callable[[], object]]]:
    demo, broken = sites.demo, sites.no_app

    def at(url: str) -> Callable[[], object]:
        return lambda: page.goto(url)

    def click(text: str) -> Callable[[], object]:
        target = page.get_by_text(text).first
        return lambda: target.click(timeout=10_000)

    def sample() -> None:
        page.get_by_text("Ada the admin").first.click()
        page.wait_for_url("**/reports/**")
        page.locator("#ws-tick").filter(has_text="1").wait_for()

    def forbidden() -> None:
        page.goto(broken + "/forbidden")
        page.get_by_text("Continue with Discord").first.click()
        page.get_by_text("Max the member").first.click()
        page.wait_for_url("**/forbidden")

    def signed_out() -> None:
        page.locator("main form button").first.click()
        page.wait_for_url("**/signed-out**")

    yield "not-signed-in", at(demo + "/.postern/")
    yield "discord-consent", at(demo + "/reports/2026?quarter=3")
    yield "discord-cancelled", click("Cancel")
    yield "logto-sign-in", page.locator("main a").first.click
    yield "logto-register", click("Create one")
    yield "", click("Continue with Discord")
    yield "sample-app", sample
    yield "home", at(demo + "/.postern/")
    yield "not-found", at(demo + "/.postern/nowhere")
    yield "sign-out", at(demo + "/.postern/sign-out")
    yield "signed-out", signed_out
    yield "sign-in-failed", at(demo + "/.postern/callback?code=x&state=y")
    yield "upstream-down", at(broken + "/down")
    yield "forbidden", forbidden
    yield "logto-down", at(sites.no_logto + "/forbidden")
    yield "no-route", at(broken + "/elsewhere")
    yield "unclear-address", at(broken + "/down/..;/forbidden")


if __name__ == "__main__":
    main()
