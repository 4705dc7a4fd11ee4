"""One line per request, whatever is in it and whoever reads it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import accesslog
from proxy.accesslog import AccessLog
from proxy.claims import Identity
from proxy.request import Request
from proxy.verdict import Kind, Verdict, bad_request

Form = Literal["json", "console"]


def request(
    path: bytes = b"/x",
    host: str = "a.example",
    sub: str = "",
    client: str = "198.51.100.7",
    status: int = 200,
    via: str = "cookie",
) -> Request:
    """What the log looks at in a request."""
    session = SimpleNamespace(identity=Identity(sub=sub), via=via) if sub else None
    return cast(
        "Request",
        SimpleNamespace(
            id=b"id-1",
            origin=SimpleNamespace(client=client, name=host),
            head=SimpleNamespace(method=b"GET", path=path),
            status=status,
            verdict=Verdict(Kind.PASS, session=cast("Any", session), reason="signed_in"),
        ),
    )


def lines(*requests: Request, form: Form = "json", **how: bool) -> list[str]:
    """The lines of these requests."""

    async def write() -> str:
        stream = io.StringIO()
        log = AccessLog(stream, form)
        for one in requests:
            log.write(one, 0.0123, 5, **how)
        log.flush()
        return stream.getvalue()

    return asyncio.run(write()).splitlines()


def test_a_line_in_json() -> None:
    (line,) = lines(request(sub="ada1"))
    found = json.loads(line)
    assert abs(found.pop("time") - time.time()) < 60
    assert found == {
        "event": "request", "id": "id-1", "client": "198.51.100.7", "method": "GET", "host": "a.example", "path": "/x",
        "status": 200, "route": "", "outcome": "signed_in", "user": "ada1", "ms": 12.3, "bytes": 5,
    }  # fmt: skip


def test_a_line_for_people() -> None:
    (line,) = lines(request(sub="ada1"), form="console")
    assert line[8:] == " 200 GET a.example/x 12.3 ms 5 B route=- signed_in user=ada1 id=id-1"


@pytest.mark.parametrize("via", ["bearer", "password"])
def test_a_program_is_told_from_a_person(via: str) -> None:
    assert json.loads(lines(request(sub="ada1", via=via))[0])["via"] == via
    assert f" user=ada1 via={via} id=" in lines(request(sub="ada1", via=via), form="console")[0]


def test_an_answer_cut_short() -> None:
    assert json.loads(lines(request(), cut=True)[0])["outcome"] == "cut_short"


def test_what_was_no_request() -> None:
    async def write() -> str:
        stream = io.StringIO()
        log = AccessLog(stream, "json")
        log.refused("198.51.100.7", b"id-1", bad_request(431, "too large"))
        log.flush()
        return stream.getvalue()

    found = json.loads(asyncio.run(write()))
    assert (found["status"], found["outcome"], found["client"], found["method"]) == (
        431,
        "bad_request",
        "198.51.100.7",
        "-",
    )


EVIL = [
    "\n",
    "\r\n",
    '"',
    "\\",
    "\x00",
    "\x1b[31m",
    "\u2028",
    "\x85",
    "\x7f",
    "é",
    "汉",
    "\ud800",
    '","status":200,"x":"',
]


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("evil", EVIL)
def test_nothing_in_a_request_breaks_a_line(evil: str, form: Form) -> None:
    path = b"/a" + evil.encode("utf-8", "surrogatepass") + b"b"
    found = lines(request(path, host="h" + evil, sub="s" + evil, client="c" + evil), form=form)
    assert len(found) == 1
    assert found[0].isascii()
    assert found[0].isprintable()
    if form == "json":
        line = json.loads(found[0])
        assert (line["path"], line["host"], line["user"], line["client"]) == (
            path.decode("latin-1"), "h" + evil, "s" + evil, "c" + evil,
        )  # fmt: skip


@given(st.binary(max_size=50), st.text(max_size=20), st.text(max_size=20))
def test_whatever_it_is_it_is_one_line(path: bytes, host: str, sub: str) -> None:
    forms: tuple[Form, ...] = ("json", "console")
    for form in forms:
        found = lines(request(path, host=host, sub=sub), form=form)
        assert len(found) == 1
        assert found[0].isascii()


def test_a_path_without_an_end_has_one_in_the_log() -> None:
    (line,) = lines(request(b"/" + b"a" * 10_000))
    assert len(json.loads(line)["path"]) == 2048
    (line,) = lines(request(b"/" + b"\xff" * 10_000))
    assert len(line) < 4096


def test_nobody_reads_and_nothing_is_made() -> None:
    log = AccessLog(None, "json")
    log.write(cast("Request", None), 0.0, 0)
    log.refused("", b"", bad_request(400, ""))
    log.flush()
    assert log._lines == []


@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_are_in_the_order_of_the_ends_of_requests(form: Form) -> None:
    """They are put into words some dozens at a time, and none is left behind."""
    paths = [b"/%d!" % number for number in range(150)]
    for line, path in zip(lines(*map(request, paths), form=form), paths, strict=True):
        assert path.decode() in line


def test_in_another_form_goes_what_ends_from_then_on() -> None:
    async def write() -> str:
        log = AccessLog(io.StringIO(), "json")
        log.write(request(b"/before"), 0.0123, 5)
        stream = io.StringIO()
        log.redirect(stream, "console")
        log.write(request(b"/after"), 0.0123, 5)
        log.flush()
        return stream.getvalue()

    before, after = asyncio.run(write()).splitlines()
    assert json.loads(before)["path"] == "/before"
    assert "a.example/after 12.3 ms" in after


def test_lines_are_written_by_themselves() -> None:
    async def write() -> list[str]:
        stream = io.StringIO()
        log = AccessLog(stream, "json")
        for _ in range(3):
            log.write(request(), 0.0123, 5)
        deadline = time.monotonic() + 10
        while stream.getvalue().count("\n") < 3:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        return stream.getvalue().splitlines()

    assert len(asyncio.run(write())) == 3


class TestAReaderThatStops:
    @pytest.mark.parametrize("form", ["json", "console"])
    def test_stops_nobody_else(self, form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pipe that is full blocks whoever writes to it: that must be the thread, for ever if need be."""
        monkeypatch.setattr(accesslog, "_GATHERED", 50)
        monkeypatch.setattr(accesslog, "_FLUSH_SECONDS", 0.01)
        read_end, write_end = os.pipe()

        async def write() -> int:
            with os.fdopen(write_end, "w") as stream:
                log = AccessLog(stream, form)
                deadline = time.monotonic() + 20
                while log.lost == 0:  # the pipe is full, and so is the memory for lines
                    assert time.monotonic() < deadline
                    for _ in range(3 * accesslog._NOTED):
                        log.write(request(), 0.0123, 5)
                    await asyncio.sleep(0.005)
                lost = log.lost
                reader = threading.Thread(target=_drain, args=(read_end, got))
                reader.start()
                while log._lost:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.005)
                log.write(request(), 0.0123, 5)
                log.flush()
            reader.join()
            return lost

        got: list[bytes] = []
        lost = asyncio.run(write())
        text = b"".join(got).decode()
        note = f'"event":"lines_lost","lines":{lost}}}' if form == "json" else f" {lost} lines lost: "
        assert note in text
        assert text.endswith("\n")

    def test_is_not_waited_for_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accesslog, "_LAST_SECONDS", 0.05)
        release = threading.Event()

        class Stuck:
            def write(self, _text: str, /) -> None:
                release.wait(30)

            def flush(self) -> None:
                return

        async def write() -> None:
            log = AccessLog(Stuck(), "json")
            log.write(request(), 0.0123, 5)
            log.flush()
            log.write(request(), 0.0123, 5)
            log.flush()
            assert log._lines, "there was nobody to take it"
            release.set()
            log.flush()
            assert not log._lines

        asyncio.run(write())

    def test_and_is_gone_costs_nothing_more(self) -> None:
        async def write() -> None:
            read_end, write_end = os.pipe()
            os.close(read_end)
            log = AccessLog(Pipe(write_end), "json")
            log.write(request(), 0.0123, 5)
            log.flush()
            assert (log._stream, log.lost) == (None, 1)
            log.write(request(), 0.0123, 5)
            assert log._lines == []
            os.close(write_end)

        asyncio.run(write())

    def test_a_full_disk_may_be_emptied(self) -> None:
        async def write() -> None:
            full = os.open("/dev/full", os.O_WRONLY)
            log = AccessLog(Pipe(full), "json")
            log.write(request(), 0.0123, 5)
            log.flush()
            assert log._stream is not None
            assert log.lost >= 1
            stream = io.StringIO()
            log.redirect(stream, "json")
            log.write(request(), 0.0123, 5)
            log.flush()
            assert len(stream.getvalue().splitlines()) == 2, "the line, and how many were lost before it"
            os.close(full)

        asyncio.run(write())


class Pipe:
    """Writes at once what it is given."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str, /) -> int:
        return os.write(self._descriptor, text.encode())

    def flush(self) -> None:
        return


def _drain(descriptor: int, into: list[bytes]) -> None:
    while data := os.read(descriptor, 65536):
        into.append(data)
    os.close(descriptor)


def test_another_stream_from_now_on() -> None:
    async def write() -> tuple[str, str]:
        first, second = io.StringIO(), io.StringIO()
        log = AccessLog(first, "json")
        log.write(request(), 0.0123, 5)
        log.flush()
        log.redirect(second, "console")
        log.write(request(), 0.0123, 5)
        log.flush()
        return first.getvalue(), second.getvalue()

    first, second = asyncio.run(write())
    assert json.loads(first)
    assert " GET a.example/x " in second
