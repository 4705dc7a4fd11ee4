"""Real processes for the end-to-end tests: started, waited for, logged, and surely ended.

Nothing here sleeps to synchronise: readiness and conditions are polled against a deadline, and a process that dies
while somebody waits for it fails at once, with what it wrote.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

POSTERN = Path(sys.executable).with_name("postern")
READY_WITHIN = 30.0
LOG_TAIL = 12_000

T = TypeVar("T")


class NeverHappened(AssertionError):
    """A condition did not come true before its deadline."""


def eventually(check: Callable[[], T | None], *, within: float = 10.0, every: float = 0.02, what: str = "") -> T:
    """Call `check` until it returns something truthy and return that; NeverHappened after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise NeverHappened(f"not within {within:g} s: {what or check}")
        time.sleep(every)


def free_port(count: int = 1) -> int:
    """The first of `count` consecutive loopback ports that nobody listens on, on IPv4 and IPv6 alike.

    Taken below the kernel's ephemeral range (32768 and up), so that no outgoing connection can be given the same port
    between this moment and the server's own bind.
    """
    for _ in range(200):
        port = _PORTS.randint(20_000, 32_000)
        if all(_can_bind(*loopback, port + more) for loopback in _LOOPBACKS for more in range(count)):
            return port
    raise NeverHappened("no free loopback port")


_PORTS = random.SystemRandom()  # Hypothesis gives every example the same numbers of the ordinary one
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def _can_bind(family: socket.AddressFamily, address: str, port: int) -> bool:
    with socket.socket(family) as probe:
        try:
            probe.bind((address, port))
        except OSError as error:
            return family is socket.AF_INET6 and "assign requested address" in str(error)  # a machine without IPv6
    return True


def http_status(url: str, *, timeout: float = 2.0) -> int | None:
    """The status of a bare GET, or None when nobody answers HTTP there. Whose certificate it is does not matter."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl._create_unverified_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        connection.request("GET", parts.path or "/", headers={"Accept": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@dataclass(slots=True)
class Running:
    """One process, leader of a session of its own; everything it writes goes to `log`."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        """Everything written so far to stdout and stderr, in order."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> set[int]:
        """The process and all its living descendants."""
        return set(_descendants(self.pid))

    def rss(self) -> int:
        """Resident bytes of the process and all its descendants."""
        return sum(_rss(pid) for pid in self.family())

    def signal(self, number: signal.Signals) -> None:
        """Signal the leader alone: what its children do about it is the program's own job."""
        self.popen.send_signal(number)

    def wait(self, within: float = 20.0) -> int:
        """Its exit status; AssertionError with its output when it is still there after `within` seconds."""
        try:
            return self.popen.wait(within)
        except subprocess.TimeoutExpired:
            raise NeverHappened(f"{self.name} still runs after {within:g} s\n{self.output()}") from None

    def ready(self, url: str, *, status: Callable[[int], bool] = lambda status: status < 500) -> None:
        """Wait until `url` answers with a status that pleases; fail at once when the process has ended."""

        def check() -> bool:
            if not self.alive:
                raise NeverHappened(
                    f"{self.name} ended with {self.popen.returncode} before it was ready\n{self.output()}"
                )
            answer = http_status(url)
            return answer is not None and status(answer)

        eventually(check, within=READY_WITHIN, every=0.05, what=f"{self.name} answers {url}\n{self.output()}")

    def stop(self, within: float = 10.0) -> int:
        """SIGTERM, then SIGKILL for the whole group after `within` seconds. Returns the exit status."""
        if self.alive:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(within)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.popen.wait()


class Processes:
    """Starts processes and ends what it started, last first. One per test session or module."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[Running] = []
        self._marks: dict[Path, int] = {}

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Running:
        """Start `argv` with nothing from our environment but what any program needs, plus `env`; HOME is `directory`."""
        log = self.directory / f"{len(self.started):02d}-{name}.log"
        with log.open("wb") as sink:
            popen = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**_bare_environment(), "HOME": str(self.directory), **(env or {})},
                cwd=cwd or self.directory,
                start_new_session=True,
            )
        running = Running(name, popen, log)
        self.started.append(running)
        return running

    def postern(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Running:
        """Start the installed `postern` command, the very one that people run, measured when this run measures."""
        return self.start(
            f"postern-{arguments[0]}", [POSTERN, *arguments], env={**_measuring(), **(env or {})}, cwd=cwd
        )

    def stop_all(self) -> None:
        """Ask all of them to end, then see to it that they do."""
        for running in self.started:
            if running.alive:
                running.signal(signal.SIGCONT)  # a stopped one would not hear
                running.signal(signal.SIGTERM)
        for running in reversed(self.started):
            running.stop()

    def mark(self) -> None:
        """From here on `reports` tells: a test begins."""
        self._marks = {running.log: len(running.output()) for running in self.started}

    def reports(self) -> list[tuple[str, str]]:
        """(title, output) of every process that wrote anything since the mark, for a failing test's report."""
        new = ((running, running.output()[self._marks.get(running.log, 0) :][-LOG_TAIL:]) for running in self.started)
        return [(f"{running.name} (pid {running.pid}, {_state(running)})", said) for running, said in new if said]


@contextlib.contextmanager
def processes(directory: Path) -> Iterator[Processes]:
    """A Processes whose processes end with the block, whatever happens in it."""
    directory.mkdir(parents=True, exist_ok=True)
    group = Processes(directory)
    try:
        yield group
    finally:
        group.stop_all()


def start_redis(group: Processes, port: int | None = None) -> tuple[Running, str]:
    """A redis-server that keeps nothing on disk; returns it with its URL."""
    port = port or free_port()
    program = shutil.which("redis-server")
    assert program, "redis-server is not installed: see tests/system-packages.txt"
    running = group.start(
        "redis", [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    )
    eventually(lambda: _accepts(port), within=READY_WITHIN, what="redis-server listens")
    return running, f"redis://127.0.0.1:{port}/0"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A running stand-in for Logto that knows the gateway at `public_url`."""

    url: str
    public_url: str
    running: Running


def start_sandbox(group: Processes, public_url: str) -> Sandbox:
    """Start a stand-in Logto for the gateway at `public_url`."""
    port = free_port()
    url = f"http://localhost:{port}"
    running = group.postern("sandbox", "--port", str(port), "--public-url", public_url)
    running.ready(url + "/oidc/.well-known/openid-configuration")
    return Sandbox(url, public_url, running)


def run_postern(*arguments: str | Path, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a `postern` command that ends by itself; nothing of the caller's environment but `env` is a setting."""
    return subprocess.run(
        [POSTERN, *arguments],
        env={**_bare_environment(), **_measuring(), "HOME": str(cwd), **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def living(pids: set[int]) -> set[int]:
    """Those of `pids` that still run; a zombie does not."""
    return {pid for pid in pids if (stat := _stat(pid)) and stat[0] != "Z"}


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _bare_environment() -> dict[str, str]:
    """What a login shell would have; no setting of the developer's by accident."""
    carried = {name: os.environ[name] for name in ("PATH", "USER", "TZ", "TMPDIR") if name in os.environ}
    return {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **carried}


def _measuring() -> dict[str, str]:
    """How coverage makes itself known to child processes, when it runs."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def _state(running: Running) -> str:
    return "running" if running.alive else f"exit status {running.popen.returncode}"


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, parent) of a process from /proc; None when it is gone. See proc(5): comm may hold spaces and parens."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def _descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(stat[1], []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting.extend(children.get(pid, ()))


def _rss(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
