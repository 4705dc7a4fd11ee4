"""Apps behind the gateway by the lines of their pages in docs/apps: each takes people for who they are, and nobody else."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import stand_apps
from tests.loops import run
from tests.relay_world import World, relay_world
from tests.stand_apps import KEY, App, FileBrowser, OpenWebUI

PAGES = Path(__file__).resolve().parent.parent / "docs" / "apps"
ENVIRON = {
    "POSTERN_PUBLIC_URL": "http://localhost:3000",
    "LOGTO_ENDPOINT": "http://127.0.0.1:9",
    "LOGTO_APP_ID": "a",
    "LOGTO_APP_SECRET": "s",
}
SERVARR = ("sonarr", "radarr", "lidarr", "prowlarr")
ADA: dict[str, Any] = {
    "sub": "k3sx9d8w2q1a",
    "username": "ada",
    "name": "Zoë Ⅳ",
    "email": "Ada@example.com",
    "roles": ("dev", "media"),
}
# Names that somebody may send along, hoping that the app believes them.
FORGED = ("Remote-User", "remote_user", "X-WebAuth-User", "x_webauth_user", "X-Forwarded-User", "X_Forwarded_Email",
          "X-Forwarded-Preferred-Username", "x-forwarded_groups")  # fmt: skip
PAGE = ("Sec-Fetch-Mode: navigate", "Accept: text/html")
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


def route_of(page: str, preset: str = "", opened: str = "") -> str:
    """The route on a page, before the stand-in and on this host; with another preset of its family, or opening more."""
    written = re.search(r"^```toml\n(.*?)^```$", (PAGES / f"{page}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert written
    toml = re.sub(r"^host = .*\n", "", written[1], flags=re.MULTILINE)
    toml = re.sub(r"^upstream = .*$", 'upstream = "UPSTREAM"', toml, flags=re.MULTILINE)
    if preset:
        toml = re.sub(r"^preset = .*$", f'preset = "{preset}"', toml, flags=re.MULTILINE)
    return re.sub(r"^open = .*$", f"open = {opened}", toml, flags=re.MULTILINE) if opened else toml


@asynccontextmanager
async def before(app: App, route: str, **environ: str) -> AsyncIterator[World]:
    async with relay_world(route, None, None, **ENVIRON, **environ) as site:
        stand_apps.serve(site.upstream, app)
        yield site


async def ask(site: World, line: str, *fields: str, cookie: bytes = b"") -> tuple[int, str, Any]:
    """Status, head and JSON of what comes back."""
    length = ("Content-Length: 0",) if line.startswith("POST") else ()
    lines = (f"{line} HTTP/1.1", "Host: localhost:3000", *fields, *length)
    sent = "\r\n".join(lines).encode() + (b"\r\nCookie: " + cookie if cookie else b"") + b"\r\n\r\n"
    status, head, body = await site.ask(sent)
    spoken = body and b"content-type: application/json" in head.lower()  # by the app
    return status, head.decode("latin-1"), json.loads(body) if spoken else None


STRANGERS: dict[str, tuple[App, str, tuple[str, ...], tuple[str, ...]]] = {
    # app: stand-in, page, what its page opens, what it keeps shut
    "code-server": (stand_apps.code_server, "code-server", ("GET /healthz",), ("GET /", "GET /login", "GET /proxy/80/")),
    "filebrowser": (
        FileBrowser(), "filebrowser",
        ("GET /health", "GET /share/AbC", "GET /static/app.js", "GET /api/public/share/AbC"),
        ("POST /api/login", "GET /api/resources", "GET /api/share/AbC", "GET /api/public/../resources"),
    ),
    "freshrss": (stand_apps.freshrss, "freshrss", ("POST /api/greader.php", "POST /api/fever.php"), ("GET /i/", "GET /")),
    "gradio": (stand_apps.gradio, "gradio", (), ("GET /", "GET /config", "POST /gradio_api/call/answer")),
    "home-assistant": (
        stand_apps.home_assistant, "home-assistant", ("POST /api/webhook/0a1b",),
        ("GET /", "POST /auth/login_flow", "POST /auth/token", "GET /api/states", "POST /api/onboarding/users"),
    ),
    "open-webui": (OpenWebUI(), "open-webui", ("GET /health",), ("POST /api/v1/auths/signin", "GET /api/models")),
    "streamlit": (stand_apps.streamlit, "streamlit", ("GET /_stcore/health",), ("GET /", "GET /_stcore/host-config")),
    **dict.fromkeys(SERVARR, (
        stand_apps.servarr, "sonarr", ("GET /ping",), ("GET /", "GET /initialize.json", f"GET /api/v3/x?apikey={KEY}"),
    )),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), STRANGERS.items(), ids=STRANGERS)
def test_strangers_get_to_what_the_page_opens_and_no_further(
    name: str, case: tuple[App, str, tuple[str, ...], tuple[str, ...]]
) -> None:
    app, page, opened, shut = case
    forged = tuple(f"{field}: admin" for field in FORGED)

    async def conversation() -> None:
        async with before(app, route_of(page, name)) as site:
            for line in opened:
                status, _, body = await ask(site, line, *forged)
                assert (status, "admin" in str(body)) == (200, False), line
            heard = len(site.upstream.heads)
            assert not any(b"admin" in head for head in site.upstream.heads)
            for line in shut:
                assert (await ask(site, line, *forged))[0] in {400, 401}, line
            assert len(site.upstream.heads) == heard, "the app has heard of none of it"

    run(conversation())


@pytest.mark.parametrize(
    ("app", "page", "line", "known_as"),
    [
        (OpenWebUI(), "open-webui", "POST /api/v1/auths/signin",
         {"email": "ada@example.com", "name": "Zoë Ⅳ", "groups": ["dev", "media"]}),
        (stand_apps.freshrss, "freshrss", "GET /i/", {"user": "ada"}),
        (FileBrowser(), "filebrowser", "POST /api/login", {"user": "ada"}),
        (stand_apps.home_assistant, "home-assistant", "POST /auth/login_flow",
         {"user": "ada", "remote": "127.0.0.1", "scheme": "http"}),
        (stand_apps.streamlit, "streamlit", "GET /", {"user": "k3sx9d8w2q1a"}),
        (stand_apps.gradio, "gradio", "GET /", {"root": "http://localhost:3000", "user": "k3sx9d8w2q1a"}),
    ],
)  # fmt: skip
def test_people_are_who_they_are_whatever_they_send(app: App, page: str, line: str, known_as: dict[str, Any]) -> None:
    async def conversation() -> None:
        async with before(app, route_of(page)) as site:
            cookie = await site.sign_in(**ADA)
            for forged in ((), *((f"{name}: admin",) for name in FORGED)):
                status, _, body = await ask(site, line, *forged, cookie=cookie)
                assert (status, body) == (200, known_as), forged

    run(conversation())


@pytest.mark.parametrize(
    ("username", "login"), [(None, "s0062qn56eia"), ("ada", "ada"), ("ada_lovelace_1815", "ada_lovelace_1815")]
)
def test_freshrss_takes_every_name_that_it_is_given(username: str | None, login: str) -> None:
    """It refuses names with other characters than letters, digits and a few more."""

    async def conversation() -> None:
        async with before(stand_apps.freshrss, route_of("freshrss")) as site:
            cookie = await site.sign_in(sub="s0062qn56eia", username=username)
            assert (await ask(site, "GET /i/", cookie=cookie))[::2] == (200, {"user": login})

    run(conversation())


def test_freshrss_opens_its_api_to_its_own_keys() -> None:
    async def conversation() -> None:
        async with before(stand_apps.freshrss, route_of("freshrss")) as site:
            key = "Authorization: GoogleLogin auth=ada/8e6845e089457af25303abc6f53356eb60bdb5f8"
            for cookie in (b"", await site.sign_in(**ADA)):
                _, _, body = await ask(site, "GET /api/greader.php", key, "X-WebAuth-User: admin", cookie=cookie)
                assert body["user"] == "ada"
                assert body["header"] != "admin"

    run(conversation())


def test_open_webui_needs_an_address_and_notices_another_person() -> None:
    app = OpenWebUI()

    async def conversation() -> None:
        async with before(app, route_of("open-webui")) as site:
            nameless = await site.sign_in(sub="s0062qn56eia", email=None)
            assert (await ask(site, "POST /api/v1/auths/signin", cookie=nameless))[0] == 400
            ada = await site.sign_in(**ADA)
            await ask(site, "POST /api/v1/auths/signin", cookie=ada)
            left_behind = f"Authorization: Bearer {ADA['email'].lower()}"
            assert (await ask(site, "GET /api/v1/auths/", left_behind, cookie=ada))[0] == 200
            max_ = await site.sign_in(sub="m0062qn56eia", username="max", email="max@example.com")
            assert (await ask(site, "GET /api/v1/auths/", left_behind, cookie=max_))[0] == 401
            _, _, told = await ask(site, "GET /api/v1/auths/signout", cookie=ada)
            assert told["redirect_url"] == f"{site.gateway.settings.prefix}/sign-out"

    run(conversation())


def test_nobody_gets_an_account_without_a_name_in_file_browser() -> None:
    app = FileBrowser()

    async def conversation() -> None:
        async with before(app, route_of("filebrowser")) as site:
            assert (await ask(site, "POST /api/login"))[0] == 401
            await ask(site, "POST /api/login", cookie=await site.sign_in(sub="s0062qn56eia", username=None))
            assert app.accounts == ["s0062qn56eia"]

    run(conversation())


@pytest.mark.parametrize(
    ("proxies", "forwarded", "remote", "scheme"),
    [
        ("", (), "127.0.0.1", "http"),
        ("", ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https"), "127.0.0.1", "http"),
        ("", ("X-Forwarded-For: nonsense", "X-Forwarded-Proto: , ,"), "127.0.0.1", "http"),
        ("127.0.0.1", ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https"), "203.0.113.9", "https"),
        ("127.0.0.1", ("X-Forwarded-For: 6.6.6.6, 203.0.113.9", "X-Forwarded-Proto: https"), "203.0.113.9", "https"),
        ("127.0.0.1", ("X-Forwarded-For: 6.6.6.6,203.0.113.9", "X-Forwarded-Proto: http, https"), "203.0.113.9", "https"),
    ],
)  # fmt: skip
def test_home_assistant_finds_the_chain_in_order(
    proxies: str, forwarded: tuple[str, ...], remote: str, scheme: str
) -> None:
    """It answers 400 to a chain that does not add up: one entry that is no address, another number of schemes."""

    async def conversation() -> None:
        environ = {"POSTERN_TRUSTED_PROXIES": proxies} if proxies else {}
        async with before(stand_apps.home_assistant, route_of("home-assistant"), **environ) as site:
            cookie = await site.sign_in(**ADA)
            status, _, body = await ask(site, "POST /auth/login_flow", *forwarded, cookie=cookie)
            assert (status, body) == (200, {"user": "ada", "remote": remote, "scheme": scheme})

    run(conversation())


def test_home_assistant_opens_its_api_to_its_own_tokens() -> None:
    async def conversation() -> None:
        async with before(stand_apps.home_assistant, route_of("home-assistant", opened='["webhooks", "api"]')) as site:
            assert (await ask(site, "GET /api/states", f"Authorization: Bearer {KEY}"))[0] == 200
            assert (await ask(site, "GET /api/states", "X-Forwarded-Preferred-Username: ada"))[0] == 401
            assert (await ask(site, "GET /api/websocket", *WEBSOCKET))[0] == 101, "as the phone app opens it"
            heard = len(site.upstream.heads)
            for line in ("POST /auth/login_flow", "GET /auth/providers", "GET /auth/authorize"):
                assert (await ask(site, line))[0] == 401, line
            assert len(site.upstream.heads) == heard

    run(conversation())


@pytest.mark.parametrize("name", SERVARR)
def test_the_arr_family_opens_its_api_to_its_own_key(name: str) -> None:
    async def conversation() -> None:
        async with before(stand_apps.servarr, route_of("sonarr", name, '["health", "api"]')) as site:
            for line, field in (
                ("GET /api/v3/series", f"X-Api-Key: {KEY}"),
                ("GET /api/v3/series", f"Authorization: Bearer {KEY}"),
                (f"GET /feed/v3/calendar/x.ics?apikey={KEY}", "Accept: */*"),
            ):
                assert (await ask(site, line, field))[0] == 200, (line, field)
                assert (await ask(site, line.partition("?")[0]))[0] == 401, line
            heard = len(site.upstream.heads)
            assert (await ask(site, "GET /initialize.json"))[0] == 401, "the key is in it"
            assert len(site.upstream.heads) == heard

    run(conversation())


@pytest.mark.parametrize(
    ("app", "page", "preset"),
    [
        (stand_apps.code_server, "code-server", "code-server"),
        *((stand_apps.servarr, "sonarr", name) for name in SERVARR),
    ],
)
def test_its_sign_out_leads_on(app: App, page: str, preset: str) -> None:
    async def conversation() -> None:
        async with before(app, route_of(page, preset)) as site:
            status, head, _ = await ask(site, "GET /logout", *PAGE, cookie=await site.sign_in(**ADA))
            assert status == 303
            assert "\r\nLocation: http://localhost:3000/.postern/sign-out\r\n" in head

    run(conversation())


@pytest.mark.parametrize(
    ("app", "page", "path"),
    [
        (stand_apps.code_server, "code-server", "/stable-abc?reconnectionToken=x"),
        (stand_apps.streamlit, "streamlit", "/_stcore/stream"),
        (stand_apps.servarr, "sonarr", f"/signalr/messages?access_token={KEY}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("preserved", [True, False])
def test_its_websocket_opens_for_its_own_pages_alone(app: App, page: str, path: str, *, preserved: bool) -> None:
    route = route_of(page).replace("preset = ", f"preserve_host = {str(preserved).lower()}\npreset = ", 1)
    opens = preserved or page != "streamlit"  # which compares with Host alone

    async def conversation() -> None:
        async with before(app, route) as site:
            cookie = await site.sign_in(**ADA)
            own, foreign = "Origin: http://localhost:3000", "Origin: http://evil.example"
            assert (await ask(site, f"GET {path}", *WEBSOCKET, own, cookie=cookie))[0] == (101 if opens else 403)
            heard = len(site.upstream.heads)
            assert (await ask(site, f"GET {path}", *WEBSOCKET, foreign, cookie=cookie))[0] == 403
            assert (await ask(site, f"GET {path}", *WEBSOCKET, own))[0] == 401
            assert len(site.upstream.heads) == heard

    run(conversation())
