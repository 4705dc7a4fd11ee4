"""Access tokens for APIs, got with a session's refresh token: the right one, of the right person, or none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from proxy.api_tokens import refused
from proxy.claims import Audience, Grant, Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable
from tests.identity_bench import Bench, run
from tests.lying_provider import CLIENT_ID, KEYS, SUB, LyingProvider, SigningKey, oauth_error, sign

API = Audience("https://api.example.com")
ACME = Audience(None, "acme00000001")
WITHIN = Audience("https://api.example.com", "acme00000001")


def asking(conversation: Callable[[Bench, Grant], Awaitable[None]], **changes: str) -> None:
    async def hold(it: Bench) -> None:
        await conversation(it, (await it.sign_in()).grant)

    run(hold, None, **changes)


def token(logto: LyingProvider, audience: Audience = API, **changes: Any) -> str:
    """An access token as Logto makes it; `changes` to its claims, ... removes one."""
    within = {"organization_id": audience.organization} if audience.resource and audience.organization else {}
    claims = {
        **within,
        "jti": "x",
        "sub": SUB,
        "iat": int(logto.now),
        "exp": int(logto.now) + 3600,
        "scope": "read:things",
        "client_id": CLIENT_ID,
        "iss": logto.issuer,
        "aud": audience.claim,
        **changes,
    }
    header = {"alg": logto.keys[0].algorithm, "kid": logto.keys[0].kid, "typ": "at+jwt"}
    return sign({name: it for name, it in claims.items() if it is not ...}, header, logto.keys[0].private)


@pytest.mark.parametrize(
    ("audience", "asked"),
    [
        (API, {"resource": "https://api.example.com"}),
        (ACME, {"organization_id": "acme00000001"}),
        (WITHIN, {"resource": "https://api.example.com", "organization_id": "acme00000001"}),
    ],
)
def test_a_token_is_asked_for_with_the_refresh_token(audience: Audience, asked: dict[str, str]) -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto, audience), "refresh_token": "replacement"}
        made = await it.rp.api_token(grant.tokens, grant.identity, audience)
        form = it.logto.asked[-1].form
        assert form["refresh_token"] == grant.tokens.refresh_token
        assert {name: form[name] for name in ("resource", "organization_id") if name in form} == asked
        assert made.for_apis[audience].value == it.logto.answer["access_token"]
        assert it.logto.now < made.for_apis[audience].renew_at < made.for_apis[audience].until < it.logto.now + 3600
        assert replace(made, for_apis={}) == replace(grant.tokens, refresh_token="replacement")

    asking(conversation)


def test_the_earlier_of_two_ends_counts() -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto, exp=int(it.logto.now) + 100)}
        made = await it.rp.api_token(grant.tokens, grant.identity, API)
        assert it.logto.now + 80 < made.for_apis[API].until <= it.logto.now + 100
        it.logto.answer |= {"access_token": token(it.logto), "expires_in": 200}
        made = await it.rp.api_token(grant.tokens, grant.identity, API)
        assert it.logto.now + 150 < made.for_apis[API].until <= it.logto.now + 200

    asking(conversation)


def test_a_token_for_an_organization_may_say_twice_which_one() -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto, ACME, organization_id="acme00000001")}
        assert ACME in (await it.rp.api_token(grant.tokens, grant.identity, ACME)).for_apis

    asking(conversation)


LIES: dict[str, tuple[Audience, dict[str, Any]]] = {
    "somebody else's": (API, {"sub": "mallory"}),
    "nobody's": (API, {"sub": ...}),
    "another application's": (API, {"client_id": "other"}),
    "for another resource": (API, {"aud": "https://other.example.com"}),
    "for a userinfo": (API, {"aud": ...}),
    "for another organization": (ACME, {"aud": "urn:logto:organization:other"}),
    "an organization's, asked for without": (API, {"organization_id": "acme00000001"}),
    "no organization's, asked for within": (WITHIN, {"organization_id": ...}),
    "another organization's": (WITHIN, {"organization_id": "other"}),
    "an organization's that says another": (ACME, {"organization_id": "other"}),
    "of another issuer": (API, {"iss": "https://evil.example/oidc"}),
    "expired": (API, {"exp": 1_700_000_000}),
}


@pytest.mark.parametrize(("audience", "changes"), LIES.values(), ids=LIES.keys())
def test_a_token_that_is_not_what_was_asked_for_is_handed_to_nobody(audience: Audience, changes: Any) -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto, audience, **changes)}
        with pytest.raises(LogtoRefused, match="invalid_access_token"):
            await it.rp.api_token(grant.tokens, grant.identity, audience)

    asking(conversation)


@pytest.mark.parametrize("forged", ["opaque", "an ID token", "a stranger's"])
def test_a_token_that_cannot_be_verified_neither(forged: str) -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto)}
        if forged == "opaque":
            it.logto.answer |= {"access_token": "52Tx8UrS31Cp_EA5XdvmiW8P3iL5wUSWtGp5X0vRRLC"}
        elif forged == "an ID token":
            it.logto.answer |= {"access_token": grant.tokens.id_token}
        else:
            published, it.logto.keys = it.logto.keys, [SigningKey.new()]
            it.logto.answer |= {"access_token": token(it.logto)}
            it.logto.keys = published
        with pytest.raises(LogtoRefused, match="invalid_access_token"):
            await it.rp.api_token(grant.tokens, grant.identity, API)

    asking(conversation)


def test_a_replaced_refresh_token_is_not_lost_when_the_keys_cannot_be_had() -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        other = it.worker()  # which knows no key yet
        it.logto.replies[KEYS] = (500, b"")
        it.logto.answer |= {"access_token": token(it.logto), "refresh_token": "replacement"}
        made = await other.api_token(grant.tokens, grant.identity, API)
        assert made == replace(grant.tokens, refresh_token="replacement")
        await other.close()

    asking(conversation)


def test_a_token_that_is_over_at_once_is_not_used_and_the_refresh_token_is() -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto), "refresh_token": "replacement", "expires_in": 4}
        made = await it.rp.api_token(grant.tokens, grant.identity, API)
        assert made == replace(grant.tokens, refresh_token="replacement")

    asking(conversation)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((400, oauth_error("invalid_target", "resource indicator is missing, or unknown")), "invalid_target"),
        ((403, oauth_error("access_denied", "user is not a member of the organization")), "access_denied"),
        ((400, oauth_error("invalid_grant", "grant request is invalid")), "invalid_grant"),
        ((401, oauth_error("invalid_client", "client authentication failed")), "invalid_client"),
        ((500, b""), None),
        ((200, b"<html>"), None),
        ((429, b""), None),
    ],
)
def test_answers(reply: tuple[int, Any], error: str | None) -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.replies["/oidc/token"] = reply
        with pytest.raises(LogtoUnavailable if error is None else LogtoRefused) as caught:
            await it.rp.api_token(grant.tokens, grant.identity, API)
        assert getattr(caught.value, "error", None) == error
        assert it.logto.count("/oidc/token") == 2  # a rotating token is sent once, whatever happens

    asking(conversation)


def test_without_a_refresh_token() -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        with pytest.raises(LogtoRefused, match="no_refresh_token"):
            await it.rp.api_token(Tokens("i", "a", 0.0, None), grant.identity, API)

    asking(conversation)


@pytest.mark.parametrize(("roles", "kept"), [(["ops"], {API, ACME}), (["new"], set())])
def test_an_ordinary_refresh_keeps_them_while_the_person_may_do_the_same(roles: list[str], kept: set[Audience]) -> None:
    async def conversation(it: Bench, grant: Grant) -> None:
        it.logto.answer |= {"access_token": token(it.logto)}
        tokens = await it.rp.api_token(grant.tokens, grant.identity, API)
        tokens = replace(tokens, for_apis={**tokens.for_apis, ACME: refused(it.logto.now)})
        del it.logto.answer["access_token"]
        it.logto.info |= {"roles": roles}
        renewed = await it.rp.refresh(tokens, grant.identity)
        assert renewed.tokens.for_apis.keys() == kept

    asking(conversation)
