"""An app's own sign-out leads on to the gateway's, what is opened is open, and a route's word replaces the family's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import jwt
import pytest

from proxy.session import Session
from tests.loops import run
from tests.relay_world import relay_world

TOML = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "a"
app_secret = "s"
[[route]]
name = "grafana"
path = "/grafana"
upstream = "UPSTREAM"
preset = "grafana"
open = ["health", "/grafana/public"]
[[route]]
name = "jenkins"
upstream = "UPSTREAM"
preset = "jenkins"
[[route]]
name = "webui"
path = "/webui"
upstream = "UPSTREAM"
preset = "open-webui"
strip_prefix = "/webui"
"""
PAGE = ("Sec-Fetch-Mode: navigate", "Accept: text/html")


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    length = ("Content-Length: 0",) if method == "POST" else ()
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost:3000", *fields, *length, "", "")
    return "\r\n".join(lines).encode()


FORGET = b"Set-Cookie: grafana_session=; Max-Age=0"
ANSWERS = {
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /grafana/login\r\nSET-COOKIE\r\nContent-Length: 0\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nSET-COOKIE\r\nContent-Length: 3\r\n\r\nbye",
    "a page in chunks": b"HTTP/1.1 200 OK\r\nSET-COOKIE\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbye\r\n0\r\n\r\n",
    "nothing": b"HTTP/1.1 204 No Content\r\nSET-COOKIE\r\n\r\n",
    "not changed": b"HTTP/1.1 304 Not Modified\r\nSET-COOKIE\r\nContent-Length: 99\r\n\r\n",
    "a refresh": b"HTTP/1.1 200 OK\r\nRefresh: 0; url=/elsewhere\r\nSET-COOKIE\r\nContent-Length: 0\r\n\r\n",
    "a failure": b"HTTP/1.1 500 Oops\r\nSET-COOKIE\r\nContent-Length: 4\r\n\r\noops",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/grafana/logout"), ("POST", "/grafana/logout/"), ("GET", "/grafana/logout?x=1")]
)
def test_the_apps_sign_out_leads_on_and_its_cookies_are_forgotten(answer: bytes, method: str, path: str) -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(answer.replace(b"SET-COOKIE", FORGET))
            cookie = f"Cookie: {(await site.sign_in()).decode()}"
            client = await site.connect()
            for _ in range(2):  # what the app said is remembered, its change must not be
                status, head, _ = await client.ask(request(path, *PAGE, cookie, method=method))
                assert status == 303
                assert head.count(b"Location: ") == 1
                assert b"\r\nLocation: http://localhost:3000/.postern/sign-out\r\n" in head
                assert b"\r\n%b\r\n" % FORGET in head
                assert b"Refresh" not in head
            assert site.upstream.heads[-1].startswith(f"{method} {path} ".encode()), "the app has heard of it"

    run(conversation())


def test_nobody_has_to_sign_in_to_sign_out() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            status, head, _ = await site.ask(request("/grafana/logout", *PAGE))
            assert status == 303
            assert b"\r\nlocation: http://localhost:3000/.postern/sign-out\r\n" in head.lower()
            assert site.upstream.heads == [], "no business of the app's"
            status, _, body = await site.ask(request("/.postern/sign-out", *PAGE))
            assert (status, b"signed out" in body) == (200, True)
            status, _, _ = await site.ask(request("/grafana/logout", "Sec-Fetch-Mode: cors"))
            assert status == 401

    run(conversation())


SCRIPT = ("Sec-Fetch-Mode: cors", "Sec-Fetch-Site: same-origin")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_after_a_script_has_signed_out_the_next_page_leads_on(method: str) -> None:
    """As Forgejo does, and most of what is drawn by scripts: the answer goes to the script, which cannot be led anywhere."""

    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"redirect":"/"}')
            cookie = f"Cookie: {(await site.sign_in()).decode()}"
            status, head, body = await site.ask(request("/grafana/logout", *SCRIPT, cookie, method=method))
            assert (status, body) == (200, b'{"redirect":"/"}'), "what the script gets is the app's"
            line = "Set-Cookie: postern_leaving=1; Path=/grafana; Max-Age=60; HttpOnly; SameSite=Lax"
            assert f"\r\n{line}\r\n".encode() in head
            leaving = cookie + "; postern_leaving=1"
            asked = len(site.upstream.heads)
            for fields in (SCRIPT, (*PAGE, "Sec-Purpose: prefetch")):
                assert (await site.ask(request("/grafana/", *fields, leaving)))[0] == 200, (
                    "not the page that comes next"
                )
            assert (await site.ask(request("/job/x", *PAGE, cookie)))[0] == 200
            status, head, _ = await site.ask(request("/grafana/", *PAGE, leaving))
            assert status == 303
            head = head.lower()
            assert b"\r\nlocation: http://localhost:3000/.postern/sign-out\r\n" in head
            assert b"\r\nset-cookie: postern_leaving=1; path=/grafana; max-age=0;" in head, "once is enough"
            assert len(site.upstream.heads) == asked + 3

    run(conversation())


