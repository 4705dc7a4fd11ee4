"""What is wrong with the settings: every problem at once, one line each, in the words of the file.

pydantic finds the problems; this module says where each is, what it is and what is accepted instead. Its own messages are
never used: they speak of types and unions, and some of them echo the input, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy import notation
from proxy.errors import PosternError
from proxy.tree import SHORT_NAMES, UPSTREAM, Key, Path, dotted, key_at, keys, section_at, value_at, variable

_NOT_A_KEY: Final = re.compile(r"<[a-z]+>|\[key\]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: `key` is a key path, an environment variable or a file; `accepted` what to write instead."""

    key: str
    what: str
    accepted: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}; accepted: {self.accepted}"


class SettingsError(PosternError):
    """The settings cannot be used. `problems` are all that is wrong with them; no message shows a secret."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Place:
    """Where values came from: the tree that was validated, and which variable gave what is at or below a path."""

    tree: Mapping[str, Any]
    origin: Mapping[Path, str]
    unusable: AbstractSet[Path] = frozenset()  # given by a variable that has a problem already, so not `missing`

    def name(self, path: Path) -> str:
        """The key as whoever wrote it knows it: the variable that gave the value, or the path in the file."""
        for length in range(len(path), 0, -1):
            given = self.origin.get(path[:length])
            if given is not None:
                rest = dotted(path[length:]) if path[length:] else ""
                return given + (rest if rest.startswith("[") or not rest else f".{rest}")
        return dotted(path)


def problems_in(error: ValidationError, model: type[BaseModel], place: Place) -> Iterator[Problem]:
    """The problems that validating `place.tree` as `model` found, in its order."""
    for detail in error.errors(include_url=False, include_input=False):
        path = _path(detail["loc"], place.tree)
        # The whole tree's own checks have no path: `settings.py` makes them even while other keys are broken. A list all of
        # whose items are broken counts as too short as well; they have their own lines.
        again = (
            not path
            or (detail["type"] == "missing" and path in place.unusable)
            or (detail["type"] == "too_short" and value_at(path, place.tree))
        )
        if not again:
            yield _problem(detail, path, model, place)


def _problem(detail: ErrorDetails, path: Path, model: type[BaseModel], place: Place) -> Problem:
    name, key = place.name(path), key_at(model, path)
    if key is None or detail["type"] == "extra_forbidden":
        return unknown_key(path, model, place)
    context = detail.get("ctx", {})
    match detail["type"]:
        case notation.ERROR:
            return Problem(name, context["what"], context["accepted"])
        case "missing":
            return Problem(name, "is missing", _accepted(key) + _or_variable(path))
        case "too_short":
            return Problem(name, "is empty", _accepted(key))
    return Problem(name, f"is {notation.kind(value_at(path, place.tree))}", _accepted(key, path))


def unknown_key(path: Path, model: type[BaseModel], place: Place) -> Problem:
    """The problem of a key that does not exist, with the nearest one that does."""
    section = section_at(model, path[:-1]) or model
    here = list(section.model_fields)
    key = str(path[-1])
    near = get_close_matches(key, here, 1, 0.6)
    # A key that exists, written in the wrong table: TOML makes that easy, everything after [session] is in session.
    elsewhere = [dotted(other.path) for other in keys(model) if other.path[-1] == key]
    meant = near or elsewhere[:1]
    what = f'is not a known key (did you mean "{meant[0]}"?)' if meant else "is not a known key"
    return Problem(place.name(path), what, ", ".join(sorted(here)))


def _path(location: tuple[int | str, ...], tree: Any) -> Path:
    """`location` without what pydantic put in that is not in the file: union members, `[key]`, the index of a lone value."""
    path: list[str | int] = []
    here = tree
    for step in location:
        if isinstance(step, str) and isinstance(here, Mapping) and (step in here or not _NOT_A_KEY.fullmatch(step)):
            here = here.get(step, {})  # a table that is missing as a whole has missing keys
        elif isinstance(step, int) and isinstance(here, list | tuple) and step < len(here):
            here = here[step]
        else:
            continue
        path.append(step)
    return tuple(path)


def _accepted(key: Key, path: Path = ()) -> str:
    """What may stand at `key`; at one item of it when `path` ends in an index."""
    one = bool(path) and isinstance(path[-1], int)
    if key.section is None:
        text = key.notation.accepted if key.notation is not None and not key.mapping else "a table"
        if not key.many or one:
            return text
        return f"{text}; or a list of these" if key.lone else f"a list, each item {text}"
    if one or not key.many:
        return "a table"
    if key.notation is not None:
        return key.notation.accepted
    return f"tables, each headed [[{key.path[0]}]]" if len(key.path) == 1 else "a list of tables"


def _or_variable(path: Path) -> str:
    if any(isinstance(step, int) for step in path):
        return ""
    short = [name for name, leads_to in SHORT_NAMES.items() if leads_to == path]
    name = short[0] if short else UPSTREAM if path == ("route",) else variable(path)
    return f" (or {name} in the environment)"
