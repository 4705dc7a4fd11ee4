"""Tokens are verified once, looked at again in time, and bounded in number."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from proxy import bearer
from proxy.access_tokens import AccessToken
from proxy.bearer import BearerTokens
from proxy.claims import Identity
from proxy.credentials import Credential, Programs, Rejected, Scheme
from proxy.errors import LogtoUnavailable
from proxy.id_tokens import BadToken
from proxy.session import Miss, Session

API = "https://api.example.com"
HERE = Programs("here", frozenset({API}))
ELSEWHERE = Programs("elsewhere", frozenset({"https://other.example.com"}))


@dataclass
class Reader:
    """Believes what it is told to."""

    now: float = 1_000_000.0
    lifetime: float = 3600.0
    asked: list[str] = field(default_factory=list)
    problem: Exception | None = None

    async def __call__(self, token: str) -> AccessToken:
        self.asked.append(token)
        if self.problem is not None:
            raise self.problem
        return AccessToken(Identity(sub=token, client="c"), frozenset({API}), self.now + self.lifetime)

    def clock(self) -> float:
        return self.now


def shown(token: str, programs: Programs = HERE) -> Credential:
    return Credential(Scheme.BEARER, token, programs)


def both(tokens: BearerTokens, credential: Credential) -> Session | Rejected:
    """What `verify` says; `peek` must say the same from then on."""
    found = asyncio.run(tokens.verify(credential))
    assert tokens.peek(credential) in (found, Miss.MISS)
    return found


def test_one_is_verified_once_and_is_the_same_session_every_time() -> None:
    reader = Reader()
    tokens = BearerTokens(reader, clock=reader.clock)
    assert tokens.peek(shown("a.b.c")) is Miss.MISS
    session = both(tokens, shown("a.b.c"))
    assert isinstance(session, Session)
    assert (session.identity.sub, session.via, session.expires_at) == ("a.b.c", "bearer", reader.now + 3600)
    assert "a.b.c" not in session.id
    assert both(tokens, shown("a.b.c")) is session
    assert reader.asked == ["a.b.c"]


def test_for_another_api_it_is_worth_nothing_yet_stays_good_for_its_own() -> None:
    reader = Reader()
    tokens = BearerTokens(reader, clock=reader.clock)
    assert isinstance(both(tokens, shown("a.b.c", ELSEWHERE)), Rejected)
    assert isinstance(tokens.peek(shown("a.b.c")), Session)
    assert reader.asked == ["a.b.c"]


def test_it_is_looked_at_again_and_ends_when_it_is_good_no_more() -> None:
    reader = Reader()
    tokens = BearerTokens(reader, clock=reader.clock)
    session = both(tokens, shown("a.b.c"))
    reader.now += 299
    assert tokens.peek(shown("a.b.c")) is session
    reader.now += 2
    assert tokens.peek(shown("a.b.c")) is Miss.MISS
    assert both(tokens, shown("a.b.c")) is session, "what rests on it goes on"
    reader.now += 301
    reader.problem = BadToken("no key of the issuer fits it")
    assert both(tokens, shown("a.b.c")) == Rejected("no key of the issuer fits it")
    reader.now += 11
    reader.problem = None
    assert isinstance(both(tokens, shown("a.b.c")), Session), "a key that is back"


def test_it_ends_with_its_life() -> None:
    reader = Reader(lifetime=100)
    tokens = BearerTokens(reader, clock=reader.clock)
    both(tokens, shown("a.b.c"))
    reader.now += 100
    assert tokens.peek(shown("a.b.c")) is Miss.MISS
    reader.lifetime = 0
    assert both(tokens, shown("a.b.c")) == Rejected("it has expired")


def test_a_wrong_one_is_not_looked_at_for_every_request() -> None:
    reader = Reader(problem=BadToken("its signature is not the issuer's"))
    tokens = BearerTokens(reader, clock=reader.clock)
    for _ in range(5):
        assert both(tokens, shown("a.b.c")) == Rejected("its signature is not the issuer's")
    assert len(reader.asked) == 1
    assert "resource parameter" in str(both(tokens, shown("opaque")))


def test_when_nobody_can_tell_nothing_is_remembered() -> None:
    reader = Reader(problem=LogtoUnavailable("keys: no answer"))
    tokens = BearerTokens(reader, clock=reader.clock)
    with pytest.raises(LogtoUnavailable):
        asyncio.run(tokens.verify(shown("a.b.c")))
    assert tokens.peek(shown("a.b.c")) is Miss.MISS


def test_wrong_ones_do_not_drive_out_the_good_and_neither_are_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearer, "_KNOWN", 3)
    monkeypatch.setattr(bearer, "_REFUSED", 3)
    reader = Reader()
    tokens = BearerTokens(reader, clock=reader.clock)
    for name in "abcd":
        both(tokens, shown(f"{name}.b.c"))
    assert tokens.peek(shown("a.b.c")) is Miss.MISS, "the oldest has gone"
    reader.problem = BadToken("no")
    for number in range(10):
        both(tokens, shown(f"{number}.x.y"))
    assert tokens.peek(shown("0.x.y")) is Miss.MISS
    assert isinstance(tokens.peek(shown("9.x.y")), Rejected)
    assert all(isinstance(tokens.peek(shown(f"{name}.b.c")), Session) for name in "bcd")
