"""ID tokens: which keys count, whether one of them signed a token, and what the token must say. No I/O.

The checks are those of OpenID Connect Core 3.1.3.7, RFC 8725 and RFC 7515. A key is only ever used with the algorithms
that its type and its own `alg` allow, never with what a token's header would like: that is what "alg": "none" and
HMAC-with-a-public-key attacks live on. Keys named by a token itself (jku, x5u, x5c, jwk) are never looked at.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidTokenError, PyJWTError

from proxy.errors import PosternError, Side

ID_TOKEN: Final = "JWT"  # the `typ` of ID tokens, for those that have one  # noqa: S105 -- a media type
LEEWAY: Final = 30.0  # seconds that Logto's clock and ours may differ
_TOKEN_BYTES: Final = 64 * 1024
_KEYS: Final = 32
_RSA_BITS: Final = 2048
_NAME_CHARS: Final = 255  # of a sub: OpenID Connect Core 2
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final[Mapping[str, frozenset[str]]] = {
    "P-256": frozenset({"ES256"}),
    "P-384": frozenset({"ES384"}),
    "P-521": frozenset({"ES512"}),
    "Ed25519": frozenset({"EdDSA"}),
    "Ed448": frozenset({"EdDSA"}),
}
ASYMMETRIC: Final = _RSA.union(*_CURVES.values())


class BadToken(PosternError):
    """A token that must not be believed; the message says why and quotes nothing of it."""

    side = Side.LOGTO


class UnknownKey(BadToken):
    """No key at hand can have signed the token. The keys may have been rotated since they were fetched."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key and the algorithms it may verify."""

    kid: str | None
    algorithms: frozenset[str]
    key: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeySet:
    """The signing keys of an issuer at one moment."""

    keys: tuple[Key, ...]

    @classmethod
    def read(cls, document: object) -> KeySet:
        """Read a JWK set (RFC 7517 5). What cannot be used is skipped; ValueError when nothing is left."""
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise ValueError("not a JWK set")  # noqa: TRY004 -- one kind of error for every kind of nonsense
        keys = tuple(key for entry in entries[:_KEYS] if (key := _key(entry)) is not None)
        if not keys:
            raise ValueError("a JWK set without a usable key")
        return cls(keys)

    def candidates(self, kid: str | None, algorithm: str) -> Iterator[Key]:
        """Keys that may have signed a token with such a header. Without `kid` on either side every one may have."""
        for key in self.keys:
            if algorithm in key.algorithms and (kid is None or key.kid is None or key.kid == kid):
                yield key


def signed_claims(token: str, keys: KeySet, offered: Collection[str], typ: str = ID_TOKEN) -> dict[str, Any]:
    """Return what `token` says when a key of `keys` signed it; raises UnknownKey, or BadToken for everything else.

    `offered`: the algorithms in the issuer's discovery document. Only asymmetric ones among them count. `typ`: the kind of token
    that is wanted.
    """
    header = _header(token, typ)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ASYMMETRIC:
        raise BadToken("its alg is not one that is accepted")
    if algorithm not in offered:
        raise UnknownKey("its alg is not offered by the issuer")
    candidates = tuple(keys.candidates(kid, algorithm))
    if not candidates:
        raise UnknownKey("no key of the issuer fits it")
    for key in candidates:
        try:
            payload = jwt.PyJWS().decode_complete(token, key.key, algorithms=[algorithm])["payload"]
        except PyJWTError:
            continue
        return _claims(payload)
    raise BadToken("its signature is not the issuer's")


def has_key(token: str, keys: KeySet, offered: Collection[str], typ: str = ID_TOKEN) -> bool:
    """Whether a key of `keys` fits the header of `token`; raises BadToken for what is no token of the kind `typ`."""
    header = _header(token, typ)
    algorithm = str(header.get("alg"))
    return algorithm in offered and any(True for _ in keys.candidates(header.get("kid"), algorithm))


def check_id_token(claims: Mapping[str, Any], *, issuer: str, client_id: str, now: float) -> None:
    """Raise BadToken unless signed `claims` are those of an ID token for this client, valid at `now` (epoch seconds).

    The nonce is not judged here: only who sent it knows it, and a refreshed token need not have one.
    """
    if text_of(claims, "sub") is None:
        raise BadToken("it has no usable sub")
    check_issued(claims, issuer=issuer, client_id=client_id, now=now)


def check_issued(claims: Mapping[str, Any], *, issuer: str, client_id: str, now: float) -> None:
    """Raise BadToken unless signed `claims` are `issuer`'s, for this client, and valid at `now` (epoch seconds)."""
    if claims.get("iss") != issuer:
        raise BadToken("its iss is another issuer")
    _check_audience(claims, client_id)
    check_times(claims, now)


def check_times(claims: Mapping[str, Any], now: float) -> None:
    """Raise BadToken unless signed `claims` are of a token that is valid at `now` (epoch seconds)."""
    if now - LEEWAY >= time_of(claims, "exp"):
        raise BadToken("it has expired")
    if time_of(claims, "iat") > now + LEEWAY:
        raise BadToken("it was issued in the future")
    if "nbf" in claims and time_of(claims, "nbf") > now + LEEWAY:
        raise BadToken("it is not valid yet")


