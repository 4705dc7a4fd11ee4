"""Where settings come from: a TOML file, and the environment laid over it.

pydantic-settings' own environment source reads only os.environ, wants JSON for every list, cannot reach into a list of
tables, and stops at the first mistake; this one takes any mapping, names items by index (`POSTERN_ROUTE__0__UPSTREAM`),
reads secrets from files (`…_FILE`), and keeps on collecting problems.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from proxy.notation import quoted
from proxy.problems import Problem
from proxy.tree import FROM_FILE, JOINT, PREFIX, SHORT_NAMES, UPSTREAM, Key, Path, key_at, keys, variable

CONFIG: Final = "POSTERN_CONFIG"  # where the file is
# Kubernetes puts these into every container for a Service called `postern`; nobody wrote them, and no key is called so.
_SERVICE_LINK: Final = re.compile(r"POSTERN_(?:SERVICE_(?:HOST|PORT)(?:_\w+)?|PORT(?:_\d+_\w+)?)")
_LARGEST_SECRET: Final = 64 * 1024


class Unusable(Exception):
    """A value from outside that cannot even be laid into the tree."""

    def __init__(self, problem: Problem, path: Path = ()) -> None:
        super().__init__(problem.what)
        self.problem = problem
        self.path = path


class FileSource(PydanticBaseSettingsSource):
    """The TOML file. A file that cannot be read leaves an empty tree and one problem."""

    def __init__(self, settings_cls: type[BaseSettings], path: FilePath, *, required: bool) -> None:
        super().__init__(settings_cls)
        self.problems: list[Problem] = []
        self.tree: dict[str, Any] = {}
        try:
            self.tree = _toml(path.read_bytes())
        except FileNotFoundError:
            if required:
                self.problems.append(Problem(str(path), "does not exist", "a TOML file"))
        except OSError as error:
            self.problems.append(Problem(str(path), f"cannot be read ({error.strerror})", "a TOML file"))
        except ValueError as error:  # both of tomllib's and of decoding
            self.problems.append(Problem(str(path), f"is not TOML: {error}", "TOML 1.0 in UTF-8"))

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 -- pydantic's signature
        """The value of one top-level key."""
        return self.tree.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All of it."""
        return self.tree


def _toml(data: bytes) -> dict[str, Any]:
    """`data` as a TOML tree. Raises ValueError with line and column, as tomllib words them."""
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(f"a byte that is no UTF-8 (at line {line}, column {column})") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.split("\n")
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        raise ValueError(str(error).replace("(at end of document)", end)) from None


class _Given(NamedTuple):
    """One value that the environment gives."""

    variable: str
    path: Path
    value: Any


