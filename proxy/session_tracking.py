"""One connection to one Redis server, on which it reports every change of a session at once.

`CLIENT TRACKING ON BCAST PREFIX postern:s:` has the server push the name of each such key that is written, deleted or
expires, whoever does it (https://redis.io/docs/latest/develop/reference/client-side-caching/). Pushes and answers share
the connection and keep their order: when a question has been answered, everything that changed before it was put has been
reported. So a question is put every second, and what was read counts only while it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from proxy.session_cache import LEASE_SECONDS, Line
from proxy.session_codec import SESSIONS, Kind

_HEARTBEAT: Final = 1.0
_RETRY_AFTER: Final = 0.05  # the first time; then twice as long each time, up to
_RETRY_AFTER_MOST: Final = 1.0
_REFUSED_RETRY_AFTER: Final = 30.0  # a server that does not want to track will not change its mind soon
_log = logging.getLogger("postern.session")
_PUSH: Final = object()


@dataclass(frozen=True, slots=True)
class Listener:
    """Who wants to know."""

    changed: Callable[[Iterable[str]], None]  # these sessions' records have changed
    flushed: Callable[[], None]  # all of them may have
    up: Callable[[Line], None]  # reports begin: what is read from now on is covered by that line
    down: Callable[[], None]  # reports have ceased, or could not begin


class Refused(ResponseError):
    """The server answers, but does not report changes."""


class Tracker:
    """Keeps one server reporting, for as long as `run` runs. `line` tells whether it does."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], AbstractConnection],
        probe: Callable[[AbstractConnection], Awaitable[tuple[str, ...]]],
        check: Callable[[Any], None],
        listener: Listener,
        *,
        clock: Callable[[], float],
        timeout: float,
        kind: Kind = SESSIONS,
    ) -> None:
        """`connect` makes a connection, unconnected, that speaks RESP3; `timeout` in seconds, for connecting and asking.

        `probe` names the question of every heartbeat, or raises when the connection leads to the wrong server; `check` raises
        when its answer, which may be a ResponseError, shows that.
        """
        self.name = name
        self.line = Line()
        self._connect = connect
        self._probe = probe
        self._check = check
        self._listener = listener
        self._clock = clock
        self._timeout = timeout
        self._kind = kind
        self._answer: asyncio.Future[Any] | None = None
        self._failure: Exception | None = None
        self._silent = True  # nobody has been told yet that it does not work

    async def run(self) -> None:
        """Connect, follow, and connect again, until cancelled. Raises nothing."""
        delay = _RETRY_AFTER
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 -- whatever went wrong: reports have ceased, and must begin again
                self._complain(error)
                if isinstance(error, Refused):
                    delay = _REFUSED_RETRY_AFTER
                elif asyncio.get_running_loop().time() - began > _RETRY_AFTER_MOST:
                    delay = _RETRY_AFTER
            # Not all workers at the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 -- no secret
            delay = min(delay * 2, _RETRY_AFTER_MOST)

    async def _follow(self) -> None:
        """Follow one connection to its end. Always raises."""
        self._failure = None
        connection = self._connect()
        parser: Any = connection._parser  # noqa: SLF001 -- redis-py has no other door to pushes for asyncio
        parser.set_invalidation_push_handler(self._pushed)
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
                asked_at = self._clock()
                await self._ask_to_track(connection)
                self._check(await self._ask(connection, await self._probe(connection)))
            self.line = Line()  # a new one: what an earlier connection covered stays uncovered
            self.line.confirm(asked_at)
            self._recovered()
            self._listener.up(self.line)
            await self._listen(connection)
        finally:
            self.line.cut()
            self._listener.down()
            await connection.disconnect(nowait=True)

    async def _ask_to_track(self, connection: AbstractConnection) -> None:
        await connection.send_command("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._kind.prefix)
        try:
            await connection.read_response()
        except ResponseError as error:
            raise Refused(str(error)) from None

    @staticmethod
    async def _ask(connection: AbstractConnection, question: tuple[str, ...]) -> Any:
        await connection.send_command(*question)
        try:
            return await connection.read_response()
        except ResponseError as error:
            return error

    async def _listen(self, connection: AbstractConnection) -> None:
        tasks = [asyncio.create_task(self._read(connection)), asyncio.create_task(self._beat(connection))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                answer = await connection.read_response(timeout=math.inf, push_request=True)
            except ResponseError as error:
                answer = error
            if self._failure is not None:
                raise self._failure
            if answer is not _PUSH and self._answer is not None and not self._answer.done():
                self._answer.set_result(answer)

    async def _beat(self, connection: AbstractConnection) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            asked_at = self._clock()
            # A silence is not yet a loss: the line itself tells when it is no longer good.
            async with asyncio.timeout(LEASE_SECONDS):
                question = await self._probe(connection)
                self._answer = asyncio.get_running_loop().create_future()
                await connection.send_command(*question)
                self._check(await self._answer)
            self.line.confirm(asked_at)

    async def _pushed(self, push: list[Any]) -> object:
        """Take one push: `invalidate` with a list of keys, or with null after FLUSHALL and FLUSHDB."""
        try:
            keys = push[1]
            if keys is None:
                self._listener.flushed()
            else:
                prefix = self._kind.prefix
                self._listener.changed([key.decode("ascii", "replace").removeprefix(prefix) for key in keys])
        except Exception as error:  # noqa: BLE001 -- redis-py would log it and go on, with a change that nobody heard of
            self._failure = error
        return _PUSH

    def _complain(self, error: Exception) -> None:
        if not self._silent:
            return
        self._silent = False
        what = f"{type(error).__name__}: {error}" if isinstance(error, RedisError) else type(error).__name__
        complaint = "%s does not report changes of %ss, each request asks it until it does: %s"
        _log.warning(complaint, self.name, self._kind.purpose, what)

    def _recovered(self) -> None:
        if not self._silent:
            self._silent = True
            _log.info("%s reports changes of %ss", self.name, self._kind.purpose)
