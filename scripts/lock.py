"""Write requirements/*.txt from pyproject.toml, pinned and hashed: `python scripts/lock.py [--upgrade | --check]`.

One resolution serves every lock: dev.txt is resolved first, and holds the others to its versions. A lock opens with a
digest of what it was made from, so that `--check` can tell a stale one without asking an index. No lock names an index:
where packages come from is the business of whoever installs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGEST = "# inputs: sha256:"
# What of the caller's environment may shape a lock: how to reach the network, never which packages there are.
KEPT = re.compile(
    r"(?i)^(path|home|tmpdir|lang|lc_\w+|ssl_cert_\w+|https?_proxy|all_proxy|no_proxy|uv_(default_)?index(_url)?)$"
)


@dataclass(frozen=True, slots=True)
class Lock:
    """One file below requirements/: what it is for, and the requirements that it is made from."""

    name: str
    purpose: str
    inputs: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the lock lies."""
        return ROOT / "requirements" / f"{self.name}.txt"

    def digest(self, python: str) -> str:
        """Fingerprint of the inputs and of the Python versions that the lock must serve."""
        text = json.dumps([python, sorted(self.inputs)])
        return DIGEST + hashlib.sha256(text.encode()).hexdigest()

    def stale(self, python: str) -> bool:
        """Whether pyproject.toml has moved on since the lock was written."""
        return not self.path.is_file() or self.digest(python) not in self.path.read_text("utf-8").splitlines()[:4]


def locks(project: dict[str, Any]) -> list[Lock]:
    """Read the locks that a parsed pyproject.toml asks for, the one that constrains the others first."""
    runtime = tuple(project["project"]["dependencies"])
    groups = project["dependency-groups"]
    build = (*project["build-system"]["requires"], *groups["build"])
    return [
        Lock(
            "dev", "everything but the programs of the end-to-end tests: make check", (*runtime, *build, *groups["dev"])
        ),
        Lock("runtime", "what postern needs to run: make install, Dockerfile", runtime),
        Lock("build", "what builds the distribution: make install, Dockerfile", build),
        Lock(
            "e2e",
            "third-party programs that the end-to-end tests drive, on top of dev.txt: make test",
            tuple(groups["e2e"]),
        ),
        Lock("bench", "what the benchmark needs on top of runtime.txt: make bench", tuple(groups["bench"])),
    ]


def floor(project: dict[str, Any]) -> str:
    """Return the oldest Python that the project supports, e.g. "3.11"."""
    requires = str(project["project"]["requires-python"])
    found = re.fullmatch(r">=(3\.\d+)", requires)
    if not found:
        sys.exit(f"lock: requires-python is {requires!r}; this script reads only '>=3.N'")
    return found[1]


def write(lock: Lock, python: str, *, upgrade: bool) -> None:
    """Resolve one lock with uv and write it. Ends the program when there is no resolution."""
    constraints = [] if lock.name == "dev" else ["--constraint", "requirements/dev.txt"]
    keep = ["--upgrade"] if upgrade else []  # else uv keeps what the present file pins, as far as it still fits
    options = ["--quiet", "--no-config", "--universal", "--generate-hashes", "--no-header", "--no-emit-index-url"]
    command = [
        "pip",
        "compile",
        *options,
        "--python-version",
        python,
        *constraints,
        *keep,
        "--output-file",
        str(lock.path),
        "-",
    ]
    found = subprocess.run(
        [sys.executable, "-m", "uv", *command],
        input="\n".join(lock.inputs),
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if KEPT.match(key)},
        check=False,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        sys.exit(found.stderr)
    body = lock.path.read_text("utf-8")
    lock.path.write_text(
        f"# {lock.purpose}\n# Written by `make lock`; not edited by hand.\n{lock.digest(python)}\n{body}", "utf-8"
    )
    print(f"lock: {lock.path.relative_to(ROOT)}: {body.count('==')} packages")


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions instead of keeping those that fit"
    )
    parser.add_argument(
        "--check", action="store_true", help="fail when a lock does not belong to pyproject.toml; needs no network"
    )
    asked = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    python = floor(project)
    if asked.check:
        stale = [lock.path.relative_to(ROOT) for lock in locks(project) if lock.stale(python)]
        if stale:
            sys.exit(f"lock: run `make lock`: pyproject.toml has changed since {', '.join(map(str, stale))}")
        return
    for lock in locks(project):
        write(lock, python, upgrade=asked.upgrade)


if __name__ == "__main__":
    main()
