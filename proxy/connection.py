"""One client's connection: requests read off it one at a time and in order, each answered before the next is looked at.

The connection owns the pace. Reading stops whenever what was read has nowhere to go, and no request is begun while the
client has not taken the answer to the last one, so memory stays bounded whatever a client sends and however little it reads.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from uvicorn.server import ServerState

from proxy.bodies import ChunkedBody, LengthBody, request_body
from proxy.errors import MalformedRequest, UpstreamProblem
from proxy.exchange import Exchange
from proxy.forwarding import NOBODY, Peer
from proxy.http1 import RequestHead, read_request
from proxy.refusal import refusal
from proxy.request import Request
from proxy.tunnel import ClientTunnel
from proxy.verdict import Kind, Verdict, bad_request, upstream_failed
from proxy.wire import FOREVER, Wire

if TYPE_CHECKING:
    from proxy.relay import Plan, Relay

_READ_AHEAD: Final = 65536  # bytes of pipelined requests or unread body held before reading stops
_LAST_CALL: Final = 2.0  # seconds at most that an idle connection waits for one more request when the worker stops


class ClientConnection(Wire):
    """One client's connection. `keep_alive` tells whether another request may follow the present one."""

    __slots__ = (
        "_body",
        "_crowd",
        "_held",
        "_peer",
        "_plan",
        "_received",
        "_request",
        "_scheme",
        "_state",
        "_stopping",
        "keep_alive",
    )

    def __init__(self, relay: Relay, server_state: ServerState) -> None:
        super().__init__(relay)
        self._state = server_state
        self._plan = relay.plan
        self._peer: Peer = NOBODY
        self._crowd: int | str | None = None  # what this connection is counted by
        self._scheme = b"http"
        self._held = b""  # read, not yet used: part of a head, pipelined requests, body nobody takes yet
        self._request: Request | None = None
        self._body: LengthBody | ChunkedBody | None = None  # reads what is still to come of the request's body
        self._received = 0  # payload bytes of the request's body
        self._stopping = False
        self.keep_alive = True

    # -- from asyncio and uvicorn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio.Protocol)."""
        self._transport = transport  # type: ignore[assignment]  # asyncio types this narrower than it calls it
        # Not before: between its making and this the worker may have been told to stop, and has not told who was not there yet.
        self._stopping = self._relay.draining
        self._state.connections.add(self)  # type: ignore[arg-type]  # uvicorn names its own classes here
        peer = transport.get_extra_info("peername")
        self._peer = self._plan.forwarding.peer(peer[0] if isinstance(peer, tuple) else "")
        self._crowd = self._peer.crowd
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = b"https"
        self._wait(_LAST_CALL if self._stopping else self._limits.head_timeout, self.close)
        if not self._relay.admit(self, self._crowd):
            self._refuse(Verdict(Kind.OVERLOADED, status=503, detail="too many connections"))

    def data_received(self, data: bytes) -> None:
        """Use what was read, or hold it (asyncio.Protocol)."""
        if self._held:
            data = self._held + data
            self._held = b""
        request = self._request
        if request is None:
            if self._closing:
                return
            if self._blocked:
                self._hold(data)
            else:
                self._read_head(data)
        elif self._body is not None:
            self._read_body(request, self._body, data)
        else:
            self._hold(data)

    def eof_received(self) -> bool:
        """The client sends no more (asyncio.Protocol): it has left, see `Wire`."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- how it was lost changes nothing
        """The client is gone: so is all that was done for it (asyncio.Protocol)."""
        self._detach()
        self._closing = True
        request, self._request = self._request, None
        if request is not None:
            request.status = request.status or 499  # nginx's number for a client that did not wait
            request.log(cut=True)
            request.cancel()

    def pause_writing(self) -> None:
        """The client does not keep up (asyncio.Protocol)."""
        super().pause_writing()
        if self._request is not None and self._request.work is not None:
            self._request.work.client_writable(False)

    def resume_writing(self) -> None:
        """The client keeps up again (asyncio.Protocol)."""
        super().resume_writing()
        if self._request is None:
            self._next()
        elif self._request.work is not None:
            self._request.work.client_writable(True)

    def shutdown(self) -> None:
        """The worker stops (uvicorn): finish what is under way, then close.

        A client learns from an answer that no more requests are taken here (RFC 9112 9.6). Whoever has none to learn it from
        may have sent a request that is still on its way, and it would be lost with the connection: there is a last call.
        """
        self._stopping = True
        if self._request is None and not self._held and not self._closing:
            self._wait(_LAST_CALL, self.close)

    # -- for whoever serves the request

    @property
    def date(self) -> bytes:
        """The value of a Date field for now."""
        return self._relay.date

    @property
    def request_read(self) -> bool:
        """Whether the request's body has been read to its end."""
        return self._body is None

    def persistence(self, minor: int) -> bytes:
        """The Connection field of an answer to a request of HTTP/1.`minor`; empty: none is needed (RFC 9112 9.3)."""
        if self._stopping:
            self.keep_alive = False
        if not self.keep_alive:
            return b"close"
        return b"" if minor else b"keep-alive"

    def responding(self, status: int) -> None:
        """The final head of the answer is settled: from here on it can only be completed or cut short."""
        if self._request is not None:
            self._request.answering(status)
        self._expire = self.cut_short

    def respond(self, status: int, head: bytes) -> None:
        """Send the final head of the answer."""
        self.responding(status)
        self.write(head)

    def flow(self) -> None:
        """Somebody takes the request's body now: give out what is held, and read on."""
        self.resume()
        request, body = self._request, self._body
        if self._held and body is not None and request is not None:
            data, self._held = self._held, b""
            self._read_body(request, body, data)

    def await_store(self) -> None:
        """The gate is asking the store, which has time limits of its own; what the client sends meanwhile stays with it."""
        self._wait(FOREVER, self.close)
        self.pause()

    def await_app(self) -> None:
        """The gateway app works on an answer. Its own calls have their deadlines; this is the last of them."""
        self._wait(self._limits.first_byte_timeout, self.fail)

    def await_body(self) -> None:
        """The gateway app waits for the request's body."""
        self._wait(self._limits.body_timeout, self._body_too_slow)
        self.flow()

    def await_upstream(self) -> None:
        """An exchange is opening its connection; pools have deadlines of their own, for each server they try."""
        self._wait(FOREVER, self._upstream_too_slow)

    def upstream_begun(self) -> None:
        """An exchange has its connection: the body may flow, the answer is due."""
        self._wait(self._limits.first_byte_timeout, self._upstream_too_slow)
        body, request = self._body, self._request
        if body is not None and request is not None:
            if not request.head.expect_continue:  # else it is for the app to speak first (RFC 9110 10.1.1)
                self._wait(self._limits.body_timeout, self._body_too_slow)
            self.flow()

    def upstream_writable(self, writable: bool) -> None:
        """The app takes the request's body, or does not: then it is not the client who is slow."""
        unread, answering = self._body is not None, self._request is not None and self._request.status
        if writable:
            if unread and not answering:
                self._wait(self._limits.body_timeout, self._body_too_slow)
            self.flow()
        elif unread:
            if not answering:
                self._wait(self._limits.first_byte_timeout, self._upstream_too_slow)
            self.pause()

    def open_tunnel(self, exchange: Exchange, head: bytes) -> ClientTunnel | None:
        """Switch protocols: `head` is the 101. None when the client is gone."""
        request = self._request
        if request is None or self._transport.is_closing():
            return None
        request.answering(101)
        self._request = None
        self._detach()
        self._closing = True
        tunnel = ClientTunnel(self._relay, self._state, self._crowd, request, exchange)
        tunnel.open(self._transport, head, self._held, reading=self._reading, blocked=self._blocked)
        self._held = b""
        return tunnel

    def finished(self) -> None:
        """The answer is complete. On to the next request, or close."""
        request, self._request = self._request, None
        if request is not None:
            request.log()
            request.work = None
        self._state.total_requests += 1
        if not self.keep_alive or self._body is not None:
            if self._body is not None or self._held:
                self.linger()
            else:
                self.close()
            return
        self._wait(_LAST_CALL if self._stopping else self._limits.keep_alive, self.close)
        self.resume()
        if self._held:
            # Not at once: thousands of small requests in one packet would be answered within one another, before any
            # other client's turn.
            asyncio.get_running_loop().call_soon(self._next)

    def fail(self) -> None:
        """The gateway app broke before it answered, or did not answer in time."""
        self._refuse(
            Verdict(Kind.BAD_REQUEST, status=500, reason="internal_error", detail="Postern failed; see its log")
        )

    def spoiled(self, verdict: Verdict) -> None:
        """The request's body turned out bad when part of it was on its way."""
        if self._request is not None and self._request.status:
            self.cut_short()
        else:
            self._refuse(verdict)

    def cut_short(self) -> None:
        """The answer cannot be completed, and must not look as if it were."""
        request, self._request = self._request, None
        if request is not None:
            request.log(cut=True)
            request.cancel()
        self.reset()

    # -- for the relay

    def end_session(self, session_ids: frozenset[str]) -> None:
        """Stop what an app is doing for one of these sessions."""
        if self._request is not None and self._request.rests_on(session_ids):
            self._session_over(self._request)

    def check_session(self, wall: float) -> None:
        """Stop what an app is doing for a session that has come to its absolute end; `wall` in epoch seconds."""
        if self._request is not None and self._request.expired(wall):
            self._session_over(self._request)

    def _session_over(self, request: Request) -> None:
        if request.status:
            self.cut_short()
        else:
            request.signed_out()

    # -- reading requests

    def _next(self) -> None:
        """Go on with what is held of the next request, if it is its turn."""
        if self._held and self._request is None and not self._closing and not self._blocked:
            data, self._held = self._held, b""
            self._read_head(data)

    def _read_head(self, data: bytes) -> None:
        try:
            found = read_request(data, self._relay.plan.head_limits)
        except MalformedRequest as error:
            self._refuse(bad_request(error.status, error.reason))
            return
        if found is None:
            if self._expire != self._head_too_slow:
                self._wait(self._limits.head_timeout, self._head_too_slow)
            self._held = data
            return
        head, used = found
        if used < len(data):
            self._held = data[used:]
        self._begin(head)

    def _begin(self, head: RequestHead) -> None:
        if self._plan is not self._relay.plan:
            self._adopt(self._relay.plan)
        self.keep_alive = head.keep_alive
        self._body = None if head.length == 0 else request_body(head)
        self._received = 0
        request = self._request = Request(self, self._relay, head, self._peer, self._scheme)
        request.begin()
        if self._held and self._reading:
            self.flow()

    def _adopt(self, plan: Plan) -> None:
        """Serve by other settings from the next request on. It is counted as before; whom to believe may have changed."""
        self._plan = plan
        self._limits = plan.limits
        self._idle = plan.limits.idle_timeout
        self._peer = plan.forwarding.peer(self._peer.text)

    def _read_body(self, request: Request, body: LengthBody | ChunkedBody, data: bytes) -> None:
        work = request.work
        if work is None or not work.takes_body:
            self._hold(data)
            return
        try:
            payload = body.feed(data)
        except ValueError as error:
            self.spoiled(bad_request(400, str(error)))
            return
        self._received += len(payload)
        if request.body_limit and self._received > request.body_limit:
            self.spoiled(bad_request(413, "the request's body is larger than allowed"))
            return
        if body.done:
            self._body = None
            self._held = body.rest
        self._body_moved(request)
        if payload:
            work.body(payload)
        if body.done and request.work is work:
            work.body_done(body.trailers)

    def _body_moved(self, request: Request) -> None:
        """Some of the body has come: settle who is waited for next."""
        if request.status:
            if not self._blocked:
                self.deadline = self._relay.now + self._idle
        elif self._body is not None:
            self.deadline = self._relay.now + self._limits.body_timeout
            if isinstance(request.work, Exchange):
                self._expire = self._body_too_slow
        elif isinstance(request.work, Exchange):
            self._wait(self._limits.first_byte_timeout, self._upstream_too_slow)
        else:
            self.await_app()

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > _READ_AHEAD:
            self.pause()

    def _detach(self) -> None:
        self._relay.leave(self, self._crowd)
        self._state.connections.discard(self)
        self.deadline = FOREVER

    # -- deadlines

    def _head_too_slow(self) -> None:
        self._refuse(bad_request(408, "the request's header section did not arrive in time"))

    def _body_too_slow(self) -> None:
        self.spoiled(bad_request(408, "the request's body stopped arriving"))

    def _upstream_too_slow(self) -> None:
        request = self._request
        if request is None or request.verdict is None:
            self.close()
            return
        if isinstance(request.work, Exchange):
            request.work.too_slow()
        request.cancel()
        request.answer(
            upstream_failed(UpstreamProblem.RESPONSE_TIMEOUT, request.verdict.route, request.verdict.session)
        )

    def _refuse(self, verdict: Verdict) -> None:
        """Answer in the simplest way what cannot be handed to the gateway app, and close."""
        if self._closing:
            return
        request, self._request = self._request, None
        if request is None:
            request_id = self._relay.new_request_id()
            self._relay.log.refused(self._peer.text, request_id, verdict)
        else:
            request_id = request.id
            request.refused(verdict)
        self._transport.write(refusal(verdict, self.date, request_id))
        self._body = None
        self._held = b""
        self.linger()
