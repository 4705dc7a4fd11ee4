"""A Redis Cluster: which master has which session, followed through failover and resharding.

redis-py's own cluster client cannot be used here: it does not tell which server has answered, and only what came straight
from the master that reports its changes may be kept. It also throws every connection away when one master fails.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.session_servers import Command, Reach, Reply, Server, Servers, all_of, make_pool, seen

SLOTS: Final = 16384
_ATTEMPTS: Final = 3
_PAUSE: Final = 0.1
# Errors after which another master may have the key, or the same one after a moment.
_PASSING: Final = (
    RedisConnectionError,
    ClusterDownError,
    TryAgainError,
    BusyLoadingError,
    ReadOnlyError,
    OSError,
)


class ClusterServer(Server):
    """One master of a Cluster. `slots` are those it has, as ranges with both ends in."""

    def __init__(self, place: tuple[str, int], options: dict[str, Any], *, limit: int) -> None:
        host, port = place
        super().__init__(
            f"master {host}:{port}", make_pool({**options, "host": host, "port": port}, limit), limit=limit
        )
        self.place = place
        self.slots: tuple[tuple[int, int], ...] = ()

    async def probe(self, connection: AbstractConnection) -> Command:  # noqa: ARG002 -- as every server's
        """Ask for a key of its own.

        A master that was demoted answers MOVED to that, and one that was cut off from the others CLUSTERDOWN.
        """
        if not self.slots:
            raise RedisConnectionError("it has no slots any more")
        return ("EXISTS", _key_in(self.slots[0][0]))

    def check(self, answer: Any) -> None:
        """Raise when the slot asked about is another master's. While it is on its way to one (ASK) it is still here."""
        if not isinstance(answer, AskError) or isinstance(answer, MovedError):
            super().check(answer)

    async def ask_imported(self, *command: Any) -> Any:
        """Run a command on a key that is on its way to this server (ASK)."""
        answers = await self.ask_each([("ASKING",), command])
        if isinstance(answers[1], Exception):
            raise answers[1]
        return answers[1]


