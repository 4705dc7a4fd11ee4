"""Requests relayed, byte for byte, against an upstream that decides every byte: what it gets, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.relay_world import Client, World, relay_world, run

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(path: bytes = b"/", *fields: bytes, version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" " + version, b"Host: localhost:3000", *fields, b"", b""])


def field(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"\r\n" + name + rb": ([^\r]*)", head, re.IGNORECASE)
    return found[1] if found else None


def reset(writer: Writer) -> None:
    """Close with a RST instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class TestRequestsReachTheApp:
    @pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
    def test_with_a_body_of_known_length(self, version: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                status, _, body = await world.ask(
                    get(b"/x", b"Content-Length: 5", version=version, method=b"POST") + b"hello"
                )
                assert (status, body) == (200, b"hello")
                assert world.upstream.bodies == [b"hello"]
                assert field(world.upstream.heads[0], b"Content-Length") == b"5"

        run(talk())

    def test_with_a_body_in_chunks_and_trailers(self) -> None:
        """Trailers stay trailers (RFC 9110 6.5.1), and none of them can be taken for a header field of ours."""

        async def talk() -> None:
            async with relay_world() as world:
                raw = get(b"/x", b"Transfer-Encoding: chunked", b"Trailer: X-Sum", method=b"PUT")
                raw += b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\nX-Forwarded-User: root\r\nContent-Length: 7\r\n\r\n"
                assert (await world.ask(raw))[0] == 200
                assert world.upstream.bodies == [b"hello world"]
                assert world.upstream.trailers == [b"X-Sum: 1\r\n"]
                assert b"root" not in world.upstream.heads[0]
                assert field(world.upstream.heads[0], b"Trailer") == b"X-Sum"

        run(talk())

    def test_with_a_body_that_comes_in_little_pieces(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                raw = get(b"/x", b"Transfer-Encoding: chunked", method=b"POST") + b"3\r\nabc\r\n0\r\n\r\n"
                raw += get(b"/y", b"Content-Length: 3", method=b"POST") + b"def" + get(b"/z")
                client = await world.connect()
                for byte in raw:
                    client.send(bytes([byte]))
                    await asyncio.sleep(0)
                for _ in range(3):
                    assert (await client.response())[0] == 200
                assert world.upstream.bodies == [b"abc", b"def", b""]

        run(talk())

    def test_with_every_field_that_is_the_apps(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                fields = (b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"tracestate: a=1",
                          b'If-None-Match: "x"', b"Range: bytes=0-1", b"Authorization: Bearer app")  # fmt: skip
                await world.ask(get(b"/%2e//x;y?z=%00", *fields))
                head = world.upstream.heads[0]
                assert head.startswith(b"GET /%2e//x;y?z=%00 HTTP/1.1\r\nHost: localhost:3000\r\n")
                for line in fields:
                    assert line + b"\r\n" in head
                assert re.fullmatch(rb"1\.1 postern-[0-9a-f]{8}", field(head, b"Via") or b"")

        run(talk())


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "version", "method", "body", "framing"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1", b"GET", b"abc", b"length"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.0", b"GET", b"abc", b"length"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                b"HTTP/1.1",
                b"GET",
                b"abc",
                b"chunked",
            ),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                b"HTTP/1.0",
                b"GET",
                b"abc",
                b"close",
            ),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", b"HTTP/1.1", b"GET", b"abc", b"chunked"),
            (b"HTTP/1.0 200 OK\r\n\r\nabc", b"HTTP/1.0", b"GET", b"abc", b"close"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"HTTP/1.1", b"HEAD", b"", b"length"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1", b"HEAD", b"", b"none"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1", b"GET", b"", b"none"),
            (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1", b"DELETE", b"", b"none"),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", b"HTTP/1.1", b"GET", b"", b"length"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1", b"GET", b"", b"length"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1", b"GET", b"", b"chunked"),
        ],
    )
    def test_are_framed_for_who_gets_them(
        self, answer: bytes, version: bytes, method: bytes, body: bytes, framing: bytes
    ) -> None:
        """RFC 9112 6.3: never the chunked coding for HTTP/1.0, never a body where there is none."""

        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.answering(
                    answer, then_close=b"\r\n\r\nabc" in answer and b"Content-Length" not in answer
                )
                client = await world.connect()
                client.send(get(version=version, method=method))
                _, head, got = await client.response(head_only=method == b"HEAD")
                assert got == body
                assert (b"chunked" in head) is (framing == b"chunked")
                assert (field(head, b"Content-Length") is not None) is (framing == b"length")
                assert head.startswith(b"HTTP/1.1 ")
                assert field(head, b"Date") is not None
                if version == b"HTTP/1.1":  # and the next one is not mistaken for more of this one
                    world.upstream.answering(OK)
                    assert (await client.ask(get(b"/next")))[0] == 200
                else:
                    assert field(head, b"Connection") == b"close"
                    assert await client.ends() == "closed"

        run(talk())

    def test_trailers_are_relayed_as_trailers_or_dropped(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.answering(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
                    b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a\r\n\r\n"
                )
                client = await world.connect()
                client.send(get(b"/", b"Connection: TE, close", b"TE: trailers"))
                assert (await client.rest()).endswith(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
                assert field(world.upstream.heads[0], b"TE") == b"trailers"
                client = await world.connect()
                client.send(get(version=b"HTTP/1.0"))
                rest = await client.rest()
                assert rest.endswith(b"\r\n\r\nabc")
                assert b"X-Sum" not in rest

        run(talk())

    def test_interim_ones_are_relayed(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.answering(
                    b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x\r\nx: 1\r\n\r\n"
                    + OK
                )
                client = await world.connect()
                client.send(get())
                assert (await client.head()) == b"HTTP/1.1 102 Processing\r\n\r\n"
                assert (await client.head()) == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
                assert (await client.response())[::2] == (200, b"ok")
                assert (await world.ask(get(version=b"HTTP/1.0")))[::2] == (200, b"ok"), "HTTP/1.0 knows no 1xx"

        run(talk())

    def test_events_pass_at_once(self) -> None:
        """Each chunk is with the client before the next one is made: nothing is buffered."""

        async def talk() -> None:
            async with relay_world() as world:
                seen = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    )
                    for _ in range(5):
                        writer.write(b"9\r\ndata: x\n\n\r\n")
                        await seen.wait()
                        seen.clear()
                    writer.write(b"0\r\n\r\n")

                world.upstream.script = script
                client = await world.connect()
                client.send(get())
                await client.head()
                for _ in range(5):
                    assert await client.exactly(14) == b"9\r\ndata: x\n\n\r\n"
                    seen.set()
                assert await client.exactly(5) == b"0\r\n\r\n"

        run(talk())

    def test_a_head_comes_before_its_body_is_there(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                    await go.wait()
                    writer.write(b"ok")

                world.upstream.script = script
                client = await world.connect()
                client.send(get())
                assert b"200 OK" in await client.head()
                go.set()
                assert await client.exactly(2) == b"ok"

        run(talk())


class TestExpectations:
    def test_100_is_the_apps_to_give(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    head = await world.upstream.head(reader)
                    assert field(head, b"Expect") == b"100-continue"
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    await world.upstream.body(reader, head)
                    writer.write(OK)

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"PUT"))
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                client.send(b"hello")
                assert (await client.response())[0] == 200
                assert world.upstream.bodies == [b"hello"]

        run(talk())

    def test_a_final_answer_comes_instead(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.script = _answer_head(world, b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
                client = await world.connect()
                client.send(get(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"PUT"))
                status, head, _ = await client.response()
                assert (status, field(head, b"Connection")) == (417, b"close")
                assert await client.ends() == "closed"

        run(talk())


class TestEarlyAnswers:
    def test_come_through_and_stop_the_upload(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                closed = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await reader.readexactly(3)
                    writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
                    await writer.drain()
                    assert await reader.read() == b"", "no more of the body comes, and the connection is not used again"
                    closed.set()

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 1000000", method=b"POST") + b"abc")
                status, head, body = await client.response()
                assert (status, body, field(head, b"Connection")) == (413, b"big", b"close")
                await asyncio.wait_for(closed.wait(), 5)
                client.send(b"x" * 100_000)
                assert await client.ends() == "closed"

        run(talk())

    def test_arrive_though_the_app_hangs_up_under_the_upload(self) -> None:
        """A server that closes with some of the request unread resets the connection, and the reset may overtake all reading."""

        async def talk() -> None:
            listener = socket.create_server(("127.0.0.1", 0))
            refusing = threading.Thread(target=_refuse_uploads, args=(listener,))
            refusing.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            async with relay_world(POSTERN_ROUTE__0__UPSTREAM=url) as world:
                descriptors = set(Path("/proc/self/fd").iterdir())
                for _ in range(40):
                    client = await world.connect()
                    client.send(get(b"/", b"Content-Length: 9000000", method=b"POST") + bytes(3_000_000))
                    assert (await client.response())[::2] == (413, b"big")
                    client.abort()
                await world.until(lambda: not world.gateway.relay.connections)
                await world.until(lambda: len(set(Path("/proc/self/fd").iterdir()) - descriptors) <= 2)
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            await asyncio.to_thread(refusing.join)

        run(talk())

    def test_may_be_long_while_the_request_goes_on(self) -> None:
        """Both directions at once: an app may answer what it has read so far."""

        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for _ in range(3):
                        line = await reader.readuntil(b"\r\n")
                        data = await reader.readexactly(int(line, 16) + 2)
                        writer.write(b"%x\r\n%b" % (len(data) - 2, data))
                    assert await reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
                    writer.write(b"0\r\n\r\n")

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Transfer-Encoding: chunked", method=b"POST"))
                await client.head()
                for number in range(3):
                    client.send(b"1\r\n%d\r\n" % number)
                    assert await client.exactly(6) == b"1\r\n%d\r\n" % number
                client.send(b"0\r\n\r\n")
                assert await client.exactly(5) == b"0\r\n\r\n"

        run(talk())


def _refuse_uploads(listener: socket.socket) -> None:
    """A server in a thread of its own, which reads heads, answers, and closes without reading more."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")


def _answer_head(world: World, answer: bytes) -> Callable[[Reader, Writer], Awaitable[None]]:
    async def script(reader: Reader, writer: Writer) -> None:
        await world.upstream.head(reader)
        writer.write(answer)
        await writer.drain()
        await reader.read()

    return script


class TestBrokenAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"<html>",
        ],
    )
    def test_are_502(self, answer: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.answering(answer)
                status, _, body = await world.ask(get())
                assert status == 502
                assert b"upstream_garbage" in body
                assert world.lines()[-1]["outcome"] == "upstream_garbage"

        run(talk())

    @pytest.mark.parametrize("end", ["close", "reset"])
    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nContent-"])
    def test_that_end_before_they_begin_are_502(self, end: str, part: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(part)
                    await writer.drain()
                    if end == "reset":
                        reset(writer)

                world.upstream.script = script
                status, _, body = await world.ask(get(method=b"POST"))
                assert status == 502
                assert b"upstream_reset" in body

        run(talk())

    @pytest.mark.parametrize("end", ["close", "reset"])
    @pytest.mark.parametrize(
        ("version", "head", "complete"),
        [
            (b"HTTP/1.1", b"Content-Length: 10\r\n\r\nabc", False),
            (b"HTTP/1.0", b"Content-Length: 10\r\n\r\nabc", False),
            (b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
            (b"HTTP/1.0", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
            (b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", False),
            (b"HTTP/1.0", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzzz\r\n", False),
            (b"HTTP/1.0", b"\r\nabc", True),
            (b"HTTP/1.1", b"\r\nabc", True),
        ],
    )
    def test_that_are_cut_short_never_look_complete(
        self, version: bytes, head: bytes, complete: bool, end: str
    ) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\n" + head)
                    await writer.drain()
                    await go.wait()
                    if end == "reset":
                        reset(writer)

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Connection: close", version=version))
                if b"zzz" not in head:
                    await client.reader.readuntil(b"abc")
                go.set()
                try:
                    rest = await client.rest()
                except ConnectionResetError:
                    assert not complete or end == "reset"
                    await world.until(lambda: world.lines()[-1:] != [])
                    assert world.lines()[-1]["outcome"] == "cut_short"
                else:
                    assert complete
                    assert end == "close"
                    assert rest == (b"" if version == b"HTTP/1.0" else b"\r\n0\r\n\r\n")

        run(talk())

    def test_bytes_after_a_complete_one_are_nobodys_answer(self) -> None:
        """Response splitting in the pool: what an app sends too much must not answer the next person's request."""

        async def talk() -> None:
            async with relay_world() as world:
                world.upstream.answering(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
                client = await world.connect()
                for _ in range(3):
                    assert (await client.ask(get()))[2] == b"ok"
                assert world.upstream.connections == 3

        run(talk())

    def test_bytes_on_an_idle_connection_end_it(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    while True:
                        await world.upstream.head(reader)
                        writer.write(OK)
                        await go.wait()
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

                world.upstream.script = script
                client = await world.connect()
                assert (await client.ask(get()))[2] == b"ok"
                go.set()
                await world.until(lambda: world.upstream.open == 0)
                assert (await client.ask(get()))[2] == b"ok"
                assert world.upstream.connections == 2

        run(talk())


class TestStaleConnections:
    @pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
    def test_a_request_that_may_be_sent_twice_is(self, method: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(OK if world.upstream.heads[-1][:4] != b"HEAD" else OK[:-2])
                    await world.upstream.head(reader)  # and is gone, just as the next one comes

                world.upstream.script = script
                client = await world.connect()
                for _ in range(4):
                    client.send(get(method=method))
                    assert (await client.response(head_only=method == b"HEAD"))[0] == 200
                assert len(world.upstream.heads) == 7

        run(talk())

    @pytest.mark.parametrize(
        ("method", "extra"),
        [(b"POST", b""), (b"PATCH", b""), (b"PUT", b"Content-Length: 2\r\n\r\nhi"), (b"CUSTOM", b"")],
    )
    def test_any_other_is_sent_once_on_a_connection_of_its_own(self, method: bytes, extra: bytes) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                client = await world.connect()
                for _ in range(3):
                    raw = get(method=method)
                    assert (await client.ask(raw[:-2] + extra if extra else raw))[0] == 200
                assert world.upstream.connections == len(world.upstream.heads) == 3

        run(talk())

    def test_an_app_that_always_hangs_up_is_asked_twice_at_most(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    if world.upstream.connections == 1:
                        writer.write(OK)
                        await world.upstream.head(reader)

                world.upstream.script = script
                client = await world.connect()
                assert (await client.ask(get()))[0] == 200
                assert (await client.ask(get()))[0] == 502
                assert (world.upstream.connections, len(world.upstream.heads)) == (2, 3)

        run(talk())

    def test_an_answer_that_has_begun_is_not_asked_for_again(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:

                async def script(reader: Reader, writer: Writer) -> None:
                    await world.upstream.head(reader)
                    writer.write(OK)
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 2")
                    await writer.drain()

                world.upstream.script = script
                client = await world.connect()
                assert (await client.ask(get()))[0] == 200
                assert (await client.ask(get()))[0] == 502
                assert len(world.upstream.heads) == 2

        run(talk())


class TestLeaving:
    @pytest.mark.parametrize("how", ["close", "abort"])
    def test_a_client_that_goes_away_stops_the_app(self, how: str) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                gone = asyncio.Event()

                async def script(reader: Reader, _writer: Writer) -> None:
                    await world.upstream.head(reader)
                    assert await reader.read() == b""
                    gone.set()

                world.upstream.script = script
                client = await world.connect()
                client.send(get())
                await world.until(lambda: len(world.upstream.heads) == 1)
                client.close() if how == "close" else client.abort()
                await asyncio.wait_for(gone.wait(), 1)
                assert world.lines()[-1]["status"] == 499

        run(talk())

    def test_also_while_its_body_is_not_taken(self) -> None:
        """Nothing is read from such a client, so its leaving is not seen; it is looked for (`Wire.probe`)."""

        async def talk() -> None:
            async with relay_world() as world:
                release = asyncio.Event()

                async def script(reader: Reader, _writer: Writer) -> None:
                    await world.upstream.head(reader)
                    await release.wait()

                world.upstream.script = script
                client = await world.connect()
                client.send(get(b"/", b"Content-Length: 100000000", method=b"POST") + b"x" * 30_000_000)
                await world.until(
                    lambda: (
                        len(world.upstream.heads) == 1
                        and any(not it._reading for it in world.gateway.relay.connections)
                    )
                )
                reset(client.writer)
                await world.until(lambda: not world.gateway.relay.connections)
                assert world.lines()[-1]["status"] == 499
                release.set()

        run(talk())

    def test_while_a_connection_is_being_opened(self) -> None:
        async def talk() -> None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=0)
            with socket.create_connection(listener.getsockname()), listener:  # nobody accepts: the next one hangs
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                async with relay_world(POSTERN_ROUTE__0__UPSTREAM=url) as world:
                    filler = [socket.socket() for _ in range(4)]
                    for sock in filler:
                        sock.setblocking(False)
                        sock.connect_ex(listener.getsockname())
                    client = await world.connect()
                    client.send(get())
                    await world.until(lambda: bool(world.gateway.relay.connections))
                    client.abort()
                    await world.until(lambda: not world.gateway.relay.connections)
                    assert world.lines()[-1]["status"] == 499
                    for sock in filler:
                        sock.close()

        run(talk())


class TestPace:
    def test_an_upload_goes_no_faster_than_the_app_reads(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                go = asyncio.Event()

                async def script(reader: Reader, writer: Writer) -> None:
                    head = await world.upstream.head(reader)
                    await go.wait()
                    await world.upstream.body(reader, head)
                    writer.write(OK)

                world.upstream.script = script
                client = await world.connect()
                size = 64 << 20
                client.send(get(b"/", b"Content-Length: %d" % size, method=b"POST"))
                sending = asyncio.create_task(_send(client, size))
                await world.until(lambda: any(not it._reading for it in world.gateway.relay.connections))
                assert not sending.done()
                go.set()
                assert (await client.response())[0] == 200
                await sending
                assert len(world.upstream.bodies[0]) == size

        run(talk())

    def test_a_download_goes_no_faster_than_the_client_reads(self) -> None:
        async def talk() -> None:
            async with relay_world() as world:
                size = 64 << 20
                sent = 0

                async def script(reader: Reader, writer: Writer) -> None:
                    nonlocal sent
                    await world.upstream.head(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                    while sent < size:
                        writer.write(bytes(65536))
                        sent += 65536
                        await writer.drain()

                world.upstream.script = script
                client = await world.connect(receive_buffer=65536)
                client.send(get())
                await client.head()
                await world.until(lambda: any(it._blocked for it in world.gateway.relay.connections))
                assert sent < size // 2, "what the kernels hold, and not more"
                assert len(await client.exactly(size)) == size

        run(talk())

    def test_answers_to_pipelined_requests_wait_for_each_other(self) -> None:
        """A client that asks for much and reads nothing gets one answer into memory, not all of them."""

        async def talk() -> None:
            async with relay_world() as world:
                body = bytes(4 << 20)
                world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                client = await world.connect(receive_buffer=65536)
                client.send(get() * 20)
                await world.until(lambda: any(it._blocked for it in world.gateway.relay.connections))
                asked = len(world.upstream.heads)
                assert asked < 10
                for _ in range(20):
                    assert len((await client.response())[2]) == len(body)
                assert len(world.upstream.heads) == 20

        run(talk())


async def _send(client: Client, size: int) -> None:
    for _ in range(size >> 16):
        client.send(bytes(1 << 16))
        await client.writer.drain()


def test_pipelined_requests_are_answered_in_order() -> None:
    async def talk() -> None:
        async with relay_world() as world:

            async def script(reader: Reader, writer: Writer) -> None:
                while True:
                    head = await world.upstream.head(reader)
                    path = head.split(b" ")[1]
                    await world.upstream.body(reader, head)
                    await asyncio.sleep(0.02 if path == b"/1" else 0)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

            world.upstream.script = script
            client = await world.connect()
            paths = [b"/%d" % number for number in range(1, 9)]
            client.send(b"".join(get(path, b"Content-Length: 1", method=b"POST") + b"x" for path in paths))
            assert [(await client.response())[2] for _ in paths] == paths

    run(talk())
