"""Programs with access tokens, through the relay and through forward-auth: what lets them in, and all that does not.

Tokens come from a provider over real HTTP that signs whatever a test likes.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from proxy.sandbox import SANDBOX_ROBOT_ID, SANDBOX_ROBOT_SECRET, SandboxConfig
from proxy.sandbox.run import running_logto
from tests.forgeries import (
    Forge,
    after_signing,
    by_hmac,
    by_stranger,
    claims,
    forge,
    header,
    later,
    public_pem,
    swapped_payload,
    unsigned,
)
from tests.loops import run
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, KEYS, LyingProvider, SigningKey, encoded, sign
from tests.relay_world import Client, World, relay_world

API = "https://api.example.com"
TOML = f"""
public_url = "http://localhost:3000"
trusted_proxies = ["127.0.0.1"]
[logto]
endpoint = "LOGTO"
app_id = "{CLIENT_ID}"
app_secret = "{CLIENT_SECRET}"
[[route]]
name = "api"
path = "/api"
upstream = "UPSTREAM"
bearer = "{API}"
[[route]]
name = "reports"
path = "/reports"
upstream = "UPSTREAM"
bearer = ["https://other.example.com", "{API}"]
allow = [{{ scopes = ["read:reports write:reports", "admin"] }}, {{ clients = ["robot0000001"], methods = ["GET"] }}]
deny = [{{ roles = ["banned"] }}]
[[route]]
name = "fresh"
path = "/fresh"
upstream = "UPSTREAM"
bearer = "{API}"
allow = [{{ users = ["machine00001"], signed_in_within = "15m" }}]
[[route]]
name = "org"
path = "/org"
upstream = "UPSTREAM"
bearer = "urn:logto:organization:acme"
organization = "acme"
[[route]]
name = "seen"
path = "/seen"
upstream = "UPSTREAM"
bearer = "{API}"
pass_authorization = true
[route.headers.set]
"X-Token" = "{{access_token}}"
[[route]]
name = "open"
path = "/open"
upstream = "UPSTREAM"
bearer = "{API}"
allow = "everyone"
[[route]]
name = "app"
upstream = "UPSTREAM"
"""
ID_TOKEN_ONLY = ("name", "picture", "updated_at", "username", "created_at", "email", "email_verified", "roles",
                 "organizations", "organization_roles", "nonce", "sid")  # fmt: skip


@asynccontextmanager
async def world() -> AsyncIterator[tuple[World, LyingProvider]]:
    async with LyingProvider(now=time.time()).running() as logto:
        issue(logto)
        async with relay_world(TOML.replace("LOGTO", logto.url)) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            yield site, logto


def issue(logto: LyingProvider, **changes: Any) -> None:
    """Have `logto` sign access tokens from now on, as a Logto does for an API resource."""
    logto.forge = None
    logto.header = {"typ": "at+jwt"}
    logto.claims = dict.fromkeys(ID_TOKEN_ONLY, ...) | {
        "jti": "WcYfGTfJDQUDQyWYkGqVU",
        "sub": "machine00001",
        "client_id": "machine00001",
        "scope": "read:reports",
        "aud": API,
    }
    logto.claims |= changes


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost:3000", *fields, "", ""]).encode("latin-1")


def bearing(token: str) -> str:
    return f"Authorization: Bearer {token}"


async def ask(site: World, path: str, token: str, *fields: str, method: str = "GET") -> tuple[int, bytes, bytes]:
    return await site.ask(request(path, bearing(token), *fields, method=method))


def said(head: bytes, name: str) -> str:
    """The value of a field of an answer, empty when it has none of that name."""
    lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n"))
    return next((value for field, _, value in lines if field.lower() == name), "")


class TestAGoodToken:
    def test_lets_a_machine_in_and_the_app_is_told_who_it_is(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                token = logto.id_token(None)
                for _ in range(3):
                    status, _, body = await ask(site, "/api/x", token)
                    assert (status, body) == (200, b"hi")
                seen = site.upstream.heads[-1]
                assert b"\r\nX-Forwarded-User: machine00001\r\n" in seen
                assert b"uthorization" not in seen, "the app is told who it is, and does not get the token"
                assert token.encode() not in seen
                assert logto.count(KEYS) == 1, "verified once"
                line = site.lines()[-1]
                assert (line["user"], line["via"], line["outcome"]) == ("machine00001", "bearer", "signed_in")
                assert token not in json.dumps(site.lines())

        run(conversation())

    def test_is_passed_on_where_the_route_says_so_and_no_token_of_a_session_with_it(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                token = logto.id_token(None)
                cookie = (await site.sign_in()).decode()
                assert (await ask(site, "/seen", token, f"Cookie: {cookie}"))[0] == 200
                seen = site.upstream.heads[-1]
                assert f"\r\nAuthorization: Bearer {token}\r\n".encode() in seen
                assert b"X-Token" not in seen, "a token out of somebody's session is not the program's"
                assert b"machine00001" in seen
                assert b"user00000001" not in seen

        run(conversation())

    @pytest.mark.parametrize(
        ("changes", "path", "method", "status", "reason"),
        [
            ({"scope": "read:reports write:reports"}, "/reports", "POST", 200, "rule"),
            ({"scope": "write:reports other read:reports"}, "/reports", "GET", 200, "rule"),
            ({"scope": "admin"}, "/reports", "POST", 200, "rule"),
            ({"scope": "read:reports"}, "/reports", "GET", 403, "no_rule"),
            ({"scope": ""}, "/reports", "GET", 403, "no_rule"),
            ({"scope": ...}, "/reports", "GET", 403, "no_rule"),
            ({"scope": "", "client_id": "robot0000001"}, "/reports", "GET", 200, "rule"),
            ({"scope": "", "client_id": "robot0000001"}, "/reports", "POST", 403, "no_rule"),
            ({"scope": "admin", "roles": ["banned"]}, "/reports", "GET", 403, "deny_rule"),
            ({"scope": "admin", "roles": ["staff"]}, "/reports", "GET", 200, "rule"),
            (
                {"aud": ["https://x.example", "https://other.example.com"], "scope": "admin"},
                "/reports",
                "GET",
                200,
                "rule",
            ),
            ({}, "/fresh", "GET", 403, "sign_in_too_old"),
            ({"aud": "urn:logto:organization:acme", "organization_id": "acme"}, "/org", "GET", 200, "signed_in"),
            ({"aud": "urn:logto:organization:acme"}, "/org", "GET", 403, "not_a_member"),
            ({"aud": "urn:logto:organization:acme", "organizations": ["acme"]}, "/org", "GET", 403, "not_a_member"),
        ],
    )
    def test_is_judged_by_what_it_says(
        self, changes: dict[str, Any], path: str, method: str, status: int, reason: str
    ) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                issue(logto, **{"roles": [], **changes})
                got, head, body = await ask(site, path, logto.id_token(None), "Accept: text/html", method=method)
                assert (got, site.lines()[-1]["outcome"]) == (status, reason)
                if got == 403:
                    assert said(head, "www-authenticate").startswith(
                        'Bearer realm="postern", error="insufficient_scope"'
                    )
                    assert json.loads(body)["reason"] == reason

        run(conversation())

    def test_that_is_silent_on_roles_does_not_slip_past_a_rule_against_a_role(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                issue(logto, scope="admin")
                assert (await ask(site, "/reports", logto.id_token(None)))[0] == 403
                assert site.lines()[-1]["outcome"] == "deny_rule"

        run(conversation())

    def test_holds_while_logto_is_away(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                assert (await ask(site, "/api", logto.id_token(None)))[0] == 200
                issue(logto, sub="other0000001")
                logto.replies[KEYS] = (500, b"")
                assert (await ask(site, "/api", logto.id_token(None)))[0] == 200, "with the keys at hand"

        run(conversation())

    def test_when_logto_cannot_be_asked_for_its_keys(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                logto.replies[KEYS] = (500, b"")
                status, head, body = await ask(site, "/api", logto.id_token(None))
                assert (status, json.loads(body)["reason"]) == (503, "logto_unavailable")
                assert said(head, "retry-after")
                del logto.replies[KEYS]
                assert (await ask(site, "/api", logto.id_token(None)))[0] == 200

        run(conversation())

    def test_ends_what_it_opened_when_it_expires(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                site.upstream.answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
                client = await site.connect()
                client.send(request("/api/stream", bearing(logto.id_token(None))))
                assert b" 200 " in await client.head()
                await client.exactly(7)
                site.much_later(3000)
                site.much_later(3700)
                assert await client.ends()

        run(conversation())


def weaker_curve(logto: LyingProvider) -> None:
    logto.keys = [SigningKey.new("ES384", kid=logto.keys[0].kid)]
    stranger = SigningKey.new("ES256", kid=logto.keys[0].kid)
    logto.forge = lambda body, head: sign(body, head | {"alg": "ES256"}, stranger.private)


def id_token(logto: LyingProvider, **changes: Any) -> None:
    logto.claims, logto.header = changes, {}


def raw(value: str) -> Forge:
    return after_signing(lambda _: value)


FORGED: dict[str, Forge] = {
    "an ID token": id_token,
    "an ID token that names the API": lambda logto: id_token(logto, aud=API),
    "a logout token": header(typ="logout+jwt"),
    "no typ": header(typ=...),
    "a typ that is a number": header(typ=7),
    "another issuer": claims(iss="https://evil.example/oidc"),
    "the issuer with a slash": lambda logto: logto.claims.update(iss=logto.issuer + "/"),
    "no issuer": claims(iss=...),
    "another API": claims(aud="https://admin.example.com"),
    "the API with a slash": claims(aud=API + "/"),
    "the API in capitals": claims(aud=API.upper()),
    "this application": claims(aud=CLIENT_ID),
    "no audience": claims(aud=...),
    "an empty audience": claims(aud=[]),
    "an audience of numbers": claims(aud=[API, 7]),
    "an audience that is a mapping": claims(aud={API: True}),
    "expired": later(exp=-31),
    "no expiry": claims(exp=...),
    "an expiry in words": claims(exp="never"),
    "an endless expiry": claims(exp=float("inf")),
    "issued in the future": later(iat=120),
    "not valid yet": later(nbf=120),
    "no subject": claims(sub=...),
    "an empty subject": claims(sub=""),
    "a subject that is a list": claims(sub=["machine00001"]),
    "no client": claims(client_id=...),
    "a client that is a list": claims(client_id=["machine00001"]),
    "scopes in a list": claims(scope=["read:reports"]),
    "alg none": unsigned("none"),
    "alg nOnE": unsigned("nOnE"),
    "HS256 with the client secret": by_hmac("HS256", lambda _: CLIENT_SECRET.encode()),
    "HS384 with the public key": by_hmac("HS384", public_pem),
    "another key under a known kid": by_stranger(),
    "another key without kid": by_stranger(drop_kid=True),
    "unknown kid": by_stranger(kid="unknown"),
    "kid an injection": by_stranger(kid="../../dev/null' OR 1=1"),
    "jwk in the header": by_stranger(advertise="jwk"),
    "jku in the header": by_stranger(advertise="jku", kid="stranger"),
    "x5u in the header": by_stranger(advertise="x5u", kid="stranger"),
    "x5c in the header": by_stranger(advertise="x5c"),
    "a weaker curve": weaker_curve,
    "crit": header(crit=["exp"]),
    "signature cut": after_signing(lambda token: token[:-8]),
    "signature gone": after_signing(lambda token: token.rpartition(".")[0] + "."),
    "payload changed": after_signing(swapped_payload),
    "header changed": after_signing(lambda token: "eyJhbGciOiJub25lIn0." + token.partition(".")[2]),
    "five parts": after_signing(lambda token: token + ".e30.e30"),
    "payload a list": forge(lambda _, h, logto: sign(b"[]", h, logto.keys[0].private)),
    "payload deep": forge(lambda _, h, logto: sign(b'{"a":' * 2000, h, logto.keys[0].private)),
    "a header of lists": forge(lambda c, _, __: encoded(json.dumps(c).encode(), b"[" * 3000, lambda *_: b"", None)),
    "opaque": raw("Z17iZLE6tpd45uJ7bXHLrgLVfrTqpqHyD9HhWiRqz_Y"),
    "empty": raw(""),
    "dots": raw("a.b.c"),
    "an app password": raw("ppw_" + "a" * 40),
    "two words": raw("abc def"),
    "quotes": raw('"abc"'),
    "outside ASCII": raw("abc\xe9"),
    "enormous": after_signing(lambda token: token + "A" * 16_500),
}


@pytest.mark.parametrize("lie", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_is_401_and_never_the_cookies_person(lie: Forge) -> None:
    async def conversation() -> None:
        async with world() as (site, logto):
            cookie = (await site.sign_in()).decode()
            assert (await site.ask(request("/api", f"Cookie: {cookie}")))[0] == 200
            assert (await ask(site, "/api", logto.id_token(None)))[0] == 200, "with good keys at hand"
            lie(logto)
            token, before = logto.id_token(None), len(site.upstream.heads)
            for path, accept in (("/api", "text/html"), ("/api", "*/*"), ("/open", "*/*")):
                status, head, body = await ask(
                    site, path, token, f"Cookie: {cookie}", f"Accept: {accept}", "Sec-Fetch-Mode: navigate"
                )
                assert status == 401, (path, accept)
                assert said(head, "www-authenticate").startswith('Bearer realm="postern", error="invalid_token"')
                assert said(head, "location") == ""
                assert json.loads(body)["reason"] == "invalid_credential"
                assert not token or token not in body.decode()
                line = site.lines()[-1]
                assert (line["outcome"], line["user"]) == ("invalid_credential", "")
            assert len(site.upstream.heads) == before, "nothing of it reached the app"
            assert logto.count("/stranger") == 0

    run(conversation())


@pytest.mark.parametrize(
    ("destination", "status"),
    [("/api/new", 200), ("/x", 401), ("/fresh/x", 401), ("/open/x", 200), ("/reports/x", 401)],
)
def test_a_token_reaches_no_further_than_the_route_that_took_it(destination: str, status: int) -> None:
    async def conversation() -> None:
        async with world() as (site, logto):
            issue(logto, scope="admin", roles=[])
            token = logto.id_token(None)
            fields = (f"Destination: http://localhost:3000{destination}", "Accept: */*")
            got, _, _ = await ask(site, "/api/old", token, *fields, method="MOVE")
            assert (got, len(site.upstream.heads)) == (status, int(status == 200))

    run(conversation())


class TestAuthorizationThatIsNotOurs:
    @pytest.mark.parametrize(
        "value", ["Basic YWRhOnNlY3JldA==", "Digest username=x", "Negotiate abc", "Token abc", "x"]
    )
    def test_goes_to_the_app_with_the_cookies_person(self, value: str) -> None:
        async def conversation() -> None:
            async with world() as (site, _):
                cookie = (await site.sign_in()).decode()
                status, _, _ = await site.ask(request("/api", f"Authorization: {value}", f"Cookie: {cookie}"))
                assert status == 200
                assert f"\r\nAuthorization: {value}\r\n".encode() in site.upstream.heads[-1]
                assert b"user00000001" in site.upstream.heads[-1]

        run(conversation())

    def test_on_a_route_that_takes_no_tokens_is_the_apps_alone(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                token = logto.id_token(None)
                assert (await ask(site, "/x", token))[0] == 401, "it is nobody's sign-in here"
                cookie = (await site.sign_in()).decode()
                assert (await ask(site, "/x", token, f"Cookie: {cookie}"))[0] == 200
                assert f"\r\nAuthorization: Bearer {token}\r\n".encode() in site.upstream.heads[-1]
                assert logto.count(KEYS) == 0

        run(conversation())

    def test_two_at_once_are_none_that_can_be_read(self) -> None:
        async def conversation() -> None:
            async with world() as (site, logto):
                token = logto.id_token(None)
                status, _, _ = await site.ask(request("/api", bearing(token), bearing(token)))
                assert status == 401

        run(conversation())


def test_who_shows_nothing_is_told_what_would_do() -> None:
    async def conversation() -> None:
        async with world() as (site, _):
            status, head, body = await site.ask(request("/api", "Accept: application/json"))
            assert (status, json.loads(body)["reason"]) == (401, "not_signed_in")
            assert said(head, "www-authenticate") == 'Bearer realm="postern"'
            status, head, _ = await site.ask(request("/x"))
            assert (status, said(head, "www-authenticate")) == (401, 'Cookie realm="postern"')
            status, head, _ = await site.ask(request("/api", "Accept: text/html", "Sec-Fetch-Mode: navigate"))
            assert status == 302, "a person can still sign in"

    run(conversation())


async def fetch_token(logto: str, **form: str) -> tuple[int, dict[str, Any]]:
    """A token as a program gets one: with its application's id and secret."""
    given = {"grant_type": "client_credentials", "client_id": SANDBOX_ROBOT_ID, "client_secret": SANDBOX_ROBOT_SECRET}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{logto}/oidc/token", data=given | form) as answer,
    ):
        return answer.status, await answer.json()


