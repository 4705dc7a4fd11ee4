"""Keys and tokens as values: what is read, what verifies, what must be in it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from proxy.id_tokens import (
    ASYMMETRIC,
    BadToken,
    KeySet,
    UnknownKey,
    algorithm_of,
    check_access_token,
    check_id_token,
    check_nonce,
    has_key,
    number_of,
    signed_claims,
    unverified_claims,
)
from tests.lying_provider import SigningKey, sign

EC_KEY = SigningKey.new("ES384", "ec")
RSA_KEY = SigningKey.new("RS256", "rsa", states_algorithm=False)
NOW = 1_000_000.0
CLAIMS: dict[str, Any] = {"iss": "https://a/oidc", "sub": "alice", "aud": "app", "exp": NOW + 60, "iat": NOW}


def key_set(*keys: SigningKey) -> KeySet:
    return KeySet.read({"keys": [key.jwk() for key in keys]})


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "EdDSA", "RS256", "PS256"])
@pytest.mark.parametrize("states_algorithm", [True, False])
@pytest.mark.parametrize("kid", ["k", None])
def test_every_accepted_algorithm_verifies(algorithm: str, states_algorithm: bool, kid: str | None) -> None:
    key = SigningKey.new(algorithm, kid, states_algorithm=states_algorithm)
    token = sign(CLAIMS, {"alg": algorithm, "kid": key.kid}, key.private)
    keys = key_set(EC_KEY, key, RSA_KEY)
    assert has_key(token, keys, [algorithm])
    assert signed_claims(token, keys, [algorithm]) == CLAIMS
    assert algorithm_of(token) == algorithm
    with pytest.raises(UnknownKey):
        signed_claims(token, keys, ["ES999"])


def test_an_rsa_key_without_alg_serves_both_paddings_and_one_with_alg_only_its_own() -> None:
    stated = SigningKey("rsa", "RS256", RSA_KEY.private)
    token = sign(CLAIMS, {"alg": "PS256", "kid": "rsa"}, RSA_KEY.private)
    assert signed_claims(token, key_set(RSA_KEY), ["PS256"]) == CLAIMS
    with pytest.raises(UnknownKey):
        signed_claims(token, key_set(stated), ["PS256", "RS256"])


def test_without_kid_every_key_is_tried() -> None:
    others = [SigningKey.new("ES384", f"other{number}") for number in range(3)]
    token = sign(CLAIMS, {"alg": "ES384"}, EC_KEY.private)
    assert signed_claims(token, key_set(*others, EC_KEY), ["ES384"]) == CLAIMS
    with pytest.raises(BadToken):
        signed_claims(token, key_set(*others), ["ES384"])


def test_two_keys_of_one_kid_are_both_tried() -> None:
    other = SigningKey.new("ES384", "ec")
    token = sign(CLAIMS, {"alg": "ES384", "kid": "ec"}, EC_KEY.private)
    assert signed_claims(token, key_set(other, EC_KEY), ["ES384"]) == CLAIMS


WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
GOOD = EC_KEY.jwk()
BAD_KEYS: list[Any] = [
    None,
    "key",
    {},
    {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    {"kty": "EC"},
    {"kty": "RSA", "n": "AQAB"},
    {"kty": "RSA", "n": 7, "e": "AQAB"},
    {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
    {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
    {**GOOD, "use": "enc"},
    {**GOOD, "crv": "P-256"},
    {**GOOD, "crv": None},
    {**GOOD, "crv": "secp256k1"},
    {**GOOD, "x": "AAAA"},
    {**GOOD, "x": "ä"},
    {**GOOD, "y": None},
    {**GOOD, "alg": "ES256"},
    {**GOOD, "alg": "HS256"},
    {**GOOD, "alg": "none"},
    {**GOOD, "alg": None},
    {**RSA_KEY.jwk(), "alg": "ES384"},
    json.loads(ECAlgorithm.to_jwk(EC_KEY.private)),
    json.loads(RSAAlgorithm.to_jwk(WEAK.public_key())),
    {**json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key())), "alg": "ES256K"},
]


@pytest.mark.parametrize("bad", BAD_KEYS)
def test_unusable_keys_are_skipped(bad: Any) -> None:
    assert len(KeySet.read({"keys": [bad, GOOD]}).keys) == 1
    with pytest.raises(ValueError, match="without a usable key"):
        KeySet.read({"keys": [bad]})


@pytest.mark.parametrize("document", [None, [], "x", {}, {"keys": None}, {"keys": {}}, {"keys": []}, {"keys": [[]]}])
def test_what_is_no_key_set(document: Any) -> None:
    with pytest.raises(ValueError, match="JWK set"):
        KeySet.read(document)


def test_a_kid_that_is_no_text_is_none() -> None:
    (key,) = KeySet.read({"keys": [{**GOOD, "kid": 7}]}).keys
    assert key.kid is None


def test_reading_is_bounded() -> None:
    assert len(KeySet.read({"keys": [GOOD] * 1000}).keys) == 32


def test_repr_shows_no_key() -> None:
    assert "EllipticCurve" not in repr(key_set(EC_KEY))


def check(**changes: Any) -> None:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    check_id_token(claims, issuer="https://a/oidc", client_id="app", now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aud": ["app"]},
        {"aud": ["app"], "azp": "app"},
        {"aud": ["other", "app"], "azp": "app"},
        {"azp": "app"},
        {"exp": NOW - 29.9},
        {"exp": 10**15},
        {"iat": NOW + 30},
        {"iat": 0},
        {"nbf": NOW + 30},
        {"sub": "x" * 255},
    ],
)
def test_claims_that_hold(changes: dict[str, Any]) -> None:
    check(**changes)


@given(
    st.sampled_from(["iss", "sub", "aud", "exp", "iat"]), st.none() | st.booleans() | st.text() | st.lists(st.text())
)
def test_no_claim_may_be_of_another_kind(name: str, value: Any) -> None:
    if name == "sub" and isinstance(value, str) and 0 < len(value) <= 255:
        return
    with pytest.raises(BadToken):
        check(**{name: value})


@given(st.floats() | st.integers(), st.floats() | st.integers())
def test_times_hold_within_the_leeway_only(exp: float, iat: float) -> None:
    expiry, issued = number_of(exp), number_of(iat)
    holds = expiry is not None and issued is not None and expiry > NOW - 30 and issued <= NOW + 30
    if holds:
        check(exp=exp, iat=iat)
    else:
        with pytest.raises(BadToken):
            check(exp=exp, iat=iat)


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (1.5, 1.5), (True, None), ("1", None), (None, None), (float("nan"), None), (float("inf"), None), (10**400, None)],
)  # fmt: skip
def test_number_of(value: object, number: float | None) -> None:
    assert number_of(value) == number


@pytest.mark.parametrize("given_nonce", ["other", "", None, 7, ["n"], "ñ", "\ud800"])
def test_nonces_that_do_not_hold(given_nonce: Any) -> None:
    check_nonce({"nonce": "n"}, "n")
    with pytest.raises(BadToken):
        check_nonce({"nonce": given_nonce}, "n")
    with pytest.raises(BadToken):
        check_nonce({}, "n")


@pytest.mark.parametrize("algorithm", sorted(ASYMMETRIC))
def test_at_hash(algorithm: str) -> None:
    name = {"256": "sha256", "384": "sha384", "512": "sha512"}.get(algorithm[2:], "sha512")
    digest = hashlib.new(name, b"access").digest()
    half = base64.urlsafe_b64encode(digest[: len(digest) // 2]).decode().rstrip("=")
    check_access_token({"at_hash": half}, algorithm, "access")
    check_access_token({"at_hash": None}, algorithm, "access")
    check_access_token({}, algorithm, "access")
    for wrong in (half[:-1], "", 7, half + "="):
        with pytest.raises(BadToken):
            check_access_token({"at_hash": wrong}, algorithm, "access")
    with pytest.raises(BadToken):
        check_access_token({"at_hash": half}, algorithm, "another")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "no token"),
        ("é.é.é", "no token"),
        ("x" * 70_000, "no token"),
        (sign(CLAIMS, {"alg": "ES384"}, EC_KEY.private) + "AA", "signature"),
        (sign(CLAIMS, {"alg": "ES384", "kid": "ec"}, SigningKey.new().private), "signature"),
        (sign(CLAIMS, {"alg": "ES384", "kid": "unknown"}, EC_KEY.private), "no key"),
        (sign(CLAIMS, {"alg": "HS256", "kid": "ec"}, b"s" * 32), "alg"),
        (sign(CLAIMS, {"alg": "none"}, None), "alg"),
        (sign(CLAIMS, {"alg": "ES384", "typ": "at+jwt"}, EC_KEY.private), "typ"),
        (sign(CLAIMS, {"alg": "ES384", "crit": ["exp"]}, EC_KEY.private), "extension|no token"),
        (sign(CLAIMS, {"alg": "ES384", "crit": ["b64"], "b64": True}, EC_KEY.private), "extension"),
        (sign(b"[1]", {"alg": "ES384"}, EC_KEY.private), "no claims"),
        (sign(b"{", {"alg": "ES384"}, EC_KEY.private), "no claims"),
        (sign(b"[" * 20_000, {"alg": "ES384"}, EC_KEY.private), "no claims"),
    ],
)
def test_tokens_that_are_refused(token: str, why: str) -> None:
    with pytest.raises(BadToken, match=why) as caught:
        signed_claims(token, key_set(EC_KEY), ["ES384"])
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://a/oidc/"}, "iss"),
        ({"aud": ["app", 7]}, "list of names"),
        ({"aud": ["app", "other"]}, "azp"),
        ({"azp": "other"}, "azp"),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"iat": NOW + 31}, "future"),
        ({"exp": NOW - 30}, "expired"),
        ({"exp": ...}, "exp"),
        ({"sub": "x" * 256}, "sub"),
    ],
)
def test_claims_that_do_not_hold(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadToken, match=why):
        check(**changes)


def test_what_was_verified_long_ago_is_read_without_keys() -> None:
    assert unverified_claims(sign(CLAIMS, {"alg": "ES384"}, EC_KEY.private)) == CLAIMS
    for junk in ("", "a.b.c", "é", "x" * 100):
        assert unverified_claims(junk) == {}


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode() + ".e30.x"))
def test_any_text_is_a_bad_token(text: str) -> None:
    for reading in (
        lambda: signed_claims(text, key_set(EC_KEY), ["ES384"]),
        lambda: has_key(text, key_set(EC_KEY), []),
    ):
        try:
            assert reading() is False
        except BadToken:
            continue
