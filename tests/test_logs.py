"""Log lines: JSON for machines, columns for people, and no library telling of every request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from proxy.logs import configure, form_of
from proxy.settings import LogSettings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_hold_level_logger_time_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    logging.getLogger("postern.x").warning("two %s", "words\nand a line", extra={"request_id": "r1"})
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "two words\nand a line"
    assert (line["level"], line["logger"], line["request_id"]) == ("warning", "postern.x", "r1")
    assert line["timestamp"].endswith("Z")


def test_a_trace_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    try:
        int("boom")
    except ValueError:
        logging.getLogger("postern").exception("failed")
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert "ValueError: invalid literal" in json.loads(out)["exception"]


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="console"))
    logging.getLogger("postern").info("hello there")
    out = capsys.readouterr().err
    assert "hello there" in out
    assert not out.startswith("{")


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_the_level_decides(capsys: pytest.CaptureFixture[str], level: str, lines: int) -> None:
    configure(LogSettings.model_validate({"format": "json", "level": level}))
    logger = logging.getLogger("postern")
    for write in (logger.debug, logger.info, logger.warning, logger.error):
        write("x")
    assert capsys.readouterr().err.count("\n") == lines


def test_http_clients_do_not_tell_of_each_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json", level="debug"))
    logging.getLogger("httpx2").info("HTTP Request: GET https://auth.example.com/?code=secret")
    assert capsys.readouterr().err == ""


def test_auto_writes_json_where_no_terminal_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert form_of(LogSettings()) == "json"
    assert form_of(LogSettings(format="console")) == "console"


def test_auto_writes_columns_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert form_of(LogSettings()) == "console"
