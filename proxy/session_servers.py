"""The Redis servers behind a store's URL: one, one that Sentinels name, or the masters of a Cluster.

| URL | |
|---|---|
| `redis://[user:password@]host[:6379][/db]`, `rediss://…`, `unix://[user:password@]/path` | one server |
| `redis+sentinel://[user:password@]host[:26379],…/master[/db]`, `rediss+sentinel://…` | whichever the Sentinels name |
| `redis+cluster://[user:password@]host[:6379],…`, `rediss+cluster://…` | all masters, found from any of those named |

Options of redis-py may follow as a query (`?ssl_ca_certs=…&ssl_certfile=…`). Everything here may raise what redis-py
raises, asyncio's TimeoutError and OSError; the store translates.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from proxy.session_cache import Line
from proxy.session_tracking import Tracker

# (what was answered, whose line covers it; None: nobody's)
Reply = tuple[Any, Line | None]
Command = tuple[Any, ...]
_GROUP: Final = re.compile(r"(rediss?)\+(sentinel|cluster)://(.*)", re.DOTALL)
_SENTINEL_PORT: Final = 26379
_PORT: Final = 6379
_ASK_SENTINELS_EVERY: Final = 5  # heartbeats


@dataclass(frozen=True, slots=True)
class Reach:
    """How to get at a server. Times in seconds."""

    connect_timeout: float = 1.0
    command_timeout: float = 2.0
    connections: int = 64  # at once, to each server
    retries: int = 1  # on a new connection, when the old one turns out dead

    @property
    def patience(self) -> float:
        """How long one question may take altogether."""
        return self.connect_timeout + self.command_timeout


class Server:
    """One Redis server: a pool of connections to it, and what it is asked when it reports changes."""

    def __init__(self, name: str, pool: ConnectionPool, *, limit: int) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self._pool = pool
        self._redis: Redis = Redis.from_pool(pool)
        # Questions wait for a connection here rather than fail, in order, each with its own deadline.
        self._free = asyncio.Semaphore(limit)
        self._closed = False

    @property
    def line(self) -> Line | None:
        """Who covers what is read here."""
        return self.tracker.line if self.tracker is not None else None

    async def ask(self, *command: Any) -> Any:
        """Run one command."""
        async with self._turn():
            try:
                return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py's
            except ReadOnlyError:
                # It was the master once. The name may lead to another one by now, and Sentinels may know one.
                await self._pool.disconnect(inuse_connections=False)
                raise

    async def ask_each(self, commands: Sequence[Command], *, transaction: bool = False) -> list[Any]:
        """Run several commands in one go; an answer that is an exception has not been raised."""
        async with self._turn(), self._redis.pipeline(transaction=transaction) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    def reporting_connection(self) -> AbstractConnection:
        """A connection, not yet connected, that takes pushes."""
        options = {**self._pool.connection_kwargs, "protocol": 3, "client_name": "postern-tracking"}
        options["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
        options["retry"] = Retry(NoBackoff(), 0)
        options["socket_timeout"] = None  # whatever the URL says: silence is no failure here
        return self._pool.connection_class(**options)

    async def probe(self, connection: AbstractConnection) -> Command:  # noqa: ARG002 -- some look where it leads
        """What to ask on the reporting connection as a sign of life."""
        return ("PING",)

    def check(self, answer: Any) -> None:
        """Judge the answer to `probe`; raises RedisError when it is an error, or comes from the wrong server."""
        if isinstance(answer, Exception):
            raise answer

    async def close(self) -> None:
        """Let go of all connections."""
        self._closed = True
        await self._redis.aclose()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._free:
            try:
                yield
            finally:
                if self._closed:  # under a question, whose second try made a new connection
                    await self._redis.aclose()


class Servers(ABC):
    """All servers of a store."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None  # `masters` has changed

    @abstractmethod
    def masters(self) -> tuple[Server, ...]:
        """The servers that hold sessions, as far as is known; each session is on one of them."""

    @abstractmethod
    async def start(self) -> None:
        """Find the servers, where they have to be found."""

    @abstractmethod
    def in_trouble(self) -> None:
        """A server does not report changes: it may be gone, or no longer what it was."""

    @abstractmethod
    async def ask(self, key: str, *command: Any) -> Reply:
        """Run a command at the server that has `key`."""

    @abstractmethod
    async def ask_each(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Run commands, each at the server that has its key; an answer that is an exception has not been raised."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of all connections."""


class OneServer(Servers):
    """A single server, or the one that is the master at present."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def masters(self) -> tuple[Server, ...]:
        """The one."""
        return (self._server,)

    async def start(self) -> None:
        """There is nothing to find."""

    def in_trouble(self) -> None:
        """There is no other to look for; a connection to the next one is made by name."""

    async def ask(self, key: str, *command: Any) -> Reply:  # noqa: ARG002 -- every key is there
        """Run a command."""
        line = self._server.line
        return await self._server.ask(*command), line

    async def ask_each(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Run commands in one go."""
        return await self._server.ask_each([command for _, command in commands])

    async def close(self) -> None:
        """Let go of all connections."""
        await self._server.close()


class Sentinels:
    """Those who know which server is the master. redis-py's own loses some of them when it is asked by several at once."""

    def __init__(self, places: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self._clients: list[Redis] = [Redis(host=host, port=port, **options) for host, port in places]
        self._asking: asyncio.Task[tuple[str, int]] | None = None

    @property
    def places(self) -> list[tuple[str, int]]:
        """Where they are, the one that answered last first."""
        return [
            (it.connection_pool.connection_kwargs["host"], it.connection_pool.connection_kwargs["port"])
            for it in self._clients
        ]

    async def discover_master(self, name: str) -> tuple[str, int]:
        """The address of the master called `name` (redis-py's pool calls this). Raises redis-py's ConnectionError."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._discover(name))
            self._asking.add_done_callback(seen)
        return await asyncio.shield(self._asking)

    async def _discover(self, name: str) -> tuple[str, int]:
        failure: object = "none of them answers"
        for client in list(self._clients):
            try:
                answer = await client.execute_command("SENTINEL", "MASTER", name)  # type: ignore[no-untyped-call]  # redis-py's
                state = dict(zip(answer[::2], answer[1::2], strict=True))
                down = {b"s_down", b"o_down"} & set(state[b"flags"].split(b","))
                address = state[b"ip"].decode(), int(state[b"port"])
            except (RedisError, OSError) as error:
                failure = error
                continue
            if down:
                failure = "they take it for down"
                continue
            self._clients.remove(client)
            self._clients.insert(0, client)
            return address
        raise RedisConnectionError(f"no master from the Sentinels: {failure}")

    async def close(self) -> None:
        """Let go of all connections."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await all_of(client.aclose() for client in self._clients)


class SentinelServer(Server):
    """The master that Sentinels name. Connections are made to whoever that is when they are made."""

    def __init__(self, master: str, sentinels: Sentinels, pool: SentinelConnectionPool, *, limit: int) -> None:
        super().__init__(f"master {master}", pool, limit=limit)
        self._master = master
        self._sentinels = sentinels
        self._beats = 0

    async def probe(self, connection: AbstractConnection) -> Command:
        """Ask for its role; every few heartbeats, see whether the Sentinels still name the server at its other end.

        A master that has lost touch with the rest goes on as if nothing were; the Sentinels know better.
        """
        self._beats += 1
        if self._beats % _ASK_SENTINELS_EVERY == 0 and isinstance(connection, Connection):
            named = await self._sentinels.discover_master(self._master)
            if named != (connection.host, connection.port):
                await self._pool.disconnect(inuse_connections=False)
                raise RedisConnectionError("the Sentinels name another master")
        return ("ROLE",)

    def check(self, answer: Any) -> None:
        """Raise when the server is a master no longer."""
        super().check(answer)
        if not answer or answer[0] != b"master":
            raise RedisConnectionError("it is no master any more")

    async def close(self) -> None:
        """Let go of all connections, those to the Sentinels too."""
        await super().close()
        await self._sentinels.close()


def open_servers(url: str, reach: Reach) -> Servers:
    """The servers that `url` names, without touching them. ValueError, without the URL in it (it may hold a password)."""
    try:
        return _open(url, reach)
    except (ValueError, TypeError, RedisError) as error:
        raise ValueError(f"not a usable Redis URL ({type(error).__name__})") from None


def _open(url: str, reach: Reach) -> Servers:
    group = _GROUP.fullmatch(url)
    if group is None:
        options = connection_options(url, reach)
        limit = int(options.pop("max_connections", reach.connections))
        return OneServer(Server("Redis", make_pool(options, limit), limit=limit))
    scheme, kind, rest = group.groups()
    places, path, query, user = _split(rest)
    plain = f"{scheme}://{user}{places[0]}{path if kind == 'cluster' else ''}{query}"
    options = connection_options(plain, reach)
    limit = int(options.pop("max_connections", reach.connections))
    if kind == "cluster":
        if path.strip("/") not in ("", "0"):
            raise ValueError("a Cluster has no databases but 0")
        from proxy.session_cluster import Cluster  # noqa: PLC0415 -- it builds on this module

        seeds = [_place(place, _PORT) for place in places]
        return Cluster(seeds, options, reach, limit=limit)
    return OneServer(_sentinel_server(places, path, options, reach, limit))


def _sentinel_server(
    places: Sequence[str], path: str, options: dict[str, Any], reach: Reach, limit: int
) -> SentinelServer:
    master, _, database = path.strip("/").partition("/")
    if not master:
        raise ValueError("no name of a master")
    if database:
        options["db"] = int(database)
    for given in ("host", "port"):
        options.pop(given, None)
    secure = issubclass(options.pop("connection_class", Connection), SSLConnection)
    own = {name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if name.startswith("sentinel_")}
    shared = {name: value for name, value in options.items() if name.startswith("ssl_")}
    asking: dict[str, Any] = {
        **shared,
        **own,
        "ssl": secure,
        "socket_timeout": reach.connect_timeout,  # one that is silent must leave time for the next
        "socket_connect_timeout": reach.connect_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    sentinels = Sentinels([_place(place, _SENTINEL_PORT) for place in places], asking)
    pool = SentinelConnectionPool(unquote(master), sentinels, ssl=secure, max_connections=limit, **options)  # type: ignore[no-untyped-call]  # redis-py's
    pool.make_connection()  # type: ignore[no-untyped-call]  # opens nothing; see make_pool
    return SentinelServer(unquote(master), sentinels, pool, limit=limit)


def connection_options(url: str, reach: Reach) -> dict[str, Any]:
    """The arguments of redis-py's connections for the single server at `url`."""
    return {
        # Whoever asks sets the time limit. redis-py's own for sending, by asyncio.wait_for before Python 3.12, can lose the
        # cancellation by which that limit, or a client that leaves, ends a question.
        "socket_timeout": None,
        "socket_connect_timeout": reach.connect_timeout,
        "retry": Retry(NoBackoff(), reach.retries, supported_errors=(RedisConnectionError,)),
        "client_name": "postern",
        "driver_info": None,  # two round trips for each connection, to say which library this is
        "protocol": 2,
        **parse_url(url),
        "decode_responses": False,  # sealed values are no text, whatever the URL says
    }


def make_pool(options: dict[str, Any], limit: int) -> ConnectionPool:
    """A pool for those options. Opens nothing; a misspelt option is a TypeError here instead of at the first request."""
    pool: ConnectionPool = ConnectionPool(max_connections=limit, **options)
    pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's
    return pool


def _split(rest: str) -> tuple[list[str], str, str, str]:
    """Take `user:pw@h1:1,h2:2/path?query` apart: places, path, `?query`, `user:pw@`."""
    before, mark, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    user, at, hosts = authority.rpartition("@")
    places = [place for place in hosts.split(",") if place]
    if not places:
        raise ValueError("no host")
    return places, slash + path, mark + query, user + at


def _place(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or port


async def all_of(questions: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Put several questions at once. When one fails the others are not left behind: that one is raised when all are done."""
    answers = await asyncio.gather(*questions, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer


def seen(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended: whoever waited for it knows, and if nobody did, the next one tries again."""
    if not task.cancelled():
        task.exception()
