"""The way in: attempts begin with a clean request to Logto and end with a session, or with a page that says why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from proxy import cookies
from proxy.claims import Identity, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable, SignInFailed, SignInProblem, StoreUnavailable
from proxy.identity import Finished
from proxy.session import MemoryStore, Session
from tests.gateway_world import ADA, FETCH, NAVIGATE, PUBLIC, TOKENS, Answer, World, grant_for, settings_for

CLEAR = "postern_attempt_1=; Path=/.postern/callback; Max-Age=0"
BOB = Identity(sub="bob", name="Bob")
STALE = [SignInProblem.NO_ATTEMPT, SignInProblem.REPLAYED, SignInProblem.EXPIRED]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path)) as it:
        it.logto.finished = Finished(grant_for(), PUBLIC + "/page?x=1", CLEAR)
        yield it


def session_in(world: World, answer: Answer) -> Session | None:
    """The session that an answer's Set-Cookie opens."""
    name = cookies.session_name(world.settings)
    values = [line.partition(";")[0].partition("=")[2] for line in answer.set_cookies if line.startswith(name + "=")]
    assert len(values) == 1
    return world.runner.run(world.store.load(values[0]))


# -- begin


def test_a_navigation_goes_to_logto_and_comes_back_to_the_very_url(world: World) -> None:
    answer = world.get("/page?a=%2F&b=1|2")
    assert answer.status == 302
    assert answer.location == "https://auth.example.com/oidc/auth?state=1"
    assert answer.set_cookies == ["postern_attempt_1=sealed; Path=/.postern/callback"]
    assert answer.headers["cache-control"] == "no-store"
    assert world.logto.begun == [{"return_to": PUBLIC + "/page?a=%2F&b=1|2"}]


MEMBERS = """
[[route]]
name = "acme"
path = "/acme"
upstream = "http://127.0.0.1:9"
organization = "acme00000001"

[[route]]
name = "rest"
upstream = "http://127.0.0.1:9"
"""


@pytest.mark.parametrize(
    ("path", "organization"),
    [
        ("/acme/page?x=1", "acme00000001"),
        ("/page", None),
        ("/acmes", None),
        ("/.postern/sign-in?return_to=/acme", "acme00000001"),
        ("/.postern/sign-in?return_to=https://apps.example.com/acme/%25C3%25A9?x", "acme00000001"),
        ("/.postern/sign-in?return_to=https://evil.example/acme", None),
        ("/.postern/sign-in", None),
        ("/.postern/sign-in?organization=acme00000001", None),
    ],
)
def test_the_sign_in_is_the_organizations_whose_page_it_is_for(
    tmp_path: Path, path: str, organization: str | None
) -> None:
    with World(settings_for(tmp_path, routes=MEMBERS)) as world:
        assert world.get(path).status == 302
        assert world.logto.begun[0].get("organization") == organization


def test_a_head_navigation_starts_one_too(world: World) -> None:
    assert world.request("HEAD", "/page", NAVIGATE).status == 302


@pytest.mark.parametrize(
    ("query", "begun"),
    [
        ("", {"return_to": PUBLIC + "/"}),
        ("?return_to=/deep%3Fx%3D1", {"return_to": PUBLIC + "/deep?x=1"}),
        ("?return_to=https://evil.example/", {"return_to": PUBLIC + "/"}),
        ("?return_to=//evil.example/", {"return_to": PUBLIC + "/"}),
        ("?return_to=/.postern/sign-out", {"return_to": PUBLIC + "/"}),
        ("?screen=register", {"return_to": PUBLIC + "/", "screen": "register"}),
        ("?connector=discord", {"return_to": PUBLIC + "/", "connector": "discord"}),
        ("?ui_locales=zh-CN", {"return_to": PUBLIC + "/", "ui_locales": "zh-CN"}),
        (
            "?screen=identifier:sign_in&identifier=email&login_hint=ada@example.com",
            {
                "return_to": PUBLIC + "/",
                "screen": "identifier:sign_in",
                "identifier": "email",
                "login_hint": "ada@example.com",
            },
        ),
        ("?nonce=x&scope=admin&resource=x", {"return_to": PUBLIC + "/"}),
        ("?prompt=login", {"return_to": PUBLIC + "/", "prompt": "login"}),
        ("?prompt=none", {"return_to": PUBLIC + "/"}),
        ("?prompt=login&prompt=none", {"return_to": PUBLIC + "/"}),
    ],
)
def test_what_a_link_to_sign_in_may_ask_for(world: World, query: str, begun: dict[str, str]) -> None:
    assert world.get("/.postern/sign-in" + query).status == 302
    assert world.logto.begun == [begun]


