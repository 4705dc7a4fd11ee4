"""A stand-in Logto over real HTTP, a settings file's worth of gateway, and setups of the one for the other."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from proxy.logto_plan import Step
from proxy.logto_setup import Access, Extras, Setup, manager_for, settings_before, setup_of, wanted_for
from proxy.sandbox import SANDBOX_ADMIN_SECRET, SandboxConfig, SandboxState
from proxy.sandbox.run import RunningLogto, running_logto

PUBLIC = "https://apps.example.com"
DISCORD = ("111111111111111111", "discord-secret-of-no-value")
ADMIN = Access(admin_secret=SANDBOX_ADMIN_SECRET)


class Stand:
    """One stand-in, empty at first, and whoever sets it up."""

    def __init__(self, logto: RunningLogto) -> None:
        self.url = logto.url
        self.state: SandboxState = logto.state

    @asynccontextmanager
    async def setup(
        self,
        extras: Extras | None = None,
        *,
        access: Access | None = None,
        public_url: str = PUBLIC,
        environ: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Setup]:
        given = {"POSTERN_PUBLIC_URL": public_url, "LOGTO_ENDPOINT": self.url, **(environ or {})}
        settings, pending = settings_before(Path(os.devnull), given)
        access = access or Access(admin=self.url, admin_secret=SANDBOX_ADMIN_SECRET)
        async with setup_of(
            settings, manager_for(settings, access), wanted_for(settings, pending, extras or Extras())
        ) as setup:
            yield setup

    async def run(self, extras: Extras | None = None, *, stop_after: int | None = None, **more: Any) -> list[Step]:
        """Set up, giving the steps that were planned; `stop_after` so many requests, as if killed."""
        async with self.setup(extras, **more) as setup:
            steps = await setup.plan()
            sent = 0
            async for step in setup.carry_out(steps):
                sent += bool(step.method)
                if stop_after is not None and sent >= stop_after:
                    break
            return list(steps)

    def held(self) -> dict[str, Any]:
        """What the console holds, less what is random or counts time."""
        console = self.state.console

        def shown(thing: dict[str, Any]) -> dict[str, Any]:
            return {key: it for key, it in thing.items() if key not in ("id", "signingKey", "createdAt")}

        lists = {
            name: sorted((shown(it) for it in getattr(console, name).values()), key=repr)
            for name in ("applications", "connectors", "hooks", "roles", "resources", "organizations")
        }
        managers = sum(map(len, console.assigned.values()))
        more = {"experience": console.sign_in_experience, "claims": console.id_token_claims, "managers": managers}
        return copy.deepcopy(lists | more)


def run(conversation: Callable[[Stand], Awaitable[None]], **config: Any) -> None:
    async def hold() -> None:
        async with running_logto(SandboxConfig(**({"client_id": "", "client_secret": ""} | config))) as logto:
            await conversation(Stand(logto))

    asyncio.run(hold())


def changing(steps: list[Step]) -> list[str]:
    return [f"{step.action} {step.what}" for step in steps if step.action != "keep"]
