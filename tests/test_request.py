"""One request from its head to its end: who is told what, when the store has to be asked, and when a session ends meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from typing import Any

import pytest
from typing_extensions import override

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.request import Request
from proxy.session import MemoryStore, Miss, Session
from tests.relay_world import relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
HOST = b"Host: localhost:3000"
NAVIGATION = (b"Sec-Fetch-Mode: navigate", b"Accept: text/html")
SIGNED_IN = {"POSTERN_ROUTE__0__ALLOW": "signed-in"}
WITH_TOKENS = {**SIGNED_IN, "POSTERN_ROUTE__0__HEADERS__SET": '{Authorization = "Bearer {id_token}"}'}


def ask(path: bytes = b"/", *fields: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" HTTP/1.1", HOST, *fields, b"", b""])


def field(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n" + name + rb": ([^\r]*)", head, re.IGNORECASE)
    return found[1] if found else None


class Gated(MemoryStore):
    """A store that answers when it is told to, and as it is told to."""

    def __init__(self) -> None:
        super().__init__(idle=3600, lifetime=86400)
        self.go = asyncio.Event()
        self.asked = 0
        self.error: Exception | None = None
        self.remote = True

    @override
    def peek(self, cookie: str) -> Any:
        return Miss.MISS if self.remote else super().peek(cookie)

    @override
    async def load(self, cookie: str) -> Session | None:
        await self._answer()
        found = super().peek(cookie)
        return found if isinstance(found, Session) else None

    @override
    async def tokens(self, cookie: str) -> Tokens | None:
        await self._answer()
        return await super().tokens(cookie)

    async def _answer(self) -> None:
        self.asked += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error


class TestIdentity:
    def test_the_app_is_told_who_it_is_and_nothing_that_the_client_says(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                cookie = await world.sign_in(sub="ada1", email="ada@example.com", roles=("ops",))
                lies = (b"X-Forwarded-User: root", b"x_forwarded_user: root", b"X-Forwarded-Groups: admin", b"Remote-User: root",
                        b"Connection: X-Forwarded-User, X-Forwarded-Email")  # fmt: skip
                client = await world.connect()
                for _ in range(2):
                    assert (await client.ask(ask(b"/", b"Cookie: a=1; " + cookie, *lies)))[0] == 200
                    head = world.upstream.heads[-1]
                    assert field(head, b"X-Forwarded-User") == b"ada1"
                    assert field(head, b"X-Forwarded-Email") == b"ada@example.com"
                    assert field(head, b"X-Forwarded-Groups") == b"ops"
                    assert field(head, b"Cookie") == b"a=1"
                    assert b"root" not in head
                    assert b"admin" not in head

        run(talk())

    def test_everyones_app_is_told_who_is_there(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                await world.ask(ask(b"/", b"Cookie: " + await world.sign_in(sub="ada1")))
                await world.ask(ask(b"/", b"X-Forwarded-User: root"))
                assert field(world.upstream.heads[0], b"X-Forwarded-User") == b"ada1"
                assert field(world.upstream.heads[1], b"X-Forwarded-User") is None

        run(talk())

    def test_one_id_for_app_answer_and_log(self) -> None:
        async def talk() -> None:
            async with relay_world(POSTERN_TRUSTED_PROXIES="127.0.0.1/32") as world:
                for given in (b"edge-1", None, b'bad"id'):
                    fields = (b"X-Request-Id: " + given,) if given else ()
                    _, head, _ = await world.ask(ask(b"/", *fields))
                    got = field(head, b"X-Request-Id")
                    assert got == field(world.upstream.heads[-1], b"X-Request-Id")
                    assert got is not None
                    assert world.lines()[-1]["id"] == got.decode()
                    assert (got == given) is (given == b"edge-1")
            async with relay_world() as world:
                _, head, _ = await world.ask(ask(b"/", b"X-Request-Id: mine"))
                assert field(head, b"X-Request-Id") != b"mine"
                other = (await world.ask(ask()))[1]
                assert field(head, b"X-Request-Id") != field(other, b"X-Request-Id")

        run(talk())

    def test_the_line_in_the_log(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                cookie = b"Cookie: " + await world.sign_in(sub="ada1")
                await world.ask(ask(b"/reports?token=secret", cookie, b"Authorization: Bearer secret"))
                line = world.lines()[-1]
                assert abs(line.pop("time") - time.time()) < 60
                assert line.pop("ms") >= 0
                line.pop("id")
                assert line == {
                    "event": "request", "client": "127.0.0.1", "method": "GET", "host": "localhost:3000", "path": "/reports",
                    "status": 200, "route": "app", "outcome": "signed_in", "user": "ada1", "bytes": 5,
                }  # fmt: skip
                await world.ask(ask(b"/x"))
                assert (world.lines()[-1]["outcome"], world.lines()[-1]["status"]) == ("unauthenticated", 401)

        run(talk())


class TestAskingTheStore:
    def test_a_request_and_its_body_wait_for_the_answer(self) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **SIGNED_IN) as world:
                cookie = await _session(store)
                client = await world.connect()
                client.send(ask(b"/", b"Cookie: " + cookie, b"Content-Length: 100000", method=b"POST") + bytes(50_000))
                await world.until(lambda: store.asked == 1)
                client.send(bytes(50_000) + ask(b"/next", b"Cookie: " + cookie))
                assert world.upstream.connections == 0
                store.go.set()
                assert (await client.response())[0] == 200
                assert (await client.response())[0] == 200
                assert [len(body) for body in world.upstream.bodies] == [100_000, 0]

        run(talk())

    def test_a_request_without_a_body_waits_too(self) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **SIGNED_IN) as world:
                cookie = await _session(store)
                client = await world.connect()
                client.send(ask(b"/", b"Cookie: " + cookie))
                await world.until(lambda: store.asked == 1)
                store.go.set()
                assert (await client.response())[0] == 200
                client.send(ask(b"/", b"Cookie: " + cookie, b"Content-Length: 2", method=b"POST") + b"hi")
                assert (await client.response())[0] == 200

        run(talk())

    def test_a_client_that_leaves_is_not_waited_for(self) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **SIGNED_IN) as world:
                client = await world.connect()
                client.send(ask(b"/", b"Cookie: " + await _session(store)))
                await world.until(lambda: store.asked == 1)
                client.abort()
                await world.until(lambda: not world.gateway.relay.connections)
                store.go.set()
                assert world.lines()[-1]["status"] == 499
                assert world.upstream.connections == 0

        run(talk())

    def test_a_store_that_is_down_is_503(self) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **SIGNED_IN) as world:
                cookie = b"Cookie: " + await _session(store)
                store.error = StoreUnavailable("Redis did not answer in time")
                store.go.set()
                status, head, body = await world.ask(ask(b"/", cookie))
                assert (status, json.loads(body)["reason"]) == (503, "store_unavailable")
                assert field(head, b"Retry-After") is not None
                assert field(head, b"Set-Cookie") is None, "nobody is signed out"
                store.error = None
                assert (await world.ask(ask(b"/", cookie)))[0] == 200

        run(talk())

    def test_a_bug_is_500_and_not_silence(self, caplog: pytest.LogCaptureFixture) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **SIGNED_IN) as world:
                store.error = ZeroDivisionError("a bug")
                store.go.set()
                status, _, body = await world.ask(ask(b"/", b"Cookie: " + await _session(store)))
                assert (status, json.loads(body)["reason"]) == (500, "internal_error")
                assert world.upstream.connections == 0

        with caplog.at_level(logging.CRITICAL):
            run(talk())

    def test_tokens_are_fetched_where_a_route_sends_them(self) -> None:
        async def talk() -> None:
            async with relay_world(**WITH_TOKENS) as world:
                cookie = b"Cookie: " + await world.sign_in()
                client = await world.connect()
                for _ in range(2):
                    assert (await client.ask(ask(b"/", cookie, b"Authorization: Bearer forged")))[0] == 200
                    assert field(world.upstream.heads[-1], b"Authorization") == b"Bearer id.token.x"
                assert (await client.ask(ask(b"/", cookie, b"Content-Length: 2", method=b"POST") + b"hi"))[0] == 200
                assert world.upstream.bodies[-1] == b"hi"

        run(talk())

    @pytest.mark.parametrize(("fields", "status"), [((), 401), (NAVIGATION, 302)])
    def test_a_session_that_ends_while_its_tokens_are_fetched(self, fields: tuple[bytes, ...], status: int) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **WITH_TOKENS) as world:
                store.remote = False
                cookie = b"Cookie: " + await _session(store)
                client = await world.connect()
                client.send(ask(b"/", cookie, *fields))
                await world.until(lambda: store.asked == 1)
                for session_id in list(store._sessions):
                    await store.end(session_id)
                store.go.set()
                got = (await client.response())[0]
                assert got == status or (status == 302 and got in (502, 503)), "no Logto there to go to"
                assert world.upstream.connections == 0

        run(talk())

    def test_a_store_that_goes_down_before_the_tokens_are_there(self) -> None:
        async def talk() -> None:
            store = Gated()
            async with relay_world("", None, store, **WITH_TOKENS) as world:
                store.remote = False
                store.error = StoreUnavailable("Redis did not answer in time")
                store.go.set()
                status, _, body = await world.ask(ask(b"/", b"Cookie: " + await _session(store)))
                assert (status, json.loads(body)["reason"]) == (503, "store_unavailable")
                assert world.lines()[-1]["route"] == "app"

        run(talk())


async def _session(store: Gated) -> bytes:
    tokens = Tokens(id_token="id.token.x", access_token="opaque", access_expires_at=time.time() + 3600)
    _, value = await store.create(Grant(Identity(sub="ada1"), tokens, None, time.time()), browser="", address="")
    return b"postern=" + value.encode()


class TestSessionsThatEnd:
    @pytest.mark.parametrize("end", ["sign-out", "lifetime"])
    def test_an_answer_that_has_begun_is_cut_short(self, end: str) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
                    await reader.read()

                world.upstream.script = script
                client, other = await world.connect(), await world.connect()
                client.send(ask(b"/", b"Cookie: " + await world.sign_in()))
                await client.head()
                await client.exactly(14)
                assert (await other.ask(ask(b"/.postern/healthz")))[0] == 200
                if end == "sign-out":
                    await world.end_sessions()
                else:
                    world.much_later(8 * 86400)
                assert await client.ends() == "reset"
                await world.until(lambda: world.upstream.open == 0)
                assert world.lines()[-1]["outcome"] == "cut_short"
                assert (await other.ask(ask(b"/.postern/healthz")))[0] == 200, "others do not notice"

        run(talk())

    def test_one_that_has_not_is_a_refusal_instead(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:

                async def script(reader: Reader, _writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await reader.read()

                world.upstream.script = script
                client = await world.connect()
                client.send(ask(b"/", b"Cookie: " + await world.sign_in()))
                await world.until(lambda: len(world.upstream.heads) == 1)
                await world.end_sessions()
                status, _, body = await client.response()
                assert (status, json.loads(body)["reason"]) == (401, "not_signed_in")
                await world.until(lambda: world.upstream.open == 0)

        run(talk())

    def test_thousands_at_once_are_looked_at_once(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                client = await world.connect()
                for _ in range(50):
                    await world.sign_in()
                looks = 0
                relay = world.gateway.relay
                look = relay._close_ended

                def counted() -> None:
                    nonlocal looks
                    looks += 1
                    look()

                relay._close_ended = counted  # type: ignore[method-assign]
                await world.end_sessions()
                assert (await client.ask(ask(b"/.postern/healthz")))[0] == 200
                assert 1 <= looks < 50

        run(talk())


class TestOptions:
    @pytest.mark.parametrize("fields", [(), (b"Max-Forwards: 5",)])
    def test_about_the_server_as_a_whole(self, fields: tuple[bytes, ...]) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                client = await world.connect()
                for _ in range(2):
                    status, head, _ = await client.ask(ask(b"*", *fields, method=b"OPTIONS"))
                    assert (status, field(head, b"Allow") is not None) == (204, True)
                assert world.lines()[-1]["outcome"] == "own"
                client.send(ask(b"*", b"Content-Length: 3", method=b"OPTIONS"))
                status, head, _ = await client.response()
                assert (status, field(head, b"Connection")) == (204, b"close")
                assert world.upstream.heads == []

        run(talk())

    def test_max_forwards_is_counted(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                assert (await world.ask(ask(b"/x", b"Max-Forwards: 2", method=b"OPTIONS")))[0] == 200
                assert field(world.upstream.heads[0], b"Max-Forwards") == b"1"
                assert (await world.ask(ask(b"/x", b"Max-Forwards: 0", method=b"OPTIONS")))[0] == 204
                assert (await world.ask(ask(b"/x", b"Max-Forwards: 0")))[0] == 200
                assert len(world.upstream.heads) == 2

        run(talk())

    def test_who_may_not_come_in_may_not_ask_for_options(self) -> None:
        async def talk() -> None:
            async with relay_world(**SIGNED_IN) as world:
                assert (await world.ask(ask(b"/x", b"Max-Forwards: 0", method=b"OPTIONS")))[0] == 401

        run(talk())


def test_a_circle_is_left_at_the_second_turn() -> None:
    async def talk() -> None:
        async with relay_world() as world:

            async def boomerang(reader: Reader, writer: Writer) -> None:
                head = await world.upstream.head(reader)
                there, back = await asyncio.open_connection("127.0.0.1", world.port)
                back.write(head)
                writer.write(await there.readuntil(b"\r\n\r\n"))
                writer.write(await there.read(100))
                back.close()

            world.upstream.script = boomerang
            client = await world.connect()
            client.send(ask(b"/x"))
            status, head, _ = await client.response(head_only=True)
            assert status == 508
            assert field(head, b"Content-Type") == b"application/problem+json"
            assert len(world.upstream.heads) == 1
            assert {line["outcome"] for line in world.lines()} >= {"loop_detected"}

    run(talk())


def test_nothing_is_relayed_without_a_verdict_that_says_so() -> None:
    """The last check before bytes go to an app, should everything before it be wrong."""

    async def talk() -> None:
        async with relay_world() as world:
            relay = world.gateway.relay
            seen: list[Request] = []
            judge = relay.plan.gate.judge
            (lane,) = relay.plan.lanes.values()
            client = await world.connect()
            client.send(ask(b"/.postern/healthz"))
            await client.response()
            del judge
            original = Request.answer
            try:
                Request.answer = lambda self, verdict: seen.append(self) or original(self, verdict)  # type: ignore[func-returns-value,method-assign]
                await client.ask(ask(b"/.postern/healthz"))
            finally:
                Request.answer = original  # type: ignore[method-assign]
            with pytest.raises(RuntimeError, match="gate passed"):
                seen[0]._relay_on(lane, b"X-Forwarded-User: root\r\n")
            assert world.upstream.connections == 0

    run(talk())
