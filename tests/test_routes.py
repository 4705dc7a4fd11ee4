"""Routes: which one takes a request, and when a path is too dangerous to pass."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.claims import Audience
from proxy.routes import Match, Route, RouteTable, interpretations, normalise_host
from proxy.settings import RouteSettings, load

Spec = tuple[str | None, str] | tuple[str | None, str, Any]


def table(*specs: Spec) -> RouteTable:
    """A table of (host, path, allow); each route is called by its number."""
    routes = []
    for index, spec in enumerate(specs):
        raw = {"name": f"r{index}", "host": spec[0], "path": spec[1], "upstream": "http://app:1"}
        if len(spec) == 3:
            raw["allow"] = spec[2]
        routes.append(Route.from_settings(index, RouteSettings.model_validate(raw)))
    return RouteTable(routes)


ADMIN = [{"roles": ["admin"]}]
PRECEDENCE = table(
    (None, "/"),
    (None, "/deep/er"),
    (None, "/deep"),
    ("*.example.com", "/"),
    ("*.a.example.com", "/only"),
    ("x.a.example.com", "/api"),
    ("x.a.example.com", "/"),
    ("exact.example.com", "/some"),
    ("[::1]", "/"),
)


@pytest.mark.parametrize(
    ("host", "path", "index"),
    [
        ("other.org", b"/", 0),
        ("other.org", b"/x/y", 0),
        ("other.org", b"/deep", 2),
        ("other.org", b"/deep/", 2),
        ("other.org", b"/deep/er", 1),
        ("other.org", b"/deep/er/x", 1),
        ("other.org", b"/deeper", 0),
        ("other.org", b"/deep/era", 2),
        ("", b"/", 0),
        ("example.com", b"/", 0),  # a wildcard does not cover the domain itself
        ("notexample.com", b"/", 0),
        ("b.example.com", b"/deep", 3),  # a host outweighs a longer path
        ("c.b.example.com", b"/", 3),
        ("a.example.com", b"/only", 3),
        ("y.a.example.com", b"/only/x", 4),
        ("y.a.example.com", b"/", 3),  # the longer wildcard has no route for this path
        ("x.a.example.com", b"/only", 6),
        ("x.a.example.com", b"/api/v1", 5),
        ("x.a.example.com", b"/apis", 6),
        ("X.A.Example.COM:8443", b"/api", 5),
        ("x.a.example.com.", b"/api", 5),
        ("x.a.example.com.:443", b"/api", 5),
        ("exact.example.com", b"/some", 7),
        ("exact.example.com", b"/other", 3),
        ("[::1]:3000", b"/", 8),
        ("::1", b"/", 8),
        ("\u212aelvin.example.com", b"/", 3),
    ],
)
def test_hosts_go_before_paths_and_the_longest_wins(host: str, path: bytes, index: int) -> None:
    route = PRECEDENCE.match(host, path).route
    assert route is not None
    assert route.index == index


def test_no_route_is_no_match() -> None:
    routes = table(("a.example.com", "/x"))
    assert routes.match("a.example.com", b"/y") == Match(None, "/y")
    assert routes.match("b.example.com", b"/x").route is None
    assert routes.match("a.example.com", b"/x/..%2fy").ambiguous
    assert routes.match("a.example.com", b"/%78").route is routes.routes[0]


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("Example.COM", "example.com"),
        ("example.com:80", "example.com"),
        ("example.com.", "example.com"),
        ("example.com..", "example.com."),
        ("[::1]:80", "::1"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", ""),
        (":80", ""),
        ("\u212aelvin", "\u212aelvin"),
        ("a:b:c", "a:b:c"),
        ("[", ""),
    ],
)
def test_hosts_are_normalised(value: str, host: str) -> None:
    assert normalise_host(value) == host


def test_hosts_with_a_route_of_their_own_are_known() -> None:
    assert PRECEDENCE.knows("Exact.example.com:443")
    assert PRECEDENCE.knows("any.example.com")
    assert PRECEDENCE.knows("[::1]")
    assert not PRECEDENCE.knows("example.com")
    assert not PRECEDENCE.knows("example.com.evil.org")
    assert not PRECEDENCE.knows("other.org")


MIXED = table((None, "/", "everyone"), (None, "/admin", ADMIN), (None, "/api"), (None, "/office", ADMIN))

AMBIGUOUS = [
    b"/x/..%2fadmin", b"/x%2f..%2fadmin", b"/%2fadmin", b"/x/..%5cadmin", b"/x\\..\\admin", b"/\\admin",
    b"/x/..;/admin", b"/admin;x", b"/admin;/x", b"/;/admin", b"/admin%00", b"/admin%00x", b"/ad%00min", b"/ad%09min",
    b"/ad%0d%0amin", b"//admin", b"//x/admin", b"/x/%252e%252e/admin", b"/%2561dmin", b"/x/%25252e./admin",
    b"/x/%c0%ae%c0%ae/admin", b"/x/..%c0%afadmin", b"/%u0061dmin", b"/x/..%uff0fadmin", b"/x/..%ef%bc%8fadmin",
    b"/x/%ef%bc%8e./admin", b"/%ef%bd%81dmin", b"/admin.", b"/admin%20", b"/admin%2e", b"/x/.. /admin", b"/admin%3fx",
    b"/admin%23x", b"/x#/../admin", b"/admin%3b", b"/admin%5c", b"/x/../admin", b"/x/%2e%2e/admin", b"/admin/../x",
    b"/admin/%2e%2e/x", b"/admin//..//x", b"/admin/..;/x", b"/api/..%2fx", b"/api/../admin", b"/api;/../admin",
    b"/admin%2f", b"/%61dmin", b"/api%2f..%2fadmin", b"/x/\xc0\xae\xc0\xae/admin", b"/api/%2e%2e%2f%61dmin",
    b"/admin%252f", b"/ADMIN", b"/Admin/x", b"/%41dmin/x", b"/x/%2e%2e/Admin", b"/API", b"/x/..%2fAPI",
]  # fmt: skip
PASSING = [
    b"/", b"/x", b"/x%20y", b"/caf%C3%A9", b"/x/../y", b"/x/..%2fy", b"/x//y", b"/x;v=1", b"/admin", b"/admin/a%2fb",
    b"/admin/./x", b"/admin/x/../y", b"/admin//x", b"/admin/x;y", b"/api/http:%2f%2fother%2fadmin", b"/x/%zz",
    b"/x/%", b"/x\xff", b"/x?/../admin", b"/x?p=%2fadmin", b"/x/%E2%82%AC", b"/administrator%20", b"/*", b"*",
    b"/x|y", b"/x/.%20hidden",
]  # fmt: skip


@pytest.mark.parametrize("raw", sorted(set(AMBIGUOUS) - {b"/%61dmin"}))
def test_a_path_that_could_be_read_under_other_rules_is_ambiguous(raw: bytes) -> None:
    match = MIXED.match("a.example.com", raw)
    assert match.ambiguous
    assert match.route is not None
    assert match.other is None or match.other.policy != match.route.policy


@pytest.mark.parametrize("raw", PASSING)
def test_a_path_that_stays_within_its_rules_passes(raw: bytes) -> None:
    match = MIXED.match("a.example.com", raw)
    assert match.route is not None
    assert not match.ambiguous


def test_letter_case_counts_where_it_can_only_cost() -> None:
    """`/ADMIN` is `/admin` to some servers; but nobody gets more by `/PUBLIC`, and apps that tell two apart are left to it."""
    routes = table((None, "/", ADMIN), (None, "/public", "everyone"), (None, "/Wiki", "everyone"), (None, "/wiki"))
    for raw, index in ((b"/PUBLIC/x", 0), (b"/Public", 0), (b"/Wiki/x", 2), (b"/wiki/x", 3), (b"/public", 1)):
        match = routes.match("h", raw)
        assert match.route is not None
        assert (match.route.index, match.ambiguous) == (index, False), raw
    assert MIXED.match("h", b"/ADMIN").other is MIXED.routes[1]
    assert table((None, "/a"), (None, "/b", ADMIN)).match("h", b"/B").route is None


def test_an_escaped_letter_is_judged_as_the_letter() -> None:
    """`/%61dmin` is `/admin` by RFC 3986. An app that does not decode at all sees what it calls another path, so: refused."""
    match = MIXED.match("a.example.com", b"/%61dmin")
    assert match.route is not None
    assert (match.route.index, match.path, match.ambiguous) == (1, "/admin", True)


@pytest.mark.parametrize(
    "raw", [b"/caf%C3%A9/x", b"/caf%c3%a9", b"/caf\xc3\xa9/x", b"/my%20files", b"/my%20files/a%20b"]
)
def test_what_has_to_be_escaped_is_not_ambiguous_for_it(raw: bytes) -> None:
    routes = table((None, "/"), (None, "/café", ADMIN), (None, "/my files", "everyone"))
    match = routes.match("h", raw)
    assert match.route is not None
    assert (match.route.path != "/", match.ambiguous) == (True, False)
    assert routes.match("h", b"/caf%25C3%25A9").ambiguous


def test_the_same_rules_in_another_order_are_the_same() -> None:
    rules = [{"roles": ["a"]}, {"users": ["u", "v"]}]
    routes = table((None, "/a", rules), (None, "/b", [{"users": ["v", "u"]}, {"roles": ["a"]}]), (None, "/"))
    match = routes.match("h", b"/a/..%2fb")
    assert match.route is routes.routes[0]
    assert not match.ambiguous
    assert routes.match("h", b"/a/..%2fc").ambiguous


def test_a_path_that_could_lead_out_of_every_route_is_ambiguous() -> None:
    """Only /public is to be had. What the app has elsewhere is nobody's, however the path is written."""
    routes = table((None, "/public", "everyone"))
    match = routes.match("h", b"/public/..%2fsecret")
    assert (match.ambiguous, match.other) == (True, None)
    assert not routes.match("h", b"/public/a%2fb").ambiguous


