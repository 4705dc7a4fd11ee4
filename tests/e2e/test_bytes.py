"""What goes through comes out: sizes, speeds, ends and interruptions, against an upstream that decides every byte."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.origin import MIB, PATTERN, Origin
from tests.e2e.processes import eventually
from tests.e2e.wire import Wire

GIB = 1024 * MIB
ROUTES = """
[[route]]
name = "http"
upstream = "{http}"

[[route]]
name = "ws"
path = "/ws"
upstream = "{ws}"
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def gateway(origin: Origin, start_gateway: StartGateway) -> Gateway:
    return start_gateway("bytes", ROUTES.format(http=origin.url, ws=origin.ws_url))


@pytest.fixture(scope="module")
def cookie(gateway: Gateway) -> Iterator[str]:
    with gateway.signed_in("Ada") as person:
        yield person.cookie_header(gateway.url)


@pytest.fixture
def wire(gateway: Gateway, cookie: str) -> Iterator[Wire]:
    with Wire(gateway.url, cookie=cookie) as wire:
        yield wire


@pytest.fixture
def connection(gateway: Gateway) -> Iterator[http.client.HTTPConnection]:
    parts = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    yield connection
    connection.close()


class Growth:
    """How much more memory the gateway holds than at first; `note` looks again."""

    def __init__(self, gateway: Gateway) -> None:
        self.rss: Callable[[], int] = gateway.running.rss
        self.start = self.rss()
        self.most = 0

    def note(self) -> None:
        self.most = max(self.most, self.rss() - self.start)


