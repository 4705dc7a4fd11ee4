"""Ways to forge an ID token, each a change to what a lying provider says."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import serialization

from tests.lying_provider import LyingProvider, SigningKey, encoded, sign

Forge = Callable[[LyingProvider], None]
HALF_HASH = "x" * 32


def claims(**changes: Any) -> Forge:
    return lambda logto: logto.claims.update(changes)


def later(**seconds: int) -> Forge:
    return lambda logto: logto.claims.update({name: int(logto.now) + shift for name, shift in seconds.items()})


def header(**changes: Any) -> Forge:
    return lambda logto: logto.header.update(changes)


def forge(make: Callable[[dict[str, Any], dict[str, Any], LyingProvider], str]) -> Forge:
    def apply(logto: LyingProvider) -> None:
        logto.forge = lambda claims, header: make(claims, header, logto)

    return apply


def unsigned(alg: str) -> Forge:
    return forge(
        lambda claims, header, _: encoded(json.dumps(claims).encode(), header | {"alg": alg}, lambda *_: b"", None)
    )


def by_hmac(alg: str, key: Callable[[LyingProvider], bytes]) -> Forge:
    def make(claims: dict[str, Any], header: dict[str, Any], logto: LyingProvider) -> str:
        digest = "sha" + alg[2:]
        signer = lambda data, secret: hmac.digest(secret, data, digest)  # noqa: E731 -- one line says it
        return encoded(json.dumps(claims).encode(), header | {"alg": alg}, signer, key(logto))

    return forge(make)


def public_pem(logto: LyingProvider) -> bytes:
    public = logto.keys[0].private.public_key()
    return bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def by_stranger(*, advertise: str = "", drop_kid: bool = False, **changes: Any) -> Forge:
    """A token signed with a key of the forger's, which its header may recommend."""

    def make(claims: dict[str, Any], header: dict[str, Any], logto: LyingProvider) -> str:
        stranger = SigningKey.new(kid=header["kid"])
        extra = {"jwk": stranger.jwk(), "jku": f"{logto.url}/stranger", "x5u": f"{logto.url}/stranger", "x5c": ["MIIB"]}
        header = header | ({advertise: extra[advertise]} if advertise else {}) | changes
        if drop_kid:
            del header["kid"]
        return sign(claims, header, stranger.private)

    return forge(make)


def after_signing(change: Callable[[str], str]) -> Forge:
    return forge(lambda claims, header, logto: change(sign(claims, header, logto.keys[0].private)))


def swapped_payload(token: str) -> str:
    head, payload, signature = token.split(".")
    body = json.loads(base64.urlsafe_b64decode(payload + "=="))
    other = base64.urlsafe_b64encode(json.dumps(body | {"sub": "mallory"}).encode()).decode().rstrip("=")
    return f"{head}.{other}.{signature}"


def unlisted_algorithm(logto: LyingProvider) -> None:
    logto.keys = [SigningKey.new("RS256")]
    logto.discovery["id_token_signing_alg_values_supported"] = ["ES384"]


def weaker_key_type(logto: LyingProvider) -> None:
    other = SigningKey.new("ES256", kid=logto.keys[0].kid)
    logto.forge = lambda claims, header: sign(claims, header | {"alg": "ES256"}, other.private)
