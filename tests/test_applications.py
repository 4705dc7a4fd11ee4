"""Several applications at one Logto, each for hosts of its own: a whole gateway over real sockets, a provider over real HTTP.

The provider tells the truth unless asked to lie, and knows which application each code and token was given to.
"""

from __future__ import annotations

import contextlib
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from proxy.claims import Audience, Grant, Identity, Tokens
from proxy.credentials import APP_PASSWORD
from proxy.errors import LogtoRefused
from proxy.id_tokens import unverified_claims
from proxy.logout_tokens import EVENT
from proxy.settings import load
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, LyingProvider, sign
from tests.redis_server import redis_server
from tests.relay_world import World, relay_world, run

MAIN, A, B = "apps.example.com", "a.example.com", "x.b.example.com"
IDS = {MAIN: CLIENT_ID, A: "application-of-a", B: "application-of-b"}
SECRETS = {CLIENT_ID: CLIENT_SECRET, "application-of-a": "secret-of-a", "application-of-b": "secret-of-b"}
CALLBACKS = {MAIN: "http://apps.example.com", A: "http://a.example.com", B: "http://b.example.com"}
TOML = """
public_url = "http://apps.example.com"
secret = ["ssssssssssssssssssssssssssssssssssssssss"]
trusted_proxies = ["127.0.0.1/32"]
[logto]
endpoint = "LOGTO"
app_id = "3brou57d3pn17rx7ogxd1"
app_secret = "lying-secret-lying-secret-lying-secret"
[[logto.application]]
hosts = ["a.example.com"]
app_id = "application-of-a"
app_secret = "secret-of-a"
[[logto.application]]
hosts = ["*.b.example.com", "b.example.com"]
cookie_domain = "b.example.com"
app_id = "application-of-b"
app_secret = "secret-of-b"
[[route]]
name = "any"
upstream = "UPSTREAM"
[[route]]
name = "dav"
path = "/dav"
upstream = "UPSTREAM"
app_passwords = true
[[route]]
name = "told"
path = "/told"
upstream = "UPSTREAM"
headers.set.X-Token = "{id_token}"
[[route]]
name = "a-only"
host = "a.example.com"
path = "/only"
upstream = "UPSTREAM"
"""
PAGE = "Accept: text/html", "Sec-Fetch-Mode: navigate"


@dataclass
class Browser:
    """Keeps cookies by host, or by the domain they were set for, and asks a gateway whatever its address is."""

    world: World
    jar: dict[tuple[str, str], str] = field(default_factory=dict)  # (host or .domain, name) -> value

    def cookies(self, host: str) -> str:
        sent = [f"{name}={value}" for (place, name), value in self.jar.items() if ("." + host).endswith(place)]
        return "; ".join(sent)

    async def ask(
        self, host: str, path: str, *fields: str, method: str = "GET", cookie: str | None = None, body: str = ""
    ) -> tuple[int, str, str]:
        """Status, head and body of an answer; `cookie` in the place of what the browser has for `host`."""
        sent = self.cookies(host) if cookie is None else cookie
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, *([f"Cookie: {sent}"] if sent else [])]
        lines += [f"Content-Length: {len(body)}"] if body else []
        raw = "\r\n".join(lines) + "\r\n\r\n" + body
        status, head, answer = await self.world.ask(raw.encode())
        for name, value, attributes in re.findall(r"(?im)^set-cookie: ([^=]+)=([^;]*);(.*)\r$", head.decode()):
            domain = re.search(r"(?i)domain=([^;]+)", attributes)
            place = "." + (domain[1] if domain else host)
            if "Max-Age=0" in attributes:
                self.jar.pop((place, name), None)
            else:
                self.jar[place, name] = value
        return status, head.decode(), answer.decode()

    async def sign_in(self, logto: LyingProvider, host: str, path: str = "/page") -> str:
        """Where the sign-in leads that opening a page of `host` begins."""
        status, head, _ = await self.ask(host, path, *PAGE)
        while status == 302 and not (there := location(head)).startswith(logto.url):
            status, head, _ = await self.ask(urlsplit(there).netloc, there.partition("://")[2].partition("/")[1] +
                                             there.partition("://")[2].partition("/")[2], *PAGE)  # fmt: skip
        assert status == 302
        asked = parse_qs(urlsplit(location(head)).query)
        assert asked["client_id"] == [IDS[host]]
        assert asked["redirect_uri"] == [CALLBACKS[host] + "/.postern/callback"]
        query = logto.authorize(location(head))
        status, head, _ = await self.ask(urlsplit(CALLBACKS[host]).netloc, "/.postern/callback?" + query, *PAGE)
        assert status == 303, head
        return location(head)

    async def opens(self, host: str, path: str = "/page", **more: Any) -> bool:
        """Whether the app answers; nothing but a sign-in or a 401 stands for no."""
        status, head, _ = await self.ask(host, path, **more)
        assert status == 200 or (status == 401 and "sign_in" not in head)
        return status == 200


