"""Browsers by the names that people know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.browsers import browser_name

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/141.0.0.0 Safari/537.36", "Chrome on Windows"),
        (f"Mozilla/5.0 (Windows NT 10.0) {WEBKIT} Chrome/141.0.0.0 Safari/537.36 Edg/141.0", "Edge on Windows"),
        (f"Mozilla/5.0 (Linux; Android 14; K) {WEBKIT} Chrome/141.0.0.0 Mobile Safari/537.36", "Chrome on Android"),
        (f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Version/18.0 Safari/605.1.15", "Safari on macOS"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) FxiOS/140.0 Mobile Safari/605.1", "Firefox on iPhone"),
        (f"Mozilla/5.0 (X11; CrOS x86_64 14541) {WEBKIT} Chrome/141.0.0.0 Safari/537.36", "Chrome on ChromeOS"),
        (f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/141.0 Safari/537.36 OPR/120.0", "Opera on Linux"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("Android", "Android"),
        ("", ""),
        ("   ", ""),
        ("x" * 100, "x" * 40),
        ("evil\x1b[2J rest", "evil�[2J"),
    ],
)
def test_browser_name(user_agent: str, name: str) -> None:
    assert browser_name(user_agent) == name


@given(st.text())
def test_whatever_it_is_it_can_be_shown(user_agent: str) -> None:
    name = browser_name(user_agent)
    assert name.isprintable()
    assert len(name) <= 40
