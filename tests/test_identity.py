"""Signing in and out, over real HTTP, and what Logto is asked for."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from proxy.claims import Tokens
from proxy.errors import LogtoUnavailable, SignInFailed, SignInProblem
from proxy.settings import RouteSettings
from tests.identity_bench import RETURN_TO, Bench, failed, run
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, SUB, LyingProvider, oauth_error


def test_a_sign_in() -> None:
    async def conversation(it: Bench) -> None:
        finished = await it.sign_in()
        assert finished.return_to == RETURN_TO
        assert finished.clear_cookie.endswith("Max-Age=0; HttpOnly; SameSite=Lax; Secure")
        grant = finished.grant
        assert (grant.identity.sub, grant.identity.name, grant.identity.email) == (SUB, "alice", "alice@example.test")
        assert grant.identity.roles == ("ops",)  # userinfo's, not the ID token's
        assert grant.identity.discord_id == "80351110224678912"
        assert "nonce" not in grant.identity.claims
        assert grant.identity.claims["iss"] == it.logto.issuer
        assert grant.sid == "76BL0dWwSTcHBqCG"
        assert grant.signed_in_at == it.logto.now
        assert grant.tokens.access_expires_at == it.logto.now + 3600
        assert grant.tokens.refresh_token in it.logto.grants

    run(conversation)


def test_the_authorization_request() -> None:
    async def conversation(it: Bench) -> None:
        one, jar = await it.begin()
        asked = parse_qs(urlsplit(one.url).query)
        assert one.url.startswith(it.logto.url + "/oidc/auth?")
        assert asked["redirect_uri"] == ["https://apps.example.com/.postern/callback"]
        assert asked["scope"] == ["email identities roles openid profile"]
        assert asked["code_challenge_method"] == ["S256"]
        assert "prompt" not in asked  # nothing that outlives the session at Logto
        assert "direct_sign_in" not in asked
        assert "first_screen" not in asked
        two, other = await it.begin()
        again = parse_qs(urlsplit(two.url).query)
        for fresh in ("state", "nonce", "code_challenge"):
            assert len(asked[fresh][0]) >= 22
            assert asked[fresh] != again[fresh]
            assert asked[fresh][0] not in one.set_cookie
        assert jar.keys().isdisjoint(other)
        assert it.logto.count("/oidc/.well-known/openid-configuration") == 1

    run(conversation)


@pytest.mark.parametrize(
    ("changes", "how", "sent"),
    [
        ({}, {"prompt": "login"}, {"prompt": "login"}),
        ({"LOGTO__REFRESH": "offline"}, {"prompt": "login"}, {"prompt": "login consent"}),
        ({"LOGTO__REFRESH": "offline"}, {}, {"prompt": "consent"}),
        ({"LOGTO__REFRESH": "offline"}, {}, {"scope": "email identities roles openid offline_access profile"}),
        ({}, {"prompt": "none"}, {"prompt": "none"}),
        ({}, {"prompt": "consent"}, {"prompt": "consent"}),
        ({}, {"prompt": "select_account"}, {"prompt": None}),
        ({}, {"screen": "register"}, {"first_screen": "register"}),
        ({}, {"screen": "identifier:sign_in"}, {"first_screen": "identifier:sign_in"}),
        ({}, {"screen": "bogus&prompt=none"}, {"first_screen": None, "prompt": None}),
        ({}, {"connector": "github"}, {"direct_sign_in": "social:github"}),
        ({}, {"connector": "a b"}, {"direct_sign_in": None}),
        ({}, {"connector": "x" * 65}, {"direct_sign_in": None}),
        ({}, {"ui_locales": "zh-CN en"}, {"ui_locales": "zh-CN en"}),
        ({}, {"ui_locales": "é"}, {"ui_locales": None}),
        ({}, {"identifier": "email phone"}, {"identifier": "email phone"}),
        ({}, {"identifier": "discord"}, {"identifier": None}),
        ({}, {"login_hint": "ada@example.com"}, {"login_hint": "ada@example.com"}),
        ({}, {"login_hint": "a" * 257}, {"login_hint": None}),
        ({}, {"organization": "acme00000001"}, {"organization_id": "acme00000001"}),
        ({}, {}, {"organization_id": None}),
        ({"LOGTO__SSO": "abc123"}, {}, {"direct_sign_in": "sso:abc123"}),
        ({"LOGTO__SSO": "abc123"}, {"connector": "github"}, {"direct_sign_in": "social:github"}),
        ({"LOGTO__SSO": "abc123"}, {"screen": "sign_in"}, {"direct_sign_in": None}),
        ({"LOGTO__CONNECTOR": "discord"}, {}, {"direct_sign_in": "social:discord"}),
        ({"LOGTO__CONNECTOR": "discord"}, {"connector": "github"}, {"direct_sign_in": "social:github"}),
        ({"LOGTO__CONNECTOR": "discord"}, {"screen": "register"}, {"direct_sign_in": None, "first_screen": "register"}),
        ({"LOGTO__SCOPES": '["openid","roles","profile"]'}, {}, {"scope": "roles openid profile"}),
        ({"LOGTO__RESOURCES": '["https://api.example.com"]'}, {}, {"resource": "https://api.example.com"}),
    ],
)
def test_extras(changes: dict[str, str], how: dict[str, str], sent: dict[str, str | None]) -> None:
    async def conversation(it: Bench) -> None:
        begun, _ = await it.begin(**how)
        pairs = parse_qsl(urlsplit(begun.url).query)
        assert len(pairs) == len(dict(pairs))
        assert {name: dict(pairs).get(name) for name in sent} == sent

    run(conversation, None, **changes)


def test_nothing_is_asked_of_logto_before_somebody_signs_in() -> None:
    async def conversation(it: Bench) -> None:
        assert it.logto.asked == []

    run(conversation)


def test_browser_and_server_reach_logto_by_different_names() -> None:
    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        assert begun.url.startswith("https://auth.example.com/oidc/auth?")
        finished = await it.rp.finish(it.logto.authorize(begun.url), jar)
        assert (await it.rp.sign_out_url(finished.grant.tokens)).startswith(
            "https://auth.example.com/oidc/session/end?"
        )
        await it.rp.revoke(finished.grant.tokens)
        assert {asked.path for asked in it.logto.asked} == {
            "/oidc/.well-known/openid-configuration", "/oidc/token", "/oidc/jwks", "/oidc/me", "/oidc/token/revocation",
        }  # fmt: skip
        assert {asked.headers["host"] for asked in it.logto.asked} == {f"127.0.0.1:{it.logto.port}"}

    run(conversation, LyingProvider(issuer_base="https://auth.example.com"))


@pytest.mark.parametrize(
    "token", ["/oidc/token", "https://evil.example/oidc/token", "http://auth.example.com/oidc/token?a=b"]
)
def test_urls_in_discovery_choose_a_path_and_never_a_host(token: str) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.discovery["token_endpoint"] = token
        if token.startswith("/"):
            with pytest.raises(LogtoUnavailable, match="no http URL"):
                await it.begin()
        else:
            await it.sign_in()
            assert it.logto.count("/oidc/token") == 1

    run(conversation, LyingProvider(issuer_base="https://auth.example.com"))


def test_userinfo_is_asked_only_when_its_claims_are_wanted() -> None:
    async def conversation(it: Bench) -> None:
        finished = await it.sign_in()
        assert finished.grant.identity.roles == ()
        assert it.logto.count("/oidc/me") == 0
        assert (await it.rp.refresh(finished.grant.tokens, finished.grant.identity)).identity.email

    run(conversation, LOGTO__SCOPES='["email"]')


def test_no_cookie_of_one_persons_answer_is_sent_for_another() -> None:
    async def conversation(it: Bench) -> None:
        for _ in range(3):
            finished = await it.sign_in()
            await it.rp.refresh(finished.grant.tokens, finished.grant.identity)
        assert len(it.logto.asked) > 10
        assert not any("cookie" in asked.headers for asked in it.logto.asked)

    run(conversation)


@pytest.mark.parametrize(
    ("auth_time", "signed_in_at"),
    [(-500, -500), (+20, 0), (None, 0), ("soon", 0), (True, 0), (float("nan"), 0), (10**400, 0)],
)
def test_when_somebody_signed_in(auth_time: Any, signed_in_at: float) -> None:
    async def conversation(it: Bench) -> None:
        shifted = isinstance(auth_time, int) and not isinstance(auth_time, bool) and auth_time < 10**9
        it.logto.claims["auth_time"] = it.logto.now + auth_time if shifted else auth_time
        finished = await it.sign_in()
        assert finished.grant.signed_in_at == it.logto.now + signed_in_at

    run(conversation)


def timing_sign_ins(it: Bench) -> None:
    """Let a rule ask for a sign-in of lately."""
    rule = {"roles": ["a"], "signed_in_within": "15m"}
    route = RouteSettings.model_validate({"name": "app", "upstream": "http://127.0.0.1:9", "allow": [rule]})
    it.settings = it.settings.model_copy(update={"route": (route,)})
    it.rp = it.worker()


@pytest.mark.parametrize(
    ("auth_time", "prompt", "signed_in_at"),
    [
        (-500, None, -500),
        (+20, None, 0),
        (None, None, None),  # the browser took the question out: of long ago
        ("soon", None, None),
        (-1, "login", 0),
        (-29, "login", 0),  # Logto's clock is a little behind
        (-500, "login", SignInProblem.NOT_FRESH),
        (None, "login", SignInProblem.NOT_FRESH),
        (True, "login", SignInProblem.NOT_FRESH),
    ],
)
def test_where_rules_ask_for_a_sign_in_of_lately(auth_time: Any, prompt: str | None, signed_in_at: Any) -> None:
    async def conversation(it: Bench) -> None:
        timing_sign_ins(it)
        shifted = isinstance(auth_time, int) and not isinstance(auth_time, bool)
        it.logto.claims["auth_time"] = it.logto.now + auth_time if shifted else auth_time
        begun, jar = await it.begin(prompt=prompt)
        assert "max_age=315360000" in begun.url
        if isinstance(signed_in_at, SignInProblem):
            with pytest.raises(SignInFailed) as caught:
                await it.rp.finish(it.logto.authorize(begun.url), jar)
            assert caught.value.problem is signed_in_at
            assert caught.value.return_to == RETURN_TO
        else:
            finished = await it.rp.finish(it.logto.authorize(begun.url), jar)
            expected = 0.0 if signed_in_at is None else it.logto.now + signed_in_at
            assert finished.grant.signed_in_at == expected

    run(conversation)


def test_where_none_does_logto_is_not_asked() -> None:
    async def conversation(it: Bench) -> None:
        begun, _ = await it.begin(prompt="login")
        assert "max_age" not in begun.url

    run(conversation)


def test_the_sign_out_url() -> None:
    async def conversation(it: Bench) -> None:
        before = await it.sign_in()
        url = await it.rp.sign_out_url(before.grant.tokens, "some state")
        assert url.startswith(it.logto.url + "/oidc/session/end?")
        assert dict(parse_qsl(urlsplit(url).query)) == {
            "client_id": CLIENT_ID,
            "post_logout_redirect_uri": "https://apps.example.com/.postern/signed-out",
            "id_token_hint": before.grant.tokens.id_token,
            "state": "some state",
        }
        for tokens in (None, Tokens("junk", "a", 0.0)):
            assert set(dict(parse_qsl(urlsplit(await it.rp.sign_out_url(tokens)).query))) == {
                "client_id",
                "post_logout_redirect_uri",
            }

    run(conversation)


def test_there_may_be_no_sign_out_and_no_revocation(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.discovery |= {"end_session_endpoint": ..., "revocation_endpoint": ...}
        finished = await it.sign_in()
        with pytest.raises(LogtoUnavailable, match="end_session"):
            await it.rp.sign_out_url(finished.grant.tokens)
        await it.rp.revoke(finished.grant.tokens)

    with caplog.at_level(logging.WARNING):
        run(conversation)
    assert "no revocation_endpoint" in caplog.text


@pytest.mark.parametrize(("refresh_token", "kind"), [("r1", "refresh_token"), (None, "access_token")])
def test_revocation(refresh_token: str | None, kind: str) -> None:
    async def conversation(it: Bench) -> None:
        await it.rp.revoke(Tokens("i", "a1", 0.0, refresh_token))
        form = it.logto.asked[-1].form
        assert it.logto.asked[-1].path == "/oidc/token/revocation"
        assert (form["token"], form["token_type_hint"]) == (refresh_token or "a1", kind)
        assert (form["client_id"], form["client_secret"]) == (CLIENT_ID, CLIENT_SECRET)

    run(conversation)


@pytest.mark.parametrize("reply", [(500, b""), (401, oauth_error("invalid_client", "x")), (404, b"<html>")])
def test_a_failed_revocation_is_logged_only(reply: tuple[int, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies["/oidc/token/revocation"] = reply
        await it.rp.revoke(Tokens("i", "a1", 0.0, "r1-secret"))

    with caplog.at_level(logging.DEBUG):
        run(conversation)
    assert "could not be revoked" in caplog.text
    assert "r1-secret" not in caplog.text


def test_check() -> None:
    async def conversation(it: Bench) -> None:
        said = await it.rp.check(credentials=True)
        assert said == f"issuer {it.logto.issuer}, signing keys: 1 (ES384)"
        await it.rp.check()
        assert it.logto.count("/oidc/.well-known/openid-configuration") == 2  # it asks, every time

    run(conversation)


def test_no_log_line_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    secrets: set[str] = {CLIENT_SECRET}

    async def conversation(it: Bench) -> None:
        begun, jar = await it.begin()
        query = it.logto.authorize(begun.url)
        finished = await it.rp.finish(query, jar)
        tokens = finished.grant.tokens
        await it.rp.refresh(tokens, finished.grant.identity)
        await failed(it.rp.finish(query, jar))
        await it.rp.revoke(tokens)
        secrets.update(jar.values(), [tokens.id_token, tokens.access_token, tokens.refresh_token or "-"])
        secrets.add(dict(parse_qsl(query))["code"])
        assert not any(secret in repr(begun.url) + repr(finished.grant) for secret in secrets - set(jar.values()))

    with caplog.at_level(logging.DEBUG):
        run(conversation)
    assert not any(secret in caplog.text for secret in secrets)
