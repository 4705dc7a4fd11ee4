"""The JSON Schema and the table of keys: complete, and true to what loads."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings, reference, schema
from proxy.tree import keys

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = schema()


def complaints(value: Any, part: dict[str, Any], where: str = "$") -> list[str]:
    """What JSON Schema (2020-12) has to say of `value`; as much of it as the schema uses."""
    known = {
        "$ref", "$defs", "$schema", "title", "description", "default", "type", "properties", "additionalProperties", "required",
        "items", "anyOf", "enum", "const", "pattern", "minLength", "minItems", "minProperties", "minimum", "maximum",
        "exclusiveMinimum", "format", "writeOnly", "oneOf", "patternProperties",
    }  # fmt: skip
    assert part.keys() <= known, part.keys() - known
    out: list[str] = []
    if "$ref" in part:
        out += complaints(value, SCHEMA["$defs"][part["$ref"].rpartition("/")[2]], where)
    if "anyOf" in part and all(complaints(value, option, where) for option in part["anyOf"]):
        out.append(f"{where}: fits none")
    if "oneOf" in part and [bool(complaints(value, option, where)) for option in part["oneOf"]].count(False) != 1:
        out.append(f"{where}: fits none, or several")
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    wanted = [part["type"]] if isinstance(part.get("type"), str) else part.get("type", [])
    if wanted and not any(isinstance(value, types[name]) for name in wanted):
        return [*out, f"{where}: is no {wanted}"]
    if value not in part.get("enum", [value]) or value != part.get("const", value):
        out.append(f"{where}: not one of them")
    if isinstance(value, str) and (
        not re.search(part.get("pattern", ""), value) or len(value) < part.get("minLength", 0)
    ):
        out.append(f"{where}: {value} does not fit")
    if isinstance(value, list):
        out += [
            line for n, item in enumerate(value) for line in complaints(item, part.get("items", {}), f"{where}[{n}]")
        ]
        out += [f"{where}: too short"] * (len(value) < part.get("minItems", 0))
    if isinstance(value, dict):
        out += [f"{where}: {name} is missing" for name in part.get("required", []) if name not in value]
        for name, item in value.items():
            by_pattern = [it for form, it in part.get("patternProperties", {}).items() if re.search(form, name)]
            others = by_pattern[0] if by_pattern else part.get("additionalProperties", {})
            inner = part.get("properties", {}).get(name, others)
            out += [f"{where}: {name} is not known"] if inner is False else complaints(item, inner, f"{where}.{name}")
    return out


EXAMPLES = sorted((ROOT / "config").rglob("*.toml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.name)
def test_what_loads_fits_the_schema(file: Path) -> None:
    tree = tomllib.loads(file.read_text("utf-8"))
    tree["logto"].setdefault("app_secret", "from the environment")
    assert complaints(tree, SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("lissten",), "x"),
        (("session",), {"idle": "12 hours"}),
        (("limits",), {"head_bytes": "64kb"}),
        (("route",), []),
        (("route",), [{"name": "A b", "upstream": "http://a:1"}]),
        (("route",), [{"name": "a", "upstream": "ftp://a:1"}]),
        (("route",), [{"name": "a", "upstream": "http://a:1", "allow": "all"}]),
        (("route",), [{"name": "a", "upstream": "http://a:1", "allow": [{"rolse": ["x"]}]}]),
        (("route",), [{"name": "a"}]),
        (("log",), {"level": "loud"}),
        (("prefix",), "postern"),
    ],
)
def test_what_does_not_load_does_not_fit(path: tuple[str, ...], value: Any) -> None:
    tree = tomllib.loads((ROOT / "config" / "postern.toml").read_text("utf-8"))
    tree[path[0]] = value
    assert complaints(tree, SCHEMA)


def test_the_schema_is_one_of_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "Postern settings"
    assert SCHEMA["additionalProperties"] is False
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert '"null"' not in json.dumps(SCHEMA), "TOML has no null"


def test_defaults_in_the_schema_fit_the_schema() -> None:
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    for section in sections:
        for name, part in section["properties"].items():
            if "default" in part:
                assert complaints(part["default"], part, name) == []


def test_every_key_is_described_in_the_schema() -> None:
    for section in [SCHEMA, *SCHEMA["$defs"].values()]:
        assert section["additionalProperties"] is False
        for name, part in section["properties"].items():
            assert "$ref" in part or part["description"], name


def test_secrets_are_write_only() -> None:
    assert SCHEMA["$defs"]["LogtoSettings"]["properties"]["app_secret"]["writeOnly"] is True
    assert all(option.get("items", option)["writeOnly"] for option in SCHEMA["properties"]["secret"]["anyOf"])


def test_the_table_has_a_row_for_every_key() -> None:
    rows = [line.split(" | ") for line in reference().splitlines()[2:]]
    assert all(len(row) == 4 for row in rows)
    shown = {row[0].removeprefix("| ").strip("`") for row in rows}
    for key in keys(Settings):
        path = ".".join(str(step) for step in key.path).replace(".*", "[]")
        if key.section is None and "deny[]" not in path:
            assert path in shown
    assert "route[].deny" in shown
    text = reference()
    assert "| `session.idle` | `POSTERN_SESSION__IDLE` | `12h` |" in text
    assert (
        "`POSTERN_LOGTO__APP_SECRET`, `LOGTO_APP_SECRET`, `POSTERN_LOGTO__APP_SECRET_FILE`, `LOGTO_APP_SECRET_FILE`"
        in text
    )
