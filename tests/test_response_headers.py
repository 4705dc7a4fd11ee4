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


def test_what_is_said_for_every_route_and_what_a_route_says_instead() -> None:
    everywhere = """
[headers]
set = { X-Team = "all", X-Site = "main" }
remove = ["X-Debug"]
[response]
set = { X-Frame-Options = "DENY", X-Robots-Tag = "none" }
remove = ["Server"]
[[route]]
name = "app"
"""
    own = '{ set = { x-frame-options = "SAMEORIGIN" }, remove = ["X-Robots-Tag"] }\nheaders = { set = { x_team = "own" } }'

    async def talk() -> tuple[bytes, bytes]:
        async with relay_world(TOML.replace('[[route]]\nname = "app"\n', everywhere).replace("RESPONSE", own)) as world:
            world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: x\r\nX-Robots-Tag: all\r\n\r\n")
            _, head, _ = await world.ask(GET.replace(b"\r\n\r\n", b"\r\nX-Debug: 1\r\n\r\n"))
            return world.upstream.heads[-1], head

    sent, got = run(talk())
    assert b"\r\nx_team: own\r\n" in sent
    assert b"X-Team: all" not in sent
    assert b"\r\nX-Site: main\r\n" in sent
    assert b"X-Debug" not in sent
    assert b"\r\nx-frame-options: SAMEORIGIN\r\n" in got
    assert b"DENY" not in got
    assert b"Robots" not in got
    assert b"Server" not in got
