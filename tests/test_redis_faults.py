"""What people see while Redis is in trouble: each trouble made for real, its answer, its bound, and what is left afterwards.

The table in docs/operations.md says the same, and is held to this one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.errors import StoreUnavailable
from tests.certificates import Authority
from tests.redis_server import RedisServer, redis_server
from tests.relay_world import World, relay_world, run

ROUTES = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "secret"
[[route]]
name = "private"
upstream = "UPSTREAM"
[[route]]
name = "open"
path = "/open"
upstream = "UPSTREAM"
allow = "everyone"
"""
TABLE = Path(__file__).parent.parent / "docs" / "operations.md"
PATIENCE = {"POSTERN_SESSION__CONNECT_TIMEOUT": "1s", "POSTERN_SESSION__COMMAND_TIMEOUT": "1s"}
# Reports that have ceased are noticed within three seconds, and no question waits longer than two for its answer: what
# takes longer than this, on however busy a machine, waits for something else.
BOUND = 20.0
Do = Callable[[RedisServer], Any]


@dataclass(frozen=True)
class Fault:
    """`begin` makes the trouble, `end` takes it back; what a request with a session and a new sign-in get in between, and
    the request with the session afterwards.
    """

    name: str
    begin: Do
    end: Do
    during: int
    sign_in: bool
    after: int


def nothing(_: RedisServer) -> None:
    return


def stop_keeping(server: RedisServer) -> None:
    server.do("SAVE")
    server.stop()


def garbage(server: RedisServer) -> None:
    for key in server.do("KEYS", "postern:s:*"):
        server.do("HSET", key, "s", b"\x00garbage")


def change_password(server: RedisServer) -> None:
    server.do("CONFIG", "SET", "requirepass", "another")
    as_administrator(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def change_password_back(server: RedisServer) -> None:
    as_administrator(server, "CONFIG", "SET", "requirepass", "")


def as_administrator(server: RedisServer, *command: str) -> None:
    with redis.Redis(unix_socket_path=str(server.socket), password="another") as client:
        client.execute_command(*command)


FAULTS = [
    Fault("stopped", stop_keeping, lambda server: server.start(), 503, False, 200),
    Fault("restarted without its data", lambda server: server.restart(), nothing, 401, True, 401),
    Fault("frozen (SIGSTOP)", lambda server: server.pause(), lambda server: server.resume(), 503, False, 200),
    # Nobody can end a pause: it has to be longer than all that is looked at meanwhile takes.
    Fault("paused (CLIENT PAUSE)", lambda server: server.do("CLIENT", "PAUSE", "12000"), nothing, 503, False, 200),
    Fault(
        "read-only (a replica)",
        lambda server: server.do("REPLICAOF", "127.0.0.1", "1"),
        lambda server: server.do("REPLICAOF", "NO", "ONE"),
        200,
        False,
        200,
    ),
    Fault(
        "out of memory",
        lambda server: server.do("CONFIG", "SET", "maxmemory", "1"),
        lambda server: server.do("CONFIG", "SET", "maxmemory", "0"),
        200,
        False,
        200,
    ),
    Fault("flushed (FLUSHALL)", lambda server: server.do("FLUSHALL"), nothing, 401, True, 401),
    Fault("a value overwritten with garbage", garbage, nothing, 401, True, 401),
    Fault("another password", change_password, change_password_back, 503, False, 200),
]


async def ask(world: World, path: str, cookie: bytes = b"") -> int:
    head = b"GET %s HTTP/1.1\r\nHost: localhost:3000\r\nCookie: %s\r\n\r\n" % (path.encode(), cookie)
    return (await world.ask(head))[0]


async def becomes(world: World, cookie: bytes, status: int) -> None:
    """Ask until the answer is `status`: until then it may be what it was, or 503, and nothing else."""
    deadline = time.monotonic() + BOUND
    before = await ask(world, "/", cookie)
    while before != status:
        assert time.monotonic() < deadline, f"{before}, not {status}"
        assert before in (200, 503)
        began = time.monotonic()
        before = await ask(world, "/", cookie)
        assert time.monotonic() - began < BOUND / 2
        await asyncio.sleep(0.02)


async def can_sign_in(world: World) -> bool:
    try:
        await world.sign_in(sub="somebody")
    except StoreUnavailable:
        return False
    return True


async def conversation(server: RedisServer, fault: Fault) -> None:
    async with relay_world(ROUTES, REDIS_URL=server.url, **PATIENCE) as world:
        cookie = await world.sign_in()
        await becomes(world, cookie, 200)
        await asyncio.to_thread(fault.begin, server)
        await becomes(world, cookie, fault.during)
        assert await ask(world, "/open", cookie) == 200, "what needs no session goes on"
        assert await ask(world, "/") == 401, "and who has none is asked for one, whatever Redis does"
        assert await can_sign_in(world) is fault.sign_in
        await asyncio.to_thread(fault.end, server)
        await becomes(world, cookie, fault.after)
        deadline = time.monotonic() + BOUND
        while not await can_sign_in(world):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_trouble_has_its_answer_and_passes_by_itself(fault: Fault) -> None:
    with redis_server() as server:
        run(conversation(server, fault))


def test_an_expired_certificate_is_such_a_trouble(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = map(str, authority.issue("redis", "127.0.0.1"))
    options = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", str(authority.file))

    def change(*, expired: bool) -> Do:
        def do(server: RedisServer) -> None:
            if expired:
                server.do("SAVE")
            authority.issue("redis", "127.0.0.1", expired=expired)
            server.restart()

        return do

    expiry = Fault("an expired certificate", change(expired=True), change(expired=False), 503, False, 200)
    query = f"ssl_ca_certs={authority.file}"
    with redis_server(*options, "--tls-auth-clients", "no", scheme="rediss", url_query=query) as server:
        run(conversation(server, expiry))


def test_the_table_in_the_docs_says_the_same() -> None:
    rows = re.findall(r"^\| Redis ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TABLE.read_text("utf-8"), re.MULTILINE)
    described = {name.strip(): (during, sign_in, after) for name, during, sign_in, after in rows}
    assert set(described) == {fault.name for fault in FAULTS} | {"with an expired certificate"}
    for fault in FAULTS:
        during, sign_in, after = described[fault.name]
        assert str(fault.during) in during
        assert ("works" in sign_in) is fault.sign_in
        assert ("goes on" in after) is (fault.after == 200)
