"""One connection to a server: what it makes of answers, whole, broken, endless, and of ends that come too early."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from proxy import upstream as upstream_module
from proxy.errors import UpstreamProblem
from proxy.http1 import ResponseHead
from proxy.pool import Pool
from proxy.upstream import UpstreamConnection
from proxy.upstream_settings import UpstreamTls
from tests.certificates import Authority
from tests.upstream_world import (
    HELLO,
    REQUEST,
    Recorder,
    Script,
    answering,
    ask,
    once,
    peer,
    pool_of,
    reset,
    run,
    send,
    silent,
    until,
)


class Watched:
    """A transport that writes down what is written to it."""

    def __init__(self, written: list[bytes]) -> None:
        self._written = written

    def write(self, data: bytes) -> None:
        self._written.append(data)

    def abort(self) -> None:
        return


def asked(script: Script, request: bytes = REQUEST) -> Recorder:
    """What a request to a server with `script` is told."""

    async def once_asked() -> Recorder:
        async with peer(script) as server:
            pool = pool_of(server.url)
            recorder = await send(await pool.connect(), request).wait()
            pool.close()
            await until(lambda: not pool.active)
            return recorder

    return run(once_asked())


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "body"),
        [
            (HELLO, b"hello"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
        ],
    )
    @pytest.mark.parametrize("piece", [1, 7, 1000])
    def test_come_out_whole_however_they_are_cut(self, answer: bytes, body: bytes, piece: int) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(answer), piece):
                writer.write(answer[start : start + piece])
                await writer.drain()
                await asyncio.sleep(0)
            await silent(reader, writer)

        recorder = asked(script)
        assert recorder.error is None
        assert recorder.body == body
        assert len(recorder.heads) == 1

    def test_to_head_have_no_body(self) -> None:
        recorder = asked(
            answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        assert (recorder.error, recorder.body) == (None, b"")

    def test_may_bring_interim_ones_and_trailers(self) -> None:
        answer = (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        recorder = asked(once(answer))
        assert [head.status for head in recorder.heads] == [103, 102, 200]
        assert recorder.trailers == [(b"X-Sum", b"1")]

    def test_may_end_with_the_connection(self) -> None:
        recorder = asked(once(b"HTTP/1.1 200 OK\r\n\r\nhello"))
        assert (recorder.error, recorder.body, recorder.trailers) == (None, b"hello", [])

    def test_a_head_that_comes_alone_is_told_to_go_on(self) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            await go_on.wait()
            writer.write(b"hello")
            await silent(reader, writer)

        go_on = asyncio.Event()

        async def flushed() -> None:
            async with peer(script) as server:
                pool = pool_of(server.url)
                recorder = send(await pool.connect())
                await until(lambda: recorder.flushed == 1)
                go_on.set()
                assert (await recorder.wait()).body == b"hello"
                pool.close()

        run(flushed())


class TestGarbage:
    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"hello", "the response does not begin like HTTP/1"),  # HTTP/0.9
            (b"<html>", "the response does not begin like HTTP/1"),
            (b"HTTP/2.0 200 OK\r\n\r\n", "the response's status line is malformed"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "the response's status line is malformed"),
            (b"HTTP/1.1 600 Odd\r\n\r\n", "the response's status line is malformed"),
            (b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n", "a header field of the response is malformed"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length of the response is malformed"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "Content-Length of the response is malformed"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "the response's framing is ambiguous",
            ),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "malformed chunk size"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, "the response's header section is too large"),
            (
                b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
                "one interim response after the other, and no final one",
            ),
        ],
    )  # fmt: skip
    def test_is_known_as_such(self, answer: bytes, said: str) -> None:
        recorder = asked(once(answer))
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.GARBAGE
        assert str(recorder.error) == said
        assert not recorder.error.retry_safe

    def test_may_come_for_ever(self) -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            while True:
                writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
                await writer.drain()

        recorder = asked(endless)
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.GARBAGE
        assert sum(len(head.fields) for head in recorder.heads) < 10_000


class TestEndsThatComeTooEarly:
    @pytest.mark.parametrize("abort", [False, True])
    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ],
    )
    def test_are_no_ends(self, answer: bytes, abort: bool) -> None:
        recorder = asked(once(answer, abort=abort))
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.RESET
        assert recorder.trailers is None

    def test_nor_is_a_reset_the_end_of_what_ends_with_the_connection(self) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
            await seen.wait()
            reset(writer)

        seen = asyncio.Event()

        async def cut() -> Recorder:
            async with peer(script) as server:
                recorder = send(await pool_of(server.url).connect())
                recorder.on_data = lambda _data: seen.set()
                return await recorder.wait()

        recorder = run(cut())
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.RESET

    def test_count_against_the_server_unless_it_only_closed_an_idle_connection(self) -> None:
        async def stale(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO)
            await reader.read(1)  # the next request is on its way as the server goes

        async def count() -> None:
            async with peer(stale) as server:
                pool = pool_of(server.url)
                await ask(pool)
                connection = pool.take()
                assert connection is not None
                recorder = await send(connection).wait()
                assert recorder.error is not None
                assert (connection.used, connection.answered) == (True, False)
                assert not pool.standing.failures
                server.script = once(b"")
                connection = await pool.connect()
                await send(connection).wait()
                assert (connection.used, pool.standing.failures) == (False, 1)

        run(count())


class TlsByHand:
    """A TLS server over memory, because no library lets one end a connection in the wrong way, or at the worst moment."""

    def __init__(self, context: ssl.SSLContext, script: Callable[[TlsByHand], Awaitable[None]]) -> None:
        self._context = context
        self._script = script

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = self._context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        await self._script(self)
        writer.close()

    async def step(self, step: Callable[[], object]) -> None:
        """Do one step of TLS, with as many bytes to and fro as it takes."""
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                self.writer.write(self.outgoing.read())
                self.incoming.write(await self.reader.read(65536))
            else:
                self.writer.write(self.outgoing.read())
                return

    async def leave(self) -> None:
        """Send what is left, then wait for the other side to go: nothing that was sent is lost to a reset."""
        self.writer.write(self.outgoing.read())
        self.writer.write_eof()
        await self.reader.read()


def asked_over_tls(
    tmp_path: Path, script: Callable[[TlsByHand], Awaitable[None]], *, clients: bool = False
) -> Recorder:
    """What a request over TLS, without a certificate of ours, is told."""
    authority = Authority(tmp_path)
    server_tls = authority.server("127.0.0.1", clients=authority.file if clients else None)
    tls = UpstreamTls.model_validate({"ca": str(authority.file)})

    async def once_asked() -> Recorder:
        async with await asyncio.start_server(TlsByHand(server_tls, script).serve, "127.0.0.1", 0) as server:
            pool = pool_of(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", tls=tls)
            recorder = await send(await pool.connect()).wait()
            await until(lambda: not pool.active)
            return recorder

    return run(once_asked())


class TestTls:
    @pytest.mark.parametrize("farewell", [True, False])
    def test_an_end_counts_only_when_the_server_says_so(self, tmp_path: Path, farewell: bool) -> None:
        async def script(server: TlsByHand) -> None:
            await server.step(server.tls.do_handshake)
            await server.step(lambda: server.tls.read(65536))
            server.tls.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
            if farewell:
                with pytest.raises(ssl.SSLWantReadError):
                    server.tls.unwrap()
            await server.leave()

        recorder = asked_over_tls(tmp_path, script)
        assert recorder.body == b"hello"
        if farewell:
            assert recorder.error is None
        else:
            assert recorder.error is not None
            assert recorder.error.problem is UpstreamProblem.RESET

    def test_a_server_that_wants_a_certificate_says_so_after_the_handshake(self, tmp_path: Path) -> None:
        async def script(server: TlsByHand) -> None:
            with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
                await server.step(server.tls.do_handshake)
            await server.leave()

        recorder = asked_over_tls(tmp_path, script, clients=True)
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.TLS
        assert str(recorder.error) == "tlsv13 alert certificate required"

    def test_or_just_hangs_up(self, tmp_path: Path) -> None:
        async def script(server: TlsByHand) -> None:
            await server.step(server.tls.do_handshake)
            await server.step(lambda: server.tls.read(65536))
            reset(server.writer)

        recorder = asked_over_tls(tmp_path, script)
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.RESET
        assert str(recorder.error).endswith("; does it want a client certificate?")


class TestWriting:
    def test_a_body_comes_in_pieces_and_ends(self) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            got.append(await reader.readexactly(6))
            writer.write(HELLO)
            await silent(reader, writer)

        got: list[bytes] = []

        async def upload() -> None:
            async with peer(script) as server:
                pool = pool_of(server.url)
                connection, recorder = await pool.connect(), Recorder()
                connection.begin(
                    recorder, b"POST", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n", complete=False
                )
                connection.write(b"abc")
                connection.end_request(b"def")
                await recorder.wait()
                assert pool.take() is None, "what a server leaves unread of a body would be the next request"
                pool.close()

        run(upload())
        assert got == [b"abcdef"]

    def test_a_head_goes_out_with_the_beginning_of_its_body(self) -> None:
        async def upload(*steps: Callable[[UpstreamConnection], None]) -> list[bytes]:
            async with peer(silent) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                written: list[bytes] = []
                connection.begin(Recorder(), b"POST", b"head ", complete=False)
                transport, watched = connection._transport, Watched(written)
                connection._transport = cast("asyncio.Transport", watched)
                for step in steps:
                    step(connection)
                connection._transport = transport
                connection.abort()
                pool.close()
                return written

        def body(connection: UpstreamConnection) -> None:
            connection.write(b"body ")

        def end(connection: UpstreamConnection) -> None:
            connection.end_request(b"end")

        assert run(upload()) == []
        assert run(upload(body, UpstreamConnection.flush, end)) == [b"head body ", b"end"]
        assert run(upload(end, UpstreamConnection.flush)) == [b"head end"]
        assert run(upload(UpstreamConnection.flush, body, end)) == [b"head ", b"body ", b"end"]
        assert run(upload(UpstreamConnection.abort, UpstreamConnection.flush)) == []

    @pytest.mark.parametrize("unsent", [True, False])
    def test_an_answer_before_the_end_of_the_request_spoils_the_connection(self, unsent: bool) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO)
            await over.wait()

        over = asyncio.Event()

        async def upload() -> None:
            async with peer(script) as server:
                pool = pool_of(server.url)
                connection, recorder = await pool.connect(), Recorder()
                head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"
                connection.begin(recorder, b"POST", head, complete=False)
                if unsent:
                    connection.end_request(b"x" * 100_000_000)  # more than the socket takes: it lies here still
                connection.flush()
                await recorder.wait()
                assert recorder.error is None
                assert pool.take() is None
                assert not connection.alive
                over.set()

        run(upload())

    def test_a_server_that_does_not_read_is_reported(self) -> None:
        async def deaf(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await listen.wait()
            while await reader.read(1 << 20):
                pass

        listen = asyncio.Event()

        async def upload() -> None:
            async with peer(deaf) as server:
                pool = pool_of(server.url)
                connection, recorder = await pool.connect(), Recorder()
                connection.begin(recorder, b"POST", b"POST / HTTP/1.1\r\n\r\n", complete=False)
                connection.write(b"x" * 30_000_000)
                await until(lambda: recorder.blocked == [True])
                listen.set()
                await until(lambda: recorder.blocked == [True, False])
                connection.abort()

        run(upload())

    def test_a_reader_that_does_not_keep_up_stops_the_server(self) -> None:
        async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent.append(1)
            await silent(reader, writer)

        sent: list[int] = []

        async def stop() -> None:
            async with peer(flood) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                recorder.on_data = lambda _data: connection.pause()
                await until(lambda: bool(recorder.body))
                got = len(recorder.body)
                for _ in range(300):
                    await asyncio.sleep(0)
                assert len(recorder.body) == got
                assert len(sent) < 500, "more than the buffers of two sockets take"
                recorder.on_data = lambda _data: None
                connection.resume()
                connection.resume()
                assert len((await recorder.wait()).body) == 50_000_000
                pool.close()

        run(stop())

    def test_a_paused_connection_goes_back_reading(self) -> None:
        async def pause() -> None:
            async with peer(answering()) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                recorder.on_data = lambda _data: connection.pause()
                await recorder.wait()
                assert (await ask(pool)).body == b"hello"
                assert server.connections == 1
                pool.close()

        run(pause())


class TestGivingUp:
    def test_tells_nobody(self) -> None:
        async def abort() -> None:
            async with peer(silent) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                connection.abort()
                connection.abort()
                await until(lambda: not server.open and not pool.active)
                assert not recorder.ended.is_set()
                connection.write(b"x")
                connection.write_eof()
                connection.close()
                connection.pause()
                assert not pool.standing.failures

        run(abort())

    def test_because_it_is_too_slow_is_remembered(self) -> None:
        async def slow() -> None:
            async with peer(silent) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                connection.too_slow()
                connection.too_slow()
                await until(lambda: not pool.active)
                assert not recorder.ended.is_set()
                assert pool.standing.failures == 1

        run(slow())

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ],
    )
    def test_in_the_middle_of_an_answer(self, answer: bytes) -> None:
        async def head_first(give_up: Callable[[UpstreamConnection, Recorder], None]) -> None:
            async with peer(answering(answer)) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                give_up(connection, recorder)
                await until(lambda: not pool.active)
                assert len(recorder.heads) == 1
                assert not recorder.ended.is_set()

        def on_head(connection: UpstreamConnection, recorder: Recorder) -> None:
            recorder.on_head = lambda _head: connection.abort()

        def on_data(connection: UpstreamConnection, recorder: Recorder) -> None:
            recorder.on_data = lambda _data: connection.abort()

        run(head_first(on_head))
        if b"103" not in answer:
            run(head_first(on_data))


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"


class TestTunnels:
    def tunnelled(
        self, script: Script, use: Callable[[Pool, UpstreamConnection, Recorder], Awaitable[None]]
    ) -> Recorder:
        async def tunnel() -> Recorder:
            async with peer(script) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = Recorder()

                def switch(head: ResponseHead) -> None:
                    assert head.status == 101
                    connection.open_tunnel()

                recorder.on_head = switch
                connection.begin(recorder, b"GET", REQUEST, complete=True)
                await until(lambda: bool(recorder.heads))
                await use(pool, connection, recorder)
                await until(lambda: not pool.active)
                return recorder

        return run(tunnel())

    def test_carry_bytes_both_ways_and_close_by_halves(self) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SWITCH + b"HTTP/1.1 garbage is none in here\r\n\r\n")
            while data := await reader.read(1000):
                writer.write(data.upper())
            writer.write_eof()

        async def use(_pool: Pool, connection: UpstreamConnection, recorder: Recorder) -> None:
            connection.write(b"abc")
            await until(lambda: recorder.body.endswith(b"ABC"))
            connection.write_eof()
            await until(lambda: recorder.eof)
            assert not recorder.ended.is_set()
            connection.abort()

        recorder = self.tunnelled(echo, use)
        assert recorder.body == b"HTTP/1.1 garbage is none in here\r\n\r\nABC"

    def test_end_with_their_connection(self) -> None:
        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SWITCH)
            await reader.read(1)
            reset(writer)

        async def use(_pool: Pool, connection: UpstreamConnection, recorder: Recorder) -> None:
            connection.write(b"x")
            await recorder.wait()

        recorder = self.tunnelled(vanish, use)
        assert recorder.error is not None
        assert recorder.error.problem is UpstreamProblem.RESET

    def test_that_nobody_wanted_are_closed(self) -> None:
        async def uninvited() -> None:
            async with peer(once(SWITCH + b"data")) as server:
                pool = pool_of(server.url)
                connection = await pool.connect()
                recorder = send(connection)
                recorder.on_head = lambda _head: connection.abort()
                await until(lambda: not pool.active)
                assert recorder.body == b""

        run(uninvited())


def test_the_bounds_are_those_of_the_documentation() -> None:
    assert upstream_module._LIMITS.head == upstream_module._INTERIM == 256 * 1024
