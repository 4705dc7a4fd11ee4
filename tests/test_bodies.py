"""Where bodies end, and the chunked coding both ways."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.bodies import (
    MAX_CHUNK_LINE,
    MAX_TRAILER,
    ChunkedBody,
    CloseBody,
    LengthBody,
    chunk,
    last_chunk,
    request_body,
    response_body,
)
from proxy.http1 import read_request, read_response


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=6), st.binary(max_size=20))
def test_a_body_of_known_length_comes_out_whole_however_it_is_cut(data: bytes, cuts: list[int], after: bytes) -> None:
    body = LengthBody(len(data))
    out, rest = b"", b""
    for piece in pieces(data + after, cuts):
        if body.done:
            rest += piece
            continue
        out += body.feed(piece)
        rest += body.rest
    assert body.done
    assert out == data
    assert rest == after


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=5),
    st.lists(st.integers(0, 600), max_size=8),
    st.binary(max_size=20),
    st.sampled_from([[], [(b"X-Sum", b"1")], [(b"A", b"1"), (b"A", b"2")]]),
)
def test_a_chunked_body_comes_out_whole_however_it_is_cut(
    chunks: list[bytes], cuts: list[int], after: bytes, trailers: list[tuple[bytes, bytes]]
) -> None:
    wire = b"".join(chunk(piece) for piece in chunks) + last_chunk(trailers) + after
    body = ChunkedBody()
    out, rest = b"", b""
    for piece in pieces(wire, cuts):
        if body.done:
            rest += piece
            continue
        out += body.feed(piece)
        rest += body.rest
    assert body.done
    assert out == b"".join(chunks)
    assert body.trailers == trailers
    assert rest == after


@pytest.mark.parametrize(
    "wire",
    [
        b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b'5 ;a="b c"\r\nhello\r\n00\r\n\r\n',
        b"05\r\nhello\r\n0;x\r\n\r\n",
        b"5\t\r\nhello\r\n0 \r\n\r\n",
    ],
)
def test_extensions_and_leading_zeros_are_taken_off(wire: bytes) -> None:
    body = ChunkedBody()
    assert body.feed(wire) == b"hello"
    assert body.done


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhelloworld",
        b"5\r\nhello\n",
        b"5\r\nhello\rX",
        b"5\r\nhelloX",
        b"1000000000000000\r\n",  # sixteen digits: more than any integer type of a careless parser
        b"ffffffffffffffff1\r\n",
        b"5;a\x00\r\nhello",
        b"5;" + b"a" * MAX_CHUNK_LINE + b"\r\n",
        b"5;" + b"a" * MAX_CHUNK_LINE,
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\n X: 1\r\n\r\n",
        b"0\r\nX: \x00\r\n\r\n",
        b"0\r\nX: " + b"a" * MAX_TRAILER + b"\r\n\r\n",
        b"0\r\nX: " + b"a" * MAX_TRAILER,
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|trailer"):
        ChunkedBody().feed(wire)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_give_payload_or_a_value_error(data: bytes, cuts: list[int]) -> None:
    body = ChunkedBody()
    try:
        for piece in pieces(data, cuts):
            if not body.done:
                body.feed(piece)
    except ValueError:
        return
    assert body.done in (True, False)


@given(st.binary(max_size=120), st.lists(st.integers(0, 200), max_size=5))
def test_cutting_changes_nothing(data: bytes, cuts: list[int]) -> None:
    """One reading of a byte stream: the same payload, end or refusal, whatever the packets were."""

    def read(parts: list[bytes]) -> tuple[bytes, bool] | None:
        body, out = ChunkedBody(), b""
        try:
            for part in parts:
                if body.done:
                    break
                out += body.feed(part)
        except ValueError:
            return None
        return out, body.done

    whole, cut = read([data]), read(pieces(data, cuts))
    assert whole == cut or whole is None or cut is None


CHUNKED_PARTS = [
    b"5\r\nhello\r\n", b"5;x=y\r\nhello\r\n", b"05\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\nhello\n", b"6\r\nhello\r\n",
    b"A\r\n0123456789\r\n", b"a\r\n0123456789\r\n", b"0x1\r\na\r\n", b"-1\r\n", b"1\r\n\r\r\n", b"2\r\n\r\n\r\n", b"\r\n",
    b"0\r\n\r\n", b"00\r\n\r\n", b"0;e\r\n\r\n", b"0\r\nX-T: 1\r\n\r\n", b"0\r\nX T: 1\r\n\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(CHUNKED_PARTS), max_size=6))
def test_another_parser_reads_the_same(parts: list[bytes]) -> None:
    """Whatever both this reader and h11 take for a whole body is the same body, with the same end."""
    wire = b"".join(parts)
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    assert isinstance(theirs.next_event(), h11.Request)
    payload = b""
    try:
        while isinstance(event := theirs.next_event(), h11.Data):
            payload += event.data
    except h11.RemoteProtocolError:
        return
    body = ChunkedBody()
    try:
        ours = body.feed(wire)
    except ValueError:
        return
    assert isinstance(event, h11.EndOfMessage) is body.done
    assert ours == payload
    if body.done:
        assert body.rest == theirs.trailing_data[0]


def test_a_body_until_the_end_of_the_connection_never_ends_by_itself() -> None:
    body = CloseBody()
    assert body.feed(b"x") == b"x"
    assert not body.done


@pytest.mark.parametrize(
    ("fields", "kind"),
    [(b"Content-Length: 3\r\n", LengthBody), (b"Transfer-Encoding: chunked\r\n", ChunkedBody), (b"", CloseBody)],
)
def test_the_reader_follows_the_head(fields: bytes, kind: type) -> None:
    found = read_response(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n", b"GET")
    assert found is not None
    assert isinstance(response_body(found[0]), kind)
    if kind is not CloseBody:
        asked = read_request(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
        assert asked is not None
        assert isinstance(request_body(asked[0]), kind)
