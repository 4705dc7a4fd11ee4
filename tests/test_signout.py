"""The way out: nobody is signed out by another site, and who wants out is out, whatever Logto does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import signout
from proxy.errors import LogtoRefused, LogtoUnavailable, StoreUnavailable
from proxy.session import MemoryStore, Session
from tests.gateway_world import LOGTO, NAVIGATE, PUBLIC, TOKENS, Answer, World, settings_for

FORM = NAVIGATE | {"Sec-Fetch-Site": "same-origin", "Origin": PUBLIC}
PATH = "/.postern/sign-out"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path)) as it:
        yield it


def alive(world: World, cookie: str) -> bool:
    return world.runner.run(world.store.load(cookie.partition("=")[2])) is not None


def clears_session(answer: Answer) -> bool:
    return any(line.startswith("__Host-postern=;") and "Max-Age=0" in line for line in answer.set_cookies)


def test_get_asks_and_does_nothing(world: World) -> None:
    cookie = world.sign_in()
    answer = world.get(PATH + "?return_to=/page%3Fx%3D1", Cookie=cookie)
    assert answer.status == 200
    assert "Ada Lovelace" in answer.text
    assert (
        '<form method="post" action="/.postern/sign-out?return_to=https%3A%2F%2Fapps.example.com%2Fpage%3Fx%3D1">'
        in (answer.text)
    )
    assert 'href="https://apps.example.com/page?x=1"' in answer.text
    assert alive(world, cookie)
    assert not answer.set_cookies


def test_get_without_a_way_back_stays_at_home(world: World) -> None:
    answer = world.get(PATH, Cookie=world.sign_in())
    assert 'action="/.postern/sign-out"' in answer.text
    assert 'href="/.postern/"' in answer.text


def test_post_ends_the_session_here_and_at_logto(world: World) -> None:
    cookie = world.sign_in()
    answer = world.post(PATH, FORM, Cookie=cookie)
    assert answer.status == 303
    assert answer.location == LOGTO + "/oidc/session/end?id_token_hint=x"
    assert clears_session(answer)
    assert answer.headers["clear-site-data"] == '"cache"'
    assert not alive(world, cookie)
    assert world.logto.hints == [TOKENS]
    world.runner.run(world.app.state.revocations.drain(5))
    assert world.logto.revoked == [TOKENS]


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "https://grafana.example.com"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": PUBLIC}, False),
        ({"Sec-Fetch-Site": ""}, False),
        ({"Sec-Fetch-Site": "same-origin, same-origin"}, False),
        ({"Origin": PUBLIC}, True),
        ({"Origin": "https://APPS.example.com"}, True),
        ({"Origin": "http://apps.example.com"}, False),
        ({"Origin": PUBLIC + ":444"}, False),
        ({"Origin": PUBLIC + ".evil.example"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({}, False),
        ({"Referer": PUBLIC + "/.postern/sign-out"}, False),
    ],
)
def test_only_a_page_of_this_origin_signs_people_out(world: World, headers: dict[str, str], allowed: bool) -> None:
    cookie = world.sign_in()
    answer = world.post(PATH, {"Accept": "text/html", **headers}, Cookie=cookie)
    assert answer.status == (303 if allowed else 403)
    assert alive(world, cookie) is not allowed
    if not allowed:
        assert "You are still signed in." in answer.text
        assert not answer.set_cookies
        assert world.logto.hints == []


def test_the_host_asked_for_is_an_origin_of_ours(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, session='cookie = { domain = "example.com" }')
    with World(settings) as world:
        there = {"Accept": "text/html", "Host": "grafana.example.com"}
        cookie = world.sign_in()
        assert world.post(PATH, there | {"Origin": "https://other.example.com"}, Cookie=cookie).status == 403
        assert world.post(PATH, there | {"Origin": "https://grafana.example.com"}, Cookie=cookie).status == 303


def test_the_way_back_is_remembered_between_browser_and_gateway_only(world: World) -> None:
    answer = world.post(PATH + "?return_to=/page%3Fx%3D1%3B2", FORM, Cookie=world.sign_in())
    assert "page" not in answer.location
    [line] = [line for line in answer.set_cookies if line.startswith("postern_return=")]
    for attribute in ("Path=/.postern/signed-out", "Max-Age=600", "HttpOnly", "Secure", "SameSite=Lax"):
        assert attribute in line
    back = world.get("/.postern/signed-out", NAVIGATE | {"Sec-Fetch-Site": "cross-site"}, Cookie=line.partition(";")[0])
    assert back.status == 200
    assert "You are signed out" in back.text
    assert 'href="https://apps.example.com/page?x=1;2"' in back.text
    assert "sign-in?return_to=https://apps.example.com/page%3Fx%3D1%3B2" in back.text
    assert any(line.startswith("postern_return=;") and "Max-Age=0" in line for line in back.set_cookies)


@pytest.mark.parametrize("planted", ["https%3A%2F%2Fevil.example%2F", "javascript:alert(1)", "%00%ff", ""])
def test_a_planted_way_back_leads_nowhere_else(world: World, planted: str) -> None:
    answer = world.get("/.postern/signed-out", Cookie="postern_return=" + planted)
    assert answer.status == 200
    assert "evil" not in answer.text
    assert 'href="https://apps.example.com/"' in answer.text


def test_a_way_back_that_fits_no_cookie_is_forgotten(world: World) -> None:
    answer = world.post(PATH + "?return_to=/" + "x" * 3000, FORM, Cookie=world.sign_in())
    assert answer.status == 303
    [line] = [line for line in answer.set_cookies if line.startswith("postern_return=")]
    assert line.startswith("postern_return=;")
    assert "Max-Age=0" in line


@pytest.mark.parametrize("error", [LogtoUnavailable("no route"), LogtoRefused("invalid_client")])
def test_without_logto_people_are_signed_out_here_and_told_so(world: World, error: Exception) -> None:
    world.logto.sign_out = error
    cookie = world.sign_in()
    answer = world.post(PATH + "?return_to=/page", FORM, Cookie=cookie)
    assert answer.status == 200
    assert "You are signed out here" in answer.text
    assert "may know you still" in answer.text
    assert 'href="https://apps.example.com/page"' in answer.text
    assert clears_session(answer)
    assert not alive(world, cookie)


def test_a_logto_that_hangs_keeps_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signout, "_LOGTO_PATIENCE", 0.01)
    world.logto.hang = True
    cookie = world.sign_in()
    answer = world.post(PATH, FORM, Cookie=cookie)
    assert "You are signed out here" in answer.text
    assert not alive(world, cookie)


def test_without_a_session_both_are_simply_signed_out(world: World) -> None:
    answer = world.get(PATH + "?return_to=/page")
    assert answer.status == 200
    assert "You are signed out" in answer.text
    assert not answer.set_cookies
    answer = world.post(PATH, FORM, Cookie="__Host-postern=1.stale.cookie")
    assert answer.status == 200
    assert clears_session(answer)
    assert world.logto.hints == []


def test_signed_out_says_nothing_false_to_somebody_signed_in(world: World) -> None:
    answer = world.get("/.postern/signed-out", Cookie=world.sign_in())
    assert (answer.status, answer.location) == (303, "/.postern/")


class Unreachable(MemoryStore):
    async def load(self, cookie: str) -> Session | None:
        raise StoreUnavailable("connection refused")


def test_a_store_out_of_reach_signs_nobody_out_and_says_so(tmp_path: Path) -> None:
    with World(settings_for(tmp_path), Unreachable(idle=1.0, lifetime=1.0)) as world:
        answer = world.post(PATH, FORM, Cookie="__Host-postern=1.some.cookie")
        assert answer.status == 503
        assert not answer.set_cookies, "the cookie is kept: the session is still there"
        assert "You are not signed out" in answer.text


def test_draining_waits_for_nothing_when_there_is_nothing(world: World) -> None:
    world.runner.run(world.app.state.revocations.drain(5))
    assert world.logto.revoked == []


# -- of this app, or of everything ------------------------------------------------------------------------------------

SWITCH = 'href="https://apps.example.com/.postern/sign-in?return_to=https://apps.example.com/page&amp;prompt=login"'


def reaching(tmp_path: Path, usual: str) -> World:
    return World(settings_for(tmp_path, POSTERN_LOGTO__SIGN_OUT=usual))


@pytest.mark.parametrize(
    ("usual", "query", "at_logto"),
    [
        ("everywhere", "", True),
        ("everywhere", "?from=everywhere", True),
        ("everywhere", "?from=here", False),
        ("everywhere", "?from=nowhere", True),
        ("everywhere", "?from=", True),
        ("here", "", False),
        ("here", "?from=here", False),
        ("here", "?from=everywhere", True),
        ("here", "?from=nowhere", False),
    ],
)
def test_a_sign_out_goes_as_far_as_its_button_or_else_the_settings_say(
    tmp_path: Path, usual: str, query: str, at_logto: bool
) -> None:
    with reaching(tmp_path, usual) as world:
        cookie = world.sign_in()
        answer = world.post(PATH + query, FORM, Cookie=cookie)
        assert answer.status == (303 if at_logto else 200)
        assert world.logto.hints == ([TOKENS] if at_logto else [])
        assert not alive(world, cookie)
        assert clears_session(answer)
        assert answer.headers["clear-site-data"] == '"cache"'
        world.runner.run(world.app.state.revocations.drain(5))
        assert world.logto.revoked == [TOKENS]


def test_after_a_sign_out_here_nobody_is_signed_in_again_in_silence(tmp_path: Path) -> None:
    with reaching(tmp_path, "here") as world:
        cookie = world.sign_in()
        answers = [world.post(PATH + "?return_to=/page", FORM, Cookie=cookie) for _ in range(2)]  # the second: a reload
        for answer in answers:
            assert "The sign-in service knows you still." in answer.text
            assert SWITCH in answer.text
            assert answer.text.index(SWITCH) < answer.text.index('href="https://apps.example.com/page"')


def test_nor_when_logto_could_not_be_told(world: World) -> None:
    world.logto.sign_out = LogtoUnavailable("no route")
    assert SWITCH in world.post(PATH + "?return_to=/page", FORM, Cookie=world.sign_in()).text


@pytest.mark.parametrize(
    ("usual", "query", "text", "buttons"),
    [
        ("everywhere", "", "here and at the sign-in service", ["", "?from=here"]),
        ("everywhere", "?from=here", "will still know you", ["?from=here", "?from=everywhere"]),
        ("here", "", "will still know you", ["", "?from=everywhere"]),
        ("here", "?from=everywhere", "here and at the sign-in service", ["?from=everywhere", "?from=here"]),
    ],
)
def test_the_page_offers_both_the_usual_one_first(
    tmp_path: Path, usual: str, query: str, text: str, buttons: list[str]
) -> None:
    with reaching(tmp_path, usual) as world:
        answer = world.get(PATH + query, Cookie=world.sign_in())
        assert text in answer.text
        found = re.findall(r'<form method="post" action="/\.postern/sign-out([^"]*)">', answer.text)
        assert found == buttons


def test_both_buttons_lead_back(tmp_path: Path) -> None:
    with reaching(tmp_path, "everywhere") as world:
        answer = world.get(PATH + "?return_to=/page", Cookie=world.sign_in())
        assert answer.text.count("sign-out?return_to=https%3A%2F%2Fapps.example.com%2Fpage") == 2
        assert "page&amp;from=here" in answer.text
