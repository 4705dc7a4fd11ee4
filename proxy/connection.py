"""One client's connection: requests read off it one at a time and in order, each answered before the next is looked at.

Each request goes to the gate, then either to an `Exchange` (passed: relayed to the app without entering ASGI) or to an `AsgiCall`
(anything else: the gateway answers). The connection owns the pace: reading stops whenever what was read has nowhere to go, and
every wait has a deadline, kept by the relay's sweep instead of a timer per request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvicorn.server import ServerState

from proxy.asgi import AsgiCall
from proxy.claims import Tokens
from proxy.errors import MalformedRequest, StoreUnavailable, UpstreamProblem
from proxy.exchange import Exchange
from proxy.gate import Call, Kind, Verdict, bad_request, upstream_failed
from proxy.headers import Origin, RouteHeaders, request_id_from
from proxy.http1 import ChunkedBody, LengthBody, RequestHead, read_request, request_body

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
    """One client's connection. See the module."""

    def __init__(self, relay: Relay, server_state: ServerState) -> None:
        self._relay = relay
        self._limits = relay.limits
        self._state = server_state
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._peer = ""
        self._scheme = b"http"
        self._held = b""  # read, not yet used: part of a head, pipelined requests, body nobody takes yet
        self._head: RequestHead | None = None
        self._body: LengthBody | ChunkedBody | None = None  # what is still to be read of the request's body
        self._received = 0
        self._work: Exchange | AsgiCall | None = None
        self._verdict: Verdict | None = None
        self._origin: Origin | None = None
        self._task: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._expire: Callable[[], None] = self._close
        self._reading = True
        self._closing = False
        self._tunnel = False
        self._eof = False
        self.deadline = _FOREVER
        self.keep_alive = True
        self.request_id = b""
        self.status = 0

    # -- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio.Protocol)."""
        self._transport = transport  # type: ignore[assignment]  # asyncio types this narrower than it calls it
        self._relay.connections.add(self)
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes here
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
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
        if self._head is None:
            if not self._closing:
                self._read_head(data)
        elif self._tunnel:
            self._wait(self._limits.tunnel_idle_timeout, self._close)
            self._work.body(data)  # type: ignore[union-attr]  # a tunnel always has its exchange
        elif self._body is not None and self._work is not None:
            self._read_body(self._body, data)
        else:
            self._hold(data)

    def eof_received(self) -> bool:
        """The client sends no more (asyncio.Protocol). In a tunnel that is a half-close; elsewhere the client has left."""
        if self._tunnel and isinstance(self._work, Exchange):
            self._eof = True
            self._work.client_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: so is all that was done for it (asyncio.Protocol)."""
        self._relay.connections.discard(self)
        self._state.connections.discard(self)  # type: ignore[arg-type]  # uvicorn names its own classes here
        self.deadline = _FOREVER
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._work is not None:
            work, self._work = self._work, None
            if isinstance(work, AsgiCall) or work.tunnel:
                self._log(work)
            else:
                self.status = self.status or 499  # nginx's number for a client that did not wait
                self._log(work)
            work.cancel()

    def pause_writing(self) -> None:
        """The client does not keep up (asyncio.Protocol)."""
        if self._work is not None:
            self._work.client_writable(False)

    def resume_writing(self) -> None:
        """The client keeps up again (asyncio.Protocol)."""
        if self._work is not None:
            self._work.client_writable(True)

    def shutdown(self) -> None:
        """The worker stops (uvicorn): finish what is under way, then close."""
        self.keep_alive = False
        if self._head is None:
            self._close()
        elif self._tunnel:
            if self._head.upgrade is not None and self._head.upgrade.lower() == b"websocket":
                self.write(_GOING_AWAY)
            self._close()

    # -- for the exchange and the app

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
        if not self._closing:
            self.deadline = self._relay.now + (
                self._limits.tunnel_idle_timeout if self._tunnel else self._limits.idle_timeout
            )

    def respond(self, status: int, head: bytes) -> None:
        """Send the final head of the answer."""
        self.status = status
        self._expire = self.cut_short
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
        """Read from the client again, starting with what is held."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        if self._held and self._body is not None and self._work is not None:
            data, self._held = self._held, b""
            self._read_body(self._body, data)

    def await_upstream(self) -> None:
        """An exchange is opening its connection: whatever is read until then would have to be kept."""
        if self._body is not None:
            self.pause()
        self._wait(self._limits.connect_timeout * 4, self._too_slow)

    def upstream_begun(self) -> None:
        """An exchange has its connection: the body may flow, the answer is due."""
        self._wait(self._limits.first_byte_timeout, self._too_slow)
        if self._body is not None:
            self.resume()

    def open_tunnel(self, head: bytes) -> None:
        """The upstream has switched protocols: bytes are bytes from here on."""
        self._tunnel = True
        self.keep_alive = False
        self._body = None
        self.respond(101, head)
        self._wait(self._limits.tunnel_idle_timeout, self._close)
        held, self._held = self._held, b""
        if held and self._work is not None:
            self._work.body(held)
        self.resume()

    def answer(self, verdict: Verdict) -> None:
        """Let the gateway app answer the present request with `verdict`."""
        head = self._head
        if head is None or self._closing:
            return
        self._verdict = verdict
        call = AsgiCall(self, head)
        self._work = call
        self._wait(_FOREVER, self._close)  # the app's own calls have their deadlines
        call.start(self._relay.app, self._call(head, verdict))
        if self._body is not None and self._held:
            data, self._held = self._held, b""
            self._read_body(self._body, data)

    def finished(self) -> None:
        """The answer is complete. On to the next request, or close."""
        work, self._work = self._work, None
        if work is not None:
            self._log(work)
        self._state.total_requests += 1
        if self._tunnel:
            self._close()
            return
        unread, self._body = self._body is not None, None
        if not self.keep_alive or unread:
            self._linger() if unread else self._close()
            return
        self._head = None
        self._verdict = None
        self._wait(self._limits.keep_alive, self._close)
        self.resume()
        if self._held:
            data, self._held = self._held, b""
            self._read_head(data)

    def fail(self) -> None:
        """The gateway app broke before it answered."""
        self._work = None
        self._refuse(
            Verdict(Kind.BAD_REQUEST, status=500, reason="internal_error", detail="Postern failed; see its log")
        )

    def cut_short(self) -> None:
        """The answer cannot be completed, and must not look as if it were: reset the connection.

        A clean FIN would tell an HTTP/1.0 client, or one reading until the end, that it has everything (RFC 9112 8).
        """
        work, self._work = self._work, None
        if work is not None:
            self._log(work, cut=True)
            work.cancel()
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
        """Close if what is under way rests on this session."""
        verdict = self._verdict
        if (
            verdict is not None
            and verdict.session is not None
            and verdict.session.id == session_id
            and self._work is not None
        ):
            if isinstance(self._work, AsgiCall):
                return  # the sign-out itself, or a page about it
            self.cut_short()

    def check_session(self, wall: float) -> None:
        """Close a tunnel or stream whose session has come to its absolute end; `wall` in epoch seconds."""
        verdict = self._verdict
        if verdict is not None and verdict.session is not None and verdict.session.expires_at < wall:
            self.end_session(verdict.session.id)

    # -- reading requests

    def _read_head(self, data: bytes) -> None:
        try:
            found = read_request(data, self._relay.head_limits)
        except MalformedRequest as error:
            self._refuse(bad_request(error.status, error.reason))
            return
        if found is None:
            if self._expire != self._head_too_slow and data:
                self._wait(self._limits.head_timeout, self._head_too_slow)
            self._held = data
            return
        head, used = found
        if used < len(data):
            self._held = data[used:]
        self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        relay = self._relay
        self._started_at = time.perf_counter()
        self._head = head
        self.keep_alive = head.keep_alive
        self._body = None if head.length == 0 else request_body(head)
        self._received = 0
        self.status = 0
        origin = self._origin = relay.forwarding.origin(head, self._peer, self._scheme)
        self.request_id = request_id_from(head, trusted=origin.trusted) or relay.new_request_id()
        limit = self._limits.body_bytes
        if limit and head.length is not None and head.length > limit:
            self.answer(bad_request(413, "the request's body is larger than allowed"))
            return
        if head.target == b"*":
            self._answer_options()
            return
        host = origin.host.decode("latin-1")
        verdict = relay.gate.judge(head, host, origin.address)
        if verdict is None:
            self.pause()
            self._wait(_FOREVER, self._close)  # the store has a time limit of its own
            self._task = asyncio.get_running_loop().create_task(self._judge_later(head, host, origin))
            return
        self._act(head, verdict, origin)
        if self._held and self._body is not None and self._work is not None:
            data, self._held = self._held, b""
            self._read_body(self._body, data)

    async def _judge_later(self, head: RequestHead, host: str, origin: Origin) -> None:
        verdict = await self._relay.gate.judge_later(head, host, origin.address)
        self._task = None
        self._act(head, verdict, origin)
        self.resume()

    def _act(self, head: RequestHead, verdict: Verdict, origin: Origin) -> None:
        self._verdict = verdict
        route = verdict.route
        if verdict.kind is not Kind.PASS or route is None:
            self.answer(verdict)
            return
        headers = self._relay.headers[route]
        session = verdict.session
        block: bytes | None
        if session is None:
            block = headers.identity_block(None, None)
        else:
            block = session.blocks.get(route)
            if block is None:
                if headers.needs_tokens:
                    self.pause()
                    task = self._act_with_tokens(head, verdict, origin, headers)
                    self._task = asyncio.get_running_loop().create_task(task)
                    return
                block = session.blocks[route] = headers.identity_block(session.identity, None)
        self._relay_to(head, verdict, origin, headers, block)

    async def _act_with_tokens(
        self, head: RequestHead, verdict: Verdict, origin: Origin, headers: RouteHeaders
    ) -> None:
        tokens: Tokens | None = None
        try:
            tokens = await self._relay.tokens_of(head)
        except StoreUnavailable as error:
            self._task = None
            self.answer(Verdict(Kind.UNAVAILABLE, route=verdict.route, status=503, detail=str(error)))
            return
        self._task = None
        identity = verdict.session.identity if verdict.session is not None else None
        self._relay_to(head, verdict, origin, headers, headers.identity_block(identity, tokens))
        self.resume()

    def _relay_to(
        self, head: RequestHead, verdict: Verdict, origin: Origin, headers: RouteHeaders, identity: bytes
    ) -> None:
        route = verdict.route
        if route is None or self._closing:
            return
        block = headers.to_upstream(head, origin, identity, self.request_id)
        exchange = Exchange(self, head, verdict, self._relay.pools[route], headers, block)
        self._work = exchange
        exchange.start()

    def _read_body(self, body: LengthBody | ChunkedBody, data: bytes) -> None:
        work = self._work
        if work is None:
            self._hold(data)
            return
        try:
            payload = body.feed(data)
        except ValueError as error:
            self._spoiled(bad_request(400, str(error)))
            return
        self._received += len(payload)
        if self._limits.body_bytes and self._received > self._limits.body_bytes:
            self._spoiled(bad_request(413, "the request's body is larger than allowed"))
            return
        if body.done:
            self._body = None
            self._held = body.rest
            if not self.status:
                self._wait(self._limits.first_byte_timeout, self._too_slow)
        elif not self.status:
            self._wait(self._limits.body_timeout, self._body_too_slow)
        if payload:
            work.body(payload)
        if body.done and self._work is work:
            work.body_done(body.trailers)

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > _READ_AHEAD:
            self.pause()

    def _spoiled(self, verdict: Verdict) -> None:
        """The request's body turned out bad when part of it was on its way."""
        work = self._work
        if work is not None and work.started:
            self.cut_short()
            return
        self._work = None
        if work is not None:
            work.cancel()
        self._refuse(verdict)

    # -- deadlines and ends

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.deadline = self._relay.now + seconds
        self._expire = then

    def _head_too_slow(self) -> None:
        self._refuse(bad_request(408, "the request's header section did not arrive in time"))

    def _body_too_slow(self) -> None:
        self._spoiled(bad_request(408, "the request's body stopped arriving"))

    def _too_slow(self) -> None:
        work = self._work
        verdict = self._verdict
        if not isinstance(work, Exchange) or verdict is None:
            self._close()
            return
        work.cancel()
        self._work = None
        self.answer(upstream_failed(UpstreamProblem.RESPONSE_TIMEOUT, verdict.route, verdict.session))

    def _answer_options(self) -> None:
        """`OPTIONS *` asks about the server as a whole (RFC 9110 9.3.7): there is nothing in it to permit or relay."""
        self.keep_alive = self.keep_alive and self._body is None
        connection = b"" if self.keep_alive else b"Connection: close\r\n"
        self.respond(
            204,
            b"HTTP/1.1 204 No Content\r\nDate: %b\r\nX-Request-Id: %b\r\n%b\r\n"
            % (self.date, self.request_id, connection),
        )
        self.finished()

    def _refuse(self, verdict: Verdict) -> None:
        """Answer what could not even be read, in the simplest way, and close."""
        if self._closing:
            return
        request_id = self.request_id = self._relay.new_request_id()
        self._verdict = verdict
        problem = {
            "type": "about:blank",
            "title": _TITLES.get(verdict.status, "Bad Request"),
            "status": verdict.status,
            "detail": verdict.detail,
            "reason": verdict.reason,
            "request_id": request_id.decode(),
        }
        body = json.dumps(problem).encode()
        retry = b"Retry-After: 5\r\n" if verdict.status == 503 else b""
        allow = b"Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n" if verdict.status == 405 else b""
        self.status = verdict.status
        self._transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
            b"Date: %b\r\nX-Request-Id: %b\r\n%b%bConnection: close\r\n\r\n%b"
            % (verdict.status, problem["title"].encode(), len(body), self.date, request_id, retry, allow, body)  # type: ignore[attr-defined]
        )
        self._relay.log.write(self, None)
        self._linger()

    def _linger(self) -> None:
        """Close so that the last answer arrives: unread bytes would turn the close into a reset (RFC 9112 9.6)."""
        self._closing = True
        self._head = None
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
        if self._tunnel and self._work is not None:
            work, self._work = self._work, None
            self._log(work)
            work.cancel()
        if not self._transport.is_closing():
            self._transport.close()
        # What the client never takes would keep the connection for ever.
        self._wait(self._limits.idle_timeout, self._transport.abort)

    def _log(self, work: Exchange | AsgiCall, *, cut: bool = False) -> None:
        self._relay.log.write(self, work, cut=cut)

    def _call(self, head: RequestHead, verdict: Verdict) -> Call:
        relay = self._relay
        origin = self._origin
        host = origin.host if origin is not None else head.host
        url = f"{relay.public_scheme}://{host.decode('latin-1')}{head.target.decode('latin-1')}"
        client = origin.client if origin is not None else self._peer
        return Call(verdict, self.request_id.decode(), client, relay.public_scheme, host.decode("latin-1"), url)

    # -- for the access log

    @property
    def head(self) -> RequestHead | None:
        """The present request's head."""
        return self._head

    @property
    def verdict(self) -> Verdict | None:
        """What the gate said of the present request."""
        return self._verdict

    @property
    def client(self) -> str:
        """The client's address, trusted proxies taken off."""
        return self._origin.client if self._origin is not None else self._peer

    @property
    def seconds(self) -> float:
        """How long the present request has taken so far, in seconds."""
        return time.perf_counter() - self._started_at if self._started_at else 0.0


_TITLES: Final = {
    400: "Bad Request", 405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 414: "URI Too Long",
    417: "Expectation Failed", 431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip
