"""The settings as a tree of keys: what lies at a path, what the environment calls it, which notation it is written in.

Works on any pydantic model whose values are annotated with notations. The environment source, the error messages, the JSON
Schema and the reference table all walk the same tree, so that none of them can know a key the others do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from proxy.notation import Notation, one_or_more, quoted

PREFIX: Final = "POSTERN_"
JOINT: Final = "__"
FROM_FILE: Final = "_FILE"  # a secret's variable with this names a file that holds it
ANY: Final = "*"  # in a path: each item of a list

_BARE: Final = re.compile("[A-Za-z0-9_-]+")

Path = tuple[str | int, ...]

# What hosting platforms and Logto's own samples call some values. The long names win over these.
SHORT_NAMES: Final[Mapping[str, Path]] = {
    "LOGTO_ENDPOINT": ("logto", "endpoint"),
    "LOGTO_APP_ID": ("logto", "app_id"),
    "LOGTO_APP_SECRET": ("logto", "app_secret"),
    "REDIS_URL": ("session", "store"),
}
UPSTREAM: Final = "POSTERN_UPSTREAM"  # one route, every path, any signed-in user


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the settings. `section` is the model of what is below it, if anything is.

    `many`: it holds a list (of sections or of values), `lone`: or one value without a list around it; `mapping`: its keys are
    the user's own.
    """

    path: Path
    field: FieldInfo
    notation: Notation | None
    section: type[BaseModel] | None
    many: bool
    lone: bool
    mapping: bool

    @property
    def secret(self) -> bool:
        """Whether the value may also come from a file, and must never be shown."""
        return self.notation is not None and self.notation.secret

    @property
    def variable(self) -> str:
        """Its name in the environment; `N` stands for an index."""
        return variable(self.path)


def variable(path: Path) -> str:
    """The environment's name of the key at `path`."""
    return PREFIX + JOINT.join("N" if step == ANY else str(step).upper() for step in path)


def dotted(path: Sequence[str | int]) -> str:
    """`path` as messages write it: `route[2].upstream[0]`. Lists count from 0, as in the environment."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step == ANY:
            text += "[]"
        else:
            # As TOML writes it: anything may be in a key, even a line break.
            bare = step if _BARE.fullmatch(step) else quoted(step)
            text += f".{bare}" if text else bare
    return text or "settings"


def keys(model: type[BaseModel], path: Path = ()) -> Iterator[Key]:
    """Every key below `model`, in the order of the file, each before what is below it."""
    for name, field in model.model_fields.items():
        key = _key((*path, name), field)
        yield key
        if key.section is not None:
            yield from keys(key.section, (*key.path, ANY) if key.many else key.path)


def key_at(model: type[BaseModel], path: Path) -> Key | None:
    """The key that `path` (indices as numbers) leads to; an item of a list is its list's key. None if there is none."""
    here: type[BaseModel] | None = model
    key: Key | None = None
    for depth, step in enumerate(path):
        if isinstance(step, int):
            if key is None or not key.many:
                return None
            continue
        if key is not None and key.many and isinstance(path[depth - 1], str):
            return None  # a list's items are reached by index only
        if here is None or step not in here.model_fields:
            return key if key is not None and key.mapping else None
        key = _key(path[: depth + 1], here.model_fields[step])
        here = key.section
    return key


def section_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model of the table at `path`; the root for the empty path."""
    if not path:
        return model
    key = key_at(model, path)
    return key.section if key is not None else None


def value_at(path: Path, tree: Any) -> Any:
    """What `tree` has at `path`; None if nothing."""
    here = tree
    for step in path:
        if isinstance(here, Mapping):
            here = here.get(step)
        elif isinstance(here, list | tuple) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            return None
    return here


def _key(path: Path, field: FieldInfo) -> Key:
    parts = list(_parts(field.annotation))
    notations = [item for item in (*field.metadata, *parts) if isinstance(item, Notation)]
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    mapping = any(get_origin(part) is Mapping for part in parts)
    return Key(
        path=path,
        field=field,
        notation=notations[0] if notations else None,
        section=sections[0] if sections else None,
        many=not mapping and any(get_origin(part) is tuple for part in parts),
        lone=any(isinstance(item, BeforeValidator) and item.func is one_or_more for item in field.metadata),
        mapping=mapping,
    )


def _parts(annotation: Any) -> Iterator[Any]:
    """`annotation` and everything it is made of: union members, items, what Annotated carries."""
    if annotation is None or annotation is NoneType or annotation is Ellipsis:
        return
    yield annotation
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _parts(argument)
