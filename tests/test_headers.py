"""Header fields on their way through: no spelling, place or trick makes one of ours out of a client's."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import http1
from proxy.claims import Identity, Tokens
from proxy.errors import MalformedRequest
from proxy.forwarding import PSEUDONYM, Forwarding
from proxy.headers import (
    FAMILIES,
    HOP_BY_HOP,
    RouteHeaders,
    field_value,
    fold,
    forwards_left,
    identity_values,
    request_id_from,
)
from proxy.http1 import RequestHead, ResponseHead, read_request, read_response
from proxy.routes import RouteTable
from proxy.serve import route_headers
from proxy.settings import Settings, load

ADA = Identity(
    sub="k3sx9d8w2q1a",
    username="ada",
    name="Ada Lövelace",
    email="ada@example.com",
    roles=("ops", "staff"),
    organization_roles=("org1:admin",),
    discord_id="123456789012345678",
)
TOKENS = Tokens(id_token="id.token", access_token="access", access_expires_at=0.0)


def settings(**environ: str) -> Settings:
    return load(
        Path(os.devnull),
        {
            "POSTERN_PUBLIC_URL": "https://apps.example.com",
            "POSTERN_ROUTE__0__NAME": "app",
            "POSTERN_ROUTE__0__UPSTREAM": "http://app:8080",
            "LOGTO_ENDPOINT": "https://auth.example.com",
            "LOGTO_APP_ID": "app",
            "LOGTO_APP_SECRET": "secret",
            "POSTERN_IDENTITY__ASSERTION": "false",  # has tests of its own, and is another one each second
            **environ,
        },
    )


def headers(**environ: str) -> RouteHeaders:
    made = settings(**environ)
    return next(iter(route_headers(made, RouteTable.from_settings(made)).values()))


def request(*fields: bytes, line: bytes = b"GET /x?y HTTP/1.1", host: bytes = b"apps.example.com") -> RequestHead:
    found = read_request(b"\r\n".join([line, b"Host: " + host, *fields, b"", b""]))
    assert found is not None
    return found[0]


def response(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK", method: bytes = b"GET") -> ResponseHead:
    found = read_response(b"\r\n".join([line, *fields, b"", b""]), method)
    assert found is not None
    return found[0]


def up(
    head: RequestHead, *, fields: RouteHeaders | None = None, identity: bytes = b"", trusted: bool = False
) -> list[bytes]:
    """The lines of the head that goes upstream."""
    forwarding = Forwarding(settings(POSTERN_TRUSTED_PROXIES="127.0.0.1/32" if trusted else "").trusted_proxies)
    origin = forwarding.origin(head, forwarding.peer("127.0.0.1"), b"http")
    raw = (fields or headers()).to_upstream(head, origin, identity, b"id-1")
    assert raw.endswith(b"\r\n\r\n")
    found = read_request(raw)
    assert found is not None, "what goes upstream is a request"
    assert found[1] == len(raw)
    return raw[:-4].split(b"\r\n")


def down(head: ResponseHead, *, fields: RouteHeaders | None = None, **framing: Any) -> list[bytes]:
    """The lines of the head that goes to the client."""
    framing = {"chunked": False, "connection": b"", "date": b"now", "request_id": b"id-1", **framing}
    raw = (fields or headers(POSTERN_ROUTE__0__ALLOW="everyone")).to_client(head, **framing)
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].split(b"\r\n")


def named(lines: list[bytes], name: bytes) -> list[bytes]:
    return [line.partition(b": ")[2] for line in lines if line.lower().startswith(name.lower() + b":")]


class TestIdentity:
    def test_a_whole_person(self) -> None:
        assert headers().identity_block(ADA, None).decode() == (
            "X-Forwarded-User: k3sx9d8w2q1a\r\nX-Forwarded-Preferred-Username: ada\r\n"
            "X-Forwarded-Email: ada@example.com\r\nX-Forwarded-Name: Ada Lövelace\r\n"
            "X-Forwarded-Groups: ops,staff,org1:admin\r\nX-Forwarded-Discord-Id: 123456789012345678\r\n"
        )

    def test_an_absent_value_is_an_absent_field(self) -> None:
        assert headers().identity_block(Identity(sub="s1"), None) == b"X-Forwarded-User: s1\r\n"

    def test_nobody_has_no_fields(self) -> None:
        assert headers().identity_block(None, None) == b""

    def test_other_families(self) -> None:
        block = headers(POSTERN_IDENTITY__FAMILIES="remote,auth-request").identity_block(ADA, None)
        assert b"Remote-User: ada\r\n" in block
        assert b"X-Auth-Request-User: k3sx9d8w2q1a\r\n" in block
        assert b"X-Forwarded-User" not in block
        lone = headers(POSTERN_IDENTITY__FAMILIES="remote").identity_block(Identity(sub="s1"), None)
        assert lone == b"Remote-User: s1\r\n"

    def test_templates(self) -> None:
        fields = headers(
            POSTERN_ROUTE__0__HEADERS__SET="""{X-Who = "{username}", X-Mail = "{email}", Authorization = "Bearer {id_token}"}"""
        )
        assert fields.needs_tokens
        assert not headers().needs_tokens
        block = fields.identity_block(dataclasses.replace(ADA, email=None), TOKENS)
        assert b"X-Who: ada\r\n" in block
        assert b"X-Mail" not in block
        assert b"Authorization: Bearer id.token\r\n" in block

    @pytest.mark.parametrize(
        "value",
        ["", None, " admin", "admin ", "admin\t", "ad\x00min", "ad\rmin", "ad\nmin", "admin\r\nX-Forwarded-User: root",
         "ad\x7fmin", "ad\x85min", "ad\u2028min", "ad\ud800min"],
    )  # fmt: skip
    def test_a_value_that_cannot_stand_as_it_is_does_not_stand(self, value: str | None) -> None:
        """A cleaned one could be somebody else's."""
        assert field_value(value) is None
        assert identity_values(Identity(sub=value or ""))["sub"] is None

    @given(st.text(max_size=30))
    def test_no_value_breaks_a_line_or_changes(self, value: str) -> None:
        got = field_value(value)
        if got is not None:
            assert got.decode() == value
            assert len(got.splitlines()) <= 1
            assert got == got.strip()

    def test_a_role_with_a_comma_is_not_two_groups(self) -> None:
        person = Identity(sub="s1", roles=("a", "b,admin"), organization_roles=("o:c", "o:d,admin"))
        assert identity_values(person)["groups"] == b"a,o:c"
        assert identity_values(Identity(sub="s1", roles=("b,admin",)))["groups"] is None


