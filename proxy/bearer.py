"""Bearer tokens: programs that present an access token of Logto's, verified once and known from then on (RFC 6750, RFC 9068).

A token is as good as a session, but nobody can end it: it counts until it expires, and is looked at anew every few minutes, so
that one whose key Logto has withdrawn does not go on to its end. Tokens are kept by a keyed hash: what lies in memory is good for
nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from proxy.access_tokens import AccessToken
from proxy.credentials import Credential, Programs, Rejected
from proxy.id_tokens import BadToken
from proxy.session_cache import Miss
from proxy.session_codec import Session

_KNOWN: Final = 20_000  # tokens kept that are good
_REFUSED: Final = 2_000  # and that are not: kept apart, or whoever makes up tokens drives out the good ones
_GOOD_SECONDS: Final = 300.0
_BAD_SECONDS: Final = 10.0  # a token of the next minute, or of a key that is about to be published, may yet become good

OTHER_API: Final = Rejected("it is for another API resource")
Value = TypeVar("Value")


@dataclass(slots=True)
class _Known:
    """A token that was good when it was last looked at, and whom it lets in."""

    session: Session
    audiences: frozenset[str]
    until: float  # epoch seconds


class _Kept(Generic[Value]):
    """Values by the keyed hash of a token, the oldest dropped when there are too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[bytes, Value] = {}

    def get(self, key: bytes) -> Value | None:
        return self._values.get(key)

    def put(self, key: bytes, value: Value) -> None:
        self._values.pop(key, None)
        if len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = value

    def drop(self, key: bytes) -> None:
        self._values.pop(key, None)


class BearerTokens:
    """The access tokens that one worker has seen. `read` verifies one; it raises BadToken and LogtoUnavailable."""

    def __init__(
        self, read: Callable[[str], Awaitable[AccessToken]], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._read = read
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._good: _Kept[_Known] = _Kept(_KNOWN)
        self._bad: _Kept[tuple[Rejected, float]] = _Kept(_REFUSED)

    def peek(self, credential: Credential) -> Session | Rejected | Literal[Miss.MISS]:
        """Whom a token lets in where it was presented, without waiting; MISS: ask `verify`."""
        return self._known(self._digest(credential.value), credential.programs)

    async def verify(self, credential: Credential) -> Session | Rejected:
        """Whom a token lets in where it was presented; raises LogtoUnavailable when Logto's keys cannot be had."""
        token, programs = credential.value, credential.programs
        digest = self._digest(token)
        found = self._known(digest, programs)
        if found is not Miss.MISS:
            return found
        now = self._clock()
        try:
            made = await self._read(token)
        except BadToken as error:
            self._good.drop(digest)
            self._bad.put(digest, (Rejected(_hint(token) or str(error)), now + _BAD_SECONDS))
        else:
            known = self._good.get(digest)
            # What rests on a session is told apart by the object: the same token is the same one.
            session = known.session if known is not None else session_of(made, f"bearer {digest.hex()}", now)
            until = min(made.expires_at, now + _GOOD_SECONDS)
            self._good.put(digest, _Known(session, made.audiences, until))
        found = self._known(digest, programs)
        return found if found is not Miss.MISS else Rejected("it has expired")

    def waits(self, session: Session) -> bool:  # noqa: ARG002 -- of app passwords alone
        """Whether a token counts for nothing for now: it does until it expires."""
        return False

    def _known(self, digest: bytes, programs: Programs) -> Session | Rejected | Literal[Miss.MISS]:
        now = self._clock()
        known = self._good.get(digest)
        if known is not None and now < known.until:
            if programs.audiences.isdisjoint(known.audiences):
                return OTHER_API
            return known.session
        refused = self._bad.get(digest)
        return refused[0] if refused is not None and now < refused[1] else Miss.MISS

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()


def session_of(made: AccessToken, name: str, now: float) -> Session:
    """What a program is let in by, from `now` (epoch seconds) on. `name` is none that a session has: theirs have no space."""
    return Session(
        id=name,
        identity=made.identity,
        sid=None,
        created_at=now,
        seen_at=now,
        expires_at=made.expires_at,
        signed_in_at=0.0,  # nobody can tell whether a person was there when it was issued
        browser="",
        address="",
        via="bearer",
    )


def _hint(token: str) -> str:
    """What to do about a token that is none of an API resource's: Logto gives out opaque ones to who names no resource."""
    return "" if token.count(".") == 2 else "it is no JWT: ask Logto for a token with the resource parameter"
