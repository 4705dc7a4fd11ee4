"""Callbacks: forged, doubled, replayed, from other browsers; and what Logto answers when the code is exchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest

from proxy.errors import LogtoRefused, LogtoUnavailable, SignInFailed, SignInProblem, StoreUnavailable
from proxy.identity import Finished
from tests.identity_bench import RETURN_TO, Bench, cookie, failed, run
from tests.lying_provider import CLIENT_SECRET, SUB, oauth_error


def without(name: str) -> Callable[[str], str]:
    return lambda query: urlencode([pair for pair in parse_qsl(query) if pair[0] != name])


def replaced(**values: str) -> Callable[[str], str]:
    return lambda query: urlencode({**dict(parse_qsl(query)), **values})


def error(code: str, **more: str) -> Callable[[str], str]:
    return lambda query: replaced(error=code, error_description="it said so", **more)(without("code")(query))


CALLBACKS: dict[str, tuple[Callable[[str], str], SignInProblem]] = {
    "nothing": (lambda _: "", SignInProblem.NO_ATTEMPT),
    "junk": (lambda _: "%ff&&&=;", SignInProblem.NO_ATTEMPT),
    "state missing": (without("state"), SignInProblem.NO_ATTEMPT),
    "state empty": (replaced(state=""), SignInProblem.NO_ATTEMPT),
    "state of another": (replaced(state="x" * 43), SignInProblem.NO_ATTEMPT),
    "state cut": (lambda query: replaced(state=dict(parse_qsl(query))["state"][:-1])(query), SignInProblem.NO_ATTEMPT),
    "state not Unicode": (lambda query: without("state")(query) + "&state=%ff%fe", SignInProblem.NO_ATTEMPT),
    "state doubled": (lambda query: query + "&state=x", SignInProblem.BAD_CALLBACK),
    "code doubled": (lambda query: query + "&code=x", SignInProblem.BAD_CALLBACK),
    "iss doubled": (lambda query: query + "&iss=x", SignInProblem.BAD_CALLBACK),
    "error doubled": (lambda query: query + "&error=a&error=b", SignInProblem.BAD_CALLBACK),
    "too many parameters": (lambda query: query + "&a=b" * 100, SignInProblem.BAD_CALLBACK),
    "code missing": (without("code"), SignInProblem.BAD_CALLBACK),
    "iss missing": (without("iss"), SignInProblem.BAD_CALLBACK),
    "iss empty": (replaced(iss=""), SignInProblem.BAD_CALLBACK),
    "iss of another": (replaced(iss="https://evil.example/oidc"), SignInProblem.BAD_CALLBACK),
    "iss with a slash": (lambda query: query + "%2F", SignInProblem.BAD_CALLBACK),
    "error without iss": (lambda query: without("iss")(error("access_denied")(query)), SignInProblem.BAD_CALLBACK),
    "error of another iss": (error("access_denied", iss="https://evil.example"), SignInProblem.BAD_CALLBACK),
    "error without state": (lambda query: without("state")(error("access_denied")(query)), SignInProblem.NO_ATTEMPT),
    "error with a forged state": (error("access_denied", state="x" * 43), SignInProblem.NO_ATTEMPT),
    "code empty": (replaced(code=""), SignInProblem.BAD_CALLBACK),
    "code unknown": (replaced(code="x" * 43), SignInProblem.EXPIRED),
    "access denied": (error("access_denied"), SignInProblem.DENIED),
    "login required": (error("login_required"), SignInProblem.LOGIN_REQUIRED),
    "consent required": (error("consent_required"), SignInProblem.LOGIN_REQUIRED),
    "interaction required": (error("interaction_required"), SignInProblem.LOGIN_REQUIRED),
    "account selection": (error("account_selection_required"), SignInProblem.LOGIN_REQUIRED),
    "invalid scope": (error("invalid_scope", scope="roles"), SignInProblem.LOGTO_ERROR),
    "invalid target": (error("invalid_target"), SignInProblem.LOGTO_ERROR),
    "server error": (error("server_error"), SignInProblem.LOGTO_ERROR),
    "an error of its own": (error("<script>\r\nSet-Cookie: x"), SignInProblem.LOGTO_ERROR),
    "an empty error": (error(""), SignInProblem.LOGTO_ERROR),
    "an error beside a code": (lambda query: query + "&error=access_denied", SignInProblem.DENIED),
}


@pytest.mark.parametrize(("change", "problem"), CALLBACKS.values(), ids=CALLBACKS.keys())
def test_callbacks(change: Callable[[str], str], problem: SignInProblem) -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        good = it.logto.authorize(begun.url)
        failure = await failed(it.rp.finish(change(good), jar))
        assert failure.problem is problem
        known = (
            problem is not SignInProblem.NO_ATTEMPT and "doubled" not in failure.detail and "many" not in failure.detail
        )
        assert failure.return_to == (RETURN_TO if known else None)
        assert failure.detail.isprintable()
        if problem is not SignInProblem.EXPIRED:
            # Nothing of it has used the attempt up: whoever forges answers stops nobody from signing in.
            assert it.logto.count("/oidc/token") == 0
            assert (await it.rp.finish(good, jar)).grant.identity.sub == SUB

    run(conversation)


def test_no_iss_is_fine_where_it_is_not_promised_but_a_wrong_one_never_is() -> None:
    async def conversation(it: Bench) -> None:
        it.logto.discovery["authorization_response_iss_parameter_supported"] = ...
        begun, jar = await it.begin()
        query = it.logto.authorize(begun.url, iss="https://evil.example")
        assert (await failed(it.rp.finish(query, jar))).problem is SignInProblem.BAD_CALLBACK
        assert (await it.rp.finish(without("iss")(query), jar)).grant.identity.sub == SUB

    run(conversation)


def test_another_browser_cannot_finish() -> None:
    async def conversation(it: Bench) -> None:
        mine, _ = await it.begin()
        _, others = await it.begin()
        for jar in ({}, others, {"postern": "x"}):
            failure = await failed(it.rp.finish(it.logto.authorize(mine.url), jar))
            assert failure.problem is SignInProblem.NO_ATTEMPT
        assert it.logto.count("/oidc/token") == 0

    run(conversation)


def test_a_code_of_another_attempt_does_not_sign_in() -> None:
    """Code injection: the victim's browser finishes its own attempt with the attacker's code. PKCE says no."""

    async def conversation(it: Bench) -> None:
        attackers, _ = await it.begin()
        mine, jar = await it.begin()
        stolen = dict(parse_qsl(it.logto.authorize(attackers.url)))["code"]
        failure = await failed(it.rp.finish(it.logto.authorize(mine.url, code=stolen), jar))
        assert failure.problem is SignInProblem.EXPIRED

    run(conversation)


def test_an_attempt_lasts_ten_minutes() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        it.logto.now += 600
        failure = await failed(it.rp.finish(it.logto.authorize(begun.url), jar))
        assert failure.problem is SignInProblem.NO_ATTEMPT
        assert len(it.rp.stale_attempts(jar)) == 1

    run(conversation)


def test_replay() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        query = it.logto.authorize(begun.url)
        await it.rp.finish(query, jar)
        for _ in range(2):
            failure = await failed(it.rp.finish(query, jar))
            assert (failure.problem, failure.return_to) == (SignInProblem.REPLAYED, RETURN_TO)
        fresh = it.logto.authorize(begun.url)
        assert (await failed(it.rp.finish(fresh, jar))).problem is SignInProblem.REPLAYED
        assert it.logto.count("/oidc/token") == 1

    run(conversation)


def test_of_callbacks_at_the_same_moment_one_wins_over_all_workers() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        query = it.logto.authorize(begun.url)
        other = it.worker()
        callbacks = [party.finish(query, jar) for party in (it.rp, other, it.rp, other)]
        outcomes = await asyncio.gather(*callbacks, return_exceptions=True)
        assert sum(isinstance(outcome, Finished) for outcome in outcomes) == 1
        assert it.logto.count("/oidc/token") == 1
        await other.close()

    run(conversation)


def test_tabs_side_by_side() -> None:
    async def conversation(it: Bench) -> None:
        begun = [await it.rp.begin(f"https://apps.example.com/{number}") for number in range(6)]
        jar = dict(cookie(one.set_cookie) for one in begun)
        assert len(jar) == 6
        outcomes = await asyncio.gather(*(it.rp.finish(it.logto.authorize(one.url), jar) for one in reversed(begun)))
        assert [outcome.return_to[-1] for outcome in outcomes] == ["5", "4", "3", "2", "1", "0"]
        assert len({outcome.clear_cookie for outcome in outcomes}) == 6

    run(conversation)


def test_a_worker_that_has_seen_nothing_finishes_what_another_began() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        other = it.worker()
        assert (await other.finish(it.logto.authorize(begun.url), jar)).grant.identity.sub == SUB
        await other.close()

    run(conversation)


def test_settings_that_changed_meanwhile() -> None:
    """The attempt was begun for another redirect URI: its code could not be exchanged, so it is not sent."""

    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        other = Bench(it.logto, PREFIX="/elsewhere")
        failure = await failed(other.rp.finish(it.logto.authorize(begun.url), jar))
        assert (failure.problem, failure.return_to) == (SignInProblem.BAD_CALLBACK, RETURN_TO)
        assert it.logto.count("/oidc/token") == 0
        await other.rp.close()

    run(conversation)


def test_when_the_store_is_down_nobody_gets_in_and_the_attempt_stays_good() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        query = it.logto.authorize(begun.url)
        it.store_down = True
        with pytest.raises(StoreUnavailable):
            await it.rp.finish(query, jar)
        assert it.logto.count("/oidc/token") == 0
        it.store_down = False
        assert (await it.rp.finish(query, jar)).return_to == RETURN_TO

    run(conversation)


REFUSALS: list[tuple[int, Any, type[Exception], str]] = [
    (400, oauth_error("invalid_grant", "grant request is invalid"), SignInFailed, "expired"),
    (403, oauth_error("access_denied", "user is not a member"), SignInFailed, "denied"),
    (401, oauth_error("invalid_client", "client authentication failed"), LogtoRefused, "invalid_client"),
    (400, oauth_error("invalid_client", "client is invalid"), LogtoRefused, "invalid_client"),
    (400, oauth_error("invalid_request", "client secret has expired"), LogtoRefused, "client secret has expired"),
    (400, oauth_error("invalid_target", "resource indicator is missing"), LogtoRefused, "invalid_target"),
    (400, {"error": "weird\r\nX: y", "error_description": ["x"]}, LogtoRefused, r"weird\?\?X: y"),
    (400, {"error": "x" * 5000}, LogtoRefused, "^x{200}$"),
    (400, {"error": "temporarily_unavailable"}, LogtoUnavailable, "400"),
    (400, {"error": 7}, LogtoUnavailable, "400"),
    (400, b"<html>", LogtoUnavailable, "400"),
    (429, {"error": "slow_down"}, LogtoUnavailable, "429"),
    (408, {"error": "invalid_grant"}, LogtoUnavailable, "408"),
    (404, {}, LogtoUnavailable, "404"),
    (302, b"", LogtoUnavailable, "302"),
    (204, b"", LogtoUnavailable, "204"),
    (500, b"Internal Server Error", LogtoUnavailable, "500"),
    (500, oauth_error("invalid_grant", ""), LogtoUnavailable, "500"),
    (502, b"<html>Bad Gateway</html>", LogtoUnavailable, "502"),
    (503, {"error": "server_error"}, LogtoUnavailable, "503"),
    (200, b"<html>ok</html>", LogtoUnavailable, "not a token answer"),
    (200, b"", LogtoUnavailable, "not a token answer"),
    (200, [], LogtoUnavailable, "not a token answer"),
    (200, None, LogtoUnavailable, "not a token answer"),
    (200, {"access_token": "a"}, LogtoUnavailable, "not a token answer"),
    (200, {"access_token": 7, "expires_in": 1, "token_type": "Bearer"}, LogtoUnavailable, "not a token answer"),
    (200, {"access_token": "a", "expires_in": "x", "token_type": "Bearer"}, LogtoUnavailable, "not a token answer"),
    (200, {"access_token": "a", "expires_in": 1, "token_type": "mac"}, LogtoUnavailable, "type"),
    (200, b"[" * 100_000, LogtoUnavailable, "not a token answer"),
]


@pytest.mark.parametrize(("status", "body", "kind", "says"), REFUSALS)
def test_answers_at_the_code_exchange(status: int, body: Any, kind: type[Exception], says: str) -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        it.logto.replies["/oidc/token"] = (status, body)
        with pytest.raises(kind, match=says if kind is not SignInFailed else None) as caught:
            await it.rp.finish(it.logto.authorize(begun.url), jar)
        if isinstance(caught.value, SignInFailed):
            assert caught.value.problem.value == says
            assert caught.value.return_to == RETURN_TO
        assert it.logto.count("/oidc/token") == 1  # a code is sent once, whatever happens
        assert CLIENT_SECRET not in str(caught.value)

    run(conversation)


def test_a_wrong_secret_is_this_gateways_fault() -> None:
    async def conversation(it: Bench) -> None:
        with pytest.raises(LogtoRefused) as caught:
            await it.sign_in()
        assert (caught.value.error, caught.value.status) == ("invalid_client", 401)
        with pytest.raises(LogtoRefused):
            await it.rp.check(credentials=True)
        assert "signing keys: 1" in await it.rp.check()

    run(conversation, LOGTO__APP_SECRET="wrong")


USERINFO: list[tuple[int, Any, type[Exception]]] = [
    (401, oauth_error("invalid_token", "invalid token provided"), SignInFailed),
    (500, b"Internal Server Error", LogtoUnavailable),
    (200, b"<html>", LogtoUnavailable),
    (200, [1], LogtoUnavailable),
    (403, oauth_error("insufficient_scope", ""), LogtoRefused),
]


@pytest.mark.parametrize(("status", "body", "kind"), USERINFO)
def test_answers_of_userinfo(status: int, body: Any, kind: type[Exception]) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies["/oidc/me"] = (status, body)
        with pytest.raises(kind):
            await it.sign_in()

    run(conversation)


def test_userinfo_has_no_say_in_what_the_token_is_about() -> None:
    async def conversation(it: Bench) -> None:
        it.logto.info |= {"iss": "evil", "aud": "evil", "exp": 1, "sid": "evil", "auth_time": 1, "email": None}
        grant = (await it.sign_in()).grant
        assert grant.identity.claims["iss"] == it.logto.issuer
        assert grant.sid == "76BL0dWwSTcHBqCG"
        assert grant.signed_in_at == it.logto.now
        assert grant.identity.email is None

    run(conversation)