OURS = [name for family in FAMILIES.values() for name in family.values()] + [
    "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Anything", "X-Forwarded-Access-Token",
    "X-Auth-Request-Redirect", "X-WEBAUTH-ROLE", "X-Postern-Assertion", "X-Postern-Anything", "Forwarded", "X-Real-IP",
    "X-Request-Id",
]  # fmt: skip


def spellings(name: str) -> set[str]:
    """Ways to write `name` that some server reads as `name`."""
    return {
        name.lower(),
        name.upper(),
        name.replace("-", "_"),
        name.replace("-", "_").upper(),
        name.replace("-", ".", 1),
        name.replace("-", "_", 1),
        name.swapcase(),
        name.replace("-", "~"),
    }


class TestClientsLies:
    @pytest.mark.parametrize("name", OURS)
    def test_a_name_of_ours_does_not_pass_in_any_spelling(self, name: str) -> None:
        lines = [f"{spelling}: evil".encode() for spelling in sorted(spellings(name))]
        assert not any(b"evil" in line for line in up(request(*lines)))

    @pytest.mark.parametrize("name", OURS)
    def test_naming_it_in_connection_does_not_take_ours_away(self, name: str) -> None:
        head = request(f"Connection: {name}, X-Forwarded-User, Host, Via".encode(), f"{name}: evil".encode())
        lines = up(head, identity=b"X-Forwarded-User: ada\r\n")
        assert named(lines, b"X-Forwarded-User") == [b"ada"]
        assert named(lines, b"X-Forwarded-For") == [b"127.0.0.1"]
        assert named(lines, b"X-Request-Id") == [b"id-1"]
        assert named(lines, b"Host") == [b"apps.example.com"]
        assert len(named(lines, b"Via")) == 1

    def test_what_a_route_sets_or_removes_is_taken_off_everywhere(self) -> None:
        made = settings(
            POSTERN_ROUTE__0__HEADERS__SET='{X-Webauth-User = "{username}"}',
            POSTERN_ROUTE__1__NAME="other",
            POSTERN_ROUTE__1__PATH="/other",
            POSTERN_ROUTE__1__UPSTREAM="http://other:8080",
            POSTERN_ROUTE__1__HEADERS__REMOVE="X-Debug",
        )
        routes = RouteTable.from_settings(made)
        first, second = (route_headers(made, routes)[route] for route in routes.routes)
        head = request(b"X_WEBAUTH_USER: root", b"x-webauth-user: root", b"X-Debug: 1", b"x_debug: 1")
        assert not named(up(head, fields=second), b"X-Webauth-User")
        assert not any(b"root" in line or b"debug" in line.lower() for line in up(head, fields=second))
        assert named(up(head, fields=first), b"X-Debug") == [b"1"]
        assert not any(b"root" in line for line in up(head, fields=first))

    def test_names_that_nobody_remembers_are_judged_all_the_same(self) -> None:
        """What is remembered of names is bounded, what is judged is not."""
        fields = headers()
        for number in range(3000):
            assert b"X-Name-%d: 1" % number in up(request(b"X-Name-%d: 1" % number), fields=fields)
        assert not any(b"evil" in line for line in up(request(b"x.forwarded.USER: evil"), fields=fields))
        assert len(fields._up) <= 1024

    def test_the_gateways_own_cookies_stay_here(self) -> None:
        lines = up(request(b"Cookie: a=1; __Host-postern=secret; b=2", b"Cookie: postern=secret"))
        assert named(lines, b"Cookie") == [b"a=1; b=2"]

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*OURS, "Accept", "X-Thing", "Content-Length", "Transfer-Encoding", "Cookie"]),
                st.text(st.sampled_from("-_.~"), min_size=1, max_size=1),
                st.booleans(),
            ),
            max_size=8,
        ),
        st.lists(st.sampled_from([*OURS, "Host", "Content-Length", "close", "X-Thing"]), max_size=4),
    )
    def test_each_of_ours_comes_from_us_alone(self, fields: list[tuple[str, str, bool]], options: list[str]) -> None:
        lines = [
            (name.replace("-", hyphen).upper() if upper else name.replace("-", hyphen)).encode() + b": evil"
            for name, hyphen, upper in fields
            if hyphen != "-" or name not in ("Content-Length", "Transfer-Encoding")
        ]
        lines.append(b"Connection: " + ", ".join(options).encode())
        sent = up(request(*lines), identity=b"X-Forwarded-User: ada\r\n")
        for line in sent[1:]:
            name, _, value = line.partition(b": ")
            assert value != b"evil" or fold(name) in (b"accept", b"x-thing", b"cookie"), line


