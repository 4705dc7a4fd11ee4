"""One worker asks Discord, and all of them know: over a real Redis and real HTTP, on a fast clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from proxy import discord as discord_module
from proxy import hearsay as hearsay_module
from proxy.discord import Discord
from proxy.errors import StoreUnavailable
from proxy.hearsay import Hearsay, Word
from proxy.membership import Doubt, Member
from proxy.sealing import KeyRing
from proxy.sections import DiscordSettings
from proxy.serve import build
from proxy.session_redis import RedisStore
from proxy.session_servers import Reach
from proxy.session_store import Board
from tests.discord_stand import ADA, BOSS, DEV, EVE, GUILD, OPS, OTHER_GUILD, TOKEN, Clock, DiscordStand, member
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import RING, store_at
from tests.relay_world import relay_world, settings_for

OWNED = frozenset({GUILD})
MEMBER = Member(frozenset({OPS, DEV}), 1_577_836_800.0, pending=False, owner=True)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _forgotten(server: RedisServer) -> None:
    server.do("FLUSHALL")
    server.do("CONFIG", "RESETSTAT")


class FastBoard:
    """The words in a Redis whose time is that of `clock`."""

    def __init__(self, records: Board, clock: Clock, laid: dict[str, tuple[float, float]]) -> None:
        self._records = records
        self._clock = clock
        self._laid = laid  # name -> when, and for how long; for all workers
        self.claim = records.claim
        self.release = records.release

    async def remember(self, name: str, value: bytes, ttl: float) -> None:
        await self._records.remember(name, value, ttl)
        self._laid[name] = self._clock.now, ttl

    async def recall(self, name: str) -> tuple[bytes, float] | None:
        found = await self._records.recall(name)
        if found is None or name not in self._laid:
            return found
        at, ttl = self._laid[name]
        left = ttl - (self._clock.now - at)
        return (found[0], left) if left > 0 else None


class Workers:
    """Several workers on one Redis, with one Discord."""

    def __init__(self, server: RedisServer, stand: DiscordStand, clock: Clock) -> None:
        self.server = server
        self.stand = stand
        self.clock = clock
        self.all: list[Discord] = []
        self.stores: list[RedisStore] = []
        self.laid: dict[str, tuple[float, float]] = {}

    def settings(self, **more: object) -> DiscordSettings:
        return DiscordSettings.model_validate({"bot_token": TOKEN, "api": self.stand.url, **more})

    def board(self, ring: KeyRing = RING) -> FastBoard:
        store = store_at(self.server.url, ring=ring, reach=Reach(connect_timeout=0.5, command_timeout=0.5))
        self.stores.append(store)
        return FastBoard(store._records, self.clock, self.laid)

    def hearsay(self, ring: KeyRing = RING, owned: frozenset[str] = OWNED, **more: object) -> Hearsay:
        return Hearsay(self.board(ring), ring, self.settings(**more), owned, clock=self.clock)

    def hire(self, count: int, ring: KeyRing = RING, clock: Clock | None = None) -> list[Discord]:
        """More workers; with a `clock` of their own when they are on another host."""
        clock = clock or self.clock
        for _ in range(count):
            heard = Hearsay(self.board(ring), ring, self.settings(), OWNED, clock=clock)
            self.all.append(Discord(self.settings(), OWNED, heard, clock=clock, sleep=clock.sleep))
        return self.all[-count:]

    async def learn(self, worker: Discord, user: str = ADA, guild: str = GUILD) -> Member | Doubt | None:
        await worker.learn([guild], user)
        return worker.peek(guild, user)

    async def idle(self) -> None:
        """Let what goes on in the background come to its end."""
        while tasks := [task for worker in self.all for task in worker._asking.values()]:
            await asyncio.gather(*tasks)

    def about(self, user: str) -> int:
        """How often Discord was asked about somebody."""
        return len([path for path in self.stand.asked if path.endswith(f"members/{user}")])


@contextlib.asynccontextmanager
async def workers(server: RedisServer) -> AsyncIterator[Workers]:
    clock = Clock()
    stand = DiscordStand(clock)
    async with stand.running():
        them = Workers(server, stand, clock)
        try:
            yield them
        finally:
            # redis-py drops a connection whose handshake is cancelled without closing it: a later test would be blamed.
            await them.idle()
            for worker in them.all:
                await worker.close()
            for store in them.stores:
                await store.close()


def run(server: RedisServer, conversation: Callable[[Workers], Awaitable[None]]) -> None:
    async def hold() -> None:
        async with workers(server) as them:
            await conversation(them)

    asyncio.run(asyncio.wait_for(hold(), 120))


def test_all_workers_together_ask_once(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        them.hire(4)
        found = await asyncio.gather(*(them.learn(worker) for worker in them.all for _ in range(5)))
        assert all(isinstance(it, Member) and it.roles == {OPS} for it in found)
        assert them.about(ADA) == 1
        assert await asyncio.gather(*(them.learn(worker, EVE) for worker in them.all)) == [None] * 4
        assert them.about(EVE) == 1
        owners = await asyncio.gather(*(them.learn(worker, BOSS) for worker in them.all))
        assert all(isinstance(it, Member) and it.owner for it in owners)
        late = them.hire(1)[0]
        assert isinstance(await them.learn(late), Member)
        assert them.about(ADA) == 1, "who starts later hears of it as well"

    run(server, conversation)


def test_a_role_that_is_taken_away_is_gone_from_every_worker_within_the_ttl(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        for worker in them.hire(3):
            assert isinstance(await them.learn(worker), Member)
            them.clock.now += 7
        them.stand.members[GUILD, ADA] = member(DEV)
        for _ in range(12):
            them.clock.now += 5
            for worker in them.all:
                await them.learn(worker)
            await them.idle()
        for worker in them.all:
            assert worker.peek(GUILD, ADA) == Member(frozenset({DEV}), 1_577_836_800.0)
        assert them.about(ADA) <= 4, "one of them asks each time, not each of them"

    run(server, conversation)


def test_hearsay_is_as_old_as_what_was_heard(server: RedisServer) -> None:
    """Passed on from worker to worker, an answer must not become young again."""

    async def conversation(them: Workers) -> None:
        one, two = them.hire(2)
        assert isinstance(await them.learn(one), Member)
        them.clock.now += 25
        assert isinstance(await them.learn(two), Member)
        assert them.about(ADA) == 1
        them.clock.now += 36
        assert two.peek(GUILD, ADA) is Doubt.ASK
        assert isinstance(await them.learn(one), Member)
        await them.idle()
        assert them.about(ADA) == 2
        them.clock.now += 59.999
        late = them.hire(1)[0]
        assert isinstance(await them.learn(late), Member)
        assert them.about(ADA) == 3, "what is about to be too old is asked anew at once"

    run(server, conversation)


def test_an_hour_without_discord_is_one_workers_trouble(server: RedisServer) -> None:
    """Together they ask no more often than one that is alone would, and all live on the last answer for its grace."""

    async def conversation(them: Workers) -> None:
        for worker in them.hire(3):
            assert isinstance(await them.learn(worker), Member)
        them.stand.down = True
        asked = len(them.stand.asked)
        for minute in range(60):
            them.clock.now += 60
            for worker in them.all:
                await them.learn(worker)
                await them.idle()
                found = worker.peek(GUILD, ADA)
                if minute < 15:
                    assert isinstance(found, Member), minute
                elif minute > 16:
                    assert found is Doubt.LOST, minute
        assert len(them.stand.asked) - asked <= 61
        late = them.hire(1)[0]
        assert await them.learn(late, EVE) is Doubt.LOST
        them.stand.down = False
        them.clock.now += 6
        for worker in them.all:
            assert isinstance(await them.learn(worker), Member)

    run(server, conversation)


def test_a_worker_that_starts_while_discord_is_silent_lives_on_what_others_heard(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        assert isinstance(await them.learn(them.hire(1)[0]), Member)
        them.stand.down = True
        them.clock.now += 300
        late = them.hire(1)[0]
        assert isinstance(await them.learn(late), Member)
        them.clock.now += 700
        assert await them.learn(late) is Doubt.LOST

    run(server, conversation)


@pytest.mark.parametrize("everything", [False, True])
def test_a_storm_of_429s_is_sat_out_by_all(server: RedisServer, everything: bool) -> None:
    async def conversation(them: Workers) -> None:
        them.hire(3)
        them.stand.storm, them.stand.global_limit = 5, everything
        for _ in range(40):
            found = [await them.learn(worker, str(10**17 + 77 + n)) for n, worker in enumerate(them.all)]
            if Doubt.LOST not in found:
                break
            them.clock.now += 1
        assert found == [None] * 3
        assert them.stand.unheard == [], "one was told to wait, and all of them listen"

    run(server, conversation)


def test_a_refused_token_is_tried_by_one_worker_alone(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(them: Workers) -> None:
        for worker in them.hire(3):
            assert isinstance(await them.learn(worker), Member)
        them.stand.tokens.clear()
        them.clock.now += 61
        asked = len(them.stand.asked)
        with caplog.at_level(logging.ERROR):
            assert [await them.learn(worker) for worker in them.all] == [Doubt.LOST] * 3
            assert [await them.learn(worker, EVE) for worker in them.all] == [Doubt.LOST] * 3
        assert len(them.stand.asked) == asked + 1
        assert TOKEN not in caplog.text
        them.stand.tokens.add(TOKEN)
        them.clock.now += 61
        for worker in them.all:
            assert isinstance(await them.learn(worker), Member)
        assert [await them.learn(worker, guild=OTHER_GUILD) for worker in them.all] == [Doubt.LOST] * 3
        assert len([path for path in them.stand.asked if OTHER_GUILD in path]) == 1

    run(server, conversation)


def test_a_refusal_ends_what_others_still_believed(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        one, two = them.hire(2)
        assert isinstance(await them.learn(one), Member)
        assert isinstance(await them.learn(two), Member)
        them.stand.forbidden.add(GUILD)
        them.clock.now += 40
        one.peek(GUILD, ADA)
        await them.idle()
        assert one.peek(GUILD, ADA) is Doubt.LOST
        two.peek(GUILD, ADA)
        await them.idle()
        assert two.peek(GUILD, ADA) is Doubt.LOST

    run(server, conversation)


def test_whose_turn_it_was_may_die(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discord_module, "_TURN_SECONDS", 0.001)
    monkeypatch.setattr(discord_module, "_TURNS", 5)

    async def conversation(them: Workers) -> None:
        dead = them.hearsay()
        assert await dead.claim(GUILD, ADA)
        worker = them.hire(1)[0]
        assert isinstance(await them.learn(worker), Member), "nobody waits for ever for somebody else"
        assert await dead.claim(GUILD, ADA) is None, "and what was not its own is not given back"

    run(server, conversation)


def test_it_waits_for_whose_turn_it_is(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        other, worker = them.hearsay(), them.hire(1)[0]
        mark = await other.claim(GUILD, ADA)
        assert mark
        asking = asyncio.create_task(them.learn(worker))
        while not them.server.do("INFO", "commandstats").get("cmdstat_set", {}).get("calls", 0) >= 2:
            await asyncio.sleep(0.005)
        await other.tell(GUILD, ADA, Word(MEMBER, 0.0))
        assert await asking == MEMBER
        await other.release(GUILD, ADA, mark)
        assert them.stand.asked == []

    run(server, conversation)


def test_a_host_with_another_time_asks_for_itself_rather_than_believe_too_long(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        ahead, behind = Clock(), Clock()
        ahead.now, behind.now = them.clock.now + 600, them.clock.now - 600
        assert isinstance(await them.learn(them.hire(1)[0]), Member)
        assert isinstance(await them.learn(them.hire(1, clock=ahead)[0]), Member)
        assert them.about(ADA) == 2
        late = them.hire(1, clock=behind)[0]
        assert isinstance(await them.learn(late), Member)
        assert them.about(ADA) == 2
        # By the clock of the one behind no time has passed at all since; Redis knows better.
        them.clock.now += 61
        assert isinstance(await them.learn(them.hire(1, clock=behind)[0]), Member)
        assert them.about(ADA) == 3

    run(server, conversation)


def test_without_redis_each_asks_for_itself(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        them.server = RedisServer()  # one that was never started
        one, two = them.hire(2)
        assert isinstance(await them.learn(one), Member)
        assert isinstance(await them.learn(two), Member)
        assert them.about(ADA) == 2
        them.stand.storm = 1
        assert await them.learn(one, EVE) is Doubt.LOST
        assert await them.learn(one, BOSS) is not Doubt.LOST, "and keeps its own rate limit"
        assert them.stand.unheard == []

    run(server, conversation)


def test_redis_going_away_meanwhile_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as own:

        async def conversation(them: Workers) -> None:
            one, two = them.hire(2)
            assert isinstance(await them.learn(one), Member)
            own.stop()
            assert await them.learn(two, EVE) is None
            assert isinstance(await them.learn(two), Member)
            own.start()
            monkeypatch.setattr(hearsay_module, "_UNHEARD_SECONDS", 0.0)
            for worker in them.all:
                assert worker._hearsay is not None
                worker._hearsay._unheard_until = 0.0
            them.clock.now += 61
            assert isinstance(await them.learn(one), Member)
            asked = them.about(ADA)
            assert isinstance(await them.learn(two), Member)
            assert them.about(ADA) == asked, "they hear of each other again"

        run(own, conversation)


class TestWhatLiesInRedis:
    def test_it_says_nothing_to_who_looks(self, server: RedisServer) -> None:
        async def conversation(them: Workers) -> None:
            await them.learn(them.hire(1)[0])
            keys = them.server.do("KEYS", "*")
            assert keys
            for key in keys:
                value = them.server.do("GET", key)
                assert 0 < them.server.do("PTTL", key) <= 960_000
                for secret in (ADA, GUILD, OPS, TOKEN):
                    assert secret.encode() not in key + value

        run(server, conversation)

    def test_what_is_told_is_what_is_heard(self, server: RedisServer) -> None:
        async def conversation(them: Workers) -> None:
            here, there = them.hearsay(), them.hearsay()
            assert await there.heard(GUILD, ADA) is None
            for word in (
                Word(MEMBER, 3.0),
                Word(None, 1.0),
                Word(Member(), 9.0, 2.0),
                Word(None, None, 1.0, refused=True),
            ):
                await here.tell(GUILD, ADA, word)
                heard = await there.heard(GUILD, ADA)
                assert heard is not None
                assert (heard.member, heard.refused) == (word.member, word.refused)
                assert (heard.known is None, heard.failed is None) == (word.known is None, word.failed is None)
                assert word.age <= heard.age < word.age + 60
            them.clock.now += 100
            heard = await there.heard(GUILD, ADA)
            assert heard is not None
            assert heard.age >= 101
            await here.hush("limit", 7.0)
            assert 0 < await there.silence("limit") <= 7
            them.clock.now += 8
            assert await there.silence("limit") == 0
            await here.hush("other", 0.0)
            assert await there.silence("other") == 0

        run(server, conversation)

    def test_other_guilds_people_bots_keys_and_questions_are_kept_apart(self, server: RedisServer) -> None:
        async def conversation(them: Workers) -> None:
            await them.hearsay().tell(GUILD, ADA, Word(MEMBER, 0.0))
            same = them.hearsay()
            assert await same.heard(GUILD, ADA) is not None
            assert await same.heard(GUILD, EVE) is None
            assert await same.heard(OTHER_GUILD, ADA) is None
            for stranger in (
                them.hearsay(KeyRing([b"x" * 32])),
                them.hearsay(owned=frozenset()),
                them.hearsay(bot_token="another-bots-token-altogether"),
                them.hearsay(api="https://discord.example/api/v10"),
            ):
                assert await stranger.heard(GUILD, ADA) is None

        run(server, conversation)

    def test_nobody_who_can_write_to_redis_can_make_up_a_role(self, server: RedisServer) -> None:
        async def conversation(them: Workers) -> None:
            hearsay = them.hearsay()
            await hearsay.tell(GUILD, ADA, Word(MEMBER, 0.0))
            ada = them.server.do("KEYS", "postern:word:*")[0]
            sealed = them.server.do("GET", ada)
            await hearsay.tell(GUILD, EVE, Word(None, 0.0))
            (eve,) = set(them.server.do("KEYS", "postern:word:*")) - {ada}
            name = eve.decode().removeprefix("postern:word:").encode()
            plain = {"k": 0.0, "f": None, "x": False, "m": [[OPS], None, False, True], "w": them.clock.now, "l": 960.0}
            forgeries = (
                sealed,  # somebody else's
                json.dumps(plain).encode(),
                KeyRing([b"x" * 32]).seal("discord", json.dumps(plain).encode(), context=name),
                RING.seal("session", json.dumps(plain).encode(), context=name),
                sealed[:-1] + bytes((sealed[-1] ^ 1,)),
                RING.seal("discord", b"[]", context=name),
                RING.seal("discord", b"{}", context=name),
                RING.seal("discord", b'{"w":0,"l":960}', context=name),
                b"",
            )
            for forged in forgeries:
                them.server.do("SET", eve, forged, "PX", 960_000)
                assert await hearsay.heard(GUILD, EVE) is None
            them.server.do("DEL", eve)
            them.server.do("LPUSH", eve, "no string")
            assert await hearsay.heard(GUILD, EVE) is None
            # An old answer that is laid down again for longer is as old as it is.
            them.server.do("SET", ada, sealed)
            them.laid.clear()
            them.clock.now += 61
            them.stand.members.clear()
            assert await them.learn(them.hire(1)[0]) is None

        run(server, conversation)


def test_only_workers_that_share_a_store_have_anything_to_tell(server: RedisServer) -> None:
    async def hold() -> None:
        for store, shared in ((server.url, True), ("memory://", False)):
            gateway = build(
                settings_for("http://127.0.0.1:9", POSTERN_SESSION__STORE=store, POSTERN_DISCORD__BOT_TOKEN=TOKEN)
            )
            try:
                assert gateway.front.discord is not None
                assert (gateway.front.discord._hearsay is not None) == shared
            finally:
                await gateway.close()

    asyncio.run(hold())


class LosingBoard:
    """A store that goes away after so many questions."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("gone")

    async def recall(self, _: str) -> None:
        self._ask()

    async def remember(self, *_: object) -> None:
        self._ask()

    async def claim(self, *_: object) -> str:
        self._ask()
        return "mark"

    async def release(self, *_: object) -> None:
        self._ask()


