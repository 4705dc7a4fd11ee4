"""The second target of a COPY or MOVE: read, judged like the first, and told to the app in its own terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.destinations import Destination, read_destination
from proxy.rewriting import PathMap
from tests.relay_world import World, relay_world, run

ROUTES = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[[route]]
name = "dav"
path = "/dav"
upstream = "UPSTREAM"
allow = [{ roles = ["editor"] }, { roles = ["owner"] }]
[[route]]
name = "private"
path = "/dav/private"
upstream = "UPSTREAM"
allow = [{ roles = ["owner"] }]
[[route]]
name = "public"
path = "/dav/public"
upstream = "UPSTREAM"
allow = "everyone"
[[route]]
name = "other-app"
path = "/other"
upstream = "http://127.0.0.1:9"
"""
BELOW = """
[[route]]
name = "below"
path = "/files"
upstream = "UPSTREAM"
strip_prefix = "/files"
add_prefix = "/webdav"
allow = "everyone"
[[route]]
name = "by-its-own-name"
path = "/named"
upstream = "UPSTREAM"
preserve_host = false
allow = "everyone"
"""


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (b"/a/b", (b"", b"", b"/a/b")),
        (b"/a%20b?x=1", (b"", b"", b"/a%20b?x=1")),
        (b"http://h/a", (b"http", b"h", b"/a")),
        (b"HTTPS://h:8443/a", (b"HTTPS", b"h:8443", b"/a")),
        (b"https://[::1]:3000/a", (b"https", b"[::1]:3000", b"/a")),
        (b"https://h", (b"https", b"h", b"/")),
        *((wrong, None) for wrong in (
            b"", b"a", b"a/b", b"//h/a ", b"http://u@h/a", b"http:///a", b"ftp://h/a", b"/a#b", b"/a b", b"/a, /b",
            b"http://h/a, http://h/b", b"/\xc3\xa9", b"http://h\\evil/a", b"<http://h/a>",
        )),
    ],
)  # fmt: skip
def test_reading(value: bytes, read: tuple[bytes, bytes, bytes] | None) -> None:
    assert read_destination(value) == (Destination(*read) if read is not None else None)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_destination_or_none(value: bytes) -> None:
    found = read_destination(value)
    if found is not None:
        assert found.target.startswith(b"/")
        assert found.within(None, b"") in (value, value + b"/")


def test_in_the_apps_own_terms() -> None:
    here, there = Destination(b"", b"", b"/files/a?b"), Destination(b"https", b"h:1", b"/files/a")
    mapping = PathMap("/files", "/webdav")
    assert here.within(mapping, b"") == b"/webdav/a?b"
    assert there.within(mapping, b"") == b"https://h:1/webdav/a"
    assert there.within(None, b"http://app:80") == b"http://app:80/files/a"
    assert here.within(None, b"http://app:80") == b"/files/a?b"
    with pytest.raises(ValueError, match="does not begin"):
        Destination(b"", b"", b"/elsewhere").within(mapping, b"")


async def move(world: World, path: str, to: bytes, cookie: bytes = b"", method: str = "MOVE") -> int:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost:3000\r\n".encode()
    fields = b"Destination: %s\r\nCookie: %s\r\nContent-Length: 0\r\n\r\n" % (to, cookie)
    return (await world.ask(head + fields))[0]


TO_PRIVATE = [
    b"/dav/private/x",
    b"http://localhost:3000/dav/private/x",
    b"https://localhost:3000/dav/private/x",
    b"http://LOCALHOST:3000/dav/private/x",
    b"http://localhost./dav/private/x",
    b"/dav/private",
]
REFUSED = [
    (b"/dav/%70rivate/x", {400, 403}),
    (b"/dav/x/../private/x", {400, 403}),
    (b"/dav//private/x", {400, 403}),
    (b"/dav/%2e%2e/dav/private/x", {400, 403}),
    (b"/dav/PRIVATE/x", {400, 403}),
    (b"/dav/private%2fx", {400, 403}),
    (b"http://localhost:3000@evil.example/dav/x", {400}),
    (b"/dav/a, /dav/private/b", {400}),
    (b"\xff", {400}),
    (b"", {400}),
    (b"/dav/a\r\nDestination: /dav/private/b", {400}),
    (b"http://evil.example/dav/x", {502}),
    (b"/other/x", {502}),
    (b"/nowhere", {502}),
    (b"/.postern/sign-out", {502}),
    (b"/.postern", {502}),
]


def test_it_is_judged_by_its_own_rules_for_the_same_person() -> None:
    async def work() -> None:
        async with relay_world(ROUTES) as world:
            editor = await world.sign_in(roles=("editor",))
            owner = await world.sign_in(sub="owner", roles=("owner",))
            for to in TO_PRIVATE:
                assert await move(world, "/dav/a", to, editor) == 403, to
                assert await move(world, "/dav/public/a", to) == 401, to
                assert await move(world, "/dav/a", to, owner, "COPY") == 200, to
            before = len(world.upstream.heads)
            for to, statuses in REFUSED:
                assert await move(world, "/dav/a", to, editor) in statuses, to
            assert len(world.upstream.heads) == before, "nothing of it has reached the app"
            for to in (b"/dav/b", b"http://localhost:3000/dav/b%20c", b"/dav/public/b"):
                assert await move(world, "/dav/a", to, editor) == 200, to
                assert b"Destination: %s\r\n" % to in world.upstream.heads[-1], "byte for byte"
            assert await move(world, "/dav/private/a", b"/dav/b", editor) == 403, "the source as ever"

    run(work())


def test_it_is_told_to_the_app_as_the_target_is() -> None:
    async def work() -> None:
        async with relay_world(ROUTES + BELOW) as world:
            app = world.upstream.url.encode()
            for path, to, told in (
                ("/files/a", b"/files/b?x", b"/webdav/b?x"),
                ("/files/a", b"https://localhost:3000/files/b", b"https://localhost:3000/webdav/b"),
                ("/named/a", b"https://localhost:3000/named/b", app + b"/named/b"),
                ("/named/a", b"/named/b", b"/named/b"),
            ):
                assert await move(world, path, to) == 200, to
                assert world.upstream.heads[-1].count(b"estination") == 1
                assert b"\r\nDestination: %s\r\n" % told in world.upstream.heads[-1]
            for path, to in (("/files/a", b"/named/b"), ("/named/a", b"/files/b"), ("/files/a", b"/dav/public/b")):
                assert await move(world, path, to) == 502, "the app could not be told"

    run(work())
