"""uvicorn's server, with a beginning and an end of its own.

It takes connections one by one (`listening.py`), and it ends in order: first it is not ready any more, then it takes no new
connections, then what is under way finishes, and what has not finished by the deadline is cut. uvicorn itself closes idle
connections under requests that are already on their way, and raises the signal again, so that a drained server looks killed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from proxy.listening import Acceptor, Turn, bind
from proxy.settings import DrainSettings, Listen

if TYPE_CHECKING:
    from proxy.relay import Relay

_LOOK_SECONDS: Final = 0.05  # between looks at whether everything has finished
_log = logging.getLogger("postern")


class Server(uvicorn.Server):
    """Serves one relay. `on_start` is called once it listens, `stopping` as soon as it is to stop, perhaps more than once."""

    def __init__(
        self,
        config: uvicorn.Config,
        relay: Relay,
        *,
        listen: Listen,
        drain: Callable[[], DrainSettings],
        tls: Callable[[], ssl.SSLContext | None],
        stopping: Callable[[], None],
        turn: Turn | None = None,
    ) -> None:
        super().__init__(config)
        self._relay = relay
        self._listen = listen
        self._drain = drain
        self._tls = tls
        self.on_start: Callable[[], None] = lambda: None
        self._on_stop = stopping
        self._turn = turn
        self._acceptors: list[Acceptor] = []

    def stop(self) -> None:
        """Drain, then end. Once more does no harm."""
        self._on_stop()
        self.should_exit = True

    def stop_at_once(self) -> None:
        """End without waiting for anything."""
        self.stop()
        self.force_exit = True

    def close_listeners(self) -> None:
        """Take no more connections."""
        for acceptor in self._acceptors:
            acceptor.stop()

    # -- what uvicorn calls, in this order

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs the server."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`, or where the settings say, and say so. OSError when that is not possible."""
        self.servers = []
        self._acceptors = [
            Acceptor(
                listener,
                self._protocol,
                tls=self._tls,
                count=lambda: len(self._relay.connections),
                turn=self._turn,
            )
            for listener in (bind(self._listen) if sockets is None else sockets)
        ]
        self._relay.start()
        for acceptor in self._acceptors:
            acceptor.start()
        self.started = True
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 -- the acceptors close them
        """Drain: see the module. Returns when everything has finished, or the time is up."""
        self._on_stop()
        settings = self._drain()
        await self._while(lambda: True, settings.delay)
        self.close_listeners()
        self._relay.drain()
        await self._while(self._busy, settings.timeout)
        left = len(self._relay.connections)
        if left:
            _log.warning("%d connections did not finish in time and are cut", left)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state={})
        return protocol

    def _busy(self) -> bool:
        return self._relay.busy or any(acceptor.opening for acceptor in self._acceptors)

    async def _while(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait as long as `condition` holds, at most so long, and not at all when the end is to come at once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while condition() and not self.force_exit and loop.time() < deadline:  # noqa: ASYNC110 -- no one event tells of it all
            await asyncio.sleep(min(_LOOK_SECONDS, max(deadline - loop.time(), 0.0)))
