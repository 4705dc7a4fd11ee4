"""Webhooks of the stand-in Logto: signed, sent once and in the background, never repeated, as recorded."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import json
import logging
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from .state import SandboxState

_LOGGER = logging.getLogger("postern.sandbox")
_TIMEOUT = 10.0  # seconds, as recorded


@functools.cache
def trusted() -> ssl.SSLContext:
    """Whom outgoing TLS believes: the machine's certificate authorities, read once, for that takes longer than all the rest."""
    return ssl.create_default_context()


def announce(state: SandboxState, event: str, content: Mapping[str, Any]) -> None:
    """Send `event` to every webhook that wants it. Nobody waits for that, and whoever does not answer has missed it."""
    moment = datetime.fromtimestamp(state.clock.now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for hook in state.console.hooks.values():
        if not hook["enabled"] or event not in hook["events"]:
            continue
        body = {"event": event, "createdAt": moment, **content, "hookId": hook["id"]}
        task = asyncio.get_running_loop().create_task(_send(hook, json.dumps(body, separators=(",", ":")).encode()))
        state.sending.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(state.sending.discard)


async def _send(hook: Mapping[str, Any], body: bytes) -> None:
    signature = hmac.digest(hook["signingKey"].encode(), body, hashlib.sha256).hex()
    headers = {
        **hook["config"].get("headers", {}),
        "logto-signature-sha-256": signature,
        "user-agent": "Logto (https://logto.io/)",
        "content-type": "application/json",
    }
    try:
        async with httpx2.AsyncClient(timeout=_TIMEOUT, trust_env=False, verify=trusted()) as client:
            await client.post(hook["config"]["url"], content=body, headers=headers)
    except httpx2.HTTPError as error:
        _LOGGER.info("a webhook was not delivered: %s", type(error).__name__)