class Cluster(Servers):
    """The masters of a Cluster, found from any of its nodes."""

    def __init__(self, seeds: Sequence[tuple[str, int]], options: dict[str, Any], reach: Reach, *, limit: int) -> None:
        super().__init__()
        self._seeds = list(seeds)
        self._options = options
        self._reach = reach
        self._limit = limit
        self._servers: dict[tuple[str, int], ClusterServer] = {}  # all that have been talked to
        self._by_slot: list[ClusterServer | None] = [None] * SLOTS
        self._masters: tuple[ClusterServer, ...] = ()
        self._nodes: set[tuple[str, int]] = set()  # masters and replicas of the last map
        self._closing: set[asyncio.Task[None]] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        make_pool({**options, "host": seeds[0][0], "port": seeds[0][1]}, limit)  # a mistake in the options is said now

    def masters(self) -> tuple[Server, ...]:
        """The masters at present."""
        return self._masters

    async def start(self) -> None:
        """Find the masters."""
        await self._refresh()

    def in_trouble(self) -> None:
        """See whether another server has taken over."""
        if time.monotonic() - self._refreshed_at >= _PAUSE:
            self._refresh_soon()

    async def ask(self, key: str, *command: Any) -> Reply:
        """Run a command at the master that has `key`, wherever that may be by now."""
        failure: Exception = ClusterDownError("no master is known for the key")
        for attempt in range(_ATTEMPTS):
            server = self._by_slot[key_slot(key.encode())]
            if server is None:
                await self._refresh()
                server = self._by_slot[key_slot(key.encode())]
            if server is not None:
                try:
                    return await self._ask_there(server, command)
                except _PASSING as error:
                    failure = error
            if attempt + 1 < _ATTEMPTS:
                await asyncio.sleep(_PAUSE * attempt)
                await self._refresh()
        raise failure

    async def _ask_there(self, server: ClusterServer, command: Command) -> Reply:
        line = server.line
        try:
            return await server.ask(*command), line
        except MovedError as moved:
            self._refresh_soon()
            return await self._at(self._address(moved, server)).ask(*command), None
        except AskError as asked:
            # In the middle of a move the key's changes are reported by the other server, which may not be followed yet.
            return await self._at(self._address(asked, server)).ask_imported(*command), None

    async def ask_each(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Run commands, each at the master that has its key; an answer that is an exception has not been raised."""
        groups: dict[ClusterServer | None, list[int]] = {}
        for index, (key, _) in enumerate(commands):
            groups.setdefault(self._by_slot[key_slot(key.encode())], []).append(index)
        answers: list[Any] = [ClusterDownError("no master is known for the key")] * len(commands)

        async def at(server: ClusterServer, indexes: Sequence[int]) -> None:
            try:
                found = await server.ask_each([commands[index][1] for index in indexes])
            except _PASSING as error:
                found = [error] * len(indexes)
            for index, answer in zip(indexes, found, strict=True):
                answers[index] = answer

        await all_of(at(server, indexes) for server, indexes in groups.items() if server is not None)
        for index, (key, command) in enumerate(commands):
            if isinstance(answers[index], (AskError, *_PASSING)):
                try:
                    answers[index], _ = await self.ask(key, *command)
                except (RedisError, OSError) as error:
                    answers[index] = error
        return answers

    async def close(self) -> None:
        """Let go of all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await asyncio.gather(*self._closing, *(server.close() for server in self._servers.values()))

    # -- where things are

    def _at(self, place: tuple[str, int]) -> ClusterServer:
        server = self._servers.get(place)
        if server is None:
            server = self._servers[place] = ClusterServer(place, self._options, limit=self._limit)
        return server

    @staticmethod
    def _address(error: AskError, server: ClusterServer) -> tuple[str, int]:
        return (error.host or server.place[0], int(error.port))

    def _refresh_soon(self) -> asyncio.Task[None]:
        """Start to find the masters anew, unless that is under way."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._find())
            self._refreshing.add_done_callback(seen)
        return self._refreshing

    async def _refresh(self) -> None:
        """Find the masters anew; whoever gives up waiting does not spoil it for the others."""
        if time.monotonic() - self._refreshed_at < _PAUSE:
            return
        await asyncio.shield(self._refresh_soon())

    async def _find(self) -> None:
        failure: Exception = RedisConnectionError("no node of the Cluster answers")
        # In no fixed order: a node that has been cut off goes on telling how things once were.
        places = random.sample(sorted(self._nodes), len(self._nodes))
        places += [place for place in self._seeds if place not in self._nodes]
        for place in places:
            try:
                async with asyncio.timeout(self._reach.connect_timeout):
                    ranges = await self._at(place).ask("CLUSTER", "SLOTS")
            except (RedisError, OSError, TimeoutError) as error:
                failure = error
                continue
            if ranges:
                self._arrange(place, ranges)
                return
        raise failure

    def _arrange(self, asked: tuple[str, int], ranges: Sequence[Any]) -> None:
        """Take over a map of slots: `[first, last, [host, port, …] of the master, the same of its replicas]` each."""
        slots: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self._nodes = set()
        for first, last, *nodes in ranges:
            places = [((host or b"").decode() or asked[0], int(port)) for host, port, *_ in nodes]
            slots.setdefault(places[0], []).append((int(first), int(last)))
            self._nodes.update(places)
        self._by_slot = [None] * SLOTS
        for place, parts in slots.items():
            server = self._at(place)
            server.slots = tuple(parts)
            for first, last in parts:
                self._by_slot[first : last + 1] = [server] * (last + 1 - first)
        self._refreshed_at = time.monotonic()
        before, self._masters = self._masters, tuple(self._servers[place] for place in slots)
        for place in [place for place in self._servers if place not in slots]:
            self._let_go(self._servers.pop(place))
        if set(before) != set(self._masters):
            self.on_change()

    def _let_go(self, server: ClusterServer) -> None:
        """Close what is no master (any more); a question that is still waiting there is put again elsewhere."""
        server.slots = ()
        task = asyncio.get_running_loop().create_task(server.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@functools.lru_cache(maxsize=1024)
def _key_in(slot: int) -> str:
    """A key that falls into `slot`, one that nobody else uses."""
    keys = (f"postern:probe:{number}" for number in itertools.count())
    return next(key for key in keys if key_slot(key.encode()) == slot)
