"""What is asked of Redis about sessions, and nothing else: keys, fields, scripts, time limits.

- `postern:s:<id>`, a hash for each session: `s` (session, sealed), `t` (tokens, sealed with the cookie's secret), `n` (when it
  was last seen), `f` (since when renewals fail), `r` (from when on to renew, whatever `s` says). Of one that was ended `x` (why)
  may be left, and `t` while it is to be revoked.
- `postern:u:<hash of sub>` and `postern:l:<hash of Logto's sid>`, sorted sets of ids by their absolute ends.
- `postern:p:<id>` and `postern:pu:<hash of sub>`, the same for app passwords, which have no tokens.
- `postern:once:…` and `postern:lock:…`, claims; `postern:word:…`, what workers leave for each other.

Every key has a TTL. Each script touches one key, so that all of this works on a Cluster, and each may run twice without
harm, because a connection that breaks between command and answer makes the client send it again. What changes a session
only touches one that is there: nothing can bring back a session that has been ended.

Every failure of Redis or of the way there is StoreUnavailable, after `Reach.patience` seconds at most.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import RedisError, ResponseError

from proxy.errors import StoreUnavailable
from proxy.session_cache import Line
from proxy.session_codec import SESSIONS, Damaged, Kind, decode_record, decode_tokens
from proxy.session_servers import Command, Reach, Servers, all_of

if TYPE_CHECKING:
    from proxy.claims import Tokens
    from proxy.sealing import KeyRing
    from proxy.session_codec import Holder, Session

BATCH: Final = 100
_INDEX_PAGE: Final = 500
_FIELDS: Final = ("s", "n", "f", "x", "r", "t")
_ONCE: Final = "postern:once:"
_LOCK: Final = "postern:lock:"
_WORD: Final = "postern:word:"
_log = logging.getLogger("postern.session")

_CREATE: Final = """
local s = redis.call('HGET', KEYS[1], 's')
if s then return s == ARGV[1] and 1 or 0 end
redis.call('HSET', KEYS[1], 's', ARGV[1], 'n', ARGV[3])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 't', ARGV[2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""
# Only forward: a worker whose clock is behind does not age a session that another has just seen.
_TOUCH: Final = """
local seen = tonumber(redis.call('HGET', KEYS[1], 'n'))
if not seen then return 0 end
if tonumber(ARGV[1]) > seen then redis.call('HSET', KEYS[1], 'n', ARGV[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
# Only over the tokens that were renewed: a worker that lost its claim meanwhile must not undo what another has stored.
_REPLACE: Final = """
if redis.call('HEXISTS', KEYS[1], 's') == 0 then return 0 end
local t = redis.call('HGET', KEYS[1], 't')
if t == ARGV[2] then return 1 end
if redis.sha1hex(t or '') ~= ARGV[3] then return 2 end
redis.call('HSET', KEYS[1], 's', ARGV[1], 't', ARGV[2])
redis.call('HDEL', KEYS[1], 'f', 'r')
return 1
"""
# The same for the tokens alone: when the session shall be renewed, and since when that fails, stays as it is.
_KEEP_TOKENS: Final = """
if redis.call('HEXISTS', KEYS[1], 's') == 0 then return 0 end
local t = redis.call('HGET', KEYS[1], 't')
if t == ARGV[1] then return 1 end
if redis.sha1hex(t or '') ~= ARGV[2] then return 2 end
redis.call('HSET', KEYS[1], 't', ARGV[1])
return 1
"""
# Only over what was read: who amends something else meanwhile is not undone.
_AMEND: Final = """
local s = redis.call('HGET', KEYS[1], 's')
if not s then return 0 end
if s == ARGV[1] then return 1 end
if redis.sha1hex(s) ~= ARGV[2] then return 2 end
redis.call('HSET', KEYS[1], 's', ARGV[1])
return 1
"""
_RENEW: Final = """
if redis.call('HEXISTS', KEYS[1], 's') == 0 then return 0 end
return redis.call('HSET', KEYS[1], 'r', ARGV[1])
"""
_FAIL: Final = """
if redis.call('HEXISTS', KEYS[1], 's') == 0 then return 0 end
return redis.call('HSETNX', KEYS[1], 'f', ARGV[1])
"""
# The tokens may stay behind, for whoever has the cookie to open and revoke them; the key's TTL stays as it is.
_END: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return redis.call('DEL', KEYS[1]) end
if redis.call('HEXISTS', KEYS[1], 's') == 0 and redis.call('HEXISTS', KEYS[1], 'x') == 1 then return 0 end
if ARGV[2] == '0' or redis.call('HEXISTS', KEYS[1], 't') == 0 then return redis.call('DEL', KEYS[1]) end
redis.call('HDEL', KEYS[1], 's', 'n', 'f', 'r')
redis.call('HSET', KEYS[1], 'x', ARGV[1])
return 1
"""
_LEFTOVER: Final = """
local t = redis.call('HGET', KEYS[1], 't')
if not t or redis.call('HEXISTS', KEYS[1], 'x') == 0 then return false end
redis.call('DEL', KEYS[1])
return t
"""
_INDEX: Final = """
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[3])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return last[2] and redis.call('PEXPIRE', KEYS[1], math.max(1, tonumber(last[2]) - tonumber(ARGV[3])))
"""
_EXTEND: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
# Both at once: what has been replaced between two questions would be given the other's time.
_RECALL: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return false end
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""


class Record(NamedTuple):
    """The fields of one session's record."""

    stored: bytes | None  # None: there is no session
    seen: bytes | None
    failing: bytes | None
    ended: bytes | None  # why, when it has been ended
    renew: bytes | None  # from when on its tokens shall be renewed, whatever is sealed in it
    tokens: bytes | None = None


NOTHING: Final = Record(None, None, None, None, None)


def opened(ring: KeyRing, session_id: str, record: Record, kind: Kind = SESSIONS) -> tuple[Session, str]:
    """What a record that is there says, and the proof of its holder; raises Damaged, or ValueError for times that are none."""
    stored, seen = record.stored or b"", record.seen or b""
    session, proof = decode_record(ring, session_id, stored, seen, record.failing, kind)
    if session.renew_at < math.inf:  # else there is nothing to renew it with
        session.renew_at = min(session.renew_at, float(record.renew or "inf"))
    return session, proof


def tokens_in(ring: KeyRing, holder: Holder, sealed: bytes | None) -> Tokens | None:
    """The tokens of a record; None when there are none, or they cannot be read."""
    try:
        return decode_tokens(ring, holder, sealed) if sealed is not None else None
    except Damaged as damage:
        _log.warning("tokens of session %s cannot be read: %s", holder.id, damage)
        return None


class Records:
    """The records in Redis. Ids must have the form of one; times are epoch seconds, spans seconds."""

    def __init__(self, servers: Servers, reach: Reach, kind: Kind = SESSIONS) -> None:
        self.servers = servers
        self._prefix = kind.prefix
        self._patience = reach.patience
        self.down_since: float | None = None  # time.monotonic(): nothing has been answered since

    async def read(self, session_id: str) -> tuple[Record, Line | None]:
        """A session's record, and who covers the answer."""
        key = self._prefix + session_id
        async with self.asking():
            try:
                values, line = await self.servers.ask(key, "HMGET", key, *_FIELDS)
            except ResponseError as error:
                # Something else lives under the name: damaged like any other garbage, and no fault of the store.
                if not str(error).startswith("WRONGTYPE"):
                    raise
                _log.warning("session %s cannot be read: not a hash", session_id)
                return NOTHING, None
        return Record(*values), line

    async def read_each(self, ids: Sequence[str]) -> list[Record]:
        """The records of several sessions, without their tokens."""
        answers = await self._each([(self._prefix + it, ("HMGET", self._prefix + it, *_FIELDS[:-1])) for it in ids])
        return [Record(*answer) if isinstance(answer, list) else NOTHING for answer in answers]

    async def create(self, session_id: str, stored: bytes, tokens: bytes, seen: float, ttl: float) -> None:
        """Store a new session; `tokens` may be empty: it has none."""
        key = self._prefix + session_id
        if await self._script(_CREATE, key, stored, tokens, stamp(seen), _ms(ttl)) != 1:
            raise StoreUnavailable("Redis did not store the session")

    async def touch(self, session_id: str, seen: float, ttl: float) -> None:
        """Note the use of a session."""
        await self._script(_TOUCH, self._prefix + session_id, stamp(seen), _ms(ttl))

    async def replace(self, session_id: str, stored: bytes, tokens: bytes, before: bytes) -> bool | None:
        """Put a renewed record in the place of the one with the tokens `before`; None: ended, False: other tokens by now."""
        digest = hashlib.sha1(before, usedforsecurity=False).hexdigest()
        answer = await self._script(_REPLACE, self._prefix + session_id, stored, tokens, digest)
        return None if answer == 0 else answer == 1

    async def keep_tokens(self, session_id: str, tokens: bytes, before: bytes) -> bool | None:
        """Put tokens in the place of those `before`; None: the session has ended, False: it has others by now."""
        digest = hashlib.sha1(before, usedforsecurity=False).hexdigest()
        answer = await self._script(_KEEP_TOKENS, self._prefix + session_id, tokens, digest)
        return None if answer == 0 else answer == 1

    async def amend(self, session_id: str, stored: bytes, before: bytes) -> bool | None:
        """Put a record in the place of the one `before`; None: ended, False: another one by now."""
        digest = hashlib.sha1(before, usedforsecurity=False).hexdigest()
        answer = await self._script(_AMEND, self._prefix + session_id, stored, digest)
        return None if answer == 0 else answer == 1

    async def renew(self, ids: Sequence[str], at: float) -> None:
        """Note that the tokens of sessions shall be renewed from `at` on."""
        await self._each([(self._prefix + it, ("EVAL", _RENEW, 1, self._prefix + it, stamp(at))) for it in ids])

    async def fail(self, session_id: str, since: float) -> None:
        """Note that renewals fail, unless that is noted already."""
        await self._script(_FAIL, self._prefix + session_id, stamp(since))

    async def end(self, ids: Sequence[str], why: str, *, leave_tokens: bool) -> int:
        """End sessions; returns how many there were. With `leave_tokens` these stay behind for `leftover`."""
        leave = "1" if leave_tokens else "0"
        commands = [(self._prefix + it, ("EVAL", _END, 1, self._prefix + it, why, leave)) for it in ids]
        return sum(1 for answer in await self._each(commands) if answer)

    async def leftover(self, session_id: str) -> bytes | None:
        """Take the tokens that an ended session has left behind."""
        found = await self._script(_LEFTOVER, self._prefix + session_id)
        return found if isinstance(found, bytes) else None

    # -- indexes

    async def index(self, key: str, session_id: str, expires_at: float, now: float) -> None:
        """Note a session under `key`, and forget those that have expired."""
        await self._script(_INDEX, key, session_id, _ms(expires_at), _ms(now))

    async def unindex(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Take sessions off indexes: pairs of key and id."""
        await self._each([(key, ("ZREM", key, it)) for key, it in pairs])

    async def indexed(self, key: str, most: int | None = None) -> list[tuple[str, float]]:
        """The sessions noted under `key`, with their absolute ends, the last first: all, or up to `most`.

        In pages, so that no other client waits long.
        """
        found: list[tuple[str, float]] = []
        while True:
            last = len(found) + _INDEX_PAGE if most is None else min(len(found) + _INDEX_PAGE, most)
            async with self.asking():
                page, _ = await self.servers.ask(key, "ZREVRANGE", key, len(found), last - 1, "WITHSCORES")
            pairs = _pairs(page)
            found += [(member.decode("ascii", "replace"), float(score) / 1000) for member, score in pairs]
            if len(pairs) < _INDEX_PAGE or len(found) == most:
                return found

    async def scan(self) -> AsyncIterator[list[str]]:
        """The ids of all records there are, in batches. One may come twice while Redis resizes its table."""
        async with self.asking():
            await self.servers.start()
        for server in self.servers.masters():
            cursor = 0
            while True:
                async with self.asking():
                    cursor, keys = await server.ask("SCAN", cursor, "MATCH", self._prefix + "*", "COUNT", BATCH)
                if keys:
                    yield [key.decode("ascii", "replace").removeprefix(self._prefix) for key in keys]
                if int(cursor) == 0:
                    break

    # -- claims

    async def once(self, name: str, ttl: float) -> bool:
        """Claim `name` for `ttl`; True for the first."""
        return await self._claim(_ONCE + name, ttl) is not None

    async def claim(self, name: str, ttl: float) -> str | None:
        """Claim `name` for `ttl`, to be extended and released with what is returned; None: somebody else has it."""
        return await self._claim(_LOCK + name, ttl)

    async def extend(self, name: str, mark: str, ttl: float) -> bool:
        """Keep a claim for another `ttl`; False: it is lost."""
        return bool(await self._script(_EXTEND, _LOCK + name, mark, _ms(ttl)))

    async def release(self, name: str, mark: str) -> None:
        """Give a claim back."""
        await self._script(_RELEASE, _LOCK + name, mark)

    async def _claim(self, key: str, ttl: float) -> str | None:
        mark = secrets.token_urlsafe(12)
        async with self.asking():
            answer, _ = await self.servers.ask(key, "SET", key, mark, "NX", "PX", _ms(ttl))
            if answer:
                return mark
            # When the connection broke between command and answer, the client has sent the command again and met its
            # own mark: then this caller is the first after all.
            found, _ = await self.servers.ask(key, "GET", key)
            return mark if found == mark.encode() else None

    # -- words between workers

    async def remember(self, name: str, value: bytes, ttl: float) -> None:
        """Leave `value` under `name` for `ttl`."""
        key = _WORD + name
        async with self.asking():
            await self.servers.ask(key, "SET", key, value, "PX", _ms(ttl))

    async def recall(self, name: str) -> tuple[bytes, float] | None:
        """What was left under `name`, and for how much longer it is there."""
        found = await self._script(_RECALL, _WORD + name)
        return (found[0], max(0, found[1]) / 1000) if isinstance(found, list) else None

    # -- asking

    async def ping(self) -> None:
        """Return when every master answers."""
        async with self.asking():
            if not self.servers.masters():
                await self.servers.start()
            await all_of(server.ask("PING") for server in self.servers.masters())

    async def _script(self, script: str, key: str, *arguments: Any) -> Any:
        # EVAL, not EVALSHA: a script is shorter than a session, and no restart or failover can have forgotten it.
        async with self.asking():
            answer, _ = await self.servers.ask(key, "EVAL", script, 1, key, *arguments)
        return answer

    async def _each(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Run commands in batches, each batch with its own time limit; raises the first failure that is the store's."""
        answers: list[Any] = []
        for start in range(0, len(commands), BATCH):
            async with self.asking():
                batch = await self.servers.ask_each(commands[start : start + BATCH])
                for answer in batch:
                    if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                        raise answer
            answers += batch
        return answers

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Bound in time whatever is asked of Redis inside, and turn whatever goes wrong into StoreUnavailable."""
        try:
            async with asyncio.timeout(self._patience):
                yield
        except StoreUnavailable:
            raise
        except TimeoutError:
            self._down()
            raise StoreUnavailable("Redis did not answer in time") from None
        except RedisError as error:
            self._down()
            raise StoreUnavailable(f"Redis: {type(error).__name__}: {error}") from None
        except Exception as error:  # noqa: BLE001 -- redis-py stumbles (AttributeError, …) over a server's nonsense
            self._down()
            raise StoreUnavailable(f"Redis answered nonsense: {type(error).__name__}") from None
        else:
            self.down_since = None

    def _down(self) -> None:
        if self.down_since is None:
            self.down_since = time.monotonic()


def user_index(sub: str, kind: Kind = SESSIONS) -> str:
    """The key of the index of one person's sessions. Hashed: key names show up in logs and monitors, people should not."""
    return kind.people + _hashed(sub)


def sid_index(sid: str, kind: Kind = SESSIONS) -> str:
    """The key of the index of the sessions that began with one session at Logto."""
    return kind.sids + _hashed(sid)


def indexes_of(session: Session, kind: Kind = SESSIONS) -> list[str]:
    """The keys of all indexes that a session is on."""
    person = user_index(session.identity.sub, kind)
    return [person] if session.sid is None else [person, sid_index(session.sid, kind)]


def stamp(time: float) -> str:
    """A time as it is stored."""
    return f"{time:.3f}"


def _hashed(value: str) -> str:
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest[:18]).decode()


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _pairs(page: Sequence[Any]) -> list[tuple[bytes, Any]]:
    """ZRANGE … WITHSCORES as pairs, whichever form the protocol gives it."""
    if page and isinstance(page[0], (list, tuple)):
        return [(member, score) for member, score in page]
    return list(zip(page[::2], page[1::2], strict=True))
