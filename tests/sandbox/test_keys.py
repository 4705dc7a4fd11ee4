"""Signing keys."""

from __future__ import annotations

import jwt
import pytest

from proxy.sandbox.keys import KeyStore, SigningKey


def test_a_key_is_named_after_its_thumbprint() -> None:
    for kind in ("EC", "RSA"):
        key = SigningKey.generate(kind)
        assert jwt.PyJWK({**key.public, "alg": key.algorithm}).key_id == key.kid
        assert len(key.kid) == 43
    assert "alg" not in key.public


def test_two_keys_are_kept() -> None:
    keys = KeyStore()
    first = keys.sign({"iss": "here", "sub": "a"})
    keys.rotate()
    assert keys.verify(first, "here")["sub"] == "a"
    assert keys.current.kid == keys.rotate("RSA") or len(keys.jwks()["keys"]) == 2
    with pytest.raises(jwt.PyJWTError):
        keys.verify(first, "here")


def test_algorithms_are_advertised_once() -> None:
    keys = KeyStore()
    assert keys.algorithms() == ["ES384"]
    keys.rotate()
    assert keys.algorithms() == ["ES384"]
    keys.rotate("RSA")
    assert keys.algorithms() == ["PS256", "RS256", "ES384"]


def test_headers_say_no_more_than_a_real_one() -> None:
    keys = KeyStore()
    assert list(jwt.get_unverified_header(keys.sign({}))) == ["alg", "kid"]
    assert jwt.get_unverified_header(keys.sign({}, typ="at+jwt"))["typ"] == "at+jwt"


def test_a_token_of_another_issuer_does_not_verify() -> None:
    keys = KeyStore()
    with pytest.raises(jwt.PyJWTError):
        keys.verify(keys.sign({"iss": "elsewhere"}), "here")


@pytest.mark.parametrize("lie", ["alg_none", "hs256", "unknown_kid", "bad_signature"])
def test_no_lie_verifies(lie: str) -> None:
    keys = KeyStore()
    token = keys.sign_lying({"iss": "here"}, frozenset({lie}), "a-secret-of-at-least-32-characters")
    with pytest.raises(jwt.PyJWTError):
        keys.verify(token, "here")
    assert keys.verify(keys.sign_lying({"iss": "here"}, frozenset(), ""), "here")
