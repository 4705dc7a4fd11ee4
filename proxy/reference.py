"""The settings for editors and for readers: a JSON Schema of the file, and a Markdown table of every key.

Both are made of the models, so they cannot lag behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from proxy.tree import FROM_FILE, SHORT_NAMES, Key, Path, dotted, keys


def json_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the TOML file that `model` reads."""
    schema = _tidied(model.model_json_schema(mode="validation"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _tidied(schema: Any) -> Any:
    """`schema` without what comes of Python: titles made of attribute names, and null, which TOML does not have."""
    if isinstance(schema, list):
        return [_tidied(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    tidy: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("properties", "$defs"):  # names below are the user's, not JSON Schema's
            tidy[name] = {key: _tidied(item) for key, item in value.items()}
        elif name == "anyOf":
            options = [_tidied(option) for option in value if option != {"type": "null"}]
            tidy.update(options[0] if len(options) == 1 else {"anyOf": options})
        elif name != "title" and not (name == "default" and value is None):
            tidy[name] = _tidied(value)
    return tidy


def table(model: type[BaseModel]) -> str:
    """A Markdown table of every key of `model`: path, environment variables, default, meaning."""
    lines = ["| Key | Environment | Default | Meaning |", "|---|---|---|---|"]
    shown: set[type[BaseModel]] = set()
    again: Path = ("",)
    for key in keys(model):
        if key.path[: len(again)] == again:
            continue  # the keys of a rule are told once, at `allow`
        repeated = key.section in shown
        if repeated:
            again = key.path
        if key.section is None or key.notation is not None or repeated:  # other tables are only the sum of their keys
            meaning = _cell(key.field.description or "")
            lines.append(f"| `{dotted(key.path)}` | {_variables(key)} | {_default(key)} | {meaning} |")
        if key.section is not None:
            shown.add(key.section)
    return "\n".join(lines) + "\n"


def _variables(key: Key) -> str:
    names = [key.variable, *(name for name, path in SHORT_NAMES.items() if path == key.path)]
    names += [name + FROM_FILE for name in names if key.secret]
    return ", ".join(f"`{name}`" for name in names)


def _default(key: Key) -> str:
    default = key.field.default
    if default is PydanticUndefined:
        return "required"
    if default is None or default in ("", (), {}):
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"  # as TOML writes it
    return f"`{_cell(', '.join(default) if isinstance(default, tuple) else str(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
