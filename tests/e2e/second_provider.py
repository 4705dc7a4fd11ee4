"""Installs and starts the second identity provider: npm's certified `oidc-provider`, see oidc_provider/server.mjs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.e2e.processes import Processes, Running, free_port

HERE = Path(__file__).parent / "oidc_provider"
CLIENT_ID = "second-opinion"
CLIENT_SECRET = "a-secret-for-loopback-only-0001"


@dataclass(frozen=True, slots=True)
class SecondProvider:
    """A running provider; `endpoint` is what Postern takes for Logto's."""

    endpoint: str
    running: Running

    def asked(self, path: str) -> int:
        """How often `path` was asked for so far."""
        counts: dict[str, int] = httpx2.get(self.endpoint + "/requests", trust_env=False).json()
        return counts.get(path, 0)


def start_second_provider(group: Processes, public_url: str, *, signing_alg: str = "ES384") -> SecondProvider:
    """Start it for a gateway at `public_url`, signing ID tokens with `signing_alg` (ES384 or RS256)."""
    _install()
    port = free_port()
    endpoint = f"http://localhost:{port}"
    environment = {
        "PORT": str(port),
        "CLIENT_ID": CLIENT_ID,
        "CLIENT_SECRET": CLIENT_SECRET,
        "REDIRECT_URIS": public_url + "/.postern/callback",
        "POST_LOGOUT_REDIRECT_URIS": public_url + "/.postern/signed-out",
        "SIGNING_ALG": signing_alg,
    }
    running = group.start(f"oidc-provider-{signing_alg}", [_program("node"), HERE / "server.mjs"], env=environment)
    running.ready(endpoint + "/oidc/.well-known/openid-configuration")
    return SecondProvider(endpoint, running)


def _install() -> None:
    """`npm ci` from the lock file, unless that very lock file is installed already."""
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = HERE / "node_modules" / ".installed"
    wanted = hashlib.sha256(lock).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    argv = [_program("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    # npm starts whatever `node` the PATH names: ours first. The rest of the environment says where packages come from.
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    done = subprocess.run(argv, cwd=HERE, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, f"npm ci failed\n{done.stdout}\n{done.stderr}"
    stamp.write_text(wanted)


def _program(name: str) -> str:
    """The Node that comes with the tests' own packages, else the system's."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    assert found, f"{name} is not installed: `make test` installs it from requirements/e2e.txt"
    return found
