"""How problems are written; the words themselves are in settings_mistakes.toml and environment_mistakes.toml."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from proxy.errors import PosternError, Side
from proxy.problems import Place, Problem, SettingsError, problems_in, unknown_key
from proxy.settings import Settings
from proxy.tree import Path


def test_a_problem_is_one_line() -> None:
    problem = Problem("session.idle", "is missing", "a duration")
    assert str(problem) == "session.idle: is missing; accepted: a duration"


def test_the_error_holds_every_problem() -> None:
    error = SettingsError([Problem("a", "b", "c"), Problem("d", "e", "f")])
    assert isinstance(error, PosternError)
    assert error.side is Side.GATEWAY
    assert len(error.problems) == 2
    assert str(error) == "a: b; accepted: c\nd: e; accepted: f"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("session", "idle"), "POSTERN_SESSION__IDLE"),
        (("session", "lifetime"), "session.lifetime"),
        (("route", 0, "upstream", 1), "POSTERN_ROUTE[0].upstream[1]"),
        (("route", 1, "name"), "POSTERN_ROUTE__1.name"),
        (("route", 1, "path"), "POSTERN_ROUTE__1__PATH"),
    ],
)
def test_a_key_is_called_what_its_writer_called_it(path: Path, name: str) -> None:
    origin: dict[Path, str] = {
        ("session", "idle"): "POSTERN_SESSION__IDLE",
        ("route",): "POSTERN_ROUTE",
        ("route", 1): "POSTERN_ROUTE__1",
        ("route", 1, "path"): "POSTERN_ROUTE__1__PATH",
    }
    assert Place({}, origin).name(path) == name


def test_a_key_in_the_wrong_table_is_found() -> None:
    problem = unknown_key(("logto", "idle"), Settings, Place({}, {}))
    assert problem.what == 'is not a known key (did you mean "session.idle"?)'


def test_what_is_missing_for_want_of_its_file_is_not_told_again() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"route": [{"name": "a", "upstream": "http://a:1"}]})
    place = Place({"route": [{}]}, {}, frozenset({("logto", "app_secret"), ("public_url",)}))
    assert [problem.key for problem in problems_in(caught.value, Settings, place)] == ["logto.endpoint", "logto.app_id"]
