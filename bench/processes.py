"""Programs that run beside the benchmark: each pinned to a core, waited for until it answers, and surely ended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import machine

READY_SECONDS = 20.0


class Trouble(Exception):
    """A program did not do its part; says which and what it wrote."""


class Running:
    """A program on one core, leader of a session of its own; what it writes goes to `log`."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self.popen.pid

    def said(self) -> str:
        """The end of what it has written."""
        return self.log.read_text("utf-8", "replace")[-4000:]

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Return once `ready`; Trouble when that takes too long or the program has ended."""
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            if self.popen.poll() is not None:
                raise Trouble(f"{self.name} ended with status {self.popen.returncode}\n{self.said()}")
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name}: {what} not within {READY_SECONDS:.0f} s\n{self.said()}")
            time.sleep(0.02)

    def listening(self, port: int) -> None:
        """Return once something accepts connections on `port`."""
        self.wait_for(lambda: accepts(port), f"listening on {port}")

    def stop(self) -> None:
        """End it and whatever it started: politely, then not."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()


class Fleet:
    """Everything that one run starts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: list[Running] = []

    def start(
        self, name: str, argv: Sequence[str | Path], core: int, environ: Mapping[str, str] | None = None
    ) -> Running:
        """Start `argv` on `core`, in the fleet's directory, with next to nothing of this process's environment."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as sink:
            popen = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment(self.directory) | dict(environ or {}),
                start_new_session=True,  # so that Ctrl-C reaches only the benchmark, which then ends all of them
            )
        machine.precedence(popen.pid, os.getpriority(os.PRIO_PROCESS, 0))
        running = Running(name, popen, log)
        self._running.append(running)
        return running

    def stop(self, running: Running) -> None:
        """End one of them."""
        running.stop()
        self._running.remove(running)

    def ended(self) -> str:
        """Which of them have ended though nobody asked them to, and what they said last."""
        gone = (one for one in self._running if one.popen.poll() is not None)
        return "\n".join(f"{one.name} has ended with status {one.popen.returncode}\n{one.said()}" for one in gone)

    def stop_all(self) -> None:
        """End what is left, last first."""
        while self._running:
            self._running.pop().stop()


@contextlib.contextmanager
def fleet(directory: Path) -> Iterator[Fleet]:
    """A Fleet that is gone when the block ends, also by SIGTERM."""

    def stop(_number: int, _frame: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    it = Fleet(directory)
    try:
        yield it
    finally:
        signal.signal(signal.SIGTERM, before)
        it.stop_all()


def environment(home: Path) -> dict[str, str]:
    """What any program needs, and none of the caller's settings. /usr/sbin: where Debian keeps daemons."""
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"}


def free_port() -> int:
    """A loopback port that nobody listens on, below the kernel's ephemeral range so that no client is given it meanwhile."""
    for _ in range(200):
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise Trouble("no free loopback port")


def accepts(port: int) -> bool:
    """Whether something takes connections on `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