@pytest.mark.parametrize(
    ("path", "answer", "fields"),
    [
        ("/grafana/logout", b"403 Forbidden", SCRIPT),
        ("/grafana/logout", b"502 Bad Gateway", SCRIPT),
        ("/grafana/logout", b"200 OK", ("Sec-Fetch-Mode: cors", "Sec-Fetch-Site: cross-site")),
        ("/grafana/logout", b"200 OK", ("Sec-Fetch-Mode: no-cors", "Sec-Fetch-Site: same-origin")),
        ("/grafana/login", b"200 OK", SCRIPT),
    ],
)
def test_what_signs_nobody_out_leads_nobody_on(path: str, answer: bytes, fields: tuple[str, ...]) -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % answer)
            cookie = f"Cookie: {(await site.sign_in()).decode()}"
            _, head, _ = await site.ask(request(path, *fields, cookie, method="POST"))
            assert b"postern_leaving" not in head
            planted = cookie + "; xpostern_leaving=1; postern_leaving_=1"
            status, _, _ = await site.ask(request("/grafana/", *PAGE, planted))
            assert status == int(answer.split()[0])

    run(conversation())


@pytest.mark.parametrize(
    ("path", "fields", "signed_in"),
    [
        ("/grafana/logout", ("Sec-Fetch-Mode: cors",), True),
        ("/grafana/logout", (*PAGE, "Sec-Purpose: prefetch"), True),
        ("/grafana/logouts", PAGE, True),
        ("/grafana/logout/x", PAGE, True),
        ("/grafana/public/logout", PAGE, False),
    ],
)
def test_nothing_else_does(path: str, fields: tuple[str, ...], *, signed_in: bool) -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            cookie = (f"Cookie: {(await site.sign_in()).decode()}",) if signed_in else ()
            status, _, body = await site.ask(request(path, *fields, *cookie))
            assert (status, body) == (200, b"hi")

    run(conversation())


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/grafana/api/health", True),
        ("/grafana/api/health/", True),
        ("/grafana/public/x.css", True),
        ("/grafana/api/healthy", False),
        ("/grafana/api", False),
        ("/grafana/publics", False),
        ("/grafana", False),
        ("/api/health", False),
        ("/grafana/public/../api", False),
        ("/grafana/public/%2e%2e/api", False),
    ],
)
def test_what_is_opened_is_open_and_no_more(path: str, *, passes: bool) -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            status, _, _ = await site.ask(
                request(path, "X-WEBAUTH-USER: admin", "x_webauth_user: admin", "Authorization: Bearer app-token")
            )
            assert (status == 200) is passes
            if passes:
                assert b"admin" not in site.upstream.heads[-1], "nobody is told to be somebody"
                assert b"Authorization: Bearer app-token" in site.upstream.heads[-1], "the app asks for its own"
                assert site.lines()[-1]["route"] == "grafana-open"

    run(conversation())


def test_what_the_apps_are_told() -> None:
    async def conversation() -> None:
        async with relay_world(TOML) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            person = {"username": None, "name": "Zoë Ⅳ", "email": "zoe@example.com", "roles": ("dev", "ops")}
            cookie = f"Cookie: {(await site.sign_in(**person)).decode()}"
            await site.ask(request("/grafana/d/1", cookie))
            head = site.upstream.heads[-1]
            assert b"\r\nX-WEBAUTH-USER: user00000001\r\n" in head
            assert b"\r\nX-WEBAUTH-GROUPS: dev,ops\r\n" in head
            assert "\r\nX-WEBAUTH-NAME: Zoë Ⅳ\r\n".encode() in head
            await site.ask(request("/job/x", cookie))
            head = site.upstream.heads[-1]
            assert head.count(b"X-Forwarded-User: ") == 1, "the route's word, not beside the family's"
            assert b"\r\nX-Forwarded-Mail: zoe@example.com\r\n" in head
            await site.ask(request("/webui/", cookie))
            assert b"\r\nX-Forwarded-Name: Zo%C3%AB %E2%85%A3\r\n" in site.upstream.heads[-1], "as this app reads it"

    run(conversation())


