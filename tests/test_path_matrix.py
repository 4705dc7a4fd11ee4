"""Every spelling of a private path, against servers that read paths each in its own way: nobody gets in who may not.

Beside a route that is open to everyone lies a private one. Whoever finds a spelling that is open here and private to the app
is in. So each spelling is asked for end to end, relayed and by forward-auth, as a stranger and as somebody without the role, and
what the app would serve for the bytes it gets is worked out for each kind of server.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import pytest

from tests.relay_world import World, relay_world, run

SETTINGS = """
public_url = "https://apps.example.com"
trusted_proxies = ["127.0.0.1/32"]
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
"""
PRIVATE = 'upstream = "UPSTREAM"\nallow = [{ roles = ["admin"] }]\n'
OPEN = 'upstream = "UPSTREAM"\nallow = "everyone"\n'
LAYOUTS = {
    "a private corner": f'[[route]]\nname = "rest"\n{OPEN}[[route]]\nname = "private"\npath = "/private"\n{PRIVATE}',
    "an open corner": f'[[route]]\nname = "rest"\n{PRIVATE}[[route]]\nname = "open"\npath = "/open"\n{OPEN}',
    "a rule for paths": (
        f'[[route]]\nname = "rest"\n{OPEN}deny = [{{ paths = ["/private"], networks = ["0.0.0.0/0"] }}]\n'
    ),
}


# -- how servers read a path: bytes as they came, without the query -> what they look up


def decodes_once(path: bytes) -> bytes:
    """And takes what comes of it by the letter: most routers of web frameworks."""
    return unquote_to_bytes(path)


def decodes_twice(path: bytes) -> bytes:
    """A server that decodes before a framework that does so again; then it is a file."""
    return resolves(unquote_to_bytes(path))


def resolves(path: bytes) -> bytes:
    """Decodes, merges slashes and resolves dots: nginx, and whoever serves files."""
    return posixpath.normpath(b"/" + unquote_to_bytes(path).lstrip(b"/"))


def servlet(path: bytes) -> bytes:
    """Takes parameters off each segment before it does the same: Tomcat, Jetty."""
    return resolves(re.sub(rb";[^/]*", b"", path))


def windows(path: bytes) -> bytes:
    """Backslashes are slashes, and neither spaces nor dots count at the end of a name."""
    segments = unquote_to_bytes(path).replace(b"\\", b"/").split(b"/")
    trimmed = (it if it in (b".", b"..") else it.rstrip(b". ") for it in segments)
    return resolves(b"/".join(trimmed))


def c_string(path: bytes) -> bytes:
    """Decodes, and stops at a NUL, or where it believes the path to end."""
    return resolves(re.split(rb"[\0#?]", unquote_to_bytes(path), maxsplit=1)[0])


def ignores_case(path: bytes) -> bytes:
    """Express, IIS, and files on Windows and macOS."""
    return resolves(path).lower()


READERS: tuple[Callable[[bytes], bytes], ...] = (
    decodes_once, decodes_twice, resolves, servlet, windows, c_string, ignores_case,
)  # fmt: skip


def private_to(target: bytes) -> set[str]:
    """The servers that would serve what is private for `target`."""
    path = target.partition(b"?")[0]
    found = {reader.__name__: reader(path) for reader in READERS}
    return {name for name, read in found.items() if read == b"/private" or read.startswith(b"/private/")}


SPELLINGS = (
    b"/private", b"/private/", b"/private/x", b"/private?x=/open", b"/private/../open", b"/private/..", b"/private/.",
    b"/private//x", b"/private/./x", b"/private#x", b"/private/%2e%2e/open", b"/private/..;/open",
    # slashes
    b"//private", b"///private", b"/.//private", b"/open//../private", b"//open/../private", b"/open/..//private",
    # dots
    b"/./private", b"/../private", b"/../../private", b"/open/../private", b"/open/x/../../private", b"/open/./../private",
    b"/open/../open/../private", b"/open/.././private",
    # letters and dots, encoded
    b"/%70rivate", b"/privat%65", b"/%70%72%69%76%61%74%65", b"/%2e/private", b"/%2E/private", b"/open/%2e%2e/private",
    b"/open/%2E%2E/private", b"/open/%2e./private", b"/open/.%2e/private", b"/open/%2e%2E/%70rivate",
    # slashes, encoded
    b"/%2fprivate", b"/%2Fprivate", b"/private%2f", b"/private%2Fx", b"/open/..%2fprivate", b"/open/..%2Fprivate",
    b"/open%2f..%2fprivate", b"/open%2F%2e%2e%2Fprivate", b"/.%2fprivate", b"/open/x%2f..%2f..%2fprivate", b"/..%2fprivate",
    # twice encoded
    b"/%2570rivate", b"/%252e/private", b"/%252fprivate", b"/open/%252e%252e/private", b"/open/..%252fprivate",
    b"/open%252f..%252fprivate", b"/open/%252e%252e%252fprivate", b"/private%252fx", b"/open/%25%32%65%25%32%65/private",
    # parameters
    b"/private;x", b"/private;x=1", b"/private;/x", b"/;x/private", b"/open/..;/private", b"/open/..;a=b/private",
    b"/open;x/../private", b"/private;x=1/y", b"/open/x;/..;/..;/private", b"/private;%2f..",
    # backslashes
    b"/\\private", b"/%5cprivate", b"/%5Cprivate", b"/open\\..\\private", b"/open/..\\private", b"/open%5c..%5cprivate",
    b"/open/..%5cprivate", b"/private\\x", b"/private%5cx",
    # what Windows and C leave out
    b"/private.", b"/private%20", b"/private%2e", b"/private./x", b"/private%20/x", b"/private%00", b"/private%00.png",
    b"/private%23x", b"/private%3fx", b"/private%3f/../open", b"/open/../private%00",
    b"/private%2e%2e%2f..%2fprivate", b"/open/x/%2e%2e/..%2f%70rivate", b"/open//%2e%2e//private", b"/%5c%2e%5cprivate",
    # letter case
    b"/PRIVATE", b"/Private", b"/privatE/x", b"/%50RIVATE", b"/open/../PRIVATE", b"/open/%2e%2e/Private", b"//Private/x",
)  # fmt: skip
PEOPLE = {"a stranger": None, "somebody without the role": ("member",)}


def test_every_spelling_leads_some_server_to_what_is_private() -> None:
    """What fools nobody proves nothing."""
    assert len(set(SPELLINGS)) == len(SPELLINGS) > 60
    assert [spelling for spelling in SPELLINGS if not private_to(spelling)] == []
    for reader in READERS:
        alone = [it for it in SPELLINGS if reader.__name__ in private_to(it)]
        assert len(alone) > 10, reader.__name__
    assert private_to(b"/open/private") == private_to(b"/x?/../private") == set()


async def the_app(world: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers as all those servers would, in one."""
    while True:
        head = await world.upstream.head(reader)
        found = private_to(head.split(b" ", 2)[1])
        body = b"PRIVATE to " + ", ".join(sorted(found)).encode() if found else b"open to all"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def relayed(target: bytes, cookie: bytes) -> bytes:
    return (
        b"GET %b HTTP/1.1\r\nHost: apps.example.com\r\nAccept: application/json\r\nCookie: %b\r\nConnection: close\r\n\r\n"
        % (target, cookie)
    )


