"""ID tokens that are forged in every way that matters, and odd ones that are good, through a whole sign-in."""

from __future__ import annotations

import base64
import json

import jwt
import pytest

from proxy.errors import SignInProblem
from tests.forgeries import (
    HALF_HASH,
    Forge,
    after_signing,
    by_hmac,
    by_stranger,
    claims,
    forge,
    header,
    later,
    public_pem,
    swapped_payload,
    unlisted_algorithm,
    unsigned,
    weaker_key_type,
)
from tests.identity_bench import RETURN_TO, Bench, failed, run
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, SUB, LyingProvider, SigningKey, encoded, sign

FORGED: dict[str, Forge] = {
    "iss of another": claims(iss="https://evil.example/oidc"),
    "iss is the endpoint": lambda logto: logto.claims.update(iss=logto.url),
    "iss with a slash": lambda logto: logto.claims.update(iss=logto.issuer + "/"),
    "iss missing": claims(iss=...),
    "iss a list": lambda logto: logto.claims.update(iss=[logto.issuer]),
    "aud of another": claims(aud="another-client"),
    "aud missing": claims(aud=...),
    "aud null": claims(aud=None),
    "aud empty list": claims(aud=[]),
    "aud list of others": claims(aud=["a", "b"]),
    "aud an object": claims(aud={CLIENT_ID: 1}),
    "aud prefix": claims(aud=CLIENT_ID + "x"),
    "aud several, no azp": claims(aud=[CLIENT_ID, "other"]),
    "aud several, azp of another": claims(aud=[CLIENT_ID, "other"], azp="other"),
    "aud with a number": claims(aud=[CLIENT_ID, 7], azp=CLIENT_ID),
    "azp of another": claims(azp="other"),
    "azp a list": claims(azp=[CLIENT_ID]),
    "expired": later(exp=-31),
    "exp missing": claims(exp=...),
    "exp null": claims(exp=None),
    "exp text": claims(exp="9999999999"),
    "exp true": claims(exp=True),
    "exp beyond floats": claims(exp=10**400),
    "exp infinite": claims(exp=float("inf")),
    "exp nan": claims(exp=float("nan")),
    "issued in the future": later(iat=31),
    "iat missing": claims(iat=...),
    "iat text": claims(iat="now"),
    "not valid yet": later(nbf=31),
    "nbf text": claims(nbf="now"),
    "sub missing": claims(sub=...),
    "sub empty": claims(sub=""),
    "sub null": claims(sub=None),
    "sub a number": claims(sub=7),
    "sub a list": claims(sub=[SUB]),
    "sub too long": claims(sub="x" * 256),
    "nonce of another": claims(nonce="x" * 22),
    "nonce missing": claims(nonce=...),
    "nonce null": claims(nonce=None),
    "nonce empty": claims(nonce=""),
    "nonce a list": claims(nonce=["x"]),
    "at_hash of another": claims(at_hash=HALF_HASH),
    "at_hash a number": claims(at_hash=7),
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg nOnE": unsigned("nOnE"),
    "alg empty": unsigned(""),
    "alg a list": forge(lambda c, h, _: encoded(json.dumps(c).encode(), h | {"alg": ["ES384"]}, lambda *_: b"", None)),
    "alg missing": forge(lambda c, h, _: encoded(json.dumps(c).encode(), {"kid": h["kid"]}, lambda *_: b"x", None)),
    "HS256 with the client secret": by_hmac("HS256", lambda _: CLIENT_SECRET.encode()),
    "HS384 with the public key": by_hmac("HS384", public_pem),
    "HS512 with nothing": by_hmac("HS512", lambda _: b""),
    "another key under a known kid": by_stranger(),
    "another key without kid": by_stranger(drop_kid=True),
    "unknown kid": by_stranger(kid="unknown"),
    "kid a number": by_stranger(kid=7),
    "kid an injection": by_stranger(kid="../../dev/null' OR 1=1"),
    "jwk in the header": by_stranger(advertise="jwk"),
    "jku in the header": by_stranger(advertise="jku", kid="stranger"),
    "x5u in the header": by_stranger(advertise="x5u", kid="stranger"),
    "x5c in the header": by_stranger(advertise="x5c"),
    "a curve that is not the key's": weaker_key_type,
    "an algorithm not offered": unlisted_algorithm,
    "typ of an access token": header(typ="at+jwt"),
    "typ of a logout token": header(typ="logout+jwt"),
    "typ a number": header(typ=7),
    "crit unknown": header(crit=["exp"]),
    "crit with b64": header(crit=["b64"], b64=False),
    "signature cut": after_signing(lambda token: token[:-8]),
    "signature gone": after_signing(lambda token: token.rpartition(".")[0] + "."),
    "two parts": after_signing(lambda token: token.rpartition(".")[0]),
    "five parts": after_signing(lambda token: token + ".e30.e30"),
    "payload changed": after_signing(swapped_payload),
    "header changed": after_signing(lambda token: "eyJhbGciOiJub25lIn0." + token.partition(".")[2]),
    "empty": after_signing(lambda _: ""),
    "no token": after_signing(lambda _: "a.b.c"),
    "not ASCII": after_signing(lambda token: token + "é"),
    "enormous": after_signing(lambda token: token + "A" * 70_000),
    "a header of lists": forge(lambda c, _, __: encoded(json.dumps(c).encode(), b"[" * 3000, lambda *_: b"", None)),
    "payload a list": forge(lambda _, h, logto: sign(b"[]", h, logto.keys[0].private)),
    "payload no JSON": forge(lambda _, h, logto: sign(b"\xff", h, logto.keys[0].private)),
    "payload deep": forge(lambda _, h, logto: sign(b'{"a":' * 5000, h, logto.keys[0].private)),
    "none at all": lambda logto: logto.answer.update(id_token=...),
    "none but null": lambda logto: logto.answer.update(id_token=None),
    "userinfo of another": lambda logto: logto.info.update(sub="mallory"),
    "userinfo of nobody": lambda logto: logto.info.update(sub=...),
}  # fmt: skip


