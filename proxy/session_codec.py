"""What a session is, and the bytes it becomes: cookie values and stored records. No I/O.

The cookie is `1.<id>.<secret>`: which record, and the proof of being its holder. It carries no data. A stored record
has the identity and the times sealed under the key ring, with a hash of the cookie's secret inside: who can read the
store can neither read a session nor make a cookie for it. The tokens are sealed with the cookie's secret mixed into the
key: not even store and key ring together give them away while their holder is absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.claims import Identity, Tokens
from proxy.errors import PosternError, Unsealable
from proxy.sealing import KeyRing

_ID_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_COOKIE: Final = re.compile(r"1\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_VERSION: Final = b"1"
_TEXTS: Final = ("sub", "username", "name", "email", "picture", "discord_id", "discord_username")
_LISTS: Final = ("roles", "organizations", "organization_roles")


class Damaged(PosternError):
    """A stored record cannot be read: another format, another key, or somebody else's bytes. It counts as absent."""


@dataclass(slots=True)
class Session:
    """Somebody signed in, as the gate sees it. Times are epoch seconds."""

    id: str
    identity: Identity
    sid: str | None  # Logto's session id
    created_at: float
    seen_at: float
    expires_at: float  # the absolute end: no use of the session moves it
    signed_in_at: float
    browser: str  # User-Agent at the sign-in
    address: str  # client address at the sign-in
    blocks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # the relay's headers, per route

    def alive(self, now: float, idle: float) -> bool:
        """Whether it counts at `now`, when `idle` seconds unused are its end. A `seen_at` to come is a clock's skew."""
        return now < self.expires_at and now - self.seen_at < idle


@dataclass(slots=True)  # not frozen: one is made for every request, and frozen fields are slow to set
class Holder:
    """The two halves of a session cookie."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Holder:
        """Make a fresh random one: nothing of an earlier cookie goes into it, so none can be fixed in advance."""
        return cls(secrets.token_urlsafe(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES).encode())

    @classmethod
    def read(cls, cookie: str) -> Holder | None:
        """Read a cookie's value; None for anything that `new` cannot have made."""
        match = _COOKIE.fullmatch(cookie)
        return cls(match[1], match[2].encode()) if match else None

    @property
    def cookie(self) -> str:
        """The cookie's value."""
        return f"1.{self.id}.{self.secret.decode()}"

    @property
    def proof(self) -> str:
        """What the store keeps to know the secret again. It has 256 random bits: a plain hash is enough."""
        return hashlib.sha256(self.secret).hexdigest()

    def proves(self, proof: str) -> bool:
        """Whether `proof` was made from this secret; in constant time."""
        return hmac.compare_digest(self.proof, proof)


def is_session_id(value: str) -> bool:
    """Whether `value` has the form of a session's id."""
    return _ID.fullmatch(value) is not None


def encode_session(ring: KeyRing, session: Session, proof: str) -> bytes:
    """Seal all of `session` but `seen_at`, which moves on its own, and `blocks`, which belong to one process."""
    body = {
        "who": _identity_fields(session.identity),
        "sid": session.sid,
        "times": [session.created_at, session.expires_at, session.signed_in_at],
        "browser": session.browser,
        "address": session.address,
        "proof": proof,
    }
    return _VERSION + ring.seal("session", _pack(body), context=session.id.encode())


def decode_session(ring: KeyRing, holder: Holder, stored: bytes, seen_at: bytes) -> Session | None:
    """Read what `encode_session` made. None when `holder`'s secret is not the record's; raises Damaged."""
    packed = _unseal(ring, "session", holder.id, stored)
    try:
        body = json.loads(packed)
        if not holder.proves(body["proof"]):
            return None
        created_at, expires_at, signed_in_at = (float(value) for value in body["times"])
        return Session(
            id=holder.id,
            identity=_identity(body["who"]),
            sid=_optional_text(body["sid"]),
            created_at=created_at,
            seen_at=float(seen_at),
            expires_at=expires_at,
            signed_in_at=signed_in_at,
            browser=str(body["browser"]),
            address=str(body["address"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"session record: {type(error).__name__}") from None


def encode_tokens(ring: KeyRing, tokens: Tokens, holder: Holder) -> bytes:
    """Seal `tokens` so that they open only with the holder's secret at hand."""
    packed = _pack(dataclasses.astuple(tokens))
    return _VERSION + ring.seal("tokens", packed, context=holder.id.encode(), extra=holder.secret)


def decode_tokens(ring: KeyRing, holder: Holder, stored: bytes) -> Tokens:
    """Read what `encode_tokens` made; raises Damaged, also for another holder's secret."""
    packed = _unseal(ring, "tokens", holder.id, stored, extra=holder.secret)
    try:
        id_token, access_token, access_expires_at, refresh_token = json.loads(packed)
        return Tokens(str(id_token), str(access_token), float(access_expires_at), _optional_text(refresh_token))
    except (TypeError, ValueError) as error:
        raise Damaged(f"tokens record: {type(error).__name__}") from None


def _unseal(ring: KeyRing, purpose: str, session_id: str, stored: bytes, *, extra: bytes = b"") -> bytes:
    if stored[:1] != _VERSION:
        raise Damaged(f"{purpose} record of an unknown version")
    try:
        return ring.open(purpose, stored[1:], context=session_id.encode(), extra=extra)
    except Unsealable:
        raise Damaged(f"{purpose} record does not open") from None


def _pack(value: Any) -> bytes:
    # A lone surrogate is possible in JSON claims and must not break a sign-in; json.loads reads it back the same way.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _identity_fields(identity: Identity) -> dict[str, Any]:
    """List what is set of `identity`, next to the claims it came from: a session read later is not judged anew."""
    values = {item.name: getattr(identity, item.name) for item in dataclasses.fields(identity)}
    return {name: value for name, value in values.items() if value}


def _identity(fields: Mapping[str, Any]) -> Identity:
    texts = {name: _optional_text(fields.get(name)) for name in _TEXTS}
    lists = {name: tuple(str(item) for item in fields.get(name, ())) for name in _LISTS}
    if not texts["sub"]:
        raise ValueError("nobody")
    return Identity(**texts, **lists, claims=dict(fields.get("claims", {})))  # type: ignore[arg-type]


def _optional_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("not text")