class TestHopByHop:
    def test_they_end_here(self) -> None:
        fields = [
            b"%b: x" % name for name in sorted(HOP_BY_HOP - {b"content-length", b"transfer-encoding", b"connection"})
        ]
        lines = up(request(*fields, b"Connection: keep-alive, X-Foo, x-BAR", b"X-Foo: 1", b"X-Bar: 2", b"X-Baz: 3"))
        assert named(lines, b"X-Baz") == [b"3"]
        for name in (*HOP_BY_HOP, b"x-foo", b"x-bar"):
            assert not named(lines, name), name

    def test_a_cookie_can_be_named_away(self) -> None:
        assert not named(up(request(b"Connection: Cookie", b"Cookie: a=1")), b"Cookie")

    @pytest.mark.parametrize("name", [b"Content_Length", b"Transfer_Encoding", b"Keep_Alive", b"Proxy_Authorization"])
    def test_so_do_names_that_become_theirs_in_cgi(self, name: bytes) -> None:
        assert not any(b"evil" in line for line in up(request(name + b": evil")))

    def test_framing_is_our_own(self) -> None:
        lines = up(request(b"Content-Length: 5, 5", line=b"POST / HTTP/1.1"))
        assert named(lines, b"Content-Length") == [b"5"]
        lines = up(request(b"Transfer-Encoding: CHUNKED", b"Trailer: X-Sum", line=b"POST / HTTP/1.1"))
        assert named(lines, b"Transfer-Encoding") == [b"chunked"]
        assert named(lines, b"Trailer") == [b"X-Sum"]
        assert not named(up(request(b"Trailer: X-Sum")), b"Trailer")

    @pytest.mark.parametrize(
        ("fields", "options"),
        [
            ((b"Content-Length: 3",), [b"close"]),
            ((b"Transfer-Encoding: chunked",), [b"close"]),
            ((b"Transfer-Encoding: chunked", b"TE: trailers"), [b"close, TE"]),
            ((b"Content-Length: 3", b"Connection: Upgrade", b"Upgrade: tcp"), [b"Upgrade"]),
            ((b"Content-Length: 0",), []),
            ((), []),
        ],
    )
    def test_a_body_is_the_last_thing_on_its_connection(self, fields: tuple[bytes, ...], options: list[bytes]) -> None:
        assert named(up(request(*fields, line=b"POST / HTTP/1.1")), b"Connection") == options

    def test_credentials_for_a_proxy_are_not_for_the_app(self) -> None:
        lines = up(request(b"Proxy-Authorization: Basic eA==", b"Authorization: Basic eQ=="))
        assert not named(lines, b"Proxy-Authorization")
        assert named(lines, b"Authorization") == [b"Basic eQ=="]

    def test_an_upgrade_is_asked_for_anew(self) -> None:
        lines = up(request(b"Connection: keep-alive, upgrade", b"Upgrade: websocket"))
        assert named(lines, b"Connection") == [b"Upgrade"]
        assert named(lines, b"Upgrade") == [b"websocket"]

    @pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c", b"HTTP/2.0", b"TLS/1.2", b"TLS/1.0, HTTP/1.1"])
    def test_http_behind_an_upgrade_would_pass_by_the_gate(self, upgrade: bytes) -> None:
        fields = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABkAARAAAAA")
        lines = up(request(*fields))
        assert not named(lines, b"Upgrade")
        assert not named(lines, b"HTTP2-Settings")

    def test_trailers_are_welcome_where_the_client_says_so(self) -> None:
        lines = up(request(b"Connection: TE", b"TE: trailers, deflate"))
        assert named(lines, b"TE") == [b"trailers"]
        assert named(lines, b"Connection") == [b"TE"]
        assert not named(up(request(b"TE: deflate")), b"TE")
        assert not named(up(request(b"TE: trailers", line=b"GET / HTTP/1.0")), b"TE")

    def test_an_expectation_goes_on_where_there_is_something_to_expect(self) -> None:
        put = b"PUT / HTTP/1.1"
        assert named(up(request(b"Expect: 100-continue", b"Content-Length: 3", line=put)), b"Expect") == [
            b"100-continue"
        ]
        assert not named(up(request(b"Expect: 100-continue")), b"Expect")
        assert not named(up(request(b"Expect: 100-continue", b"Content-Length: 3", line=b"PUT / HTTP/1.0")), b"Expect")


