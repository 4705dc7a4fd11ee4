"""One request from its head to its end: judged, then relayed or answered, then logged.

The bytes come and go through a `ClientConnection`; here is what is known about the request, and the ladder from the gate's
verdict to whoever does the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from proxy.asgi import AsgiCall
from proxy.errors import StoreUnavailable
from proxy.exchange import Exchange
from proxy.gate import Call, Kind, Verdict, bad_request
from proxy.headers import Peer, RouteHeaders, request_id_from
from proxy.http1 import RequestHead

if TYPE_CHECKING:
    from proxy.connection import ClientConnection
    from proxy.relay import Relay


class Request:
    """A request being served. `work` is who serves it: None while the gate still has to ask the store."""

    __slots__ = ("_connection", "_relay", "_task", "head", "id", "origin", "started_at", "status", "verdict", "work")

    def __init__(
        self, connection: ClientConnection, relay: Relay, head: RequestHead, peer: Peer, scheme: bytes
    ) -> None:
        self._connection = connection
        self._relay = relay
        self._task: asyncio.Task[None] | None = None
        self.head = head
        self.origin = relay.forwarding.origin(head, peer, scheme)
        self.id = request_id_from(head, trusted=self.origin.trusted) or relay.new_request_id()
        self.started_at = time.perf_counter()
        self.status = 0
        self.verdict: Verdict | None = None
        self.work: Exchange | AsgiCall | None = None

    def begin(self) -> None:
        """Ask the gate, and do as it says; reading pauses while it has to ask the store."""
        head = self.head
        limit = self._relay.limits.body_bytes
        if limit and head.length is not None and head.length > limit:
            self.answer(bad_request(413, "the request's body is larger than allowed"))
            return
        host = self.origin.host.decode("latin-1")
        verdict = self._relay.gate.judge(head, host, self.origin.address)
        if verdict is not None:
            self._act(verdict)
        else:
            self._later(self._judge_later(host))

    def answer(self, verdict: Verdict) -> None:
        """Let the gateway app answer with `verdict`."""
        self.verdict = verdict
        call = AsgiCall(self._connection, self.head)
        self.work = call
        self._connection.await_app()
        call.start(self._relay.app, self._call(verdict))

    def cancel(self) -> None:
        """The client is gone, or the answer cannot be completed: stop the work."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        work, self.work = self.work, None
        if work is not None:
            work.cancel()

    def log(self, *, cut: bool = False) -> None:
        """Write the access line; `cut` when the answer is incomplete."""
        self._relay.log.write(self, cut=cut)

    def rests_on(self, session_id: str) -> bool:
        """Whether an upstream is serving this request because of that session."""
        session = self.verdict.session if self.verdict is not None else None
        return session is not None and session.id == session_id and isinstance(self.work, Exchange)

    def expired(self, wall: float) -> str | None:
        """The id of the session this request rests on, if that has come to its absolute end (`wall`: epoch seconds)."""
        session = self.verdict.session if self.verdict is not None else None
        return session.id if session is not None and session.expires_at < wall else None

    @property
    def body_out(self) -> int:
        """Payload bytes sent to the client."""
        return self.work.body_out if self.work is not None else 0

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.started_at

    def _later(self, work: Coroutine[None, None, None]) -> None:
        self._connection.await_store()
        self._task = asyncio.get_running_loop().create_task(work)

    async def _judge_later(self, host: str) -> None:
        verdict = await self._relay.gate.judge_later(self.head, host, self.origin.address)
        self._task = None
        self._act(verdict)
        self._connection.flow()

    def _act(self, verdict: Verdict) -> None:
        self.verdict = verdict
        route = verdict.route
        if verdict.kind is not Kind.PASS or route is None:
            self.answer(verdict)
            return
        headers = self._relay.headers[route]
        session = verdict.session
        if session is None:
            self._relay_on(headers, headers.identity_block(None, None))
            return
        block: bytes | None = session.blocks.get(route)
        if block is None:
            if headers.needs_tokens:
                self._later(self._act_with_tokens(headers, verdict))
                return
            block = session.blocks[route] = headers.identity_block(session.identity, None)
        self._relay_on(headers, block)

    async def _act_with_tokens(self, headers: RouteHeaders, verdict: Verdict) -> None:
        try:
            tokens = await self._relay.tokens_of(self.head)
        except StoreUnavailable as error:
            self._task = None
            self.answer(Verdict(Kind.UNAVAILABLE, route=verdict.route, status=503, detail=str(error)))
        else:
            self._task = None
            identity = verdict.session.identity if verdict.session is not None else None
            self._relay_on(headers, headers.identity_block(identity, tokens))
        self._connection.flow()

    def _relay_on(self, headers: RouteHeaders, identity: bytes) -> None:
        verdict = self.verdict
        if verdict is None or verdict.kind is not Kind.PASS or verdict.route is None:
            raise RuntimeError("only what the gate passed is relayed")
        exchange = Exchange(
            self._connection,
            self,
            self._relay.pools[verdict.route],
            headers,
            headers.to_upstream(self.head, self.origin, identity, self.id),
        )
        self.work = exchange
        exchange.start()

    def _call(self, verdict: Verdict) -> Call:
        scheme = self._relay.public_scheme
        host = self.origin.host.decode("latin-1")
        target = self.head.target.decode("latin-1")
        return Call(verdict, self.id.decode("latin-1"), self.origin.client, scheme, host, f"{scheme}://{host}{target}")
