"""Verdicts: what they say of themselves, and which requests a sign-in page makes sense for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.claims import Identity
from proxy.errors import UpstreamProblem
from proxy.http1 import RequestHead, read_request
from proxy.session import Session
from proxy.verdict import Kind, Verdict, bad_request, is_navigation, signed_out, upstream_failed


def request(*fields: bytes) -> RequestHead:
    found = read_request(b"\r\n".join([b"GET /x HTTP/1.1\r\nHost: apps.example.com", *fields, b"", b""]))
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        (b"GET", {b"sec-fetch-mode": b"navigate"}, True),
        (b"HEAD", {b"sec-fetch-mode": b"navigate", b"accept": b"*/*"}, True),
        (b"GET", {b"sec-fetch-mode": b"no-cors", b"accept": b"text/html"}, False),
        (b"GET", {b"sec-fetch-mode": b"cors", b"accept": b"text/html"}, False),
        (b"GET", {b"sec-fetch-mode": b"navigate", b"sec-purpose": b"prefetch;prerender"}, False),
        (b"GET", {b"accept": b"text/html", b"purpose": b"prefetch"}, False),
        (b"GET", {b"accept": b"application/xhtml+xml, text/html;q=0.9"}, True),
        (b"GET", {b"accept": b"text/html", b"x-requested-with": b"XMLHttpRequest"}, False),
        (b"GET", {b"accept": b"*/*"}, False),
        (b"GET", {}, False),
        (b"POST", {b"sec-fetch-mode": b"navigate", b"accept": b"text/html"}, False),
    ],
)
def test_navigations(method: bytes, fields: dict[bytes, bytes], expected: bool) -> None:
    assert is_navigation(method, fields) is expected


def test_verdicts_without_the_gate() -> None:
    assert bad_request(431, "too large").reason == "bad_request"
    assert upstream_failed(UpstreamProblem.RESET, None, None).status == 502
    assert (signed_out(request(b"Sec-Fetch-Mode: navigate"), None).kind, signed_out(request(), None).status) == (
        Kind.SIGN_IN,
        401,
    )
    assert repr(bad_request(431, "too large")) == "Verdict(BAD_REQUEST, route=None, reason='bad_request')"


def test_what_the_app_is_told_of_groups() -> None:
    session = Session("id", Identity(sub="ada", roles=("staff",)), None, 0, 0, 9, 0, "", "")
    assert Verdict(Kind.PASS).identity is None
    assert Verdict(Kind.PASS, session=session).identity is session.identity
    told = Verdict(Kind.PASS, session=session, groups=("mods",)).identity
    assert told == replace(session.identity, guild_groups=("mods",))
    assert told is not None
    assert told.groups == ("staff", "mods")
