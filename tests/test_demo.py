"""What the demo is set to and what it says. It is run in test_cli.py, and clicked through in tests/e2e."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from proxy.demo import demo_settings, greeting


def test_the_settings_are_a_sidecars_and_ask_for_nothing_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "postern.toml").write_text("nonsense = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "POSTERN_NONSENSE", "1")
    settings = demo_settings(4000)
    assert settings.public_url == "http://localhost:4000"
    assert settings.session.store == "memory://"
    assert settings.logto.connector == "discord"
    assert [route.upstream for route in settings.route] == [("http://127.0.0.1:4002",)]


def test_the_greeting_says_what_to_open_and_click() -> None:
    sink = io.StringIO()
    Console(width=200, file=sink).print(greeting(4000), highlight=False)
    text = sink.getvalue()
    assert "http://localhost:4000" in text
    assert "Discord" in text
    assert "Ctrl-C" in text
