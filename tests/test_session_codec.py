"""Stored records: nobody without the keys reads or makes one, and damage is found, never a crash."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.claims import ApiToken, Audience, Identity, Tokens
from proxy.sealing import KeyRing
from proxy.session_codec import (
    Damaged,
    Holder,
    Session,
    decode_record,
    decode_session,
    decode_tokens,
    encode_session,
    encode_tokens,
    is_session_id,
    renewal_times,
)

RING = KeyRing([b"k" * 32])
HOLDER = Holder.new()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.none() | st.text(min_size=1, max_size=12)
TEXTS = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
IDENTITIES = st.builds(
    Identity,
    sub=st.text(min_size=1, max_size=12),
    username=TEXT,
    name=TEXT,
    email=TEXT,
    picture=TEXT,
    roles=TEXTS,
    organizations=TEXTS,
    organization_roles=TEXTS,
    discord_id=TEXT,
    discord_username=TEXT,
    claims=st.dictionaries(st.text(max_size=8), JSON, max_size=4),
)
TIMES = st.floats(0, 1e11)
TIMES_OR_NEVER = TIMES | st.just(math.inf)


def session(identity: Identity = Identity(sub="alice"), **changes: Any) -> Session:  # noqa: B008 -- frozen
    values: dict[str, Any] = {
        "id": HOLDER.id,
        "identity": identity,
        "sid": None,
        "created_at": 1.0,
        "seen_at": 2.0,
        "expires_at": 3.0,
        "signed_in_at": 0.5,
        "browser": "b",
        "address": "a",
    }
    return Session(**values | changes)


SESSIONS = st.builds(
    session,
    IDENTITIES,
    sid=TEXT,
    created_at=TIMES,
    seen_at=TIMES,
    expires_at=TIMES_OR_NEVER,
    signed_in_at=TIMES,
    browser=st.text(max_size=20),
    renew_at=TIMES_OR_NEVER,
    fresh_until=TIMES_OR_NEVER,
)


@given(SESSIONS)
def test_a_session_comes_back_as_it_was(before: Session) -> None:
    stored = encode_session(RING, before, HOLDER.proof)
    seen = repr(before.seen_at).encode()
    assert decode_session(RING, HOLDER, stored, seen) == before
    assert decode_record(RING, HOLDER.id, stored, seen) == (before, HOLDER.proof)


@given(SESSIONS, SESSIONS)
def test_an_object_takes_over_what_was_read_later(mine: Session, later: Session) -> None:
    mine.blocks["route"] = b"made for who was there before"
    same, seen = mine.identity == later.identity, max(mine.seen_at, later.seen_at)
    mine.become(later)
    assert mine.blocks == ({"route": b"made for who was there before"} if same else {})
    assert mine.seen_at == seen
    mine.seen_at, mine.browser = later.seen_at, later.browser
    assert mine == later


@given(
    st.builds(
        Tokens,
        st.text(),
        st.text(),
        TIMES,
        st.none() | st.text(),
        st.dictionaries(
            st.builds(Audience, st.none() | st.text(), st.none() | st.text()),
            st.builds(ApiToken, st.text(), TIMES, TIMES),
            max_size=3,
        ),
    )
)
def test_tokens_come_back_as_they_were(tokens: Tokens) -> None:
    assert decode_tokens(RING, HOLDER, encode_tokens(RING, tokens, HOLDER)) == tokens


def test_tokens_without_any_for_apis_are_kept_as_they_were_before_there_were_such() -> None:
    stored = sealed(["id", "access", 1.0, "refresh"], "tokens", HOLDER.secret)
    tokens = decode_tokens(RING, HOLDER, stored)
    assert tokens == Tokens("id", "access", 1.0, "refresh")
    packed = RING.open(
        "tokens", encode_tokens(RING, tokens, HOLDER)[1:], context=HOLDER.id.encode(), extra=HOLDER.secret
    )
    assert json.loads(zlib.decompress(packed)) == ["id", "access", 1.0, "refresh"]


def test_a_record_shows_nothing() -> None:
    identity = Identity(sub="alice-sub", email="alice@example.test", claims={"custom": "treasure"})
    stored = encode_session(RING, session(identity), HOLDER.proof)
    tokens = encode_tokens(RING, Tokens("idt", "act", 1.0, "rft"), HOLDER)
    for word in (b"alice", b"treasure", b"idt", b"act", b"rft", HOLDER.secret, HOLDER.proof.encode()):
        assert word not in stored
        assert word not in tokens


def test_another_secret_is_nobody() -> None:
    other = Holder(HOLDER.id, Holder.new().secret)
    stored = encode_session(RING, session(), HOLDER.proof)
    assert decode_session(RING, other, stored, b"1") is None
    with pytest.raises(Damaged):
        decode_tokens(RING, other, encode_tokens(RING, Tokens("i", "a", 1.0), HOLDER))


def sealed(body: Any, purpose: str = "session", extra: bytes = b"") -> bytes:
    packed = zlib.compress(body if isinstance(body, bytes) else json.dumps(body).encode())
    return b"2" + RING.seal(purpose, packed, context=HOLDER.id.encode(), extra=extra)


def body(**changes: Any) -> dict[str, Any]:
    whole = {
        "who": {"sub": "alice"},
        "sid": None,
        "times": [1.0, 2.0, 3.0, None, 4.0],
        "browser": "",
        "address": "",
        "proof": HOLDER.proof,
    }
    return {key: value for key, value in (whole | changes).items() if value is not ...}


GOOD = encode_session(RING, session(), HOLDER.proof)
OTHER = Holder.new()


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        pytest.param(b"", b"1", id="empty"),
        pytest.param(b"garbage", b"1", id="garbage"),
        pytest.param(b"1" + GOOD[1:], b"1", id="version"),
        pytest.param(GOOD[:-1], b"1", id="cut"),
        pytest.param(GOOD, b"", id="no seen"),
        pytest.param(GOOD, b"soon", id="seen is no number"),
        pytest.param(encode_session(KeyRing([b"x" * 32]), session(), HOLDER.proof), b"1", id="another key"),
        pytest.param(encode_session(RING, session(id=OTHER.id), HOLDER.proof), b"1", id="another record's"),
        pytest.param(encode_tokens(RING, Tokens("i", "a", 1.0), HOLDER), b"1", id="tokens"),
        pytest.param(b"2" + RING.seal("session", b"{}", context=HOLDER.id.encode()), b"1", id="not compressed"),
        pytest.param(sealed(b"{"), b"1", id="no JSON"),
        pytest.param(sealed([]), b"1", id="a list"),
        pytest.param(sealed(None), b"1", id="null"),
        pytest.param(sealed({}), b"1", id="empty object"),
        pytest.param(sealed(body(proof=1)), b"1", id="proof is no text"),
        pytest.param(sealed(body(proof="é")), b"1", id="proof is not ASCII"),
        pytest.param(sealed(body(times=[1, 2])), b"1", id="too few times"),
        pytest.param(sealed(body(times=[1, 2, {}, 4, 5])), b"1", id="a time is an object"),
        pytest.param(sealed(body(who={})), b"1", id="nobody"),
        pytest.param(sealed(body(who="alice")), b"1", id="who is no object"),
        pytest.param(sealed(body(who={"sub": 7})), b"1", id="sub is a number"),
        pytest.param(sealed(body(who={"sub": "a", "roles": 7})), b"1", id="roles are a number"),
        pytest.param(sealed(body(who={"sub": "a", "claims": [1]})), b"1", id="claims are a list"),
        pytest.param(sealed(body(sid=7)), b"1", id="sid is a number"),
        pytest.param(sealed(body(browser=...)), b"1", id="no browser"),
        pytest.param(sealed(body(app=7)), b"1", id="the application is a number"),
    ],
)
def test_damage_is_named(stored: bytes, seen: bytes) -> None:
    assert decode_session(RING, HOLDER, sealed(body()), b"1") is not None, "or the cases would prove nothing"
    with pytest.raises(Damaged):
        decode_session(RING, HOLDER, stored, seen)


@pytest.mark.parametrize(("changes", "application"), [({}, ""), ({"app": None}, ""), ({"app": "one"}, "one")])
def test_a_record_from_before_there_were_several_applications_names_none(
    changes: dict[str, Any], application: str
) -> None:
    found = decode_session(RING, HOLDER, sealed(body(**changes)), b"1")
    assert found is not None
    assert found.application == application


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"null", b"[]", b"[1,2,3]", b'["i","a","x","r"]', b'["i","a",1,7]', b"7"),
        *(b'["i","a",1,"r",7]', b'["i","a",1,"r",[7]]', b'["i","a",1,"r",[["r","o","t",1]]]', b'["i","a",1,"r",[],[]]'),
        *(b'["i","a",1,"r",[[7,"o","t",1,2]]]', b'["i","a",1,"r",[["r","o","t","x",2]]]'),
    ],
)
def test_damaged_tokens_are_named(content: bytes) -> None:
    with pytest.raises(Damaged):
        decode_tokens(RING, HOLDER, sealed(content, "tokens", HOLDER.secret))


@given(st.binary(max_size=120), st.binary(max_size=8))
def test_any_bytes_are_damage(stored: bytes, seen: bytes) -> None:
    with pytest.raises(Damaged):
        decode_session(RING, HOLDER, stored, seen)


def id_token(payload: object) -> str:
    packed = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return f"e30.{base64.urlsafe_b64encode(packed).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize(
    ("tokens", "fresh_until"),
    [
        pytest.param(Tokens(id_token({"exp": 2000}), "a", 1500.0, "r"), 1500.0, id="access token first"),
        pytest.param(Tokens(id_token({"exp": 1200}), "a", 1500.0, "r"), 1200.0, id="ID token first"),
        pytest.param(Tokens(id_token({"exp": 900}), "a", 1500.0, "r"), 1005.0, id="expired when it came"),
        pytest.param(Tokens(id_token({"exp": 1200}), "a", 1500.0, None), math.inf, id="nothing to renew with"),
        pytest.param(Tokens("opaque", "a", 1500.0, "r"), 1500.0, id="no JWT"),
        pytest.param(Tokens("a.!!!.c", "a", 1500.0, "r"), 1500.0, id="no base64"),
        pytest.param(Tokens(id_token(b"{"), "a", 1500.0, "r"), 1500.0, id="no JSON"),
        pytest.param(Tokens(id_token({}), "a", 1500.0, "r"), 1500.0, id="no exp"),
        pytest.param(Tokens(id_token([1]), "a", 1500.0, "r"), 1500.0, id="a list"),
        pytest.param(Tokens(id_token({"exp": "soon"}), "a", 1500.0, "r"), 1500.0, id="exp is text"),
        pytest.param(Tokens(id_token({"exp": math.inf}), "a", 1500.0, "r"), 1500.0, id="exp is infinite"),
    ],
)
def test_renewal_times(tokens: Tokens, fresh_until: float) -> None:
    renew_at, until = renewal_times(tokens, 1000.0)
    assert until == fresh_until
    assert renew_at == pytest.approx(1000 + 0.8 * (until - 1000))


def test_a_recheck_comes_sooner_never_later_and_not_for_everybody_at_once() -> None:
    tokens = Tokens("x", "a", 4600.0, "r")
    moments = {renewal_times(tokens, 1000.0, 300.0)[0] for _ in range(50)}
    assert len(moments) > 40
    assert all(1240.0 <= moment <= 1300.0 for moment in moments)
    assert renewal_times(tokens, 1000.0, 1e6) == renewal_times(tokens, 1000.0)
    assert renewal_times(Tokens("x", "a", 4600.0, None), 1000.0, 300.0)[0] == math.inf


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (HOLDER.id, True),
        ("A" * 22, True),
        ("A" * 21, False),
        ("A" * 23, False),
        ("*" * 22, False),
        ("A" * 22 + "\n", False),
    ],
)
def test_session_ids(value: str, good: bool) -> None:
    assert is_session_id(value) is good


def test_no_id_looks_like_an_option() -> None:
    """One in sixty-four would: `postern sessions revoke -x…` would not be understood."""
    assert not [holder.id for holder in (Holder.new() for _ in range(2000)) if holder.id.startswith("-")]


def test_holders() -> None:
    assert Holder.read(HOLDER.cookie) == HOLDER
    assert HOLDER.secret.decode() not in repr(HOLDER)
    assert not HOLDER.proves(Holder.new().proof)


@given(st.floats(0, 100), st.floats(-50, 150), st.floats(0.1, 50), st.floats(0, 200))
def test_alive_is_before_both_ends(created: float, seen: float, idle: float, now: float) -> None:
    it = session(created_at=created, seen_at=seen, expires_at=100.0)
    assert it.alive(now, idle) == (now < 100.0 and now - seen < idle)
