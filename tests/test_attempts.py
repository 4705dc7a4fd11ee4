"""Attempt cookies: theirs alone, for ten minutes, never too many."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.attempts import ATTEMPT_SECONDS, COOKIE_BYTES, Attempt, Attempts
from proxy.sealing import KeyRing
from proxy.settings import Settings, load

RING = KeyRing([b"k" * 32])
SESSION = '{"redirectUri":"https://apps.example.com/.postern/callback","codeVerifier":"v","state":"s"}'


def settings(**changes: str) -> Settings:
    environ = {
        "POSTERN_PUBLIC_URL": "https://apps.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": "https://auth.example.com",
        "LOGTO_APP_ID": "app",
        "LOGTO_APP_SECRET": "s" * 32,
    }
    return load(None, environ | {f"POSTERN_{key}": value for key, value in changes.items()})


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
ATTEMPTS = Attempts(settings(), RING, clock=lambda: CLOCK.now)


def attempt(
    state: str = "state", return_to: str = "https://apps.example.com/a?b=c", at: float = 1_000_000.0
) -> Attempt:
    return Attempt(state, SESSION, "nonce", return_to, at)


def cookie(set_cookie: str) -> tuple[str, str]:
    name, _, value = set_cookie.partition(";")[0].partition("=")
    return name, value


def test_an_attempt_comes_back() -> None:
    name, value = cookie(ATTEMPTS.keep(attempt()))
    assert ATTEMPTS.find("state", {"other": "x", name: value}) == attempt()
    assert "state" not in value
    assert "nonce" not in repr(attempt())


@pytest.mark.parametrize(
    ("changes", "begins", "ends"),
    [
        ({}, "__Secure-postern_attempt_", "; Path=/.postern/callback; Max-Age=600; HttpOnly; SameSite=Lax; Secure"),
        (
            {"PUBLIC_URL": "http://localhost:3000", "PREFIX": "/gate"},
            "postern_attempt_",
            "; Path=/gate/callback; Max-Age=600; HttpOnly; SameSite=Lax",
        ),
        (
            {"SESSION__COOKIE__DOMAIN": "example.com", "SESSION__COOKIE__SAME_SITE": "strict"},
            "__Secure-postern_attempt_",
            "; Domain=example.com; Path=/.postern/callback; Max-Age=600; HttpOnly; SameSite=Lax; Secure",
        ),
    ],
)
def test_the_cookie(changes: dict[str, str], begins: str, ends: str) -> None:
    attempts = Attempts(settings(**changes), RING, clock=CLOCK)
    kept, cleared = attempts.keep(attempt()), attempts.clear("state")
    assert kept.startswith(begins)
    assert kept.endswith(ends)
    assert cleared == f"{cookie(kept)[0]}=" + ends.replace("=600", "=0")


@given(st.text(max_size=40), st.text(max_size=40))
def test_states_do_not_meet(one: str, two: str) -> None:
    name, value = cookie(ATTEMPTS.keep(attempt(one.encode("utf-8", "replace").decode())))
    assert len(name) == len("__Secure-postern_attempt_") + 16
    assert (ATTEMPTS.name(one) == ATTEMPTS.name(two)) == (one == two)
    if one != two:
        assert ATTEMPTS.find(two, {name: value, ATTEMPTS.name(two): value}) is None


@given(st.text(min_size=1, max_size=30), st.integers(0, 300))
def test_the_cookie_is_never_too_large(path: str, times: int) -> None:
    return_to = "https://apps.example.com/" + path.encode("utf-8", "replace").decode() * times
    name, value = cookie(ATTEMPTS.keep(attempt(return_to=return_to)))
    assert len(name) + len(value) <= COOKIE_BYTES
    found = ATTEMPTS.find("state", {name: value})
    assert found is not None
    assert found.return_to in (return_to, "https://apps.example.com/")
    if len(json.dumps(return_to, ensure_ascii=False).encode()) < 1000:
        assert found.return_to == return_to


def test_ten_minutes() -> None:
    clock = Clock()
    attempts = Attempts(settings(), RING, clock=clock)
    name, value = cookie(attempts.keep(attempt(at=clock.now)))
    for age, good in ((-600.0, True), (0.0, True), (ATTEMPT_SECONDS - 1.0, True), (float(ATTEMPT_SECONDS), False)):
        clock.now = 1_000_000.0 + age
        assert (attempts.find("state", {name: value}) is not None) is good
        assert (attempts.stale({name: value}) == []) is good


NAME, VALUE = cookie(ATTEMPTS.keep(attempt()))
OTHER = cookie(ATTEMPTS.keep(attempt("other")))
FOREIGN = cookie(Attempts(settings(), KeyRing([b"x" * 32]), clock=CLOCK).keep(attempt()))


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {NAME: ""},
        {NAME: "x"},
        {NAME: "é"},
        {NAME: VALUE[:-4]},
        {NAME: VALUE + "AAAA"},
        {NAME: VALUE.swapcase()},
        {NAME: OTHER[1]},
        {OTHER[0]: VALUE},
        {NAME.removeprefix("__Secure-"): VALUE},
        {NAME: FOREIGN[1]},
    ],
)
def test_cookies_that_are_not_the_attempts(sent: dict[str, str]) -> None:
    assert ATTEMPTS.find("state", sent) is None


def test_a_state_of_the_same_name_is_not_enough() -> None:
    """Whoever finds a state whose hash begins alike still has another state."""
    twin = Attempts(settings(), RING, clock=CLOCK)
    twin.name = lambda state: NAME  # type: ignore[method-assign]
    assert twin.find("state", {NAME: VALUE}) is not None
    assert twin.find("another", {NAME: VALUE}) is None


def test_clearing() -> None:
    CLOCK.now = 1_000_000.0
    old = cookie(ATTEMPTS.keep(attempt("old", at=1_000_000.0 - 600)))
    sent = dict([(NAME, VALUE), old, OTHER]) | {ATTEMPTS.name("junk"): "junk", "postern_attempt_x": "y", "session": "z"}
    assert ATTEMPTS.stale(sent) == [ATTEMPTS.clear("old"), ATTEMPTS.clear("junk")]


def test_the_oldest_of_too_many_are_cleared() -> None:
    CLOCK.now = 1_000_000.0
    many = [cookie(ATTEMPTS.keep(attempt(str(number), at=1_000_000.0 - number))) for number in range(40)]
    cleared = ATTEMPTS.stale(dict(reversed(many)))
    kept = [number for number in range(40) if ATTEMPTS.clear(str(number)) not in cleared]
    assert kept == list(range(len(kept)))
    assert 5 <= len(kept) <= 15
    large = [
        cookie(ATTEMPTS.keep(attempt(str(number), "https://apps.example.com/" + "x" * 1080, 1_000_000.0)))
        for number in range(9)
    ]
    assert len(large) - len(ATTEMPTS.stale(dict(large))) == 2