def test_a_machine_gets_its_token_from_logto_and_is_let_in_with_it() -> None:
    async def conversation() -> None:
        async with (
            running_logto(SandboxConfig()) as logto,
            relay_world(TOML.replace("LOGTO", logto.url).replace("read:reports write:reports", "read:things")) as site,
        ):
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            status, answer = await fetch_token(logto.url, resource=API, scope="read:things")
            assert (status, answer["scope"], answer["token_type"]) == (200, "read:things", "Bearer")
            assert (await ask(site, "/api", answer["access_token"]))[0] == 200
            assert f"X-Forwarded-User: {SANDBOX_ROBOT_ID}".encode() in site.upstream.heads[-1]
            status, _, body = await ask(site, "/reports", answer["access_token"])
            assert (status, json.loads(body)["reason"]) == (403, "deny_rule"), "silent on roles, where one is kept out"
            status, answer = await fetch_token(logto.url, resource="https://default.logto.app/api")
            assert (await ask(site, "/api", answer["access_token"]))[0] == 401, "a token for Logto's own API"
            assert (await fetch_token(logto.url, resource="https://unknown.example.com"))[0] == 400
            assert (await fetch_token(logto.url, resource=API, client_secret="wrong"))[0] == 401

    run(conversation())


def asked(dialect: str, path: str) -> tuple[str, ...]:
    return {
        "/auth": ("X-Forwarded-Method: GET", f"X-Forwarded-Uri: {path}", "X-Forwarded-Host: localhost:3000"),
        "/auth/nginx": ("X-Original-Method: GET", f"X-Original-URL: http://localhost:3000{path}"),
        "/auth/envoy" + path: (),
    }[dialect]


