"""Refreshes: what is true now, who it still is, and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.claims import Tokens
from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.identity import Finished
from tests.forgeries import HALF_HASH, Forge, by_stranger, claims, later, unsigned
from tests.identity_bench import Bench, run
from tests.lying_provider import CLIENT_ID, SUB, oauth_error


def refreshing(conversation: Callable[[Bench, Finished], Awaitable[None]], **changes: str) -> None:
    async def hold(it: Bench) -> None:
        await conversation(it, await it.sign_in())

    run(hold, None, **changes)


def test_a_refresh_brings_what_is_true_now() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        it.logto.info |= {"roles": ["new"], "identities": {}, "name": "Alice L."}
        it.logto.now += 1800
        grant = await it.rp.refresh(before.grant.tokens, before.grant.identity)
        assert grant.identity.roles == ("new",)
        assert grant.identity.discord_id is None
        assert grant.identity.name == "Alice L."
        assert grant.tokens.access_token != before.grant.tokens.access_token
        assert grant.tokens.refresh_token == before.grant.tokens.refresh_token
        assert grant.tokens.access_expires_at == it.logto.now + 3600
        assert grant.signed_in_at == 0.0

    refreshing(conversation)


def test_a_refresh_takes_the_new_refresh_token_and_keeps_the_old_id_token_where_there_is_no_new_one() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        it.logto.answer |= {"refresh_token": "replacement", "id_token": ...}
        grant = await it.rp.refresh(before.grant.tokens, before.grant.identity)
        assert grant.tokens.refresh_token == "replacement"
        assert grant.tokens.id_token == before.grant.tokens.id_token
        assert grant.identity == before.grant.identity
        it.logto.answer["refresh_token"] = ...
        grant = await it.rp.refresh(before.grant.tokens, before.grant.identity)
        assert grant.tokens.refresh_token == before.grant.tokens.refresh_token

    refreshing(conversation)


@pytest.mark.parametrize("reply", [(500, b""), (200, b"<html>"), (503, {"error": "server_error"})])
def test_a_replaced_refresh_token_is_not_lost_when_userinfo_is_down(reply: tuple[int, Any]) -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        it.logto.answer["refresh_token"] = "replacement"
        it.logto.replies["/oidc/me"] = reply
        it.logto.claims["name"] = "Alice L."
        grant = await it.rp.refresh(before.grant.tokens, before.grant.identity)
        assert grant.tokens.refresh_token == "replacement"
        assert grant.identity.name == "Alice L."  # the new ID token's
        assert grant.identity.discord_id == "80351110224678912"  # what userinfo said last

    refreshing(conversation)


def test_tokens_that_cannot_be_read_any_more_still_refresh() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        tokens = Tokens("unreadable", "a", 0.0, before.grant.tokens.refresh_token)
        assert (await it.rp.refresh(tokens, before.grant.identity)).identity == before.grant.identity
        it.logto.answer["id_token"] = ...
        assert (await it.rp.refresh(tokens, before.grant.identity)).identity.sub == SUB

    refreshing(conversation)


CHANGED: dict[str, Forge] = {
    "another person": claims(sub="mallory"),
    "another issuer": claims(iss="https://evil.example/oidc"),
    "another client": claims(aud="other"),
    "another nonce": claims(nonce="x" * 22),
    "another auth_time": later(auth_time=5),
    "expired": later(exp=-31),
    "unsigned": unsigned("none"),
    "by a stranger": by_stranger(),
    "another access token's": claims(at_hash=HALF_HASH),
    "userinfo of another": lambda logto: logto.info.update(sub="mallory"),
}


@pytest.mark.parametrize("lie", CHANGED.values(), ids=CHANGED.keys())
def test_a_refresh_cannot_change_who_it_is(lie: Forge) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.claims["auth_time"] = int(it.logto.now)
        before = (await it.sign_in()).grant
        lie(it.logto)
        with pytest.raises(LogtoRefused) as caught:
            await it.rp.refresh(before.tokens, before.identity)
        assert caught.value.error == "invalid_id_token"

    run(conversation)


def test_an_audience_may_grow_but_not_shrink() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        it.logto.claims |= {"aud": [CLIENT_ID, "more"], "azp": CLIENT_ID}
        grown = await it.rp.refresh(before.grant.tokens, before.grant.identity)
        it.logto.claims |= {"aud": CLIENT_ID}
        with pytest.raises(LogtoRefused, match="aud"):
            await it.rp.refresh(grown.tokens, grown.identity)

    refreshing(conversation)


@pytest.mark.parametrize(
    ("path", "reply", "error"),
    [
        ("/oidc/token", (400, oauth_error("invalid_grant", "grant request is invalid")), "invalid_grant"),
        ("/oidc/token", (400, oauth_error("access_denied", "Access denied.")), "access_denied"),
        ("/oidc/token", (401, oauth_error("invalid_client", "client authentication failed")), "invalid_client"),
        ("/oidc/token", (500, b""), None),
        ("/oidc/token", (200, b"<html>"), None),
        ("/oidc/token", (429, b""), None),
        ("/oidc/me", (401, oauth_error("invalid_token", "invalid token provided")), "invalid_grant"),
    ],
)
def test_answers_at_a_refresh(path: str, reply: tuple[int, Any], error: str | None) -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        it.logto.replies[path] = reply
        with pytest.raises(LogtoUnavailable if error is None else LogtoRefused) as caught:
            await it.rp.refresh(before.grant.tokens, before.grant.identity)
        assert getattr(caught.value, "error", None) == error
        assert it.logto.count("/oidc/token") == 2  # a rotating token is sent once, whatever happens

    refreshing(conversation)


def test_without_a_refresh_token() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        with pytest.raises(LogtoRefused, match="no_refresh_token"):
            await it.rp.refresh(Tokens("i", "a", 0.0, None), before.grant.identity)

    refreshing(conversation)


def test_a_refresh_verifies_with_keys_it_has_to_fetch() -> None:
    async def conversation(it: Bench, before: Finished) -> None:
        other = it.worker()
        it.logto.rotate()
        assert (await other.refresh(before.grant.tokens, before.grant.identity)).identity.sub == SUB
        await other.close()

    refreshing(conversation)
