"""Where things are: URLs, upstreams, listeners, hosts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.addresses import ENDPOINT, LISTEN, PUBLIC_URL, ROUTE_HOST, UPSTREAM, Listen, parse_url
from proxy.notation import Notation, NotationError


@pytest.mark.parametrize(
    ("notation", "written", "expected"),
    [
        (PUBLIC_URL, "https://Apps.Example.com/", "https://apps.example.com"),
        (PUBLIC_URL, "HTTP://localhost:80", "http://localhost"),
        (PUBLIC_URL, "http://localhost:443", "http://localhost:443"),
        (PUBLIC_URL, "https://[2001:DB8:0::1]:8443", "https://[2001:db8::1]:8443"),
        (ENDPOINT, "https://example.com/logto/", "https://example.com/logto"),
        (ENDPOINT, "http://logto:3001", "http://logto:3001"),
        (UPSTREAM, "http://my_app:8080/", "http://my_app:8080"),
        (UPSTREAM, "unix:/run/app.sock", "unix:/run/app.sock"),
        (UPSTREAM, "unix:///run/app.sock", "unix:/run/app.sock"),
        (LISTEN, "0.0.0.0:3000", Listen("0.0.0.0", 3000)),
        (LISTEN, "LocalHost:0", Listen("localhost", 0)),
        (LISTEN, "[::]:80", Listen("::", 80)),
        (LISTEN, "unix:/run/p.sock", Listen(path="/run/p.sock")),
        (ROUTE_HOST, "*.Example.com", "*.example.com"),
        (ROUTE_HOST, "[0:0::1]", "[::1]"),
        (ROUTE_HOST, "localhost", "localhost"),
    ],
)
def test_what_is_written_is_read(notation: Notation, written: Any, expected: Any) -> None:
    assert notation.read(written) == expected


@pytest.mark.parametrize(
    ("notation", "written", "message"),
    [
        (PUBLIC_URL, "ftp://a", "is not an http or https URL"),
        (PUBLIC_URL, "https:/a", "is not an http or https URL"),
        (PUBLIC_URL, "https://", "has no valid host and port"),
        (PUBLIC_URL, "https://:80", "has no valid host and port"),
        (PUBLIC_URL, "https://a:", "has no valid host and port"),
        (PUBLIC_URL, "https://a:b", "has no valid host and port"),
        (PUBLIC_URL, "https://-a", "has no valid host and port"),
        (PUBLIC_URL, "https://a..b", "has no valid host and port"),
        (PUBLIC_URL, "https://b\u00fccher.example", "has no valid host and port"),
        (PUBLIC_URL, "https://a:0", "port 0 is out of range"),
        (PUBLIC_URL, "https://[::g]", "has no valid host and port"),
        (PUBLIC_URL, "https://[1::2::3]", '"[1::2::3]" is not an IPv6 address'),
        (PUBLIC_URL, "https://a b", "holds a space, a backslash or a control character"),
        (PUBLIC_URL, "https://a\\b", "holds a space, a backslash or a control character"),
        (PUBLIC_URL, "https://u:p@a", "holds a user name or password"),
        (PUBLIC_URL, "https://a/?x", "has a query or fragment"),
        (PUBLIC_URL, "https://a#x", "has a query or fragment"),
        (PUBLIC_URL, "https://a/x", 'has a path, "/x"'),
        (ENDPOINT, "https://a/oidc/", "is below /oidc"),
        (ENDPOINT, "https://a/oidc/token", "is below /oidc"),
        (UPSTREAM, "http://a/b", 'has a path, "/b"'),
        (UPSTREAM, "ws://a", "is not an http or https URL"),
        (UPSTREAM, "unix:a", '"unix:a" has no absolute path'),
        (UPSTREAM, "unix://a/b", '"unix://a/b" has no absolute path'),
        (UPSTREAM, "unix:/a\0", '"unix:/a\N{REPLACEMENT CHARACTER}" has no absolute path'),
        (UPSTREAM, "unix:/" + "a" * 107, "is too long for a unix socket"),
        (LISTEN, "3000", '"3000" is not an address to listen on'),
        (LISTEN, "::1:3000", '"::1:3000" is not an address to listen on'),
        (LISTEN, "a:70000", "port 70000 is out of range"),
        (LISTEN, "[::1]", '"[::1]" is not an address to listen on'),
        (ROUTE_HOST, "a:80", '"a:80" is not a host'),
        (ROUTE_HOST, "*", '"*" is not a host'),
        (ROUTE_HOST, "*.*.a", '"*.*.a" is not a host'),
        (ROUTE_HOST, "a.", '"a." is not a host'),
        (ROUTE_HOST, "[1]", '"[1]" is not an IPv6 address'),
    ],
)
def test_what_is_written_wrong_is_refused(notation: Notation, written: Any, message: str) -> None:
    with pytest.raises(NotationError) as caught:
        notation.read(written)
    assert str(caught.value) == message


@pytest.mark.parametrize("written", ["127.0.0.1:3000", "[::1]:3000", "unix:/run/p.sock", "localhost:0"])
def test_a_listener_is_written_as_it_is_read(written: str) -> None:
    assert str(LISTEN.read(written)) == written


@given(st.text(st.sampled_from("htps:/[]@.?#\\ 0a%-_\u00e9"), max_size=20).map("https://".__add__) | st.text())
def test_a_url_is_taken_apart_or_refused(text: str) -> None:
    try:
        url = parse_url(text)
    except NotationError as error:
        assert str(error)  # noqa: PT017 -- either outcome is right
    else:
        assert parse_url(url.origin + url.path) == url
        assert "@" not in url.host
