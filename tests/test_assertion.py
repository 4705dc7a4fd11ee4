"""The assertion: an app that has only the JWKS can tell the gateway's word from anybody's."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.assertion import ALGORITHM, AssertionSigner
from proxy.claims import Identity
from tests.relay_world import relay_world, run

SECRETS = (b"newest secret of thirty-two bytes!", b"older secret, also thirty-two bytes")
ISSUER = "https://apps.example.com"
PERSON = Identity(
    sub="u1",
    username="ann",
    name="汉字 é 😀",
    email="ann@example.com",
    roles=("admin",),
    organization_roles=("acme:owner",),
)


def verify(assertion: bytes, jwks: dict[str, Any], audience: str = "wiki") -> dict[str, Any]:
    """What docs/headers.md tells apps to do."""
    keys = {key["kid"]: jwt.PyJWK(key) for key in jwks["keys"]}
    key = keys[jwt.get_unverified_header(assertion)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        assertion,
        key,
        algorithms=[ALGORITHM],
        audience=audience,
        issuer=ISSUER,
        options={"require": ["exp", "iat", "sub"]},
    )
    return claims


def test_an_app_reads_who_is_there() -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    now = time.time()
    claims = verify(signer.sign(PERSON, "wiki", now), signer.jwks)
    assert claims == {
        "iss": ISSUER,
        "aud": "wiki",
        "sub": "u1",
        "name": "汉字 é 😀",
        "preferred_username": "ann",
        "email": "ann@example.com",
        "email_verified": True,
        "groups": ["admin", "acme:owner"],
        "iat": int(now),
        "exp": int(now + 300),
    }


def test_what_is_absent_is_absent() -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    claims = verify(signer.sign(Identity(sub="u2"), "wiki", time.time()), signer.jwks)
    assert claims.keys() == {"iss", "aud", "sub", "iat", "exp"}


def test_a_program_is_told_from_a_person() -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    robot = Identity(sub="r1", client="r1", scopes=("read", "write"))
    claims = verify(signer.sign(robot, "wiki", time.time()), signer.jwks)
    assert (claims["client_id"], claims["scope"]) == ("r1", "read write")
    claims = verify(signer.sign(Identity(sub="u1", client="phone"), "wiki", time.time()), signer.jwks)
    assert (claims["client_id"], claims["scope"]) == ("phone", "")


@pytest.mark.parametrize("audience", ["other", "WIKI", ""])
def test_one_apps_assertion_is_no_use_at_another(audience: str) -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    with pytest.raises(jwt.InvalidAudienceError):
        verify(signer.sign(PERSON, "wiki", time.time()), signer.jwks, audience)


def test_it_expires() -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    with pytest.raises(jwt.ExpiredSignatureError):
        verify(signer.sign(PERSON, "wiki", time.time() - 301), signer.jwks)
    assert signer.renew_after == 150


def test_all_that_share_the_secret_share_the_key_and_others_do_not() -> None:
    ours, twin, stranger = (AssertionSigner(s, ISSUER, 300) for s in (SECRETS, SECRETS, (b"x" * 32,)))
    verify(twin.sign(PERSON, "wiki", time.time()), ours.jwks)
    with pytest.raises(KeyError):
        verify(stranger.sign(PERSON, "wiki", time.time()), ours.jwks)


def test_a_rotation_overlaps() -> None:
    before = AssertionSigner(SECRETS[1:], ISSUER, 300)
    after = AssertionSigner(SECRETS, ISSUER, 300)
    verify(before.sign(PERSON, "wiki", time.time()), after.jwks)
    assert len(after.jwks["keys"]) == 2
    assert after.jwks["keys"][0]["kid"] != before.jwks["keys"][0]["kid"]


def test_nothing_private_is_published_or_shown() -> None:
    signer = AssertionSigner(SECRETS, ISSUER, 300)
    for key in signer.jwks["keys"]:
        assert key.keys() == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    assert "secret" not in repr(signer)


@given(st.binary(min_size=32, max_size=64))
def test_every_secret_gives_a_usable_key(secret: bytes) -> None:
    signer = AssertionSigner((secret,), ISSUER, 300)
    assert verify(signer.sign(PERSON, "wiki", time.time()), signer.jwks)["sub"] == "u1"


def test_the_app_gets_one_that_it_can_check_and_not_the_clients() -> None:
    async def ask() -> None:
        async with relay_world(POSTERN_IDENTITY__ASSERTION_LIFETIME="10s") as world:
            cookie = await world.sign_in(username="ann")
            forged = b"x_postern_ASSERTION: forged\r\n"
            request = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n" + forged + b"Cookie: " + cookie + b"\r\n\r\n"
            await world.ask(request)
            first = assertion_in(world.upstream.heads[-1])
            _, _, body = await world.ask(b"GET /.postern/jwks.json HTTP/1.1\r\nHost: localhost:3000\r\n\r\n")
            claims = jwt.decode(
                first,
                jwt.PyJWKSet.from_json(body.decode()).keys[0],
                ["ES256"],
                audience="app",
                issuer="http://localhost:3000",
            )
            assert (claims["sub"], claims["preferred_username"]) == ("user00000001", "ann")

            await world.ask(request)
            assert assertion_in(world.upstream.heads[-1]) == first, "signing again for every request is too dear"
            world.gateway.relay.now += 6  # past half of its life
            await world.ask(request)
            assert assertion_in(world.upstream.heads[-1]) != first

            await world.ask(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n" + forged + b"\r\n")
            assert b"ssertion" not in world.upstream.heads[-1], "nobody is signed in"

    run(ask())


def test_the_documented_python_verifies_it() -> None:
    """Runs the very snippet of docs/headers.md, with a JWKS that is fetched over HTTP."""
    text = (Path(__file__).parent.parent / "docs" / "headers.md").read_text("utf-8")
    snippet = re.search(r"Python, with PyJWT:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None
    signer = AssertionSigner(SECRETS, ISSUER, 300)

    class Jwks(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(signer.jwks).encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Jwks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/.postern/jwks.json"
        names: dict[str, Any] = {}
        exec(snippet[1].replace("https://apps.example.com/.postern/jwks.json", url), names)
        assert names["who"](signer.sign(PERSON, "wiki", time.time()).decode())["sub"] == "u1"
        with pytest.raises(jwt.InvalidAudienceError):
            names["who"](signer.sign(PERSON, "blog", time.time()).decode())
        server.shutdown()


def test_it_can_be_left_out() -> None:
    async def ask() -> None:
        async with relay_world(POSTERN_IDENTITY__ASSERTION="false") as world:
            cookie = await world.sign_in()
            await world.ask(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nCookie: " + cookie + b"\r\n\r\n")
            assert b"X-Forwarded-User" in world.upstream.heads[-1]
            assert b"X-Postern-Assertion" not in world.upstream.heads[-1]

    run(ask())


def assertion_in(head: bytes) -> bytes:
    values = [
        line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"x-postern-assertion:")
    ]
    assert len(values) == 1
    return values[0]
