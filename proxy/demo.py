"""`postern demo`: the stand-in Logto, the sample app and the gateway in front of it, in one process, sessions in memory."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import uvloop
from rich.console import Console

from proxy.logs import configure
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SANDBOX_WEBHOOK_KEY
from proxy.sandbox.run import Addresses, serve_sandbox
from proxy.serve import serve
from proxy.settings import Settings, load


def demo_settings(port: int) -> Settings:
    """The settings of the demo's gateway: what a sidecar's environment holds, and nothing else."""
    return load(
        Path(os.devnull),  # a settings file in the working directory is somebody's gateway, not the demo's
        {
            "POSTERN_PUBLIC_URL": f"http://localhost:{port}",
            "POSTERN_LISTEN": f"127.0.0.1:{port}",
            "POSTERN_UPSTREAM": f"http://127.0.0.1:{port + 2}",
            "LOGTO_ENDPOINT": f"http://localhost:{port + 1}",
            "POSTERN_LOGTO__INTERNAL_ENDPOINT": f"http://127.0.0.1:{port + 1}",
            "POSTERN_LOGTO__CONNECTOR": "discord",
            "LOGTO_APP_ID": SANDBOX_APP_ID,
            "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
            "POSTERN_LOGTO__WEBHOOK_KEY": SANDBOX_WEBHOOK_KEY,
            "POSTERN_LOG__LEVEL": "warning",
        },
    )


async def _demo(port: int, console: Console) -> None:
    settings = demo_settings(port)
    ready = asyncio.Event()

    def sandbox_ready(_: Addresses) -> None:
        ready.set()

    sandbox = asyncio.create_task(
        serve_sandbox("127.0.0.1", port + 1, app_port=port + 2, public_url=settings.public_url, ready=sandbox_ready)
    )
    try:
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({sandbox, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if sandbox.done():
            await sandbox  # raises what stopped it: a port that is taken
        await serve(settings, started=lambda: console.print(greeting(port), highlight=False, soft_wrap=True))
    finally:
        sandbox.cancel()
        with suppress(asyncio.CancelledError):
            await sandbox


def greeting(port: int) -> str:
    """What the demo says once it is ready, in rich's markup: what to open and what to click."""
    return (
        f"\n[bold]Postern demo[/bold]   open [bold cyan]http://localhost:{port}[/bold cyan]\n\n"
        "  1. You are sent to sign in: choose a person on the page that stands in for Discord.\n"
        "  2. You land on the sample app, which shows who you are and every header it got.\n"
        f"  3. Sign out there, or look at http://localhost:{port}/.postern/\n"
        f"  4. Suspend that person on http://localhost:{port + 1}/sandbox/people, and reload.\n\n"
        f"  gateway {port}, stand-in Logto {port + 1}, sample app {port + 2}; sessions in memory. Ctrl-C ends all of it.\n"
    )


def run_demo(port: int) -> None:
    """Run the demo on `port` (and the two after it) until Ctrl-C. OSError when a port is taken."""
    console = Console()
    configure(demo_settings(port).log)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_demo(port, console))
