"""Apps that go by a cookie of their own, header or no header: none of it outlives the session in which it was set."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.loops import run
from tests.relay_world import World, relay_world

TOML = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "a"
app_secret = "s"
[[route]]
name = "feeds"
path = "/feeds"
upstream = "UPSTREAM"
preset = "miniflux"
open = ["health"]
[[route]]
name = "shop"
path = "/shop"
upstream = "UPSTREAM"
allow = "everyone"
login_cookies = ["shop", "old"]
strip_prefix = "/shop"
[[route]]
name = "plain"
upstream = "UPSTREAM"
"""


class Browser:
    """Keeps the cookies it is given, and nothing else of RFC 6265."""

    def __init__(self, site: World) -> None:
        self.site = site
        self.jar: dict[str, str] = {}

    async def open(self, path: str, method: str = "GET") -> bytes:
        """What comes back, as a head."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        length = "Content-Length: 0\r\n" if method == "POST" else ""
        sent = f"{method} {path} HTTP/1.1\r\nHost: localhost:3000\r\nCookie: a=1; {cookie}\r\n{length}\r\n"
        status, head, _ = await self.site.ask(sent.encode())
        assert status == 200
        for name, value, attributes in re.findall(r"(?i)\r\nset-cookie: ([^=\r]+)=([^;\r]*)([^\r]*)", head.decode()):
            self.jar[name] = value
            if "Max-Age=0" in attributes:
                del self.jar[name]
        return head

    async def becomes(self, sub: str) -> None:
        name, _, value = (await self.site.sign_in(sub=sub)).decode().partition("=")
        self.jar[name] = value


class App:
    """Knows people by its cookie first, by the header only when it has none, as Miniflux does."""

    def __init__(self, site: World, name: str) -> None:
        self.name = name
        self.upstream = site.upstream
        self.sessions: dict[str, str] = {}
        self.users: list[str] = []  # of every request so far
        site.upstream.script = self._serve

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await self.upstream.head(reader)).decode()
            cookie = re.search(rf"(?i)\r\ncookie: [^\r]*\b{self.name}=(\w+)", head)
            named = re.search(r"\r\nRemote-User: (\w+)", head)
            user = self.sessions.get(cookie[1], "") if cookie else ""
            fields = ""
            if not user:
                user, key = named[1] if named else "nobody", f"s{len(self.sessions)}"
                self.sessions[key] = user
                fields = f"Set-Cookie: {self.name}={key}; Path=/\r\n" if "/static" not in head else ""
            self.users.append(user)
            writer.write(f"HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nhi".encode())
            await writer.drain()


@pytest.mark.parametrize("name", ["MinifluxSessionID", "MinifluxUserSessionID"])
def test_who_comes_next_is_not_taken_for_who_was_there(name: str) -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            app, browser = App(site, name), Browser(site)
            await browser.becomes("ada000000001")
            for _ in range(3):
                await browser.open("/feeds/")
            assert app.users == ["ada000000001"] * 3
            assert len(app.sessions) == 1, "its own session does what it is for"
            await browser.becomes("max000000001")
            await browser.open("/feeds/static/x.css")  # sets no cookie: the old one is still there
            await browser.open("/feeds/", method="POST")
            await browser.open("/feeds/")
            assert app.users[3:] == ["max000000001"] * 3
            assert site.upstream.heads[-1].count(b"a=1") == 1, "all else goes through"

    run(conversation())


def test_the_same_person_starts_anew_with_a_new_session() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            app, browser = App(site, "MinifluxSessionID"), Browser(site)
            for _ in range(2):
                await browser.becomes("ada000000001")
                await browser.open("/feeds/")
                await browser.open("/feeds/")
            assert len(app.sessions) == 2

    run(conversation())


def test_on_an_open_path_nobody_goes_on_after_signing_out() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            app, browser = App(site, "MinifluxSessionID"), Browser(site)
            await browser.becomes("ada000000001")
            await browser.open("/feeds/")
            await browser.open("/feeds/healthcheck")
            await site.end_sessions()
            await browser.open("/feeds/healthcheck")
            assert app.users == ["ada000000001", "ada000000001", "nobody"]

    run(conversation())


def test_where_everybody_may_visitors_keep_theirs_until_they_sign_in() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            app, browser = App(site, "shop"), Browser(site)
            browser.jar["old"] = "1"
            head = await browser.open("/shop/")
            assert b"\r\nSet-Cookie: postern_belongs=" in head
            assert re.search(rb"postern_belongs=[0-9a-f]{24}; Path=/shop; HttpOnly; SameSite=Lax\r\n", head)
            assert "old" not in browser.jar
            await browser.open("/shop/")
            assert len(app.sessions) == 1
            await browser.becomes("ada000000001")
            await browser.open("/shop/")
            assert len(app.sessions) == 2

    run(conversation())


def test_other_routes_are_left_alone() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            App(site, "shop")
            browser = Browser(site)
            await browser.becomes("ada000000001")
            browser.jar["shop"] = "s9"
            head = await browser.open("/")
            assert b"postern_belongs" not in head
            assert b"shop=s9" in site.upstream.heads[-1]

    run(conversation())
