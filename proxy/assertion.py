"""The signed identity assertion: a short-lived JWT that tells an app who is there, and proves that the gateway said so.

Headers can be forged by whoever reaches the app past the gateway; this one cannot (RFC 7519, signed with ES256, RFC 7518 3.4).
Its key is derived from the settings' secret, so that all workers and hosts that share their sessions share the key, and nothing
has to be stored. Each secret gives one key: the first signs, all are published, so a rotation of secrets is one of keys, with
the overlap that apps with a cached JWKS need.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.claims import Identity
from proxy.settings import Settings

HEADER: Final = b"X-Postern-Assertion"
ALGORITHM: Final = "ES256"

# The order of P-256's group (SP 800-186 3.2.1.3).
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_LABEL: Final = b"postern assertion key"


def signer_of(settings: Settings) -> AssertionSigner:
    """The signer for a gateway with these settings."""
    return AssertionSigner(settings.seal_secrets, settings.public_url, settings.identity.assertion_lifetime)


class AssertionSigner:
    """Signs assertions for one gateway. `lifetime` in seconds; the repr shows no key."""

    def __init__(self, secrets: Sequence[bytes], issuer: str, lifetime: float) -> None:
        keys = [_derive(secret) for secret in secrets]
        self._issuer = issuer
        self._lifetime = lifetime
        self._key = keys[0]
        self._jwks = [_public_jwk(key) for key in keys]
        self._headers = {"kid": self._jwks[0]["kid"]}

    def sign(self, identity: Identity, audience: str, now: float) -> bytes:
        """The assertion for `identity` to the app of route `audience`, issued `now` (epoch seconds)."""
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": audience,
            "sub": identity.sub,
            "iat": int(now),
            "exp": int(now + self._lifetime),
            "name": identity.name,
            "preferred_username": identity.username,
            "email": identity.email,
            "groups": list(identity.groups) or None,
            "discord_id": identity.discord_id,
            "client_id": identity.client,
        }
        if identity.is_program:
            claims["scope"] = " ".join(identity.scopes)
        if identity.email is not None:
            claims["email_verified"] = True
        present = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(present, self._key, ALGORITHM, headers=self._headers).encode("ascii")

    @property
    def renew_after(self) -> float:
        """How many seconds an assertion may be handed out again: half its life, so that what an app gets has the other half."""
        return self._lifetime / 2

    @property
    def jwks(self) -> dict[str, Any]:
        """The public keys that apps verify with, as a JWK set (RFC 7517 5)."""
        return {"keys": [dict(key) for key in self._jwks]}


def _derive(secret: bytes) -> ec.EllipticCurvePrivateKey:
    # FIPS 186-5 A.2.1: 64 more random bits than the order has, so that the reduction's bias is negligible.
    seed = HKDF(algorithm=SHA256(), length=40, salt=None, info=_LABEL).derive(secret)
    return ec.derive_private_key(int.from_bytes(seed) % (_ORDER - 1) + 1, ec.SECP256R1())


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    required = {"crv": "P-256", "kty": "EC", "x": _coordinate(numbers.x), "y": _coordinate(numbers.y)}
    # RFC 7638 3: the thumbprint is over the required members in lexicographic order, without white space.
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": _base64url(thumbprint), "alg": ALGORITHM, "use": "sig"}


def _coordinate(value: int) -> str:
    return _base64url(value.to_bytes(32))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
