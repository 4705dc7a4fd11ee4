"""The life of a gateway, from its settings to its end: signals, reloads, metrics, and what the service manager is told.

SIGTERM and SIGINT drain, a second one does not wait. SIGHUP reads the settings again and opens the log anew, SIGUSR1 only the
latter. Whether the work is done by this process or by several others makes no difference here: see `Crew`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import uvloop

from proxy.counters import Snapshot
from proxy.descriptors import make_room
from proxy.errors import CannotServe
from proxy.listening import bind
from proxy.logs import configure
from proxy.notify import Notifier, passed_sockets
from proxy.reloading import Source, Watch, merged
from proxy.settings import Listen, Settings, SettingsError

_LOOK_SECONDS: Final = 1.0  # between looks at the files that settings come from
_log = logging.getLogger("postern")


class Crew(Protocol):
    """Whoever does the work: one worker in this process, or a supervisor with several."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop, and drained. `ready` is called once requests are served. Raises CannotServe."""

    async def reload(self, settings: Settings, generation: int) -> list[str]:
        """Serve by other settings from now on; the problems that prevent it, and then those in force stay."""

    def reopen_logs(self) -> None:
        """Go on in new log files, the old ones having been moved away."""

    async def numbers(self) -> Snapshot:
        """What was counted, and how things stand."""

    def stop(self) -> None:
        """Drain, then end. More than once does no harm."""

    def stop_at_once(self) -> None:
        """End without waiting."""


class Life:
    """One run of the gateway."""

    def __init__(self, settings: Settings, source: Source, crew: Crew, notifier: Notifier) -> None:
        self._settings = settings
        self._source = source
        self._crew = crew
        self._notifier = notifier
        self._generation = 1
        self._stopping = False
        self._asked = asyncio.Event()  # SIGHUP

    async def run(self) -> None:
        """Live. Returns when everything has been drained. Raises CannotServe."""
        # Before anything else: what is changed while the workers start is a change as well.
        watch = Watch(lambda: self._source.files(self._settings))
        async with AsyncExitStack() as stack:
            stack.enter_context(
                _signals(
                    {
                        signal.SIGTERM: self._told_to_stop,
                        signal.SIGINT: self._told_to_stop,
                        signal.SIGHUP: self._asked.set,
                        signal.SIGUSR1: self._crew.reopen_logs,
                    }
                )
            )
            if self._settings.metrics.listen is not None:
                from proxy.metrics import metrics_on  # noqa: PLC0415 -- loaded only where it is wanted

                sockets = listeners(self._settings.metrics.listen)
                await stack.enter_async_context(metrics_on(sockets, self._crew.numbers))
            for work in (self._reload_when_asked(watch), self._say_alive()):
                stack.push_async_callback(_ended, asyncio.get_running_loop().create_task(work))
            await self._crew.run(self._ready)

    def _ready(self) -> None:
        _log.info("listening on %s for %s", self._settings.listen, self._settings.public_url)
        self._notifier.ready(f"serving {self._settings.public_url}")

    def _told_to_stop(self) -> None:
        if self._stopping:
            _log.warning("told to stop again: not waiting for what is under way")
            self._crew.stop_at_once()
            return
        self._stopping = True
        _log.info("stopping: draining for up to %g s", self._settings.drain.delay + self._settings.drain.timeout)
        self._notifier.stopping()
        self._crew.stop()

    async def _say_alive(self) -> None:
        while self._notifier.watchdog is not None:
            self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog)

    async def _reload_when_asked(self, watch: Watch) -> None:
        every = _LOOK_SECONDS if self._settings.reload == "watch" else None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                self._crew.reopen_logs()
                await asyncio.to_thread(watch.known)  # a file system can be slow
            elif not await asyncio.to_thread(watch.changed):
                continue
            if not self._stopping:
                await self._reload()
                await asyncio.to_thread(watch.renamed)

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            read = await asyncio.to_thread(self._source.read)
        except SettingsError as error:
            problems = [str(problem) for problem in error.problems]
        else:
            settings, kept = merged(self._settings, read)
            for key in kept:
                _log.warning("%s cannot be changed while the gateway runs: it stays as it is until a restart", key)
            problems = await self._crew.reload(settings, self._generation + 1)
            if not problems:
                self._generation += 1
                self._settings = settings
                for warning in settings.warnings:
                    _log.warning("%s", warning)
                _log.info("settings reloaded: generation %d", self._generation)
                configure(settings.log)  # not before: they may want to hear less
        for problem in problems:
            _log.error("settings not taken: %s", problem)
        if problems:
            _log.error("the settings in force stay as they are: generation %d", self._generation)
        self._notifier.ready(f"serving {self._settings.public_url}")


@contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def listeners(listen: Listen) -> list[socket.socket]:
    """Sockets that listen there. Raises CannotServe."""
    try:
        return bind(listen)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CannotServe(f"cannot listen on {listen}: {reason}; is something else running there?") from None


def run(settings: Settings, source: Source) -> None:
    """Run the gateway until it is told to stop: in this process, or in as many others as `workers` says.

    Raises CannotServe.
    """
    configure(settings.log)
    for warning in settings.warnings:
        _log.warning("%s", warning)
    if lacking := make_room(settings.limits.max_connections):
        _log.warning("%s", lacking)
    notifier = Notifier(os.environ)
    sockets = passed_sockets(os.environ)
    passed = bool(sockets)
    sockets = sockets or listeners(settings.listen)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(settings, source, sockets, notifier))
    finally:
        if settings.listen.path is not None and not passed:
            with suppress(OSError):
                Path(settings.listen.path).unlink()
    _log.info("stopped")


async def _live(settings: Settings, source: Source, sockets: list[socket.socket], notifier: Notifier) -> None:
    crew: Crew
    if settings.workers > 1:
        from proxy.supervisor import Supervisor  # noqa: PLC0415 -- it does without what serves requests

        crew = Supervisor(settings, sockets)
    else:
        from proxy.worker import Worker  # noqa: PLC0415 -- see above

        crew = Worker(settings, sockets)
    await Life(settings, source, crew, notifier).run()
