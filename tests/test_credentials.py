"""What counts as a credential of ours, and what is left to the app."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials import APP_PASSWORD, AUTHORIZATION, Credential, Programs, Scheme, hidden

TOKENS = Programs("api", frozenset({"https://api.example.com"}))
PASSWORDS = Programs("dav", app_passwords=True)
BOTH = Programs("both", frozenset({"https://api.example.com"}), app_passwords=True)
PASSWORD = APP_PASSWORD + "abc123"


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


def presented(programs: Programs, value: bytes) -> tuple[Scheme, str] | None:
    found = programs.presented({AUTHORIZATION: value})
    return None if found is None else (found.scheme, found.value)


@pytest.mark.parametrize(
    ("value", "tokens", "passwords", "both"),
    [
        (b"Bearer abc.def.ghi", (Scheme.BEARER, "abc.def.ghi"), None, (Scheme.BEARER, "abc.def.ghi")),
        (b"bearer   abc==", (Scheme.BEARER, "abc=="), None, (Scheme.BEARER, "abc==")),
        (b"BEARER abc", (Scheme.BEARER, "abc"), None, (Scheme.BEARER, "abc")),
        (b"Bearer", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer ", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer a b", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer a, Bearer b", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer a=b", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer \xe9", (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (b"Bearer " + b"a" * 20_000, (Scheme.BEARER, ""), None, (Scheme.BEARER, "")),
        (
            b"Bearer " + PASSWORD.encode(),
            (Scheme.BEARER, PASSWORD),
            (Scheme.PASSWORD, PASSWORD),
            (Scheme.PASSWORD, PASSWORD),
        ),
        (basic("ada:" + PASSWORD), None, (Scheme.PASSWORD, PASSWORD), (Scheme.PASSWORD, PASSWORD)),
        (basic(":" + PASSWORD), None, (Scheme.PASSWORD, PASSWORD), (Scheme.PASSWORD, PASSWORD)),
        (basic("ada:" + PASSWORD + ":x"), None, (Scheme.PASSWORD, PASSWORD + ":x"), (Scheme.PASSWORD, PASSWORD + ":x")),
        (basic("ada:secret"), None, None, None),
        (basic(PASSWORD), None, None, None),
        (b"Basic !!!", None, None, None),
        (b"Basic", None, None, None),
        (b"Basic " + b"a" * 20_000, None, None, None),
        (b"Digest username=ada", None, None, None),
        (b"Bearerabc", None, None, None),
        (b"Bearer " + PASSWORD.encode() + b" x", (Scheme.BEARER, ""), (Scheme.PASSWORD, ""), (Scheme.PASSWORD, "")),
        (b"Digest a=b, Bearer " + PASSWORD.encode(), (Scheme.BEARER, ""), (Scheme.PASSWORD, ""), (Scheme.PASSWORD, "")),
        (basic("ada:" + PASSWORD) + b", Digest a=b", None, (Scheme.PASSWORD, ""), (Scheme.PASSWORD, "")),
        (basic("ada:secret") + b", " + basic("ada:" + PASSWORD), None, (Scheme.PASSWORD, ""), (Scheme.PASSWORD, "")),
        (b'Digest username="ada", realm="x", uri="/a,b"', None, None, None),
        (b",", None, None, None),
        (b"", None, None, None),
        (b"\x00", None, None, None),
    ],
)
def test_what_is_ours(
    value: bytes,
    tokens: tuple[Scheme, str] | None,
    passwords: tuple[Scheme, str] | None,
    both: tuple[Scheme, str] | None,
) -> None:
    assert presented(TOKENS, value) == tokens
    assert presented(PASSWORDS, value) == passwords
    assert presented(BOTH, value) == both
    assert presented(Programs("none"), value) is None


def test_nothing_at_all() -> None:
    assert BOTH.presented({}) is None
    assert BOTH.presented({b"cookie": b"Bearer abc"}) is None


@given(st.binary(max_size=200))
def test_no_field_breaks_it_and_what_is_read_is_plain(value: bytes) -> None:
    found = BOTH.presented({AUTHORIZATION: value})
    assert found is None or found.value.isascii() or found.scheme is Scheme.PASSWORD


@given(st.text(alphabet="abcXYZ019-._~+/", min_size=1, max_size=50), st.sampled_from(["Bearer", "bearer", "bEaReR"]))
def test_a_token_arrives_as_it_was_sent(token: str, word: str) -> None:
    assert presented(TOKENS, f"{word} {token}".encode()) == (Scheme.BEARER, token)


PASSED_ON = Programs("seen", frozenset({"https://api.example.com"}), passed_on=True)


@pytest.mark.parametrize(
    ("programs", "anywhere", "value", "shown"),
    [
        (None, False, basic(f"u:{PASSWORD}"), True),
        (None, True, basic(f"u:{PASSWORD}"), False),
        (None, True, b"Bearer " + PASSWORD.encode(), False),
        (None, True, basic("u:the app's own"), True),
        (None, True, b"Bearer the.apps.own", True),
        (None, True, b"Digest x", True),
        (TOKENS, False, basic(f"u:{PASSWORD}"), True),
        (TOKENS, True, basic(f"u:{PASSWORD}"), False),
        (TOKENS, True, b"Bearer a.b.c", False),
        (TOKENS, True, basic("u:the app's own"), True),
        (PASSWORDS, True, b"Bearer the.apps.own", True),
        (PASSED_ON, True, basic(f"u:{PASSWORD}"), True),
    ],
)
def test_what_an_app_is_shown(programs: Programs | None, anywhere: bool, value: bytes, shown: bool) -> None:
    taken_off = hidden("route", programs, anywhere=anywhere)
    kept = taken_off is None or taken_off.passed_on or taken_off.presented({AUTHORIZATION: value}) is None
    assert kept is shown


def test_no_repr_shows_it() -> None:
    credential = BOTH.presented({AUTHORIZATION: b"Bearer abc.def.ghi"})
    assert isinstance(credential, Credential)
    assert "abc" not in repr(credential)


@pytest.mark.parametrize(
    ("programs", "error", "by_browser", "expected"),
    [
        (TOKENS, "", False, 'Bearer realm="postern"'),
        (TOKENS, "", True, 'Bearer realm="postern"'),
        (
            TOKENS,
            "invalid_token",
            False,
            'Bearer realm="postern", error="invalid_token", error_description="it has expired"',
        ),
        (PASSWORDS, "", False, 'Basic realm="postern", charset="UTF-8"'),
        (PASSWORDS, "invalid_token", False, 'Basic realm="postern", charset="UTF-8"'),
        (PASSWORDS, "", True, ""),
        (BOTH, "", False, 'Bearer realm="postern", Basic realm="postern", charset="UTF-8"'),
        (BOTH, "", True, 'Bearer realm="postern"'),
        (Programs("none"), "", False, ""),
    ],
)
def test_the_challenge(programs: Programs, error: str, *, by_browser: bool, expected: str) -> None:
    assert programs.challenge(error, "it has expired" if error else "", by_browser=by_browser) == expected
