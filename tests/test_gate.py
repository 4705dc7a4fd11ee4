"""The gate lets nobody through without a reason, and says which."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.forwarding import PSEUDONYM
from proxy.gate import Gate
from proxy.http1 import RequestHead, read_request
from proxy.routes import Match, RouteTable
from proxy.session import MemoryStore, Miss, Session
from proxy.settings import Settings, load
from proxy.verdict import Kind, Verdict

CLIENT = ip_address("198.51.100.7")
NAVIGATION = (b"Sec-Fetch-Mode: navigate", b"Accept: text/html")
FETCH = (b"Sec-Fetch-Mode: cors", b"Accept: */*")
WEBSOCKET = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-Fetch-Mode: websocket")
ROUTES = """
public_url = "https://apps.example.com"
trusted_proxies = []
[logto]
endpoint = "https://auth.example.com"
app_id = "a"
app_secret = "s"
[session]
cookie = { domain = "example.com" }
[[route]]
name = "app"
host = "apps.example.com"
upstream = "http://app:8080"
[[route]]
name = "open"
host = "apps.example.com"
path = "/open"
upstream = "http://app:8080"
allow = "everyone"
[[route]]
name = "ops"
host = "apps.example.com"
path = "/ops"
upstream = "http://app:8080"
allow = [{ roles = ["ops"] }, { networks = ["10.0.0.0/8"], methods = ["GET"] }]
[[route]]
name = "vault"
host = "apps.example.com"
path = "/vault"
upstream = "http://app:8080"
allow = [{ roles = ["ops"], signed_in_within = "15m" }, { roles = ["reader"], methods = ["GET"] }]
[[route]]
name = "admins"
host = "apps.example.com"
path = "/admins"
upstream = "http://app:8080"
allow = [{ roles = ["admin"] }]
[[route]]
name = "shelf"
host = "apps.example.com"
path = "/shelf"
upstream = "http://app:8080"
allow = [{ roles = ["reader"], methods = ["GET"] }, { roles = ["admin"] }]
deny = [{ roles = ["guest"], methods = ["DELETE"] }]
[[route]]
name = "mostly-open"
host = "apps.example.com"
path = "/mostly-open"
upstream = "http://app:8080"
allow = "everyone"
deny = [{ users = ["mallory"] }, { networks = ["192.0.2.0/24"] }]
"""


class RemoteStore(MemoryStore):
    """A store that has to be asked: nothing is known without waiting, and it may not answer at all."""

    def __init__(self) -> None:
        super().__init__(idle=3600, lifetime=86400)
        self.down = False
        self.asked = 0

    @override
    def peek(self, cookie: str) -> Literal[Miss.MISS]:
        return Miss.MISS

    @override
    async def load(self, cookie: str) -> Session | None:
        self.asked += 1
        if self.down:
            raise StoreUnavailable("Redis did not answer in time")
        found = super().peek(cookie)
        return found if isinstance(found, Session) else None


class Site:
    def __init__(self, tmp_path: Path, store: MemoryStore | None = None) -> None:
        file = tmp_path / "postern.toml"
        file.write_text(ROUTES)
        self.settings: Settings = load(file, {})
        self.store = store or MemoryStore(idle=3600, lifetime=86400)
        self.gate = Gate(self.settings, RouteTable.from_settings(self.settings), self.store)

    def sign_in(self, sub: str = "ada", *roles: str) -> bytes:
        tokens = Tokens(id_token="i", access_token="a", access_expires_at=0)
        grant = Grant(Identity(sub=sub, roles=roles), tokens, None, time.time())
        _, value = asyncio.run(self.store.create(grant, browser="", address=""))
        return f"Cookie: postern={value}".encode()

    def grow_old(self, seconds: float) -> None:
        """Let everybody have signed in so long ago."""
        store = self.store
        assert isinstance(store, MemoryStore)
        for kept in store._sessions.values():
            kept.session.signed_in_at -= seconds

    def judge(
        self, path: str, *fields: bytes, method: str = "GET", host: str = "apps.example.com", client: str = str(CLIENT)
    ) -> Verdict:
        head = request(path, *fields, method=method, host=host)
        verdict = self.gate.judge(head, host, ip_address(client))
        later = asyncio.run(self.gate.judge_later(head, host, ip_address(client)))
        if verdict is not None:
            assert (verdict.kind, verdict.reason, verdict.status) == (later.kind, later.reason, later.status)
        return later


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def request(path: str, *fields: bytes, method: str = "GET", host: str = "apps.example.com") -> RequestHead:
    found = read_request(b"\r\n".join([f"{method} {path} HTTP/1.1\r\nHost: {host}".encode(), *fields, b"", b""]))
    assert found is not None
    return found[0]


class TestLadder:
    def test_with_a_session(self, site: Site) -> None:
        cookie = site.sign_in()
        verdict = site.judge("/x", cookie)
        assert (verdict.kind, verdict.reason) == (Kind.PASS, "signed_in")
        assert verdict.session is not None
        assert verdict.session.identity.sub == "ada"
        assert verdict.route is not None
        assert verdict.route.name == "app"

    @pytest.mark.parametrize(
        ("method", "fields", "kind", "status"),
        [
            ("GET", NAVIGATION, Kind.SIGN_IN, 302),
            ("HEAD", NAVIGATION, Kind.SIGN_IN, 302),
            ("GET", (b"Accept: text/html",), Kind.SIGN_IN, 302),
            ("GET", FETCH, Kind.UNAUTHENTICATED, 401),
            ("GET", (), Kind.UNAUTHENTICATED, 401),
            ("POST", NAVIGATION, Kind.UNAUTHENTICATED, 401),
            ("GET", (*WEBSOCKET, b"Accept: text/html"), Kind.UNAUTHENTICATED, 401),
            ("GET", (*WEBSOCKET, *NAVIGATION), Kind.UNAUTHENTICATED, 401),
        ],
    )
    def test_without_one(self, site: Site, method: str, fields: tuple[bytes, ...], kind: Kind, status: int) -> None:
        for cookie in ((), (b"Cookie: postern=1.x.y",), (b"Cookie: other=1",)):
            verdict = site.judge("/x", *fields, *cookie, method=method)
            assert (verdict.kind, verdict.status, verdict.session) == (kind, status, None)
            assert verdict.route is not None

    def test_with_the_wrong_person(self, site: Site) -> None:
        verdict = site.judge("/ops/x", site.sign_in("ada", "staff"), *NAVIGATION)
        assert (verdict.kind, verdict.status, verdict.reason) == (Kind.FORBIDDEN, 403, "no_rule")
        assert verdict.session is not None
        verdict = site.judge("/mostly-open/x", site.sign_in("mallory"))
        assert (verdict.kind, verdict.reason) == (Kind.FORBIDDEN, "deny_rule")

    def test_with_a_rule_that_holds(self, site: Site) -> None:
        assert site.judge("/ops/x", site.sign_in("ada", "ops")).reason == "rule"
        assert site.judge("/ops/x", client="10.1.2.3").kind is Kind.PASS
        assert site.judge("/ops/x", client="10.1.2.3", method="POST").kind is Kind.UNAUTHENTICATED
        assert site.judge("/mostly-open/x", client="192.0.2.1").kind is Kind.FORBIDDEN

    def test_open_to_everyone(self, site: Site) -> None:
        assert site.judge("/open").reason == "everyone"
        verdict = site.judge("/open", site.sign_in())
        assert verdict.kind is Kind.PASS
        assert verdict.session is not None, "who is there is told all the same"

    @pytest.mark.parametrize("path", ["/.postern", "/.postern/", "/.postern/sign-in?x", "/.postern/nothing/such"])
    def test_our_own_paths_are_never_forwarded(self, site: Site, path: str) -> None:
        for host in ("apps.example.com", "elsewhere.example"):
            assert site.judge(path, site.sign_in(), host=host).kind is Kind.OWN

    @pytest.mark.parametrize("path", ["/.posternx", "/.Postern/me", "/x/.postern/"])
    def test_what_only_looks_like_them_is_the_apps(self, site: Site, path: str) -> None:
        assert site.judge(path, site.sign_in()).kind is Kind.PASS

    def test_no_route(self, site: Site) -> None:
        verdict = site.judge("/x", site.sign_in(), host="elsewhere.example")
        assert (verdict.kind, verdict.status, verdict.route) == (Kind.NOT_FOUND, 404, None)

    @pytest.mark.parametrize("path", ["/open/%2e%2e/ops", "/open/..%2fops", "//ops", "/ops%00", "/open;/../ops"])
    def test_two_meanings(self, site: Site, path: str) -> None:
        verdict = site.judge(path, site.sign_in("ada", "ops"))
        if verdict.kind is Kind.PASS:  # then both meanings have the same rules
            assert verdict.route is not None
            assert verdict.route.name == "ops"
        else:
            assert (verdict.kind, verdict.status) == (Kind.AMBIGUOUS, 400)

    def test_a_request_that_has_been_here_before(self, site: Site) -> None:
        via = b"Via: 1.1 " + PSEUDONYM
        verdict = site.judge("/open", via)
        assert (verdict.kind, verdict.status) == (Kind.LOOP, 508)
        assert site.judge("/.postern/", via).kind is Kind.OWN
        assert site.judge("/open", b"Via: 1.1 postern-00000000").kind is Kind.PASS

    def test_without_a_route_nothing_is_decided(self, site: Site) -> None:
        head = request("/x")
        verdict = site.gate.decide(head, "apps.example.com", CLIENT, Match(None, "/x"), None)
        assert verdict.kind is Kind.NOT_FOUND


class TestWebSockets:
    @pytest.mark.parametrize(
        ("origin", "passes"),
        [
            (b"https://apps.example.com", True),
            (b"HTTPS://Apps.Example.com", True),
            (b"http://apps.example.com", False),
            (b"https://apps.example.com:8443", False),
            (b"https://evil.example.com", False),
            (b"https://apps.example.com.evil.example", False),
            (b"null", False),
            (b"", False),
            (None, True),
        ],
    )
    def test_with_a_session_only_from_our_own_pages(self, site: Site, origin: bytes | None, passes: bool) -> None:
        fields = [*WEBSOCKET, site.sign_in()] + ([b"Origin: " + origin] if origin is not None else [])
        verdict = site.judge("/live", *fields)
        assert (verdict.kind, verdict.status) == ((Kind.PASS, 0) if passes else (Kind.FOREIGN_ORIGIN, 403))

    def test_the_own_page_of_another_host_of_ours(self, tmp_path: Path) -> None:
        file = tmp_path / "postern.toml"
        file.write_text(ROUTES.replace('host = "apps.example.com"', 'host = "*.example.com"'))
        settings = load(file, {})
        gate = Gate(settings, RouteTable.from_settings(settings), MemoryStore(idle=1, lifetime=1))
        head = request("/open", *WEBSOCKET, b"Origin: https://grafana.example.com", host="grafana.example.com")
        route = gate.routes.routes[0]
        assert gate._same_origin(head, "grafana.example.com", route)
        assert not gate._same_origin(head, "wiki.example.com", route)

    @pytest.mark.parametrize(
        ("origin", "passes"),
        [
            (b"https://chat.example.net", True),
            (b"HTTPS://Chat.example.net", True),
            (b"app://obsidian.md", True),
            (b"https://apps.example.com", True),
            (b"http://chat.example.net", False),
            (b"https://chat.example.net:8443", False),
            (b"https://chat.example.net.evil.example", False),
            (b"https://x.chat.example.net", False),
            (b"null", False),
            (b"", False),
        ],
    )
    def test_pages_that_the_route_names_may_and_no_others(self, tmp_path: Path, origin: bytes, passes: bool) -> None:
        origins = 'websocket_origins = ["https://Chat.example.net", "app://obsidian.md"]'
        file = tmp_path / "postern.toml"
        file.write_text(ROUTES.replace('name = "app"', f'name = "app"\n{origins}'))
        settings = load(file, {})
        gate = Gate(settings, RouteTable.from_settings(settings), MemoryStore(idle=1, lifetime=1))
        (route,) = (route for route in gate.routes.routes if route.websocket_origins)
        head = request("/live", *WEBSOCKET, b"Origin: " + origin)
        assert gate._same_origin(head, "apps.example.com", route) is passes

    def test_from_a_foreign_page_everyones_route_gives_what_everyone_gets(self, site: Site) -> None:
        verdict = site.judge("/open", *WEBSOCKET, site.sign_in(), b"Origin: https://evil.example")
        assert (verdict.kind, verdict.session) == (Kind.PASS, None)
        verdict = site.judge(
            "/ops", *WEBSOCKET, site.sign_in("ada", "ops"), b"Origin: https://evil.example", client="10.0.0.9"
        )
        assert (verdict.kind, verdict.session, verdict.reason) == (Kind.PASS, None, "rule")

    def test_an_ordinary_request_needs_no_origin_of_ours(self, site: Site) -> None:
        assert site.judge("/x", site.sign_in(), b"Origin: https://evil.example").kind is Kind.PASS


class TestStores:
    def test_one_that_must_be_asked_is_asked(self, tmp_path: Path) -> None:
        store = RemoteStore()
        site = Site(tmp_path, store)
        cookie = site.sign_in()
        assert site.gate.judge(request("/x", cookie), "apps.example.com", CLIENT) is None
        assert site.judge("/x", cookie).kind is Kind.PASS
        assert site.judge("/x", b"Cookie: postern=1.x.y").kind is Kind.UNAUTHENTICATED
        store.asked = 0
        assert site.judge("/x").kind is Kind.UNAUTHENTICATED
        assert site.judge("/nowhere", cookie, host="elsewhere.example").kind is Kind.NOT_FOUND
        assert store.asked == 0, "nobody asks about nothing"

    def test_one_that_is_down_lets_nobody_in_and_signs_nobody_out(self, tmp_path: Path) -> None:
        store = RemoteStore()
        site = Site(tmp_path, store)
        cookie = site.sign_in("ada", "ops")
        store.down = True
        for path in ("/x", "/ops"):
            for fields in (NAVIGATION, FETCH):
                verdict = site.judge(path, cookie, *fields)
                assert (verdict.kind, verdict.status) == (Kind.UNAVAILABLE, 503)
                assert verdict.session is None
        assert site.judge("/x", *NAVIGATION).kind is Kind.SIGN_IN, "without a cookie there is nothing to ask"

    def test_one_that_is_down_does_not_stop_what_needs_no_session(self, tmp_path: Path) -> None:
        store = RemoteStore()
        site = Site(tmp_path, store)
        cookie = site.sign_in()
        store.down = True
        for path, client in (("/open", "198.51.100.7"), ("/mostly-open", "198.51.100.7"), ("/ops", "10.1.2.3")):
            verdict = site.judge(path, cookie, client=client)
            assert (verdict.kind, verdict.session) == (Kind.PASS, None)
        assert site.judge("/mostly-open", cookie, client="192.0.2.1").kind is Kind.UNAVAILABLE

    @pytest.mark.parametrize("make", [lambda: MemoryStore(idle=3600, lifetime=86400), RemoteStore])
    def test_a_planted_cookie_does_not_hide_the_right_one(
        self, tmp_path: Path, make: Callable[[], MemoryStore]
    ) -> None:
        site = Site(tmp_path, make())
        right = site.sign_in().partition(b": ")[2]
        stale = b"postern=1." + b"a" * 22 + b"." + b"b" * 43
        assert site.judge("/x", b"Cookie: " + b"; ".join([stale, b"postern=rubbish", right])).kind is Kind.PASS

    def test_a_head_full_of_cookies_does_not_keep_the_store_busy(self, tmp_path: Path) -> None:
        store = RemoteStore()
        site = Site(tmp_path, store)
        many = b"; ".join(b"postern=1.%022d." % number + b"b" * 43 for number in range(500))
        assert site.judge("/x", b"Cookie: " + many).kind is Kind.UNAUTHENTICATED
        assert store.asked <= 4


SITE_PATHS = [
    "/",
    "/x",
    "/open",
    "/open/x",
    "/ops",
    "/ops/x",
    "/mostly-open",
    "/open/../ops",
    "//ops",
    "/open/%2e%2e/x",
    "/.postern/",
]


@given(
    st.sampled_from(SITE_PATHS),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]),
    st.lists(
        st.sampled_from([*NAVIGATION, *FETCH, *WEBSOCKET, b"Origin: https://evil.example", b"Via: 1.1 x"]),
        max_size=4,
        unique=True,
    ),
    st.sampled_from([None, "ada", "mallory"]),
    st.sampled_from(["198.51.100.7", "10.1.2.3", "192.0.2.1"]),
)
def test_nothing_passes_but_by_a_decision_that_allows_it(
    tmp_path_factory: pytest.TempPathFactory, path: str, method: str, fields: list[bytes], who: str | None, client: str
) -> None:
    site = Site(tmp_path_factory.getbasetemp())
    cookie = [site.sign_in(who, "ops")] if who else []
    verdict = site.judge(path, *fields, *cookie, method=method, client=client)
    if verdict.kind is Kind.PASS:
        assert verdict.decision is not None
        assert verdict.decision.allowed
        assert verdict.route is not None
        assert verdict.status == 0
    elif verdict.kind is not Kind.OWN:
        assert verdict.status >= 302
    assert verdict.reason
    assert os.linesep not in verdict.detail


class TestSignedInLongAgo:
    @pytest.mark.parametrize(
        ("method", "fields", "kind", "status"),
        [
            ("GET", NAVIGATION, Kind.SIGN_IN, 302),
            ("GET", FETCH, Kind.UNAUTHENTICATED, 401),
            ("POST", NAVIGATION, Kind.UNAUTHENTICATED, 401),
            ("GET", WEBSOCKET, Kind.UNAUTHENTICATED, 401),
        ],
    )
    def test_is_asked_to_sign_in_again(
        self, site: Site, method: str, fields: tuple[bytes, ...], kind: Kind, status: int
    ) -> None:
        cookie = site.sign_in("ada", "ops")
        assert site.judge("/vault/x", cookie, *fields, method=method).kind is Kind.PASS
        site.grow_old(3600)
        verdict = site.judge("/vault/x", cookie, *fields, method=method)
        assert (verdict.kind, verdict.status, verdict.reason) == (kind, status, "sign_in_too_old")
        assert verdict.session is not None
        assert verdict.decision is not None
        assert verdict.decision.rule == 0

    def test_another_rule_may_still_hold(self, site: Site) -> None:
        cookie = site.sign_in("ada", "ops", "reader")
        site.grow_old(3600)
        assert site.judge("/vault", cookie).kind is Kind.PASS
        assert site.judge("/vault", cookie, method="DELETE").reason == "sign_in_too_old"
        assert site.judge("/vault", site.sign_in("eve"), method="DELETE").kind is Kind.FORBIDDEN


def test_an_organizations_route_tells_of_it_alone_and_other_routes_of_all(tmp_path: Path) -> None:
    file = tmp_path / "postern.toml"
    extra = '[[route]]\nname = "acme"\nhost = "acme.example.com"\nupstream = "http://acme:1"\norganization = "acme"\n'
    file.write_text(ROUTES + extra)
    settings = load(file, {})
    store = MemoryStore(idle=3600, lifetime=86400)
    gate = Gate(settings, RouteTable.from_settings(settings), store)
    person = Identity(sub="ada", organizations=("acme", "x"), organization_roles=("acme:admin", "x:admin"))
    grant = Grant(person, Tokens(id_token="i", access_token="a", access_expires_at=0), None, time.time())
    _, value = asyncio.run(store.create(grant, browser="", address=""))
    for host, groups in (("acme.example.com", ("acme:admin",)), ("apps.example.com", ("acme:admin", "x:admin"))):
        verdict = gate.judge(request("/", f"Cookie: postern={value}".encode(), host=host), host, CLIENT)
        assert verdict is not None
        assert verdict.kind is Kind.PASS
        assert verdict.identity is not None
        assert verdict.identity.groups == groups
        assert gate.organization_at(f"https://{host}/") == ("acme" if host.startswith("acme") else None)
    assert gate.organization_at("https://nowhere.example/") is None


class TestDecisionsKept:
    """Where only who somebody is counts, and by what method they ask, rules are looked at once: until somebody is somebody else,
    or the rules are others.
    """

    @staticmethod
    def load(site: Site, cookie: bytes) -> Session:
        session = asyncio.run(site.gate.session_of(cookie.partition(b": ")[2], "apps.example.com"))
        assert session is not None
        return session

    def test_a_role_that_is_lost_or_won_counts_at_once(self, site: Site) -> None:
        file_route = next(route for route in site.gate.routes.routes if route.name == "admins")
        cookie = site.sign_in("ada", "admin")
        session = self.load(site, cookie)
        for roles, kind in ((("admin",), Kind.PASS), ((), Kind.FORBIDDEN), (("admin",), Kind.PASS)):
            session.identity = Identity(sub="ada", roles=roles)
            for _ in range(3):
                assert site.judge("/admins/x", cookie).kind is kind
        assert list(session.decisions) == [(file_route, "")]

    def test_a_method_is_decided_by_itself(self, site: Site) -> None:
        cookie, admin = site.sign_in("ada", "reader"), site.sign_in("bob", "admin", "guest")
        for _ in range(3):
            for method in ("GET", "POST", "get", "DELETE", "delete", "PURGE"):
                kind = Kind.PASS if method == "GET" else Kind.FORBIDDEN
                assert site.judge("/shelf/x", cookie, method=method).kind is kind, method
                kind = Kind.FORBIDDEN if method.upper() == "DELETE" else Kind.PASS
                assert site.judge("/shelf/x", admin, method=method).kind is kind, method
        # Methods that clients invent are none to keep a decision for.
        assert {method for _, method in self.load(site, cookie).decisions} == {"GET", "POST", "DELETE"}

    def test_other_rules_are_other_decisions_and_old_ones_do_not_pile_up(self, site: Site) -> None:
        cookie = site.sign_in("ada", "admin")
        session = self.load(site, cookie)
        head = request("/admins/x", cookie)
        for number in range(300):
            gate = Gate(site.settings, RouteTable.from_settings(site.settings), site.store)
            verdict = gate.judge(head, "apps.example.com", CLIENT)
            assert verdict is not None
            assert verdict.kind is Kind.PASS, number
        assert len(session.decisions) <= 14 * len(site.gate.routes.routes)

    def test_what_depends_on_the_request_is_never_kept(self, site: Site) -> None:
        cookie = site.sign_in("ada", "reader")
        assert site.judge("/vault", cookie).kind is Kind.PASS
        assert site.judge("/vault", cookie, method="POST").kind is Kind.FORBIDDEN
        assert self.load(site, cookie).decisions == {}