def asked_by_traefik(target: bytes, cookie: bytes) -> bytes:
    told = b"X-Forwarded-Method: GET\r\nX-Forwarded-Host: apps.example.com\r\nX-Forwarded-Uri: %b\r\n" % target
    return b"GET /.postern/auth HTTP/1.1\r\nHost: postern\r\n%bCookie: %b\r\n\r\n" % (told, cookie)


def asked_by_nginx(target: bytes, cookie: bytes) -> bytes:
    told = b"X-Original-Method: GET\r\nX-Original-URL: https://apps.example.com%b\r\n" % target
    return b"GET /.postern/auth/nginx HTTP/1.1\r\nHost: postern\r\n%bCookie: %b\r\n\r\n" % (told, cookie)


def asked_by_envoy(target: bytes, cookie: bytes) -> bytes:
    return (
        b"GET /.postern/auth/envoy%b HTTP/1.1\r\nhost: apps.example.com\r\ncontent-length: 0\r\ncookie: %b\r\n\r\n"
        % (
            target,
            cookie,
        )
    )


QUESTIONS = (asked_by_traefik, asked_by_nginx, asked_by_envoy)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("person", PEOPLE)
def test_no_spelling_of_it_opens_what_is_private(layout: str, person: str) -> None:
    async def conversation() -> None:
        async with relay_world(SETTINGS + LAYOUTS[layout]) as world:
            world.upstream.script = lambda reader, writer: the_app(world, reader, writer)
            roles = PEOPLE[person]
            cookie = b"x=y" if roles is None else await world.sign_in(roles=roles)
            for spelling in SPELLINGS:
                status, _, body = await world.ask(relayed(spelling, cookie))
                assert b"PRIVATE" not in body, (spelling, body)
                assert status in (400, 401, 403, 404, 200), spelling
                for question in QUESTIONS:
                    status, _, _ = await world.ask(question(spelling, cookie))
                    assert status != 200 or not private_to(spelling), (question.__name__, spelling)

    run(conversation())


@pytest.mark.parametrize("layout", ["a private corner", "an open corner"])
def test_whoever_may_gets_it_and_what_is_open_stays_open(layout: str) -> None:
    """A gateway that refuses everything would pass the test above."""

    async def conversation() -> None:
        async with relay_world(SETTINGS + LAYOUTS[layout]) as world:
            world.upstream.script = lambda reader, writer: the_app(world, reader, writer)
            cookie = await world.sign_in(roles=("admin",))
            for target in (b"/private", b"/private/x?y=%2e%2e%2f", b"/private/caf%C3%A9"):
                status, _, body = await world.ask(relayed(target, cookie))
                assert (status, body[:7]) == (200, b"PRIVATE"), target
                for question in QUESTIONS:
                    assert (await world.ask(question(target, cookie)))[0] == 200, target
            for target in (
                b"/open",
                b"/open/x?next=/private",
                b"/open/%41",
                b"/open/a-b_c~d.html",
                b"/open/?/../private",
            ):
                status, _, body = await world.ask(relayed(target, b"x=y"))
                assert (status, body) == (200, b"open to all"), target
                for question in QUESTIONS:
                    assert (await world.ask(question(target, b"x=y")))[0] == 200, target

    run(conversation())
