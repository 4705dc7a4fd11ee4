"""What a session is, and the bytes it becomes: cookie values and stored records. No I/O.

The cookie is `1.<id>.<secret>`: which record, and the proof of being its holder. It carries no data. A stored record
has the identity and the times sealed under the key ring, with a hash of the cookie's secret inside: who can read the
store can neither read a session nor make a cookie for it. The tokens are sealed with the cookie's secret mixed into the
key: not even store and key ring together give them away while their holder is absent.

Contents are compressed before they are sealed. What that could tell an attacker who picks a part of the plaintext and
watches the length (CRIME) is out of reach here: lengths show only in the store, and nobody can seal at will.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import math
import random
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from proxy.claims import ApiToken, Audience, Identity, Tokens
from proxy.errors import PosternError, Unsealable
from proxy.sealing import KeyRing

_ID_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_COOKIE: Final = re.compile(r"1\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_VERSION: Final = b"2"
_NEVER: Final = math.inf
# Of a token's life, how much goes by before it is renewed in the background.
_RENEW_AT: Final = 0.8
# Tokens that are given out all but expired, or by a clock that is far off, must not make every request renew them.
_SHORTEST_LIFE: Final = 5.0
_TEXTS: Final = ("sub", "username", "name", "email", "picture", "discord_id", "discord_username")
_LISTS: Final = ("roles", "organizations", "organization_roles")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a store keeps: under which keys, and what it is sealed for. What was kept as one kind is never read as another."""

    prefix: str  # of the records' keys; then, of the indexes by person and by session at Logto
    people: str
    sids: str
    purpose: str


SESSIONS: Final = Kind("postern:s:", "postern:u:", "postern:l:", "session")
PASSWORDS: Final = Kind("postern:p:", "postern:pu:", "postern:pl:", "app password")


class Damaged(PosternError):
    """A stored record cannot be read: another format, another key, or somebody else's bytes. It counts as absent."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What an app password is for: its name, the one route, by name, and when Logto last spoke for its owner (epoch seconds)."""

    name: str
    route: str
    vouched_at: float


@dataclass(slots=True, weakref_slot=True)
class Session:
    """Somebody signed in, as the gate sees it. Times are epoch seconds.

    A process has one object for each session, however often its record is read: what holds one sees its changes.
    """

    id: str
    identity: Identity
    sid: str | None  # Logto's session id
    created_at: float
    seen_at: float
    expires_at: float  # the absolute end: no use of the session moves it
    signed_in_at: float
    browser: str  # User-Agent at the sign-in
    address: str  # client address at the sign-in
    application: str = ""  # the id of the application at Logto it was made for; "": before there could be several
    renew_at: float = _NEVER  # from then on its tokens should be renewed; nobody waits for it
    fresh_until: float = _NEVER  # from then on who wants in waits for the renewal
    via: Literal["cookie", "bearer", "password"] = "cookie"  # by what its holder is known; never kept
    errand: Errand | None = None  # of an app password
    failing_since: float | None = None  # renewals have been failing through no fault of the person's
    blocks: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # the relay's headers, per route
    decisions: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # the gate's, per route

    def alive(self, now: float, idle: float) -> bool:
        """Whether it counts at `now`, when `idle` seconds unused are its end. A `seen_at` to come is a clock's skew."""
        return now < self.expires_at and now - self.seen_at < idle

    def held_from(self, grace: float) -> float:
        """From when on it counts no longer until it has been renewed, or renewing it has failed for `grace` seconds."""
        return self.fresh_until if self.failing_since is None else max(self.fresh_until, self.failing_since + grace)

    def become(self, other: Session) -> None:
        """Take over what `other`, a later reading of the same session, says."""
        if other.identity != self.identity:
            self.identity = other.identity
            self.blocks.clear()
        self.sid = other.sid
        self.application = other.application
        self.created_at = other.created_at
        self.seen_at = max(self.seen_at, other.seen_at)
        self.expires_at = other.expires_at
        self.signed_in_at = other.signed_in_at
        self.renew_at = other.renew_at
        self.fresh_until = other.fresh_until
        self.errand = other.errand
        self.failing_since = other.failing_since


@dataclass(slots=True)  # not frozen: one is made for every request, and frozen fields are slow to set
class Holder:
    """The two halves of a session cookie."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Holder:
        """Make a fresh random one: nothing of an earlier cookie goes into it, so none can be fixed in advance."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        while session_id.startswith("-"):  # on a command line that would be an option
            session_id = secrets.token_urlsafe(_ID_BYTES)
        return cls(session_id, secrets.token_urlsafe(_SECRET_BYTES).encode())

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


def cookie_id(cookie: str) -> str | None:
    """The session's id in a cookie's value; None for anything that `Holder.new` cannot have made."""
    match = _COOKIE.fullmatch(cookie)
    return match[1] if match else None


def is_session_id(value: str) -> bool:
    """Whether `value` has the form of a session's id."""
    return _ID.fullmatch(value) is not None


def encode_session(ring: KeyRing, session: Session, proof: str, kind: Kind = SESSIONS) -> bytes:
    """Seal all of `session` but what moves on its own (`seen_at`, `failing_since`) and what belongs to one process."""
    times = (session.created_at, session.expires_at, session.signed_in_at, session.renew_at, session.fresh_until)
    body: dict[str, Any] = {
        "who": _identity_fields(session.identity),
        "sid": session.sid,
        "times": [None if time == _NEVER else time for time in times],
        "app": session.application,
        "browser": session.browser,
        "address": session.address,
        "proof": proof,
    }
    if session.errand is not None:
        body["errand"] = dataclasses.astuple(session.errand)
    return _VERSION + ring.seal(kind.purpose, _pack(body), context=session.id.encode())