class EnvironmentSource(PydanticBaseSettingsSource):
    """The environment laid over `below`, the file's tree. `origin` tells which variable gave which path."""

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str], below: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self.problems: list[Problem] = []
        self.origin: dict[Path, str] = {}
        self.unusable: set[Path] = set()
        self.tree: dict[str, Any] = copy.deepcopy(dict(below))
        self._environ = {name: value for name, value in environ.items() if value}
        given = [found for name in sorted(self._environ) if (found := self._guarded(name)) is not None]
        # The whole of a key before its parts: POSTERN_ROUTE, then POSTERN_ROUTE__0__UPSTREAM.
        for value in sorted(given, key=lambda one: len(one.path)):
            self._lay(value)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 -- pydantic's signature
        """The value of one top-level key."""
        return self.tree.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """All of it."""
        return self.tree

    def _guarded(self, name: str) -> _Given | None:
        try:
            return self._given(name)
        except Unusable as unusable:
            self.problems.append(unusable.problem)
            self.unusable.add(unusable.path)
            return None

    def _given(self, name: str) -> _Given | None:
        """What the variable `name` gives; None if it is not ours, or another one wins. Raises Unusable."""
        plain, from_file = (name[: -len(FROM_FILE)], True) if name.endswith(FROM_FILE) else (name, False)
        if name == UPSTREAM:
            return self._only_route(name)
        path = SHORT_NAMES.get(plain)
        if path is not None and self._outdone(path):
            return None
        if path is None:
            if not name.startswith(PREFIX) or name == CONFIG or _SERVICE_LINK.fullmatch(name):
                return None
            path = self._path(plain)
        key = key_at(self.settings_cls, path) if path else None
        if path is None or key is None or (from_file and not key.secret):
            raise Unusable(self._unknown(name))
        if from_file and plain in self._environ:
            raise Unusable(Problem(name, f"is given, and so is {plain}", "one of the two"), path)
        text = self._environ[name]
        return _Given(name, path, _from_file(name, text, key) if from_file else _parsed(name, text, key, path))

    def _outdone(self, path: Path) -> bool:
        """Whether the long name of a short one is given: it was written for this program, REDIS_URL maybe not."""
        return any(variable(path) + suffix in self._environ for suffix in ("", FROM_FILE))

    def _only_route(self, name: str) -> _Given:
        others = [other for other in self._environ if other.startswith(f"{PREFIX}ROUTE")]
        if others:
            raise Unusable(Problem(name, f"is given, and so is {min(others)}", "one of the two"))
        upstream = [item.strip() for item in self._environ[name].split(",")]
        return _Given(name, ("route",), [{"name": "default", "upstream": upstream if upstream[1:] else upstream[0]}])

    def _path(self, name: str) -> Path | None:
        """The key path that a POSTERN_ name means, None if there is no such key."""
        steps = name.removeprefix(PREFIX).split(JOINT)
        path = tuple(int(step) if re.fullmatch("[0-9]{1,4}", step) else step.lower() for step in steps)
        key = key_at(self.settings_cls, path)
        # Keys of a mapping are the user's own, in any case; names of variables have only one.
        inside_mapping = key is not None and key.mapping and len(key.path) < len(path)
        return None if key is None or inside_mapping else path

    def _unknown(self, name: str) -> Problem:
        known = [key.variable for key in keys(self.settings_cls)]
        known += [key.variable + FROM_FILE for key in keys(self.settings_cls) if key.secret]
        # Without the prefix, which would make any two names look alike.
        meant = re.sub(r"__\d+(?=__|$)", "__N", name).removeprefix(PREFIX)
        near = _nearest(meant, [other.removeprefix(PREFIX) for other in known])
        what = f'is not a known variable (did you mean "{PREFIX}{near}"?)' if near else "is not a known variable"
        accepted = f"{PREFIX} and a key path joined by {JOINT}, list items by number from 0; {FROM_FILE} for secrets"
        return Problem(name if name.isprintable() else quoted(name), what, accepted)

    def _lay(self, given: _Given) -> None:
        """Put a value in its place. Where the file has something else than a table, only the file's mistake is reported."""
        here: Any = self.tree
        for step, below in pairwise(given.path):
            if not self._has_place(here, step, given):
                return
            if isinstance(step, str):
                here.setdefault(step, {})
            if isinstance(below, int) and not isinstance(here[step], list):
                here[step] = []  # allow = "signed-in" gives way to POSTERN_ROUTE__0__ALLOW__0__ROLES
            here = here[step]
        if self._has_place(here, given.path[-1], given):
            here[given.path[-1]] = given.value
            self.origin[given.path] = given.variable

    def _has_place(self, here: Any, step: str | int, given: _Given) -> bool:
        """Whether `here` is a table, or a list with an item at `step`; one is added where that is the next."""
        if isinstance(step, str):
            return isinstance(here, dict)
        if step > len(here):
            what = f"skips an index: there are {len(here)} before it"
            self.problems.append(Problem(given.variable, what, f"an index up to {len(here)}"))
        elif step == len(here):
            here.append({})
        return step < len(here)


def _nearest(meant: str, known: list[str]) -> str | None:
    """Which of `known` looks like `meant`. What both share as a section says nothing: there the last step alone counts."""
    section, _, last = meant.rpartition(JOINT)
    for name in get_close_matches(meant, known, 5, 0.6):
        other_section, _, other_last = name.rpartition(JOINT)
        if section != other_section or get_close_matches(last, [other_last], 1, 0.6):
            return name
    return None


def _parsed(name: str, text: str, key: Key, path: Path) -> Any:
    """The value of `key` that `text` means: lists comma-separated, or an array or table as the file or JSON has it."""
    one = isinstance(path[-1], int)
    holds_more = (key.many and not one) or key.section is not None or key.mapping
    if holds_more and text.lstrip()[:1] in ("[", "{"):
        return _structure(name, text, path)
    if key.many and not one and key.section is None and not key.secret:
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _structure(name: str, text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        tree = {}
    if tree.keys() != {"value"}:
        raise Unusable(
            Problem(name, "is neither JSON nor TOML", "an array or a table, as in the file or in JSON"), path
        )
    return tree["value"]


def _from_file(name: str, file: str, key: Key) -> str | list[str]:
    """The secret in `file`, without the line break that editors put at its end; several secrets, one a line."""
    try:
        with open(file, "rb") as source:  # noqa: PTH123 -- one read of a bounded size
            data = source.read(_LARGEST_SECRET + 1)
        text = data.decode()
    except OSError as error:
        raise _unusable_file(name, f"cannot be read ({error.strerror})", key) from None
    except ValueError:
        raise _unusable_file(name, "leads to a file that is not UTF-8 text", key) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or len(data) > _LARGEST_SECRET:
        raise _unusable_file(name, "leads to a file too large for a secret" if lines else "leads to an empty file", key)
    return lines if key.many else text.rstrip("\r\n")


def _unusable_file(name: str, what: str, key: Key) -> Unusable:
    return Unusable(Problem(name, what, "the path of a readable file with the secret in it"), key.path)
