"""Discord asked who is in a guild: over real HTTP, on a fast clock, on good days and on bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.discord import Discord
from proxy.errors import DiscordRefused, DiscordUnavailable
from proxy.membership import Doubt, Member
from proxy.sections import DiscordSettings
from tests.discord_stand import ADA, BOSS, DEV, EVE, GUILD, OPS, OTHER_GUILD, TOKEN, Clock, DiscordStand, member


class Bench:
    """A stand-in Discord, and somebody who asks it."""

    def __init__(self, stand: DiscordStand, clock: Clock, token: str) -> None:
        self.stand = stand
        self.clock = clock
        settings = DiscordSettings.model_validate({"bot_token": token, "api": stand.url})
        self.discord = Discord(settings, frozenset({GUILD}), clock=clock, sleep=clock.sleep)

    async def learn(self, user: str = ADA, guild: str = GUILD) -> Member | Doubt | None:
        await self.discord.learn([guild], user)
        return self.discord.peek(guild, user)

    async def roles(self) -> frozenset[str]:
        found = await self.learn()
        assert isinstance(found, Member)
        return found.roles

    async def idle(self) -> None:
        """Let what goes on in the background come to its end."""
        while self.discord._asking:
            await asyncio.gather(*self.discord._asking.values())


@contextlib.asynccontextmanager
async def bench(token: str = TOKEN) -> AsyncIterator[Bench]:
    clock = Clock()
    stand = DiscordStand(clock)
    async with stand.running():
        it = Bench(stand, clock, token)
        try:
            yield it
        finally:
            await it.discord.close()


def run(conversation: Callable[[Bench], Awaitable[None]], token: str = TOKEN) -> None:
    async def hold() -> None:
        async with bench(token) as it:
            await conversation(it)

    asyncio.run(asyncio.wait_for(hold(), 60))


def test_members_strangers_and_owners() -> None:
    async def conversation(it: Bench) -> None:
        assert it.discord.peek(GUILD, ADA) is Doubt.ASK
        assert it.stand.asked == [], "a look asks nobody"
        found = await it.learn()
        assert isinstance(found, Member)
        assert (found.roles, found.owner, found.pending, found.joined_at) == (
            frozenset({OPS}),
            False,
            False,
            1_577_836_800.0,
        )
        assert await it.learn(EVE) is None
        boss = await it.learn(BOSS)
        assert isinstance(boss, Member)
        assert boss.owner
        before = len(it.stand.asked)
        assert await it.learn() == found
        assert len(it.stand.asked) == before

    run(conversation)


def test_many_who_want_to_know_ask_once() -> None:
    async def conversation(it: Bench) -> None:
        await asyncio.gather(*(it.discord.learn([GUILD], ADA) for _ in range(30)))
        assert len([path for path in it.stand.asked if path.endswith(ADA)]) == 1

    run(conversation)


def test_a_role_that_is_taken_away_is_gone_within_the_ttl_while_somebody_looks() -> None:
    async def conversation(it: Bench) -> None:
        assert await it.roles() == {OPS}
        it.stand.members[GUILD, ADA] = member(DEV)
        for _ in range(12):
            it.clock.now += 5
            assert isinstance(it.discord.peek(GUILD, ADA), Member), "nobody is kept waiting"
            await it.idle()
        assert it.discord.peek(GUILD, ADA) == Member(frozenset({DEV}), 1_577_836_800.0)
        assert len([path for path in it.stand.asked if path.endswith(ADA)]) <= 3

    run(conversation)


def test_what_is_older_than_the_ttl_is_asked_first() -> None:
    async def conversation(it: Bench) -> None:
        assert await it.roles() == {OPS}
        it.stand.members.clear()
        it.clock.now += 61
        assert it.discord.peek(GUILD, ADA) is Doubt.ASK
        assert await it.learn() is None

    run(conversation)


def test_an_hour_without_discord() -> None:
    """The last answer counts for its grace, then nobody can tell; nobody hammers, and all is well afterwards."""

    async def conversation(it: Bench) -> None:
        assert await it.roles() == {OPS}
        it.stand.down = True
        asked = len(it.stand.asked)
        for minute in range(60):
            it.clock.now += 60
            await it.discord.learn([GUILD], ADA)
            found = it.discord.peek(GUILD, ADA)
            await it.idle()
            if minute < 15:
                assert isinstance(found, Member), minute
            elif minute > 16:
                assert found is Doubt.LOST, minute
        assert await it.learn(EVE) is Doubt.LOST
        for _ in range(100):
            await it.learn(EVE)
        assert len(it.stand.asked) - asked < 130
        it.stand.down = False
        it.clock.now += 6
        assert await it.roles() == {OPS}

    run(conversation)


@pytest.mark.parametrize("everything", [False, True])
def test_a_storm_of_429s_is_sat_out(everything: bool) -> None:
    async def conversation(it: Bench) -> None:
        it.stand.storm, it.stand.global_limit = 5, everything
        found: Any = Doubt.LOST
        for _ in range(100):
            found = await it.learn()
            if found is not Doubt.LOST:
                break
            it.clock.now += 1
        assert isinstance(found, Member)
        assert it.stand.unheard == [], "who does not listen is shut out for longer"

    run(conversation)


def test_a_bucket_that_is_empty_is_waited_for() -> None:
    async def conversation(it: Bench) -> None:
        it.stand.limit, it.stand.window = 2, 2.0
        for number in range(8):
            assert await it.learn(str(10**17 + 500 + number)) is None
        assert it.stand.unheard == []
        assert sum(it.clock.slept) >= 5
        it.stand.window = 60.0
        it.clock.now += 100
        for number in range(3):
            found = await it.learn(str(10**17 + 900 + number))
        assert found is Doubt.LOST, "people are not kept waiting for a minute"
        assert it.stand.unheard == []

    run(conversation)


def test_a_token_that_is_not_taken_any_more_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        assert await it.roles() == {OPS}
        it.stand.tokens.clear()
        it.clock.now += 61
        with caplog.at_level(logging.ERROR):
            assert await it.learn() is Doubt.LOST
        assert "token" in caplog.text
        assert TOKEN not in caplog.text
        asked = len(it.stand.asked)
        for _ in range(10):
            assert await it.learn(EVE) is Doubt.LOST
            it.clock.now += 5
        assert len(it.stand.asked) == asked
        it.stand.tokens.add(TOKEN)
        it.clock.now += 61
        assert await it.roles() == {OPS}
        assert TOKEN not in repr(it.discord._settings)

    run(conversation)


def test_a_guild_without_the_bot_has_no_members() -> None:
    async def conversation(it: Bench) -> None:
        assert await it.learn(guild=OTHER_GUILD) is Doubt.LOST
        it.stand.forbidden.add(GUILD)
        assert await it.learn() is Doubt.LOST
        it.stand.forbidden.clear()
        it.clock.now += 61
        assert await it.roles() == {OPS}

    run(conversation)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"", Doubt.LOST),
        (b"<html>", Doubt.LOST),
        (b"[]", Doubt.LOST),
        (b"null", Doubt.LOST),
        (b"[" * 100_000, Doubt.LOST),
        (b'{"x":"' + b"x" * (1 << 20) + b'"}', Doubt.LOST),
        (b"{}", Member()),
        (json.dumps({"roles": OPS}).encode(), Member()),
        (json.dumps({"roles": [OPS, 5, None]}).encode(), Member(frozenset({OPS}))),
        (json.dumps({"roles": [], "pending": True}).encode(), Member(pending=True)),
        (json.dumps({"pending": "yes", "joined_at": "yesterday"}).encode(), Member()),
        (json.dumps({"joined_at": "1970-01-01T00:01:00"}).encode(), Member(joined_at=60.0)),
        (json.dumps({"joined_at": 5, "new_field": {"a": []}}).encode(), Member()),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_whatever_it_says(answer: bytes, expected: Member | Doubt) -> None:
    async def conversation(it: Bench) -> None:
        it.stand.answer = answer
        assert await it.learn() == expected

    run(conversation)


def test_nobody_listens() -> None:
    async def conversation() -> None:
        settings = DiscordSettings.model_validate({"bot_token": TOKEN, "api": "http://127.0.0.1:9"})
        discord = Discord(settings)
        await discord.learn([GUILD], ADA)
        assert discord.peek(GUILD, ADA) is Doubt.LOST
        with pytest.raises(DiscordUnavailable):
            await discord.check(GUILD)
        await discord.close()

    asyncio.run(conversation())


def test_a_check_names_the_guild_or_the_trouble() -> None:
    async def conversation(it: Bench) -> None:
        assert await it.discord.check(GUILD) == "The guild"
        it.stand.guilds[GUILD]["name"] = None
        assert await it.discord.check(GUILD) == GUILD
        with pytest.raises(DiscordRefused, match="not in guild"):
            await it.discord.check(OTHER_GUILD)

    run(conversation)


def test_closing_stops_what_is_being_asked() -> None:
    async def conversation(it: Bench) -> None:
        asking = asyncio.create_task(it.discord.learn([GUILD], ADA))
        await asyncio.sleep(0)
        await it.discord.close()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(conversation)


def test_an_owner_who_cannot_be_told_leaves_it_open() -> None:
    async def conversation(it: Bench) -> None:
        it.stand.guilds[GUILD]["owner_id"] = 5
        found = await it.learn(BOSS)
        assert isinstance(found, Member)
        assert not found.owner
        assert await it.learn(ADA) is not None
        assert len([path for path in it.stand.asked if path == f"guilds/{GUILD}"]) == 1

    run(conversation)