def decode_session(ring: KeyRing, holder: Holder, stored: bytes, seen_at: bytes) -> Session | None:
    """Read what `encode_session` made. None when `holder`'s secret is not the record's; raises Damaged."""
    session, proof = decode_record(ring, holder.id, stored, seen_at)
    return session if holder.proves(proof) else None


def decode_record(
    ring: KeyRing,
    session_id: str,
    stored: bytes,
    seen_at: bytes,
    failing_since: bytes | None = None,
    kind: Kind = SESSIONS,
) -> tuple[Session, str]:
    """Read what `encode_session` made, for whoever need not be its holder: the session and its proof. Raises Damaged."""
    packed = _unseal(ring, kind.purpose, session_id, stored)
    try:
        body = json.loads(packed)
        times = (_NEVER if time is None else float(time) for time in body["times"])
        created_at, expires_at, signed_in_at, renew_at, fresh_until = times
        proof: str = body["proof"]
        proof.encode("ascii")  # compare_digest takes no other text
        errand = _errand(body.get("errand"))
        session = Session(
            id=session_id,
            identity=_identity(body["who"]),
            sid=_optional_text(body["sid"]),
            created_at=created_at,
            seen_at=float(seen_at),
            expires_at=expires_at,
            signed_in_at=signed_in_at,
            browser=str(body["browser"]),
            address=str(body["address"]),
            application=_optional_text(body.get("app")) or "",
            renew_at=renew_at,
            fresh_until=fresh_until,
            via="cookie" if errand is None else "password",
            errand=errand,
            failing_since=None if failing_since is None else float(failing_since),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"session record: {type(error).__name__}") from None
    return session, proof


def renewal_times(tokens: Tokens, now: float, recheck: float = _NEVER) -> tuple[float, float]:
    """When to renew `tokens`, given out at `now`, and how long they are good: (`renew_at`, `fresh_until`).

    At the latest after `recheck` seconds, less up to a fifth: people who came together shall not all be asked about together.

    Without a refresh token nothing can be renewed, and a session lives by its own times alone.
    """
    if tokens.refresh_token is None:
        return _NEVER, _NEVER
    until = max(min(tokens.access_expires_at, _expiry(tokens.id_token)), now + _SHORTEST_LIFE)
    sooner = recheck * (1 - random.random() / 5)  # noqa: S311 -- spreads load; nobody gains by guessing it
    return now + min((until - now) * _RENEW_AT, sooner), until


def encode_tokens(ring: KeyRing, tokens: Tokens, holder: Holder) -> bytes:
    """Seal `tokens` so that they open only with the holder's secret at hand."""
    fields: list[Any] = [tokens.id_token, tokens.access_token, tokens.access_expires_at, tokens.refresh_token]
    if tokens.for_apis:  # else as it was before there were any: workers of that time can read it
        fields.append(
            [
                [audience.resource, audience.organization, token.value, token.renew_at, token.until]
                for audience, token in tokens.for_apis.items()
            ]
        )
    packed = _pack(fields)
    return _VERSION + ring.seal("tokens", packed, context=holder.id.encode(), extra=holder.secret)


def decode_tokens(ring: KeyRing, holder: Holder, stored: bytes) -> Tokens:
    """Read what `encode_tokens` made; raises Damaged, also for another holder's secret."""
    packed = _unseal(ring, "tokens", holder.id, stored, extra=holder.secret)
    try:
        id_token, access_token, access_expires_at, refresh_token, *more = json.loads(packed)
        (for_apis,) = more or ((),)
        return Tokens(
            str(id_token),
            str(access_token),
            float(access_expires_at),
            _optional_text(refresh_token),
            dict(_api_token(*fields) for fields in for_apis),
        )
    except (TypeError, ValueError) as error:
        raise Damaged(f"tokens record: {type(error).__name__}") from None


def _api_token(resource: Any, organization: Any, value: Any, renew_at: Any, until: Any) -> tuple[Audience, ApiToken]:
    audience = Audience(_optional_text(resource), _optional_text(organization))
    return audience, ApiToken(str(value), float(renew_at), float(until))


def _unseal(ring: KeyRing, purpose: str, session_id: str, stored: bytes, *, extra: bytes = b"") -> bytes:
    if stored[:1] != _VERSION:
        raise Damaged(f"{purpose} record of an unknown version")
    try:
        return zlib.decompress(ring.open(purpose, stored[1:], context=session_id.encode(), extra=extra))
    except (Unsealable, zlib.error):
        raise Damaged(f"{purpose} record does not open") from None


def _pack(value: Any) -> bytes:
    # A lone surrogate is possible in JSON claims and must not break a sign-in; json.loads reads it back the same way.
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _expiry(id_token: str) -> float:
    """The `exp` of an ID token that has been verified before; infinity when there is none to be found."""
    try:
        payload = id_token.split(".")[1]
        expiry = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]
        return float(expiry) if math.isfinite(expiry) else _NEVER
    except (IndexError, KeyError, TypeError, ValueError):
        return _NEVER


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


def _errand(fields: Any) -> Errand | None:
    if fields is None:
        return None
    name, route, vouched_at = fields
    return Errand(str(name), str(route), float(vouched_at))


def _optional_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("not text")
