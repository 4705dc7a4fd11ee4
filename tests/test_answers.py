"""Who gets which answer: pages and problem documents, and where a sign-in comes back to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.requests import Request

from proxy.answers import account_fact, call_of, is_prefetch, redirect, wants_page
from proxy.claims import Identity
from proxy.errors import UpstreamProblem
from proxy.verdict import OWN, Kind, Verdict, bad_request, upstream_failed
from tests.gateway_world import FETCH, NAVIGATE, PUBLIC, World, settings_for

PAGE = {"Accept": "text/html"}
API = {"Accept": "application/json"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path)) as it:
        yield it


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[World]:
    """A gateway whose cookie goes to every host of a domain."""
    routes = """
[[route]]
name = "grafana"
host = "grafana.example.com"
upstream = "http://127.0.0.1:9"
[[route]]
name = "rest"
upstream = "http://127.0.0.1:9"
"""
    with World(settings_for(tmp_path, session='cookie = { domain = "example.com" }', routes=routes)) as it:
        yield it


def return_to(url: str) -> str:
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == PUBLIC + "/.postern/sign-in"
    return parse_qs(parts.query)["return_to"][0]


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML", True),
        ("text/html;q=0.1", True),
        ("text/html; level=1; q=0.5", True),
        ("application/json, text/html", True),
        ("application/json, text/html;q=0.9", False),
        ("application/problem+json, text/html;q=0.9", False),
        ("application/json;q=0.2, text/html;q=0.9", True),
        ("text/html;q=0", False),
        ("text/html;q=0.000", False),
        ("text/htmlx", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("", False),
        (",;q=,;", False),
    ],
)
def test_page_or_problem_by_accept(accept: str, page: bool) -> None:
    assert wants_page(Headers({"accept": accept})) is page
    assert not wants_page(Headers({"accept": accept, "x-requested-with": "XMLHttpRequest"}))


def test_no_accept_is_a_program() -> None:
    assert not wants_page(Headers({}))


@given(st.text(max_size=100))
def test_any_accept_gives_an_answer(accept: str) -> None:
    assert wants_page(Headers(raw=[(b"accept", accept.encode())])) in (True, False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"sec-purpose": "prefetch"}, True),
        ({"sec-purpose": "prefetch;prerender"}, True),
        ({"purpose": "prefetch"}, True),
        ({"sec-purpose": "", "purpose": "prefetch"}, False),
    ],
)
def test_prefetch(headers: dict[str, str], expected: bool) -> None:
    assert is_prefetch(Headers(headers)) is expected


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ('https://a.example/x?q=%2F%20|^{}`~\'(*)&b="c"#f', 'https://a.example/x?q=%2F%20|^{}`~\'(*)&b="c"#f'),
        ("https://a.example/\r\nSet-Cookie: x=y", "https://a.example/%0D%0ASet-Cookie:%20x=y"),
        ("https://a.example/é", "https://a.example/%C3%A9"),
    ],
)
def test_redirect_leaves_a_url_as_it_is_and_lets_nothing_out_of_it(url: str, location: str) -> None:
    response = redirect(url, 303, set_cookies=["a=1", "b=2"])
    assert response.status_code == 303
    assert response.headers["location"] == location
    assert response.headers.getlist("set-cookie") == ["a=1", "b=2"]


def test_without_the_relay_there_is_no_answer() -> None:
    with pytest.raises(TypeError, match="relay"):
        call_of(Request({"type": "http", "postern": object()}))


@pytest.mark.parametrize(
    ("identity", "value", "more"),
    [
        (Identity("s1", name="Ada", email="a@x.example", username="ada"), "Ada", "a@x.example"),
        (Identity("s1", name="Ada", username="ada"), "Ada", "ada"),
        (Identity("s1", username="ada", email="a@x.example"), "ada", "a@x.example"),
        (Identity("s1", email="a@x.example"), "a@x.example", ""),
        (Identity("s1", name="ada", username="ada"), "ada", ""),
        (Identity("s1"), "s1", ""),
    ],
)
def test_people_are_told_who_they_are(identity: Identity, value: str, more: str) -> None:
    fact = account_fact(identity)
    assert (fact.value, fact.more) == (value, more)


# -- 401


def test_fetch_without_a_session_is_told_where_the_page_can_sign_in(world: World) -> None:
    answer = world.get("/api/items?x=1", FETCH, Referer=PUBLIC + "/app?tab=2")
    assert answer.status == 401
    problem = answer.problem()
    assert problem["type"] == "about:blank"
    assert problem["title"] == "Unauthorized"
    assert problem["status"] == 401
    assert problem["reason"] == "not_signed_in"
    assert problem["request_id"] == answer.headers["x-request-id"] == "request-1"
    assert return_to(problem["sign_in"]) == PUBLIC + "/app?tab=2", "the page, never the endpoint it called"
    assert answer.headers["www-authenticate"].startswith("Cookie ")
    assert answer.headers["cache-control"] == "no-store"
    assert not answer.set_cookies


@pytest.mark.parametrize(
    "referer",
    [
        "",
        "https://evil.example/page",
        "https://apps.example.com.evil.example/",
        "javascript:alert(1)",
        "http://apps.example.com/plain",
    ],
)
def test_sign_in_after_a_fetch_from_elsewhere_leads_to_the_root(world: World, referer: str) -> None:
    answer = world.get("/api/items", FETCH, **({"Referer": referer} if referer else {}))
    assert return_to(answer.problem()["sign_in"]) == PUBLIC + "/"


def test_sign_in_after_a_fetch_on_another_host_of_ours_leads_to_that_host(wide: World) -> None:
    answer = wide.get("/api/items", FETCH, Host="grafana.example.com")
    assert return_to(answer.problem()["sign_in"]) == "https://grafana.example.com/"
    answer = wide.get("/api/items", FETCH, Host="grafana.example.com", Referer="https://grafana.example.com/d/1?a=b")
    assert return_to(answer.problem()["sign_in"]) == "https://grafana.example.com/d/1?a=b"


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {"Accept": "text/html"}),
        ("PUT", API),
        ("DELETE", {}),
        ("GET", {"Accept": "*/*"}),
        ("GET", {**PAGE, "X-Requested-With": "XMLHttpRequest"}),
        ("GET", {"Accept": "image/avif,image/webp,*/*;q=0.8", "Sec-Fetch-Mode": "no-cors"}),
        ("GET", {**FETCH, "Accept": "text/html"}),
    ],
)
def test_401_is_a_problem_document_for_programs(world: World, method: str, headers: dict[str, str]) -> None:
    answer = world.request(method, "/api", headers)
    assert answer.status == 401
    assert "sign_in" in answer.problem()


def test_a_websocket_without_a_session_gets_401(world: World) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Fetch-Mode": "websocket"}
    answer = world.get("/live", upgrade)
    assert answer.status == 401
    assert answer.problem()["reason"] == "not_signed_in"


@pytest.mark.parametrize("purpose", [{"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}])
def test_a_prefetch_never_starts_a_sign_in(world: World, purpose: dict[str, str]) -> None:
    answer = world.get("/page", NAVIGATE | purpose)
    assert answer.status == 401
    assert not answer.set_cookies
    assert world.logto.begun == []


def test_a_form_that_a_person_sends_without_a_session_gets_a_page(world: World) -> None:
    answer = world.post("/form", NAVIGATE, Referer=PUBLIC + "/form?id=1")
    assert answer.status == 401
    assert answer.headers["content-type"].startswith("text/html")
    assert "it has not been sent" in answer.text
    assert "/.postern/sign-in?return_to=https://apps.example.com/form%3Fid%3D1" in answer.text


# -- 403


def test_forbidden_page_says_why_and_who_and_offers_another_account(world: World) -> None:
    answer = world.get("/admin/users?tab=secret", NAVIGATE, Cookie=world.sign_in())
    assert answer.status == 403
    for part in (
        "No rule lets this account in.",
        "Ada Lovelace",
        "ada@example.com",
        "apps.example.com/admin/users",
        "prompt=login",
    ):
        assert part in answer.text
    assert "apps.example.com/admin/users?" not in answer.text
    assert "request-1" in answer.text


def test_forbidden_problem_says_why_and_who(world: World) -> None:
    answer = world.get("/admin/users", API, Cookie=world.sign_in(), Referer=PUBLIC + "/admin/")
    problem = answer.problem()
    assert answer.status == problem["status"] == 403
    assert problem["reason"] == "no_rule"
    assert problem["user"] == {"sub": "ada", "name": "Ada Lovelace"}
    assert problem["detail"].endswith("No rule lets this account in.")
    assert return_to(problem["sign_in"]) == PUBLIC + "/admin/"
    assert "prompt=login" in problem["sign_in"]


def test_denied_by_a_rule_reads_differently(world: World) -> None:
    answer = world.get("/blocked", API, Cookie=world.sign_in(), Accept_Language="zh-CN")
    assert answer.problem()["reason"] == "deny_rule"
    assert answer.headers["content-language"] == "zh-CN"
    assert answer.problem()["detail"].endswith("有规则禁止此账号访问。")


def test_an_unknown_reason_still_reads_as_a_no(world: World) -> None:
    cookie = world.sign_in()
    value = cookie.partition("=")[2]
    session = world.runner.run(world.store.load(value))
    verdict = Verdict(Kind.FORBIDDEN, session=session, status=403, reason="brand_new")
    answer = world.request("GET", "/x", PAGE, verdict=verdict)
    assert "The rules of this page say no." in answer.text


def test_forbidden_without_anybody_offers_no_sign_in(world: World) -> None:
    answer = world.get("/inside")
    assert answer.status == 403
    assert "signing in would not change that" in answer.text
    assert "/.postern/sign-in" not in answer.text


def test_websocket_of_a_foreign_page(world: World) -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Origin": "https://evil.example"}
    answer = world.get("/live", upgrade, Cookie=world.sign_in())
    assert answer.status == 403
    assert answer.problem()["reason"] == "foreign_origin"


# -- the rest of the ladder


@pytest.mark.parametrize(
    ("verdict", "status", "title", "reason"),
    [
        (Verdict(Kind.NOT_FOUND, status=404), 404, "Nothing here", "no_route"),
        (Verdict(Kind.AMBIGUOUS, status=400), 400, "This address is unclear", "ambiguous_path"),
        (bad_request(414, "the target is too long"), 414, "This request makes no sense", "bad_request"),
        (Verdict(Kind.UNAVAILABLE, status=503), 503, "One moment, please", "store_unavailable"),
        (Verdict(Kind.OVERLOADED, status=503), 503, "Too busy right now", "overloaded"),
        (upstream_failed(UpstreamProblem.REFUSED, None, None), 502, "does not answer", "upstream_refused"),
        (upstream_failed(UpstreamProblem.RESET, None, None), 502, "does not answer", "upstream_reset"),
        (upstream_failed(UpstreamProblem.GARBAGE, None, None), 502, "does not answer", "upstream_garbage"),
        (
            upstream_failed(UpstreamProblem.CONNECT_TIMEOUT, None, None),
            504,
            "takes too long",
            "upstream_connect_timeout",
        ),
        (
            upstream_failed(UpstreamProblem.RESPONSE_TIMEOUT, None, None),
            504,
            "takes too long",
            "upstream_response_timeout",
        ),
        (Verdict(Kind.PASS), 500, "Something went wrong", "error"),
    ],
)
def test_verdicts_as_pages_and_as_problems(
    world: World, verdict: Verdict, status: int, title: str, reason: str
) -> None:
    page = world.request("GET", "/x", PAGE, verdict=verdict)
    problem = world.request("POST", "/x", API, verdict=verdict)
    assert page.status == problem.status == status
    assert title in page.text
    assert problem.problem()["reason"] == reason
    assert ("retry-after" in page.headers) is (status == 503)
    for answer in (page, problem):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"] == "request-1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "Accept-Language" in answer.headers["vary"]
        assert not answer.set_cookies


def test_the_readers_of_problem_documents_learn_what_was_wrong_with_their_bytes(world: World) -> None:
    answer = world.request("GET", "/x", API, verdict=bad_request(431, "the head is too large"))
    assert answer.problem()["detail"] == "the head is too large"


def test_only_what_is_safe_to_repeat_offers_a_reload(world: World) -> None:
    down = Verdict(Kind.UNAVAILABLE, status=503)
    assert "Reload the page" in world.request("GET", "/x?y=1", PAGE, verdict=down).text
    assert "https://apps.example.com/x?y=1" in world.request("GET", "/x?y=1", PAGE, verdict=down).text
    assert "Reload the page" not in world.request("POST", "/x", PAGE, verdict=down).text


def test_ambiguous_paths_of_the_gate_get_400(world: World) -> None:
    answer = world.get("/x/%2e%2e/admin", Cookie=world.sign_in())
    assert answer.status == 400
    assert "This address is unclear" in answer.text


# -- where a sign-in comes back to


@pytest.mark.parametrize(
    ("host", "scheme", "at_home"),
    [
        ("apps.example.com", "https", True),
        ("APPS.example.com:443", "https", True),
        ("apps.example.com.", "https", True),
        ("apps.example.com", "http", False),  # a Secure cookie would not be kept
        ("grafana.example.com", "https", False),
        ("10.0.0.1:3000", "https", False),
        ("xapps.example.com", "https", False),
    ],
)
def test_navigation_starts_where_its_cookie_comes_back(world: World, host: str, scheme: str, at_home: bool) -> None:
    answer = world.request("GET", "/p?q=1", {**NAVIGATE, "Host": host}, scheme=scheme)
    assert answer.status == 302
    if at_home:
        assert answer.location.startswith("https://auth.example.com/oidc/auth")
        assert answer.set_cookies
        assert world.logto.begun == [{"return_to": PUBLIC + "/p?q=1"}]
    else:
        assert not answer.set_cookies
        assert world.logto.begun == []
        assert return_to(answer.location) == PUBLIC + "/p?q=1"


@pytest.mark.parametrize(
    ("host", "scheme", "at_home", "back"),
    [
        ("grafana.example.com", "https", True, "https://grafana.example.com/p?q=1"),
        ("grafana.example.com", "http", False, "https://grafana.example.com/p?q=1"),
        ("apps.example.com", "https", True, "https://apps.example.com/p?q=1"),
        ("evil-example.com", "https", False, "https://apps.example.com/p?q=1"),
        ("10.0.0.1:3000", "http", False, "https://apps.example.com/p?q=1"),
    ],
)
def test_a_cookie_for_a_domain_starts_on_every_host_of_it(
    wide: World, host: str, scheme: str, at_home: bool, back: str
) -> None:
    answer = wide.request("GET", "/p?q=1", {**NAVIGATE, "Host": host}, scheme=scheme)
    assert answer.status == 302
    if at_home:
        assert wide.logto.begun == [{"return_to": back}]
    else:
        assert return_to(answer.location) == back


def test_a_proxy_in_front_that_rewrites_host_makes_no_loop(world: World) -> None:
    """The browser is at the public URL; what arrives here always names an internal host."""
    inside = {**NAVIGATE, "Host": "postern:3000"}
    first = world.get("/p", inside)
    path = first.location.removeprefix(PUBLIC)
    second = world.get(path, inside)
    assert second.status == 302
    assert second.location.startswith("https://auth.example.com/")
    assert world.logto.begun == [{"return_to": PUBLIC + "/p"}]


def test_own_paths_are_answered_below_any_host(wide: World) -> None:
    answer = wide.request("GET", "/.postern/nothing", {**API, "Host": "grafana.example.com"}, verdict=OWN)
    assert answer.status == 404
    assert answer.problem()["reason"] == "not_found"