class TestOnTheWay:
    def test_order_case_and_duplicates_survive(self) -> None:
        lines = up(request(b"x-B: 2", b"X-A: 1", b"x-b:  3 ", b"Accept: */*", b"X-Empty:"))
        assert [line for line in lines if line[:1] in b"xX" and not line.startswith(b"X-F")][:4] == [
            b"x-B: 2", b"X-A: 1", b"x-b: 3", b"X-Empty: ",
        ]  # fmt: skip

    def test_the_target_is_not_touched_and_the_version_is_ours(self) -> None:
        target = b"/%2e%2e/a;b=c//d?x=%00&&"
        assert up(request(line=b"GET " + target + b" HTTP/1.0"))[0] == b"GET " + target + b" HTTP/1.1"

    def test_via_tells_the_version_received(self) -> None:
        assert named(up(request(b"Via: 1.0 edge")), b"Via") == [b"1.0 edge", b"1.1 " + PSEUDONYM]
        assert named(up(request(line=b"GET / HTTP/1.0")), b"Via") == [b"1.0 " + PSEUDONYM]

    @pytest.mark.parametrize(
        "name", [b"traceparent", b"tracestate", b"If-None-Match", b"Range", b"Accept-Encoding", b"Origin"]
    )
    def test_what_is_between_client_and_app_passes(self, name: bytes) -> None:
        assert named(up(request(name + b": x")), name) == [b"x"]

    def test_what_describes_the_edge_passes_from_the_edge(self) -> None:
        head = request(b"X-Forwarded-Port: 443", b"X-Forwarded-Prefix: /app", b"X_Forwarded_Port: 1")
        assert not named(up(head), b"X-Forwarded-Port")
        lines = up(head, trusted=True)
        assert named(lines, b"X-Forwarded-Port") == [b"443"]
        assert named(lines, b"X-Forwarded-Prefix") == [b"/app"]
        assert not any(line.startswith(b"X_") for line in lines)

    def test_the_host_that_is_judged_is_the_host_that_is_forwarded(self) -> None:
        lines = up(request(b"X-Forwarded-Host: public.example.com", host=b"admin.example.com"), trusted=True)
        assert named(lines, b"Host") == [b"public.example.com"]
        assert named(lines, b"X-Forwarded-Host") == [b"public.example.com"]
        lines = up(request(b"X-Forwarded-Host: public.example.com", host=b"admin.example.com"))
        assert named(lines, b"Host") == [b"admin.example.com"]
        lines = up(request(line=b"GET http://target.example.com/x HTTP/1.1", host=b"admin.example.com"))
        assert named(lines, b"Host") == [b"target.example.com"]

    @pytest.mark.parametrize(
        ("line", "value", "left", "sent"),
        [
            (b"OPTIONS / HTTP/1.1", b"3", 3, b"2"),
            (b"OPTIONS / HTTP/1.1", b"0", 0, b"-1"),
            (b"OPTIONS / HTTP/1.1", b"x", None, b"x"),
            (b"OPTIONS / HTTP/1.1", b"1, 2", None, b"1, 2"),
            (b"GET / HTTP/1.1", b"0", None, b"0"),
        ],
    )
    def test_max_forwards(self, line: bytes, value: bytes, left: int | None, sent: bytes) -> None:
        head = request(b"Max-Forwards: " + value, line=line)
        assert forwards_left(head) == left
        if left != 0:
            assert named(up(head), b"Max-Forwards") == [sent]


