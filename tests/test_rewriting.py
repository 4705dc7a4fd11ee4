"""Prefixes exchanged on the way up, redirects and cookies put right on the way back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.paths import PLAIN, canonical
from proxy.rewriting import PLACES, PathMap, WayBack, authority

STRIP = PathMap("/app", "")
ADD = PathMap("", "/new")
BOTH = PathMap("/app", "/new/place")
HOST = b"apps.example.com"


class TestUp:
    @pytest.mark.parametrize(
        ("mapping", "target", "expected"),
        [
            (STRIP, b"/app", b"/"),
            (STRIP, b"/app/", b"/"),
            (STRIP, b"/app?q=1", b"/?q=1"),
            (STRIP, b"/app/x/y?a=/app/z&b=%2F", b"/x/y?a=/app/z&b=%2F"),
            (STRIP, b"/app/app/x", b"/app/x"),
            (STRIP, b"/app/%C3%A9%2f;v=1", b"/%C3%A9%2f;v=1"),
            (STRIP, b"/app/x?", b"/x?"),
            (ADD, b"/", b"/new/"),
            (ADD, b"/x?/y", b"/new/x?/y"),
            (BOTH, b"/app", b"/new/place"),
            (BOTH, b"/app/", b"/new/place/"),
            (BOTH, b"/app/x", b"/new/place/x"),
        ],
    )
    def test_only_the_beginning_is_exchanged(self, mapping: PathMap, target: bytes, expected: bytes) -> None:
        assert mapping.up(target) == expected

    @pytest.mark.parametrize("target", [b"/", b"/apple", b"/%61pp/x", b"/x/../app", b"//app", b"/APP/x", b"?/app/x"])
    def test_what_does_not_begin_so_is_never_sent(self, target: bytes) -> None:
        with pytest.raises(ValueError, match="does not begin"):
            STRIP.up(target)


class TestReadings:
    @pytest.mark.parametrize(
        ("mapping", "raw", "readable"),
        [
            (STRIP, b"/app/a%2Fb", {"/app/a%2Fb", "/app/a/b"}),
            (STRIP, b"/app/../x", {"/app/x", "/app/../x"}),  # for the app its root is the end of the way up
            (STRIP, b"/app//x/y", {"/app/x/y", "/app//x/y", "/app/y"}),  # a target `//x/y` may be taken for a URL
            (STRIP, b"/app/%2e%2e/app/admin", {"/app/app/admin"}),
        ],
    )
    def test_are_told_as_clients_would_write_them(self, mapping: PathMap, raw: bytes, readable: set[str]) -> None:
        found = mapping.readings(raw)
        assert found is not None
        assert readable <= set(found)

    @pytest.mark.parametrize(
        "raw",
        [
            b"/../secret",
            b"/%2e%2e/secret",
            b"/..%2fsecret",
            b"/x/../../secret",
            b"/..\\secret",
            b"/..;/secret",
            b"//../../x",
        ],
    )
    def test_a_way_out_of_what_is_added_is_no_way(self, raw: bytes) -> None:
        assert ADD.readings(raw) is None

    def test_a_path_that_cannot_be_stripped_has_none(self) -> None:
        assert STRIP.readings(b"/%61pp/x") is None

    def test_too_many_are_as_bad_as_none(self) -> None:
        assert STRIP.readings(b"/app/" + b"%2e%2e;x//\\" * 2000) is None

    @given(st.from_regex(PLAIN, fullmatch=True))
    @example(b"/")
    def test_a_plain_path_has_one_and_it_is_its_own(self, raw: bytes) -> None:
        whole = b"/app" + raw
        assert BOTH.readings(whole) == (canonical(whole),)

    @settings(deadline=None)
    @given(st.from_regex(rb"(?:/(?:\.\.|%2e%2e|\.|x|admin|app|new|place|;|%2f|\\))+/?", fullmatch=True))
    def test_whatever_the_app_makes_of_it_lies_where_clients_may_ask(self, raw: bytes) -> None:
        found = BOTH.readings(b"/app" + raw)
        assert found is None or all(f"{path}/".startswith("/app/") for path in found)


class TestDown:
    @pytest.mark.parametrize(
        ("mapping", "path", "expected"),
        [
            (STRIP, b"/", b"/app/"),
            (STRIP, b"/login", b"/app/login"),
            (STRIP, b"/app/login", b"/app/login"),  # this app has read X-Forwarded-Prefix
            (STRIP, b"/app", b"/app"),
            (STRIP, b"/apple", b"/app/apple"),
            (ADD, b"/new/x", b"/x"),
            (ADD, b"/new", b"/"),
            (ADD, b"/elsewhere", b"/elsewhere"),  # no client can ask for it here
            (BOTH, b"/new/place/x", b"/app/x"),
            (BOTH, b"/new/place", b"/app"),
            (BOTH, b"/new/other", b"/new/other"),
            (BOTH, b"/app/x", b"/app/x"),
        ],
    )
    def test_paths_of_the_app_as_clients_ask_for_them(self, mapping: PathMap, path: bytes, expected: bytes) -> None:
        assert mapping.down(path) == expected

    @given(st.sampled_from([STRIP, ADD, BOTH]), st.from_regex(rb"(?:/[a-z]{1,8}){0,4}/?", fullmatch=True))
    def test_up_and_down_again_is_where_one_began(self, mapping: PathMap, path: bytes) -> None:
        asked = mapping.strip.encode() + path or b"/"
        sent = mapping.up(asked)
        if not (not mapping.add and (sent + b"/").startswith(mapping.strip.encode() + b"/")):
            assert mapping.down(sent).rstrip(b"/") == asked.rstrip(b"/")

    @pytest.mark.parametrize(
        ("mapping", "path", "expected"),
        [
            (STRIP, b"/", b"/app"),
            (STRIP, b"/admin", b"/app/admin"),
            (STRIP, b"/app/admin", b"/app/admin"),
            (ADD, b"/", b"/"),
            (ADD, b"/new", b"/"),
            (ADD, b"/new/x", b"/x"),
            (ADD, b"/other", b"/other"),
            (BOTH, b"/", b"/app"),
            (BOTH, b"/new/", b"/app"),
            (BOTH, b"/new/place", b"/app"),
            (BOTH, b"/new/place/x", b"/app/x"),
            (BOTH, b"/new/other", b"/new/other"),
        ],
    )
    def test_cookies_go_where_the_app_gets_them(self, mapping: PathMap, path: bytes, expected: bytes) -> None:
        assert mapping.cookie_path(path) == expected


def way_back(*upstreams: str, scheme: str = "https", mapping: PathMap | None = None) -> WayBack:
    return WayBack(upstreams or ("http://app:8080",), scheme, mapping)


class TestLocation:
    @pytest.mark.parametrize(
        ("upstream", "location", "expected"),
        [
            ("http://app:8080", b"http://app:8080/login?next=http://app:8080/#x", b"https://apps.example.com/login?next=http://app:8080/#x"),
            ("http://app:8080", b"HTTP://APP:8080", b"https://apps.example.com/"),
            ("http://app:8080", b"http://app:8080?x", b"https://apps.example.com/?x"),
            ("http://app:8080", b"//app:8080/x", b"https://apps.example.com/x"),
            ("http://app", b"http://app/x", b"https://apps.example.com/x"),
            ("http://app", b"http://app:80/x", b"https://apps.example.com/x"),
            ("https://app", b"https://app:443/x", b"https://apps.example.com/x"),
            ("http://[::1]:8080", b"http://[::1]:8080/x", b"https://apps.example.com/x"),
            ("unix:/run/app.sock", b"http://localhost/x", b"https://apps.example.com/x"),
        ],
    )  # fmt: skip
    def test_the_upstreams_own_name_becomes_the_browsers(self, upstream: str, location: bytes, expected: bytes) -> None:
        assert way_back(upstream).location(location, HOST) == expected

    @pytest.mark.parametrize(
        "location",
        [
            b"/login",
            b"login",
            b"../x",
            b"?page=2",
            b"#top",
            b"",
            b"https://app:8080/x",  # another server than http://app:8080
            b"http://app/x",
            b"http://app:8081/x",
            b"http://app:8080.evil.example/x",
            b"http://user@app:8080/x",
            b"//evil.example/x",
            b"http://other.example.com/http://app:8080/",
            b"https://apps.example.com/x",
            b"//apps.example.com/x",
            b"mailto:a@app:8080",
            b"http:\\\\app:8080/x",
            b"android-app://app:8080/x",
            b"\xc3\xa9",
        ],
    )
    def test_anything_else_stays(self, location: bytes) -> None:
        assert way_back().location(location, HOST) == location

    @pytest.mark.parametrize(
        ("scheme", "host", "location", "expected"),
        [
            ("https", b"apps.example.com", b"http://apps.example.com/x", b"https://apps.example.com/x"),
            ("https", b"apps.example.com", b"http://apps.example.com:80/x", b"https://apps.example.com/x"),
            ("https", b"apps.example.com:8443", b"http://apps.example.com:8443/x", b"https://apps.example.com:8443/x"),
            ("https", b"Apps.Example.com", b"http://apps.example.com/x", b"https://Apps.Example.com/x"),
            ("http", b"apps.example.com", b"https://apps.example.com/x", b"https://apps.example.com/x"),
            ("https", b"apps.example.com", b"http://apps.example.com:8080/x", b"http://apps.example.com:8080/x"),
        ],
    )
    def test_an_app_that_does_not_know_of_tls(self, scheme: str, host: bytes, location: bytes, expected: bytes) -> None:
        assert way_back(scheme=scheme).location(location, host) == expected

    @pytest.mark.parametrize(
        ("location", "expected"),
        [
            (b"/login?next=/x#y", b"/app/login?next=/x#y"),
            (b"/", b"/app/"),
            (b"/app/x", b"/app/x"),
            (b"/#/route", b"/app/#/route"),
            (b"/?q", b"/app/?q"),
            (b"/\\evil.example", b"/app/\\evil.example"),
            (b"login", b"login"),
            (b"http://app:8080/login", b"https://apps.example.com/app/login"),
            (b"http://app:8080", b"https://apps.example.com/app/"),
            (b"https://apps.example.com/login", b"https://apps.example.com/app/login"),
            (b"https://apps.example.com/app/login", b"https://apps.example.com/app/login"),
            (b"http://apps.example.com/login", b"https://apps.example.com/app/login"),
            (b"//apps.example.com/login", b"https://apps.example.com/app/login"),
            (b"//evil.example/login", b"//evil.example/login"),
            (b"https://other.example.com/login", b"https://other.example.com/login"),
        ],
    )
    def test_a_stripped_prefix_comes_back(self, location: bytes, expected: bytes) -> None:
        assert way_back(mapping=STRIP).location(location, HOST) == expected

    @given(st.binary(max_size=60), st.sampled_from([None, STRIP, ADD, BOTH]))
    @example(b"//app:8080", None)
    def test_nothing_makes_it_lead_to_a_third_party(self, location: bytes, mapping: PathMap | None) -> None:
        out = way_back(mapping=mapping).location(location, HOST)
        assert out == location or out.startswith((b"https://apps.example.com/", b"/app/"))


class TestRefresh:
    @pytest.mark.parametrize(
        ("refresh", "expected"),
        [
            (b"5", b"5"),
            (b"5; url=/login", b"5; url=/app/login"),
            (b"0;URL='http://app:8080/x'", b"0;URL='https://apps.example.com/app/x'"),
            (b'0, url="/x"', b'0, url="/app/x"'),
            (b"0; url=https://elsewhere.example/", b"0; url=https://elsewhere.example/"),
            (b"soon; url=/x", b"soon; url=/x"),
        ],
    )
    def test_is_a_redirect_too(self, refresh: bytes, expected: bytes) -> None:
        assert way_back(mapping=STRIP).refresh(refresh, HOST) == expected


class TestSetCookie:
    @pytest.mark.parametrize(
        ("cookie", "expected"),
        [
            (b"a=1", b"a=1"),
            (b"a=1; Path=/; HttpOnly", b"a=1; Path=/app; HttpOnly"),
            (b"a=1;path = /x ;Secure", b"a=1;path =/app/x;Secure"),
            (b"a=1; Path=/app/x", b"a=1; Path=/app/x"),
            (b"a=1; Path=", b"a=1; Path="),
            (b"a=1; Path=x", b"a=1; Path=x"),
            (b"a=Path=/; Path=/", b"a=Path=/; Path=/app"),
            (b"__Host-a=1; Path=/; Secure", b"__Host-a=1; Path=/; Secure"),
            (b"__host-a=1; Path=/; Secure", b"__host-a=1; Path=/; Secure"),
            (b"__Secure-a=1; Path=/; Secure", b"__Secure-a=1; Path=/app; Secure"),
            (b"a=1; Domain=elsewhere.example", b"a=1; Domain=elsewhere.example"),
        ],
    )
    def test_goes_below_the_prefix(self, cookie: bytes, expected: bytes) -> None:
        assert way_back(mapping=STRIP).set_cookie(cookie, HOST) == expected

    @pytest.mark.parametrize(
        ("upstream", "host", "cookie", "expected"),
        [
            ("http://app.internal", HOST, b"a=1; Domain=app.internal; Path=/", b"a=1; Path=/"),
            ("http://app.internal", HOST, b"a=1; domain=.APP.internal", b"a=1"),
            ("http://app.internal", HOST, b"a=1; Domain=internal", b"a=1; Domain=internal"),
            ("http://app.internal", HOST, b"a=1; Domain=example.com", b"a=1; Domain=example.com"),
            ("http://example.com", HOST, b"a=1; Domain=example.com", b"a=1; Domain=example.com"),
            ("http://example.com", b"example.com:8080", b"a=1; Domain=example.com", b"a=1; Domain=example.com"),
            ("unix:/run/app.sock", HOST, b"a=1; Domain=localhost", b"a=1; Domain=localhost"),
            ("http://app.internal", HOST, b"a=domain; Path=/x", b"a=domain; Path=/x"),
            ("http://app.internal", HOST, b"a=1; Path=/x", b"a=1; Path=/x"),
        ],
    )
    def test_loses_a_domain_that_only_we_know(self, upstream: str, host: bytes, cookie: bytes, expected: bytes) -> None:
        assert way_back(upstream).set_cookie(cookie, host) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"location", b"/a", b"/app/a"),
        (b"Content-Location", b"http://app:8080/b", b"https://apps.example.com/app/b"),
        (b"REFRESH", b"1;url=/c", b"1;url=/app/c"),
    ],
)
def test_every_field_that_leads_somewhere(name: bytes, value: bytes, expected: bytes) -> None:
    assert name.lower() in PLACES
    assert way_back(mapping=STRIP).place(name, value, HOST) == expected


def test_the_own_name_of_an_upstream() -> None:
    assert authority("http://app:8080") == "app:8080"
    assert authority("https://app") == "app"
    assert authority("unix:/run/app.sock") == "localhost"