@pytest.mark.parametrize(
    ("raw", "ambiguous"),
    [
        (b"/app/settings", False),
        (b"/app/other", False),
        (b"/app/%73ettings", True),
        (b"/app/x%2f..%2fsettings", True),
        (b"/app//settings", True),
        (b"/app/%2e%2e/app/settings", True),
        (b"/app/x%2fy", False),  # whatever that is, the same rules apply
        (b"/app/caf%C3%A9/x", False),
        (b"/app/caf%c3%a9", False),
        (b"/app/%2553ettings", True),
        (b"/app/Setting%53", True),  # an app may not care about case
        (b"/app/%73ome", False),
    ],
)
def test_a_path_that_could_be_read_under_other_rules_of_its_own_route_is_ambiguous(raw: bytes, ambiguous: bool) -> None:
    rules = [{"paths": ["/app/settings"], "roles": ["admin"]}, {"paths": ["/app/caf\u00e9"]}, {"roles": ["user"]}]
    assert table((None, "/", rules)).match("h", raw).ambiguous is ambiguous
    assert table((None, "/app", rules), (None, "/", rules)).match("h", raw).ambiguous is ambiguous


def test_one_policy_everywhere_needs_no_reading() -> None:
    routes = table((None, "/"), (None, "/a"), (None, "/b"))
    match = routes.match("h", b"/a/" + b"%2f..;//%5c" * 500)
    assert not match.ambiguous
    assert match.route is routes.routes[1]


