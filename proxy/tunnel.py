"""A client's connection after its protocol has been switched (RFC 9110 7.8): bytes are bytes, both ways.

Nothing is read of what goes through, so every WebSocket extension survives, and so does every other protocol. The exchange
that opened the tunnel carries on as its other end; here are the client's end, the half-close, and the ends that the gateway
itself brings about: idleness, the end of the session, the end of the worker.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from uvicorn.server import ServerState

from proxy.frames import CLOSE_GOING_AWAY, Frames
from proxy.wire import FOREVER, TCP_CLOSE, Wire

if TYPE_CHECKING:
    from proxy.exchange import Exchange
    from proxy.relay import Relay
    from proxy.request import Request


class ClientTunnel(Wire):
    """The client's end of a tunnel, in the place of the connection that asked for it."""

    _gone_states: ClassVar = frozenset((TCP_CLOSE,))  # a half-closed tunnel still has a half

    __slots__ = (
        "_broken",
        "_crowd",
        "_eof_in",
        "_eof_out",
        "_exchange",
        "_frames",
        "_heard",
        "_held",
        "_request",
        "_state",
    )

    def __init__(
        self, relay: Relay, server_state: ServerState, crowd: int | str | None, request: Request, exchange: Exchange
    ) -> None:
        super().__init__(relay)
        self._state = server_state
        self._crowd = crowd
        self._request = request
        self._exchange = exchange
        self._eof_in = False  # the client sends no more
        self._eof_out = False  # the app sends no more
        self._broken = False
        self._heard = False  # the client has sent something since the last look at its session
        self._held = b""
        self._frames = Frames() if request.head.values.get(b"upgrade", b"").lower() == b"websocket" else None
        self._idle = self._limits.tunnel_idle_timeout
        self._expire = self._end

    def open(self, transport: asyncio.Transport, head: bytes, held: bytes, *, reading: bool, blocked: bool) -> None:
        """Take over `transport`, which is read from or not, and perhaps blocked; send the 101.

        `held` has come behind the client's request already, and waits for `flow`.
        """
        self._transport = transport
        self._held = held
        self._reading = reading
        transport.set_protocol(self)
        self._relay.admit(self, self._crowd)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes here
        super().write(head)
        if blocked:
            self.pause_writing()

    # -- from asyncio and uvicorn

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sends (asyncio.Protocol)."""
        if self._closing:
            return
        self._heard = True
        if not self._blocked:
            self.deadline = self._relay.now + self._idle
        self._exchange.body(data)

    def eof_received(self) -> bool:
        """The client has closed its half (asyncio.Protocol). Over TLS there are no halves."""
        self._eof_in = True
        if self._closing or self._eof_out or not self._transport.can_write_eof():
            return False
        self._exchange.client_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- how it was lost changes nothing
        """The client is gone, and with it the tunnel (asyncio.Protocol)."""
        self._closing = True
        self.deadline = FOREVER
        self._relay.leave(self, self._crowd)
        self._state.connections.discard(self)
        self._request.log(cut=self._broken)
        self._request.cancel()

    def pause_writing(self) -> None:
        """The client does not keep up: neither does the app have to (asyncio.Protocol)."""
        super().pause_writing()
        self._exchange.client_writable(False)

    def resume_writing(self) -> None:
        """The client keeps up again (asyncio.Protocol)."""
        super().resume_writing()
        self._exchange.client_writable(True)

    def shutdown(self) -> None:
        """The worker stops (uvicorn)."""
        if not self._closing and not self._say_goodbye():
            self._end()

    # -- for the exchange

    def flow(self) -> None:
        """Pass on what came too early, and read on."""
        held, self._held = self._held, b""
        if held:
            self._exchange.body(held)
        self.resume()

    def write(self, data: bytes) -> None:
        """Send bytes of the app's to the client."""
        if self._closing:
            return
        if self._frames is not None:
            self._frames.feed(data)
        super().write(data)

    def write_eof(self) -> None:
        """The app has closed its half: close ours. With both closed, or where there are no halves, the tunnel is over."""
        self._eof_out = True
        if self._eof_in or not self._transport.can_write_eof():
            self.close()
            return
        with suppress(OSError, RuntimeError):  # the other half may have taken the socket with it
            self._transport.write_eof()

    def upstream_writable(self, writable: bool) -> None:
        """The app keeps up with the client, or not."""
        if writable:
            self.resume()
        elif not self._closing:
            self.pause()

    def cut_short(self) -> None:
        """The app's side has broken off."""
        self._broken = True
        self.reset()

    # -- for the relay

    def end_session(self, session_ids: frozenset[str]) -> None:
        """Close when the tunnel was opened because of one of these sessions."""
        if self._request.rests_on(session_ids):
            self._session_over()

    def check_session(self, wall: float) -> None:
        """Close when the session has come to its absolute end; `wall` in epoch seconds."""
        if self._request.expired(wall):
            self._session_over()
        elif self._heard:
            self._heard = False
            self._request.used()

    def _session_over(self) -> None:
        if not self._closing and not self._say_goodbye():
            self.reset()

    def _say_goodbye(self) -> bool:
        """Take leave of a WebSocket, and drop the app's end. False where there is no place for it: within a frame."""
        frames = self._frames
        if frames is None or not frames.between or frames.closed or self._eof_out:
            return False
        self._transport.write(CLOSE_GOING_AWAY)
        self._request.cancel()
        self.linger()
        return True

    def _end(self) -> None:
        self._request.cancel()
        self.close()
