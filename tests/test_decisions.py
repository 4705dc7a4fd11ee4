"""The table of decisions, held against everything that decides: the gate, the relay, `explain`, forward-auth."""

from __future__ import annotations

import contextlib
import json
import time
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from proxy import cookies
from proxy.claims import Grant, Tokens, identity_from_claims
from proxy.explain import explain_asking
from proxy.http1 import read_request
from proxy.sandbox import SandboxConfig
from proxy.sandbox.run import running_logto
from proxy.verdict import Kind
from tests import discord_stand
from tests.discord_stand import GUILD, OPS, TOKEN, Clock, DiscordStand, member
from tests.relay_world import World, relay_world, run

PENDING: Final = "100000000000000005"
TABLE: Final = tomllib.loads((Path(__file__).parent / "decisions.toml").read_text("utf-8"))
PLACES: Final = {"away": "198.51.100.7", "office": "10.1.2.3", "pub": "203.0.113.9"}
STATUS: Final = {
    "pass": 200, "sign_in": 302, "unauthenticated": 401, "forbidden": 403, "unavailable": 503, "ambiguous": 400,
    "rejected": 401,
}  # fmt: skip
KINDS: Final = {"unavailable": Kind.UNAVAILABLE, "ambiguous": Kind.AMBIGUOUS, "rejected": Kind.REJECTED} | {
    name: Kind(name) for name in ("pass", "sign_in", "unauthenticated", "forbidden")
}
PREAMBLE: Final = f"""
public_url = "http://localhost:3000"
trusted_proxies = ["127.0.0.1/32"]
[logto]
endpoint = "LOGTO"
app_id = "app"
app_secret = "secret"
[discord]
bot_token = "{TOKEN}"
api = "API"
"""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    route: str
    who: str
    method: str
    path: str
    place: str
    verdict: str
    reason: str

    @property
    def target(self) -> str:
        return f"/{self.route}{self.path if self.path != '/' else ''}"


ROWS: Final = [Row(one["name"], *line.split()) for one in TABLE["set"] for line in one["rows"].strip().splitlines()]


def written(value: Any) -> str:
    """A value of the table as TOML, with the ids in the place of their names."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {written(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str) and value.isupper():
        value = getattr(discord_stand, value, value)
    return json.dumps(value)


def settings_text(api: str, logto: str) -> str:
    text = PREAMBLE.replace("API", api).replace("LOGTO", logto)
    for one in TABLE["set"]:
        path = f"/{one['name']}"
        text += f'[[route]]\nname = "{one["name"]}"\npath = "{path}"\nupstream = "UPSTREAM"\n'
        for key in ("bearer", "allow", "deny"):
            if key in one:
                text += f"{key} = {written(one[key])}\n".replace('"P/', f'"{path}/')
    return text


def claims_of(who: str) -> dict[str, Any] | None:
    if who == "nobody":
        return None
    if who in TABLE["programs"]:
        return dict(TABLE["programs"][who])
    claims = dict(TABLE["people"][who])
    claims["auth_time"] = time.time() - claims.pop("signed_in_ago", 0)
    name = claims.pop("discord", None)
    if name is not None:
        account = PENDING if name == "PENDING" else getattr(discord_stand, name)
        claims["identities"] = {"discord": {"userId": account}}
    return claims


async def cookie_of(world: World, who: str) -> bytes:
    claims = claims_of(who)
    if claims is None:
        return b""
    tokens = Tokens(id_token="i", access_token="a", access_expires_at=time.time() + 3600)
    grant = Grant(identity_from_claims(claims), tokens, None, claims["auth_time"])
    _, value = await world.gateway.store.create(grant, browser="", address="")
    return f"Cookie: {cookies.session_name(world.gateway.settings)}={value}\r\n".encode()


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[tuple[World, dict[str, bytes]]]:
    """A gateway with the table's rules, and the cookies of its people."""
    stand = DiscordStand(Clock())
    stand.members[GUILD, PENDING] = member(OPS, pending=True)
    async with (
        stand.running(),
        running_logto(SandboxConfig()) as logto,
        relay_world(settings_text(stand.url, logto.url)) as world,
    ):
        carried = {who: await cookie_of(world, who) for who in ("nobody", *TABLE["people"])}
        for who, claims in TABLE["programs"].items():
            now = int(time.time())
            token = logto.state.keys.sign(
                {**claims, "iss": logto.state.config.issuer, "iat": now, "exp": now + 600}, typ="at+jwt"
            )
            # With somebody's cookie, who could do anything: it must not count beside the token.
            carried[who] = f"Authorization: Bearer {token}\r\n".encode() + (
                carried["ann"] if claims.get("with_cookie") else b""
            )
        yield world, carried