def test_what_cannot_be_read_to_the_end_is_ambiguous() -> None:
    match = MIXED.match("h", b"/x/" + b"y%2f;/%5c%00" * 900)
    assert match.ambiguous
    assert match.route is MIXED.routes[0]


def test_matches_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.routes._REMEMBERED", 8)
    routes = table((None, "/"), ("*.example.com", "/"))
    first = routes.match("h", b"/same")
    assert routes.match("h", b"/same") is first
    for number in range(50):
        routes.match(f"h{number}.example.com", b"/%d" % number)
        assert len(routes._matches) <= 8
        assert len(routes._hosts) <= 8
    long = b"/" + b"a" * 600
    assert routes.match("h", long) is not routes.match("h", long)
    routes.match("a" * 600, b"/")
    assert all(len(host) + len(path) <= 512 for host, path in routes._matches)
    assert all(len(host) <= 512 for host in routes._hosts)


def test_a_route_is_compiled_from_its_settings() -> None:
    raw = {
        "name": "a",
        "upstream": ["http://a:1", "http://b:1"],
        "headers": {"set": {"X-Team": "{claims.team}"}, "remove": ["X_Debug"]},
    }
    route = Route.from_settings(3, RouteSettings.model_validate(raw))
    assert (route.name, route.host, route.path, route.upstreams, route.index) == (
        "a", None, "/", ("http://a:1", "http://b:1"), 3,
    )  # fmt: skip
    assert [(name, template.source) for name, template in route.header_set] == [("X-Team", "{claims.team}")]
    assert route.header_remove == {"x-debug"}
    assert route.policy.any_user


def test_what_an_app_is_told_of_an_organization_is_the_same_where_it_is_open(tmp_path: Path) -> None:
    file = tmp_path / "postern.toml"
    file.write_text(
        """
        public_url = "https://apps.example.com"
        logto = { endpoint = "https://auth.example.com", app_id = "a", app_secret = "s" }
        [[route]]
        name = "app"
        upstream = "http://app:1"
        organization = "acme"
        open = ["/open"]
        headers.set = { X-A = "{access_token:https://api}", X-B = "{organization_token}" }
        """
    )
    routes = RouteTable.from_settings(load(file, {})).routes
    told = [[it for _, template in route.header_set for it in template.audiences] for route in routes]
    assert told == [[Audience("https://api", "acme"), Audience(None, "acme")]] * 2


