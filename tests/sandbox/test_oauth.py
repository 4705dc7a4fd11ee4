"""The wording on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from proxy.sandbox.oauth import CookieSigner, OidcError, basic_credentials, redirect, single, with_query

BASE64 = {"plain": "aWQ6c2VjcmV0", "encoded": "aSUzQWQ6cyUyQmVj", "plus": "aWQ6YStj"}


def request_with(cookie: str) -> Request:
    return Request({"type": "http", "headers": [(b"cookie", cookie.encode())]})


def test_a_challenge_is_bare_or_says_why() -> None:
    bare = OidcError("invalid_token", "d", status=401, challenge="Bearer", bare=True).response("i")
    full = OidcError("invalid_token", "d", status=401, challenge="Bearer").response("i")
    assert bare.headers["www-authenticate"] == 'Bearer realm="i"'
    assert full.headers["www-authenticate"] == 'Bearer realm="i", error="invalid_token", error_description="d"'
    assert "www-authenticate" not in OidcError("invalid_grant").response("i").headers


@pytest.mark.parametrize(
    ("uri", "fragment", "expected"),
    [
        ("http://a/b", False, "http://a/b?x=1+2&y=%26"),
        ("http://a/b?c=d", False, "http://a/b?c=d&x=1+2&y=%26"),
        ("http://a/b?c=d", True, "http://a/b?c=d#x=1+2&y=%26"),
    ],
)
def test_parameters_are_appended(uri: str, expected: str, *, fragment: bool) -> None:
    assert with_query(uri, [("x", "1 2"), ("y", "&")], fragment=fragment) == expected


def test_a_redirect_says_where_in_text_that_is_safe() -> None:
    answer = redirect('/x?a="<b>')
    assert (answer.status_code, answer.headers["location"]) == (303, '/x?a="<b>')
    assert b"<b>" not in bytes(answer.body)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("Bearer abc", None),
        ("Basic aWQ6c2VjcmV0", ("id", "secret")),
        ("basic aSUzQWQ6cyUyQmVj", ("i:d", "s+ec")),
        ("Basic aWQ6YStj", ("id", "a c")),
        ("Basic aWQ6", ("id", "")),
    ],
)
def test_basic_credentials_are_form_encoded(header: str, expected: tuple[str, str] | None) -> None:
    assert basic_credentials(header) == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "resource"]), st.text(max_size=3))))
def test_only_resource_may_repeat(pairs: list[tuple[str, str]]) -> None:
    names = [name for name, _ in pairs if name != "resource"]
    if len(names) == len(set(names)):
        assert single(pairs) == {name: value for name, value in pairs if name != "resource"}
    else:
        with pytest.raises(OidcError):
            single(pairs)


def test_a_signed_cookie_comes_back_and_a_changed_one_does_not() -> None:
    signer, answer = CookieSigner(), Response()
    signer.set(answer, "_logto", '{"appId":"x"}', http_only=False)
    value, signature = (line.split(";")[0] for line in answer.headers.getlist("set-cookie"))
    assert signer.get(request_with(f"{value}; {signature}"), "_logto") == '{"appId":"x"}'
    assert signer.get(request_with(f"{value}x; {signature}"), "_logto") is None
    assert signer.get(request_with(value), "_logto") is None
    assert signer.get(request_with(signature), "_logto") is None
    assert CookieSigner().get(request_with(f"{value}; {signature}"), "_logto") is None


def test_cookie_attributes() -> None:
    signer, answer = CookieSigner(), Response()
    signer.set(answer, "_session", "v", expires=0, secure=True, path="/p")
    (line, companion) = answer.headers.getlist("set-cookie")
    assert line == "_session=v; path=/p; expires=Thu, 01 Jan 1970 00:00:00 GMT; samesite=lax; secure; httponly"
    assert companion.startswith("_session.sig=")
    assert "key" not in repr(signer)
