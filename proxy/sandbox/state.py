"""All that the stand-in Logto remembers, in one object that tests in the same process may poke.

The rules of who dies with whom are the recorded ones: a code, an access token or a refresh token is bound to a grant;
without offline_access it is also bound to the Logto session, and dies with it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from .config import SandboxConfig
from .console import Console
from .faults import Fault, Received
from .keys import KeyStore
from .oauth import CookieSigner, OidcError, invalid_client, invalid_grant, token
from .people import Person, ready_people

Kind = Literal["code", "access", "refresh"]

# Every lie the stand-in can tell; see KeyStore.sign_lying, logto_tokens.id_token, logto_userinfo and logto_authorize.
LIES = frozenset(
    {
        *("wrong_iss", "wrong_aud", "many_aud", "wrong_azp", "wrong_nonce", "no_nonce", "other_sub", "no_id_token"),
        *("expired", "issued_in_future", "no_sub", "no_iat", "no_exp", "no_iss", "no_aud"),
        *("alg_none", "hs256", "unknown_kid", "bad_signature"),
        *("userinfo_other_sub", "callback_no_iss", "callback_foreign_iss", "callback_foreign_state"),
    }
)


@dataclass(slots=True)
class Clock:
    """Wall time, or a moment it stands still at, plus an offset: expiry can be tried without waiting."""

    offset: float = 0.0
    stopped_at: float | None = None

    def now(self) -> float:
        """Epoch seconds as this Logto sees them."""
        return (time.time() if self.stopped_at is None else self.stopped_at) + self.offset

    def stop(self, *, stopped: bool = True) -> None:
        """Let time stand still, or run again."""
        self.stopped_at = time.time() if stopped else None


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """An accepted authorization request."""

    params: dict[str, str] = field(repr=False)
    resources: tuple[str, ...]
    scopes: tuple[str, ...]
    prompts: frozenset[str]

    def get(self, name: str) -> str | None:
        """A parameter, None when absent or empty."""
        return self.params.get(name) or None


@dataclass(slots=True)
class Authorization:
    """What a session holds for one application: `sid`, its grant, and whether that outlives the session."""

    sid: str
    grant_id: str
    persists: bool = False


@dataclass(slots=True)
class Logout:
    """An end_session that waits for its confirmation."""

    xsrf: str = field(repr=False)
    client_id: str | None
    redirect_uri: str | None
    state: str | None
    resume: str | None = None


@dataclass(slots=True)
class Session:
    """A browser's session at Logto; `sub` is None while nobody is signed in. `cookie` changes, `uid` does not."""

    uid: str
    cookie: str = field(repr=False)
    expires_at: float
    sub: str | None = None
    login_at: float = 0.0
    authorizations: dict[str, Authorization] = field(default_factory=dict)
    logout: Logout | None = None


@dataclass(slots=True)
class Interaction:
    """A sign-in or consent under way. `logged_in`: the person signed in within this very request."""

    uid: str
    request: AuthRequest
    prompt: Literal["login", "consent"]
    expires_at: float
    logged_in: bool = False
    sub: str | None = None  # the result of a sign-in page
    consented: bool = False  # the result of a consent page
    driven: bool = False  # by a program through the experience API
    verified: dict[str, str | None] = field(default_factory=dict)  # verification id -> sub of the Discord account
    identified: str | None = None
    registering: bool = False


