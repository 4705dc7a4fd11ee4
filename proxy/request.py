"""One request from its head to its end: judged, then relayed or answered, then logged.

The bytes come and go through a `ClientConnection`; here is what is known about the request, and the ladder from the gate's
verdict to whoever does the work.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.asgi import AsgiCall
from proxy.claims import Identity, Tokens
from proxy.errors import LogtoUnavailable, MalformedRequest, StoreUnavailable
from proxy.exchange import Exchange
from proxy.forwardauth import Asked, Dialect, allowed, dialect_of, refused_for_nginx
from proxy.forwardauth import read as read_question
from proxy.forwarding import Peer
from proxy.headers import forwards_left, request_id_from
from proxy.http1 import RequestHead
from proxy.refusal import options_answer
from proxy.session import Session
from proxy.verdict import OWN, Call, Kind, Verdict, bad_request, signed_out

if TYPE_CHECKING:
    from proxy.connection import ClientConnection
    from proxy.headers import RouteHeaders
    from proxy.relay import Lane, Relay
    from proxy.tracing import RequestSpan

_NO_BLOCK: Final = (-math.inf, b"")
_log = logging.getLogger("postern")


class Request:
    """A request being served. `work` is who serves it: None while the gate still has to ask the store.

    `status` is 0 until the final head of the answer is settled, and so is `answered_at`, on the clock of `started_at`.
    `body_limit` is in bytes, 0 for none.
    """

    __slots__ = (
        "_asked",
        "_body_in",
        "_body_out",
        "_connection",
        "_identity",
        "_plan",
        "_relay",
        "_span",
        "_task",
        "answered_at",
        "body_limit",
        "head",
        "id",
        "origin",
        "started_at",
        "status",
        "verdict",
        "work",
    )

    def __init__(
        self, connection: ClientConnection, relay: Relay, head: RequestHead, peer: Peer, scheme: bytes
    ) -> None:
        self._connection = connection
        self._relay = relay
        plan = self._plan = relay.plan
        self._task: asyncio.Task[None] | None = None
        self._asked: Asked | None = None
        self._identity: Identity | None = None  # who was let pass, as far as was known then
        self._span: RequestSpan | None = None
        self._body_in = 0
        self._body_out = 0
        self.head = head
        origin = self.origin = plan.forwarding.origin(head, peer, scheme)
        given = request_id_from(head, trusted=origin.trusted) if b"x-request-id" in head.values else None
        self.id = given or relay.new_request_id()
        self.started_at = time.perf_counter()
        self.status = 0
        self.answered_at = 0.0
        self.body_limit = 0
        self.verdict: Verdict | None = None
        self.work: Exchange | AsgiCall | None = None

    def begin(self) -> None:
        """Ask the gate, and do as it says; reading pauses while it has to ask the store."""
        head, plan = self.head, self._plan
        if head.target == b"*":
            self.verdict = OWN
            self._answer_options()
            return
        if head.path.startswith(plan.auth_path):
            dialect = dialect_of(head.path, plan.auth_path)
            if dialect is not None and not self._read_question(dialect):
                return
        judged, host = self._judged()
        verdict = plan.gate.judge(judged, host, self.origin.address)
        if verdict is not None:
            if verdict.session is not None and self._relay.tally is not None:
                self._relay.tally.found_in_memory += 1
            self._act(verdict)
        else:
            self._later(self._judge_later())

    def answer(self, verdict: Verdict) -> None:
        """Let the gateway app answer with `verdict`."""
        self.verdict = verdict
        call = AsgiCall(self._connection, self.head, wants_body=verdict.kind is Kind.OWN)
        self.work = call
        self._connection.await_app()
        self._relay.keep(call.start(self._plan.app, self._call(verdict)))

    def signed_out(self) -> None:
        """The session that the request rests on has ended before an answer began."""
        verdict = self.verdict
        self.cancel()
        self.answer(signed_out(self.head, verdict.route if verdict is not None else None))

    def refused(self, verdict: Verdict) -> None:
        """The connection answers with `verdict` by itself: log that, and stop the work."""
        if self.verdict is not None:
            verdict.route, verdict.session = self.verdict.route, self.verdict.session
        self.verdict = verdict
        self.status = verdict.status
        self.cancel()
        self.log()

    def cancel(self) -> None:
        """The client is gone, or the answer cannot be completed: stop the work."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        work, self.work = self.work, None
        if work is not None:
            self._body_in += work.body_in
            self._body_out += work.body_out
            work.cancel()

    def answering(self, status: int) -> None:
        """The final head of the answer is settled."""
        self.status = status
        self.answered_at = time.perf_counter()

    def log(self, *, cut: bool = False) -> None:
        """Write the access line, count the request, end its span; `cut` when the answer is incomplete."""
        seconds = time.perf_counter() - self.started_at
        received, sent, work = self._body_in, self._body_out, self.work
        if work is not None:
            received += work.body_in
            sent += work.body_out
        self._relay.log.write(self, seconds, sent, cut=cut)
        tally, span = self._relay.tally, self._span
        if tally is None and span is None:
            return
        verdict = self.verdict
        route = verdict.route.name if verdict is not None and verdict.route is not None else ""
        outcome = "cut_short" if cut else verdict.reason if verdict is not None else ""
        if tally is not None:
            first_byte = self.answered_at - self.started_at if self.answered_at else 0.0
            tally.request(route, self.head.method, self.status, outcome, first_byte, seconds, received, sent)
        if span is not None:
            span.end(self.status, outcome, received, sent)

    @property
    def sign_out(self) -> bytes:
        """Where the gateway signs people out."""
        return f"{self._plan.own_url(self.origin.name)}/sign-out".encode()

    def rests_on(self, session_ids: frozenset[str]) -> bool:
        """Whether an upstream is serving this request because of one of those sessions."""
        session = self.verdict.session if self.verdict is not None else None
        return session is not None and session.id in session_ids and isinstance(self.work, Exchange)

    def expired(self, wall: float) -> bool:
        """Whether an upstream is serving this request for a session that is over by `wall` (epoch seconds), or a role lost."""
        session = self.verdict.session if self.verdict is not None else None
        if session is None or not isinstance(self.work, Exchange):
            return False
        return session.expires_at < wall or self._shut_out(session)

    def used(self) -> None:
        """The client has sent something through the tunnel: that is a use of its session.

        It must neither idle away under somebody's hands nor miss the renewal that would tell that they may not go on.
        """
        session = self.verdict.session if self.verdict is not None else None
        if (
            session is not None
            and session.via == "cookie"
            and not self._relay.plan.gate.use(self.head, self.origin.name)
        ):
            self._relay.keep(asyncio.get_running_loop().create_task(self._look_up()))

    async def _look_up(self) -> None:
        with suppress(StoreUnavailable):  # the next look will do
            await self._relay.plan.gate.session_of(self.head.values.get(b"cookie"), self.origin.name)

    def _shut_out(self, session: Session) -> bool:
        """Whether the person has lost, at Logto or in a Discord guild, what an answer or a tunnel under way was granted for."""
        route = self.verdict.route if self.verdict is not None else None
        if route is None or not self.status:
            return False
        changing = (route.around or route).policy.guilds or session.errand is not None
        if not (changing or session.identity is not self._identity):
            return False
        self._identity = session.identity
        judged, host = self._judged()
        # By the rules in force now: the plan that the request began with may have no one to ask any more.
        return self._relay.plan.gate.shuts_out(judged, host, self.origin.address, session)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.started_at

    def _later(self, work: Coroutine[None, None, None]) -> None:
        self._connection.await_store()
        self._task = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """Nobody waits for this task, so nobody else would notice its failure: the client would wait for ever."""
        try:
            await work
        except Exception:  # noqa: BLE001 -- the last line of defence: a bug answers 500, it does not hang the client
            _log.exception("a request could not be judged")
            self._task = None
            self._connection.fail()
        else:
            self._connection.flow()

    def _judged(self) -> tuple[RequestHead, str]:
        """The head and host to judge: this request's own, or what another proxy asks about."""
        asked = self._asked
        return (self.head, self.origin.name) if asked is None else (asked.head, asked.host)

    async def _judge_later(self) -> None:
        judged, host = self._judged()
        verdict = await self._plan.gate.judge_later(judged, host, self.origin.address)
        if self._relay.tally is not None:
            unavailable = verdict.kind is Kind.UNAVAILABLE
            self._relay.tally.store_asked(self.seconds, found=verdict.session is not None, failed=unavailable)
        self._task = None
        self._act(verdict)

    def _act(self, verdict: Verdict) -> None:
        self.verdict = verdict
        if self._asked is not None:
            self._act_on_question(self._asked, verdict)
            return
        route = verdict.route
        if verdict.kind is not Kind.PASS or route is None:
            self.answer(verdict)
            return
        lane = self._plan.lanes[route]
        if not self._acceptable(lane):
            return
        session = verdict.session
        if session is None:
            self._relay_on(lane, lane.headers.identity_block(None, None))
            return
        renew_at, block = session.blocks.get(verdict.told, _NO_BLOCK)
        if renew_at < self._relay.now:
            if lane.headers.needs_tokens and session.via == "cookie":
                self._later(self._act_with_tokens(lane, verdict, session))
                return
            self._make_room(session)
            block = lane.headers.identity_block(verdict.identity, None)
            session.blocks[verdict.told] = (self._relay.now + lane.headers.block_seconds, block)
        self._relay_on(lane, block)

    def _read_question(self, dialect: Dialect) -> bool:
        """Read what another proxy asks about; False when the question is refused, and that has been answered."""
        try:
            self._asked = read_question(self.head, self.origin, dialect, self._plan.auth_path)
        except MalformedRequest as error:
            _log.warning("a forward-auth question was refused: %s", error.reason)
            self.answer(Verdict(Kind.BAD_REQUEST, status=error.status, reason="forward_auth", detail=error.reason))
            return False
        return True

    def _act_on_question(self, asked: Asked, verdict: Verdict) -> None:
        if verdict.kind is Kind.OWN:
            self._tell(b"")  # the gateway's own paths need no permission, and the proxy relays them to the gateway
        elif verdict.kind is Kind.PASS and verdict.route is not None:
            headers = self._plan.lanes[verdict.route].headers
            session = verdict.session
            if headers.needs_tokens and session is not None and session.via == "cookie":
                self._later(self._tell_with_tokens(asked, headers, verdict, session))
            else:
                self._tell(self._answer_block(headers, verdict))
        elif asked.dialect is Dialect.NGINX:
            connection, call = self._answering(), self._call(verdict)
            persistence = connection.persistence(self.head.minor)
            sign_in = f"{self._plan.own_url(asked.host)}/sign-in"
            answer = refused_for_nginx(
                verdict, asked.head.values, sign_in, call.url, connection.date, self.id, persistence
            )
            connection.respond(int(answer[9:12]), answer)
            connection.finished()
        else:
            self.answer(verdict)

    def _answer_block(self, headers: RouteHeaders, verdict: Verdict) -> bytes:
        """What is told of the person who may pass, worked out once per session and route."""
        session = verdict.session
        if session is None:
            return headers.answer_block(None, None)
        key = ("auth", verdict.told)
        block: bytes
        renew_at, block = session.blocks.get(key, _NO_BLOCK)
        if renew_at < self._relay.now:
            self._make_room(session)
            block = headers.answer_block(verdict.identity, None)
            session.blocks[key] = (self._relay.now + headers.block_seconds, block)
        return block

    async def _tell_with_tokens(self, asked: Asked, headers: RouteHeaders, verdict: Verdict, session: Session) -> None:
        tokens, verdict = await self._tokens(headers, verdict, session)
        self._task = None
        self.verdict = verdict
        if verdict.kind is Kind.PASS:
            self._tell(headers.answer_block(verdict.identity, tokens))
        else:
            self._act_on_question(asked, verdict)

    def _tell(self, block: bytes) -> None:
        connection = self._answering()
        persistence = connection.persistence(self.head.minor)
        connection.respond(200, allowed(block, connection.date, self.id, persistence))
        connection.finished()

    def _answering(self) -> ClientConnection:
        """The connection, about to be given a whole answer; what has not been read of the request ends it."""
        if not self._connection.request_read:
            self._connection.keep_alive = False
        return self._connection

    def _make_room(self, session: Session) -> None:
        if len(session.blocks) >= 2 * len(self._plan.lanes):
            session.blocks.clear()  # blocks for routes of earlier settings

    def _acceptable(self, lane: Lane) -> bool:
        """Whether a request that has passed the gate can go to an app at all; otherwise it is answered here."""
        head = self.head
        limit = self.body_limit = lane.body_bytes
        if limit and head.length is not None and head.length > limit:
            self._passed_but(bad_request(413, "the request's body is larger than allowed"))
            return False
        if head.method == b"OPTIONS" and forwards_left(head) == 0:
            self._answer_options()
            return False
        return True

    async def _act_with_tokens(self, lane: Lane, verdict: Verdict, session: Session) -> None:
        tokens, verdict = await self._tokens(lane.headers, verdict, session)
        self._task = None
        self.verdict = verdict
        if verdict.kind is Kind.PASS:
            self._relay_on(lane, lane.headers.identity_block(verdict.identity, tokens))
        else:
            self.answer(verdict)

    async def _tokens(self, headers: RouteHeaders, verdict: Verdict, session: Session) -> tuple[Tokens | None, Verdict]:
        """Logto's tokens for the app, with the verdict that holds by then: nobody may be able to tell what they are."""
        try:
            tokens = await self._plan.tokens_of(self.head, session, headers.audiences)
            if tokens is None:  # the session has ended since it was judged
                judged, host = self._judged()
                verdict = await self._plan.gate.judge_later(judged, host, self.origin.address)
        except (StoreUnavailable, LogtoUnavailable) as error:
            reason = "tokens_unavailable" if isinstance(error, LogtoUnavailable) else ""
            route, why = verdict.route, str(error)
            return None, Verdict(Kind.UNAVAILABLE, route=route, session=session, status=503, reason=reason, detail=why)
        return tokens, verdict

    def _passed_but(self, verdict: Verdict) -> None:
        """Answer with `verdict` a request that the gate has passed on to a route."""
        if self.verdict is not None:
            verdict.route, verdict.session = self.verdict.route, self.verdict.session
        self.answer(verdict)

    def _relay_on(self, lane: Lane, identity: bytes) -> None:
        verdict = self.verdict
        if verdict is None or verdict.kind is not Kind.PASS or verdict.route is None:
            raise RuntimeError("only what the gate passed is relayed")
        if self._relay.tracer is not None:
            self._span = self._relay.tracer.begin(self.head, self.origin, verdict.route, self.started_at)
            identity += self._span.fields
        self._identity = verdict.session.identity if verdict.session is not None else None
        head = lane.headers.to_upstream(self.head, self.origin, identity, self.id)
        exchange = self.work = Exchange(self._connection, self, lane.pools, lane.headers, head)
        exchange.start()

    def _answer_options(self) -> None:
        """Answer an OPTIONS request that is about the gateway, or may go no further (RFC 9110 7.6.2, 9.3.7)."""
        connection = self._answering()
        connection.respond(204, options_answer(connection.date, self.id, connection.persistence(self.head.minor)))
        connection.finished()

    def _call(self, verdict: Verdict) -> Call:
        judged, host = self._judged()
        scheme = self._plan.public_scheme
        target = judged.target.decode("latin-1")
        return Call(verdict, self.id.decode("latin-1"), self.origin.client, scheme, host, f"{scheme}://{host}{target}")
