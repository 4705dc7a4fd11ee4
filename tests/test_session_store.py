"""What every store shares: how a session begins, how it goes on after a refresh, and who hears of what."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.claims import Grant, Identity, Tokens
from proxy.session import MemoryStore
from proxy.session_codec import Holder, Session
from proxy.session_store import Bounds, new_session, refreshed

TOKENS = Tokens(id_token="i", access_token="a", access_expires_at=4600.0, refresh_token="r")
GRANT = Grant(Identity(sub="ada", roles=("ops",)), TOKENS, "sid-1", 990.0)


def begun(grant: Grant = GRANT, *, browser: str = "Firefox", recheck: float = math.inf) -> Session:
    return new_session(Holder.new(), grant, 1000.0, 600.0, browser=browser, address="192.0.2.1", recheck=recheck)


def test_a_session_begins_now_and_ends_after_its_lifetime() -> None:
    session = begun()
    assert (session.created_at, session.seen_at, session.expires_at) == (1000.0, 1000.0, 1600.0)
    assert session.signed_in_at == 990.0, "the sign-in at Logto, not its arrival here"
    assert (session.sid, session.identity) == ("sid-1", GRANT.identity)


def test_a_browser_that_tells_stories_is_cut_short() -> None:
    assert len(begun(browser="x" * 100_000).browser) == 256


def test_each_session_has_an_id_of_its_own() -> None:
    assert len({begun().id for _ in range(100)}) == 100


def test_without_a_refresh_token_a_session_lives_by_its_own_times() -> None:
    session = begun(replace(GRANT, tokens=replace(TOKENS, refresh_token=None)), recheck=1.0)
    assert (session.renew_at, session.fresh_until) == (math.inf, math.inf)


@given(recheck=st.floats(1, 1e6), later=st.floats(0, 1e6))
def test_a_refresh_changes_who_somebody_is_and_never_how_long_they_may_stay(recheck: float, later: float) -> None:
    before = begun(recheck=recheck)
    after = refreshed(before, replace(GRANT, identity=Identity(sub="ada")), 1000.0 + later, recheck)
    assert after.identity.roles == ()
    kept = ("id", "created_at", "seen_at", "expires_at", "signed_in_at", "browser", "address", "sid")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)
    assert 1000.0 + later < after.renew_at <= 1000.0 + later + recheck
    assert after.renew_at <= after.fresh_until


def test_logtos_session_is_remembered_when_a_refresh_does_not_name_it() -> None:
    assert refreshed(begun(), replace(GRANT, sid=None), 1100.0).sid == "sid-1"
    assert refreshed(begun(), replace(GRANT, sid="sid-2"), 1100.0).sid == "sid-2"


def test_a_refresh_that_is_somebody_elses_is_refused() -> None:
    with pytest.raises(ValueError, match="whose session"):
        refreshed(begun(), replace(GRANT, identity=Identity(sub="eve")), 1100.0)


def test_one_listener_that_fails_keeps_no_other_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(idle=60.0, lifetime=60.0, bounds=Bounds())
    heard: list[str] = []

    def failing(_: str) -> None:
        raise RuntimeError("out of order")

    store.on_end(failing)
    store.on_end(heard.append)
    with caplog.at_level(logging.ERROR, "postern.session"):
        store._ended("an-id")
    assert heard == ["an-id"]
    assert "a listener to the session store failed" in caplog.text


def test_bounds_are_safe_when_nothing_is_said() -> None:
    bounds = Bounds()
    assert bounds.outage_grace == 0.0, "while the store is away nobody is let in"
    assert bounds.renewal_grace > 0, "Logto may be away for a while"