@dataclass(slots=True)
class Grant:
    """What a person allowed the application: scopes and resources add up over time."""

    id: str
    sub: str
    scopes: set[str] = field(default_factory=set)
    resources: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a code, access token and refresh token of one authorization have in common."""

    sub: str
    grant_id: str
    session_uid: str
    with_session: bool
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    sid: str
    nonce: str | None
    auth_time: int | None


@dataclass(slots=True)
class Ticket:
    """A code, an access token or a refresh token."""

    value: str = field(repr=False)
    kind: Kind
    facts: Facts
    issued_at: float
    expires_at: float
    scopes: tuple[str, ...]
    consumed_at: float | None = None
    request: AuthRequest | None = None  # of a code


@dataclass(slots=True)
class SandboxState:
    """The whole stand-in: configuration, keys, people, sessions, grants, tokens; faults, lies and the request log."""

    config: SandboxConfig
    clock: Clock = field(default_factory=Clock)
    keys: KeyStore = field(default_factory=KeyStore)
    signer: CookieSigner = field(default_factory=CookieSigner)
    people: dict[str, Person] = field(default_factory=ready_people)
    console: Console = field(init=False)
    sending: set[asyncio.Task[None]] = field(default_factory=set, repr=False)  # webhooks under way
    sessions: dict[str, Session] = field(default_factory=dict)  # by uid
    interactions: dict[str, Interaction] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict, repr=False)
    pushed: dict[str, tuple[float, list[tuple[str, str]]]] = field(default_factory=dict, repr=False)  # RFC 9126
    discord_codes: dict[str, str] = field(default_factory=dict, repr=False)  # code -> sub
    faults: list[Fault] = field(default_factory=list)
    lies: frozenset[str] = frozenset()
    authorize_error: str | None = None  # the next authorizations end with this error
    log: deque[Received] = field(default_factory=lambda: deque(maxlen=10_000))
    released: asyncio.Event = field(default_factory=asyncio.Event)  # set: nothing hangs any more

    def __post_init__(self) -> None:
        self._furnish()

    def _furnish(self) -> None:
        roles = dict.fromkeys(name for person in self.people.values() for name in person.roles)
        self.console = Console.of(self.config, roles)

    def reset(self) -> None:
        """Forget everything but the configuration and the keys; let go of what hangs."""
        self.release()
        self.people = ready_people()
        self._furnish()
        for store in (self.sessions, self.interactions, self.grants, self.tickets, self.pushed, self.discord_codes):
            store.clear()
        self.clock = Clock()
        self.faults.clear()
        self.lies = frozenset()
        self.authorize_error = None
        self.log.clear()

    def release(self) -> None:
        """Let go of every request that hangs."""
        self.released.set()
        self.released = asyncio.Event()

    def lie(self, *lies: str) -> None:
        """Tell exactly these lies from now on; none to be honest again. ValueError names an unknown one."""
        if unknown := set(lies) - LIES:
            raise ValueError(f"no such lie: {', '.join(sorted(unknown))}")
        self.lies = frozenset(lies)

    def received(self, endpoint: str) -> list[Received]:
        """Requests that `endpoint` got, oldest first."""
        return [entry for entry in self.log if entry.endpoint == endpoint]

    # -- the application ------------------------------------------------------------------------------------------

    def check_client(self, client_id: str | None) -> str:
        """The id of the registered application; OidcError for any other."""
        if not client_id:
            raise OidcError("invalid_request", "missing required parameter 'client_id'")
        if client_id != self.config.client_id or self.config.app_deleted:
            raise invalid_client(client_id)
        return client_id

    def may_use(self, person: Person) -> bool:
        """Application-level access control."""
        rules = self.config.access_control_roles
        return not rules or bool(set(rules) & set(person.roles))

    def says_sid(self) -> bool:
        """Whether tokens carry `sid`: only for an application with back-channel logout that asks for it."""
        return self.config.backchannel_logout_uri is not None and self.config.backchannel_logout_session_required

    # -- sessions -------------------------------------------------------------------------------------------------

    def session_by_cookie(self, cookie: str | None) -> Session | None:
        """The living session a browser's cookie names."""
        for session in self.sessions.values():
            if cookie is not None and session.cookie == cookie and self.clock.now() < session.expires_at:
                return session
        return None

    def new_session(self) -> Session:
        """A session with nobody in it."""
        expires = self.clock.now() + self.config.lifetimes.session
        session = Session(uid=token(), cookie=token(), expires_at=expires)
        self.sessions[session.uid] = session
        return session

    def end_session(self, session: Session) -> None:
        """The session is over: grants that do not outlive it are revoked."""
        self.sessions.pop(session.uid, None)
        for authorization in session.authorizations.values():
            if not authorization.persists:
                self.revoke_grant(authorization.grant_id)

    # -- grants and tokens ----------------------------------------------------------------------------------------

    def revoke_grant(self, grant_id: str) -> None:
        """A grant dies with every token of it."""
        self.grants.pop(grant_id, None)
        for value in [value for value, ticket in self.tickets.items() if ticket.facts.grant_id == grant_id]:
            del self.tickets[value]

    def revoke_person(self, sub: str) -> None:
        """Suspension and deletion: every session and grant of a person is gone, for good."""
        for session in [session for session in self.sessions.values() if session.sub == sub]:
            del self.sessions[session.uid]
        for grant in [grant for grant in self.grants.values() if grant.sub == sub]:
            self.revoke_grant(grant.id)

    def issue(self, kind: Kind, facts: Facts, scopes: tuple[str, ...], *, request: AuthRequest | None = None) -> Ticket:
        """A fresh code or token."""
        now, lifetimes = self.clock.now(), self.config.lifetimes
        life = {"code": lifetimes.code, "access": lifetimes.access, "refresh": lifetimes.refresh}[kind]
        ticket = Ticket(token(), kind, facts, now, now + life, scopes, request=request)
        self.tickets[ticket.value] = ticket
        return ticket

    def find(self, value: str, kind: Kind) -> Ticket:
        """A living code or token. OidcError invalid_grant when unknown, expired, or its session or grant is gone."""
        ticket = self.tickets.get(value)
        if ticket is None or ticket.kind != kind:
            raise invalid_grant()
        tolerance = self.config.lifetimes.tolerance if kind == "access" else 0.0
        if self.clock.now() >= ticket.expires_at + tolerance:
            raise invalid_grant()
        if not self._bound(ticket.facts):
            raise invalid_grant()
        return ticket

    def _bound(self, facts: Facts) -> bool:
        person = self.people.get(facts.sub)
        if facts.grant_id not in self.grants or person is None or person.deleted or person.suspended:
            return False
        if not facts.with_session:
            return True
        session = self.sessions.get(facts.session_uid)
        if session is None or self.clock.now() >= session.expires_at + self.config.lifetimes.tolerance:
            return False
        authorization = session.authorizations.get(self.config.client_id)
        return session.sub == facts.sub and authorization is not None and authorization.grant_id == facts.grant_id

    # -- people ---------------------------------------------------------------------------------------------------

    def change_person(self, sub: str, **changes: Any) -> Person:
        """Set attributes of a person; suspension and deletion have their recorded effects. KeyError, AttributeError."""
        person = self.people[sub]
        for name, value in changes.items():
            if name not in Person.__dataclass_fields__ or name == "sub":
                raise AttributeError(name)
            setattr(person, name, value)
        person.updated_at = int(self.clock.now() * 1000)
        if person.suspended or person.deleted:
            self.revoke_person(sub)
        return person
