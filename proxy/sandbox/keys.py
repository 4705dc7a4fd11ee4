"""Signing keys of the stand-in Logto: ES384 (or RS256 after a rotation to RSA), two kept, as recorded.

The lies that concern signatures are told here, so that a relying party can be tried against each of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

KeyKind = Literal["EC", "RSA"]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with the name (`kid`, RFC 7638 thumbprint) it is published under."""

    private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    kid: str
    algorithm: str
    public: Mapping[str, str]

    @classmethod
    def generate(cls, kind: KeyKind = "EC") -> SigningKey:
        """A fresh key: P-384 for "EC", 2048 bits for "RSA"."""
        if kind == "EC":
            curve = ec.generate_private_key(ec.SECP384R1())
            private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = curve
            point = curve.public_key().public_numbers()
            thumb = {"crv": "P-384", "kty": "EC", "x": _number(point.x, 48), "y": _number(point.y, 48)}
            extra = {"alg": "ES384"}
        else:
            private = pair = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            modulus = pair.public_key().public_numbers()
            thumb = {"e": _number(modulus.e, 3), "kty": "RSA", "n": _number(modulus.n, 256)}
            extra = {}  # recorded: RSA keys are published without `alg`
        kid = _b64(hashlib.sha256(json.dumps(thumb, separators=(",", ":"), sort_keys=True).encode()).digest())
        public = {"kty": thumb["kty"], "use": "sig", "kid": kid, **extra, **thumb}
        return cls(private, kid, "ES384" if kind == "EC" else "RS256", public)


class KeyStore:
    """The current key and the previous one; older ones are forgotten at once, as recorded."""

    def __init__(self) -> None:
        self._keys = [SigningKey.generate()]

    @property
    def current(self) -> SigningKey:
        """The key that signs."""
        return self._keys[0]

    def rotate(self, kind: KeyKind = "EC") -> str:
        """Sign with a fresh key from now on; returns its kid."""
        self._keys = [SigningKey.generate(kind), *self._keys][:2]
        return self.current.kid

    def jwks(self) -> dict[str, Any]:
        """The key set as published."""
        return {"keys": [dict(key.public) for key in self._keys]}

    def algorithms(self) -> list[str]:
        """What discovery advertises: an RSA key stands for PS256 and RS256."""
        names: list[str] = []
        for key in self._keys:
            names += ["ES384"] if key.algorithm == "ES384" else ["PS256", "RS256"]
        return list(dict.fromkeys(names))

    def verify(self, token: str, issuer: str) -> dict[str, Any]:
        """Claims of a token that one of the kept keys signed, however old; jwt.PyJWTError otherwise."""
        kid = jwt.get_unverified_header(token).get("kid")
        for key in self._keys:
            if key.kid == kid:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.private.public_key(),
                    algorithms=[key.algorithm],
                    issuer=issuer,
                    # An ID token that is long expired is still a good logout hint (OpenID Connect RP-Initiated Logout 2).
                    options={"verify_exp": False, "verify_aud": False, "verify_iat": False},
                )
                return claims
        raise jwt.InvalidKeyError("no such key")

    def sign(self, claims: Mapping[str, Any], *, typ: str | None = None) -> str:
        """An honest JWT. The header is {alg, kid}, with `typ` between them only where Logto puts one."""
        key = self.current
        return _encode(claims, key.private, key.algorithm, kid=key.kid, typ=typ)

    def sign_lying(self, claims: Mapping[str, Any], lies: frozenset[str], client_secret: str) -> str:
        """An ID token signed the way the first fitting lie says: alg none, HS256, an unpublished key, a broken signature."""
        key = self.current
        if "alg_none" in lies:
            return _encode(claims, None, "none", kid=key.kid)
        if "hs256" in lies:
            return _encode(claims, client_secret.encode(), "HS256", kid=key.kid)
        if "unknown_kid" in lies:
            stranger = SigningKey.generate()
            return _encode(claims, stranger.private, stranger.algorithm, kid=stranger.kid)
        if "bad_signature" in lies:
            stranger = SigningKey.generate()
            return _encode(claims, stranger.private, stranger.algorithm, kid=key.kid)
        return self.sign(claims)


def _encode(claims: Mapping[str, Any], key: Any, algorithm: str, *, kid: str, typ: str | None = None) -> str:
    # PyJWT puts `typ: JWT` into every header unless it is explicitly null; Logto's ID tokens have none.
    return jwt.encode(dict(claims), key, algorithm=algorithm, headers={"typ": typ, "kid": kid})


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _number(value: int, size: int) -> str:
    return _b64(value.to_bytes(size, "big"))
