"""Sealing: what opens, and everything that must not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Unsealable
from proxy.sealing import KeyRing

NEW, OLD, OTHER = b"n" * 32, b"o" * 32, b"x" * 40
RING = KeyRing([NEW, OLD])


@given(st.binary(max_size=200), st.text(max_size=20), st.binary(max_size=40), st.binary(max_size=40))
def test_what_is_sealed_opens(plain: bytes, purpose: str, context: bytes, extra: bytes) -> None:
    sealed = RING.seal(purpose, plain, context=context, extra=extra)
    assert RING.open(purpose, sealed, context=context, extra=extra) == plain
    assert len(sealed) == len(plain) + 29


@given(st.binary(max_size=80))
def test_what_was_never_sealed_does_not_open(junk: bytes) -> None:
    with pytest.raises(Unsealable):
        RING.open("session", junk)


@given(st.data())
def test_one_changed_bit_does_not_open(data: st.DataObject) -> None:
    sealed = bytearray(RING.seal("session", b"alice"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Unsealable):
        RING.open("session", bytes(sealed))


SEALED = RING.seal("session", b"alice", context=b"id-1", extra=b"cookie")


@pytest.mark.parametrize(
    ("ring", "purpose", "sealed", "context", "extra"),
    [
        pytest.param(RING, "tokens", SEALED, b"id-1", b"cookie", id="another purpose"),
        pytest.param(RING, "session", SEALED, b"id-2", b"cookie", id="another record"),
        pytest.param(RING, "session", SEALED, b"id-1", b"other", id="another cookie"),
        pytest.param(RING, "session", SEALED, b"id-1", b"", id="no cookie"),
        pytest.param(RING, "session", SEALED, b"", b"cookie", id="no context"),
        pytest.param(RING, "session", SEALED[:-1], b"id-1", b"cookie", id="cut"),
        pytest.param(RING, "session", SEALED + b"\0", b"id-1", b"cookie", id="longer"),
        pytest.param(RING, "session", SEALED[:28], b"id-1", b"cookie", id="shorter than empty"),
        pytest.param(RING, "session", b"", b"id-1", b"cookie", id="empty"),
        pytest.param(RING, "session", b"\x02" + SEALED[1:], b"id-1", b"cookie", id="another version"),
        pytest.param(KeyRing([OTHER]), "session", SEALED, b"id-1", b"cookie", id="another ring"),
        pytest.param(KeyRing([OLD]), "session", SEALED, b"id-1", b"cookie", id="only the older secret"),
    ],
)
def test_refused(ring: KeyRing, purpose: str, sealed: bytes, context: bytes, extra: bytes) -> None:
    with pytest.raises(Unsealable) as caught:
        ring.open(purpose, sealed, context=context, extra=extra)
    assert caught.value.__cause__ is None


def test_rotation() -> None:
    before = KeyRing([OLD]).seal("session", b"alice")
    assert RING.open("session", before) == b"alice"
    assert KeyRing([OTHER, NEW]).open("session", RING.seal("session", b"bob")) == b"bob"


def test_a_ring_takes_other_secrets_while_it_is_held() -> None:
    ring = KeyRing([b"a" * 32])
    sealed, digest = ring.seal("session", b"value"), ring.digest("session", b"value")
    ring.rotate([b"b" * 32, b"a" * 32])
    assert ring.open("session", sealed) == b"value"
    assert ring.digest("session", b"value") != digest
    newer = ring.seal("session", b"value")
    ring.rotate([b"b" * 32])
    assert ring.open("session", newer) == b"value"
    with pytest.raises(Unsealable):
        ring.open("session", sealed)


@pytest.mark.parametrize("secrets", [[], [b"short"], [b"a" * 32, b"short"]])
def test_a_ring_keeps_its_secrets_when_others_are_too_weak(secrets: list[bytes]) -> None:
    ring = KeyRing([b"a" * 32])
    sealed = ring.seal("session", b"value")
    with pytest.raises(ValueError, match="secret"):
        ring.rotate(secrets)
    assert ring.open("session", sealed) == b"value"


def test_equal_values_seal_differently() -> None:
    assert len({RING.seal("session", b"alice") for _ in range(100)}) == 100


def test_digest() -> None:
    digest = RING.digest("jti", b"1")
    assert len(digest) == 32
    assert digest == KeyRing([NEW]).digest("jti", b"1")
    assert digest == RING.digest("jti", b"1")
    assert len({digest, RING.digest("jti", b"2"), RING.digest("jti2", b"1"), KeyRing([OLD]).digest("jti", b"1")}) == 4


@pytest.mark.parametrize("secrets", [[], [b"short"], [NEW, b""], [NEW, b"s" * 31]])
def test_weak_secrets_are_refused(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        KeyRing(secrets)
    assert "sss" not in str(caught.value)


def test_repr_shows_no_secret() -> None:
    assert repr(RING) == "<KeyRing of 2>"


def test_the_key_cache_is_bounded() -> None:
    ring = KeyRing([NEW])
    sealed = ring.seal("first", b"1")
    for number in range(200):
        ring.seal(f"purpose {number}", b"")
        ring.digest(f"purpose {number}", b"")
    assert len(ring._ciphers) <= 64
    assert len(ring._macs) <= 64
    assert ring.open("first", sealed) == b"1"
