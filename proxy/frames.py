"""Where one frame of a WebSocket ends and the next begins (RFC 6455 section 5.2). Lengths are read, payload is skipped.

A tunnel carries bytes and knows nothing of messages. Only for saying goodbye it has to know whether it may speak between
two frames: a close frame in the middle of another one would be garbage in somebody's message.
"""

from __future__ import annotations

from typing import Final

CLOSE_GOING_AWAY: Final = b"\x88\x02\x03\xe9"  # a server's close frame, unmasked: 1001 (RFC 6455 7.4.1)
_OPCODE: Final = 0x0F
_CLOSE: Final = 0x8
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F


class Frames:
    """Follows one direction of a WebSocket. `closed`: a close frame has gone by, nothing may follow it."""

    __slots__ = ("_head", "_left", "closed")

    def __init__(self) -> None:
        self._head = b""  # of a frame whose head is not complete
        self._left = 0  # payload bytes missing from the present frame
        self.closed = False

    @property
    def between(self) -> bool:
        """Whether the last byte seen was the last one of a frame."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut wherever they are."""
        size = len(data)
        if size < self._left:
            self._left -= size
            return
        position = self._left
        self._left = 0
        while position < size:
            have = len(self._head)
            head = self._head + data[position : position + 14 - have]
            need = _head_size(head)
            if len(head) < need:
                self._head = head
                return
            self._head = b""
            self.closed = self.closed or head[0] & _OPCODE == _CLOSE
            position += need - have + _payload_size(head)
        self._left = position - size


def _head_size(head: bytes) -> int:
    """Bytes of a frame's head, as far as `head`, its beginning, tells."""
    if len(head) < 2:
        return 2
    length = head[1] & _LENGTH
    return 2 + (4 if head[1] & _MASKED else 0) + (8 if length == 127 else 2 if length == 126 else 0)


def _payload_size(head: bytes) -> int:
    length = head[1] & _LENGTH
    if length < 126:
        return length
    return int.from_bytes(head[2:4] if length == 126 else head[2:10], "big")