@pytest.mark.parametrize("dialect", ["/auth", "/auth/nginx", "/auth/envoy/api"])
def test_forward_auth_takes_them_too(dialect: str) -> None:
    async def conversation() -> None:
        async with world() as (site, logto):

            async def question(client: Client, *fields: str) -> tuple[int, bytes, bytes]:
                return await client.ask(request("/.postern" + dialect, *asked(dialect, "/api"), *fields))

            client = await site.connect()
            status, head, _ = await question(client, bearing(logto.id_token(None)))
            assert (status, b"\r\nX-Forwarded-User: machine00001\r\n" in head) == (200, True)
            cookie = (await site.sign_in()).decode()
            status, head, _ = await question(client, bearing("wrong"), f"Cookie: {cookie}")
            assert status == 401
            assert said(head, "www-authenticate").startswith('Bearer realm="postern", error="invalid_token"')
            assert said(head, "location") == ""
            assert site.upstream.heads == []

    run(conversation())


def test_a_rotated_key_is_found_and_a_flood_of_made_up_ones_asks_little() -> None:
    async def conversation() -> None:
        async with world() as (site, logto):
            assert (await ask(site, "/api", logto.id_token(None)))[0] == 200
            logto.rotate()
            counts: list[int] = []
            for number in range(30):
                by_stranger(kid=f"made-up-{number}")(logto)
                assert (await ask(site, "/api", logto.id_token(None)))[0] == 401
                counts.append(logto.count(KEYS))
            assert counts[-1] <= 3, "Logto is asked now and then, however many keys a stranger makes up"

    run(conversation())
