"""What the other workers have heard of Discord: read before it is asked, told when it has answered.

However many workers and hosts there are, one of them asks about a person in a guild, and the rest take its word: the answer
itself, that there was none, that the bot is not welcome, how long to keep quiet. All of it goes through the session store, sealed
and bound to its name, because a role opens doors: whoever can write to Redis can neither make one up nor move somebody else's.
Names are hashed with a key: they show up in monitors, and who is in which guild should not.

An age is counted by two clocks, Redis's and the workers', and the greater one holds: what was heard can be made older, not
younger.
When the store does not answer there is no hearsay, and each worker asks for itself, as one that is alone does.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.errors import StoreUnavailable, Unsealable
from proxy.membership import Member
from proxy.sealing import KeyRing
from proxy.sections import DiscordSettings

CLAIM_SECONDS: Final = 20.0  # longer than one question takes with all that it may have to wait for
_UNHEARD_SECONDS: Final = 2.0  # without a word to the store after it has not answered: people are waiting
_PURPOSE: Final = "discord"


class Board(Protocol):
    """Where workers leave word for each other; see `session_store.Board`."""

    async def recall(self, name: str) -> tuple[bytes, float] | None:
        """What was left under `name`, and for how many more seconds."""

    async def remember(self, name: str, value: bytes, ttl: float) -> None:
        """Leave `value` there for `ttl` seconds."""

    async def claim(self, name: str, ttl: float) -> str | None:
        """Claim `name`; None when it is taken."""

    async def release(self, name: str, mark: str) -> None:
        """Give a claim back."""


@dataclass(frozen=True, slots=True)
class Word:
    """What was heard of one person in one guild. Times are ages in seconds, None for what has not happened."""

    member: Member | None
    known: float | None  # since Discord said so
    failed: float | None = None  # since it was asked in vain, if that came later
    refused: bool = False  # in vain because it would not say: what was known counts no longer

    @property
    def age(self) -> float:
        """Since the last of it happened."""
        return min(age for age in (self.known, self.failed) if age is not None)


class Hearsay:
    """The word that workers pass on. Never raises for the store's sake."""

    def __init__(
        self,
        board: Board,
        keyring: KeyRing,
        settings: DiscordSettings,
        owned: frozenset[str] = frozenset(),
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`owned`: the guilds whose owner is asked for; `clock` gives epoch seconds."""
        self._board = board
        self._ring = keyring
        self._clock = clock
        self._owned = owned
        self._kept = settings.ttl + settings.grace
        # Another bot, or another Discord, may know other things: their words do not mix.
        self._about = (settings.api, settings.bot_token.get_secret_value())
        self._unheard_until = 0.0  # time.monotonic()

    async def heard(self, guild: str, user: str) -> Word | None:
        """The last word on `user` in `guild`; None when there is none, or none that can be believed."""
        found = await self._read(self._person(guild, user))
        return None if found is None else _word(found[0], max(0.0, *found[1:]))

    async def tell(self, guild: str, user: str, word: Word) -> None:
        """Pass a word on, in the place of the one before."""
        body = {"k": word.known, "f": word.failed, "x": word.refused, "m": _written(word.member)}
        await self._write(self._person(guild, user), body, self._kept)

    async def silence(self, reason: str) -> float:
        """For how many more seconds nobody shall ask, for this reason; 0 when somebody may."""
        found = await self._read(self._name("silence", reason))
        if found is None:
            return 0.0
        body, *passed = found
        seconds: float = body["s"] - max(0.0, min(passed))  # here it is the shorter time that is safe
        return max(0.0, seconds)

    async def hush(self, reason: str, seconds: float) -> None:
        """Have nobody ask for so many seconds."""
        if seconds > 0:
            await self._write(self._name("silence", reason), {"s": float(seconds)}, seconds)

    async def claim(self, guild: str, user: str) -> str | None:
        """Claim the right to ask: a mark for `release`, None while another worker has it. Without the store everybody has."""
        if self._unheard():
            return ""
        try:
            return await self._board.claim(self._person(guild, user), CLAIM_SECONDS)
        except StoreUnavailable:
            self._lose_touch()
            return ""

    async def release(self, guild: str, user: str, mark: str) -> None:
        """Give the right back."""
        if not mark or self._unheard():
            return
        try:
            await self._board.release(self._person(guild, user), mark)
        except StoreUnavailable:
            self._lose_touch()

    def _person(self, guild: str, user: str) -> str:
        # A worker that needs not know who owns the guild has not asked: its word on that is none for one that does.
        return self._name("member", guild, user, "owner" if guild in self._owned else "")

    def _name(self, *parts: str) -> str:
        digest = self._ring.digest(_PURPOSE, "\0".join((*self._about, *parts)).encode())
        return "discord:" + base64.urlsafe_b64encode(digest[:18]).decode()

    async def _read(self, name: str) -> tuple[dict[str, Any], float, float] | None:
        """What was left under `name`, and for how long it has been there: as Redis counts, and as our clocks do."""
        if self._unheard():
            return None
        try:
            found = await self._board.recall(name)
        except StoreUnavailable:
            self._lose_touch()
            return None
        if found is None:
            return None
        sealed, left = found
        try:
            body = json.loads(self._ring.open(_PURPOSE, sealed, context=name.encode()))
            return body, body["l"] - left, self._clock() - body["w"]
        except (Unsealable, ValueError, LookupError, TypeError):
            return None  # another key's, another version's, or nobody's

    async def _write(self, name: str, body: dict[str, Any], ttl: float) -> None:
        if self._unheard():
            return
        plain = json.dumps({**body, "w": self._clock(), "l": ttl}, separators=(",", ":")).encode()
        try:
            await self._board.remember(name, self._ring.seal(_PURPOSE, plain, context=name.encode()), ttl)
        except StoreUnavailable:
            self._lose_touch()

    def _unheard(self) -> bool:
        return time.monotonic() < self._unheard_until

    def _lose_touch(self) -> None:
        self._unheard_until = time.monotonic() + _UNHEARD_SECONDS


def _written(member: Member | None) -> list[Any] | None:
    return None if member is None else [sorted(member.roles), member.joined_at, member.pending, member.owner]


def _word(body: dict[str, Any], passed: float) -> Word | None:
    """Read what `tell` has written, `passed` seconds later; None for what is no word at all."""
    known, failed, member, refused = (body.get(key) for key in "kfmx")
    if known is failed is None:
        return None
    found = None
    if member is not None:
        roles, joined_at, pending, owner = member
        found = Member(frozenset(roles), joined_at, pending, owner)
    aged = [None if age is None else age + passed for age in (known, failed)]
    return Word(found, aged[0], aged[1], refused is True)
