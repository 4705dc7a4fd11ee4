"""One worker: a gateway and the server that takes its connections, in this process.

It is either all there is, or one of several that a supervisor has started with `python -m proxy.worker FD`, FD being its end of
the talk (`control.py`). A supervised worker leaves signals to the supervisor, but for SIGTERM: whoever sends it that one, a
service manager to the whole group or a person to this process alone, means that it should finish what it does and go.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import uvloop

from proxy.control import Channel, Message, unpacked
from proxy.counters import Snapshot
from proxy.errors import CannotServe
from proxy.listening import Loads, Turn
from proxy.logs import configure
from proxy.measuring import measured
from proxy.serve import build, make_server
from proxy.settings import Settings

_LEFT_TO_THE_SUPERVISOR: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_log = logging.getLogger("postern")


class Worker:
    """One gateway at work. See `lifecycle.Crew` for the methods."""

    def __init__(
        self,
        settings: Settings,
        sockets: Sequence[socket.socket],
        *,
        generation: int = 1,
        turn: Turn | None = None,
        draining: Callable[[], None] = lambda: None,
    ) -> None:
        """`draining` is called when it is told to stop. Raises CannotServe."""
        self._gateway = build(settings)
        self._sockets = list(sockets)
        self._generation = generation
        self._turn = turn
        self._draining = draining
        self._server = make_server(self._gateway, turn)

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until told to stop and drained; `ready` is called once requests are served."""
        self._server.on_start = ready
        try:
            await self._gateway.start()
            await self._server.serve(self._sockets)
        finally:
            self._server.close_listeners()
            await self._gateway.close()

    async def reload(self, settings: Settings, generation: int) -> list[str]:
        """Serve by other settings; the problems that prevent it, and then nothing has changed."""
        try:
            self._gateway.adopt(settings)
        except CannotServe as error:
            return [str(error)]
        except Exception:  # noqa: BLE001 -- a bug must not take the worker along: it serves on as it did
            _log.exception("settings could not be taken")
            return ["they cannot be taken by what is running; the log says more"]
        self._generation = generation
        return []

    def reopen_logs(self) -> None:
        """Go on in new log files, the old ones having been moved away."""
        self._gateway.reopen_logs()

    async def numbers(self) -> Snapshot:
        """What this worker has counted, and how things stand."""
        return measured(self._gateway, self._generation)

    def stop(self) -> None:
        """Drain, then end."""
        if not self._server.should_exit:
            self._draining()
        self._server.stop()

    def stop_at_once(self) -> None:
        """End without waiting."""
        self._server.stop_at_once()


async def obey(channel: Channel) -> None:
    """Be a supervised worker: the first order says what to serve, the end of the talk that the supervisor is gone."""
    start = await channel.hear()
    if start is None:
        return
    settings = unpacked(start["settings"])
    configure(settings.log)
    turn = None
    if start["loads"] is not None:
        turn = Turn(Loads(start["loads"], start["workers"]), start["index"])
    sockets = [socket.socket(fileno=fd) for fd in start["listen"]]
    try:
        worker = Worker(
            settings,
            sockets,
            generation=start["generation"],
            turn=turn,
            draining=lambda: channel.say("draining"),
        )
    except CannotServe as error:
        _log.error("%s", error)
        raise SystemExit(1) from None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.stop)
    for number in _LEFT_TO_THE_SUPERVISOR:
        loop.add_signal_handler(number, lambda: None)
    orders = loop.create_task(_follow(worker, channel))
    try:
        await worker.run(lambda: channel.say("ready"))
        channel.say("numbers", numbers=await worker.numbers())
    finally:
        orders.cancel()
        await channel.close()


async def _follow(worker: Worker, channel: Channel) -> None:
    while (order := await channel.hear()) is not None:
        await _carry_out(worker, channel, order)
    worker.stop()  # nobody would start another one, or tell this one to stop


async def _carry_out(worker: Worker, channel: Channel, order: Message) -> None:
    match order["kind"]:
        case "reload":
            settings = unpacked(order["settings"])
            problems = await worker.reload(settings, order["generation"])
            if not problems:
                configure(settings.log)
            channel.say("reloaded", generation=order["generation"], problems=problems)
        case "numbers":
            channel.say("numbers", numbers=await worker.numbers())
        case "reopen_logs":
            worker.reopen_logs()
        case "stop":
            worker.stop()
        case "stop_at_once":
            worker.stop_at_once()


def main() -> None:
    """The process: `python -m proxy.worker FD`."""

    async def run() -> None:
        await obey(await Channel.over(socket.socket(fileno=int(sys.argv[1]))))

    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
