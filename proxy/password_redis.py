"""App passwords in Redis, beside the sessions: what they do not share with those."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Final

from typing_extensions import override

from proxy.errors import StoreUnavailable
from proxy.password_store import PasswordStore, changed
from proxy.session_cache import Entry
from proxy.session_codec import PASSWORDS, Damaged, Holder, Kind, Session, encode_session, is_session_id
from proxy.session_records import opened, user_index
from proxy.session_redis import RedisStore

_TRIES: Final = 5


class RedisPasswords(RedisStore, PasswordStore):
    """App passwords in Redis 6 or later."""

    kind: ClassVar[Kind] = PASSWORDS

    @override
    async def issue(self, holder: Holder, session: Session) -> Session:
        now = self._clock()
        stored = encode_session(self._ring, session, holder.proof, self.kind)
        # The index first: what is on none could not be found to be ended.
        person = user_index(session.identity.sub, self.kind)
        await self._records.index(person, session.id, session.expires_at, now)
        await self._records.create(session.id, stored, b"", session.seen_at, self._ttl(session, now))
        return self._cache.adopt(session)

    @override
    def _note_use(self, entry: Entry, now: float) -> None:
        # The first use at once: whoever has just set up a program looks whether it has come.
        if entry.noted_at <= entry.session.created_at:
            entry.noted_at = -math.inf
        super()._note_use(entry, now)

    @override
    async def amend(self, session_id: str, change: Callable[[Session], Session]) -> Session | None:
        if not is_session_id(session_id):
            return None
        for _ in range(_TRIES):
            record, _line = await self._records.read(session_id)
            if record.stored is None or self._cache.has_ended(session_id):
                return None
            try:
                old, proof = opened(self._ring, session_id, record, self.kind)
            except (Damaged, ValueError):
                return None  # whoever reads it says so
            session = changed(old, change)
            amended = await self._records.amend(
                session_id, encode_session(self._ring, session, proof, self.kind), record.stored
            )
            if amended is None:
                return None
            if amended:
                self._cache.changed(session_id)  # as will be reported in a moment
                return self._cache.adopt(session)
        raise StoreUnavailable("an app password is changed by others all the time")