@pytest.mark.parametrize("answers", range(14))
def test_wherever_the_store_goes_away_discord_is_asked(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearsay_module, "_UNHEARD_SECONDS", 600.0)

    async def hold() -> None:
        clock = Clock()
        stand = DiscordStand(clock)
        async with stand.running():
            settings = DiscordSettings.model_validate({"bot_token": TOKEN, "api": stand.url})
            board = LosingBoard(answers)
            heard = Hearsay(board, RING, settings, OWNED, clock=clock)
            worker = Discord(settings, OWNED, heard, clock=clock, sleep=clock.sleep)
            try:
                await worker.learn([GUILD], ADA)
                assert isinstance(worker.peek(GUILD, ADA), Member)
            finally:
                await worker.close()
            assert board.asked <= answers + 4, "who does not answer is left alone for a while"

    asyncio.run(hold())


RULES = f"""
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[discord]
bot_token = "{TOKEN}"
api = "DISCORD"
[[route]]
name = "app"
upstream = "UPSTREAM"
allow = [{{ discord = {{ guild = "{GUILD}", roles = ["{OPS}"] }} }}]
"""


def test_two_gateways_ask_once_and_shut_the_door_together(server: RedisServer) -> None:
    async def conversation(them: Workers) -> None:
        toml = RULES.replace("DISCORD", them.stand.url)
        store = {"POSTERN_SESSION__STORE": server.url}
        async with relay_world(toml, **store) as one, relay_world(toml, **store) as two:
            for world in (one, two):
                knows = world.gateway.front.discord
                assert knows is not None
                assert knows._hearsay is not None
                assert world.gateway.store.board is not None
                knows._clock = knows._hearsay._clock = them.clock
                knows._hearsay._board = FastBoard(world.gateway.store.board, them.clock, them.laid)
                them.all.append(knows)
            cookie = await one.sign_in(discord_id=ADA)
            asking = (
                b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nAccept: application/json\r\nCookie: %b\r\n\r\n" % cookie
            )
            for world in (one, two, one, two):
                assert (await world.ask(asking))[0] == 200
            assert them.about(ADA) == 1
            them.stand.members[GUILD, ADA] = member(DEV)
            for _ in range(12):
                them.clock.now += 5
                for world in (one, two):
                    await world.ask(asking)
                await them.idle()
            assert [(await world.ask(asking))[0] for world in (one, two)] == [403, 403], one.lines() + two.lines()
            assert them.about(ADA) <= 3, them.stand.asked

    run(server, conversation)