REMEMBERED_LINES = [b"GET /a HTTP/1.1", b"GET /b?c HTTP/1.0", b"OPTIONS /a HTTP/1.1", b"POST http://other.example/x HTTP/1.1",
                    b"PUT /a HTTP/1.1"]  # fmt: skip
REMEMBERED_FIELDS = [b"Max-Forwards: 5", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close, X-Thing",
                     b"X-Thing: 1", b"X-Forwarded-Port: 1", b"Cookie: a=1; postern=x", b"Expect: 100-continue", b"TE: trailers",
                     b"Connection: Upgrade", b"Upgrade: websocket", b"X-Forwarded-For: 6.6.6.6", b"Via: 1.1 x"]  # fmt: skip


@given(
    st.lists(st.sampled_from(REMEMBERED_FIELDS), max_size=3, unique=True),
    st.lists(st.tuples(st.sampled_from(REMEMBERED_LINES), st.booleans(), st.integers(0, 1)), min_size=2, max_size=8),
)
def test_what_is_remembered_of_other_requests_changes_nothing(
    fields: list[bytes], requests: list[tuple[bytes, bool, int]]
) -> None:
    """The same header section comes with other methods, targets and versions, on other routes and from others."""
    routes = headers(), headers(POSTERN_ROUTE__0__HEADERS__REMOVE="X-Thing")

    def outcome(line: bytes, trusted: bool, route: int) -> list[bytes] | int:
        try:
            return up(request(*fields, line=line), fields=routes[route], trusted=trusted)
        except MalformedRequest as error:
            return error.status

    remembering = [outcome(*one) for one in requests]
    for one, with_others in zip(requests, remembering, strict=True):
        http1._remembered.clear()
        assert outcome(*one) == with_others