def differences(rows: list[tuple[Row, object, object]]) -> list[str]:
    return [f"{row}: {found} instead of {wanted}" for row, found, wanted in rows if found != wanted]


def test_the_table_is_large_and_says_nothing_twice() -> None:
    assert len(ROWS) >= 120
    assert len({(row.route, row.who, row.method, row.path, row.place) for row in ROWS}) == len(ROWS)
    assert {row.verdict for row in ROWS} == set(STATUS)


def test_the_gate() -> None:
    async def judge() -> None:
        async with gateway() as (world, carried):
            found: list[tuple[Row, object, object]] = []
            for row in ROWS:
                text = f"{row.method} {row.target} HTTP/1.1\r\nHost: localhost:3000\r\nAccept: text/html\r\n".encode()
                read = read_request(text + carried[row.who] + b"\r\n")
                assert read is not None
                client = ip_address(PLACES[row.place])
                verdict = await world.gateway.gate.judge_later(read[0], "localhost:3000", client)
                assert verdict.reason
                found.append((row, (verdict.kind, verdict.reason), (KINDS[row.verdict], row.reason)))
                at_once = world.gateway.gate.judge(read[0], "localhost:3000", client)
                assert at_once is None or at_once.kind is verdict.kind
            assert differences(found) == []

    run(judge())


def test_the_relay() -> None:
    async def ask() -> None:
        async with gateway() as (world, carried):
            found: list[tuple[Row, object, object]] = []
            for row in ROWS:
                place = f"X-Forwarded-For: {PLACES[row.place]}\r\n".encode()
                head = f"{row.method} {row.target} HTTP/1.1\r\nHost: localhost:3000\r\nAccept: text/html\r\n".encode()
                before = len(world.upstream.heads)
                status, _, _ = await world.ask(head + place + carried[row.who] + b"Content-Length: 0\r\n\r\n")
                reached = len(world.upstream.heads) - before
                found.append((row, (status, reached), (STATUS[row.verdict], int(row.verdict == "pass"))))
            assert differences(found) == []
            outcomes = [line["outcome"] for line in world.lines()]
            assert differences(list(zip(ROWS, outcomes, [row.reason for row in ROWS], strict=True))) == []

    run(ask())


def test_explain() -> None:
    async def ask() -> None:
        async with gateway() as (world, _):
            found: list[tuple[Row, object, object]] = []
            for row in ROWS:
                url = "http://localhost:3000" + row.target
                client = PLACES[row.place]
                settings = world.gateway.settings
                explanation = await explain_asking(settings, url, row.method, claims_of(row.who), client)
                verdict = explanation.verdict
                found.append((row, (verdict.kind, verdict.reason), (KINDS[row.verdict], row.reason)))
                assert (explanation.head is not None) is (row.verdict == "pass")
            assert differences(found) == []

    run(ask())


def test_forward_auth() -> None:
    async def ask() -> None:
        async with gateway() as (world, carried):
            found: list[tuple[Row, object, object]] = []
            for row in ROWS:
                question = (
                    f"GET /.postern/auth HTTP/1.1\r\nHost: postern\r\nAccept: text/html\r\nX-Forwarded-Method: {row.method}\r\n"
                    f"X-Forwarded-Proto: http\r\nX-Forwarded-Host: localhost:3000\r\nX-Forwarded-Uri: {row.target}\r\n"
                    f"X-Forwarded-For: {PLACES[row.place]}\r\n"
                ).encode()
                status, _, _ = await world.ask(question + carried[row.who] + b"\r\n")
                found.append((row, status, STATUS[row.verdict]))
            assert differences(found) == []
            assert world.upstream.heads == []

    run(ask())