def location(head: str) -> str:
    found = re.search(r"(?im)^location: (.*)\r$", head)
    assert found is not None, head
    return found[1]


@contextlib.asynccontextmanager
async def place(toml: str = TOML) -> AsyncIterator[tuple[World, LyingProvider]]:
    logto = LyingProvider(now=time.time(), clients=dict(SECRETS))
    async with logto.running(), relay_world(toml.replace("LOGTO", logto.url)) as world:
        yield world, logto


def conversation(work: Callable[[World, LyingProvider], Awaitable[None]], toml: str = TOML) -> None:
    async def hold() -> None:
        async with place(toml) as (world, logto):
            await work(world, logto)

    run(hold())


def exchanged(logto: LyingProvider) -> list[tuple[str, str]]:
    """Which applications have been at the token endpoint, and for what."""
    return [(asked.form["client_id"], asked.form["grant_type"]) for asked in logto.asked if asked.path == "/oidc/token"]


async def sessions(world: World) -> dict[str, str]:
    """Application -> a session's id."""
    return {session.application: session.id async for session in world.gateway.store.everything()}


def test_each_host_signs_people_in_to_its_own_application() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        for host in (MAIN, A, B):
            assert await browser.sign_in(logto, host) == f"http://{host}/page"
            assert exchanged(logto)[-1] == (IDS[host], "authorization_code")
            assert await browser.opens(host)
        assert sorted(await sessions(world)) == sorted(IDS.values())
        assert logto.count("/oidc/jwks") == 1, "what Logto publishes is asked for once, not for each application"
        assert await browser.opens("b.example.com")
        assert await browser.opens("y.z.b.example.com")

    conversation(work)


ELSEWHERE = [(mine, theirs) for mine in (MAIN, A, B) for theirs in (MAIN, A, B) if mine != theirs]


@pytest.mark.parametrize(("mine", "theirs"), ELSEWHERE)
def test_a_session_of_one_application_opens_nothing_of_anothers(mine: str, theirs: str) -> None:
    """Whoever is at the keyboard can send any cookie to any host."""

    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        await browser.sign_in(logto, mine)
        cookie = browser.cookies(mine)
        assert await browser.opens(mine, cookie=cookie)
        heads = len(world.upstream.heads)
        status, head, _ = await browser.ask(theirs, "/page", *PAGE, cookie=cookie)
        assert status == 302
        assert "/sign-in" in location(head) or location(head).startswith(logto.url)
        for path in ("/page", "/told", "/.postern/me"):
            assert (await browser.ask(theirs, path, cookie=cookie))[0] == 401
        assert "sign-out" not in (await browser.ask(theirs, "/.postern/", *PAGE, cookie=cookie))[2]
        forwarded = "X-Forwarded-Method: GET", f"X-Forwarded-Host: {theirs}", "X-Forwarded-Uri: /page"
        assert (await browser.ask(theirs, "/.postern/auth", *forwarded, cookie=cookie))[0] == 401
        assert (await browser.ask(mine, "/.postern/auth", *forwarded, cookie=cookie))[0] == 401
        upgrade = "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA=="
        assert (await browser.ask(theirs, "/page", *upgrade, cookie=cookie))[0] == 401
        own = f"Origin: http://{theirs}"
        assert (await browser.ask(theirs, "/.postern/sign-out", own, method="POST", cookie=cookie))[0] == 200
        (only,) = (await sessions(world)).values()
        await browser.ask(theirs, f"/.postern/sessions/{only}/end", own, method="POST", cookie=cookie)
        await browser.ask(theirs, "/.postern/sessions/end-others", own, method="POST", cookie=cookie)
        assert len(world.upstream.heads) == heads
        assert await browser.opens(mine, cookie=cookie), "and it was not ended there either"

    conversation(work)