class TestAnswers:
    def test_an_answer_passes_as_it_is(self) -> None:
        head = response(
            b"Set-Cookie: a=1", b"Content-Length: 3", b"set-cookie: b=2; Path=/", b"WWW-Authenticate: Basic", b"Vary: x",
            line=b"HTTP/1.0 404 Nothing Here",
        )  # fmt: skip
        lines = down(head)
        assert lines[0] == b"HTTP/1.1 404 Nothing Here"
        assert named(lines, b"Set-Cookie") == [b"a=1", b"b=2; Path=/"]
        assert named(lines, b"Content-Length") == [b"3"]
        assert named(lines, b"WWW-Authenticate") == [b"Basic"]
        assert not named(lines, b"Via")

    def test_hop_by_hop_fields_end_here(self) -> None:
        names = sorted(HOP_BY_HOP - {b"content-length", b"transfer-encoding", b"connection"})
        lines = down(response(b"Connection: X-Foo, close", b"X-Foo: 1", *(b"%b: x" % name for name in names)))
        assert not named(lines, b"X-Foo")
        for name in names:
            assert not named(lines, name)
        assert not named(lines, b"Connection")

    def test_an_app_cannot_plant_a_session(self) -> None:
        names = [b"postern", b"__Host-postern", b"postern_attempt_1", b"__Secure-postern_attempt_x"]
        fields = [b"Set-Cookie: %b=evil; Path=/" % name for name in names]
        assert named(down(response(*fields, b"Set-Cookie: mine=1")), b"Set-Cookie") == [b"mine=1"]
        interim = headers().interim(response(*fields, b"Link: </a>", line=b"HTTP/1.1 103 Early Hints"))
        assert interim == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    def test_date_and_request_id_are_added_when_absent(self) -> None:
        lines = down(response())
        assert (named(lines, b"Date"), named(lines, b"X-Request-Id")) == ([b"now"], [b"id-1"])
        lines = down(response(b"Date: then", b"X-Request-ID: theirs"))
        assert (named(lines, b"Date"), named(lines, b"X-Request-Id")) == ([b"then"], [b"theirs"])

    def test_framing_is_our_own(self) -> None:
        lines = down(response(b"Transfer-Encoding: chunked", b"Trailer: X-Sum"), chunked=True, connection=b"close")
        assert named(lines, b"Transfer-Encoding") == [b"chunked"]
        assert named(lines, b"Trailer") == [b"X-Sum"]
        assert named(lines, b"Connection") == [b"close"]
        lines = down(response(b"Transfer-Encoding: chunked", b"Trailer: X-Sum"), connection=b"keep-alive")
        assert not named(lines, b"Transfer-Encoding")
        assert not named(lines, b"Trailer")
        assert named(lines, b"Connection") == [b"keep-alive"]
        assert named(down(response(b"Content-Length: 5, 5")), b"Content-Length") == [b"5"]

    @pytest.mark.parametrize(
        ("line", "method", "kept"),
        [
            (b"HTTP/1.1 200 OK", b"HEAD", [b"5"]),
            (b"HTTP/1.1 304 Not Modified", b"GET", [b"5"]),
            (b"HTTP/1.1 204 No Content", b"GET", []),
        ],
    )
    def test_lengths_without_bodies(self, line: bytes, method: bytes, kept: list[bytes]) -> None:
        assert named(down(response(b"Content-Length: 5", line=line, method=method)), b"Content-Length") == kept

    def test_an_app_may_ask_for_an_upgrade(self) -> None:
        head = response(b"Upgrade: websocket", b"Connection: Upgrade", line=b"HTTP/1.1 426 Upgrade Required")
        assert named(down(head, connection=b"close"), b"Connection") == [b"upgrade, close"]
        assert named(down(head), b"Upgrade") == [b"websocket"]
        assert named(down(head), b"Connection") == [b"upgrade"]
        other = response(b"Upgrade: h2c", b"Connection: Upgrade", line=b"HTTP/1.1 426 Upgrade Required")
        assert not named(down(other), b"Upgrade")
        assert not named(down(response(b"Upgrade: h2,h2c")), b"Upgrade")

    @pytest.mark.parametrize(
        ("fields", "added"),
        [
            ((b"Content-Type: text/html; charset=utf-8",), [b"private, no-store"]),
            ((b"Content-Type: image/png",), [b"private"]),
            ((), [b"private"]),
            ((b"Cache-Control: public, max-age=60",), [b"public, max-age=60"]),
            ((b"Expires: 0",), []),
        ],
    )
    def test_an_app_that_says_nothing_of_caching(self, fields: tuple[bytes, ...], added: list[bytes]) -> None:
        assert named(down(response(*fields), fields=headers()), b"Cache-Control") == added
        if not fields or not fields[0].startswith(b"Cache"):
            assert named(down(response(*fields)), b"Cache-Control") == []

    def test_switching(self) -> None:
        head = response(
            b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: x", line=b"HTTP/1.1 101 Go"
        )
        assert headers().switching(head, b"websocket") == (
            b"HTTP/1.1 101 Go\r\nSec-WebSocket-Accept: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )


def test_trailers_stay_what_cannot_be_taken_for_something_else() -> None:
    fields = [(b"X-Sum", b"1"), (b"grpc-status", b"0")]
    bad = [
        b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"X-Forwarded-User", b"x_forwarded_user",
        b"X-Postern-Assertion", b"Cookie", b"Set-Cookie", b"Authorization", b"Remote-User", b"Trailer", b"Expect",
        b"X-Request-Id", b"Max-Forwards", b"Content-Type", b"Location", b"Date", b"Via", b"X-Forwarded-Port",
    ]  # fmt: skip
    mixed = list(itertools.chain([(name, b"evil") for name in bad], fields))
    assert headers().trailers(mixed) == fields


@pytest.mark.parametrize(
    ("value", "trusted", "kept"),
    [
        (b"abc-123", True, b"abc-123"),
        (b"abc-123", False, None),
        (b"a" * 129, True, None),
        (b"a b", True, None),
        (b'a"b', True, None),
        (b"a, b", True, None),
        (b"\xe9", True, None),
    ],
)
def test_a_request_id_is_a_trusted_proxys_and_harmless(value: bytes, trusted: bool, kept: bytes | None) -> None:
    assert request_id_from(request(b"X-Request-Id: " + value), trusted=trusted) == kept


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "Ada L\u00f6velace".encode()),
        ("percent", b"Ada L%C3%B6velace"),
        ("rfc2047", b"=?UTF-8?B?QWRhIEzDtnZlbGFjZQ==?="),
    ],
)
def test_values_outside_ascii_are_written_as_the_settings_say(encoding: str, name: bytes) -> None:
    made = settings(
        POSTERN_IDENTITY__ENCODING=encoding, POSTERN_ROUTE__0__HEADERS__SET='{ X-Who = "{name}", X-None = "{email}" }'
    )
    table = RouteTable.from_settings(made)
    headers = route_headers(made, table)[table.routes[0]]
    block = headers.identity_block(dataclasses.replace(ADA, email=None), None)
    assert b"\r\nX-Forwarded-Name: %b\r\n" % name in block
    assert b"\r\nX-Who: %b\r\n" % name in block
    assert b"X-None" not in block
    assert b"X-Forwarded-Groups: ops,staff,org1:admin\r\n" in block
