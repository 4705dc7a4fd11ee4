"""What sessions cost Redis: `python -m bench.session_size [--sessions 100000] [--of-one 10000]`.

A redis-server of its own is filled with sessions of people who have three each, with tokens as Logto hands them out: an ID
token with the usual extended claims (ES384), an opaque access token, a refresh token. Then one person gets very many, is listed
and signed out everywhere, while somebody else asks Redis for nothing at all, over and over: the longest they wait is how long
Redis was blocked. Exit status 1 when a session takes more than the goal, or anybody waits longer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import jwt
import redis
from cryptography.hazmat.primitives.asymmetric import ec

from bench.processes import Trouble, fleet, free_port
from proxy.claims import Grant, Tokens, identity_from_claims
from proxy.sealing import KeyRing
from proxy.session_redis import RedisStore

GOAL_BYTES: Final = 4096
GOAL_BLOCKED_MS: Final = 10.0
_AT_ONCE: Final = 64
_SESSIONS_EACH: Final = 3
_BROWSER: Final = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36"
)


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes per session, of keys and of all that Redis takes; seconds and longest waits (milliseconds) for one person's many."""

    sessions: int
    key: float
    all: float
    of_one: int
    listed: float
    ended: float
    waited_listing: float
    waited_ending: float

    def table(self) -> str:
        """All of it, for people."""
        million = self.all * 1_000_000 / (1 << 30)
        return (
            f"| | |\n|---|--:|\n"
            f"| sessions, of people with {_SESSIONS_EACH} each | {self.sessions:,} |\n"
            f"| bytes of a session's record (MEMORY USAGE) | {self.key:,.0f} |\n"
            f"| bytes that a session costs Redis, indexes and all | {self.all:,.0f} |\n"
            f"| so a million sessions need | {million:.2f} GiB |\n"
            f"| one person's sessions | {self.of_one:,} |\n"
            f"| all of them listed, s | {self.listed:.2f} |\n"
            f"| all of them ended, s | {self.ended:.2f} |\n"
            f"| longest that anybody waited for Redis meanwhile, ms: listing | {self.waited_listing:.1f} |\n"
            f"| longest that anybody waited for Redis meanwhile, ms: ending | {self.waited_ending:.1f} |"
        )

    @property
    def good(self) -> bool:
        """Whether the goals are reached."""
        return self.all <= GOAL_BYTES and max(self.waited_listing, self.waited_ending) <= GOAL_BLOCKED_MS


class Grants:
    """Grants as Logto hands them out, of the usual size."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())

    def of(self, sub: str) -> Grant:
        """A grant for somebody."""
        now = int(time.time())
        claims = {
            "sub": sub,
            "name": "Ada Lovelace",
            "picture": "https://cdn.discordapp.com/avatars/80351110224678912/8342729096ea3675442027381ff50dfe",
            "username": "ada_lovelace",
            "email": "ada.lovelace@example.com",
            "email_verified": True,
            "roles": ["operators", "editors"],
            "organizations": ["k3b2n4m5k6j7"],
            "organization_roles": ["k3b2n4m5k6j7:member"],
            "created_at": now * 1000,
            "updated_at": now * 1000,
            "at_hash": "x" * 32,
            "sid": os.urandom(16).hex(),
            "aud": "q1w2e3r4t5y6u7i8o9p0a",
            "exp": now + 3600,
            "iat": now,
            "iss": "https://auth.example.com/oidc",
        }
        identities = {"discord": {"userId": "80351110224678912", "details": {"rawData": {"username": "ada"}}}}
        id_token = jwt.encode(claims, self._key, "ES384", headers={"kid": "y" * 43})
        tokens = Tokens(id_token, os.urandom(32).hex()[:43], now + 3600, os.urandom(32).hex()[:43])
        return Grant(identity_from_claims(claims | {"identities": identities}), tokens, str(claims["sid"]), now)


_BYSTANDER: Final = """
import select, socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print("ready", flush=True)
    longest = 0.0
    while not select.select([sys.stdin], [], [], 0.0002)[0]:
        began = time.perf_counter()
        connection.sendall(b"PING\\r\\n")
        connection.recv(64)
        longest = max(longest, time.perf_counter() - began)
print(longest * 1000)
"""


class Bystander:
    """A process that asks Redis for nothing at all, as often as it can. `longest`: how long it had to wait, in ms."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-c", _BYSTANDER, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.longest = 0.0

    def __enter__(self) -> Self:
        if self._process.stdout is None or not self._process.stdout.readline():
            raise Trouble("nobody can ask Redis meanwhile")
        return self

    def __exit__(self, *_: object) -> None:
        said, _unused = self._process.communicate("enough\n", timeout=20)
        self.longest = float(said)


async def fill(store: RedisStore, grants: Grants, subs: list[str]) -> None:
    """Sign everybody in, some at a time."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(sub: str) -> None:
        async with room:
            await store.create(grants.of(sub), browser=_BROWSER, address="203.0.113.195")

    for start in range(0, len(subs), 1000):
        await asyncio.gather(*map(one, subs[start : start + 1000]))


async def measure(port: int, sessions: int, of_one: int) -> Found:
    """Fill the Redis at `port`, and look."""
    with contextlib.closing(redis.Redis(port=port)) as client:

        def used() -> int:
            return int(client.info("memory")["used_memory"])

        store = RedisStore(f"redis://127.0.0.1:{port}/0", KeyRing([b"k" * 32]), idle=43200.0, lifetime=604800.0)
        try:
            grants, empty = Grants(), used()
            await fill(store, grants, [f"person{number // _SESSIONS_EACH:08}" for number in range(sessions)])
            everything = (used() - empty) / sessions
            some = [key for key, _ in zip(client.scan_iter("postern:s:*"), range(200), strict=False)]
            key = sum(int(client.memory_usage(it) or 0) for it in some) / len(some)
            await fill(store, grants, ["one"] * of_one)
            with Bystander(port) as listing:
                began = time.perf_counter()
                if len(await store.of_user("one")) != of_one:
                    raise Trouble("not all sessions of one person are listed")
                listed = time.perf_counter() - began
            with Bystander(port) as ending:
                began = time.perf_counter()
                if await store.end_user("one", "revoked") != of_one:
                    raise Trouble("not all sessions of one person were ended")
                ended = time.perf_counter() - began
        finally:
            await store.close()
    return Found(sessions, key, everything, of_one, listed, ended, listing.longest, ending.longest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--of-one", type=int, default=10_000)
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="postern-bench-") as name, fleet(Path(name)) as programs:
            port = free_port()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            core = max(os.sched_getaffinity(0))
            programs.start("redis", ["redis-server", *options], core).listening(port)
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
            found = asyncio.run(measure(port, given.sessions, given.of_one))
    except Trouble as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    print(found.table())
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