def test_a_gib_comes_down_in_little_memory(
    gateway: Gateway, cookie: str, connection: http.client.HTTPConnection
) -> None:
    growth = Growth(gateway)
    connection.request("GET", f"/bytes/{GIB}", headers={"Cookie": cookie})
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"]) == (200, str(GIB))
    buffer = memoryview(bytearray(MIB))
    length = crc = 0
    while got := response.readinto(buffer):
        length += got
        crc = zlib.crc32(buffer[:got], crc)
        if length % (64 * MIB) < got:
            growth.note()
    assert (length, crc) == (GIB, _crc_of_pattern(GIB // MIB))
    assert growth.most < 64 * MIB


def test_a_gib_goes_up_in_chunks_in_little_memory(
    gateway: Gateway, cookie: str, connection: http.client.HTTPConnection
) -> None:
    growth = Growth(gateway)

    def body() -> Iterator[bytes]:
        for number, piece in enumerate(repeat(PATTERN, GIB // MIB)):
            if number % 64 == 0:
                growth.note()
            yield piece

    connection.request("POST", "/sink", body=body(), headers={"Cookie": cookie}, encode_chunked=True)
    answer = json.load(connection.getresponse())
    growth.note()
    assert answer == {"length": GIB, "crc": _crc_of_pattern(GIB // MIB), "encoding": "chunked"}
    assert growth.most < 64 * MIB


def test_a_reader_that_stops_reading_stops_the_upstream(gateway: Gateway, origin: Origin, wire: Wire) -> None:
    origin.sent = 0
    origin.cut.clear()
    growth = Growth(gateway)
    wire.ask("GET", f"/bytes/{4 * GIB}")
    assert wire.head()[0] == 200
    _settled(lambda: origin.sent)
    growth.note()
    assert 0 < origin.sent < 64 * MIB  # what the kernels' socket buffers hold, and ours
    assert growth.most < 32 * MIB
    wire.socket.close()
    assert origin.cut.wait(10), "the upstream still sends to a client that has gone"


def test_an_upstream_that_stops_reading_stops_the_sender(gateway: Gateway, origin: Origin, wire: Wire) -> None:
    growth = Growth(gateway)
    wire.ask("POST", "/stall", f"Content-Length: {4 * GIB}")
    wire.socket.settimeout(0)
    sent = 0

    def push() -> int:
        nonlocal sent
        try:
            while True:
                sent += wire.socket.send(PATTERN)
        except BlockingIOError:
            return sent

    _settled(push)
    growth.note()
    assert 0 < sent < 64 * MIB
    assert growth.most < 32 * MIB
    origin.emit("go on")


def test_events_arrive_one_by_one(origin: Origin, cookie: str, connection: http.client.HTTPConnection) -> None:
    """Each is seen before the next is sent: nothing on the way waits for more."""
    connection.request("GET", "/events", headers={"Cookie": cookie, "Accept": "text/event-stream"})
    response = connection.getresponse()
    for number in range(50):
        origin.emit(f"event {number}")
        assert response.readline() == f"data: event {number}\n".encode()
        assert response.readline() == b"\n"
    origin.emit(None)
    assert response.read() == b""


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("framing", ["length", "chunked", "chunk"])
def test_an_answer_cut_short_is_never_a_whole_one(
    origin: Origin, cookie: str, connection: http.client.HTTPConnection, framing: str, how: str
) -> None:
    connection.request("GET", f"/cut/{framing}/{how}", headers={"Cookie": cookie})
    response = connection.getresponse()
    assert response.status == 200
    assert response.read(64 * 1024) == PATTERN[: 64 * 1024]
    origin.emit("cut now")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()


def test_an_answer_that_ends_with_the_connection_and_is_reset_is_never_a_whole_one(
    origin: Origin, cookie: str, gateway: Gateway
) -> None:
    """To an HTTP/1.0 client the end of the connection is the end of the body: there only a reset tells the difference."""
    for how, clean in (("reset", False), ("close", True)):
        with Wire(gateway.url, cookie=cookie) as wire:
            wire.ask("GET", f"/cut/until-close/{how}", version="HTTP/1.0")
            status, fields = wire.head()
            assert (status, fields.get("transfer-encoding")) == (200, None)
            assert wire.read(64 * 1024) == PATTERN[: 64 * 1024]
            origin.emit("cut now")
            assert wire.ends_cleanly() is clean, how


@pytest.mark.parametrize(
    ("framing", "status"), [("length", {18, 56}), ("chunked", {18, 56}), ("until-close", {18, 56})]
)
def test_curl_reports_an_answer_cut_short(
    origin: Origin, cookie: str, gateway: Gateway, tmp_path: Path, framing: str, status: set[int]
) -> None:
    """18 is "partial file", 56 "failure in receiving"."""
    target, curl = tmp_path / "half", shutil.which("curl")
    assert curl
    argv = [curl, "-q", "-sS", "-N", "-b", cookie, "-o", str(target), f"{gateway.url}/cut/{framing}/reset"]
    running = subprocess.Popen(argv, stderr=subprocess.PIPE)
    eventually(lambda: target.exists() and target.stat().st_size >= 64 * 1024, what="curl has the first half")
    origin.emit("cut now")
    _, errors = running.communicate(timeout=20)
    assert running.returncode in status, errors


def test_answers_without_a_body(wire: Wire) -> None:
    """HEAD, 204 and 304 one after the other on one connection: a byte too many would spoil the next (RFC 9112 6.3)."""
    wire.ask("HEAD", "/bytes/1000")
    status, fields = wire.head()
    assert (status, fields["content-length"]) == (200, "1000")
    wire.ask("GET", "/status/204")
    status, fields = wire.head()
    assert (status, fields.get("content-length"), fields.get("transfer-encoding")) == (204, None, None)
    wire.ask("GET", "/status/304", 'If-None-Match: "v1"')
    status, fields = wire.head()
    assert (status, fields["etag"], fields["content-length"]) == (304, '"v1"', "1234")
    wire.ask("GET", "/bytes/5")
    status, fields = wire.head()
    assert (status, wire.read(5)) == (200, PATTERN[:5])


def test_early_hints_come_before_the_answer(origin: Origin, wire: Wire) -> None:
    wire.ask("GET", "/hints")
    status, fields = wire.head()
    assert (status, fields["link"]) == (103, "</style.css>; rel=preload; as=style")
    origin.emit("answer now")
    status, fields = wire.head()
    assert (status, wire.read(int(fields["content-length"]))) == (200, b"final")


def test_a_client_that_waits_for_100_continue_gets_the_upstreams(wire: Wire) -> None:
    wire.ask("PUT", "/expect", "Expect: 100-continue", "Content-Length: 5")
    assert wire.head()[0] == 100
    wire.send(b"hello")
    status, fields = wire.head()
    assert status == 200
    assert json.loads(wire.read(int(fields["content-length"])))["length"] == 5


def test_a_refusal_comes_instead_of_100_continue(wire: Wire) -> None:
    wire.ask("PUT", "/refuse", "Expect: 100-continue", f"Content-Length: {GIB}")
    assert wire.head()[0] == 413


def test_a_stranger_is_refused_before_the_body_is_sent(gateway: Gateway) -> None:
    with Wire(gateway.url) as wire:
        wire.ask("PUT", "/expect", "Expect: 100-continue", f"Content-Length: {GIB}")
        assert wire.head()[0] == 401


@pytest.mark.parametrize(
    "target",
    [
        "/seen/reports/2026?quarter=3&q=a%20b",
        "/seen/%E6%B1%89/%2e%2e/x;y=1",
        "/seen//double///slashes",
        "/seen?&&a=%zz&=&%",
        "/seen/caf\xe9?q=\xe9",
        "/seen?next=https://elsewhere.example/../%00",
    ],
)
def test_the_target_reaches_the_upstream_byte_for_byte(wire: Wire, target: str) -> None:
    wire.ask("GET", target)
    status, fields = wire.head()
    assert status == 200
    assert json.loads(wire.read(int(fields["content-length"])))["target"] == target


def test_the_sessions_cookie_reaches_no_upstream(wire: Wire, cookie: str) -> None:
    """The gateway's own cookie is taken out of Cookie, the app's stay as they are and in order."""
    own = next(pair for pair in cookie.split("; ") if pair.startswith("postern="))
    wire.cookie = f"a=1; {cookie}; b=2"
    wire.ask("GET", "/seen")
    _, fields = wire.head()
    seen = json.loads(wire.read(int(fields["content-length"])))
    sent = [value for name, value in seen["fields"] if name.lower() == "cookie"]
    assert sent == ["; ".join(pair for pair in wire.cookie.split("; ") if pair != own)]


def _crc_of_pattern(times: int) -> int:
    crc = 0
    for _ in range(times):
        crc = zlib.crc32(PATTERN, crc)
    return crc


def _settled(measure: Callable[[], int], *, calm: float = 0.75, within: float = 30.0) -> None:
    """Measure until the value, once it has moved at all, has not moved for `calm` seconds."""
    value, since = 0, time.monotonic()

    def still() -> bool:
        nonlocal value, since
        if (now := measure()) != value:
            value, since = now, time.monotonic()
        return value > 0 and time.monotonic() - since > calm

    eventually(still, within=within, every=0.05, what="the value settles")