@pytest.mark.parametrize("lie", FORGED.values(), ids=FORGED.keys())
def test_forged_id_tokens(lie: Forge) -> None:
    async def conversation(it: Bench) -> None:
        await it.sign_in()  # with good keys at hand
        it.logto.now += 10  # and allowed to ask for others
        lie(it.logto)
        failure = await failed(it.sign_in())
        assert failure.problem is SignInProblem.BAD_TOKEN
        assert failure.return_to == RETURN_TO
        assert it.logto.count("/stranger") == 0
        assert SUB not in failure.detail

    run(conversation)


def several_keys(logto: LyingProvider) -> None:
    logto.keys = [SigningKey.new("ES384", kid=None), SigningKey.new(), SigningKey.new("RS256")]
    logto.keys[0].kid = None
    logto.header["kid"] = ...


def right_hash(logto: LyingProvider) -> None:
    logto.answer["access_token"] = "Z17iZLE6tpd45uJ7bXHLrgLVfrTqpqHyD9HhWiRqz_Y"
    algorithm = jwt.get_algorithm_by_name("ES384")
    digest = algorithm.compute_hash_digest(logto.answer["access_token"].encode())
    logto.claims["at_hash"] = base64.urlsafe_b64encode(digest[:24]).decode()


def only(algorithm: str, *, states_algorithm: bool = True) -> Forge:
    def apply(logto: LyingProvider) -> None:
        logto.keys = [SigningKey.new(algorithm, states_algorithm=states_algorithm)]

    return apply


def as_ps256(logto: LyingProvider) -> None:
    logto.keys = [SigningKey.new("RS256", states_algorithm=False)]
    logto.header["alg"] = "PS256"


ODD: dict[str, Forge] = {
    "aud a list": claims(aud=[CLIENT_ID]),
    "aud several with azp": claims(aud=["other", CLIENT_ID], azp=CLIENT_ID),
    "just expired": later(exp=-29),
    "clock ahead": later(iat=29, nbf=29),
    "typ JWT": header(typ="JWT"),
    "typ jwt": header(typ="jwt"),
    "jku beside a good signature": header(jku="https://evil.example/jwks", x5u="https://evil.example/x"),
    "at_hash": right_hash,
    "no kid, several keys": several_keys,
    "RSA without alg": only("RS256", states_algorithm=False),
    "RSA without alg, PS256": as_ps256,
    "PS256": only("PS256"),
    "ES256": only("ES256"),
    "ES512": only("ES512"),
    "EdDSA": only("EdDSA"),
    "nulls": claims(name=None, email=None, roles=None, organizations=None),
    "no sid": claims(sid=...),
    "sid null": claims(sid=None),
    "token type in small letters": lambda logto: logto.answer.update(token_type="bearer"),
    "already expired access token": lambda logto: logto.answer.update(expires_in=-5),
    "no refresh token": lambda logto: logto.answer.update(refresh_token=...),
    "extra members": lambda logto: logto.discovery.update(new_member={"a": [1]}),
}


@pytest.mark.parametrize("oddity", ODD.values(), ids=ODD.keys())
def test_odd_but_good_id_tokens(oddity: Forge) -> None:
    async def conversation(it: Bench) -> None:
        oddity(it.logto)
        finished = await it.sign_in()
        assert finished.grant.identity.sub == SUB
        assert finished.grant.tokens.access_expires_at >= it.logto.now

    run(conversation)