def test_sign_in_starts_for_somebody_signed_in_too(world: World) -> None:
    assert world.get("/.postern/sign-in?prompt=login", Cookie=world.sign_in()).status == 302


@pytest.mark.parametrize(
    "headers",
    [
        NAVIGATE | {"Sec-Purpose": "prefetch"},
        FETCH,
        {"Accept": "image/*", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
)
def test_what_no_person_asked_for_starts_nothing(world: World, headers: dict[str, str]) -> None:
    answer = world.get("/.postern/sign-in", headers)
    assert answer.status == 401
    assert world.logto.begun == []


def test_logto_out_of_reach_is_503_and_offers_to_try_again(world: World) -> None:
    world.logto.begin_error = LogtoUnavailable("connect timeout")
    answer = world.get("/page?x=1")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "Sign-in is not available" in answer.text
    assert "sign-in?return_to=https://apps.example.com/page%3Fx%3D1" in answer.text
    assert "connect timeout" not in answer.text
    answer = world.get("/.postern/sign-in", {"Accept": "*/*"})
    assert answer.problem()["reason"] == "logto_unavailable"


def test_a_gateway_logto_does_not_know_is_502_and_says_that_trying_is_useless(world: World) -> None:
    world.logto.begin_error = LogtoRefused("invalid_client", "client authentication failed", 401)
    answer = world.get("/page")
    assert answer.status == 502
    assert "not set up correctly" in answer.text
    assert "Try again" not in answer.text
    assert "invalid_client" not in answer.text


# -- callback


def test_a_finished_sign_in_is_a_session_and_the_way_back(world: World) -> None:
    answer = world.get("/.postern/callback?code=c&state=s", Cookie="postern_attempt_1=sealed", User_Agent="Test/2.0")
    assert answer.status == 303
    assert answer.location == PUBLIC + "/page?x=1"
    assert CLEAR in answer.set_cookies
    session = session_in(world, answer)
    assert session is not None
    assert session.identity == ADA
    assert session.browser == "Test/2.0"
    assert session.address == "192.0.2.1"
    assert world.logto.finishes == [("code=c&state=s", {"postern_attempt_1": "sealed"})]
    assert any("HttpOnly" in line and "Secure" in line and "SameSite=Lax" in line for line in answer.set_cookies)


def test_of_two_cookies_of_one_name_the_more_specific_counts(world: World) -> None:
    world.get("/.postern/callback?code=c", Cookie='a=specific; _logto={"appId":"x"}; a=planted; b=2')
    assert world.logto.finishes[0][1] == {"a": "specific", "_logto": '{"appId":"x"}', "b": "2"}


def test_attempts_nobody_will_finish_are_cleared_whatever_comes_of_this_one(world: World) -> None:
    for outcome in (Finished(grant_for(), PUBLIC + "/", CLEAR), SignInFailed(SignInProblem.NO_ATTEMPT)):
        world.logto.finished = outcome
        answer = world.get("/.postern/callback?code=c", Cookie="a_stale=1; b=2")
        assert "a_stale=; Max-Age=0" in answer.set_cookies


def test_every_sign_in_gets_a_new_session_and_ends_the_old_one(world: World) -> None:
    before = world.sign_in()
    answer = world.get("/.postern/callback?code=c", Cookie=before)
    new = session_in(world, answer)
    assert new is not None
    assert world.runner.run(world.store.load(before.partition("=")[2])) is None
    assert new.id not in before
    # One grant at Logto serves both sign-ins of a person: revoking the old token would kill the new session's.
    assert world.logto.revoked == []


def test_a_sign_in_as_somebody_else_hands_the_old_tokens_back(world: World) -> None:
    old = Tokens(id_token="i", access_token="a", access_expires_at=1.0, refresh_token="bobs")
    before = world.sign_in(BOB, old)
    answer = world.get("/.postern/callback?code=c", Cookie=before)
    assert answer.status == 303
    world.runner.run(world.app.state.revocations.drain(5))
    assert world.logto.revoked == [old]


def test_a_strict_cookie_gets_a_page_between(tmp_path: Path) -> None:
    """With SameSite=Strict, a redirect here would end in a request without the session: for ever round and round."""
    with World(settings_for(tmp_path, session='cookie = { same_site = "strict" }')) as world:
        world.logto.finished = Finished(grant_for(), PUBLIC + "/page?x=1", CLEAR)
        answer = world.get("/.postern/callback?code=c")
        assert answer.status == 200
        assert '<meta http-equiv="refresh" content="0;url=https://apps.example.com/page?x=1">' in answer.text
        assert 'href="https://apps.example.com/page?x=1"' in answer.text
        assert session_in(world, answer) is not None
        assert CLEAR in answer.set_cookies


@pytest.mark.parametrize("problem", SignInProblem)
def test_each_failure_has_its_page_and_a_way_to_try_again(world: World, problem: SignInProblem) -> None:
    world.logto.finished = SignInFailed(problem, "detail <b>for</b> the log", return_to=PUBLIC + "/page?x=1")
    answer = world.get("/.postern/callback?code=very-secret-code&state=s")
    refused = {SignInProblem.DENIED: 403, SignInProblem.NOT_FRESH: 403}
    expected = {**refused, SignInProblem.LOGTO_ERROR: 502, SignInProblem.BAD_TOKEN: 502}
    assert answer.status == expected.get(problem, 400)
    assert "Try again" in answer.text
    assert "/.postern/sign-in?return_to=https://apps.example.com/page%3Fx%3D1" in answer.text
    assert "detail" not in answer.text
    assert "very-secret-code" not in answer.text
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not [line for line in answer.set_cookies if line.startswith(cookies.session_name(world.settings))]
    document = world.get("/.postern/callback?code=c", FETCH)
    assert document.problem()["reason"] == problem.value
    assert "very-secret-code" not in document.text


def test_a_failure_that_forgot_where_it_led_leads_to_the_root(world: World) -> None:
    world.logto.finished = SignInFailed(SignInProblem.NO_ATTEMPT)
    answer = world.get("/.postern/callback?code=c")
    assert "/.postern/sign-in?return_to=https://apps.example.com/" in answer.text


@pytest.mark.parametrize("problem", STALE)
def test_a_stale_attempt_takes_nothing_from_whoever_is_signed_in(world: World, problem: SignInProblem) -> None:
    cookie = world.sign_in()
    world.logto.finished = SignInFailed(problem, return_to=PUBLIC + "/page?x=1")
    answer = world.get("/.postern/callback?code=c", Cookie=cookie)
    assert (answer.status, answer.location) == (303, PUBLIC + "/page?x=1")
    world.logto.finished = SignInFailed(problem)
    answer = world.get("/.postern/callback?code=c", Cookie=cookie)
    assert answer.status == 200
    assert "You are already signed in" in answer.text
    assert "Continue" in answer.text
    assert not answer.set_cookies
    assert world.runner.run(world.store.load(cookie.partition("=")[2])) is not None


def test_a_failed_sign_in_of_somebody_signed_in_still_says_what_failed(world: World) -> None:
    world.logto.finished = SignInFailed(SignInProblem.DENIED, return_to=PUBLIC + "/page")
    answer = world.get("/.postern/callback?error=access_denied", Cookie=world.sign_in())
    assert answer.status == 403


def test_logto_gone_between_is_503_and_misconfigured_502(world: World) -> None:
    world.logto.finished = LogtoUnavailable("timeout")
    answer = world.get("/.postern/callback?code=c")
    assert answer.status == 503
    assert 'href="https://apps.example.com/.postern/sign-in"' in answer.text
    world.logto.finished = LogtoRefused("invalid_client")
    assert world.get("/.postern/callback?code=c").status == 502


class Down(MemoryStore):
    """A store that takes no new session."""

    async def create(self, *_: object, **__: object) -> tuple[Session, str]:
        raise StoreUnavailable("connection refused")


def test_no_store_no_session_and_nobody_is_told_a_lie(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with World(settings, Down(idle=1.0, lifetime=1.0)) as world:
        world.logto.finished = Finished(grant_for(), PUBLIC + "/", CLEAR)
        answer = world.get("/.postern/callback?code=c")
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "You are not signed out" in answer.text
        assert not answer.set_cookies
        assert "connection refused" not in answer.text


def test_tokens_are_in_no_answer(world: World) -> None:
    answer = world.get("/.postern/callback?code=c")
    everything = answer.text + str(answer.headers)
    for secret in (TOKENS.id_token, TOKENS.access_token):
        assert secret not in everything


def test_try_again_really_starts_again(world: World) -> None:
    world.logto.finished = SignInFailed(SignInProblem.EXPIRED, return_to=PUBLIC + "/page?x=1&y=%2F")
    document = world.get("/.postern/callback?code=c", FETCH).problem()
    parts = urlsplit(document["sign_in"])
    assert parse_qs(parts.query) == {"return_to": [PUBLIC + "/page?x=1&y=%2F"]}
    world.get(f"{parts.path}?{parts.query}")
    assert world.logto.begun == [{"return_to": PUBLIC + "/page?x=1&y=%2F"}]
