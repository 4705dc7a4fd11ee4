"""Return paths: everything that has ever led people to a copy of a sign-in page, and what must still work."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.redirects import LONGEST, ReturnPaths

HOME = "https://apps.example.com/"
OURS = ReturnPaths("https://apps.example.com", {"wiki.example.com", "::1"}.__contains__)

HOSTILE: list[str | None] = [
    None, "", " ", "foo", "../x", "./x", "?x", "#x", "//evil.example", "///evil.example", "////evil.example",
    "//evil.example/..", "//apps.example.com", "//", "/\\evil.example", "\\\\evil.example", "\\/evil.example",
    "/\\/evil.example", "/x\\..\\..\\evil.example", "/\t/evil.example", "/\n/evil.example", "/\r\n/evil.example",
    "\t//evil.example", " //evil.example", "/x\r\nSet-Cookie: a=b", "/ /evil.example", "/x y", "/x\x00", "/x\x7f",
    "/\u00e9", "/\uff0fevil.example", "/\u2044evil.example", "/\u3002evil", "/\u202e", "https://evil.example",
    "http://evil.example/", "https://evil.example/apps.example.com", "https://evil.example?apps.example.com",
    "https://evil.example#apps.example.com", "https://apps.example.com.evil.example/",
    "https://apps.example.comevil.example/", "https://evilapps.example.com/", "https://xapps.example.com/",
    "https://example.com/", "https://sub.apps.example.com/", "https://apps.example.com@evil.example/",
    "https://user:pw@apps.example.com/", "https://@apps.example.com/", "https://apps.example.com:pw@evil.example/",
    "https://evil.example\\@apps.example.com/", "https://apps.example.com\\.evil.example/",
    "https://apps.example.com\\@evil.example", "https:\\\\apps.example.com\\", "https:/\\evil.example",
    "https:/apps.example.com/x", "https:apps.example.com/x", "https:///apps.example.com/x",
    "https:////evil.example", "https://", "https:///", "https://:443/", "http://apps.example.com/",
    "https://apps.example.com:8443/", "https://apps.example.com:80/", "https://apps.example.com:443443/",
    "https://apps.example.com:/x", "https://apps.example.com:0443x/", "https://apps.example.com:-1/",
    "https://wiki.example.com:8080/", "https://apps%2eexample.com/", "https://apps.example.com%2f@evil.example/",
    "https://apps.example.com%00.evil.example/", "https://apps.example.com\t.evil.example/",
    "https://apps.example.com\uff0fevil.example/", "https://\u24d0pps.example.com/",
    "https://apps.example.com;evil.example/", "https://apps.example.com,evil.example/",
    "https://[apps.example.com]/", "https://[::1", "https://[::2]/", "https://::1/", "https://2130706433/",
    "javascript:alert(1)", "JavaScript://apps.example.com/%0aalert(1)", "data:text/html,x", "vbscript:x",
    "file:///etc/passwd", "ftp://apps.example.com/", "blob:https://apps.example.com/x",
    "view-source:https://apps.example.com/", "ws://apps.example.com/", "//apps.example.com:443@evil.example",
    "/" + "a" * LONGEST, "https://apps.example.com/" + "a" * LONGEST, "/.postern/sign-in", "/.postern/sign-out",
    "/.postern/callback?code=x", "/.postern/signed-out", "/.postern",
    "/.postern/sign-in?return_to=/.postern/sign-in", "https://apps.example.com/.postern/sign-out",
    "https://wiki.example.com/.postern/me", "/%2epostern/sign-out", "/x/../.postern/sign-out",
    "/.postern/../.postern/sign-out", "/x/..%2f.postern/sign-out", "/.postern%2fsign-out", "/.postern;x/sign-out",
    "/./.postern/sign-out", "//.postern/sign-out", "/.postern//sign-out", "/.postern#x",
    "/.postern/%2e%2e/.postern/",
]  # fmt: skip


@pytest.mark.parametrize("return_to", HOSTILE)
def test_what_is_not_ours_leads_home(return_to: str | None) -> None:
    assert OURS.safe(return_to) == HOME == OURS.home


FRIENDLY: list[tuple[str, str]] = [
    ("/", HOME),
    ("/x/y?a=b&c=%2F%2f+%20#top", HOME + "x/y?a=b&c=%2F%2f+%20#top"),
    ("/x?next=https://evil.example/", HOME + "x?next=https://evil.example/"),
    ("/x?a=\"<>'", HOME + "x?a=\"<>'"),
    ("/x//y", HOME + "x//y"),
    ("/.//evil.example", HOME + ".//evil.example"),
    ("/%5cevil.example", HOME + "%5cevil.example"),
    ("/%09/evil.example", HOME + "%09/evil.example"),
    ("/@evil.example", HOME + "@evil.example"),
    ("/.posternx/sign-in", HOME + ".posternx/sign-in"),
    ("/.postern/", HOME + ".postern/"),
    ("/.postern/?x", HOME + ".postern/?x"),
    ("/x/.postern/sign-in", HOME + "x/.postern/sign-in"),
    ("https://apps.example.com", HOME),
    ("https://apps.example.com/x", HOME + "x"),
    ("https://apps.example.com?x=1", HOME + "?x=1"),
    ("https://apps.example.com#x", HOME + "#x"),
    ("HTTPS://Apps.Example.com:443/X", HOME + "X"),
    ("https://apps.example.com./x", HOME + "x"),
    ("https://wiki.example.com/x?q", "https://wiki.example.com/x?q"),
    ("https://WIKI.example.com.:443/x", "https://wiki.example.com/x"),
    ("https://[::1]/x", "https://[::1]/x"),
    ("/" + "a" * (LONGEST - 1), HOME + "a" * (LONGEST - 1)),
]


@pytest.mark.parametrize(("return_to", "expected"), FRIENDLY)
def test_what_is_ours_is_kept_to_the_byte(return_to: str, expected: str) -> None:
    assert OURS.safe(return_to) == expected


def test_a_port_of_our_own_is_kept() -> None:
    local = ReturnPaths("http://localhost:3000", {"wiki.localhost", "::1"}.__contains__, prefix="/gate")
    assert local.safe("/x") == "http://localhost:3000/x"
    assert local.safe("http://localhost:3000/x") == "http://localhost:3000/x"
    assert local.safe("http://wiki.localhost:3000/x") == "http://wiki.localhost:3000/x"
    assert local.safe("http://[::1]:3000/x") == "http://[::1]:3000/x"
    assert local.safe("http://localhost/x") == local.home
    assert local.safe("http://localhost:3001/x") == local.home
    assert local.safe("https://localhost:3000/x") == local.home
    assert local.safe("/gate/sign-in") == local.home
    assert local.safe("/.postern/sign-in") == "http://localhost:3000/.postern/sign-in"


def test_a_public_url_by_address() -> None:
    by_address = ReturnPaths("http://[::1]:3000", lambda _: False)
    assert by_address.safe("http://[::1]:3000/x") == "http://[::1]:3000/x"
    assert by_address.safe("http://[::2]:3000/x") == by_address.home


PIECES = st.sampled_from([
    "/", "\\", "//", ":", "@", ".", "..", "?", "#", "%2f", "%5c", "\t", "\n", " ", "https:", "http:", "javascript:",
    "apps.example.com", "evil.example", ":443", "[::1]", "x", ".postern", "sign-in", "\uff0f", ";", "&",
])  # fmt: skip


@given(st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=30))
def test_every_result_is_a_url_of_ours_for_every_parser(return_to: str) -> None:
    """Read as a browser reads it: white space stripped, backslashes turned, and not as Python does."""
    result = OURS.safe(return_to)
    assert result.isascii()
    assert result.isprintable()
    as_browsers = re.sub(r"[\t\n\r]", "", result).strip().replace("\\", "/")
    assert as_browsers == result
    found = re.match(r"https://(apps\.example\.com|wiki\.example\.com|\[::1\])/", result)
    assert found
    assert urlsplit(result).hostname == found[1].strip("[]")
    assert OURS.safe(result) == result
