"""Connections to the apps behind: opened, pooled, read, and given up.

An `UpstreamConnection` speaks HTTP/1.1 to one server and hands what it reads to a `Sink`, the exchange of the moment, by plain
method calls: no await lies between a byte from the app and the same byte to the client. A `Pool` keeps idle connections to one
server, `Upstreams` picks the pool. Library errors end here: above this file there is only `UpstreamFailed`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol
from urllib.parse import urlsplit

from proxy.bodies import Body, CloseBody, response_body
from proxy.errors import MalformedResponse, UpstreamFailed, UpstreamProblem
from proxy.http1 import Fields, HeadLimits, ResponseHead, read_response

IDLE_KEPT: Final = 256  # idle connections kept per server
IDLE_SECONDS: Final = 30.0  # how long an idle connection is worth keeping; most servers close theirs after 5 to 75 s
EJECT_SECONDS: Final = 5.0  # how long a server that refused a connection is asked last
_RESPONSE_LIMITS: Final = HeadLimits(head=262144)


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
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._method = b""
        self._held = b""
        self._body: Body | None = None
        self._reusable = False
        self._request_sent = False
        self._tunnel = False
        self._reading = True
        self.used = False  # it has carried a request before the present one
        self.answered = False  # a byte of the present response has come
        self.idle_since = 0.0

    # -- from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio.Protocol)."""
        self._transport = transport  # type: ignore[assignment]  # asyncio types this narrower than it calls it

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
        if self._tunnel and self._sink is not None:
            self._sink.upstream_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone (asyncio.Protocol)."""
        self._transport = None
        self._pool.forget(self)
        sink = self._sink
        if sink is None:
            return
        if isinstance(self._body, CloseBody) and exc is None and not self._tunnel:
            self._sink = None
            sink.upstream_done([])
            return
        self._fail(UpstreamFailed(UpstreamProblem.RESET, "the connection was closed before the response was complete"))

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
        """Send a request's head; `complete` when no body follows. The answer goes to `sink`."""
        self._sink = sink
        self._method = method
        self._body = None
        self._held = b""
        self._request_sent = complete
        self.answered = False
        self.write(head)

    def write(self, data: bytes) -> None:
        """Send bytes of the request's body, or of the tunnel."""
        if self._transport is not None:
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
        if self._transport is not None:
            self._transport.abort()

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
            found = read_response(data, self._method, _RESPONSE_LIMITS)
            if found is None:
                self._held = data
                return
            head, used = found
            data = data[used:]
            self._held = b""
            if head.status >= 200:
                break
            sink.upstream_head(head)
            if self._sink is not sink:
                return  # the sink gave up on this interim response
            if self._tunnel:
                if data:
                    sink.upstream_data(data)
                return
        self._reusable = head.keep_alive
        body = response_body(head)
        self._body = body
        sink.upstream_head(head)
        if self._sink is not sink:
            return
        if data or body.done:
            self._read_body(sink, body, data)
        if self._sink is sink:
            sink.upstream_flush()

    def _read_body(self, sink: Sink, body: Body, data: bytes) -> None:
        payload = body.feed(data)
        if payload:
            sink.upstream_data(payload)
        if body.done and self._sink is sink:
            self._sink = None
            self._release(clean=not body.rest)
            sink.upstream_done(body.trailers)

    def _release(self, *, clean: bool) -> None:
        """Back to the pool, or away. An unsent rest of the request, bytes after the response: never used again."""
        if clean and self._reusable and self._request_sent and self.alive:
            self.resume()
            self.used = True
            self._pool.put(self)
        else:
            self.abort()

    def _fail(self, error: UpstreamFailed) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.upstream_failed(error)


class Pool:
    """The connections to one server: `url` is http://host:port, https://host:port or unix:/path."""

    def __init__(self, url: str, connect_timeout: float) -> None:
        self.url = url
        self._connect_timeout = connect_timeout
        self._idle: deque[UpstreamConnection] = deque()
        self._open: set[UpstreamConnection] = set()
        self.ejected_until = 0.0
        parts = urlsplit(url)
        self._path = parts.path if parts.scheme == "unix" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None

    @property
    def active(self) -> int:
        """Connections in use."""
        return len(self._open) - len(self._idle)

    def take(self) -> UpstreamConnection | None:
        """An idle connection, the most recently used first: the older ones are the likelier to be stale."""
        while self._idle:
            connection = self._idle.pop()
            if connection.alive:
                return connection
        return None

    async def connect(self) -> UpstreamConnection:
        """Open a connection. Raises UpstreamFailed; retrying elsewhere is safe, nothing has been sent."""
        loop = asyncio.get_running_loop()

        def factory() -> UpstreamConnection:
            return UpstreamConnection(self)

        try:
            async with asyncio.timeout(self._connect_timeout):
                if self._path is not None:
                    _, connection = await loop.create_unix_connection(factory, self._path)
                else:
                    _, connection = await loop.create_connection(factory, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            self._eject()
            detail = f"no connection within {self._connect_timeout:g} s"
            raise UpstreamFailed(UpstreamProblem.CONNECT_TIMEOUT, detail, retry_safe=True) from None
        except (OSError, ssl.SSLError, UnicodeError) as error:
            self._eject()
            detail = error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
            raise UpstreamFailed(UpstreamProblem.REFUSED, detail, retry_safe=True) from None
        self.ejected_until = 0.0
        self._open.add(connection)
        return connection

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a clean connection for the next request."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if len(self._idle) > IDLE_KEPT:
            self._idle.popleft().close()

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is gone."""
        self._open.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def prune(self, now: float) -> None:
        """Close what has been idle too long; `now` on the monotonic clock, in seconds."""
        while self._idle and now - self._idle[0].idle_since > IDLE_SECONDS:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _eject(self) -> None:
        self.ejected_until = time.monotonic() + EJECT_SECONDS


class Upstreams:
    """All servers of all routes, one pool each, whichever route names them."""

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._pools: dict[str, Pool] = {}

    def pools(self, urls: Sequence[str]) -> tuple[Pool, ...]:
        """The pools of a route's servers, made on first use."""
        return tuple(self._pools.setdefault(url, Pool(url, self._connect_timeout)) for url in urls)

    def prune(self) -> None:
        """Close idle connections that have outlived their use; called every few seconds."""
        now = time.monotonic()
        for pool in self._pools.values():
            pool.prune(now)

    def close(self) -> None:
        """Close every connection of every pool."""
        for pool in self._pools.values():
            pool.close()


def by_load(pools: Sequence[Pool]) -> Sequence[Pool]:
    """`pools` in the order to try them: the least busy first, those that lately refused a connection last."""
    if len(pools) == 1:
        return pools
    now = time.monotonic()
    return sorted(pools, key=lambda pool: (pool.ejected_until > now, pool.active))
