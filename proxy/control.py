"""How the supervisor and its workers talk: one JSON object a line, over a socket that nobody else has.

Downwards go orders, with settings pickled into them: a worker trusts whoever started it. Upwards comes plain JSON alone: a worker
talks to the network, and what it says must not be able to run anything in the supervisor.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import socket
from contextlib import suppress
from typing import Any, Final

from proxy.settings import Settings

Message = dict[str, Any]

_LONGEST: Final = 1 << 24  # bytes of one message: settings with thousands of routes, numbers of all of them


class Channel:
    """One end of the talk. What cannot be said any more, because the other end is gone, is lost."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """Talk over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_LONGEST))

    def say(self, kind: str, **values: Any) -> None:
        """Send a message."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"kind": kind, **values}).encode() + b"\n")

    async def hear(self) -> Message | None:
        """The next message; None when the other end is gone, or speaks nonsense."""
        try:
            message = json.loads(await self._reader.readuntil(b"\n"))
        except (OSError, EOFError, ValueError, RecursionError, asyncio.LimitOverrunError):
            return None
        return message if isinstance(message, dict) else None

    async def close(self) -> None:
        """Close this end, once everything has been said."""
        with suppress(OSError):
            self._writer.close()
            await self._writer.wait_closed()


def packed(settings: Settings) -> str:
    """`settings` for an order."""
    return base64.b64encode(pickle.dumps(settings)).decode()


def unpacked(text: str) -> Settings:
    """The settings in an order. Only ever of one's own supervisor."""
    settings = pickle.loads(base64.b64decode(text))  # noqa: S301 -- see the module
    if not isinstance(settings, Settings):
        raise TypeError("an order without settings")
    return settings
