"""Sessions in Redis: one hash each, shared by all workers.

`postern:s:<id>` has the fields `s` (session, sealed), `t` (tokens, sealed with the cookie's secret) and `n` (when it was
last seen). It always has a TTL: what is left of the idle timeout or of the lifetime, whichever is less. `n` stands apart
so that noting a use cannot undo a refresh that another worker stores at the same moment, and both changes run as
scripts that touch only a record that still exists: neither can bring back a session that has been ended.

`postern:u:<hash>` and `postern:l:<hash>` are sets of the ids of one person's sessions and of those that came of one session
at Logto, so that all of them can be ended. Hashes: who can read the store need not learn who is signed in. An id stays in
its set after its session has run out; the set goes with the last of them.

Every failure of Redis or of the way there is StoreUnavailable, after three seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Literal

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from typing_extensions import override

from proxy.claims import Grant, Tokens
from proxy.errors import StoreUnavailable
from proxy.sealing import KeyRing
from proxy.session import Miss, Session, SessionStore, new_session, refreshed
from proxy.session_codec import (
    Damaged,
    Holder,
    decode_session,
    decode_tokens,
    encode_session,
    encode_tokens,
    is_session_id,
)

CONNECT_SECONDS: Final = 1.0
COMMAND_SECONDS: Final = 2.0
_CONNECTIONS: Final = 64
_TOUCH_SECONDS: Final = 60.0
_COMPLAINT_SECONDS: Final = 10.0
_SESSION: Final = "postern:s:"
_ONCE: Final = "postern:once:"
_USER: Final = "postern:u:"
_SID: Final = "postern:l:"
_AT_ONCE: Final = 500  # ids: no single command holds up Redis for long

# Only forward: a worker whose clock is behind does not age a session that another has just seen.
_TOUCH: Final = """
local seen = tonumber(redis.call('HGET', KEYS[1], 'n'))
if not seen then return 0 end
if tonumber(ARGV[1]) > seen then redis.call('HSET', KEYS[1], 'n', ARGV[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_REPLACE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 's', ARGV[1], 't', ARGV[2])
return 1
"""
_log = logging.getLogger("postern.session")


class RedisStore(SessionStore):
    """Sessions in one Redis server (6 or later), reached by redis://, rediss:// or unix://."""

    def __init__(
        self, url: str, keyring: KeyRing, *, idle: float, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        """`url` may carry redis-py's options (`?ssl_ca_certs=…&max_connections=…`); `idle`, `lifetime` in seconds."""
        super().__init__()
        self._ring = keyring
        self._idle = idle
        self._lifetime = lifetime
        self._clock = clock
        self._touch_every = min(_TOUCH_SECONDS, idle / 10)
        self._touching: dict[str, asyncio.Task[None]] = {}
        self._complain_at = 0.0
        self._redis = Redis.from_pool(_pool(url))
        self._touch_script = self._redis.register_script(_TOUCH)
        self._replace_script = self._redis.register_script(_REPLACE)

    @override
    def peek(self, cookie: str) -> Literal[Miss.MISS] | None:
        return Miss.MISS if Holder.read(cookie) else None

    @override
    async def load(self, cookie: str) -> Session | None:
        holder = Holder.read(cookie)
        if holder is None:
            return None
        stored, seen = await self._fetch(holder.id, "s", "n")
        return self._session(holder, stored, seen)

    @override
    async def create(self, grant: Grant, *, browser: str, address: str) -> tuple[Session, str]:
        holder = Holder.new()
        session = new_session(holder, grant, self._clock(), self._lifetime, browser=browser, address=address)
        record: dict[Any, Any] = {
            "s": encode_session(self._ring, session, holder.proof),
            "t": encode_tokens(self._ring, grant.tokens, holder),
            "n": self._stamp(session.seen_at),
        }
        async with self._asking(), self._redis.pipeline(transaction=True) as transaction:
            transaction.hset(_SESSION + holder.id, mapping=record)
            transaction.pexpire(_SESSION + holder.id, self._ttl(session, session.seen_at))
            for name in _indexes(session):
                transaction.sadd(name, holder.id)
                transaction.pexpire(name, int(self._lifetime * 1000))
            if (await transaction.execute())[:2] != [len(record), True]:
                raise StoreUnavailable("Redis did not store the session")
        return session, holder.cookie

    @override
    async def tokens(self, cookie: str) -> Tokens | None:
        holder = Holder.read(cookie)
        if holder is None:
            return None
        stored, seen, tokens = await self._fetch(holder.id, "s", "n", "t")
        if self._session(holder, stored, seen) is None:
            return None
        try:
            return decode_tokens(self._ring, holder, tokens or b"")
        except Damaged as damage:
            _log.warning("tokens of session %s cannot be read: %s", holder.id, damage)
            return None

    @override
    async def replace(self, cookie: str, grant: Grant) -> Session | None:
        old = await self.load(cookie)
        holder = Holder.read(cookie)
        if old is None or holder is None:
            return None
        session = refreshed(old, grant)
        stored = encode_session(self._ring, session, holder.proof)
        tokens = encode_tokens(self._ring, grant.tokens, holder)
        async with self._asking():
            there = await self._replace_script(keys=[_SESSION + holder.id], args=[stored, tokens])
        return session if there else None

    @override
    async def end(self, session_id: str) -> bool:
        if not is_session_id(session_id):
            return False
        async with self._asking():
            found = await self._redis.delete(_SESSION + session_id) > 0
        self._ended(session_id)
        return found

    @override
    async def end_user(self, sub: str) -> int:
        return await self._end_all(_index(_USER, sub))

    @override
    async def end_sid(self, sid: str) -> int:
        return await self._end_all(_index(_SID, sid))

    @override
    async def once(self, key: str, ttl: float) -> bool:
        mark = secrets.token_bytes(8)
        async with self._asking():
            if await self._redis.set(_ONCE + key, mark, nx=True, px=max(1, int(ttl * 1000))):
                return True
            # When the connection broke between command and answer, the client has sent the command again and met its
            # own mark: then this caller is the first after all.
            return bool(await self._redis.get(_ONCE + key) == mark)

    @override
    async def ping(self) -> None:
        async with self._asking():
            await self._redis.ping()

    @override
    async def start(self) -> None:
        try:
            await self.ping()
        except StoreUnavailable as error:
            _log.warning("no session can be read yet: %s", error)

    @override
    async def close(self) -> None:
        for task in list(self._touching.values()):
            task.cancel()
        await asyncio.gather(*self._touching.values(), return_exceptions=True)
        await self._redis.aclose()

    async def _end_all(self, name: str) -> int:
        """End the sessions in the set `name`, some at a time: no person has so many that Redis is held up."""
        found, cursor = 0, None
        while cursor != 0:
            async with self._asking():
                cursor, members = await self._redis.sscan(name, cursor or 0, count=_AT_ONCE)
                ids = [bytes(member).decode("ascii", "replace") for member in members if isinstance(member, bytes)]
                if ids:
                    found += await self._redis.delete(*(_SESSION + session_id for session_id in ids))
                    # Never the whole set: a sign-in of this very moment may have added to it.
                    await self._redis.srem(name, *ids)
            for session_id in ids:
                self._ended(session_id)
        return found

    async def _fetch(self, session_id: str, *fields: str) -> list[bytes | None]:
        async with self._asking():
            try:
                values = await self._redis.hmget(_SESSION + session_id, list(fields))
            except ResponseError as error:
                # Something else lives under the name: damaged like any other garbage, and no fault of the store.
                if not str(error).startswith("WRONGTYPE"):
                    raise
                _log.warning("session %s cannot be read: not a hash", session_id)
                values = [None] * len(fields)
        return [value if isinstance(value, bytes) else None for value in values]

    def _session(self, holder: Holder, stored: bytes | None, seen: bytes | None) -> Session | None:
        """Decode, judge and mark as used; None for whatever is not a living session of `holder`."""
        if stored is None:
            return None
        try:
            session = decode_session(self._ring, holder, stored, seen or b"")
        except Damaged as damage:
            _log.warning("session %s cannot be read: %s", holder.id, damage)
            return None
        now = self._clock()
        if session is None or not session.alive(now, self._idle):
            return None
        if now - session.seen_at >= self._touch_every:
            self._touch_later(session, now)
        session.seen_at = max(session.seen_at, now)
        return session

    def _touch_later(self, session: Session, now: float) -> None:
        """Note the use in the background, once at a time for each session: no request waits for it."""
        if session.id not in self._touching:
            task = asyncio.get_running_loop().create_task(self._touch(session, now))
            self._touching[session.id] = task
            task.add_done_callback(lambda _: self._touching.pop(session.id, None))

    async def _touch(self, session: Session, now: float) -> None:
        try:
            async with self._asking():
                key = _SESSION + session.id
                await self._touch_script(keys=[key], args=[self._stamp(now), self._ttl(session, now)])
        except StoreUnavailable as error:
            # The session goes on until its idle timeout; a read-only Redis would else fill the log with this.
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + _COMPLAINT_SECONDS
                _log.warning("the use of sessions cannot be noted: %s", error)

    @staticmethod
    def _stamp(now: float) -> str:
        return f"{now:.3f}"

    def _ttl(self, session: Session, now: float) -> int:
        """Milliseconds after which Redis forgets `session` by itself when nobody uses it again."""
        return max(1, int(min(self._idle, session.expires_at - now) * 1000))

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Bound in time whatever is asked of Redis inside, and turn whatever goes wrong into StoreUnavailable."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS + COMMAND_SECONDS):
                yield
        except StoreUnavailable:
            raise
        except TimeoutError:
            raise StoreUnavailable("Redis did not answer in time") from None
        except RedisError as error:
            raise StoreUnavailable(f"Redis: {type(error).__name__}: {error}") from None
        except Exception as error:  # noqa: BLE001 -- redis-py stumbles (AttributeError, …) over a server's nonsense
            raise StoreUnavailable(f"Redis answered nonsense: {type(error).__name__}") from None


def _indexes(session: Session) -> list[str]:
    """The sets that `session` is in."""
    return [_index(_USER, session.identity.sub), *([_index(_SID, session.sid)] if session.sid else [])]


def _index(prefix: str, value: str) -> str:
    return prefix + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def _pool(url: str) -> BlockingConnectionPool:
    """Make the pool for `url`; ValueError, without the URL in it (it may hold a password), when redis-py refuses it."""
    defaults: dict[str, Any] = {
        "max_connections": _CONNECTIONS,
        "timeout": CONNECT_SECONDS + COMMAND_SECONDS,
        "socket_timeout": COMMAND_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        # One more try, on a new connection: those in the pool are dead after a restart of Redis.
        "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        "client_name": "postern",
    }
    try:
        pool = BlockingConnectionPool.from_url(url, **defaults)
        pool.connection_kwargs["decode_responses"] = False  # sealed values are no text, whatever the URL says
        pool.make_connection()  # type: ignore[no-untyped-call]  # opens nothing; a misspelt option is a TypeError here instead of at the first request
    except (ValueError, TypeError, RedisError) as error:
        raise ValueError(f"not a usable Redis URL ({type(error).__name__})") from None
    return pool
