"""One relayed request: from the gate's PASS to the last byte of the answer, and the tunnel it may turn into.

An exchange stands between a client's connection and an upstream's and passes bytes on as they come, in both directions, with
backpressure both ways: whichever side is slow, the other one is no longer read, so memory stays bounded by the two socket
buffers. It never completes an answer that was cut short (RFC 9112 section 8).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from proxy import cookies
from proxy.bodies import chunk, last_chunk
from proxy.errors import UpstreamFailed, UpstreamProblem
from proxy.http1 import Fields, ResponseHead, connection_options
from proxy.pool import Pool, by_load
from proxy.rewriting import led_on
from proxy.tunnel import ClientTunnel
from proxy.upstream import UpstreamConnection
from proxy.verdict import upstream_failed

if TYPE_CHECKING:
    from proxy.connection import ClientConnection
    from proxy.headers import RouteHeaders
    from proxy.request import Request

# RFC 9110 9.2.2: what may be sent twice without happening twice.
IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_COOKIES: Final = re.compile(rb"(?i)\r\n(cookie):[ \t]*([^\r\n]*)")
_log: Final = logging.getLogger("postern")


class Exchange:
    """A request on its way to an upstream and the answer on its way back. The upstream's `Sink`."""

    __slots__ = (
        "_block",
        "_chunked_out",
        "_client",
        "_connection",
        "_fields",
        "_head",
        "_pools",
        "_repeatable",
        "_request",
        "_request_chunked",
        "_retried",
        "_task",
        "_unsent",
        "_wire",
        "body_in",
        "body_out",
        "started",
    )

    def __init__(
        self,
        client: ClientConnection,
        request: Request,
        pools: tuple[Pool, ...],
        fields: RouteHeaders,
        block: bytes,
    ) -> None:
        head = request.head
        self._request = request
        self._client = client
        self._wire: ClientConnection | ClientTunnel = client  # where bytes for the client go
        self._head = head
        self._pools = pools
        self._fields = fields
        self._block = block  # the request head as the upstream gets it
        self._connection: UpstreamConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._request_chunked = head.length is None
        # What may be sent a second time, when nobody can tell whether the first one arrived: RFC 9110 9.2.2, and nothing
        # that a client has sent only once.
        self._repeatable = head.method in IDEMPOTENT and head.length == 0 and head.upgrade is None
        self._retried = False
        self._chunked_out = False
        self._unsent = b""  # the final head, until payload or the end comes with it
        self.started = False  # a byte of the final response has gone to the client
        self.body_in = 0  # payload bytes that came from the client
        self.body_out = 0  # and that were sent to it

    @property
    def takes_body(self) -> bool:
        """Whether there is a connection for the request's body to go to."""
        return self._connection is not None

    # -- towards the upstream

    def start(self) -> None:
        """Send the request on a pooled connection, or open one."""
        order = by_load(self._pools)
        # A pooled connection may be closed by the server at the very moment it is used. A request that may be sent twice is
        # then sent again; any other gets a connection of its own, because nobody could tell whether it was processed.
        if self._repeatable:
            connection = order[0].take()
            if connection is not None:
                self._send(connection)
                return
        self._connect(order)

    def body(self, data: bytes) -> None:
        """Payload of the request's body, or bytes of the tunnel, have come from the client."""
        self.body_in += len(data)
        if self._request_chunked and self._wire is self._client:
            data = chunk(data)
        if self._connection is not None:
            self._connection.write(data)

    def body_done(self, trailers: Fields) -> None:
        """The request's body is complete. Trailers stay trailers, and identity among them is dropped."""
        if self._connection is not None:
            self._connection.end_request(last_chunk(self._fields.trailers(trailers)) if self._request_chunked else b"")

    def client_eof(self) -> None:
        """The client has closed its half of the tunnel."""
        if self._connection is not None:
            self._connection.write_eof()

    def client_writable(self, writable: bool) -> None:
        """The client keeps up with the answer, or not."""
        if self._connection is not None:
            if writable:
                self._connection.resume()
            else:
                self._connection.pause()

    def cancel(self) -> None:
        """The client is gone, or the exchange is over for it: so is the upstream's work."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort()

    def too_slow(self) -> None:
        """The answer did not begin in time: its server is to know."""
        if self._connection is not None:
            self._connection.too_slow()

    def _connect(self, order: Sequence[Pool]) -> None:
        self._client.await_upstream()
        self._task = asyncio.get_running_loop().create_task(self._connect_and_send(order))

    async def _connect_and_send(self, order: Sequence[Pool]) -> None:
        try:
            connection = await self._connection_to(order)
        except UpstreamFailed as error:
            self._task = None
            self.upstream_failed(error)
        except Exception:  # noqa: BLE001 -- the last line of defence: a bug answers 500, it does not hang the client
            _log.exception("no connection could be opened")
            self._task = None
            self._client.fail()
        else:
            self._task = None
            self._send(connection)

    async def _connection_to(self, order: Sequence[Pool]) -> UpstreamConnection:
        """A connection to the first server that has one; raises the last one's UpstreamFailed."""
        reuse = self._repeatable and not self._retried
        *others, last = order
        for pool in others:
            try:
                return await pool.connect(reuse=reuse)
            except UpstreamFailed as error:  # nothing has been sent: the next server may be asked
                if error.problem is UpstreamProblem.BUSY:
                    raise  # and it was the least busy one
        return await last.connect(reuse=reuse)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        head = self._fields.addressed(self._block, connection.pool.authority)
        if self._fields.login_cookies and (names := self._strangers()):
            head = _COOKIES.sub(lambda line: _kept(line[1], line[2], names), head)
        complete = self._head.length == 0
        connection.begin(self, self._head.method, head, complete=complete)
        self._client.upstream_begun()
        if not complete:
            connection.flush()

    @property
    def _session_id(self) -> str:
        verdict = self._request.verdict
        return verdict.session.id if verdict is not None and verdict.session is not None else ""

    def _strangers(self) -> frozenset[bytes]:
        """The app's own cookies of somebody else's, or of an earlier session, that it must not get."""
        return cookies.strangers(self._head.values.get(b"cookie", b""), self._fields.login_cookies, self._session_id)

    def _remember(self, head: ResponseHead, names: frozenset[bytes]) -> None:
        """Note whose the app's own cookies are that this answer sets."""
        lines = [value for name, value in head.fields if name.lower() == b"set-cookie"]
        self._add_cookies(cookies.belonging(lines, names, self._session_id, self._fields.path))

    def _add_cookies(self, values: list[str]) -> None:
        """Into the head that is about to go out, after the fields of the app's: no rewriting of paths is for these."""
        lines = b"".join([b"Set-Cookie: %b\r\n" % value.encode() for value in values])
        self._unsent = b"%b%b\r\n" % (self._unsent[:-2], lines)

    # -- from the upstream

    def upstream_head(self, head: ResponseHead) -> None:
        """Relay an interim or the final head (Sink)."""
        client = self._client
        if head.status == 101:
            self._switch(head)
            return
        if head.status < 200:
            if self._head.minor == 1:  # an HTTP/1.0 client has no notion of 1xx (RFC 9110 15.2)
                client.write(self._fields.interim(head))
            return
        self.started = True
        verdict = self._request.verdict
        if verdict is not None and verdict.leaves:
            head = led_on(head, self._request.sign_out)
        self._chunked_out = head.length is None and self._head.minor == 1
        # What ends by closing towards an HTTP/1.0 client, or has not been read to its end, cannot be followed by more.
        if (head.length is None and self._head.minor == 0) or not client.request_read:
            client.keep_alive = False
        self._unsent = self._fields.to_client(
            head,
            host=self._request.origin.host,
            chunked=self._chunked_out,
            connection=client.persistence(self._head.minor),
            date=client.date,
            request_id=self._request.id,
        )
        if verdict is not None and verdict.leaves_next and verdict.route is not None and head.status < 400:
            self._add_cookies([cookies.leaving(verdict.route.path)])
        if self._fields.login_cookies and (names := self._strangers()):
            self._remember(head, names)
        client.responding(head.status)

    def upstream_flush(self) -> None:
        """Send a head that came alone (Sink)."""
        if self._unsent:
            head, self._unsent = self._unsent, b""
            self._client.write(head)

    def upstream_data(self, data: bytes) -> None:
        """Relay payload, or bytes of the tunnel (Sink)."""
        self.body_out += len(data)
        if self._chunked_out:
            data = chunk(data)
        if self._unsent:  # head and first payload in one write: one system call, one packet
            data, self._unsent = self._unsent + data, b""
        self._wire.write(data)

    def upstream_done(self, trailers: Fields) -> None:
        """The answer is complete (Sink)."""
        self._connection = None
        if self._chunked_out:
            self._client.write(self._unsent + last_chunk(self._fields.trailers(trailers)))
        elif self._unsent:
            self._client.write(self._unsent)
        self._unsent = b""
        self._client.finished()

    def upstream_eof(self) -> None:
        """The server has closed its half of the tunnel (Sink)."""
        if isinstance(self._wire, ClientTunnel):
            self._wire.write_eof()

    def upstream_failed(self, error: UpstreamFailed) -> None:
        """No answer, or only a part of one (Sink)."""
        connection, self._connection = self._connection, None
        if self.started:
            self._wire.cut_short()
            return
        if connection is not None and self._repeatable and not self._retried and not connection.answered:
            # The server closed an idle connection as it was used; or it went down with the request, and there are others.
            order = by_load(self._pools)
            if not connection.used:
                order = [pool for pool in order if pool is not connection.pool]
            if order:
                self._retried = True
                connection.pool.retries += 1
                self._connect(order)
                return
        self._give_up(error.problem)

    def upstream_writable(self, writable: bool) -> None:
        """The server keeps up with what the client sends, or not (Sink)."""
        self._wire.upstream_writable(writable)

    def _give_up(self, problem: UpstreamProblem) -> None:
        verdict = self._request.verdict
        route, session = (verdict.route, verdict.session) if verdict is not None else (None, None)
        self._request.answer(upstream_failed(problem, route, session))

    def _switch(self, head: ResponseHead) -> None:
        """The upstream agreed to switch protocols: from here on bytes are bytes, both ways (RFC 9110 7.8).

        Only to what the client asked for, and only when nothing of its request is left to be sent in the old one: an app
        that switches unasked would leave the two sides with different ideas of where they are.
        """
        connection, agreed = self._connection, _agreed(self._head.upgrade, head.values.get(b"upgrade"))
        if connection is None or not agreed or not self._client.request_read:
            self.cancel()
            self._give_up(UpstreamProblem.GARBAGE)
            return
        self.started = True
        connection.open_tunnel()
        tunnel = self._client.open_tunnel(self, self._fields.switching(head, head.values[b"upgrade"]))
        if tunnel is not None:
            self._wire = tunnel
            tunnel.flow()


def _agreed(asked: bytes | None, given: bytes | None) -> bool:
    """Whether the protocols that an app switches to are among those it was asked for."""
    return bool(asked and given) and connection_options(given) <= connection_options(asked)


def _kept(name: bytes, value: bytes, names: frozenset[bytes]) -> bytes:
    """A Cookie field, with its line's beginning, less the cookies of these names; nothing when nothing is left."""
    rest = cookies.without(value, names)
    return b"\r\n%b: %b" % (name, rest) if rest is not None else b""
