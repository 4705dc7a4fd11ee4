"""Who is in which Discord guild, with which roles: asked with a bot's token, remembered for a while.

`peek` answers at once from what this process knows, and has what grows old asked again in the background, so that a role that
is taken away counts within `ttl` while somebody is there. `learn` waits for the answer. While Discord cannot be asked the last
answer counts for `grace`; after that, or when Discord refuses the token, nobody can tell, and whoever needs a guild is out.

Of several workers one asks, and the others hear of it (hearsay.py).
"""

from __future__ import annotations

import asyncio
import http.cookiejar
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from proxy.errors import DiscordRefused, DiscordUnavailable
from proxy.hearsay import Hearsay, Word
from proxy.membership import Doubt, Member, member_from
from proxy.ratelimits import RateLimits
from proxy.sections import DiscordSettings

_REQUEST_SECONDS: Final = 5.0
_PATIENCE: Final = 3.0  # seconds a request may be held back for a rate limit; people are waiting
_PAUSE: Final = 5.0  # seconds without a question after one that failed
_REFUSED_PAUSE: Final = 60.0  # after a refused token: Discord shuts out addresses that go on with one
_TURN_SECONDS: Final = 0.05  # between two looks at whether the worker that asks has been answered
_TURNS: Final = 160  # looks, before a worker asks for itself
_OWNER_SECONDS: Final = 600.0  # guilds hardly ever change hands
_ANSWER_BYTES: Final = 1 << 20
_REMEMBERED: Final = 100_000
_NO_MEMBER: Final = frozenset((10007, 10013))  # Discord's codes: unknown member, unknown user
_NO_GUILD: Final = 10004
_log = logging.getLogger("postern.discord")


@dataclass(slots=True)
class _Entry:
    """What is known of one person in one guild. Times on the clock given."""

    member: Member | None = None
    known_at: float | None = None  # when Discord last said so; None: it has not, or it counts no longer
    failed_at: float | None = None  # when asking failed, if it has since

    def take(self, word: Word, now: float, margin: float) -> bool:
        """Believe what another worker has heard, if that is news by more than `margin`; whether it was."""
        last = max((at for at in (self.known_at, self.failed_at) if at is not None), default=-math.inf)
        if now - word.age <= last + margin:
            return False
        if word.refused:
            self.known_at = None
        elif word.known is not None and (self.known_at is None or now - word.known > self.known_at):
            self.member, self.known_at = word.member, now - word.known
        self.failed_at = None if word.failed is None else now - word.failed
        return True

    def word(self, now: float, *, refused: bool) -> Word:
        """What is known, for other workers."""
        known, failed = (None if at is None else now - at for at in (self.known_at, self.failed_at))
        return Word(self.member, known, failed, refused)


