"""One connection to an app behind: requests written, answers read, and given up on when they cannot be trusted.

An `UpstreamConnection` speaks HTTP/1.1 to one server and hands what it reads to a `Sink`, the exchange of the moment, by plain
method calls: no await lies between a byte from the app and the same byte to the client. Where connections come from and go back
to is in `pool.py`. Library errors end here: above this file there is only `UpstreamFailed`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from proxy.bodies import Body, CloseBody, LengthBody, response_body
from proxy.errors import MalformedResponse, UpstreamFailed, UpstreamProblem
from proxy.http1 import Fields, HeadLimits, ResponseHead, read_response
from proxy.upstream_tls import reason_of

if TYPE_CHECKING:
    from proxy.pool import Pool

_LIMITS: Final = HeadLimits(head=262144)
_LAST_WORDS: Final = 262144  # bytes of an answer that are read when its connection has broken
_INTERIM: Final = 262144  # bytes of 1xx heads before a final one: a server that sends them for ever never answers


_NO_MORE: Final = LengthBody(0)  # of an answer that is complete; nothing is ever read with it


class Sink(Protocol):
    """Who an upstream's answer goes to. Called in this order: heads (interim ones first), data, then done or failed."""

    def upstream_head(self, head: ResponseHead) -> None:
        """An interim (1xx) or the final head has come."""

    def upstream_flush(self) -> None:
        """Nothing more has come with the final head: what was held back to go out with it goes now."""

    def upstream_data(self, data: bytes) -> None:
        """Payload of the body, chunked coding taken off; after a 101, bytes of the tunnel."""

    def upstream_done(self, trailers: Fields) -> None:
        """The response is complete."""

    def upstream_eof(self) -> None:
        """The server has closed its half of the tunnel."""

    def upstream_failed(self, error: UpstreamFailed) -> None:
        """There will be no (more of the) response."""

    def upstream_writable(self, writable: bool) -> None:
        """The way to the server is blocked, or free again (backpressure)."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a server. Used by one exchange at a time; back into its pool only when it is certainly clean."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._method = b""
        self._held = b""
        self._unsent = b""  # a request's head, until its body begins
        self._body: Body | None = None
        self._reusable = False
        self._request_sent = False
        self._last = False  # it is not used for another request, whatever the server says
        self._tunnel = False
        self._reading = True
        self._interim = 0  # bytes of interim heads in the present response
        self._tls = False
        self._closed_cleanly = False  # the server has said that it will send no more
        self._spare: int | None = None  # another descriptor of the socket, see `_last_words`
        self.lost: UpstreamFailed | None = None  # how it ended, when it did
        self.used = False  # it has carried a request before the present one
        self.answered = False  # a byte of the present response has come
        self.busy = False  # it holds one of its pool's places
        self.opened_at = 0.0  # monotonic, seconds, and so is the next
        self.fresh_until = 0.0  # idle and later than that, it is better not used again

    # -- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio.Protocol)."""
        self._transport = transport  # type: ignore[assignment]  # asyncio types this narrower than it calls it
        self._tls = transport.get_extra_info("ssl_object") is not None

    def data_received(self, data: bytes) -> None:
        """Read heads and body off the wire and hand them to the sink (asyncio.Protocol)."""
        sink = self._sink
        if sink is None:
            self.abort()  # bytes nobody asked for: after a complete response they could answer the next request (9112 9.2)
            return
        self.answered = True
        if self._tunnel:
            sink.upstream_data(data)
            return
        try:
            if self._body is None:
                self._read_heads(sink, self._held + data if self._held else data)
            else:
                self._read_body(sink, self._body, data)
        except (MalformedResponse, ValueError) as error:
            self._fail(UpstreamFailed(UpstreamProblem.GARBAGE, str(error)))

    def eof_received(self) -> bool:
        """The server will send no more (asyncio.Protocol). True keeps our half open, which only a tunnel wants."""
        self._closed_cleanly = True
        if self._tunnel and self._sink is not None:
            self._sink.upstream_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio.Protocol)."""
        self._transport = None
        words = self._last_words() if exc is not None and not self._tunnel else b""
        self._close_spare()
        if isinstance(
            exc, ssl.SSLError
        ):  # with TLS 1.3 a server refuses our certificate when the handshake is over for us
            self.lost = UpstreamFailed(UpstreamProblem.TLS, reason_of(exc))
        else:
            detail = "it closed the connection before its answer was complete"
            if (
                self._tls and not self.answered and not self.used
            ):  # and the refusal itself may be lost with the connection
                detail += "; does it want a client certificate?"
            self.lost = UpstreamFailed(UpstreamProblem.RESET, detail)
        self.pool.forget(self)
        if words:
            self.data_received(words)
        sink = self._sink
        if sink is None:
            return
        if isinstance(self._body, CloseBody) and exc is None and self._ends_here and not self._tunnel:
            self._sink = None
            sink.upstream_done([])
            return
        self._fail(self.lost)

    def pause_writing(self) -> None:
        """The send buffer is full (asyncio.Protocol)."""
        if self._sink is not None:
            self._sink.upstream_writable(False)

    def resume_writing(self) -> None:
        """The send buffer has room again (asyncio.Protocol)."""
        if self._sink is not None:
            self._sink.upstream_writable(True)

    # -- for the exchange

    def begin(self, sink: Sink, method: bytes, head: bytes, *, complete: bool) -> None:
        """Send a request's head; `complete` when no body follows, else it waits for `flush`. The answer goes to `sink`."""
        self._sink = sink
        self._method = method
        self._body = None
        self._held = b""
        self._request_sent = complete
        self._last = not complete  # an app that does not read the body may take it for requests, and answer those
        self._interim = 0
        self.answered = False
        if not complete and not self._tls and self._transport is not None:
            with suppress(OSError):  # no descriptor left: then the last words may be lost
                self._spare = os.dup(self._transport.get_extra_info("socket").fileno())
        if complete:
            self.write(head)
        else:
            self._unsent = head

    def flush(self) -> None:
        """Send the head, unless it has gone out with the beginning of the body: in one packet, for one system call."""
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Send bytes of the request's body, or of the tunnel."""
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if data and self._transport is not None:
            self._transport.write(data)

    def end_request(self, data: bytes = b"") -> None:
        """Send the last bytes of the request's body."""
        self._request_sent = True
        if data:
            self.write(data)

    def write_eof(self) -> None:
        """Close our half of a tunnel."""
        if self._transport is not None and self._transport.can_write_eof():
            with suppress(OSError, RuntimeError):  # the other half may have taken the socket with it
                self._transport.write_eof()

    def pause(self) -> None:
        """Stop reading from the server: the client does not keep up."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the server again."""
        if not self._reading and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()

    def open_tunnel(self) -> None:
        """From now on bytes are passed as they come (after a 101)."""
        self._tunnel = True

    def abort(self) -> None:
        """Drop the connection, whatever is under way; the sink hears nothing more."""
        self._sink = None
        self._unsent = b""
        if self._transport is not None:
            self._transport.abort()

    def too_slow(self) -> None:
        """Drop the connection, because the answer did not begin in time."""
        if self._sink is not None:
            self.pool.failed(UpstreamFailed(UpstreamProblem.RESPONSE_TIMEOUT, "no answer in time"))
        self.abort()

    @property
    def alive(self) -> bool:
        """Whether it can carry a request, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Close an idle connection."""
        if self._transport is not None:
            self._transport.close()

    # -- reading

    def _read_heads(self, sink: Sink, data: bytes) -> None:
        while True:
            found = read_response(data, self._method, _LIMITS)
            if found is None:
                self._held = data
                return
            head, used = found
            data = data[used:]
            self._held = b""
            if head.status >= 200:
                break
            self._interim += used
            if self._interim > _INTERIM:
                raise MalformedResponse("one interim response after the other, and no final one")
            sink.upstream_head(head)
            if self._sink is not sink:
                return  # the sink gave up on this interim response
            if self._tunnel:
                if data:
                    sink.upstream_data(data)
                return
        self._reusable = head.keep_alive
        self.pool.answered(head)
        if head.length == len(data):
            self._read_whole(sink, head, data)
            return
        body = response_body(head)
        self._body = body
        sink.upstream_head(head)
        if self._sink is not sink:
            return
        if data or body.done:
            self._read_body(sink, body, data)
        if self._sink is sink:
            sink.upstream_flush()

    def _read_whole(self, sink: Sink, head: ResponseHead, payload: bytes) -> None:
        """Hand on an answer that has come in one piece, as most do."""
        self._body = _NO_MORE
        sink.upstream_head(head)
        if payload and self._sink is sink:
            sink.upstream_data(payload)
        if self._sink is sink:
            self._sink = None
            self._release(clean=True)
            sink.upstream_done([])

    def _read_body(self, sink: Sink, body: Body, data: bytes) -> None:
        payload = body.feed(data)
        if payload:
            sink.upstream_data(payload)
        if body.done and self._sink is sink:
            self._sink = None
            self._release(clean=not body.rest)
            sink.upstream_done(body.trailers)

    @property
    def _ends_here(self) -> bool:
        """Whether the end of the connection may be taken for the end of the body.

        Under TLS only when the server says so: anybody on the way can close a connection, and cut a body short by it
        (RFC 9112 9.8).
        """
        return self._closed_cleanly or not self._tls

    def _release(self, *, clean: bool) -> None:
        """Back to the pool, or away. An unsent rest of the request, bytes after the response: never used again."""
        self._close_spare()
        transport = self._transport
        if (
            not clean
            or not self._request_sent
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            self.abort()
        elif self._reusable and not self._last:
            self.resume()
            self.used = True
            self.pool.put(self)
        else:
            self.pool.drop(self)

    def _last_words(self) -> bytes:
        """What the server had said when it closed the connection under a request that was still being sent.

        Servers that refuse an upload answer and close; what of the body comes after that they answer with a reset. A transport
        that fails to write closes the socket without reading what is there, and a 413 would become a 502.
        """
        words = b""
        with suppress(OSError):
            while self._spare is not None and len(words) < _LAST_WORDS and (data := os.read(self._spare, _LAST_WORDS)):
                words += data
        return words

    def _close_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _fail(self, error: UpstreamFailed) -> None:
        sink = self._sink
        if self.answered or not self.used:  # a server may close an idle connection whenever it likes
            self.pool.failed(error)
        self.abort()
        if sink is not None:
            sink.upstream_failed(error)