@pytest.mark.parametrize("host", [MAIN, A, B])
def test_whoever_is_led_somewhere_is_led_to_the_hosts_own_pages(host: str) -> None:
    """Out of an app by its own sign-out, or to the sign-in by a proxy that asks: with and without a session."""

    async def work(world: World, logto: LyingProvider) -> None:
        own, browser = CALLBACKS[host] + "/.postern/", Browser(world)
        asked = "X-Original-Method: GET", f"X-Original-URL: http://{host}/page?x=1"
        status, head, _ = await browser.ask(MAIN, "/.postern/auth/nginx", *asked)
        assert status == 401
        assert location(head).startswith(f"{own}sign-in?return_to=http%3A%2F%2F{host}%2Fpage")
        problem = (await browser.ask(host, "/page"))[2]
        assert f'"sign_in": "{own}sign-in?return_to=http://{host}/"' in problem
        assert location((await browser.ask(host, "/bye", *PAGE))[1]) == own + "sign-out"
        await browser.sign_in(logto, host)
        world.upstream.answering(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n")
        assert location((await browser.ask(host, "/bye", *PAGE))[1]) == own + "sign-out"

    conversation(work, TOML.replace('name = "any"', 'name = "any"\nlogout = ["/bye"]'))


def test_tokens_that_are_no_applications_any_more_are_the_main_ones_to_ask_about() -> None:
    """Logto refuses them then, and the session ends at its recheck."""

    async def work(world: World, logto: LyingProvider) -> None:
        logto.clients["gone"] = "secret-of-gone"
        logto.owners["refresh"], logto.grants["refresh"] = "gone", "nonce"
        tokens = Tokens(logto.id_token("nonce", "gone"), "opaque", time.time() + 3600, "refresh")
        with pytest.raises(LogtoRefused, match="invalid_grant"):
            await world.gateway.front.applications.refresh(tokens, Identity("s0062qn56eia"))
        assert exchanged(logto) == [(CLIENT_ID, "refresh_token")]

    conversation(work)


@pytest.mark.parametrize("turn", [1, -1])
def test_with_cookies_of_several_applications_the_hosts_own_counts(turn: int) -> None:
    """Of a domain that holds other applications' hosts, browsers send all of them; and plain http has but one name for them."""

    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        for host, sub in ((MAIN, "ada"), (A, "bob"), (B, "eve")):
            logto.claims = logto.info = {"sub": sub}
            await browser.sign_in(logto, host)
        every = "; ".join(list(filter(None, map(browser.cookies, (MAIN, A, B))))[::turn])
        for host, sub in ((MAIN, "ada"), (A, "bob"), (B, "eve")):
            assert f'"sub": "{sub}"' in (await browser.ask(host, "/.postern/me", cookie=every))[2]
            assert (await browser.ask(host, "/told", cookie=every))[0] == 200
            head = world.upstream.heads[-1].decode()
            assert f"X-Forwarded-User: {sub}\r\n" in head
            token = re.search(r"X-Token: (\S+)", head)
            assert token is not None
            claims = unverified_claims(token[1])
            assert (claims["sub"], claims["aud"]) == (sub, IDS[host]), "and its own tokens"

    conversation(work)


def test_an_attempt_is_finished_only_where_it_was_begun() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        status, head, _ = await browser.ask(A, "/page", *PAGE)
        assert status == 302
        query, cookie = logto.authorize(location(head)), browser.cookies(A)
        for host in (MAIN, "b.example.com"):
            assert (await browser.ask(host, "/.postern/callback?" + query, *PAGE, cookie=cookie))[0] == 400
        assert exchanged(logto) == [], "the code went nowhere"
        assert (await browser.ask(A, "/.postern/callback?" + query, *PAGE, cookie=cookie))[0] == 303

    conversation(work)


@pytest.mark.parametrize("audience", [CLIENT_ID, "application-of-b", [CLIENT_ID, "application-of-a"]])
def test_an_id_token_for_another_application_signs_nobody_in(audience: Any) -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        logto.claims = {"aud": audience}
        browser = Browser(world)
        status, head, _ = await browser.ask(A, "/page", *PAGE)
        assert status == 302
        query = logto.authorize(location(head))
        assert (await browser.ask(A, "/.postern/callback?" + query, *PAGE))[0] == 502
        assert await sessions(world) == {}

    conversation(work)


@pytest.mark.parametrize(
    ("host", "return_to", "leads_to"),
    [
        (A, "http://a.example.com/x?y=1", "http://a.example.com/x?y=1"),
        (A, "/x", "http://a.example.com/x"),
        (A, "http://apps.example.com/x", "http://a.example.com/"),
        (A, "http://x.b.example.com/x", "http://a.example.com/"),
        (A, "http://evil.example/", "http://a.example.com/"),
        (B, "http://x.b.example.com/x", "http://x.b.example.com/x"),
        (B, "http://a.example.com/x", "http://b.example.com/"),
        (MAIN, "http://a.example.com/only", "http://apps.example.com/"),
        (MAIN, "http://apps.example.com/x", "http://apps.example.com/x"),
    ],
)
def test_a_sign_in_leads_back_to_hosts_of_its_application_alone(host: str, return_to: str, leads_to: str) -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        at = urlsplit(CALLBACKS[host]).netloc
        browser = Browser(world)
        status, head, _ = await browser.ask(at, "/.postern/sign-in?return_to=" + quote(return_to, safe=""), *PAGE)
        assert status == 302
        callback = "/.postern/callback?" + logto.authorize(location(head))
        assert location((await browser.ask(at, callback, *PAGE))[1]) == leads_to

    conversation(work)


def test_tokens_are_renewed_and_revoked_by_the_application_that_has_them() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        for host in (MAIN, A, B):
            await browser.sign_in(logto, host)
        logto.asked.clear()
        await world.gateway.store.renew_soon(list((await sessions(world)).values()))
        for host in (MAIN, A, B):
            assert await browser.opens(host)
            await world.until(lambda host=host: (IDS[host], "refresh_token") in exchanged(logto))  # type: ignore[misc]
        assert len(exchanged(logto)) == 3
        for host in (A, B):
            status, head, _ = await browser.ask(host, "/.postern/sign-out", f"Origin: http://{host}", method="POST")
            assert status == 303
            asked = parse_qs(urlsplit(location(head)).query)
            assert asked["post_logout_redirect_uri"] == [CALLBACKS[host] + "/.postern/signed-out"]
            assert asked["client_id"] == [IDS[host]]
            assert unverified_claims(asked["id_token_hint"][0])["aud"] == IDS[host]
            assert not await browser.opens(host)
        # Ended from elsewhere, a session leaves its tokens behind: they say themselves whose they are.
        await world.gateway.store.end((await sessions(world))[CLIENT_ID], "by an operator")
        await world.until(lambda: len(revoked(logto)) == 3)
        assert sorted(revoked(logto)) == sorted(IDS.values())

    conversation(work)


def test_tokens_for_apis_are_asked_for_by_the_application_that_has_the_refresh_token() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        await browser.sign_in(logto, B)
        tokens = await world.gateway.store.tokens(browser.cookies(B).partition("=")[2])
        assert tokens is not None
        with pytest.raises(LogtoRefused, match="invalid_access_token"):  # the provider gives opaque ones for everything
            await world.gateway.front.applications.api_token(
                tokens, Identity("s0062qn56eia"), Audience("https://api.test")
            )
        assert exchanged(logto)[-1] == (IDS[B], "refresh_token")

    conversation(work)


def revoked(logto: LyingProvider) -> list[str]:
    """By which applications tokens were revoked that are theirs."""
    asked = [asked.form for asked in logto.asked if asked.path == "/oidc/token/revocation"]
    assert all(form["client_secret"] == SECRETS[form["client_id"]] for form in asked)
    assert all(logto.owners[form["token"]] == form["client_id"] for form in asked)
    return [form["client_id"] for form in asked]


def logout_token(logto: LyingProvider, **changes: Any) -> str:
    now = int(logto.now)
    claims = {"sub": "s0062qn56eia", "events": {EVENT: {}}, "jti": str(time.monotonic_ns()), "sid": "76BL0dWwSTcHBqCG",
              "aud": CLIENT_ID, "exp": now + 120, "iat": now, "iss": logto.issuer}  # fmt: skip
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return sign(claims, {"alg": "ES384", "typ": "logout+jwt", "kid": logto.keys[0].kid}, logto.keys[0].private)


@pytest.mark.parametrize(
    ("changes", "status", "left"),
    [
        ({"aud": CLIENT_ID}, 200, [A, B]),
        ({"aud": "application-of-a"}, 200, [MAIN, B]),
        ({"aud": ["application-of-a"]}, 200, [MAIN, B]),
        ({"aud": "application-of-b", "sid": None}, 200, [MAIN, A]),
        ({"aud": "application-of-b", "sub": None}, 200, [MAIN, A]),
        ({"aud": "application-of-a", "sid": "another"}, 200, [MAIN, A, B]),
        ({"aud": "application-of-a", "sid": None, "sub": "somebody"}, 200, [MAIN, A, B]),
        ({"aud": "application-of-c"}, 400, [MAIN, A, B]),
        ({"aud": ["application-of-a", "application-of-b"]}, 400, [MAIN, A, B]),
        ({"aud": ["application-of-a", "application-of-b"], "azp": "application-of-b"}, 200, [MAIN, A]),
        ({"aud": ["application-of-a", "application-of-c"]}, 400, [MAIN, A, B]),
        ({"aud": "application-of-c", "azp": "application-of-a"}, 400, [MAIN, A, B]),
        ({"aud": []}, 400, [MAIN, A, B]),
    ],
)
@pytest.mark.parametrize("at", [MAIN, A, "postern:3000"])
def test_a_logout_ends_what_was_the_applications_it_was_told_to(
    changes: Mapping[str, Any], status: int, left: list[str], at: str
) -> None:
    """Wherever it arrives: Logto may know the gateway by an internal name."""

    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        for host in (MAIN, A, B):
            await browser.sign_in(logto, host)
        form = "Content-Type: application/x-www-form-urlencoded"
        body = "logout_token=" + logout_token(logto, **changes)
        answer = await browser.ask(at, "/.postern/backchannel-logout", form, method="POST", body=body, cookie="")
        assert answer[0] == status
        assert [host for host in (MAIN, A, B) if await browser.opens(host)] == left

    conversation(work)


def test_a_person_sees_and_ends_the_sessions_of_this_application() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        first, second = Browser(world), Browser(world)
        for host in (MAIN, A):
            await first.sign_in(logto, host)
            await second.sign_in(logto, host)
        ended = f"Origin: http://{A}"
        page = (await first.ask(A, "/.postern/", *PAGE))[2]
        assert len(re.findall(r"/\.postern/sessions/[^/]+/end", page)) == 1
        assert "a.example.com/only" in page
        assert "a.example.com/only" not in (await first.ask(MAIN, "/.postern/", *PAGE))[2]
        status, head, _ = await first.ask(A, "/.postern/sessions/end-others", ended, method="POST")
        assert (status, location(head)) == (303, "/.postern/")
        assert [await it.opens(host) for it in (first, second) for host in (MAIN, A)] == [True, True, True, False]

    conversation(work)


def test_a_session_from_before_there_were_several_is_the_main_applications() -> None:
    async def work(world: World, _: LyingProvider) -> None:
        tokens = Tokens("id.token.x", "opaque", time.time() + 3600)
        grant = Grant(Identity(sub="ada"), tokens, None, time.time())
        cookie = f"postern={(await world.gateway.store.create(grant, browser='', address=''))[1]}"
        assert [await Browser(world).opens(host, cookie=cookie) for host in (MAIN, A, B)] == [True, False, False]

    conversation(work)


def test_another_worker_that_reads_the_session_from_redis_holds_it_to_its_application() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        await browser.sign_in(logto, A)
        async with relay_world(toml.replace("LOGTO", logto.url)) as other:
            elsewhere = Browser(other)
            for _ in range(2):  # what is read, then what is at hand
                found = [await elsewhere.opens(host, cookie=browser.cookies(A)) for host in (MAIN, B, A, MAIN)]
                assert found == [False, False, True, False]

    with redis_server() as redis:
        toml = TOML.replace("[[route]]", f'[session]\nstore = "{redis.url}"\n[[route]]', 1)
        conversation(work, toml)


def test_an_application_that_is_taken_away_takes_its_sessions_along(tmp_path: Any) -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        await browser.sign_in(logto, A)
        await browser.sign_in(logto, MAIN)
        file = tmp_path / "postern.toml"
        plain = TOML.replace("LOGTO", logto.url).replace("UPSTREAM", world.upstream.url)
        file.write_text(
            plain[: plain.index("[[logto")] + plain[plain.index("[[route") :].replace("a.example", "apps.example")
        )
        world.gateway.adopt(load(file, {}))
        both = f"{browser.cookies(A)}; {browser.cookies(MAIN)}"
        for host in (A, MAIN):
            assert not await browser.opens(host, cookie=browser.cookies(A))
        assert '"sub"' in (await browser.ask(A, "/.postern/me", cookie=both))[2]
        file.write_text(plain)
        world.gateway.adopt(load(file, {}))
        assert await browser.opens(A)

    conversation(work)


def test_copies_do_not_lead_to_another_applications_host() -> None:
    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        await browser.sign_in(logto, B)
        for there, status in ((B, 200), ("y.b.example.com", 200), (A, 502), (MAIN, 502)):
            field = f"Destination: http://{there}/copy"
            assert (await browser.ask(B, "/page", field, method="COPY"))[0] == status, there

    conversation(
        work,
        TOML.replace(
            'name = "a-only"', 'name = "b"\nhost = "*.b.example.com"\nupstream = "UPSTREAM"\n[[route]]\nname = "a-only"'
        ),
    )


def test_a_gateway_that_stops_says_so_on_every_host() -> None:
    async def work(world: World, _: LyingProvider) -> None:
        browser = Browser(world)
        assert [(await browser.ask(host, "/.postern/readyz"))[0] for host in (MAIN, A, B)] == [200] * 3
        world.gateway.app.state.health.draining = True
        assert [(await browser.ask(host, "/.postern/readyz"))[0] for host in (MAIN, A, B)] == [503] * 3

    conversation(work)


async def app_password(browser: Browser, host: str) -> str:
    """An app password for the route `dav`, made on the page of a host."""
    origin, form = f"Origin: http://{host}", "Content-Type: application/x-www-form-urlencoded"
    body = "name=sync&route=dav&days=30"
    status, _, page = await browser.ask(host, "/.postern/passwords", origin, form, *PAGE, method="POST", body=body)
    found = re.search(APP_PASSWORD + r"[A-Za-z0-9_-]{65}", page)
    assert (status, found is not None) == (200, True)
    return found[0] if found is not None else ""


def test_an_app_password_counts_where_the_session_did_that_made_it() -> None:
    """Also on a route that answers on every host; and Logto's word for one application is none for another's."""

    async def work(world: World, logto: LyingProvider) -> None:
        browser = Browser(world)
        for host in (MAIN, A):
            await browser.sign_in(logto, host)
        basic = {
            host: "Authorization: Basic " + b64encode(f"x:{await app_password(browser, host)}".encode()).decode()
            for host in (MAIN, A)
        }
        for mine in (MAIN, A):
            for host in (MAIN, A, B):
                got = (await browser.ask(host, "/dav", basic[mine], cookie=""))[0]
                assert got == (200 if host == mine else 401), (mine, host)
        passwords = world.gateway.passwords.store
        ids = {it.application: it.id for it in await passwords.of_user("s0062qn56eia")}
        assert ids[CLIENT_ID] not in (await browser.ask(A, "/.postern/passwords", *PAGE))[2]
        assert ids[IDS[A]] in (await browser.ask(A, "/.postern/passwords", *PAGE))[2]
        path = f"/.postern/passwords/{ids[CLIENT_ID]}/revoke"
        assert (await browser.ask(A, path, f"Origin: http://{A}", method="POST"))[0] == 303
        assert await passwords.find(ids[CLIENT_ID]) is not None
        await world.gateway.passwords.doubt("s0062qn56eia")
        await world.gateway.passwords.vouch(Identity("s0062qn56eia"), IDS[A])
        assert (await browser.ask(A, "/dav", basic[A], cookie=""))[0] == 200
        assert (await browser.ask(MAIN, "/dav", basic[MAIN], cookie=""))[0] != 200, "nobody vouched for its owner there"

    conversation(work)