def check_nonce(claims: Mapping[str, Any], nonce: str) -> None:
    """Raise BadToken unless the token was issued for the very authorization request that carried `nonce`."""
    given = claims.get("nonce")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode("utf-8", "replace"), nonce.encode()):
        raise BadToken("its nonce is not this sign-in's")


def check_access_token(claims: Mapping[str, Any], algorithm: str, access_token: str) -> None:
    """Raise BadToken when the ID token has an `at_hash` and it is another access token's (OpenID Connect Core 3.1.3.6)."""
    given = claims.get("at_hash")
    if given is None:
        return
    size = algorithm[2:] if algorithm[2:] in ("256", "384", "512") else "512"  # EdDSA hashes with SHA-512
    digest = hashlib.new(f"sha{size}", access_token.encode()).digest()
    expected = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
    if not isinstance(given, str) or not hmac.compare_digest(given.encode("utf-8", "replace"), expected):
        raise BadToken("its at_hash is another access token's")


def algorithm_of(token: str) -> str:
    """Return the `alg` in the header of a token that was verified before."""
    return str(_header(token)["alg"])


def unverified_claims(token: str) -> dict[str, Any]:
    """Return what a token says that was verified when it was issued and has been ours since; {} when it is unreadable."""
    try:
        return dict(jwt.decode(token, options={"verify_signature": False}))
    except (InvalidTokenError, ValueError, TypeError):
        return {}


def text_of(claims: Mapping[str, Any], name: str) -> str | None:
    """Return claim `name` when it is text that can be the name of something: neither empty nor endless."""
    value = claims.get(name)
    return value if isinstance(value, str) and 0 < len(value) <= _NAME_CHARS else None


def number_of(value: object) -> float | None:
    """Return a JSON number as a finite float; None for everything else."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a JSON integer has no limit, a float has
        return None
    return number if math.isfinite(number) else None


def _header(token: str, typ: str = ID_TOKEN) -> dict[str, Any]:
    if len(token) > _TOKEN_BYTES or not token.isascii():
        raise BadToken("it is no token")
    try:
        header = jwt.get_unverified_header(token)
    except (InvalidTokenError, ValueError, RecursionError):
        raise BadToken("it is no token") from None
    # ID tokens, logout tokens and access tokens of one issuer are signed with the same keys: `typ` keeps them apart
    # (RFC 8725 3.11). Only ID tokens may go without; media types may leave out "application/" (RFC 7515 4.1.9).
    if str(header.get("typ", ID_TOKEN)).lower().removeprefix("application/") != typ.lower():
        raise BadToken("its typ is another kind of token's")
    if "crit" in header:
        raise BadToken("it demands an extension")  # RFC 7515 4.1.11: what is not understood must not be accepted
    return header


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise BadToken("it carries no claims")
    return claims


def audience_of(claims: Mapping[str, Any]) -> set[str]:
    """Whom a token is for, as far as that can be read; it need not have been verified."""
    audience = claims.get("aud")
    if isinstance(audience, str):
        return {audience}
    return {item for item in audience if isinstance(item, str)} if isinstance(audience, list) else set()


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or client_id not in audiences:
        raise BadToken("its aud is another client")
    if not all(isinstance(item, str) for item in audiences):
        raise BadToken("its aud is not a list of names")
    azp = claims.get("azp")
    if (azp is not None or len(audiences) > 1) and azp != client_id:
        raise BadToken("its azp is not this client")


def time_of(claims: Mapping[str, Any], name: str) -> float:
    """Return the time in claim `name`, epoch seconds; raises BadToken when there is none."""
    number = number_of(claims.get(name))
    if number is None:
        raise BadToken(f"it has no usable {name}")
    return number


def _key(entry: object) -> Key | None:
    """Read one JWK; None for what is no public signature key of a kind that is accepted."""
    if not isinstance(entry, dict) or "d" in entry or entry.get("use", "sig") != "sig":
        return None
    kid, kind, algorithms = entry.get("kid"), entry.get("kty"), ASYMMETRIC
    curve = _CURVES.get(str(entry.get("crv")), frozenset())
    try:
        # Only what makes the key goes in: PyJWT would refuse, or guess, by other members.
        if kind == "RSA":
            key: Any = RSAAlgorithm.from_jwk({"kty": kind, "n": entry["n"], "e": entry["e"]})
            algorithms = _RSA if isinstance(key, RSAPublicKey) and key.key_size >= _RSA_BITS else frozenset()
        elif kind == "EC":
            key = ECAlgorithm.from_jwk({"kty": kind, "crv": entry["crv"], "x": entry["x"], "y": entry["y"]})
            algorithms = curve
        elif kind == "OKP":
            key = OKPAlgorithm.from_jwk({"kty": kind, "crv": entry["crv"], "x": entry["x"]})
            algorithms = curve
        else:
            return None
    except (PyJWTError, UnsupportedAlgorithm, KeyError, ValueError, TypeError, AttributeError):
        return None
    if "alg" in entry:
        algorithms &= {str(entry["alg"])}  # Logto's RSA keys have none, its EC keys do
    return Key(kid if isinstance(kid, str) else None, algorithms, key) if algorithms else None
