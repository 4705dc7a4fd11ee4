"""What surrounds the code: locks, the distribution, the scripts that install. What runs here needs no network."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# Distribution -> what it is imported as, where the two differ.
IMPORTED_AS = {"opentelemetry-api": "opentelemetry", "pyjwt": "jwt", "python-multipart": "python_multipart"}
# Other names that a declared dependency brings along as part of its own interface.
COMES_WITH = {"markupsafe": "jinja2", "pydantic_core": "pydantic"}
# Dependencies that no module of ours imports, and who does.
USED_BY_OTHERS = {
    "hiredis": "redis parses with it",
    "python-multipart": "starlette reads forms with it",
    "websockets": "uvicorn serves the sample app's WebSocket with it",
}


def pins(lock: str) -> dict[str, Requirement]:
    """The pinned requirements of requirements/`lock`.txt by name."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text("utf-8")
    found = [Requirement(line.rstrip("\\ ")) for line in text.splitlines() if re.match(r"[a-zA-Z]", line)]
    return {canonicalize_name(one.name): one for one in found}


def version(pin: Requirement) -> str:
    (only,) = pin.specifier
    assert only.operator == "=="
    return only.version


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_hold_pins_with_hashes_and_nothing_else(path: Path) -> None:
    entry = re.compile(
        r"[a-z0-9][a-z0-9.-]*(\[[a-z0-9,-]+\])?==[^\s;]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n(    #.*\n)*"
    )
    lines = path.read_text("utf-8").splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith("#"))
    assert not entry.sub("", body)
    assert not re.search(r"://|--(index|extra|find|trusted)|file:", "".join(lines))


def test_locks_belong_to_this_pyproject() -> None:
    subprocess.run([sys.executable, "scripts/lock.py", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("runtime", PROJECT["project"]["dependencies"]),
        ("build", PROJECT["build-system"]["requires"]),
        ("dev", PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]),
        ("e2e", PROJECT["dependency-groups"]["e2e"]),
    ],
)
def test_locks_satisfy_what_is_asked_for(lock: str, wanted: list[str]) -> None:
    pinned = pins(lock)
    for asked in map(Requirement, wanted):
        assert asked.specifier.contains(version(pinned[canonicalize_name(asked.name)])), asked


def test_locks_agree_with_each_other() -> None:
    dev = pins("dev")
    for lock in ("runtime", "build", "e2e"):
        for name, pin in pins(lock).items():
            assert name not in dev or version(pin) == version(dev[name]), f"{lock}: {name}"


def test_the_gateway_declares_what_it_imports_and_imports_what_it_declares() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "proxy").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {
        (node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["project"]["dependencies"]}
    extras = [line for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines]
    optional = {canonicalize_name(Requirement(line).name) for line in extras}
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names | optional}
    assert {COMES_WITH.get(name, name) for name in imported - set(sys.stdlib_module_names)} <= declared | {"proxy"}
    assert {name for name in names if IMPORTED_AS.get(name, name.replace("-", "_")) not in imported} == set(
        USED_BY_OTHERS
    )


