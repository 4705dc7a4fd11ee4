"""Bodies of HTTP/1.1 messages: where they end, and the chunked coding both ways (RFC 9112 sections 6 and 7). No I/O.

A reader is fed bytes off the wire and returns the payload among them; `done` tells that the body is complete, `rest` holds what
came after it. Trailer fields are kept apart for ever: merged into the header section they would be header fields nobody checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from proxy.http1 import Fields, RequestHead, ResponseHead, read_fields

MAX_CHUNK_LINE: Final = 512  # bytes of a chunk-size line with its extensions; RFC 9112 7.1.1 asks for a bound
MAX_TRAILER: Final = 8192  # bytes of a trailer section
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?[ \t]*\r\n")


class LengthBody:
    """A body of a known number of bytes. `feed` gives payload; `done` and `rest` tell what followed its end."""

    __slots__ = ("done", "left", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest = b""
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes off the wire, return the payload among them."""
        size = len(data)
        if size < self.left:
            self.left -= size
            return data
        if size > self.left:
            self.rest = data[self.left :]
            data = data[: self.left]
        self.left = 0
        self.done = True
        return data


class CloseBody:
    """A response body that ends with its connection (RFC 9112 6.3, last case). Never done by itself."""

    __slots__ = ("done", "rest", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes:
        """Return `data`: all of it is payload."""
        return data


class ChunkedBody:
    """The chunked coding, decoded (RFC 9112 7.1). Extensions are dropped; trailers are kept apart in `trailers`.

    `feed` raises ValueError on anything malformed; the caller knows whose fault that is.
    """

    __slots__ = ("_held", "_left", "_step", "done", "rest", "trailers")

    def __init__(self) -> None:
        self._held = b""  # an incomplete line, bounded by MAX_CHUNK_LINE or MAX_TRAILER
        self._left = 0  # payload bytes missing from the present chunk
        self._step: Callable[[bytes, int, list[bytes]], int | None] = self._size
        self.done = False
        self.rest = b""
        self.trailers: Fields = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes off the wire, return the payload among them."""
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes] = []
        position: int | None = 0
        while position is not None and not self.done:
            position = self._step(data, position, pieces)
        if self.done and position is not None:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _size(self, data: bytes, position: int, _pieces: list[bytes]) -> int | None:
        end = data.find(b"\n", position, position + MAX_CHUNK_LINE)
        if end < 0:
            return self._hold(data, position, MAX_CHUNK_LINE - 1)
        line = _CHUNK_LINE.fullmatch(data, position, end + 1)
        if line is None:
            raise ValueError("malformed chunk size")
        self._left = int(line[1], 16)
        self._step = self._payload if self._left else self._trailer
        return end + 1

    def _payload(self, data: bytes, position: int, pieces: list[bytes]) -> int | None:
        piece = data[position : position + self._left]
        if piece:
            pieces.append(piece)
            self._left -= len(piece)
        if self._left:
            return None
        self._step = self._chunk_end
        return position + len(piece)

    def _chunk_end(self, data: bytes, position: int, _pieces: list[bytes]) -> int | None:
        end = data[position : position + 2]
        if end == b"\r\n":
            self._step = self._size
            return position + 2
        if end not in (b"", b"\r"):
            raise ValueError("a chunk does not end where its size says")
        return self._hold(data, position, 2)

    def _trailer(self, data: bytes, position: int, _pieces: list[bytes]) -> int | None:
        if data.startswith(b"\r\n", position):
            self.done = True
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            return self._hold(data, position, MAX_TRAILER)
        if end - position > MAX_TRAILER:
            raise ValueError("the trailer section is too large")
        fields, _ = read_fields(data[position : end + 2], 0)
        if fields is None:
            raise ValueError("a trailer field is malformed")
        self.trailers = fields
        self.done = True
        return end + 4

    def _hold(self, data: bytes, position: int, limit: int) -> int | None:
        """Keep an incomplete line for the next feed; returns None, "need more", for the steps to pass on."""
        self._held = data[position:]
        if len(self._held) > limit:
            raise ValueError("a line of the chunked coding is too long")
        return None


Body = LengthBody | CloseBody | ChunkedBody


def request_body(head: RequestHead) -> LengthBody | ChunkedBody:
    """The reader for the body that `head` announces."""
    return ChunkedBody() if head.length is None else LengthBody(head.length)


def response_body(head: ResponseHead) -> Body:
    """The reader for the body that `head` announces."""
    if head.chunked:
        return ChunkedBody()
    return CloseBody() if head.length is None else LengthBody(head.length)


def chunk(payload: bytes) -> bytes:
    """`payload` (not empty: an empty chunk would end the body) in the chunked coding."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def last_chunk(trailers: Fields) -> bytes:
    """The end of a chunked body, with its trailer section."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"".join([b"%b: %b\r\n" % field for field in trailers]) + b"\r\n"
