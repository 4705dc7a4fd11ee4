"""Installs and starts the second identity provider: npm's certified `oidc-provider`, see oidc_provider/server.mjs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e import npm
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


def start_second_provider(
    group: Processes, public_url: str, *, signing_alg: str = "ES384", clients: Sequence[Mapping[str, Any]] = ({},)
) -> SecondProvider:
    """Start it for a gateway at `public_url`, signing ID tokens with `signing_alg` (ES384 or RS256).

    `clients`: what each application has in the place of what the one usual one has.
    """
    npm.install(HERE)
    port = free_port()
    endpoint = f"http://localhost:{port}"
    environment = {
        "PORT": str(port),
        "CLIENT_ID": CLIENT_ID,
        "CLIENT_SECRET": CLIENT_SECRET,
        "REDIRECT_URIS": public_url + "/.postern/callback",
        "POST_LOGOUT_REDIRECT_URIS": public_url + "/.postern/signed-out",
        "SIGNING_ALG": signing_alg,
        "CLIENTS": json.dumps(clients),
    }
    running = group.start(f"oidc-provider-{signing_alg}", [npm.program("node"), HERE / "server.mjs"], env=environment)
    running.ready(endpoint + "/oidc/.well-known/openid-configuration")
    return SecondProvider(endpoint, running)
