"""What Logto publishes: discovery that is ours, keys that are good, rotations, and no flood for anybody's made-up key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.errors import LogtoRefused, LogtoUnavailable, SignInProblem
from proxy.id_tokens import UnknownKey
from tests.identity_bench import Bench, failed, run
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, DISCOVERY, KEYS, SUB, SigningKey, response


@pytest.mark.parametrize("document", [b"", b"<html>", [], {}, {"issuer": "x"}, {"issuer": None}])
def test_what_is_no_discovery(document: Any) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies[DISCOVERY] = (200, document)
        with pytest.raises(LogtoUnavailable, match="discovery"):
            await it.begin()
        assert it.logto.count(DISCOVERY) == 1  # whoever answers nonsense does so again

    run(conversation)


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
def test_a_logto_that_is_just_restarting_is_asked_again(path: str) -> None:
    async def conversation(it: Bench) -> None:
        async def unavailable(writer: asyncio.StreamWriter) -> None:
            if it.logto.count(path) == 2:
                del it.logto.faults[path]
            writer.write(response(503, b"starting"))
            await writer.drain()

        it.logto.faults[path] = unavailable
        await it.sign_in()
        assert it.logto.count(path) == 3

    run(conversation)


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
def test_and_given_up_soon(path: str) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies[path] = (503, b"")
        with pytest.raises(LogtoUnavailable, match="503"):
            await it.sign_in()
        assert it.logto.count(path) == 3

    run(conversation)


def test_the_packages_own_calls_take_our_way_too() -> None:
    async def conversation(it: Bench) -> None:
        core = await it.rp._core()
        assert (await core.fetchUserInfo("access")).sub == SUB
        it.logto.info["identities"] = 7
        with pytest.raises(LogtoUnavailable):
            await core.fetchUserInfo("access")
        with pytest.raises(UnknownKey):
            core.verifyIdToken("a.b.c", "app")
        with pytest.raises(LogtoRefused, match="invalid_grant"):
            await core.fetchTokenByRefreshToken(CLIENT_ID, CLIENT_SECRET, "r", "https://api.example.com")
        assert it.logto.asked[-1].form["resource"] == "https://api.example.com"

    run(conversation)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"issuer": "https://evil.example/oidc"}, "issuer there is https://evil.example/oidc"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "no http URL"),
        ({"token_endpoint": "http://[broken"}, "no http URL"),
        ({"jwks_uri": "http://no-path"}, "no http URL"),
        ({"userinfo_endpoint": ...}, "metadata"),
        ({"id_token_signing_alg_values_supported": "ES384"}, "metadata"),
    ],
)
def test_discovery_that_cannot_be_ours(change: dict[str, Any], says: str) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.discovery.update(change)
        with pytest.raises(LogtoUnavailable, match=says):
            await it.begin()

    run(conversation)


@pytest.mark.parametrize(
    "keys", [b"", b"<html>", [], {}, {"keys": []}, {"keys": [{"kty": "oct", "k": "AA"}]}, {"keys": 7}]
)
def test_bad_keys_are_an_outage_and_good_ones_are_kept(keys: Any) -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies[KEYS] = (200, keys)
        with pytest.raises(LogtoUnavailable, match="keys"):
            await it.sign_in()
        it.logto.replies.clear()
        await it.sign_in()
        it.logto.replies[KEYS] = (200, keys)
        it.logto.now += 700  # the keys at hand are old, the new ones bad
        await it.sign_in()
        it.logto.replies[DISCOVERY] = (500, b"")
        it.logto.now += 4000
        await it.sign_in()

    run(conversation)


def test_keys_are_fetched_once_for_many() -> None:
    async def conversation(it: Bench) -> None:
        await asyncio.gather(*(it.sign_in() for _ in range(20)))
        assert it.logto.count(KEYS) == 1
        assert it.logto.count(DISCOVERY) == 1

    run(conversation)


def test_two_rotations() -> None:
    async def conversation(it: Bench) -> None:
        first = (await it.sign_in()).grant
        for number, algorithm in enumerate(["RS256", "ES384"], start=2):
            it.logto.now += 10
            it.logto.rotate(SigningKey.new(algorithm, states_algorithm=algorithm != "RS256"))
            await it.sign_in()
            assert it.logto.count(KEYS) == number
        # The first key is gone: its tokens prove nothing any more, and make no hint for the sign-out.
        assert "id_token_hint" not in await it.rp.sign_out_url(first.tokens)
        old = first.tokens.id_token
        it.logto.forge = lambda claims, header: old
        it.logto.now += 10
        assert (await failed(it.sign_in())).problem is SignInProblem.BAD_TOKEN

    run(conversation)


def test_made_up_kids_are_no_flood_and_push_nothing_out() -> None:
    async def conversation(it: Bench) -> None:
        good = await it.sign_in()
        it.logto.now += 10
        it.logto.header["kid"] = "made-up"
        for _ in range(20):
            assert (await failed(it.sign_in())).problem is SignInProblem.BAD_TOKEN
        assert it.logto.count(KEYS) == 2
        assert it.logto.count(DISCOVERY) == 2
        it.logto.header.clear()
        await it.sign_in()
        assert "id_token_hint" in await it.rp.sign_out_url(good.grant.tokens)
        assert it.logto.count(KEYS) == 2

    run(conversation)
