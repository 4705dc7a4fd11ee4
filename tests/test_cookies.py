"""Cookie fields as browsers, Logto and attackers send them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import cookies
from proxy.settings import load

LOGTO = b'_logto={"appId":"3brou57d3pn17rx7ogxd1"}; _logto.sig=DSNpjuaG1zI77KbuMcaxBeu7-_o'
OWN = (b"postern", b"__Host-postern", b"postern_attempt_", b"__Secure-postern_attempt_")

FIND = [
    (b"postern=abc", [b"abc"]),
    (b"a=1; postern=abc; b=2", [b"abc"]),
    (b"a=1;postern=abc", [b"abc"]),
    (b"a=1;\t postern \t=\t abc \t; b=2", [b"abc"]),
    (LOGTO + b"; postern=abc", [b"abc"]),
    (b"postern=abc; " + LOGTO, [b"abc"]),
    (b"postern=first; postern=second", [b"first", b"second"]),
    (b"postern=", [b""]),
    (b'postern="abc"', [b'"abc"']),
    (b"postern=a=b=c", [b"a=b=c"]),
    (b"postern=abc;;;", [b"abc"]),
    (b'a="; postern=abc; b="', [b"abc"]),
    (b"", []),
    (b"postern", []),
    (b"POSTERN=abc", []),
    (b"xpostern=abc", []),
    (b"x postern=abc", []),
    (b"a=postern=abc", []),
    (b"a=1, postern=abc", []),
    (b"posternx=abc", []),
    (b"__Host-postern=abc", []),
    (b"post\x00ern=abc", []),
    (b"\xff\xfe=\x80; postern=\xe9", [b"\xe9"]),
]


@pytest.mark.parametrize(("header", "values"), FIND)
def test_find(header: bytes, values: list[bytes]) -> None:
    assert cookies.find_all(header, b"postern") == values
    assert cookies.find(header, b"postern") == (values[0] if values else None)


def test_names_are_taken_literally() -> None:
    assert cookies.find(b"aXb=1; a.b=2", b"a.b") == b"2"


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        ("", []),
        (b"a=1; b = 2 ;c", [("a", "1"), ("b", "2")]),
        (
            b'_logto={"appId":"3b"}; _logto.sig=DS-_o; z=1',
            [("_logto", '{"appId":"3b"}'), ("_logto.sig", "DS-_o"), ("z", "1")],
        ),
        (b"a=1; a=2", [("a", "1"), ("a", "2")]),
        (b"=nameless; a==", [("", "nameless"), ("a", "=")]),
        (b"a=\xe9", [("a", "é")]),
    ],
)
def test_parse(header: bytes | str, pairs: list[tuple[str, str]]) -> None:
    assert cookies.parse(header) == pairs


STRIP = [
    (b"a=1; b=2", b"a=1; b=2"),
    (b"postern=x", None),
    (b"__Host-postern=x; postern=y", None),
    (b"postern=x; a=1", b"a=1"),
    (b"a=1; postern=x", b"a=1"),
    (b"a=1; postern=x; b=2", b"a=1; b=2"),
    (b"a=1;postern=x;b=2", b"a=1;b=2"),
    (b"postern=x; postern=y; a=1; __Host-postern=z", b"a=1"),
    (b"postern_attempt_aB3-_x=s; a=1", b"a=1"),
    (b"a=1; __Secure-postern_attempt_zz=s; postern_attempt_=t", b"a=1"),
    (b"postern_theme=dark; postern=x", b"postern_theme=dark"),
    (b"Postern=mine; xpostern=1", b"Postern=mine; xpostern=1"),
    (LOGTO + b"; postern=x", LOGTO),
    (b'a="; postern=x; b="', b'a="; b="'),
    (b"  a=1 ;\tb=\xff\x00 ; postern=x", b"a=1 ;\tb=\xff\x00 "),
    (b"a=1; \x0b\x0cpostern=x", b"a=1"),
    (b"a=1; postern", b"a=1"),
    (b"postern=x; ; ", None),
    (b"", b""),
]


@pytest.mark.parametrize(("header", "rest"), STRIP)
def test_strip(header: bytes, rest: bytes | None) -> None:
    assert cookies.strip(header, OWN) == rest


@pytest.mark.parametrize(
    ("cookie", "known"),
    [
        (b"postern=1; Path=/; HttpOnly", True),
        (b" postern =1", True),
        (b"postern", True),
        (b"postern_attempt_x=1", True),
        (b"postern_attempt", False),
        (b"postern_theme=1", False),
        (b"a=postern=1", False),
    ],
)
def test_is_own(cookie: bytes, known: bool) -> None:
    assert cookies.is_own(cookie, OWN) is known


def test_without_own_names_nothing_is_stripped() -> None:
    assert cookies.strip(b"postern=x", ()) == b"postern=x"


@pytest.mark.parametrize(
    ("changes", "session", "attempt"),
    [
        ({}, "__Host-postern", "__Secure-postern_attempt_"),
        ({"POSTERN_SESSION__COOKIE__DOMAIN": "example.com"}, "postern", "__Secure-postern_attempt_"),
        ({"POSTERN_PUBLIC_URL": "http://localhost:3000"}, "postern", "postern_attempt_"),
    ],
)
def test_the_gateways_own_cookies(changes: dict[str, str], session: str, attempt: str) -> None:
    environ = {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": "https://auth.example.com",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "s" * 32,
    }
    settings = load(None, environ | changes)
    assert cookies.session_name(settings) == session
    assert cookies.attempt_prefix(settings) == attempt
    assert cookies.own(settings) == OWN
    built = cookies.build(settings, session, "v", path="/p", max_age=5, same_site="lax")
    assert built.startswith(f"{session}=v; ")
    assert "; Path=/p; Max-Age=5; HttpOnly; SameSite=Lax" in built
    assert built.endswith("; Secure") is (changes.get("POSTERN_PUBLIC_URL") is None)
    assert cookies.is_own(built.encode(), cookies.own(settings))


PARTS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"postern=x", b" postern = y ", b"__Host-postern=z", b"postern_attempt_q=1", b"a=1", b" ", b'"']),
)


@given(st.lists(PARTS, max_size=8))
def test_what_is_stripped_is_not_found_and_the_rest_is_whole(parts: list[bytes]) -> None:
    header = b";".join(parts)
    rest = cookies.strip(header, OWN)
    before = cookies.parse(header)
    after = cookies.parse(rest or b"")
    assert after == [pair for pair in before if not _own(pair[0])]
    assert all(cookies.find(rest or b"", name) is None for name in OWN[:2])


@given(st.lists(PARTS, max_size=8))
def test_find_agrees_with_parse(parts: list[bytes]) -> None:
    header = b";".join(parts)
    expected = [value.encode("latin-1") for name, value in cookies.parse(header) if name == "postern"]
    assert cookies.find_all(header, b"postern") == expected


def _own(name: str) -> bool:
    stripped = name.encode("latin-1").strip()
    return stripped in OWN or stripped.startswith(OWN[2:])


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/", "/"),
        ("/grafana", "/grafana"),
        ("/a;b, c", "/a%3Bb,%20c"),
        ("/%C3%A4", "/%C3%A4"),
        ("/ä\r\nx", "/%C3%A4%0D%0Ax"),
    ],
)
def test_what_remembers_a_script_that_signed_somebody_out(path: str, written: str) -> None:
    line = cookies.leaving(path)
    assert line == f"postern_leaving=1; Path={written}; Max-Age=60; HttpOnly; SameSite=Lax"
    assert "Max-Age=0;" in cookies.leaving(path, seconds=0)


NAMES = frozenset((b"sid", b"old"))


def test_an_apps_cookie_is_of_the_session_in_which_it_was_set() -> None:
    *taken, mark = cookies.belonging([b"sid=1; Path=/", b"other=2"], NAMES, "session-1", "/app")
    assert taken == ["old=; Path=/; Max-Age=0", "old=; Path=/app; Max-Age=0"]
    sent = mark.partition(";")[0].encode() + b"; sid=1"
    assert cookies.strangers(sent, NAMES, "session-1") == frozenset()
    for header, session in ((sent, "session-2"), (sent, ""), (b"sid=1", "session-1"), (b"", "session-1")):
        assert cookies.strangers(header, NAMES, session) == NAMES
    assert "session-1" not in mark
    assert cookies.belonging([b"other=2", b"Sid=1"], NAMES, "session-1", "/app") == []


@pytest.mark.parametrize(
    ("header", "left"),
    [
        (b"a=1; sid=2; b=3", b"a=1; b=3"),
        (b"sid=2", None),
        (b"sid=2; old=3;", None),
        (b" sid =2;a=1", b"a=1"),
        (b'a="; sid=2; b="', b'a="; b="'),
        (b"sidx=1; xsid=2; SID=3", b"sidx=1; xsid=2; SID=3"),
        (b"", None),
    ],
)
def test_cookies_taken_out_by_name(header: bytes, left: bytes | None) -> None:
    assert cookies.without(header, NAMES) == left
