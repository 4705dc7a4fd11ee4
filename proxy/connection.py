"""One client's connection: requests read off it one at a time and in order, each answered before the next is looked at.

The connection owns the pace. Reading stops whenever what was read has nowhere to go, so memory stays bounded whatever a client
sends, and every wait has a deadline, kept by the relay's sweep over all connections instead of a timer per request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvicorn.server import ServerState

from proxy.bodies import ChunkedBody, LengthBody, request_body
from proxy.errors import MalformedRequest, UpstreamProblem
from proxy.exchange import Exchange
from proxy.gate import Kind, Verdict, bad_request, upstream_failed
from proxy.headers import Peer
from proxy.http1 import RequestHead, read_request
from proxy.refusal import options_answer, refusal
from proxy.request import Request

if TYPE_CHECKING:
    from proxy.relay import Relay

_READ_AHEAD: Final = 65536  # bytes of pipelined requests or unread body held before reading stops
_LINGER_SECONDS: Final = (
    2.0  # how long a closing connection still reads, so that the last answer is not lost to a reset
)
_FOREVER: Final = float("inf")
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_GOING_AWAY: Final = b"\x88\x02\x03\xe9"  # WebSocket close frame, 1001 (RFC 6455 7.4.1)


class ClientConnection(asyncio.Protocol):
    """One client's connection. `keep_alive` tells whether another request may follow the present one."""

    def __init__(self, relay: Relay, server_state: ServerState) -> None:
        self._relay = relay
        self._limits = relay.limits
        self._state = server_state
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._peer: Peer = relay.nobody
        self._scheme = b"http"
        self._held = b""  # read, not yet used: part of a head, pipelined requests, body nobody takes yet
        self._request: Request | None = None
        self._body: LengthBody | ChunkedBody | None = None  # reads what is still to come of the request's body
        self._received = 0  # payload bytes of the request's body
        self._expire: Callable[[], None] = self._close
        self._reading = True
        self._closing = False
        self._tunnel = False
        self._eof = False
        self.deadline = _FOREVER
        self.keep_alive = True

    # -- from asyncio and uvicorn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio.Protocol)."""
        self._transport = transport  # type: ignore[assignment]  # asyncio types this narrower than it calls it
        self._relay.connections.add(self)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes here
        peer = transport.get_extra_info("peername")
        self._peer = self._relay.forwarding.peer(peer[0] if isinstance(peer, tuple) else "")
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = b"https"
        self._wait(self._limits.head_timeout, self._close)
        if len(self._relay.connections) > self._limits.max_connections:
            self._refuse(Verdict(Kind.OVERLOADED, status=503, detail="too many connections"))

    def data_received(self, data: bytes) -> None:
        """Use what was read, or hold it (asyncio.Protocol)."""
        if self._held:
            data = self._held + data
            self._held = b""
        request = self._request
        if request is None:
            if not self._closing:
                self._read_head(data)
        elif request.work is None:
            self._hold(data)
        elif self._tunnel:
            self.deadline = self._relay.now + self._limits.tunnel_idle_timeout
            request.work.body(data)
        elif self._body is not None:
            self._read_body(request, self._body, data)
        else:
            self._hold(data)

    def eof_received(self) -> bool:
        """The client sends no more (asyncio.Protocol). In a tunnel that is a half-close; elsewhere the client has left."""
        if self._tunnel and self._request is not None and isinstance(self._request.work, Exchange):
            self._eof = True
            self._request.work.client_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- how it was lost changes nothing
        """The client is gone: so is all that was done for it (asyncio.Protocol)."""
        self._relay.connections.discard(self)
        self._state.connections.discard(self)
        self.deadline = _FOREVER
        self._closing = True
        request, self._request = self._request, None
        if request is not None:
            request.status = request.status or 499  # nginx's number for a client that did not wait
            request.log(cut=not self._tunnel)
            request.cancel()

    def pause_writing(self) -> None:
        """The client does not keep up (asyncio.Protocol)."""
        if self._request is not None and self._request.work is not None:
            self._request.work.client_writable(False)

    def resume_writing(self) -> None:
        """The client keeps up again (asyncio.Protocol)."""
        if self._request is not None and self._request.work is not None:
            self._request.work.client_writable(True)

    def shutdown(self) -> None:
        """The worker stops (uvicorn): finish what is under way, then close."""
        self.keep_alive = False
        request = self._request
        if request is None:
            self._close()
        elif self._tunnel:
            if request.head.upgrade is not None and request.head.upgrade.lower() == b"websocket":
                self.write(_GOING_AWAY)
            self._close()

    # -- for whoever serves the request

    @property
    def date(self) -> bytes:
        """The value of a Date field for now."""
        return self._relay.date

    @property
    def request_read(self) -> bool:
        """Whether the request's body has been read to its end."""
        return self._body is None

    def write(self, data: bytes) -> None:
        """Send bytes to the client; progress, as far as deadlines go."""
        self._transport.write(data)
        self.deadline = self._relay.now + (
            self._limits.tunnel_idle_timeout if self._tunnel else self._limits.idle_timeout
        )

    def responding(self, status: int) -> None:
        """The final head of the answer is settled: from here on it can only be completed or cut short."""
        if self._request is not None:
            self._request.status = status
        self._expire = self.cut_short

    def respond(self, status: int, head: bytes) -> None:
        """Send the final head of the answer."""
        self.responding(status)
        self.write(head)

    def write_eof(self) -> None:
        """The upstream closed its half of the tunnel: close ours; with both closed the tunnel is over."""
        if self._eof or not self._transport.can_write_eof():
            self._close()
            return
        with suppress(OSError, RuntimeError):  # the other half may have taken the socket with it
            self._transport.write_eof()

    def pause(self) -> None:
        """Read no more from the client for now."""
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the client again."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def flow(self) -> None:
        """Somebody takes the request's body now: give out what is held, and read on."""
        self.resume()
        request, body = self._request, self._body
        if self._held and body is not None and request is not None and request.work is not None:
            data, self._held = self._held, b""
            self._read_body(request, body, data)

    def await_store(self) -> None:
        """The gate is asking the store, which has time limits of its own; what the client sends meanwhile stays with it."""
        self._wait(_FOREVER, self._close)
        self.pause()

    def await_app(self) -> None:
        """The gateway app works on an answer; its own calls have their deadlines."""
        self._wait(_FOREVER, self._close)

    def await_upstream(self) -> None:
        """An exchange is opening its connection: a body read until then would have to be kept."""
        self._wait(self._limits.connect_timeout * 4, self._upstream_too_slow)
        if self._body is not None:
            self.pause()

    def upstream_begun(self) -> None:
        """An exchange has its connection: the body may flow, the answer is due."""
        self._wait(self._limits.first_byte_timeout, self._upstream_too_slow)
        if self._body is not None:
            self.flow()

    def open_tunnel(self, head: bytes) -> None:
        """The upstream has switched protocols: bytes are bytes from here on."""
        self._tunnel = True
        self.keep_alive = False
        self._body = None
        self.respond(101, head)
        self._expire = self._close
        held, self._held = self._held, b""
        if held and self._request is not None and self._request.work is not None:
            self._request.work.body(held)
        self.resume()

    def finished(self) -> None:
        """The answer is complete. On to the next request, or close."""
        request, self._request = self._request, None
        if request is not None:
            request.log()
            request.work = None
        self._state.total_requests += 1
        if self._body is not None:
            self._linger()
        elif not self.keep_alive:
            self._close()
        else:
            self._wait(self._limits.keep_alive, self._close)
            self.resume()
            if self._held:
                data, self._held = self._held, b""
                self._read_head(data)

    def fail(self) -> None:
        """The gateway app broke before it answered."""
        self._refuse(
            Verdict(Kind.BAD_REQUEST, status=500, reason="internal_error", detail="Postern failed; see its log")
        )

    def spoiled(self, verdict: Verdict) -> None:
        """The request's body turned out bad when part of it was on its way."""
        request = self._request
        if request is not None and request.work is not None and request.work.started:
            self.cut_short()
            return
        if request is not None:
            request.cancel()
        self._refuse(verdict)

    def cut_short(self) -> None:
        """The answer cannot be completed, and must not look as if it were: reset the connection.

        A clean FIN would tell an HTTP/1.0 client, or one reading until the end, that it has everything (RFC 9112 8).
        """
        request, self._request = self._request, None
        if request is not None:
            request.log(cut=True)
            request.cancel()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError, ValueError):  # a unix socket, or one already gone
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._closing = True
        self._transport.abort()

    # -- for the relay

    def expire(self) -> None:
        """The present deadline has passed."""
        self.deadline = _FOREVER
        self._expire()

    def end_session(self, session_id: str) -> None:
        """Close if an upstream is serving this connection because of that session."""
        if self._request is not None and self._request.rests_on(session_id):
            self.cut_short()

    def check_session(self, wall: float) -> None:
        """Close a tunnel or stream whose session has come to its absolute end; `wall` in epoch seconds."""
        ended = self._request.expired(wall) if self._request is not None else None
        if ended is not None:
            self.end_session(ended)

    # -- reading requests

    def _read_head(self, data: bytes) -> None:
        try:
            found = read_request(data, self._relay.head_limits)
        except MalformedRequest as error:
            self._refuse(bad_request(error.status, error.reason))
            return
        if found is None:
            if not self._held and self._expire != self._head_too_slow:
                self._wait(self._limits.head_timeout, self._head_too_slow)
            self._held = data
            return
        head, used = found
        if used < len(data):
            self._held = data[used:]
        self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        self.keep_alive = head.keep_alive
        self._body = None if head.length == 0 else request_body(head)
        self._received = 0
        request = self._request = Request(self, self._relay, head, self._peer, self._scheme)
        if head.target == b"*":
            self.keep_alive = self.keep_alive and self._body is None
            self.respond(204, options_answer(self.date, request.id, keep_alive=self.keep_alive))
            self.finished()
            return
        request.begin()
        if self._held and self._body is not None and self._reading:
            self.flow()

    def _read_body(self, request: Request, body: LengthBody | ChunkedBody, data: bytes) -> None:
        work = request.work
        if work is None:
            self._hold(data)
            return
        try:
            payload = body.feed(data)
        except ValueError as error:
            self.spoiled(bad_request(400, str(error)))
            return
        self._received += len(payload)
        if self._limits.body_bytes and self._received > self._limits.body_bytes:
            self.spoiled(bad_request(413, "the request's body is larger than allowed"))
            return
        if body.done:
            self._body = None
            self._held = body.rest
        if not request.status and isinstance(work, Exchange):
            if body.done:
                self._wait(self._limits.first_byte_timeout, self._upstream_too_slow)
            else:
                self._wait(self._limits.body_timeout, self._body_too_slow)
        if payload:
            work.body(payload)
        if body.done and request.work is work:
            work.body_done(body.trailers)

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > _READ_AHEAD:
            self.pause()

    # -- deadlines and ends

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.deadline = self._relay.now + seconds
        self._expire = then

    def _head_too_slow(self) -> None:
        self._refuse(bad_request(408, "the request's header section did not arrive in time"))

    def _body_too_slow(self) -> None:
        self.spoiled(bad_request(408, "the request's body stopped arriving"))

    def _upstream_too_slow(self) -> None:
        request = self._request
        if request is None or request.verdict is None:
            self._close()
            return
        if isinstance(request.work, Exchange):
            request.work.too_slow()
        request.cancel()
        request.answer(
            upstream_failed(UpstreamProblem.RESPONSE_TIMEOUT, request.verdict.route, request.verdict.session)
        )

    def _refuse(self, verdict: Verdict) -> None:
        """Answer what could not even be read, in the simplest way, and close."""
        if self._closing:
            return
        request, self._request = self._request, None
        request_id = request.id if request is not None else self._relay.new_request_id()
        self._transport.write(refusal(verdict, self.date, request_id))
        self._relay.log.refused(self._peer.text, request_id, verdict)
        self._linger()

    def _linger(self) -> None:
        """Close so that the last answer arrives: unread bytes would turn the close into a reset (RFC 9112 9.6)."""
        self._closing = True
        self._body = None
        self._held = b""
        if self._transport.is_closing():
            return
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        with suppress(OSError, RuntimeError):  # the client may be quicker
            self._transport.write_eof()
        self.resume()
        self._wait(_LINGER_SECONDS, self._transport.abort)

    def _close(self) -> None:
        self._closing = True
        request = self._request
        if self._tunnel and request is not None:
            self._request = None
            request.log()
            request.cancel()
        if not self._transport.is_closing():
            self._transport.close()
        # What the client never takes would keep the connection for ever.
        self._wait(self._limits.idle_timeout, self._transport.abort)
