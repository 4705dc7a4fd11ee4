"""App passwords through the gateway, in raw bytes: what lets a program in, as whom, and everything that ends it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from unittest import mock

import pytest

from proxy.claims import Grant, Identity
from proxy.errors import StoreUnavailable
from proxy.serve import Gateway
from proxy.session import Miss, Session
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import TOKENS
from tests.relay_world import World, relay_world, run

TOML = """
public_url = "http://localhost:3000"
trusted_proxies = ["127.0.0.1"]
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[[route]]
name = "dav"
path = "/dav"
upstream = "UPSTREAM"
app_passwords = true
allow = [{ roles = ["staff"] }]
[[route]]
name = "both"
path = "/both"
upstream = "UPSTREAM"
app_passwords = true
bearer = "https://api.example.com"
pass_authorization = true
[[route]]
name = "fresh"
path = "/fresh"
upstream = "UPSTREAM"
app_passwords = true
allow = [{ roles = ["staff"], signed_in_within = "15m" }]
[[route]]
name = "open"
path = "/open"
upstream = "UPSTREAM"
app_passwords = true
allow = "everyone"
[[route]]
name = "app"
upstream = "UPSTREAM"
"""
ADA = Identity(sub="user00000001", username="ada", name="Ada", roles=("staff",))
GRANT = Grant(ADA, TOKENS, None, 1.0)


def basic(password: str, user: str = "anything") -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost:3000", *fields, "", ""]).encode("latin-1")


@asynccontextmanager
async def world(**environ: str) -> AsyncIterator[World]:
    async with relay_world(TOML, None, None, **environ) as site:
        await site.gateway.passwords.start()
        site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        yield site


async def made(gateway: Gateway, route: str = "dav", identity: Identity = ADA) -> tuple[Session, str, str]:
    """An app password: what is kept of it, its value, and the cookie of the session that made it."""
    grant = replace(GRANT, identity=identity, signed_in_at=time.time())
    owner, cookie = await gateway.store.create(grant, browser="b", address="a")
    session, value = await gateway.passwords.issue(owner, "phone", route, 86400.0)
    return session, value, f"postern={cookie}"


async def status(site: World, path: str, *fields: str, method: str = "GET") -> int:
    return (await site.ask(request(path, *fields, method=method)))[0]


def test_a_program_comes_in_as_its_owner_and_the_app_never_sees_how() -> None:
    async def conversation() -> None:
        async with world() as site:
            session, value, _ = await made(site.gateway)
            for field in (basic(value), basic(value, ""), basic(value, "ada"), f"Authorization: Bearer {value}"):
                got, _, body = await site.ask(request("/dav/x", field, method="PROPFIND"))
                assert (got, body) == (200, b"hi")
                seen = site.upstream.heads[-1]
                assert b"\r\nX-Forwarded-User: user00000001\r\n" in seen
                assert b"\r\nX-Forwarded-Groups: staff\r\n" in seen
                assert b"uthorization" not in seen
            line = site.lines()[-1]
            assert (line["user"], line["via"], line["outcome"]) == ("user00000001", "password", "rule")
            written = json.dumps(site.lines())
            assert value[26:] not in written
            assert session.seen_at > session.created_at

    run(conversation())


def test_only_where_it_was_made_for_and_only_by_the_rules_there() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, dav, cookie = await made(site.gateway)
            _, fresh, _ = await made(site.gateway, "fresh")
            assert await status(site, "/both", basic(dav)) == 401
            assert await status(site, "/open", basic(dav)) == 401, "what is wrong is never nobody's request"
            assert await status(site, "/dav", basic(fresh)) == 401
            assert await status(site, "/fresh", basic(fresh)) == 403, "nobody has signed in just now"
            assert site.lines()[-1]["outcome"] == "sign_in_too_old"
            _, bobs, _ = await made(site.gateway, identity=Identity(sub="bob"))
            assert await status(site, "/dav", basic(bobs), f"Cookie: {cookie}") == 403, "it alone decides"
            assert site.lines()[-1]["user"] == "bob"
            # Where a route takes none, Authorization is the app's own, and lets nobody in.
            own = basic("the app's own", "ada")
            assert await status(site, "/other", own, f"Cookie: {cookie}") == 200
            assert own.encode() in site.upstream.heads[-1]
            assert await status(site, "/other", basic(dav)) == 401
            # Yet no app gets to see what is good for another: programs send it to all of a host.
            for field in (basic(dav), f"Authorization: Bearer {dav}"):
                assert await status(site, "/other", field, f"Cookie: {cookie}") == 200
                assert b"uthorization" not in site.upstream.heads[-1]

    run(conversation())


def test_a_wrong_one_is_refused_whatever_cookie_comes_with_it() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, cookie = await made(site.gateway)
            assert await status(site, "/dav", f"Cookie: {cookie}") == 200
            wrong = [value[:-1] + ("A" if value[-1] != "A" else "B"), "ppw_", "ppw_" + "A" * 65, value + "x"]
            for guess in wrong:
                got, head, body = await site.ask(
                    request("/dav", basic(guess), f"Cookie: {cookie}", "Accept: text/html")
                )
                assert got == 401
                assert b'\r\nwww-authenticate: Basic realm="postern", charset="UTF-8"\r\n' in head
                assert guess.encode() not in head + body
            assert not site.upstream.heads[1:]

    run(conversation())


def test_the_apps_own_passwords_pass_where_a_session_does() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, _, cookie = await made(site.gateway)
            own = basic("the app's own", "ada")
            assert await status(site, "/dav", own, f"Cookie: {cookie}") == 200
            assert own.encode() in site.upstream.heads[-1]
            got, head, _ = await site.ask(request("/dav", own))
            assert got == 401
            assert b'www-authenticate: Basic realm="postern"' in head, "so that git asks for one"

    run(conversation())


def test_it_is_passed_on_where_the_route_says_so() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, _ = await made(site.gateway, "both")
            assert await status(site, "/both", basic(value)) == 200
            assert basic(value).encode() in site.upstream.heads[-1]

    run(conversation())


def test_neither_is_of_use_in_the_place_of_the_other() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, cookie = await made(site.gateway)
            _, session_id, secret = cookie.partition("=")[2].split(".")
            for guess in (value, f"1.{value[4:26]}.{value[26:]}"):
                assert await status(site, "/dav", f"Cookie: postern={guess}") == 401
                assert await status(site, "/.postern/me", f"Cookie: postern={guess}") == 401
            for guess in (f"ppw_{session_id}{secret}", cookie.partition("=")[2]):
                assert await status(site, "/dav", basic(guess)) == 401
            assert await status(site, "/.postern/me", basic(value)) == 401
            assert not site.upstream.heads

    run(conversation())


def test_forward_auth_takes_it_too() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, _ = await made(site.gateway)
            asked = ("X-Forwarded-Method: GET", "X-Forwarded-Uri: /dav/x", "X-Forwarded-Host: localhost:3000")
            got, head, _ = await site.ask(request("/.postern/auth", basic(value), *asked))
            assert got == 200
            assert b"\r\nX-Forwarded-User: user00000001\r\n" in head
            assert await status(site, "/.postern/auth", basic(value + "x"), *asked) == 401

    run(conversation())


@pytest.mark.parametrize("how", ["revoked", "user ended", "expired"])
def test_what_is_open_is_closed_when_it_ends(how: str) -> None:
    async def conversation() -> None:
        async with world() as site:

            async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await site.upstream.head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
                await reader.read()

            site.upstream.script = stream
            session, value, _ = await made(site.gateway)
            client = await site.connect()
            client.send(request("/dav/events", basic(value)))
            await client.head()
            if how == "revoked":
                assert await site.gateway.passwords.revoke(ADA.sub, session.id)
            elif how == "user ended":
                await site.gateway.passwords.end_user(ADA.sub, "User.Deleted")
            else:
                site.much_later(86401)
            with suppress(ConnectionResetError):
                await client.rest()
            if how != "expired":  # there it is only the sweep that has been told another time
                assert await status(site, "/dav", basic(value)) == 401

    run(conversation())


def test_a_role_that_is_taken_away_shuts_out_the_program_with_its_owner() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, cookie = await made(site.gateway)
            assert await status(site, "/dav", basic(value)) == 200
            demoted = replace(GRANT, identity=replace(ADA, roles=()))
            await site.gateway.store.replace(cookie.partition("=")[2], demoted)
            await site.gateway.passwords._chores.settled()
            assert await status(site, "/dav", basic(value)) == 403

    run(conversation())


def test_it_waits_for_its_owner_and_so_does_what_is_open() -> None:
    async def conversation() -> None:
        async with world() as site:

            async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await site.upstream.head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
                await reader.read()

            site.upstream.script = stream
            _, value, cookie = await made(site.gateway)
            client = await site.connect()
            client.send(request("/dav/events", basic(value)))
            await client.head()
            site.much_later(0)
            assert site.upstream.open == 1, "as long as nothing has changed it stays open"
            await site.gateway.passwords.doubt(ADA.sub)
            site.much_later(0)
            with suppress(ConnectionResetError):
                await client.rest()
            got, head, body = await site.ask(request("/dav", basic(value), "Accept: text/html"))
            assert (got, site.lines()[-1]["outcome"]) == (403, "owner_away"), "on 401 git would forget it"
            assert b"www-authenticate" not in head
            assert json.loads(body)["detail"] == "whoever made it has to sign in again first"
            site.upstream.script = site.upstream.hello
            await site.gateway.store.replace(cookie.partition("=")[2], GRANT)
            await site.gateway.passwords._chores.settled()
            assert await status(site, "/dav", basic(value)) == 200

    run(conversation())


def test_nobody_is_let_in_while_nobody_can_tell() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, _ = await made(site.gateway)

            def lost(*_: object) -> object:
                raise StoreUnavailable("away")

            with (
                mock.patch.object(site.gateway.passwords.store, "peek", return_value=Miss.MISS),
                mock.patch.object(site.gateway.passwords.store, "load", side_effect=lost),
            ):
                assert await status(site, "/dav", basic(value)) == 503
                assert await status(site, "/open", basic(value)) == 503
            assert await status(site, "/dav", basic(value)) == 200

    run(conversation())


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def test_one_that_is_revoked_in_one_worker_is_refused_in_the_other(redis: RedisServer) -> None:
    async def conversation() -> None:
        async with world(REDIS_URL=redis.url) as one, world(REDIS_URL=redis.url) as other:
            session, value, _ = await made(one.gateway)
            for _ in range(5):
                assert await status(other, "/dav", basic(value)) == 200
            assert await one.gateway.passwords.revoke(ADA.sub, session.id)
            deadline = time.monotonic() + 15
            while await status(other, "/dav", basic(value)) != 401:
                assert time.monotonic() < deadline
            assert await status(one, "/dav", basic(value)) == 401

    run(conversation())


def test_a_reload_that_takes_the_key_away_takes_the_passwords_away() -> None:
    async def conversation() -> None:
        async with world() as site:
            _, value, _ = await made(site.gateway)
            assert await status(site, "/dav", basic(value)) == 200
            old = site.gateway.settings
            routes = tuple(route.model_copy(update={"app_passwords": False}) for route in old.route)
            site.gateway.adopt(old.model_copy(update={"route": routes}))
            assert await status(site, "/dav", basic(value)) == 401
            site.gateway.adopt(old)
            assert await status(site, "/dav", basic(value)) == 200

    run(conversation())
