"""App passwords: believed for one route and so long, and only while somebody vouches for their owner."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.app_passwords import AppPasswords, TooLongAgo, TooMany
from proxy.claims import Grant, Identity
from proxy.credentials import Credential, Programs, Rejected, Scheme
from proxy.identity import RelyingParty
from proxy.notices import Notices
from proxy.password_store import IDLE, LIFETIME, MemoryPasswords
from proxy.session import MemoryStore, Session
from proxy.settings import Settings
from proxy.webhooks import Webhook
from tests.gateway_world import ADA, TOKENS, grant_for, settings_for

ROUTES = '[[route]]\nname = "dav"\nupstream = "http://127.0.0.1:9"\napp_passwords = true\n'
NONE = '[[route]]\nname = "dav"\nupstream = "http://127.0.0.1:9"\n'
DAV, GIT = Programs("dav", app_passwords=True), Programs("git", app_passwords=True)
DAY = 86400.0
WAITS = "it waits for its owner"


class Bench:
    """App passwords with the sessions beside them, on one clock."""

    def __init__(self, settings: Settings) -> None:
        self.now = 1_000_000_000.0
        self.store = MemoryPasswords(idle=IDLE, lifetime=LIFETIME, clock=self.clock)
        self.passwords = AppPasswords(settings, self.store, clock=self.clock)
        self.sessions = MemoryStore(idle=1000 * DAY, lifetime=1000 * DAY, clock=self.clock)
        self.sessions.on_vouched(self.passwords.vouched)
        self.cookie = ""

    def clock(self) -> float:
        return self.now

    async def owner(self, identity: Identity = ADA) -> Session:
        grant = replace(grant_for(identity), signed_in_at=self.now)
        session, self.cookie = await self.sessions.create(grant, browser="Firefox", address="192.0.2.1")
        await self.settled()
        return session

    async def settled(self) -> None:
        await self.passwords._chores.settled()

    async def made(self, days: float = 90, name: str = "calendar") -> tuple[Session, str]:
        return await self.passwords.issue(await self.owner(), name, "dav", days * DAY)

    async def shown(self, value: str, programs: Programs = DAV) -> Session | Rejected:
        """What becomes of one: who comes in by it, or why nobody. `peek` must agree with `verify`."""
        credential = Credential(Scheme.PASSWORD, value, programs)
        found = await self.passwords.verify(credential)
        assert self.passwords.peek(credential) == found or isinstance(found, Rejected)
        return Rejected(WAITS) if isinstance(found, Session) and self.passwords.waits(found) else found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(settings_for(tmp_path, routes=ROUTES))


def running(bench: Bench) -> bool:
    """Whether the store is asked to report changes."""
    return bench.passwords._running


def run(conversation: Callable[[], Awaitable[None]]) -> None:
    async def hold() -> None:
        await conversation()

    asyncio.run(hold())


def test_it_is_believed_for_its_route_and_nowhere_else(bench: Bench) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        found = await bench.shown(value)
        assert found is session
        assert (session.via, session.identity, session.signed_in_at) == ("password", ADA, 0.0)
        assert await bench.shown(value, GIT) == Rejected("it was made for another app")
        assert value.startswith("ppw_")
        assert len(value) == 69
        assert value[26:] not in repr(session), "its secret is kept nowhere"
        assert (await bench.made())[1] != value

    run(conversation)


@given(value=st.one_of(st.text(), st.from_regex(r"ppw_[A-Za-z0-9_-]{60,70}", fullmatch=True)))
def test_what_nobody_made_lets_nobody_in(value: str) -> None:
    async def conversation() -> None:
        bench = Bench(_SETTINGS[0])
        assert isinstance(await bench.shown(value), Rejected)

    run(conversation)


_SETTINGS: list[Settings] = []


@pytest.fixture(scope="module", autouse=True)
def _settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    _SETTINGS[:] = [settings_for(tmp_path_factory.mktemp("settings"), routes=ROUTES)]


def test_each_character_of_it_counts(bench: Bench) -> None:
    async def conversation() -> None:
        _, value = await bench.made()
        for at in range(len(value)):
            other = value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]
            assert isinstance(await bench.shown(other), Rejected), at
        for other in (value[:-1], value + "A", value + "\n", " " + value, value.upper(), value.replace("ppw_", "1.")):
            assert isinstance(await bench.shown(other), Rejected)

    run(conversation)


def test_a_cookie_is_no_app_password_in_whatever_form(bench: Bench) -> None:
    async def conversation() -> None:
        _, value = await bench.made()
        _, session_id, secret = bench.cookie.split(".")
        for guess in (bench.cookie, f"ppw_{session_id}{secret}", f"ppw_{bench.cookie}"):
            assert isinstance(await bench.shown(guess), Rejected)
        as_cookie = f"1.{value[4:26]}.{value[26:]}"
        for guess in (value, as_cookie):
            assert bench.sessions.peek(guess) is None
            assert await bench.sessions.load(guess) is None

    run(conversation)


@pytest.mark.parametrize(("days", "lasts"), [(7, 7), (365, 365), (1000, 365)])
def test_it_ends_when_it_was_to_end_and_when_the_settings_say_at_the_latest(
    bench: Bench, days: float, lasts: float
) -> None:
    async def conversation() -> None:
        session, value = await bench.made(days)
        assert session.expires_at == bench.now + lasts * DAY
        for _ in range(int(lasts) - 1):
            bench.now += DAY
            await bench.passwords.vouch(ADA)
        assert await bench.shown(value) is session
        bench.now += DAY
        assert isinstance(await bench.shown(value), Rejected)

    run(conversation)


def test_a_shorter_life_holds_for_those_there_are(bench: Bench, tmp_path: Path) -> None:
    async def conversation() -> None:
        _, value = await bench.made(90)
        shorter = settings_for(tmp_path, routes='[app_passwords]\nlifetime = "7d"\n' + ROUTES)
        bench.passwords.adopt(shorter)
        bench.now += 7 * DAY - 1
        assert isinstance(await bench.shown(value), Session)
        bench.now += 1
        assert await bench.shown(value) == Rejected("it has expired")
        await bench.passwords.close()

    run(conversation)


def test_it_waits_for_an_owner_who_is_not_seen_any_more_and_goes_on_when_they_are(bench: Bench) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        bench.now += 30 * DAY - 1
        assert await bench.shown(value) is session
        bench.now += 1
        assert await bench.shown(value) == Rejected(WAITS)
        assert bench.passwords.waits(session)
        await bench.owner()
        assert await bench.shown(value) is session
        bench.now += 29 * DAY
        await bench.sessions.replace(bench.cookie, grant_for())
        await bench.settled()
        bench.now += 29 * DAY
        assert await bench.shown(value) is session, "a recheck counts as much as a sign-in"

    run(conversation)


def test_what_logto_says_of_the_owner_holds_from_then_on(bench: Bench) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        assert session.identity.roles == ("editors",)
        await bench.sessions.replace(bench.cookie, Grant(replace(ADA, roles=()), TOKENS, None, 1.0))
        await bench.settled()
        found = await bench.shown(value)
        assert isinstance(found, Session)
        assert found.identity.roles == ()
        await bench.owner(Identity(sub="bob", roles=("ops",)))
        assert session.identity == replace(ADA, roles=()), "what is said of others is not said of them"

    run(conversation)


def test_not_every_recheck_is_worth_a_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation() -> None:
        session, _ = await bench.made()
        writes: list[str] = []
        amend = bench.store.amend

        async def counted(session_id: str, change: Callable[[Session], Session]) -> Session | None:
            writes.append(session_id)
            return await amend(session_id, change)

        monkeypatch.setattr(bench.store, "amend", counted)
        for _ in range(24):
            bench.now += 300
            await bench.passwords.vouch(ADA)
        assert len(writes) == 2, "one an hour"
        await bench.passwords.vouch(replace(ADA, roles=()))
        assert writes == [session.id] * 3, "but whatever is new at once"

    run(conversation)


def test_in_doubt_it_waits_until_logto_has_spoken(bench: Bench) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        await bench.passwords.doubt("bob")
        assert await bench.shown(value) is session
        await bench.passwords.doubt("ada")
        assert await bench.shown(value) == Rejected(WAITS)
        await bench.sessions.replace(bench.cookie, grant_for())
        await bench.settled()
        assert await bench.shown(value) is session

    run(conversation)


def test_only_its_owner_can_revoke_one(bench: Bench) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        assert not await bench.passwords.revoke("bob", session.id)
        assert not await bench.passwords.revoke("ada", "A" * 22)
        assert await bench.shown(value) is session
        assert await bench.passwords.revoke("ada", session.id)
        assert await bench.shown(value) == Rejected("it does not exist, or no longer")
        _, another = await bench.made()
        assert await bench.passwords.end_user("ada", "User.Deleted") == 1
        assert isinstance(await bench.shown(another), Rejected)

    run(conversation)


def test_nobody_can_have_any_number(bench: Bench) -> None:
    async def conversation() -> None:
        made = [await bench.made(name=str(number)) for number in range(20)]
        with pytest.raises(TooMany):
            await bench.made()
        await bench.passwords.revoke("ada", made[0][0].id)
        await bench.made()

    run(conversation)


@pytest.mark.parametrize(("ago", "may"), [(0, True), (3599, True), (3600, False), (1e9, False)])
def test_only_who_has_signed_in_lately_makes_one(bench: Bench, ago: float, may: bool) -> None:
    async def conversation() -> None:
        owner = await bench.owner()
        bench.now += ago
        assert bench.passwords.may_make(owner) is may
        if may:
            await bench.passwords.issue(owner, "n", "dav", DAY)
        else:
            with pytest.raises(TooLongAgo):
                await bench.passwords.issue(owner, "n", "dav", DAY)
        assert len(await bench.store.of_user("ada")) == may

    run(conversation)


def test_where_no_route_takes_any_nothing_is_asked_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation() -> None:
        bench = Bench(settings_for(tmp_path, routes=NONE))
        calls = itertools.count()

        async def asked(*_: object) -> list[Session]:
            next(calls)
            return []

        monkeypatch.setattr(bench.store, "of_user", asked)
        await bench.owner()
        await bench.passwords.doubt("ada")
        await bench.passwords.start()
        assert not running(bench)
        assert next(calls) == 0
        bench.passwords.adopt(settings_for(tmp_path, routes=ROUTES))
        await bench.settled()
        assert running(bench)
        await bench.owner()
        assert next(calls) == 2
        await bench.passwords.close()

    run(conversation)


@pytest.mark.parametrize(
    ("webhook", "outcome"),
    [
        (Webhook("User.Deleted", ended=("ada",)), "it does not exist, or no longer"),
        (Webhook("User.SuspensionStatus.Updated", ended=("ada",)), "it does not exist, or no longer"),
        (Webhook("User.Data.Updated", changed=("ada",)), WAITS),
        (Webhook("User.Data.Updated", changed=("bob",)), None),
        (Webhook("Role.Deleted", everybody=True), None),
    ],
)
def test_what_logto_announces_of_its_owner_holds_for_it(bench: Bench, webhook: Webhook, outcome: str | None) -> None:
    async def conversation() -> None:
        session, value = await bench.made()
        notices = Notices(_SETTINGS[0], bench.sessions, cast("RelyingParty", None), bench.passwords)
        await notices._act(webhook, "request-1")
        assert await bench.shown(value) == (session if outcome is None else Rejected(outcome))

    run(conversation)


def test_one_that_was_for_a_deleted_person_does_not_come_back_with_the_key(tmp_path: Path) -> None:
    """Nobody may take app passwords when somebody leaves: those of theirs that are still there end all the same."""

    async def conversation() -> None:
        bench = Bench(settings_for(tmp_path, routes=ROUTES))
        _, value = await bench.made()
        bench.passwords.adopt(settings_for(tmp_path, routes=NONE))
        notices = Notices(_SETTINGS[0], bench.sessions, cast("RelyingParty", None), bench.passwords)
        await notices._act(Webhook("User.Deleted", ended=("ada",)), "request-1")
        bench.passwords.adopt(settings_for(tmp_path, routes=ROUTES))
        assert isinstance(await bench.shown(value), Rejected)
        await bench.passwords.close()

    run(conversation)
