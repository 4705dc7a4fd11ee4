"""What people get when the app behind fails, in every way it can, and which requests are sent again: the gateway as a whole."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from proxy.errors import UpstreamProblem
from tests.certificates import Authority
from tests.relay_world import World, relay_world
from tests.upstream_world import HELLO, Peer, Script, answering, once, peer, reset, run, silent, until

GET = b"GET / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 4\r\n\r\ndata"
UPSTREAM = "POSTERN_ROUTE__0__UPSTREAM"


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@asynccontextmanager
async def world_before(*upstreams: str, **environ: str) -> AsyncIterator[World]:
    async with relay_world(**{UPSTREAM: ",".join(upstreams), **environ}) as world:
        yield world


async def reason(world: World, request: bytes = GET) -> tuple[int, str]:
    """The status and the reason of a request's problem document; the access log says the same."""
    status, head, body = await world.ask(request)
    assert b"application/problem+json" in head
    assert b"cache-control: no-store" in head.lower()
    problem = json.loads(body)
    assert problem["status"] == status
    line = world.lines()[-1]
    assert (line["status"], line["outcome"]) == (status, problem["reason"])
    return status, problem["reason"]


class TestEveryFailure:
    def failing(self, script: Script) -> tuple[int, str]:
        async def fail() -> tuple[int, str]:
            async with peer(script) as server, world_before(server.url) as world:
                return await reason(world)

        return run(fail())

    def test_nobody_there(self, caplog: pytest.LogCaptureFixture) -> None:
        url = nobody()

        async def fail() -> None:
            async with world_before(url) as world:
                assert await reason(world) == (502, "upstream_refused")

        run(fail())
        assert [record.getMessage() for record in caplog.records] == [
            f"upstream {url}: upstream_refused: Connection refused; set aside for 1 s"
        ]

    def test_no_such_socket(self, tmp_path: Path) -> None:
        async def fail() -> None:
            async with world_before(f"unix:{tmp_path}/none.sock") as world:
                assert await reason(world) == (502, "upstream_refused")

        run(fail())

    def test_a_full_backlog(self) -> None:
        async def fail(port: int) -> None:
            async with world_before(f"http://127.0.0.1:{port}", POSTERN_LIMITS__CONNECT_TIMEOUT="100ms") as world:
                assert await reason(world) == (504, "upstream_connect_timeout")

        with socket.socket() as server, ExitStack() as held:
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            for _ in range(3):
                client = held.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
            run(fail(server.getsockname()[1]))

    def test_an_answer_that_never_comes(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fail() -> None:
            async with peer(silent) as server, world_before(server.url) as world:
                waiting = asyncio.ensure_future(reason(world))
                await until(lambda: server.open == 1)
                await world.ages_until(waiting.done)
                assert await waiting == (504, "upstream_response_timeout")
                await until(lambda: not server.open)

        run(fail())
        assert "upstream_response_timeout: no answer in time" in caplog.text

    def test_an_accepted_connection_that_is_reset(self) -> None:
        async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reset(writer)

        assert self.failing(refuse) == (502, "upstream_reset")

    @pytest.mark.parametrize("abort", [True, False])
    @pytest.mark.parametrize("answer", [b"", b"HTTP", b"HTTP/1.1 200 OK\r\nContent-Le"])
    def test_half_an_answer(self, answer: bytes, abort: bool) -> None:
        assert self.failing(once(answer, abort=abort)) == (502, "upstream_reset")

    @pytest.mark.parametrize(
        "answer",
        [
            b"<html>This is HTTP/0.9</html>",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\x15\x03\x03\x00\x02\x02\x16",  # a TLS alert
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000,
        ],
    )
    def test_something_else_than_an_answer(self, answer: bytes) -> None:
        assert self.failing(once(answer)) == (502, "upstream_garbage")

    def test_interim_answers_for_ever(self) -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            while True:
                writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
                await writer.drain()

        async def fail() -> None:
            async with peer(endless) as server, world_before(server.url) as world:
                client = await world.connect()
                client.send(GET)
                status = 102
                while status == 102:
                    status, _, body = await client.response()
                assert (status, json.loads(body)["reason"]) == (502, "upstream_garbage")

        run(fail())

    def test_an_answer_that_breaks_off_looks_broken_off(self) -> None:
        async def fail() -> None:
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            async with peer(once(answer)) as server, world_before(server.url) as world:
                client = await world.connect()
                client.send(GET)
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await client.response()
                assert world.lines()[-1]["outcome"] == "cut_short"

        run(fail())


class TestTls:
    def failing(self, context: ssl.SSLContext, **tls: str) -> tuple[int, str]:
        async def fail() -> tuple[int, str]:
            async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.close()

            environ = {f"POSTERN_ROUTE__0__TLS__{key.upper()}": value for key, value in tls.items()}
            async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
                url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                async with world_before(url, **environ) as world:
                    return await reason(world)

        return run(fail())

    def test_a_certificate_that_has_expired(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        authority = Authority(tmp_path)
        context = authority.server("127.0.0.1", expired=True)
        assert self.failing(context, ca=str(authority.file)) == (502, "upstream_tls")
        assert "upstream_tls: its certificate is not accepted: certificate has expired" in caplog.text

    def test_a_certificate_of_somebody_else(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        authority = Authority(tmp_path)
        assert self.failing(authority.server("app.internal"), ca=str(authority.file)) == (502, "upstream_tls")
        assert "certificate is not valid for '127.0.0.1'" in caplog.text

    def test_an_authority_that_nobody_knows(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert self.failing(Authority(tmp_path).server("127.0.0.1")) == (502, "upstream_tls")
        assert "unable to get local issuer certificate" in caplog.text

    def test_a_server_that_wants_a_certificate(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        authority = Authority(tmp_path)
        context = authority.server("127.0.0.1", clients=authority.file)
        status, why = self.failing(context, ca=str(authority.file))
        # The server's refusal races with the reset that comes of our request, which it does not read.
        assert (status, why) in ((502, "upstream_tls"), (502, "upstream_reset"))
        assert "tlsv13 alert certificate required" in caplog.text or "does it want a client certificate?" in caplog.text

    def test_all_well(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        cert, key = authority.issue("client", "postern")
        environ = {"CA": str(authority.file), "CLIENT_CERT": str(cert), "CLIENT_KEY": str(key)}

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with pytest.raises(asyncio.IncompleteReadError):
                await answering()(reader, writer)
            writer.close()

        async def work() -> None:
            context = authority.server("127.0.0.1", clients=authority.file)
            async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
                url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                tls = {f"POSTERN_ROUTE__0__TLS__{name}": value for name, value in environ.items()}
                async with world_before(url, **tls) as world:
                    for _ in range(2):
                        status, _, body = await world.ask(GET)
                        assert (status, body) == (200, b"hello")

        run(work())

    @pytest.mark.parametrize(
        ("language", "title"),
        [("en", b"This app cannot be reached safely"), ("zh-CN", "无法安全地连接该应用".encode())],
    )
    def test_people_get_a_page_that_says_so(self, tmp_path: Path, language: str, title: bytes) -> None:
        async def page() -> bytes:
            async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=Authority(tmp_path).server("127.0.0.1"))
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with server, world_before(url) as world:
                request = GET[:-2] + b"Accept: text/html\r\nAccept-Language: %b\r\n\r\n" % language.encode()
                status, _, body = await world.ask(request)
                assert status == 502
                return body

        assert title in run(page())


def reading(log: list[bytes], answer: bytes = HELLO) -> Script:
    """Answer every request; `log` gets each request's first line and its body (of up to nine bytes)."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            log.append(await one_request(reader))
            writer.write(answer)

    return script


async def one_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    if b"Content-Length: " in head:
        body = await reader.readexactly(int(head.partition(b"Content-Length: ")[2][:1]))
    return head.partition(b"\r\n")[0] + body


class TestStaleConnections:
    """A server closes a kept connection just as the next request goes out on it: nobody could know in time."""

    def stale(self, log: list[bytes], *, abort: bool) -> Script:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            log.append(await one_request(reader))
            writer.write(HELLO)
            await reader.read(1)
            if abort:
                reset(writer)

        return script

    @pytest.mark.parametrize("abort", [True, False])
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
    def test_what_may_be_sent_twice_is_sent_again(self, method: bytes, abort: bool) -> None:
        log: list[bytes] = []

        async def ask() -> None:
            async with peer(self.stale(log, abort=abort)) as server, world_before(server.url) as world:
                request = GET.replace(b"GET", method)
                for _ in range(4):
                    status, _, _ = await world.ask(request)
                    assert status == 200
                assert server.connections == 4
                assert {line["status"] for line in world.lines()} == {200}

        run(ask())
        assert log == [method + b" / HTTP/1.1"] * 4

    @pytest.mark.parametrize(
        "request_",
        [
            POST,
            b"POST / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 0\r\n\r\n",
            b"PATCH / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 4\r\n\r\ndata",
            b"PROPPATCH / HTTP/1.1\r\nHost: localhost:3000\r\n\r\n",
            b"PUT / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 4\r\n\r\ndata",  # its body is gone once it is sent
            b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nContent-Length: 4\r\n\r\ndata",
        ],
    )
    def test_anything_else_never_meets_one(self, request_: bytes) -> None:
        log: list[bytes] = []

        async def ask() -> None:
            async with peer(self.stale(log, abort=True)) as server, world_before(server.url) as world:
                assert (await world.ask(GET))[0] == 200
                for _ in range(3):
                    assert (await world.ask(request_))[0] == 200
                assert server.connections == 4, "each has a connection of its own"

        run(ask())
        assert len(log) == 4

    def test_once_is_enough(self) -> None:
        """A request that takes its server down is not sent again and again."""
        log: list[bytes] = []

        async def deadly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            log.append(await one_request(reader))
            writer.write(HELLO)
            log.append(await one_request(reader))
            server.script = fatal

        async def fatal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            log.append(await one_request(reader))
            reset(writer)

        server: Peer

        async def ask() -> None:
            nonlocal server
            async with peer(deadly) as server, world_before(server.url) as world:
                assert (await world.ask(GET))[0] == 200
                assert await reason(world) == (502, "upstream_reset")

        run(ask())
        assert len(log) == 3

    def test_not_when_a_byte_of_the_answer_has_come(self) -> None:
        log: list[bytes] = []

        async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            log.append(await one_request(reader))
            writer.write(HELLO)
            log.append(await one_request(reader))
            writer.write(b"H")

        async def ask() -> None:
            async with peer(half) as server, world_before(server.url) as world:
                assert (await world.ask(GET))[0] == 200
                assert await reason(world) == (502, "upstream_reset")

        run(ask())
        assert len(log) == 2


class TestKeepAliveLottery:
    """Servers may close idle connections whenever they like. Nobody is to notice; bench/soak_keepalive.py plays for longer."""

    def test_no_request_is_lost_and_no_post_is_doubled(self) -> None:
        lots = random.Random(7)
        log: list[bytes] = []

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                log.append(await one_request(reader))
                writer.write(HELLO)
                lot = lots.random()
                if lot < 0.1:
                    return
                if lot < 0.2:
                    await asyncio.sleep(lots.random() / 200)
                    return
                if lot < 0.3:
                    await reader.read(1)
                    reset(writer)
                    return

        async def client(world: World, numbers: Iterator[int]) -> None:
            connection = await world.connect()
            for number in numbers:
                raw = (POST if number % 3 else GET).replace(b" / ", b" /%d " % number)
                status, _, body = await connection.ask(raw)
                assert (status, body) == (200, b"hello")

        async def lottery() -> None:
            numbers = iter(range(1500))
            async with peer(play) as server, world_before(server.url) as world:
                await asyncio.gather(*(client(world, numbers) for _ in range(8)))

        run(lottery())
        assert sorted(log) == sorted(
            b"%b /%d HTTP/1.1%b" % ((b"POST", number, b"data") if number % 3 else (b"GET", number, b""))
            for number in range(1500)
        )


class TestSeveralServers:
    @pytest.mark.parametrize("request_", [GET, POST])
    def test_one_that_is_not_there_is_passed_over(self, request_: bytes) -> None:
        async def ask() -> None:
            async with peer(reading([])) as server, world_before(nobody(), nobody(), server.url) as world:
                for _ in range(6):
                    assert (await world.ask(request_))[0] == 200

        run(ask())

    def test_where_none_is_there_the_last_one_tells_why(self) -> None:
        async def ask() -> None:
            async with world_before(nobody(), nobody()) as world:
                for _ in range(3):  # being set aside is no reason not to be asked
                    assert await reason(world) == (502, "upstream_refused")

        run(ask())

    def test_they_share_the_work(self) -> None:
        async def ask() -> None:
            async with peer(answering()) as one, peer(answering()) as two, world_before(one.url, two.url) as world:
                for _ in range(10):
                    assert (await world.ask(GET))[0] == 200
                assert (one.connections, two.connections) == (1, 1)

        run(ask())

    def test_one_that_goes_down_with_a_request_is_passed_over(self) -> None:
        log: list[bytes] = []

        async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            log.append(await one_request(reader))
            reset(writer)

        async def ask(request: bytes) -> int:
            async with peer(crash) as one, peer(reading(log)) as two, world_before(one.url, two.url) as world:
                return (await world.ask(request))[0]

        assert run(ask(GET)) == 200
        assert log == [b"GET / HTTP/1.1"] * 2
        log.clear()
        assert run(ask(POST)) == 502, "whether it was done, nobody knows"
        assert log == [b"POST / HTTP/1.1data"]

    def test_one_that_hangs_is_set_aside_after_some_failures(self) -> None:
        async def ask() -> None:
            async with peer(silent) as one, peer(answering()) as two, world_before(one.url, two.url) as world:
                statuses = []
                for turn in range(1, 7):  # idle servers take turns
                    asking = asyncio.ensure_future(world.ask(GET))
                    while not asking.done():
                        if one.open:
                            world.later(100 * turn)
                        await asyncio.sleep(0.005)
                    statuses.append(asking.result()[0])
                assert sorted(statuses) == [200, 200, 200, 504, 504, 504]
                before = one.connections
                for _ in range(5):
                    assert (await world.ask(GET))[0] == 200
                assert one.connections == before

        run(ask())


class TestPlaces:
    def test_a_request_waits_for_its_turn(self) -> None:
        async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                await one_request(reader)
                most.append(server.open)
                await asyncio.sleep(0)
                writer.write(HELLO)

        most: list[int] = []
        server: Peer

        async def ask() -> None:
            nonlocal server
            async with peer(slowly) as server, world_before(server.url, POSTERN_ROUTE__0__MAX_CONNECTIONS="2") as world:
                answers = await asyncio.gather(*(world.ask(request) for request in (GET, POST, GET, POST) * 5))
                assert {status for status, _, _ in answers} == {200}

        run(ask())
        # A connection that is closed to make room for another may be there for a moment more.
        assert max(most) <= 3

    def test_but_not_for_ever(self) -> None:
        async def ask() -> None:
            environ = {"POSTERN_ROUTE__0__MAX_CONNECTIONS": "1", "POSTERN_LIMITS__CONNECT_TIMEOUT": "100ms"}
            async with peer(silent) as server, world_before(server.url, **environ) as world:
                holder = await world.connect()
                holder.send(GET)
                await until(lambda: server.open == 1)
                status, head, body = await world.ask(GET)
                assert (status, json.loads(body)["reason"]) == (503, UpstreamProblem.BUSY.value)
                assert b"retry-after: " in head.lower()
                status, _, body = await world.ask(GET[:-2] + b"Accept: text/html\r\n\r\n")
                assert b"This app is busy" in body
                holder.abort()
                await until(lambda: not server.open)
                server.script = answering()
                assert (await world.ask(GET))[0] == 200

        run(ask())

    def test_whoever_leaves_leaves_the_queue(self) -> None:
        async def ask() -> None:
            async with peer(silent) as server, world_before(server.url, POSTERN_ROUTE__0__MAX_CONNECTIONS="1") as world:
                (lane,) = world.gateway.relay.plan.lanes.values()
                holder, waiting = await world.connect(), await world.connect()
                holder.send(GET)
                await until(lambda: server.open == 1)
                waiting.send(GET)
                await until(lambda: lane.pools[0].active == 2)
                waiting.abort()
                await until(lambda: lane.pools[0].active == 1)
                holder.abort()
                await until(lambda: not lane.pools[0].active)

        run(ask())


class TestHealth:
    def test_checks_run_beside_the_requests(self) -> None:
        heads: list[bytes] = []

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                heads.append(await one_request(reader))
                writer.write(b"HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n" if b"healthz" in heads[-1] else HELLO)

        async def ask() -> None:
            environ = {"POSTERN_ROUTE__0__HEALTH__PATH": "/healthz", "POSTERN_ROUTE__0__HEALTH__INTERVAL": "10ms"}
            async with (
                peer(script) as sick,
                peer(answering()) as well,
                world_before(sick.url, well.url, **environ) as world,
            ):
                (lane,) = world.gateway.relay.plan.lanes.values()
                world.gateway.relay.start()
                await until(lambda: not lane.pools[0].standing.healthy)
                for _ in range(6):
                    assert (await world.ask(GET))[0] == 200
                assert not any(b"GET / " in head for head in heads)

        run(ask())
