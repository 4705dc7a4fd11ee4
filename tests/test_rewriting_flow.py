"""Prefixes and hosts through the whole gateway: what the app gets, what browsers get back, and that the gate sees through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.paths import interpretations
from proxy.routes import RouteTable
from proxy.settings import load
from tests.relay_world import World, relay_world
from tests.upstream_world import answering, peer, run

BASE = """
public_url = "https://apps.example.com"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
"""


def route(name: str = "app", **keys: Any) -> str:
    values = {"name": name, "upstream": "UPSTREAM", "allow": "everyone", **keys}
    return (
        BASE * (name == "app")
        + "[[route]]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    )


def request(target: str, *fields: str, method: str = "GET", host: str = "apps.example.com") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def field(head: bytes, name: str) -> list[str]:
    """The values of every field called `name`."""
    lines = (line.partition(": ") for line in head.decode().split("\r\n")[1:])
    return [value for found, _, value in lines if found.lower() == name.lower()]


async def seen(world: World, raw: bytes) -> bytes:
    """The head that the app gets for a request."""
    status, _, _ = await world.ask(raw)
    assert status == 200
    return world.upstream.heads[-1]


class TestTheWayUp:
    @pytest.mark.parametrize(
        ("keys", "target", "expected"),
        [
            ({"path": "/app", "strip_prefix": "/app"}, "/app/x%2Fy?q=/app&%zz", "/x%2Fy?q=/app&%zz"),
            ({"path": "/app", "strip_prefix": "/app"}, "/app", "/"),
            ({"path": "/app/wiki", "strip_prefix": "/app"}, "/app/wiki/x", "/wiki/x"),
            ({"add_prefix": "/base"}, "/x?y", "/base/x?y"),
            ({"path": "/a", "strip_prefix": "/a", "add_prefix": "/b/c"}, "/a/x/", "/b/c/x/"),
            ({}, "/x/../y?z", "/x/../y?z"),
        ],
    )
    def test_the_beginning_of_the_path_is_exchanged(self, keys: dict[str, str], target: str, expected: str) -> None:
        async def ask() -> None:
            async with relay_world(route(**keys)) as world:
                head = await seen(world, request(target))
                assert head.startswith(f"GET {expected} HTTP/1.1\r\n".encode())
                assert world.lines()[-1]["path"] == target.partition("?")[0], "the log has what the client asked for"

        run(ask())

    def test_the_app_learns_of_the_prefix_it_does_not_see(self) -> None:
        async def ask() -> None:
            keys = {"path": "/app", "strip_prefix": "/app"}
            async with relay_world(route(**keys)) as world:
                head = await seen(world, request("/app/x", "X-Forwarded-Prefix: /evil"))
                assert field(head, "x-forwarded-prefix") == ["/app"]
            async with relay_world('trusted_proxies = ["127.0.0.1/32"]\n' + route(**keys)) as world:
                head = await seen(world, request("/app/x", "X-Forwarded-Prefix: /outer/"))
                assert field(head, "x-forwarded-prefix") == ["/outer/app"]
            async with relay_world(route(add_prefix="/base")) as world:
                assert field(await seen(world, request("/x")), "x-forwarded-prefix") == []

        run(ask())

    def test_the_browsers_host_is_passed_on_unless_the_route_says_otherwise(self) -> None:
        async def ask() -> None:
            async with relay_world(route()) as world:
                head = await seen(world, request("/"))
                assert field(head, "host") == field(head, "x-forwarded-host") == ["apps.example.com"]
            async with relay_world(route(preserve_host=False)) as world:
                head = await seen(world, request("/"))
                assert field(head, "host") == [world.upstream.url.removeprefix("http://")]
                assert field(head, "x-forwarded-host") == ["apps.example.com"]

        run(ask())

    def test_each_server_gets_its_own_name(self) -> None:
        async def ask() -> None:
            async with (
                peer(answering()) as other,
                relay_world(route(upstream=["UPSTREAM", other.url], preserve_host=False)) as world,
            ):
                heads: list[bytes] = []

                async def note(reader: Any, writer: Any) -> None:
                    while True:
                        heads.append(await reader.readuntil(b"\r\n\r\n"))
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

                other.script = note
                for _ in range(4):
                    assert (await world.ask(request("/", "X-Other: Host: x")))[0] == 200
                assert {field(head, "host")[0] for head in heads} == {other.url.removeprefix("http://")}
                assert {field(head, "host")[0] for head in world.upstream.heads} == {
                    world.upstream.url.removeprefix("http://")
                }
                assert all(field(head, "x-other") == ["Host: x"] for head in heads)

        run(ask())


class TestTheWayBack:
    def test_redirects_and_cookies_are_for_browsers(self) -> None:
        async def ask() -> None:
            async with relay_world(route(path="/app", strip_prefix="/app")) as world:
                world.upstream.answering(
                    b"HTTP/1.1 302 Found\r\nLocation: %b/login\r\nContent-Location: /here\r\nRefresh: 5; url=/later\r\n"
                    b"Set-Cookie: id=1; Path=/; HttpOnly\r\nSet-Cookie: __Host-x=1; Path=/; Secure\r\nLink: </style.css>\r\n"
                    b"Content-Length: 0\r\n\r\n" % world.upstream.url.encode()
                )
                _, head, _ = await world.ask(request("/app/x"))
                assert field(head, "location") == ["https://apps.example.com/app/login"]
                assert field(head, "content-location") == ["/app/here"]
                assert field(head, "refresh") == ["5; url=/app/later"]
                assert field(head, "set-cookie") == ["id=1; Path=/app; HttpOnly", "__Host-x=1; Path=/; Secure"]
                assert field(head, "link") == ["</style.css>"]

        run(ask())

    def test_without_a_prefix_only_names_that_browsers_cannot_use_are_changed(self) -> None:
        async def ask() -> None:
            async with relay_world(route()) as world:
                for location, expected in (
                    (world.upstream.url + "/x", "https://apps.example.com/x"),
                    ("http://apps.example.com/x", "https://apps.example.com/x"),
                    ("/x", "/x"),
                    ("https://elsewhere.example/x", "https://elsewhere.example/x"),
                ):
                    world.upstream.answering(
                        b"HTTP/1.1 301 Moved\r\nLocation: %b\r\nSet-Cookie: a=1; Path=/\r\nContent-Length: 0\r\n"
                        b"Connection: close\r\n\r\n" % location.encode(),
                        then_close=True,
                    )
                    _, head, _ = await world.ask(request("/"))
                    assert field(head, "location") == [expected]
                    assert field(head, "set-cookie") == ["a=1; Path=/"]

        run(ask())

    def test_interim_answers_pass_as_they_are(self) -> None:
        async def ask() -> None:
            async with relay_world(route(path="/app", strip_prefix="/app")) as world:
                world.upstream.answering(
                    b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
                )
                client = await world.connect()
                client.send(request("/app/"))
                status, head, _ = await client.response()
                assert (status, field(head, "link")) == (103, ["</style.css>"])
                assert (await client.response())[0] == 200

        run(ask())


NESTED = (
    route(path="/app", strip_prefix="/app")
    + route("admin", path="/app/admin", strip_prefix="/app", allow="signed-in")
    + route("other", path="/other", strip_prefix="/other", add_prefix="/public", upstream="http://127.0.0.1:9")
)


class TestTheGate:
    """The app behind must not be able to read a path in what it gets that was not judged."""

    @pytest.mark.parametrize(
        "target",
        [
            "/%61pp/x",  # is /app/x, and cannot be stripped byte for byte
            "/x/../app/y",
            "/app/..%2fadmin",
            "/app/x/..%2f..%2fadmin",
            "/app/%2e%2e/app/admin",
            "/app/x;/../admin",
            "/app//admin/x",
            "/app/%2fadmin",
            "/app/\\admin",
            "/app/./admin%2f..%2fx",
            "/app//evil/admin",
            "/other/../other/x/..%2f..%2fsecret",
            "/other/..%2fsecret",
            "/other/%252e%252e/secret",
            "/other/..\\secret",
        ],
    )
    def test_odd_paths_are_refused_or_judged_as_what_they_may_be(self, target: str) -> None:
        async def ask() -> None:
            async with relay_world(NESTED) as world:
                status, _, body = await world.ask(request(target))
                assert (status, json.loads(body)["reason"]) in ((400, "ambiguous_path"), (401, "not_signed_in"))
                assert world.upstream.heads == []

        run(ask())

    @pytest.mark.parametrize(
        ("target", "expected"),
        [("/app/a%2Fb", "/a%2Fb"), ("/app/x//y", "/x//y"), ("/app/%C3%A9", "/%C3%A9"), ("/app/a;v=1/b", "/a;v=1/b")],
    )
    def test_odd_paths_that_mean_nothing_else_pass(self, target: str, expected: str) -> None:
        async def ask() -> None:
            async with relay_world(NESTED) as world:
                assert (await seen(world, request(target))).startswith(f"GET {expected} ".encode())

        run(ask())

    def test_one_policy_for_everything_does_not_open_what_is_not_mapped(self, tmp_path: Path) -> None:
        table = RouteTable.from_settings(self.settings(tmp_path, route(add_prefix="/public")))
        assert table.match("apps.example.com", b"/x").route is not None
        assert table.match("apps.example.com", b"/..%2fsecret").ambiguous
        assert table.match("apps.example.com", b"/a%2fb").ambiguous is False

    @staticmethod
    def settings(folder: Path, text: str) -> Any:
        file = folder / "postern.toml"
        file.write_text(text.replace("UPSTREAM", "http://app:8080"))
        return load(file, {})

    def test_whatever_passes_can_be_read_only_as_what_was_judged(self, tmp_path: Path) -> None:
        table = RouteTable.from_settings(self.settings(tmp_path, NESTED))
        by_name = {route.name: route for route in table.routes}
        pieces = [
            "/app",
            "/admin",
            "/x",
            "/..",
            "/.",
            "//",
            "%2f",
            "%2e%2e",
            "\\",
            ";",
            "/other",
            "/public",
            "%5c",
            "%252e",
            "/secret",
        ]

        @hypothesis.settings(deadline=None)
        @given(st.lists(st.sampled_from(pieces), max_size=6))
        def hold(parts: list[str]) -> None:
            raw = "".join(["/app", *parts]).encode()
            match = table.match("apps.example.com", raw)
            if match.route is None or match.ambiguous or match.route.mapping is None:
                return
            for path in interpretations(match.route.mapping.up(raw)):
                under = f"{path}/".startswith(f"{match.route.mapping.add}/")
                assert under, "the app reads a path outside of what the route opens"
                if match.route is by_name["app"]:
                    assert not f"{path}/".startswith("/admin/"), "the app reads a path that only some may open"

        hold()