class Discord:
    """Guild memberships, as far as they are known."""

    def __init__(
        self,
        settings: DiscordSettings,
        owned: frozenset[str] = frozenset(),
        hearsay: Hearsay | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`owned`: the guilds of whose owners rules speak; `hearsay`: what other workers know, where there may be any.

        `clock`, `sleep`, `transport` are replaced in tests.
        """
        self._settings = settings
        self._owned = owned
        self._hearsay = hearsay
        self._clock = clock
        self._sleep = sleep
        self._limits = RateLimits()
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._owners: dict[str, tuple[str | None, float]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refused_until: dict[str, float] = {}  # guild -> when it may be asked about again; "" stands for all
        self._client = httpx2.AsyncClient(
            transport=transport,
            timeout=_REQUEST_SECONDS,
            follow_redirects=False,
            cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[])),
            headers={
                "Authorization": f"Bot {settings.bot_token.get_secret_value()}",
                "User-Agent": "DiscordBot (postern, 1)",
                "Accept-Encoding": "identity",
            },
        )

    def peek(self, guild: str, user: str) -> Member | Doubt | None:
        """What is known of `user` in `guild`; None for somebody who is no member. Needs a running event loop."""
        now, key = self._clock(), (guild, user)
        entry = self._entries.get(key)
        if entry is None:
            return Doubt.LOST if self._paused(guild, now) else Doubt.ASK
        if entry.known_at is not None:
            age = now - entry.known_at
            if age >= self._settings.ttl / 2 and self._may_ask(entry, guild, now):
                self._ask(key)  # nobody waits for it
            if age < self._settings.ttl + (self._settings.grace if entry.failed_at is not None else 0):
                return entry.member
        return Doubt.ASK if self._may_ask(entry, guild, now) else Doubt.LOST

    async def learn(self, guilds: Iterable[str], user: str) -> None:
        """Ask Discord about `user` in those of `guilds` where that has to be asked. Never raises for Discord's sake."""
        asked = [self._ask((guild, user)) for guild in guilds if self.peek(guild, user) is Doubt.ASK]
        for task in asked:
            await asyncio.shield(task)  # others may wait for it too

    async def check(self, guild: str) -> str:
        """The name of `guild`. Raises DiscordUnavailable; DiscordRefused for a bad token or a guild the bot is not in."""
        status, body = await self._get(f"/guilds/{guild}", guild)
        if status == 404:
            raise DiscordRefused(f"the bot is not in guild {guild}")
        if status != 200:
            raise DiscordUnavailable(f"an unexpected answer with status {status}")
        name = body.get("name")
        return name if isinstance(name, str) else guild

    async def close(self) -> None:
        """Stop asking, and let go of the connections."""
        for task in list(self._asking.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._client.aclose()

    def _paused(self, guild: str, now: float) -> bool:
        return any(self._refused_until.get(name, now) > now for name in ("", guild))

    def _may_ask(self, entry: _Entry, guild: str, now: float) -> bool:
        return (entry.failed_at is None or now - entry.failed_at >= _PAUSE) and not self._paused(guild, now)

    def _ask(self, key: tuple[str, str]) -> asyncio.Task[None]:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.get_running_loop().create_task(self._refresh(key))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return task

    async def _refresh(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key, None) or _Entry()
        self._entries[key] = entry  # the last in line to be forgotten
        if len(self._entries) > _REMEMBERED:
            self._entries.pop(next(iter(self._entries)))
        if self._hearsay is None:
            await self._find_out(key, entry)
        elif not await self._hear(self._hearsay, key, entry):
            await self._find_out_for_all(self._hearsay, key, entry)

    async def _find_out(self, key: tuple[str, str], entry: _Entry) -> bool:
        """Ask Discord; True when it refuses to say."""
        try:
            entry.member = await self._member(*key)
        except DiscordRefused as error:
            entry.known_at, entry.failed_at = None, self._clock()
            _log.error("Discord refuses: %s", error)
            return True
        except DiscordUnavailable as error:
            entry.failed_at = self._clock()
            _log.warning("Discord cannot be asked: %s", error)
        else:
            entry.known_at, entry.failed_at = self._clock(), None
        return False

    async def _find_out_for_all(self, hearsay: Hearsay, key: tuple[str, str], entry: _Entry) -> None:
        """Ask Discord when it is this worker's turn, and tell the others; or hear of it from the one whose turn it was."""
        mark = await hearsay.claim(*key)
        for _ in range(_TURNS):
            if mark is not None:
                break
            await asyncio.sleep(_TURN_SECONDS)
            if await self._hear(hearsay, key, entry):
                return
            mark = await hearsay.claim(*key)
        try:
            if await self._hear(hearsay, key, entry):  # answered between the look and the claim
                return
            refused = await self._find_out(key, entry)
            await hearsay.tell(*key, entry.word(self._clock(), refused=refused))
        finally:
            await hearsay.release(*key, mark or "")

    async def _hear(self, hearsay: Hearsay, key: tuple[str, str], entry: _Entry) -> bool:
        """Take in what another worker has heard; whether that spares this one the question."""
        word, now = await hearsay.heard(*key), self._clock()
        # What this worker has told comes back by other clocks: it is no news for being a moment younger.
        if word is None or not entry.take(word, now, min(1.0, self._settings.ttl / 4)):
            return False
        # What is older has to be asked again anyway, and might be too old when it is looked at.
        known, failed = word.known, word.failed
        return (known is not None and known < self._settings.ttl / 2) or (failed is not None and failed < _PAUSE)

    async def _member(self, guild: str, user: str) -> Member | None:
        status, body = await self._get(f"/guilds/{guild}/members/{user}", guild)
        if status == 404:
            if body.get("code") == _NO_GUILD:
                await self._refused(guild)
                raise DiscordRefused(f"the bot is not in guild {guild}")
            if body.get("code") in _NO_MEMBER:
                return None
        if status != 200:
            raise DiscordUnavailable(f"an unexpected answer with status {status}")
        owner = guild in self._owned and await self._owner(guild) == user
        return member_from(body, owner=owner)

    async def _owner(self, guild: str) -> str | None:
        owner, asked_at = self._owners.get(guild, (None, None))
        if asked_at is None or self._clock() - asked_at >= _OWNER_SECONDS:
            status, body = await self._get(f"/guilds/{guild}", guild)
            if status != 200:
                raise DiscordUnavailable(f"an unexpected answer with status {status}")
            found = body.get("owner_id")
            owner = found if isinstance(found, str) else None
            self._owners[guild] = owner, self._clock()
        return owner

    async def _get(self, path: str, guild: str) -> tuple[int, dict[str, Any]]:
        """Ask Discord for `path`; its status, and its body where that is an object."""
        counted = path.rpartition("/")[0]  # a bucket is for a guild, whoever in it is asked about
        await self._heed(counted, guild)
        wait = self._limits.wait(counted, self._clock())
        if wait > _PATIENCE:
            raise DiscordUnavailable(f"its rate limit is reached for {wait:.0f} s")
        while wait > 0:
            await self._sleep(wait)
            wait = self._limits.wait(counted, self._clock())
        self._limits.spend(counted, self._clock())
        status, headers, body = await self._answer(path)
        self._limits.learn(counted, status, headers, self._clock())
        if status in (401, 403):
            await self._refused("" if status == 401 else guild)
            raise DiscordRefused(
                "the bot's token is not valid" if status == 401 else f"the bot may not see guild {guild}"
            )
        if status == 429:
            if self._hearsay is not None:
                everything = headers.get("x-ratelimit-global", "").lower() == "true"
                seconds = self._limits.wait(counted, self._clock())
                await self._hearsay.hush("limit" if everything else f"limit {counted}", seconds)
            raise DiscordUnavailable("its rate limit is reached")
        return status, body

    async def _heed(self, counted: str, guild: str) -> None:
        """Keep quiet where other workers were told to. Raises DiscordRefused where the bot is not welcome."""
        if self._hearsay is None:
            return
        reasons = ("limit", f"limit {counted}", "refused", f"refused {guild}")
        silences = await asyncio.gather(*map(self._hearsay.silence, reasons))
        now = self._clock()
        for path, seconds in zip((None, counted), silences[:2], strict=True):
            if seconds > 0:
                self._limits.hold(path, seconds, now)
        for name, seconds in zip(("", guild), silences[2:], strict=True):
            if seconds > 0:
                self._refused_until[name] = now + seconds
                raise DiscordRefused("another worker was refused a moment ago")

    async def _refused(self, guild: str) -> None:
        """Leave `guild` alone for a while, or all of them ("")."""
        self._refused_until[guild] = self._clock() + _REFUSED_PAUSE
        if self._hearsay is not None:
            await self._hearsay.hush(f"refused {guild}".rstrip(), _REFUSED_PAUSE)

    async def _answer(self, path: str) -> tuple[int, dict[str, str], dict[str, Any]]:
        received = bytearray()
        try:
            async with (
                asyncio.timeout(_REQUEST_SECONDS),
                self._client.stream("GET", self._settings.api + path) as response,
            ):
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > _ANSWER_BYTES:
                        raise DiscordUnavailable("its answer is too long")
                headers = {name.lower(): value for name, value in response.headers.items()}
        except TimeoutError:
            raise DiscordUnavailable(f"no answer within {_REQUEST_SECONDS:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            raise DiscordUnavailable(type(error).__name__) from None
        try:
            body = json.loads(received)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            if response.status_code == 200:
                raise DiscordUnavailable("its answer is not JSON")
            body = {}
        return response.status_code, headers, body
