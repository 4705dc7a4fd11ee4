"""`postern check` asks everything the settings name, and says what to do about what fails."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.checkup import Finding, check_surroundings, doubtful_rules
from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET, SandboxConfig
from proxy.sandbox.run import running_logto
from proxy.settings import load
from tests.discord_stand import GUILD, OTHER_GUILD, TOKEN, Clock, DiscordStand
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, LyingProvider
from tests.redis_server import RedisServer


async def findings(**environ: str) -> list[Finding]:
    settings = load(
        Path(os.devnull),
        {
            "POSTERN_PUBLIC_URL": "http://localhost:3000",
            "LOGTO_APP_ID": SANDBOX_APP_ID,
            "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
            **environ,
        },
    )
    return [finding async for finding in check_surroundings(settings)]


def test_everything_answers() -> None:
    async def look() -> list[Finding]:
        async with running_logto(SandboxConfig()) as logto:
            with RedisServer() as redis, socket.create_server(("127.0.0.1", 0)) as app:
                return await findings(
                    LOGTO_ENDPOINT=logto.url,
                    REDIS_URL=redis.url,
                    POSTERN_UPSTREAM=f"http://127.0.0.1:{app.getsockname()[1]}",
                )

    found = asyncio.run(look())
    assert [finding.ok for finding in found] == [True, True, True], found
    assert found[0].what == "session store (redis)"


def test_what_fails_comes_with_its_remedy_and_stops_nothing() -> None:
    found = asyncio.run(
        findings(
            LOGTO_ENDPOINT="http://127.0.0.1:9",
            REDIS_URL="redis://someone:hunter2@127.0.0.1:9/0",
            POSTERN_UPSTREAM="http://nowhere.invalid:80",
        )
    )
    assert [finding.ok for finding in found] == [False, False, False]
    assert all(finding.remedy for finding in found)
    assert "hunter2" not in repr(found)


def test_rules_that_change_nothing_are_pointed_out() -> None:
    settings = load(
        Path(os.devnull),
        {
            "POSTERN_PUBLIC_URL": "http://localhost:3000",
            "LOGTO_ENDPOINT": "http://127.0.0.1:9",
            "LOGTO_APP_ID": "a",
            "LOGTO_APP_SECRET": "b",
            "POSTERN_LOGTO__SCOPES": '["email"]',
            "POSTERN_ROUTE__0__NAME": "app",
            "POSTERN_ROUTE__0__UPSTREAM": "http://127.0.0.1:9",
            "POSTERN_ROUTE__0__ALLOW": '[{ roles = ["a"] }, { emails = ["a@b.c"] }]',
            "POSTERN_ROUTE__0__DENY": '[{ emails = ["a@b.c", "d@b.c"] }]',
        },
    )
    assert list(doubtful_rules(settings)) == [
        "route app: allow[1] lets nobody in: deny[0] keeps out everybody it fits",
        'route app: roles hold for nobody while logto.scopes lacks "roles"',
    ]


def test_what_is_opened_beside_a_route_is_no_route_to_be_checked() -> None:
    environ = {
        "POSTERN_PUBLIC_URL": "http://localhost:3000",
        "LOGTO_ENDPOINT": "http://127.0.0.1:9",
        "LOGTO_APP_ID": "a",
        "LOGTO_APP_SECRET": "b",
        "POSTERN_LOGTO__SCOPES": "[]",
        "POSTERN_ROUTE__0__NAME": "chat",
        "POSTERN_ROUTE__0__UPSTREAM": "http://127.0.0.1:9",
        "POSTERN_ROUTE__0__PRESET": "open-webui",
        "POSTERN_ROUTE__0__OPEN": '["health"]',
        "POSTERN_ROUTE__0__ALLOW": '[{ scopes = ["read"] }, { users = ["u"] }]',
    }
    assert list(doubtful_rules(load(Path(os.devnull), environ))) == [
        "route chat: scopes hold for nobody while the route has no bearer",
        'route chat: open-webui knows people by their address, which logto.scopes has no "email" for',
    ]
    environ |= {"POSTERN_ROUTE__0__BEARER": "https://api.example.com", "POSTERN_LOGTO__SCOPES": '["email"]'}
    assert list(doubtful_rules(load(Path(os.devnull), environ))) == []
    names = [finding.what for finding in asyncio.run(findings(**environ))]
    assert sum(name.startswith("upstream") for name in names) == 1


def test_each_application_is_tried_with_its_secret() -> None:
    async def look() -> list[Finding]:
        logto = LyingProvider(clients={CLIENT_ID: CLIENT_SECRET, "one": "secret-of-one", "two": "secret-of-two"})
        async with logto.running():
            return await findings(
                LOGTO_ENDPOINT=logto.url,
                LOGTO_APP_ID=CLIENT_ID,
                LOGTO_APP_SECRET=CLIENT_SECRET,
                POSTERN_LOGTO__APPLICATION__0__HOSTS="a.example.com",
                POSTERN_LOGTO__APPLICATION__0__APP_ID="one",
                POSTERN_LOGTO__APPLICATION__0__APP_SECRET="secret-of-one",
                POSTERN_LOGTO__APPLICATION__1__HOSTS="b.example.com",
                POSTERN_LOGTO__APPLICATION__1__APP_ID="two",
                POSTERN_LOGTO__APPLICATION__1__APP_SECRET="another",
                POSTERN_UPSTREAM="http://127.0.0.1:9",
            )

    _, main, one, two, _ = asyncio.run(look())
    assert (main.ok, one.ok, two.ok) == (True, True, False)
    assert one.what == "logto.application[0], for a.example.com"
    assert one.outcome == "its redirect URI is http://a.example.com:3000/.postern/callback"
    assert "logto.application[1].app_secret" in two.remedy
    assert "another" not in repr(two)


def test_resources_that_logto_does_not_know_are_named_for_they_let_nobody_in() -> None:
    async def look(**config: Any) -> list[Finding]:
        async with running_logto(SandboxConfig(**config)) as logto:
            found = await findings(
                LOGTO_ENDPOINT=logto.url,
                POSTERN_LOGTO__RESOURCES="https://api.example.com,https://nope.example.com",
                POSTERN_ROUTE__0__NAME="app",
                POSTERN_ROUTE__0__UPSTREAM="http://127.0.0.1:9",
                POSTERN_ROUTE__0__HEADERS__SET='{ X-Api = "{organization_token:acme}" }',
            )
        return [finding for finding in found if "resource" in finding.what]

    known, unknown, organizations = asyncio.run(look())
    assert (known.ok, unknown.ok, organizations.ok) == (True, False, True)
    assert "https://nope.example.com" in unknown.what
    assert "nobody" in unknown.outcome
    assert "API resources" in unknown.remedy
    (known, *_) = asyncio.run(look(redirect_uris=("http://localhost:9/callback",)))
    assert not known.ok
    assert "http://localhost:3000/.postern/callback" in known.remedy


def test_resources_of_a_logto_that_is_away_are_not_called_unknown() -> None:
    found = asyncio.run(
        findings(
            LOGTO_ENDPOINT="http://127.0.0.1:9",
            POSTERN_LOGTO__RESOURCES="https://api.example.com",
            POSTERN_UPSTREAM="http://127.0.0.1:9",
        )
    )
    (resource,) = [finding for finding in found if "resource" in finding.what]
    assert not resource.ok
    assert "know" not in resource.outcome


@pytest.mark.parametrize(("scopes", "doubts"), [("email,urn:logto:scope:organizations", 1), ("email,read:things", 0)])
def test_tokens_without_a_permission_are_pointed_out(scopes: str, doubts: int) -> None:
    environ = {
        "POSTERN_PUBLIC_URL": "http://localhost:3000",
        "LOGTO_ENDPOINT": "http://127.0.0.1:9",
        "LOGTO_APP_ID": "a",
        "LOGTO_APP_SECRET": "b",
        "POSTERN_LOGTO__SCOPES": scopes,
        "POSTERN_LOGTO__RESOURCES": "https://api.example.com",
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
    }
    said = list(doubtful_rules(load(Path(os.devnull), environ)))
    assert said == ["access tokens for APIs carry no permission while logto.scopes names none"] * doubts


def test_a_logto_with_another_issuer_is_named() -> None:
    async def look() -> list[Finding]:
        async with running_logto(SandboxConfig()) as logto:
            return await findings(
                LOGTO_ENDPOINT="https://auth.example.com",
                POSTERN_LOGTO__INTERNAL_ENDPOINT=logto.url,
                POSTERN_UPSTREAM="http://127.0.0.1:9",
            )

    store, logto, upstream = asyncio.run(look())
    assert store.ok
    assert not logto.ok
    assert "issuer" in logto.outcome
    assert not upstream.ok


def test_each_guild_that_rules_name_is_asked_about() -> None:
    async def look(token: str, *, down: bool = False) -> list[Finding]:
        stand = DiscordStand(Clock())
        stand.down = down
        async with stand.running():
            found = await findings(
                LOGTO_ENDPOINT="http://127.0.0.1:9",
                POSTERN_DISCORD__BOT_TOKEN=token,
                POSTERN_DISCORD__API=stand.url,
                POSTERN_ROUTE__0__NAME="app",
                POSTERN_ROUTE__0__UPSTREAM="http://127.0.0.1:9",
                POSTERN_ROUTE__0__ALLOW=f'[{{ discord = {{ guild = "{GUILD}" }} }}]',
                POSTERN_ROUTE__0__DENY=f'[{{ discord = {{ guild = "{OTHER_GUILD}" }} }}]',
            )
            return [finding for finding in found if "Discord" in finding.what]

    one, other = asyncio.run(look(TOKEN))
    assert (one.ok, one.outcome) == (True, "The guild")
    assert not other.ok
    assert "member of the guild" in other.remedy
    one, other = asyncio.run(look("wrong-" + TOKEN))
    assert not one.ok
    assert "token" in one.outcome
    assert TOKEN not in repr((one, other))
    one, _ = asyncio.run(look(TOKEN, down=True))
    assert not one.ok
    assert "503" in one.outcome
    assert "reachable" in one.remedy
