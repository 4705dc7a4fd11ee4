"""Forward-auth: the gate asked by another proxy, in each one's words, and by whoever pretends to be one."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.assertion import HEADER
from proxy.errors import MalformedRequest
from proxy.forwardauth import Dialect, dialect_of, read
from proxy.forwarding import Forwarding
from proxy.headers import FAMILIES
from proxy.http1 import RequestHead
from proxy.sandbox import SandboxConfig
from proxy.sandbox.run import running_logto
from tests.relay_world import World, relay_world, run

CONFIGURATIONS = Path(__file__).parents[1] / "config" / "forward-auth"
AUTH = b"/.postern/auth"
HOST = "apps.example.com"
TOML = """
public_url = "https://apps.example.com"
trusted_proxies = ["127.0.0.1/32"]
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[identity]
families = ["forwarded", "remote"]
[[route]]
name = "admin"
path = "/admin"
upstream = "UPSTREAM"
allow = [{ roles = ["admin"] }]
headers = { set = { X-Team = "{claims.team}" } }
[[route]]
name = "read-only"
path = "/read"
upstream = "UPSTREAM"
allow = [{ methods = ["GET"], roles = ["member"] }]
[[route]]
name = "public"
path = "/public"
upstream = "UPSTREAM"
allow = "everyone"
[[route]]
name = "rest"
upstream = "UPSTREAM"
"""


def question(path: str = "/.postern/auth", method: str = "GET", **fields: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: postern",
        *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def generic(uri: str, method: str = "GET", **fields: str) -> bytes:
    return question(
        X_Forwarded_Method=method, X_Forwarded_Proto="https", X_Forwarded_Host=HOST, X_Forwarded_Uri=uri, **fields
    )


def nginx(uri: str, method: str = "GET", **fields: str) -> bytes:
    return question("/.postern/auth/nginx", X_Original_Method=method, X_Original_URL=f"https://{HOST}{uri}", **fields)


def envoy(uri: str, method: str = "GET", **fields: str) -> bytes:
    return question(f"/.postern/auth/envoy{uri}", method, X_Forwarded_Host=HOST, **fields)


WAYS = {"generic": generic, "nginx": nginx, "envoy": envoy}
PAGE = {"Accept": "text/html", "Sec_Fetch_Mode": "navigate"}
FETCH = {"Accept": "application/json", "Sec_Fetch_Mode": "cors"}

# uri, method, role of the person (None: nobody), what kind of request -> status by generic and envoy, by nginx
TABLE = [
    ("/public/x", "GET", None, PAGE, 200, 200),
    ("/public/x", "POST", None, FETCH, 200, 200),
    ("/", "GET", None, FETCH, 401, 401),
    ("/", "POST", None, PAGE, 401, 401),
    ("/", "GET", "member", PAGE, 200, 200),
    ("/?next=/admin", "GET", "member", PAGE, 200, 200),
    ("/admin", "GET", "member", PAGE, 403, 403),
    ("/admin/x?y", "GET", "admin", PAGE, 200, 200),
    ("/admin", "GET", None, FETCH, 401, 401),
    ("/read/x", "GET", "member", FETCH, 200, 200),
    ("/read/x", "DELETE", "member", FETCH, 403, 403),
    ("/read/x", "GET", "admin", FETCH, 403, 403),
    ("/public/..%2fadmin", "GET", None, FETCH, 400, 403),
    ("/public/../admin", "GET", None, FETCH, 400, 403),
    ("/public//..//admin", "GET", None, FETCH, 400, 403),
    ("/public/%2e%2e/admin", "GET", "admin", PAGE, 400, 403),
    ("/.postern/callback?code=x", "GET", None, PAGE, 200, 200),
]


@pytest.mark.parametrize("way", WAYS)
def test_the_gate_answers_as_it_would_itself(way: str) -> None:
    async def ask() -> None:
        async with relay_world(TOML) as world:
            cookies = {role: (await world.sign_in(roles=(role,))).decode() for role in ("member", "admin")}
            for uri, method, role, kind, status, by_nginx in TABLE:
                fields = dict(kind) if role is None else {**kind, "Cookie": cookies[role]}
                got, head, _ = await world.ask(WAYS[way](uri, method, **fields))
                wanted = by_nginx if way == "nginx" else status
                assert got == wanted, (uri, method, role, head)
                assert b"no-store" in head
            assert world.upstream.heads == [], "a question is answered, not relayed"

    run(ask())


def test_every_identity_field_is_in_the_answer_empty_where_there_is_no_value() -> None:
    async def ask() -> None:
        async with relay_world(TOML) as world:
            cookie = (await world.sign_in(username="ann", roles=("admin",))).decode()
            _, head, _ = await world.ask(generic("/admin", Cookie=cookie, X_Forwarded_Email="forged@example.com"))
            fields = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n")[1:])
            assert fields["X-Forwarded-User"] == "user00000001"
            assert fields["X-Forwarded-Preferred-Username"] == fields["Remote-User"] == "ann"
            assert fields["X-Forwarded-Groups"] == "admin"
            assert fields["X-Forwarded-Email"] == fields["Remote-Email"] == fields["X-Forwarded-Name"] == ""
            assert fields["X-Team"] == ""
            assert fields["X-Postern-Assertion"].count(".") == 2
            _, head, _ = await world.ask(generic("/public", X_Forwarded_User="forged", Remote_User="forged"))
            assert b"\r\nX-Forwarded-User: \r\n" in head
            assert b"\r\nX-Postern-Assertion: \r\n" in head
            assert b"forged" not in head

    run(ask())


def test_nginx_is_told_where_to_sign_in_and_never_gets_a_3xx() -> None:
    async def ask() -> None:
        async with relay_world(TOML) as world:
            status, head, _ = await world.ask(nginx("/a?b=c&d=%2F", **PAGE))
            assert status == 401
            location = next(line for line in head.decode().split("\r\n") if line.startswith("Location: "))
            url = urlsplit(location.removeprefix("Location: "))
            assert url.geturl().startswith("https://apps.example.com/.postern/sign-in?return_to=")
            assert parse_qs(url.query)["return_to"] == ["https://apps.example.com/a?b=c&d=%2F"]
            status, head, _ = await world.ask(nginx("/public/..%2fadmin", **PAGE))
            assert status == 403
            assert b"X-Postern-Reason: ambiguous_path" in head

    run(ask())


def test_others_get_what_the_browser_should_see() -> None:
    """Logto is not there: the page that says so proves that a navigation starts a sign-in, for the very URL."""

    async def ask() -> None:
        async with relay_world(TOML) as world:
            status, head, body = await world.ask(generic("/deep?x=1", **PAGE))
            assert status == 503
            assert b"text/html" in head
            assert b"return_to=https" in body
            assert b"%2Fdeep" in body or b"/deep" in body
            status, head, body = await world.ask(generic("/deep?x=1", **FETCH))
            assert (status, b"application/problem+json" in head) == (401, True)

    run(ask())


def test_a_websocket_is_known_by_its_handshake_and_its_origin_counts() -> None:
    async def ask() -> None:
        async with relay_world(TOML) as world:
            cookie = (await world.sign_in()).decode()
            for origin, status in (("https://apps.example.com", 200), ("https://evil.example", 403)):
                for way in WAYS.values():
                    fields = {"Cookie": cookie, "Origin": origin, "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
                    assert (await world.ask(way("/ws", **fields)))[0] == status

    run(ask())


def test_any_method_asks_and_head_gets_no_body() -> None:
    async def ask() -> None:
        async with relay_world(TOML) as world:
            fields = {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST}
            for method in ("HEAD", "OPTIONS", "POST", "PROPFIND"):
                raw = question(method=method, X_Forwarded_Uri="/public", **fields)
                assert (await world.ask(raw))[0] == 200
            client = await world.connect()
            status, _, _ = await client.ask(question(method="HEAD", X_Forwarded_Uri="/", **fields, **FETCH))
            assert status == 401
            assert (await client.ask(question(X_Forwarded_Uri="/public", **fields)))[0] == 200, "the connection goes on"

    run(ask())


class TestWhoeverPretends:
    """Forwarded fields count only from trusted proxies: with none configured nothing is believed."""

    @pytest.mark.parametrize("way", WAYS)
    def test_nobody_is_believed_by_default(self, way: str) -> None:
        async def ask() -> None:
            async with relay_world(TOML.replace('trusted_proxies = ["127.0.0.1/32"]', "")) as world:
                cookie = (await world.sign_in(roles=("admin",))).decode()
                status, _, body = await world.ask(WAYS[way]("/public", Cookie=cookie, **FETCH))
                assert status == 403
                assert b"trusted_proxies" in body

        run(ask())

    def test_a_client_that_asks_through_the_proxy_reaches_no_other_answer(self) -> None:
        """Behind a trusted proxy a client can still send what the proxy does not overwrite."""

        async def ask() -> None:
            async with relay_world(TOML) as world:
                for forged in (
                    {"X_Original_URL": f"https://{HOST}/public"},
                    {"X_Rewrite_URL": "/public"},
                    {"X_Original_Method": "OPTIONS"},
                    {"Forwarded": f"host={HOST};proto=https"},
                ):
                    assert (await world.ask(generic("/admin", **FETCH, **forged)))[0] == 401

        run(ask())

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "G T", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "GET, POST", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": "a b", "X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": f"{HOST}, evil", "X_Forwarded_Uri": "/public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "https://x/public"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "/a b"},
            {"X_Forwarded_Method": "GET", "X_Forwarded_Host": HOST, "X_Forwarded_Uri": "/a#b"},
        ],
    )
    def test_a_question_that_makes_no_sense_is_refused(self, fields: dict[str, str]) -> None:
        async def ask() -> None:
            async with relay_world(TOML) as world:
                assert (await world.ask(question(**FETCH, **fields)))[0] == 400

        run(ask())

    @pytest.mark.parametrize(
        "url",
        [
            "/public",
            f"https://{HOST}/a#b",
            "ftp://a/public",
            "https:///public",
            "https://a b/public",
            "https://u@a/x",
            "",
        ],
    )
    def test_nginx_must_send_an_absolute_url(self, url: str) -> None:
        async def ask() -> None:
            async with relay_world(TOML) as world:
                raw = question("/.postern/auth/nginx", X_Original_Method="GET", X_Original_URL=url, **FETCH)
                assert (await world.ask(raw))[0] == 403, "nginx would make a 500 of a 400"

        run(ask())


def test_a_route_that_tells_tokens_tells_them_here_too() -> None:
    async def ask() -> None:
        async with relay_world(TOML.replace("{claims.team}", "{id_token}")) as world:
            cookie = (await world.sign_in(roles=("admin",))).decode()
            status, head, _ = await world.ask(generic("/admin", Cookie=cookie))
            assert status == 200
            assert b"X-Team: id.token.x\r\n" in head

    run(ask())


def test_a_body_with_the_question_is_not_read() -> None:
    async def ask(world: World) -> None:
        raw = envoy("/public", "POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello")
        assert (await world.ask(raw))[0] == 200

    async def main() -> None:
        async with relay_world(TOML) as world:
            await ask(world)

    run(main())


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile", "traefik.yml", "envoy.yaml", "postern.lua"])
def test_every_ready_configuration_knows_every_identity_field(name: str) -> None:
    """One that is not named there is not taken from the answer, and whatever a client sends under it reaches the app."""
    settings = (CONFIGURATIONS / name).read_text("utf-8").lower()
    for field in (*FAMILIES["forwarded"].values(), HEADER.decode()):
        assert re.search(rf"\b{re.escape(field.lower())}\b", settings), field


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        (b"/.postern/auth", Dialect.GENERIC),
        (b"/.postern/auth/nginx", Dialect.NGINX),
        (b"/.postern/auth/envoy", Dialect.ENVOY),
        (b"/.postern/auth/envoy/a/b", Dialect.ENVOY),
        (b"/.postern/auth/", None),
        (b"/.postern/authx", None),
        (b"/.postern/auth/nginx/x", None),
        (b"/.postern/auth/envoyx", None),
        (b"/.postern/me", None),
    ],
)
def test_dialects(path: bytes, dialect: Dialect | None) -> None:
    assert dialect_of(path, AUTH) is dialect


@given(
    st.dictionaries(
        st.sampled_from([b"x-forwarded-method", b"x-forwarded-uri", b"x-forwarded-host"]), st.binary(max_size=30)
    )
)
def test_any_question_is_read_or_refused(values: dict[bytes, bytes]) -> None:
    head = RequestHead(b"GET", AUTH, 1, [], values)
    head.host = b"postern"
    forwarding = Forwarding(())
    peer = forwarding.peer("127.0.0.1")
    peer.trusted = True
    origin = forwarding.origin(head, peer, b"http")
    try:
        asked = read(head, origin, Dialect.GENERIC, AUTH)
    except MalformedRequest:
        return
    assert asked.head.path.startswith(b"/")
    assert b"?" not in asked.head.path


@pytest.mark.parametrize("way", WAYS)
def test_a_sign_in_of_long_ago_is_asked_again_rather_than_round_in_a_circle(way: str) -> None:
    """Without `prompt=login` Logto would send the person back as they came, for ever."""

    async def ask() -> None:
        async with running_logto(SandboxConfig()) as logto:
            toml = TOML.replace("http://127.0.0.1:9", logto.url).replace(
                '["admin"] }', '["admin"], signed_in_within = "15m" }'
            )
            async with relay_world(toml) as world:
                cookie = (await world.sign_in(roles=("admin",))).decode()
                assert (await world.ask(WAYS[way]("/admin", Cookie=cookie, **PAGE)))[0] == 200
                for kept in world.gateway.store._sessions.values():  # type: ignore[attr-defined]  # in memory
                    kept.session.signed_in_at -= 3600
                status, head, _ = await world.ask(WAYS[way]("/admin", Cookie=cookie, **PAGE))
                assert status == (401 if way == "nginx" else 302)
                assert b"prompt=login" in head

    run(ask())
