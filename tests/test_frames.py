"""Frames of a WebSocket are counted, not read: the boundaries must come out right whatever the packets were."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import CloseCode, Frame, Opcode

from proxy.frames import CLOSE_GOING_AWAY, Frames

OPCODES = [Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG]


def wire(opcode: Opcode, payload: bytes, *, mask: bool = False, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin=fin).serialize(mask=mask)


@given(
    st.lists(st.tuples(st.sampled_from(OPCODES), st.integers(0, 125), st.booleans()), max_size=8),
    st.lists(st.integers(0, 1000), max_size=12),
)
def test_boundaries_are_where_they_are_however_it_is_cut(
    frames: list[tuple[Opcode, int, bool]], cuts: list[int]
) -> None:
    parts = [wire(opcode, bytes(size), mask=mask) for opcode, size, mask in frames]
    data = b"".join(parts)
    ends = {0}
    for part in parts:
        ends.add(max(ends) + len(part))
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    follower = Frames()
    for start, end in itertools.pairwise(edges):
        follower.feed(data[start:end])
        assert follower.between is (end in ends)
    assert not follower.closed


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
@pytest.mark.parametrize("mask", [False, True])
def test_every_way_to_write_a_length(size: int, mask: bool) -> None:
    data = wire(Opcode.BINARY, bytes(size), mask=mask)
    whole, byte_by_byte = Frames(), Frames()
    whole.feed(data)
    assert whole.between
    for index in range(min(len(data), 20)):
        byte_by_byte.feed(data[index : index + 1])
        assert byte_by_byte.between is (index == len(data) - 1)
    byte_by_byte.feed(data[20:])
    assert byte_by_byte.between


def test_a_close_frame_is_noticed_between_and_behind_others() -> None:
    follower = Frames()
    follower.feed(wire(Opcode.TEXT, b"hello") + wire(Opcode.CLOSE, b"\x03\xe8") + wire(Opcode.TEXT, b"late"))
    assert follower.closed
    assert follower.between


def test_the_payload_is_not_taken_for_frames() -> None:
    follower = Frames()
    follower.feed(wire(Opcode.BINARY, CLOSE_GOING_AWAY * 10))
    assert not follower.closed
    assert follower.between


def test_our_goodbye_is_a_close_frame_that_says_going_away() -> None:
    assert Frame(Opcode.CLOSE, CloseCode.GOING_AWAY.to_bytes(2, "big")).serialize(mask=False) == CLOSE_GOING_AWAY


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_taken(pieces: list[bytes]) -> None:
    follower = Frames()
    for piece in pieces:
        follower.feed(piece)
    assert follower.between in (True, False)
