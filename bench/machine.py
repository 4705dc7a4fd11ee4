"""What the kernel says of cores, of who used how much of them, and of how much memory processes hold: /proc, see proc(5)."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds
WANTED_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Cores:
    """Two cores: one for the contenders alone, one for everything around them."""

    contender: int
    rest: int


class MachineTooSmall(Exception):
    """Nothing can be measured fairly here; says why."""


def cores() -> Cores:
    """The first two cores this process may use. MachineTooSmall when there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise MachineTooSmall("needs two cores: one for the proxy, one for the load and the app behind")
    return Cores(usable[0], usable[1])


def allow_many_files() -> int:
    """Raise this process's (and its children's) limit of open files as far as it goes; returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def precedence(pid: int, nice: int) -> None:
    """Let the session of `pid` go before others (`nice` below 0) where the kernel shares cores out by sessions: sched(7)."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), "ascii")
    except OSError:  # no such kernel, or no such right
        return


def family(root: int) -> set[int]:
    """`root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        stat = _stat(pid)
        if stat:
            children.setdefault(int(stat[1]), []).append(pid)
    found, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting.extend(children.get(pid, ()))
    return found


def cpu_seconds(root: int) -> float:
    """CPU that `root` and its descendants have used, user and system, with what their ended children used."""
    return sum(sum(map(int, stat[11:15])) for pid in family(root) if (stat := _stat(pid))) * TICK


def memory(root: int) -> int:
    """Bytes that `root` and its descendants hold, each shared page counted once over all who share it (PSS)."""
    return sum(_pss(pid) for pid in family(root))


def resident(root: int) -> int:
    """Resident bytes of `root` and its descendants, shared pages counted for each of them (RSS)."""
    pages = (_read(f"/proc/{pid}/statm").split() for pid in family(root))
    return sum(int(fields[1]) for fields in pages if len(fields) > 1) * os.sysconf("SC_PAGE_SIZE")


def descriptors(root: int) -> int:
    """Open file descriptors of `root` and its descendants."""
    count = 0
    for pid in family(root):
        try:
            count += len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 -- names only, of a directory that changes meanwhile
        except OSError:
            continue
    return count


def load_average() -> float:
    """Processes that wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a stretch of time cost. `cpu`: seconds, of one process tree. `foreign`: cores that processes not ours kept busy."""

    seconds: float
    cpu: float
    foreign: float
    load: float


class Meter:
    """Measures a process tree for as long as its `with` block lasts; then `usage` tells."""

    usage: Usage

    def __init__(self, root: int) -> None:
        self._root = root

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._busy, self._ours = _busy(), cpu_seconds(os.getpid())
        self._cpu = cpu_seconds(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cpu = cpu_seconds(self._root) - self._cpu
        seconds = time.monotonic() - self._started
        foreign = (_busy() - self._busy) - (cpu_seconds(os.getpid()) - self._ours)
        self.usage = Usage(seconds, cpu, max(0.0, foreign / seconds), load_average())


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 -- many short names, often


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:  # the process is gone
        return ""


def _stat(pid: int) -> list[str]:
    """The fields of a process's stat from the third on (comm, the second, may hold spaces and parens); empty: gone."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _pss(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _busy() -> float:
    """Seconds that all cores together have worked, and that the hypervisor took from them, since the machine started."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, _read("/proc/stat").splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK
