"""Programs from npm: installed from a lock file, once for each state of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> None:
    """`npm ci` from the lock file in `folder`, unless that very lock file is installed already."""
    lock = (folder / "package-lock.json").read_bytes()
    stamp = folder / "node_modules" / ".installed"
    wanted = hashlib.sha256(lock).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    argv = [program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    # npm starts whatever `node` the PATH names: ours first. The rest of the environment says where packages come from.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, f"npm ci failed\n{done.stdout}\n{done.stderr}"
    stamp.write_text(wanted)


def program(name: str) -> str:
    """The Node that comes with the tests' own packages, else the system's."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"{name} is not installed: `make test` installs it from requirements/e2e.txt"
    return found