def test_a_table_is_made_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "postern.toml"
    file.write_text(
        """
        public_url = "https://apps.example.com"
        logto = { endpoint = "https://auth.example.com", app_id = "a", app_secret = "s" }
        route = [{ name = "one", upstream = "http://one:1" }, { name = "two", path = "/2", upstream = "http://two:1" }]
        """
    )
    routes = RouteTable.from_settings(load(file, {}))
    assert [(route.index, route.name) for route in routes.routes] == [(0, "one"), (1, "two")]
    assert routes.match("apps.example.com", b"/2").route is routes.routes[1]


# --- properties: what a careless server behind could make of a path, written anew and differently ---------------------


def nginx(path: str) -> str:
    return re.sub("/+", "/", posixpath.normpath(decoded(path)))


def decoded(path: str) -> str:
    return unquote_to_bytes(path.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def tomcat(path: str) -> str:
    cut = "/".join(segment.split(";")[0] for segment in path.split("/"))
    return posixpath.normpath(decoded(cut))


def decodes_then_cuts(path: str) -> str:
    return posixpath.normpath("/".join(segment.split(";")[0] for segment in decoded(path).split("/")))


def iis(path: str) -> str:
    text = re.sub("%u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), path)
    return posixpath.normpath(decoded(text).replace("\\", "/"))


def c_program(path: str) -> str:
    return decoded(path).split("\0")[0]


def twice(path: str) -> str:
    return posixpath.normpath(decoded(decoded(path)))


def python_urlsplit(path: str) -> str:
    return urlsplit(decoded(path)).path


def undecoded(path: str) -> str:
    return posixpath.normpath(path)


def latin(path: str) -> str:
    raw = unquote_to_bytes(path.encode("utf-8", "surrogateescape"))
    return raw.replace(b"\xc0\xaf", b"/").replace(b"\xc0\xae", b".").decode("latin-1")


def caseless(path: str) -> str:
    """Express, IIS, and files on Windows."""
    return path.lower()


SERVERS: tuple[Callable[[str], str], ...] = (
    nginx, decoded, tomcat, decodes_then_cuts, iis, c_program, twice, python_urlsplit, undecoded, latin, caseless,
)  # fmt: skip
SEGMENTS = st.sampled_from(["/a", "/b", "/a/c", "/"])
POLICIES = st.sampled_from(["everyone", "signed-in", ADMIN, [{"roles": ["a"]}]])
TABLES = st.lists(st.tuples(st.none(), SEGMENTS, POLICIES), min_size=1, max_size=4, unique_by=lambda spec: spec[1])
TRICKS = st.sampled_from([
    "/", "a", "b", "c", "..", ".", "%2e", "%2f", "%2F", "%5c", "\\", ";", ";x=1", "%3b", "%00", "%252e", "%252f",
    "%25", "%c0%af", "%c0%ae", "//", "%61", "%2561", "%u002e", "?", "#", "%3f", "%09", "%20", "é", "%e9", "A", "B",
])  # fmt: skip
PATHS = st.lists(TRICKS, max_size=9).map(lambda pieces: "/" + "".join(pieces))


def plainly(routes: Sequence[Route], path: str) -> Route | None:
    """The rule of the contract, in the plainest words: the longest path that covers."""
    covering = [route for route in routes if (path + "/").startswith(route.path.rstrip("/") + "/")]
    return max(covering, key=lambda route: len(route.path), default=None)


@settings(max_examples=400)
@given(TABLES, PATHS, st.lists(st.sampled_from(SERVERS), min_size=1, max_size=3))
def test_no_server_reads_a_passing_path_under_other_rules(
    specs: list[Any], path: str, servers: list[Callable[[str], str]]
) -> None:
    routes = table(*specs)
    match = routes.match("h", path.encode())
    if match.route is None or match.ambiguous:
        return
    seen = path.partition("?")[0]
    for server in servers:  # one behind the other
        seen = server(seen) or "/"
        seen = seen if seen.startswith("/") else "/" + seen
        landed = plainly(routes.routes, seen)
        assert landed is not None, f"{seen!r} is not to be had"
        harmless = caseless in servers and landed.policy.anonymous
        assert harmless or landed.policy == match.route.policy, f"read as {seen!r}"


@settings(max_examples=200)
@given(TABLES, PATHS)
def test_matching_is_total_and_the_fast_way_agrees_with_the_slow(specs: list[Any], path: str) -> None:
    routes = table(*specs)
    raw = path.encode()
    match = routes.match("h", raw)
    assert match.path == interpretations(raw)[0]
    assert match.route is plainly(routes.routes, match.path)
    assert routes.match("h", raw) is match
    if len(interpretations(raw)) == 1 and path == path.lower():
        assert not match.ambiguous


@given(st.text(max_size=20), st.binary(max_size=30))
def test_any_host_and_any_bytes_get_an_answer(host: str, raw: bytes) -> None:
    match = PRECEDENCE.match(host, raw)
    assert match.route is not None
    assert match.path.startswith("/")