def test_the_distribution_carries_everything_that_runs(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        carried = {name for name in opened.namelist() if ".dist-info/" not in name}
        metadata = [name for name in opened.namelist() if ".dist-info/" in name]
    files = (path for path in (ROOT / "proxy").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert carried == {str(path.relative_to(ROOT)) for path in files}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def script(*command: str, path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one of our shell scripts with `path` as the only place to find programs in."""
    env = {"PATH": str(path), **environ}
    return subprocess.run(
        ["/bin/sh", *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with the few programs that the scripts themselves use."""
    for name in ("cat", "cksum", "dirname", "env", "id", "mktemp", "rm", "sh", "true"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)


def test_what_is_missing_and_may_not_be_installed_is_named_in_one_line(programs: Path) -> None:
    wanted = programs / "list.txt"
    wanted.write_text("# comment\n\npresent-pkg sh\nabsent-pkg no-such-program\nother-pkg no-such-one\n", "utf-8")
    found = script("scripts/system-packages", str(wanted), path=programs, APT="no")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "postern: please install absent-pkg other-pkg, then try again (APT=no)\n"


def test_without_apt_it_says_so(programs: Path) -> None:
    found = script("scripts/system-packages", "some-pkg", path=programs)
    assert found.returncode == 1
    assert found.stderr == "postern: please install some-pkg, then try again (no apt-get here)\n"


def test_a_user_without_root_is_told_the_command(programs: Path) -> None:
    (programs / "id").unlink()
    program(programs / "id", "echo 1000")
    program(programs / "apt-get", "exit 99")
    program(programs / "sudo", "exit 1")
    found = script("scripts/system-packages", "some-pkg", path=programs)
    assert found.returncode == 1
    assert found.stderr == "postern: please install some-pkg, then try again (run: sudo apt-get install some-pkg)\n"


@pytest.mark.parametrize("root", [True, False])
def test_apt_is_asked_for_what_is_missing_and_nothing_else(programs: Path, *, root: bool) -> None:
    (programs / "id").unlink()
    program(programs / "id", f"echo {0 if root else 1000}")
    program(programs / "sudo", 'echo sudo >>"$LOG"; shift; exec "$@"')
    program(programs / "apt-get", 'echo "$DEBIAN_FRONTEND $*" >>"$LOG"')
    wanted = programs / "list.txt"
    wanted.write_text("present-pkg sh\nabsent-pkg no-such-program\n", "utf-8")
    found = script("scripts/system-packages", str(wanted), path=programs, LOG=str(programs / "log"))
    assert (found.returncode, found.stderr) == (0, "")
    asked = [line for line in (programs / "log").read_text("utf-8").splitlines() if line != "sudo"]
    assert asked == ["noninteractive -q -y update", "noninteractive -q -y install --no-install-recommends absent-pkg"]
    assert ("sudo" in (programs / "log").read_text("utf-8")) is not root


@pytest.mark.parametrize("available", [True, False])
def test_what_apt_may_lack_is_only_asked_for_where_apt_has_it(programs: Path, *, available: bool) -> None:
    (programs / "id").unlink()
    program(programs / "id", "echo 0")
    program(programs / "apt-get", 'echo "$*" >>"$LOG"')
    program(programs / "apt-cache", f"echo '{'Candidate: 1.2' if available else 'Candidate: (none)'}'")
    wanted = programs / "list.txt"
    wanted.write_text(
        "one-pkg no-such-program|sh if-available\ntwo-pkg no-such-program|no-such-one if-available\n", "utf-8"
    )
    found = script("scripts/system-packages", str(wanted), path=programs, LOG=str(programs / "log"))
    assert (found.returncode, found.stderr) == (0, "")
    asked = (programs / "log").read_text("utf-8").splitlines()
    assert asked[:1] == ["-q -y update"]
    assert asked[1:] == ["-q -y install --no-install-recommends two-pkg"] * available


def test_an_old_python_is_refused_in_one_line(programs: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("pyproject.toml", "scripts", "requirements"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).symlink_to(ROOT / name)
    copied = checkout / "bin" / "install"
    copied.parent.mkdir()
    copied.write_bytes((ROOT / "scripts" / "install").read_bytes())
    program(programs / "python3", "exit 1")  # what an old one answers to the question whether it is new enough
    found = script(str(copied), "runtime", path=programs)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer" in found.stderr
    assert not (checkout / ".venv").exists()


def test_system_packages_are_listed_with_their_proof() -> None:
    lines = [line.split() for line in (ROOT / "tests" / "system-packages.txt").read_text("utf-8").splitlines()]
    entries = [words for words in lines if words and words[0] != "#"]
    assert entries
    assert all(len(words) == 2 or words[2:] == ["if-available"] for words in entries)


def test_what_is_run_may_be_run() -> None:
    for name in (".ci/run", "scripts/browser", "scripts/install", "scripts/system-packages"):
        assert os.access(ROOT / name, os.X_OK), name
