"""Header fields of answers that a route sets or takes off, through the relay over a socket."""

from __future__ import annotations

import pytest

from tests.relay_world import relay_world, run

TOML = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[[route]]
name = "app"
upstream = "UPSTREAM"
allow = [{ networks = ["127.0.0.0/8"] }]
response = RESPONSE
"""
GET = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"


def answered(response: str, *fields: bytes) -> list[bytes]:
    """The fields that a client gets of an app's answer with `fields`, twice: the second time from what was kept."""

    async def talk() -> list[bytes]:
        async with relay_world(TOML.replace("RESPONSE", response)) as world:
            lines = b"".join(field + b"\r\n" for field in (*fields, b"Date: Thu, 01 Jan 1970 00:00:00 GMT"))
            world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + lines + b"\r\nok")
            heads = []
            for _ in range(2):
                status, head, body = await world.ask(GET)
                assert (status, body) == (200, b"ok")
                heads.append(
                    [line for line in head.split(b"\r\n")[1:-2] if not line.lower().startswith(b"x-request-id:")]
                )
            assert heads[0] == heads[1]
            return heads[0]

    return run(talk())


@pytest.mark.parametrize(
    ("response", "sent", "there", "gone"),
    [
        ('{ set = { X-Frame-Options = "DENY" } }', [], [b"X-Frame-Options: DENY"], []),
        (
            '{ set = { X-Frame-Options = "DENY" } }',
            [b"x-frame-options: ALLOWALL", b"X-FRAME-OPTIONS: SAMEORIGIN"],
            [b"X-Frame-Options: DENY"],
            [b"ALLOWALL", b"SAMEORIGIN"],
        ),
        ('{ remove = ["server", "X-Powered-By"] }', [b"Server: app/1", b"X-POWERED-BY: x"], [], [b"app/1", b"owered"]),
        ("{}", [b"Server: app/1"], [b"Server: app/1", b"Cache-Control: private"], []),
        (
            '{ set = { Cache-Control = "no-cache" } }',
            [b"Cache-Control: public"],
            [b"Cache-Control: no-cache"],
            [b"public", b"private"],
        ),
        ('{ remove = ["Cache-Control"] }', [b"Cache-Control: public"], [b"Cache-Control: private"], [b"public"]),
        ("{}", [b"Cache-Control: public"], [b"Cache-Control: public"], [b"private"]),
    ],
)
def test_what_the_client_gets(response: str, sent: list[bytes], there: list[bytes], gone: list[bytes]) -> None:
    lines = answered(response, *sent)
    for line in there:
        assert lines.count(line) == 1
    assert not [line for line in lines if any(word in line for word in gone)]
