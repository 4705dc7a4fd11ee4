"""The plan of the house in docs/architecture.md, held against the code: floors, imports, names, sizes."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "proxy"
FLOORS = ("ground", "middle", "top")
CLIENTS = {"aiohttp", "hiredis", "httpx2", "logto", "redis", "starlette", "uvicorn", "uvloop", "websockets"}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted({path.relative_to(PACKAGE).parts[0] for path in FILES} - {"__init__.py", "__main__.py"})
TEST_FILES = sorted(path for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts)
OWN_FILES = FILES + TEST_FILES + sorted((ROOT / "scripts").glob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def plan() -> dict[str, tuple[int, int]]:
    """Module as the table names it ("routes.py", "sandbox") -> its floor, 0 being the ground, and the row it stands in.

    Modules that share a row share a job: together they are one adapter.
    """
    found: dict[str, tuple[int, int]] = {}
    floor = -1
    for number, line in enumerate((ROOT / "docs" / "architecture.md").read_text("utf-8").splitlines()):
        row = re.match(r"\| *([^|]*?) *\| *([^|]*?) *\|", line)
        if not row or not re.search(r"`[\w/]+(\.py|/)`", row[2]):
            continue
        if row[1]:
            floor = FLOORS.index(row[1].split(":")[0])
        for module in re.findall(r"`(\w+\.py|\w+/)`", row[2]):
            if module != "templates/":
                assert module not in found, f"{module} stands twice in the table"
                found[module.rstrip("/")] = (floor, number)
    return found


def imports(path: Path, *, loading_only: bool = False) -> Iterator[tuple[int, str]]:
    """Every import of `path`, at whatever depth: its line and the full name of a module, or of something in one."""
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text("utf-8"))
    if loading_only:  # neither what only type checkers see, nor what a function imports when it is called
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            ):
                node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            origin = (base + (node.module or "")).rstrip(".")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def own_module(name: str) -> str | None:
    """`proxy.routes.RouteTable` -> "routes.py", `proxy.sandbox.logto` -> "sandbox"; None when it is none of ours."""
    parts = name.split(".")
    if parts[0] != "proxy" or len(parts) < 2:
        return None
    if f"{parts[1]}.py" in MODULES:
        return f"{parts[1]}.py"
    return parts[1] if parts[1] in MODULES else None


def graph() -> dict[str, set[str]]:
    """Module -> the modules that it cannot be loaded without."""
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for path in FILES:
        module = path.relative_to(PACKAGE).parts[0]
        targets = {own_module(name) for _, name in imports(path, loading_only=True)}
        edges.setdefault(module, set()).update(target for target in targets if target and target != module)
    return edges


def test_the_table_and_the_tree_name_the_same_modules() -> None:
    assert sorted(plan()) == MODULES


def test_imports_go_down_and_never_sideways_on_the_middle_floor() -> None:
    rooms = plan()
    wrong = []
    for path in FILES:
        for line, name in imports(path):
            here, there = rooms.get(path.relative_to(PACKAGE).parts[0]), rooms.get(own_module(name) or "")
            if here is None or there is None or here == there:
                continue
            if there[0] > here[0] or there[0] == here[0] == FLOORS.index("middle"):
                wrong.append(f"{name_of(path)}:{line} imports {name}")
    assert wrong == []


def test_no_imports_in_a_circle() -> None:
    edges, done = graph(), set[str]()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " imports ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_ground_floor_awaits_nothing_and_knows_no_client() -> None:
    rooms = plan()
    for path in FILES:
        if rooms.get(path.relative_to(PACKAGE).parts[0], (None,))[0] != FLOORS.index("ground"):
            continue
        assert not {name.split(".")[0] for _, name in imports(path)} & CLIENTS, name_of(path)
        waiting = [
            n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.AsyncFunctionDef | ast.Await)
        ]
        assert not waiting, f"{name_of(path)}:{waiting[0].lineno} awaits" if waiting else ""


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith(".py")])
def test_each_module_has_its_tests(module: str) -> None:
    assert (ROOT / "tests" / f"test_{module}").is_file()


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [
        name_of(path) for path in OWN_FILES if path.stem in {"utils", "util", "helpers", "helper", "common", "misc"}
    ] == []


@pytest.mark.parametrize("path", OWN_FILES, ids=name_of)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text("utf-8")
    limit = 450 if path.is_relative_to(PACKAGE) else 800
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 60, f"{name_of(path)}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", OWN_FILES, ids=name_of)
def test_every_exception_from_a_rule_gives_its_reason(path: Path) -> None:
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    bare = [token.start[0] for token in comments if re.search(r"#\s*noqa\b(?!.*\s--\s*\S)", token.string)]
    assert bare == [], f"{name_of(path)}: no reason given"


@pytest.mark.parametrize("path", TEST_FILES, ids=name_of)
def test_no_test_is_left_out(path: Path) -> None:
    ways = {"skip", "skipif", "skipTest", "xfail", "importorskip"}
    found = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Attribute) and n.attr in ways]
    assert [node.lineno for node in found] == []
