"""Heads of messages: what is read, what is refused, and that there is nothing third."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import MalformedRequest, MalformedResponse
from proxy.http1 import (
    HeadLimits,
    RequestHead,
    ResponseHead,
    connection_options,
    is_authority,
    may_tunnel,
    read_request,
    read_response,
)


def request(raw: bytes, limits: HeadLimits | None = None) -> RequestHead:
    found = read_request(raw, limits or HeadLimits())
    assert found is not None
    return found[0]


def response(raw: bytes, method: bytes = b"GET") -> ResponseHead:
    found = read_response(raw, method)
    assert found is not None
    return found[0]


def head(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes | None = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host is not None else []), *fields, b"", b""])


class TestReading:
    def test_a_request_is_read_as_sent(self) -> None:
        raw = b"GET /a%2Fb?x=1&y= HTTP/1.1\r\nHost: Example.com:8080\r\nX-Thing:  two words \t\r\nx-thing: again\r\n\r\nrest"
        found = read_request(raw)
        assert found is not None
        got, used = found
        assert raw[used:] == b"rest"
        assert (got.method, got.target, got.path, got.query) == (b"GET", b"/a%2Fb?x=1&y=", b"/a%2Fb", b"x=1&y=")
        assert got.host == b"Example.com:8080"
        assert got.fields == [(b"Host", b"Example.com:8080"), (b"X-Thing", b"two words"), (b"x-thing", b"again")]
        assert got.values[b"x-thing"] == b"two words, again"
        assert got.length == 0
        assert got.keep_alive

    def test_cookies_on_two_lines_are_one_cookie_field(self) -> None:
        assert request(head(b"GET / HTTP/1.1", b"Cookie: a=1", b"Cookie: b=2")).values[b"cookie"] == b"a=1; b=2"

    def test_a_few_empty_lines_before_a_request_are_skipped(self) -> None:
        assert request(b"\r\n\r\n" + head()).method == b"GET"
        assert read_request(b"\r\n\r\n") is None

    def test_empty_lines_for_ever_are_no_request(self) -> None:
        with pytest.raises(MalformedRequest):
            read_request(b"\r\n" * 5)

    def test_a_form_with_a_line_break_too_many_does_not_spoil_the_next_request(self) -> None:
        """RFC 9112 2.2: some clients send one more CRLF after a POST's body."""
        assert request(b"\r\n" + head(b"POST / HTTP/1.1", b"Content-Length: 0")).method == b"POST"

    def test_empty_and_high_bytes_values_are_kept(self) -> None:
        got = request(head(b"GET / HTTP/1.1", b"X-Empty:", "X-Name: é".encode()))
        assert got.values[b"x-empty"] == b""
        assert got.values[b"x-name"] == "é".encode()

    def test_high_bytes_in_the_target_pass_untouched(self) -> None:
        assert request(head("GET /汉字?q=é HTTP/1.1".encode())).target == "/汉字?q=é".encode()

    @pytest.mark.parametrize(
        ("line", "host_field", "host", "target"),
        [
            (b"GET http://b.example/x?y HTTP/1.1", b"Host: a", b"b.example", b"/x?y"),
            (b"GET HTTPS://B HTTP/1.1", b"Host: a", b"B", b"/"),
            (b"GET http://b:81?q HTTP/1.1", b"Host: a", b"b:81", b"/?q"),
            (b"OPTIONS * HTTP/1.1", b"Host: a", b"a", b"*"),
            (b"GET //x HTTP/1.1", b"Host: [::1]:80", b"[::1]:80", b"//x"),
        ],
    )
    def test_the_authority_of_the_target_wins(self, line: bytes, host_field: bytes, host: bytes, target: bytes) -> None:
        got = request(head(line, host=host_field))
        assert (got.host, got.target) == (host, target)

    @pytest.mark.parametrize(
        ("line", "fields", "keep_alive"),
        [
            (b"GET / HTTP/1.1", (), True),
            (b"GET / HTTP/1.1", (b"Connection: close",), False),
            (b"GET / HTTP/1.1", (b"Connection: x, CLOSE",), False),
            (b"GET / HTTP/1.0", (), False),
            (b"GET / HTTP/1.0", (b"Connection: keep-alive",), True),
        ],
    )
    def test_persistence(self, line: bytes, fields: tuple[bytes, ...], keep_alive: bool) -> None:
        assert request(head(line, *fields)).keep_alive is keep_alive

    @pytest.mark.parametrize(
        ("fields", "length"),
        [
            ((), 0),
            ((b"Content-Length: 12",), 12),
            ((b"Content-Length: 12", b"Content-Length: 12"), 12),
            ((b"Content-Length: 012",), 12),
            ((b"Transfer-Encoding: Chunked",), None),
        ],
    )
    def test_framing(self, fields: tuple[bytes, ...], length: int | None) -> None:
        assert request(head(b"POST / HTTP/1.1", *fields)).length == length

    def test_an_upgrade_needs_its_connection_option_and_1_1(self) -> None:
        asked = (b"Connection: keep-alive, Upgrade", b"Upgrade: websocket")
        assert request(head(b"GET / HTTP/1.1", *asked)).upgrade == b"websocket"
        assert request(head(b"GET / HTTP/1.0", *asked)).upgrade is None
        assert request(head(b"GET / HTTP/1.1", b"Upgrade: websocket")).upgrade is None

    @pytest.mark.parametrize(
        "upgrade",
        [b"h2c", b"H2C", b"h2", b"h2c-14", b"websocket, h2c", b"h2c,websocket", b"HTTP/2.0", b"http/1.1", b"TLS/1.0, HTTP/1.1",
         b"tls/1.2", b"SSL", b"spdy/3", b"web socket", b"websocket,", b"web/soc/ket", b""],
    )  # fmt: skip
    def test_http_in_disguise_is_no_upgrade(self, upgrade: bytes) -> None:
        assert request(head(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: " + upgrade)).upgrade is None
        assert not may_tunnel(upgrade)

    @pytest.mark.parametrize(
        "upgrade", [b"websocket", b"WebSocket", b"tcp", b"foo/1.2, bar", b"SPDY-like-but-not", b"th2c"]
    )
    def test_other_protocols_are(self, upgrade: bytes) -> None:
        expected = None if upgrade.startswith(b"SPDY") else upgrade
        assert request(head(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: " + upgrade)).upgrade == expected

    def test_expectations(self) -> None:
        assert request(head(b"PUT / HTTP/1.1", b"Expect: 100-Continue", b"Content-Length: 3")).expect_continue
        assert not request(head(b"PUT / HTTP/1.1", b"Expect: 100-continue")).expect_continue
        assert not request(head(b"PUT / HTTP/1.0", b"Expect: 100-continue", b"Content-Length: 3")).expect_continue


REFUSED = [
    # the request line
    (b"GET  / HTTP/1.1", (), 400),
    (b"GET / HTTP/1.1 ", (), 400),
    (b" GET / HTTP/1.1", (), 400),
    (b"GET\t/ HTTP/1.1", (), 400),
    (b"GET / http/1.1", (), 400),
    (b"GET / HTTP/1.2", (), 505),
    (b"GET / HTTP/2.0", (), 505),
    (b"GET /", (), 400),
    (b"G(T / HTTP/1.1", (), 400),
    (b"GET /a#b HTTP/1.1", (), 400),
    (b"GET /a\x00b HTTP/1.1", (), 400),
    (b"GET a HTTP/1.1", (), 400),
    (b"GET * HTTP/1.1", (), 400),
    (b"GET ftp://a/ HTTP/1.1", (), 400),
    (b"GET http:/// HTTP/1.1", (), 400),
    (b"GET http://u@a/ HTTP/1.1", (), 400),
    (b"CONNECT a:443 HTTP/1.1", (), 405),
    (b"TRACE / HTTP/1.1", (), 405),
    # fields
    (b"GET / HTTP/1.1", (b"X : 1",), 400),
    (b"GET / HTTP/1.1", (b" X: 1",), 400),
    (b"GET / HTTP/1.1", (b"X: 1", b" folded"), 400),
    (b"GET / HTTP/1.1", (b"X: 1", b"\tfolded: 1"), 400),
    (b"GET / HTTP/1.1", (b"X",), 400),
    (b"GET / HTTP/1.1", (b": 1",), 400),
    (b"GET / HTTP/1.1", (b"X: a\rb",), 400),
    (b"GET / HTTP/1.1", (b"X: a\nY: b",), 400),
    (b"GET / HTTP/1.1", (b"X: a\x00b",), 400),
    (b"GET / HTTP/1.1", (b"X: a\x7fb",), 400),
    (b"GET / HTTP/1.1", (b"X\xe9: a",), 400),
    (b"GET / HTTP/1.1", (b"X(y): a",), 400),
    # whose body is it
    (b"POST / HTTP/1.1", (b"Content-Length: 1", b"Transfer-Encoding: chunked"), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: 1", b"Content-Length: 2"), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: 1, 2",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: +1",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: -1",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: 0x1",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: 1 1",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length:",), 400),
    (b"POST / HTTP/1.1", (b"Content-Length: 9999999999999999999",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: chunked, chunked",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: gzip, chunked",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: chunked, identity",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: xchunked",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: \x0bchunked",), 400),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: gzip",), 501),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding: identity",), 501),
    (b"POST / HTTP/1.1", (b"Transfer-Encoding:",), 501),
    (b"POST / HTTP/1.0", (b"Transfer-Encoding: chunked",), 400),
    (b"POST / HTTP/1.1", (b"Expect: something-else",), 417),
    # whose request is it
    (b"GET / HTTP/1.1", (b"Host: b",), 400),
    (b"GET http://b/ HTTP/1.1", (b"Host: b",), 400),
]


class TestRefusing:
    @pytest.mark.parametrize(("line", "fields", "status"), REFUSED)
    def test_what_two_parsers_could_read_differently(self, line: bytes, fields: tuple[bytes, ...], status: int) -> None:
        with pytest.raises(MalformedRequest) as caught:
            read_request(head(line, *fields))
        assert caught.value.status == status

    @pytest.mark.parametrize(
        "host",
        [
            None,
            b"Host:",
            b"Host: a b",
            b"Host: a/b",
            b"Host: u@a",
            b"Host: a:b",
            b"Host: a,b",
            b"Host: [::1",
            b"Host: a:123456",
        ],
    )
    def test_hosts(self, host: bytes | None) -> None:
        with pytest.raises(MalformedRequest) as caught:
            read_request(head(host=host))
        assert caught.value.status == 400

    def test_a_bare_line_feed_ends_nothing(self) -> None:
        with pytest.raises(MalformedRequest):
            read_request(b"GET / HTTP/1.1\nHost: a\n\n")

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
            (b"GET /" + b"a" * 200, 414),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 500 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 500, 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 5 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 6, 431),
            (b"GET / HTTP/1.1\r\nHost: a\nX", 400),
            (b"\x16\x03\x01\x02\x00", 400),
            (b"\x00", 400),
            (b"a" * 41, 400),
            (b"GET / HTTP/3\r\n", 400),
        ],
    )
    def test_as_soon_as_it_is_clear(self, raw: bytes, status: int) -> None:
        with pytest.raises(MalformedRequest) as caught:
            read_request(raw, HeadLimits(head=400, uri=100, fields=5))
        assert caught.value.status == status

    @pytest.mark.parametrize("cut", range(1, len(head())))
    def test_a_part_is_no_reason(self, cut: int) -> None:
        assert read_request(head()[:cut]) is None


class TestResponses:
    def test_a_response_is_read_as_sent(self) -> None:
        raw = b"HTTP/1.1 200 Quite OK\r\nSet-Cookie: a\r\nContent-Length: 2\r\nSet-Cookie: b\r\n\r\nhi"
        found = read_response(raw, b"GET")
        assert found is not None
        got, used = found
        assert raw[used:] == b"hi"
        assert (got.status, got.reason, got.length, got.keep_alive) == (200, b"Quite OK", 2, True)
        assert [value for name, value in got.fields if name == b"Set-Cookie"] == [b"a", b"b"]

    @pytest.mark.parametrize(
        ("raw", "method", "length", "chunked"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", 0, False),
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", 0, False),
            (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", 0, False),
            (b"HTTP/1.1 100 Continue\r\n\r\n", b"GET", 0, False),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", None, True),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", None, False),
            (b"HTTP/1.0 200 OK\r\n\r\n", b"GET", None, False),
            (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"GET", 0, False),
        ],
    )
    def test_framing(self, raw: bytes, method: bytes, length: int | None, chunked: bool) -> None:
        got = response(raw, method)
        assert (got.length, got.chunked) == (length, chunked)

    def test_persistence(self) -> None:
        assert not response(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").keep_alive
        assert response(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n").keep_alive
        assert not response(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n").keep_alive
        assert not response(b"HTTP/1.1 200 OK\r\n\r\n").keep_alive

    @pytest.mark.parametrize(
        "raw",
        [
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 099 X\r\n\r\n",
            b"HTTP/1.1 2000 X\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX : 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000,
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length: 0\n\r\n\r\n",
            b"HTTP/1.1 200 O\x00K\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: " + b"1," * 200 + b"1\r\n\r\n",
        ],
    )
    def test_what_is_refused(self, raw: bytes) -> None:
        with pytest.raises(MalformedResponse):
            read_response(raw, b"GET")

    def test_a_part_is_no_reason(self) -> None:
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        for cut in range(len(raw)):
            assert read_response(raw[:cut], b"GET") is None


REQUEST_LINES = [
    b"GET / HTTP/1.1", b"GET /a?b HTTP/1.0", b"POST /x HTTP/1.1", b"GET http://b/x HTTP/1.1", b"OPTIONS * HTTP/1.1",
    b"GET /\xe9 HTTP/1.1", b"PUT  / HTTP/1.1", b"GET /a b HTTP/1.1", b"get / HTTP/1.1", b"GET / HTTP/1.2",
]  # fmt: skip
FIELD_LINES = [
    b"Host: a", b"Host: b", b"host:a", b"Host : a", b"Content-Length: 3", b"Content-Length: 3, 3", b"content-length:4",
    b"Content-Length: +3", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:\tchunked",
    b"Transfer_Encoding: chunked", b"Connection: close", b"Connection: keep-alive, Upgrade", b"Upgrade: websocket",
    b"Expect: 100-continue", b"X: \x01", b"X: a\rb", b" folded", b"X:", b":", b"X: \xff\xfe", b"Cookie: a=1", b"Cookie: b=2",
    b"X: a\nTransfer-Encoding: chunked", b"TE: trailers",
]  # fmt: skip


class TestAnotherParser:
    """Whatever both this reader and h11 accept, they read the same: a request that two parsers take apart is two requests."""

    @given(
        st.sampled_from(REQUEST_LINES),
        st.lists(st.sampled_from(FIELD_LINES), max_size=6),
        st.sampled_from([b"\r\n", b"\n"]),
    )
    def test_requests(self, line: bytes, fields: list[bytes], ending: bytes) -> None:
        raw = ending.join([line, *fields, b"", b""])
        theirs = h11.Connection(h11.SERVER)
        theirs.receive_data(raw)
        try:
            event = theirs.next_event()
        except h11.RemoteProtocolError:
            return
        try:
            found = read_request(raw)
        except MalformedRequest:
            return
        assert isinstance(event, h11.Request)
        assert found is not None
        ours = found[0]
        assert ours.method == event.method
        assert [(name.lower(), value) for name, value in ours.fields] == list(event.headers) or b"," in ours.values.get(
            b"content-length", b""
        )
        body = theirs.their_state is h11.SEND_BODY and theirs.next_event() is h11.NEED_DATA
        assert body is (ours.length != 0)


class TestAnyInput:
    """The law of the file: a value, "need more", or one named error."""

    @given(st.sampled_from(REQUEST_LINES), st.lists(st.sampled_from(FIELD_LINES), max_size=5))
    def test_what_comes_in_pieces_is_judged_as_a_whole(self, line: bytes, fields: list[bytes]) -> None:
        """A part is refused only when the whole is, and read only when all of it is there."""
        raw = b"\r\n".join([line, *fields, b"", b""])
        limits = HeadLimits(head=120, uri=60, fields=4)
        try:
            whole = read_request(raw, limits)
        except MalformedRequest:
            whole = None
        for cut in range(len(raw)):
            try:
                assert read_request(raw[:cut], limits) is None
            except MalformedRequest:
                assert whole is None
                return

    @given(st.binary(max_size=300))
    def test_requests(self, raw: bytes) -> None:
        found, status = None, 400
        try:
            found = read_request(raw)
        except MalformedRequest as error:
            status = error.status
        assert 400 <= status <= 505
        assert found is None or found[1] <= len(raw)

    @given(st.binary(max_size=300))
    def test_responses(self, raw: bytes) -> None:
        try:
            found = read_response(raw, b"GET")
        except MalformedResponse:
            return
        assert found is None or found[1] <= len(raw)

    @given(
        st.lists(
            st.tuples(st.from_regex(rb"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True), st.binary(max_size=40)), max_size=8
        ),
        st.integers(0, 200),
    )
    def test_every_accepted_field_line_is_accounted_for(self, fields: list[tuple[bytes, bytes]], cut: int) -> None:
        raw = head(b"GET / HTTP/1.1", *(b"%b: %b" % field for field in fields))
        try:
            found = read_request(raw)
            part = read_request(raw[:cut])
        except MalformedRequest:
            return
        if found is None:
            return
        got, used = found
        # what was read, written out again, is what was sent (white space around values aside): no byte is unaccounted for
        written = [b"%b:%b" % (name, value) for name, value in got.fields]
        lines = raw[: used - 4].split(b"\r\n")[1:]
        assert [
            b"%b:%b" % (line.partition(b":")[0], line.partition(b":")[2].strip(b" \t")) for line in lines
        ] == written
        assert part is None or part[1] <= cut


def test_connection_options_are_lower_case_and_never_empty() -> None:
    assert connection_options(b"Keep-Alive ,, X-Foo") == {b"keep-alive", b"x-foo"}
    assert connection_options(None) == connection_options(b"") == frozenset()


@pytest.mark.parametrize(
    "host",
    [b"", b"a:", b"a b", b"a/b", b"a@b", b"a,b", b"[::1", b"a:1234567", b"\xe9", b"a\x00", b"a\n", b"[]", b"a[::1]"],
)
def test_what_is_no_authority(host: bytes) -> None:
    assert not is_authority(host)


@pytest.mark.parametrize(
    "host", [b"a", b"a.example:80", b"a_b.example", b"127.0.0.1:1", b"[::1]", b"[::1]:8080", b"A.", b"a-b"]
)
def test_what_is_one(host: bytes) -> None:
    assert is_authority(host)


class TestRemembering:
    """The same bytes mean the same, and nothing but the same bytes does."""

    def test_a_section_says_something_else_under_another_version(self) -> None:
        section = (
            b"Connection: keep-alive, Upgrade",
            b"Upgrade: websocket",
            b"Expect: 100-continue",
            b"Content-Length: 3",
        )
        for _ in range(3):
            new, old = request(head(b"PUT /a HTTP/1.1", *section)), request(head(b"PUT /a HTTP/1.0", *section))
            assert (new.keep_alive, new.upgrade, new.expect_continue) == (True, b"websocket", True)
            assert (old.keep_alive, old.upgrade, old.expect_continue) == (True, None, False)
        for _ in range(3):
            assert request(head(b"PUT /a HTTP/1.1", b"Transfer-Encoding: chunked")).length is None
            with pytest.raises(MalformedRequest):
                read_request(head(b"PUT /a HTTP/1.0", b"Transfer-Encoding: chunked"))

    @pytest.mark.parametrize(
        "line", [b"TRACE /a HTTP/1.1", b"CONNECT /a HTTP/1.1", b"GET a HTTP/1.1", b"GET * HTTP/1.1"]
    )
    def test_a_section_that_was_fine_excuses_no_request_line(self, line: bytes) -> None:
        for _ in range(2):
            assert request(head(b"GET /a HTTP/1.1")).target == b"/a"
            with pytest.raises(MalformedRequest):
                read_request(head(line))

    def test_the_authority_of_one_target_is_not_the_next_ones(self) -> None:
        for _ in range(2):
            assert request(head(b"GET http://b/x HTTP/1.1")).host == b"b"
            assert request(head(b"GET /x HTTP/1.1")).host == b"a"
            assert request(head(b"OPTIONS * HTTP/1.1")).target == b"*"

    def test_what_one_request_changes_is_its_own(self) -> None:
        raw = head(b"PUT /a HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 3", b"X-Mine: 1")
        request(raw)
        first = request(raw)
        first.expect_continue = False
        first.host = b"changed"
        first.fields = []
        again = request(raw)
        assert (again.expect_continue, again.host, len(again.fields)) == (True, b"a", 4)

    def test_limits_hold_for_what_is_remembered(self) -> None:
        raw = head(b"GET /a HTTP/1.1", *[b"X-%d: 1" % number for number in range(20)])
        assert len(request(raw).fields) == 21
        with pytest.raises(MalformedRequest) as caught:
            read_request(raw, HeadLimits(fields=10))
        assert caught.value.status == 431

    def test_a_response_to_head_has_no_body_and_the_same_to_get_has(self) -> None:
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Same: head\r\n\r\n"
        for _ in range(2):
            assert response(raw, b"GET").length == 5
            assert response(raw, b"HEAD").length == 0

    def test_more_than_is_remembered_is_read_all_the_same(self) -> None:
        for number in range(1200):
            assert request(head(b"GET /a HTTP/1.1", b"X-Number: %d" % number)).values[b"x-number"] == b"%d" % number
            raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % number
            assert response(raw).length == number

    @given(st.binary(max_size=120))
    def test_reading_again_says_the_same(self, tail: bytes) -> None:
        raw = b"GET /a HTTP/1.1\r\nHost: a\r\n" + tail + b"\r\n\r\n"

        def outcome() -> object:
            try:
                found = read_request(raw)
            except MalformedRequest as error:
                return error.status, error.reason
            if found is None:
                return None
            got, used = found
            return used, got.method, got.target, got.path, got.host, got.length, got.keep_alive, got.upgrade, got.fields

        assert outcome() == outcome()
