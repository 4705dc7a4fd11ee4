"""Discord guilds through the whole gateway: who may pass, who may no longer, and what happens while Discord is silent."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.discord_stand import ADA, BOSS, DEV, EVE, GUILD, OPS, TOKEN, Clock, DiscordStand, member
from tests.relay_world import World, relay_world, run

TOML = f"""
public_url = "http://localhost:3000"
trusted_proxies = ["127.0.0.1/32"]
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
allow = [
    {{ discord = {{ guild = "{GUILD}", roles = ["{OPS}"] }} }},
    {{ discord = {{ guild = "{GUILD}", owner = true }} }},
    {{ roles = ["admin"] }},
]
open = ["/open"]
[[route]]
name = "not-for-devs"
path = "/not-for-devs"
upstream = "UPSTREAM"
deny = [{{ discord = {{ guild = "{GUILD}", roles = ["{DEV}"] }} }}]
"""
JSON = b"Accept: application/json\r\n"


@contextlib.asynccontextmanager
async def worlds() -> AsyncIterator[tuple[World, DiscordStand]]:
    clock = Clock()
    stand = DiscordStand(clock)
    async with stand.running(), relay_world(TOML.replace("DISCORD", stand.url)) as world:
        discord = world.gateway.front.discord
        assert discord is not None
        discord._clock = clock
        yield world, stand


def conversation(talk: Callable[[World, DiscordStand], Awaitable[None]]) -> None:
    async def hold() -> None:
        async with worlds() as (world, stand):
            await talk(world, stand)

    run(hold())


def asking(cookie: bytes, path: bytes = b"/", fields: bytes = JSON) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost:3000\r\nCookie: %b\r\n%b\r\n" % (path, cookie, fields)


@pytest.mark.parametrize(
    ("who", "path", "status", "reason"),
    [
        (ADA, b"/", 200, "rule"),
        (BOSS, b"/", 200, "rule"),
        (EVE, b"/", 403, "no_rule"),
        (None, b"/", 403, "no_rule"),
        (ADA, b"/not-for-devs", 200, "signed_in"),
        (EVE, b"/not-for-devs", 200, "signed_in"),
        ("100000000000000004", b"/not-for-devs", 403, "deny_rule"),
    ],
)
def test_who_may_pass(who: str | None, path: bytes, status: int, reason: str) -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        stand.members[GUILD, "100000000000000004"] = member(DEV)
        cookie = await world.sign_in(discord_id=who)
        for _ in range(2):  # asked, and remembered
            got, _, body = await world.ask(asking(cookie, path))
            assert got == status
            if status != 200:
                assert json.loads(body)["reason"] == reason
        assert len([one for one in stand.asked if "members" in one]) == (who is not None)
        assert world.lines()[-1]["outcome"] == reason

    conversation(talk)


def test_nobody_waits_for_discord_who_does_not_need_it() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        stand.down = True
        assert (await world.ask(asking(await world.sign_in(discord_id=ADA, roles=("admin",)))))[0] == 200
        assert stand.asked == []

    conversation(talk)


@pytest.mark.parametrize(("who", "told"), [(ADA, True), (BOSS, True), (EVE, False)])
def test_on_what_is_open_discord_is_asked_whether_the_app_may_hear_of_somebody(who: str, *, told: bool) -> None:
    async def talk(world: World, _stand: DiscordStand) -> None:
        cookie = await world.sign_in(discord_id=who)
        for _ in range(2):  # asked, and remembered
            assert (await world.ask(asking(cookie, b"/open/door")))[0] == 200
            assert (b"\r\nX-Forwarded-User: user00000001\r\n" in world.upstream.heads[-1]) is told

    conversation(talk)


def test_what_is_open_is_open_while_discord_is_silent() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        cookie = await world.sign_in(discord_id=ADA)
        stand.down = True
        for _ in range(2):
            assert (await world.ask(asking(cookie, b"/open/door")))[0] == 200
            assert b"user00000001" not in world.upstream.heads[-1]

    conversation(talk)


def test_while_discord_is_silent_those_it_spoke_of_go_on_and_others_are_told() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        known, new = await world.sign_in(discord_id=ADA), await world.sign_in(sub="user00000002", discord_id=BOSS)
        assert (await world.ask(asking(known)))[0] == 200
        stand.down = True
        stand.clock.now += 120
        assert (await world.ask(asking(known)))[0] == 200
        status, head, body = await world.ask(asking(new))
        assert (status, json.loads(body)["reason"]) == (503, "membership_unknown")
        assert b"\r\nretry-after:" in head.lower()
        assert b"set-cookie" not in head.lower()
        status, _, body = await world.ask(asking(new, fields=b"Accept: text/html\r\n"))
        assert status == 503
        assert b"Discord does not say now who is one" in body
        stand.clock.now += 1000
        await world.ask(asking(known))
        assert (await world.ask(asking(known)))[0] == 503
        stand.down = False
        stand.clock.now += 10
        assert (await world.ask(asking(known)))[0] == 200
        assert (await world.ask(asking(new)))[0] == 200

    conversation(talk)


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"pgrade: websocket" in head:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    else:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await reader.read(-1)


@pytest.mark.parametrize("upgrade", [True, False], ids=["tunnel", "stream"])
def test_a_lost_role_ends_what_is_open(upgrade: bool) -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        world.upstream.script = _stream
        cookie = await world.sign_in(discord_id=ADA)
        fields = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if upgrade else b""
        client = await world.connect()
        client.send(asking(cookie, b"/live", fields))
        assert b"\r\n" in await client.head()
        for _ in range(30):  # five minutes in which nothing changes
            stand.clock.now += 10
            world.much_later(0)
            await asyncio.sleep(0.01)
        assert world.upstream.open == 1
        stand.members[GUILD, ADA] = member(DEV)
        passed = 0.0

        def gone() -> bool:
            nonlocal passed
            stand.clock.now += 5
            passed += 5
            world.much_later(0)
            return world.upstream.open == 0

        await world.until(gone)
        assert (await world.ask(asking(cookie)))[0] == 403

    conversation(talk)


def test_open_tunnels_outlive_a_silence_of_discords_for_its_grace() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        world.upstream.script = _stream
        client = await world.connect()
        client.send(
            asking(await world.sign_in(discord_id=ADA), b"/live", b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        )
        await client.head()
        stand.down = True
        for _ in range(80):  # of 900 + 60 seconds
            stand.clock.now += 10
            world.much_later(0)
            await asyncio.sleep(0.005)
        assert world.upstream.open == 1

        def gone() -> bool:
            stand.clock.now += 10
            world.much_later(0)
            return world.upstream.open == 0

        await world.until(gone)

    conversation(talk)


def test_roles_are_groups_where_they_have_a_name() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        settings = world.gateway.settings
        assert settings.discord is not None
        named = settings.discord.model_copy(update={"groups": {DEV: "devs", OPS: "ops, no", "3" * 18: "x"}})
        world.gateway.adopt(settings.model_copy(update={"discord": named}))
        assert world.gateway.front.discord is not None
        world.gateway.front.discord._clock = stand.clock
        stand.members[GUILD, ADA] = member(OPS, DEV)
        cookie = await world.sign_in(discord_id=ADA, roles=("admin",))

        async def told() -> list[bytes]:
            status, _, _ = await world.ask(asking(cookie))
            assert status == 200
            lines = world.upstream.heads[-1].split(b"\r\n")
            return [line for line in lines if line.lower().startswith(b"x-forwarded-groups:")]

        for _ in range(2):
            assert await told() == [b"X-Forwarded-Groups: admin,devs"]
        stand.members[GUILD, ADA] = member(OPS)
        stand.clock.now += 61
        assert await told() == [b"X-Forwarded-Groups: admin"]
        stand.members[GUILD, ADA] = member(DEV, pending=True)
        stand.clock.now += 61
        assert await told() == [b"X-Forwarded-Groups: admin"]
        stand.down = True
        stand.clock.now += 10_000
        assert await told() == [b"X-Forwarded-Groups: admin"], "whoever may pass without Discord does"

    conversation(talk)


def test_forward_auth_asks_as_well() -> None:
    async def talk(world: World, stand: DiscordStand) -> None:
        for who, status in ((ADA, 200), (EVE, 403)):
            cookie = await world.sign_in(discord_id=who)
            question = (
                b"GET /.postern/auth HTTP/1.1\r\nHost: postern\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Proto: http\r\n"
                b"X-Forwarded-Host: localhost:3000\r\nX-Forwarded-Uri: /x\r\nCookie: %b\r\n\r\n" % cookie
            )
            assert (await world.ask(question))[0] == status
        stand.down = True
        stand.clock.now += 2000
        assert (await world.ask(question))[0] == 503

    conversation(talk)


def test_settings_that_change_nothing_about_discord_keep_what_is_known() -> None:
    async def talk(world: World, _: DiscordStand) -> None:
        gateway = world.gateway
        before = gateway.front.discord
        assert before is not None
        gateway.adopt(gateway.settings.model_copy(update={"prefix": "/.other"}))
        assert gateway.front.discord is before
        changed = before._settings.model_copy(update={"ttl": 5.0})
        gateway.adopt(gateway.settings.model_copy(update={"discord": changed}))
        assert gateway.front.discord not in (None, before)
        gateway.adopt(gateway.settings.model_copy(update={"route": gateway.settings.route[1:]}))
        assert gateway.front.discord is not None
        assert gateway.front.discord._owned == frozenset()

    conversation(talk)
