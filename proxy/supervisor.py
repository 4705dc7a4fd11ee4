"""Several workers on one port: started, told what to do, asked for their numbers, and replaced when they end unasked.

The supervisor itself touches no request. It opens the socket, hands it to every worker and keeps it open, so that
connections wait while a worker is replaced instead of being refused. Workers are started afresh, not forked: each is a clean
interpreter, whatever threads and event loops the supervisor has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from proxy.control import Channel, Message, packed
from proxy.counters import Snapshot, added, without_routes_but
from proxy.errors import CannotServe
from proxy.listening import GONE, Loads, server_tls
from proxy.routes import RouteTable
from proxy.settings import Settings

FIRST_PAUSE: Final = (
    0.5  # seconds before a worker that crashed soon after its start is replaced; each further one twice as long
)
LONGEST_PAUSE: Final = 30.0
STEADY: Final = 30.0  # seconds of work after which a crash is not one of a series
_NUMBERS_WITHIN: Final = 1.0  # seconds that a scrape waits for a worker; its last numbers do otherwise
_RELOAD_WITHIN: Final = 15.0
_LETTING_GO: Final = 15.0  # seconds beyond the draining that a worker may take to let go of everything outside
_AT_ONCE: Final = 5.0  # the same when it is not to wait for anything
_log = logging.getLogger("postern")


class _Child:
    """One worker process, from its start to its end."""

    def __init__(self, index: int, process: Process, channel: Channel) -> None:
        self.index = index
        self.process = process
        self.channel = channel
        self.started_at = asyncio.get_running_loop().time()
        self.leaving = asyncio.Event()  # it takes no more connections: it drains, or has ended
        self._silent = False  # it says no more
        self.numbers: Snapshot = {}
        self._asked: list[asyncio.Future[None]] = []
        self._reloading: dict[int, asyncio.Future[list[str]]] = {}

    async def listen(self, ready: Callable[[], None]) -> None:
        """Hear what it says, until it says no more."""
        while (message := await self.channel.hear()) is not None:
            self._heard(message, ready)
        self._silent = True
        self.leaving.set()
        for asked in self._asked:
            asked.cancel()
        for reloading in self._reloading.values():
            reloading.cancel()

    def _heard(self, message: Message, ready: Callable[[], None]) -> None:
        match message:
            case {"kind": "ready"}:
                ready()
            case {"kind": "draining"}:
                self.leaving.set()
            case {"kind": "numbers", "numbers": dict(numbers)}:
                self.numbers = added([numbers])
                for future in self._asked:
                    if not future.done():
                        future.set_result(None)
                self._asked.clear()
            case {"kind": "reloaded", "generation": int(generation), "problems": list(problems)}:
                waiting = self._reloading.pop(generation, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result([str(problem) for problem in problems])

    async def ask_numbers(self) -> Snapshot:
        """Its numbers now, or the last ones when it does not answer in time."""
        if self._silent:
            return self.numbers
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(answered)
        self.channel.say("numbers")
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(_NUMBERS_WITHIN):
                await answered
        return self.numbers

    async def reload(self, settings: str, generation: int) -> list[str]:
        """Have it serve by other settings; the problems that prevented it."""
        answered: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._reloading[generation] = answered
        self.channel.say("reload", settings=settings, generation=generation)
        try:
            async with asyncio.timeout(_RELOAD_WITHIN):
                return await answered
        except (TimeoutError, asyncio.CancelledError):
            return [f"worker {self.process.pid} did not answer"]


class Supervisor:
    """Keeps `settings.workers` workers at work. See `lifecycle.Crew` for the methods."""

    def __init__(self, settings: Settings, sockets: Sequence[socket.socket]) -> None:
        self._settings = settings
        self._sockets = list(sockets)
        self._generation = 1
        self._count = settings.workers
        self._loads_fd = Loads.shared(self._count)
        self._loads = Loads(self._loads_fd, self._count)
        self._children: set[_Child] = set()
        self._ready: set[int] = set()  # indices of workers that have been ready at least once
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._lasting: Snapshot = {}  # what workers that have ended had counted
        self._restarts = 0

    async def run(self, ready: Callable[[], None]) -> None:
        """Keep the workers at work until told to stop, and all have ended. `ready` is called once all of them serve.

        Raises CannotServe when one of them cannot even start.
        """

        def one_ready(index: int) -> None:
            before = len(self._ready)
            self._ready.add(index)
            if before < len(self._ready) == self._count:
                ready()

        failure: str | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(self._count):
                    group.create_task(self._keep(index, one_ready, group))
        except* CannotServe as failures:
            failure = str(failures.exceptions[0])
        finally:
            await self._kill()
        if failure is not None:
            raise CannotServe(failure)

    async def reload(self, settings: Settings, generation: int) -> list[str]:
        """Have every worker serve by other settings; the problems that prevented it in any of them."""
        try:
            RouteTable.from_settings(settings)
            server_tls(settings.tls)
        except CannotServe as error:
            return [str(error)]
        self._settings, self._generation = settings, generation
        order = packed(settings)
        answers = await asyncio.gather(*(child.reload(order, generation) for child in self._at_work()))
        return sorted({problem for problems in answers for problem in problems})

    def reopen_logs(self) -> None:
        """Have every worker go on in new log files."""
        self._tell_all("reopen_logs")

    async def numbers(self) -> Snapshot:
        """The sum of the workers' numbers, those that have ended included."""
        answers = await asyncio.gather(*(child.ask_numbers() for child in self._children))
        own: Snapshot = {"postern_worker_restarts_total": [[self._restarts]]}
        return without_routes_but(added([self._lasting, own, *answers]), [route.name for route in self._settings.route])

    def stop(self) -> None:
        """Drain every worker, then end."""
        if not self._stopping.is_set():
            self._stopping.set()
            for sock in self._sockets:  # the workers' copies are now the last: what they do not take is refused
                sock.close()
            self._tell_all("stop")

    def stop_at_once(self) -> None:
        """End without waiting."""
        self.stop()
        self._at_once.set()
        self._tell_all("stop_at_once")

    # -- one place among the workers

    async def _keep(self, index: int, ready: Callable[[int], None], group: asyncio.TaskGroup) -> None:
        """Have a worker at work in this place, again and again, until all are to stop."""
        pause = 0.0
        while not self._stopping.is_set():
            child = await self._start(index)
            group.create_task(self._attend(child, ready))
            await child.leaving.wait()
            self._loads.publish(index, GONE)
            if self._stopping.is_set():
                return
            if index not in self._ready:
                raise CannotServe("a worker could not start")
            self._restarts += 1
            pause = pause_after(pause, asyncio.get_running_loop().time() - child.started_at)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _start(self, index: int) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            listen = [sock.fileno() for sock in self._sockets]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "proxy.worker", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._loads_fd, *listen),
                # What this process imports from, and nothing by accident of the directory it runs in.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C and a closed terminal are for the supervisor
            )
        child = _Child(index, process, await Channel.over(ours))
        self._children.add(child)
        child.channel.say(
            "start",
            settings=packed(self._settings),
            generation=self._generation,
            index=index,
            workers=self._count,
            loads=self._loads_fd,
            listen=listen,
        )
        if self._stopping.is_set():
            child.channel.say("stop")
        return child

    async def _attend(self, child: _Child, ready: Callable[[int], None]) -> None:
        """Listen to a worker, and see it to its end."""
        watch = asyncio.get_running_loop().create_task(self._see_to_its_end(child))
        try:
            await child.listen(lambda: ready(child.index))
            status = await child.process.wait()
        finally:
            watch.cancel()
        self._children.discard(child)
        self._lasting = added([self._lasting, child.numbers], "lasting")
        if status:
            _log.error("worker %d ended unexpectedly: %s", child.process.pid, _how(status))
        elif not self._stopping.is_set():
            _log.warning("worker %d was told to stop, and another one takes its place", child.process.pid)
        await child.channel.close()

    async def _see_to_its_end(self, child: _Child) -> None:
        """Kill a worker that is to stop and does not end in time."""
        loop = asyncio.get_running_loop()
        reasons = [loop.create_task(event.wait()) for event in (child.leaving, self._stopping)]
        try:
            await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for reason in reasons:
                reason.cancel()
        drain = self._settings.drain
        with suppress(TimeoutError):
            async with asyncio.timeout(drain.delay + drain.timeout + _LETTING_GO):
                await self._at_once.wait()
                await asyncio.sleep(_AT_ONCE)
        _log.error("worker %d does not end, and is killed", child.process.pid)
        with suppress(ProcessLookupError):
            child.process.kill()

    async def _kill(self) -> None:
        """Leave nobody and nothing behind; when all has gone well, nobody is there."""
        for child in self._children:
            with suppress(ProcessLookupError):
                child.process.kill()
            await child.process.wait()
            await child.channel.close()
        self._children.clear()
        for sock in self._sockets:
            sock.close()
        os.close(self._loads_fd)

    def _at_work(self) -> list[_Child]:
        return [child for child in self._children if not child.leaving.is_set()]

    def _tell_all(self, kind: str) -> None:
        for child in self._children:
            child.channel.say(kind)


def pause_after(pause: float, lived: float) -> float:
    """How long to wait before a worker that lived so long is replaced; `pause` was the wait before that one. In seconds."""
    return 0.0 if lived > STEADY else min(max(pause * 2, FIRST_PAUSE), LONGEST_PAUSE)


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