CLOSED = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "a"
app_secret = "s"
[[route]]
name = "papers"
upstream = "UPSTREAM"
preset = "paperless-ngx"
open = ["api"]
RULES
"""


@pytest.mark.parametrize(
    ("rules", "person", "told"),
    [
        ("", {}, True),
        ('allow = [{ roles = ["staff"] }]', {"roles": ("staff",)}, True),
        ('allow = [{ roles = ["staff"] }]', {"roles": ("guest",)}, False),
        ('deny = [{ users = ["user00000001"] }]', {}, False),
        ('allow = [{ roles = ["staff"], methods = ["GET"] }]', {"roles": ("staff",)}, True),
        ('allow = [{ roles = ["staff"], methods = ["POST"] }]', {"roles": ("staff",)}, False),
        ('organization = "acme"', {"organizations": ("acme",)}, True),
        ('organization = "acme"', {"organizations": ("other",)}, False),
    ],
)
def test_the_app_hears_of_nobody_by_the_open_door_whom_the_other_turns_away(
    rules: str, person: dict[str, tuple[str, ...]], *, told: bool
) -> None:
    """Paperless-ngx would make them an account."""

    async def conversation() -> None:
        async with relay_world(CLOSED.replace("RULES", rules)) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            cookie = f"Cookie: {(await site.sign_in(**person)).decode()}"
            status, _, _ = await site.ask(request("/api/documents/", cookie))
            assert status == 200, "it is open all the same"
            head = site.upstream.heads[-1].lower()
            assert (b"\r\nremote-user: user00000001\r\n" in head) is told
            assert (b"\r\nx-postern-assertion: " in head) is told
            assert (b"user00000001" in head) is told
            status, _, _ = await site.ask(request("/documents", cookie))
            assert (status == 200) is told

    run(conversation())


def test_by_the_open_door_the_app_hears_what_it_hears_by_the_other() -> None:
    async def conversation() -> None:
        async with relay_world(CLOSED.replace("RULES", 'organization = "acme"')) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            person = {
                "organizations": ("acme", "other"),
                "organization_roles": ("acme:a", "other:b"),
                "roles": ("dev",),
            }
            cookie = f"Cookie: {(await site.sign_in(**person)).decode()}"
            heard = []
            for path in ("/documents", "/api/documents"):
                await site.ask(request(path, cookie))
                fields = site.upstream.heads[-1].split(b"\r\n")
                assert b"X-Forwarded-Groups: dev,acme:a" in fields
                token = next(field for field in fields if field.startswith(b"X-Postern-Assertion: "))
                heard.append(token.split(b" ")[1])
            audiences = [jwt.decode(token, options={"verify_signature": False})["aud"] for token in heard]
            assert audiences == ["papers", "papers"], "one app, one audience"

    run(conversation())


def test_who_loses_the_role_loses_what_is_under_way_by_the_open_door_too() -> None:
    """It was begun as somebody, and goes on as them to the app."""

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.read(-1)

    async def conversation() -> None:
        async with relay_world(CLOSED.replace("RULES", 'allow = [{ roles = ["staff"] }]')) as site:
            site.upstream.script = stream
            theirs, others = await site.sign_in(roles=("staff",)), await site.sign_in(roles=("guest",))
            for cookie in (theirs, others):
                client = await site.connect()
                client.send(request("/api/events", f"Cookie: {cookie.decode()}"))
                assert b" 200 " in await client.head()
            site.much_later(0)
            assert site.upstream.open == 2
            for cookie in (theirs, others):
                session = site.gateway.store.peek(cookie.decode().partition("=")[2])
                assert isinstance(session, Session)
                session.identity = replace(session.identity, roles=())

            def gone() -> bool:
                site.much_later(0)
                return site.upstream.open < 2

            await site.until(gone)
            site.much_later(0)
            assert site.upstream.open == 1, "who was nobody there goes on as nobody"

    run(conversation())
