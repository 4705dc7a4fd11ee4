"""Does anything grow? `python -m bench.soak [--minutes 10]`: Postern under all kinds of load, looked at in the pauses between.

Each cycle asks for small and large answers, sends bodies, signs people in, opens event streams and WebSockets and leaves them
without a word. Then the load stops, and once the connections are gone memory, descriptors, tasks and objects are counted. What
they are at the end of the run is held against what they were at its beginning. Exit status 1 when something has grown.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import machine
from bench.contenders import Postern
from bench.loads import visitors, wrk
from bench.processes import Trouble
from bench.world import HERE, World, world

SETTLE_SECONDS: Final = 10.0
VISITORS: Final = 200
WARMUP_CYCLES: Final = 2  # while caches fill and pools find their size
MIB: Final = 1 << 20


class Watched(Postern):
    """Postern through bench/watched.py."""

    @property
    def window(self) -> Path:
        """Where it writes what it sees of itself."""
        return self.world.directory / "window"

    def argv(self) -> Sequence[str | Path]:
        postern, *arguments = super().argv()
        return [Path(postern).with_name("python"), "-P", HERE / "watched.py", self.window, *arguments]

    def inside(self) -> tuple[int, int]:
        """How many unfinished tasks and how many objects there are."""
        self.window.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGRTMIN)
        self.running.wait_for(self.window.exists, "telling about itself")
        tasks, objects = self.window.read_text("ascii").split()
        return int(tasks), int(objects)


@dataclass(frozen=True, slots=True)
class Look:
    """What there is at one moment without load. Memory in bytes: resident, and what is its own (PSS)."""

    minute: float
    requests: int
    resident: int
    own: int
    descriptors: int
    tasks: int
    objects: int

    def line(self) -> str:
        return (
            f"| {self.minute:.1f} | {self.requests:,} | {self.resident / MIB:.1f} | {self.own / MIB:.1f} | {self.descriptors} | "
            f"{self.tasks} | {self.objects:,} |"
        )


HEAD: Final = (
    "| minute | requests so far | RSS, MiB | PSS, MiB | descriptors | tasks | objects |\n|--:|--:|--:|--:|--:|--:|--:|"
)
# What may differ between beginning and end, as a share and on top of it: pools and the allocator breathe.
ROOM: Final = {
    "resident": (0.03, 2 * MIB),
    "own": (0.03, 2 * MIB),
    "descriptors": (0.0, 40),
    "tasks": (0.0, 4),
    "objects": (0.03, 2000),
}


def main() -> int:
    """Run what the command line asks for. 0: nothing has grown, 1: something has, or did not work."""
    parser = argparse.ArgumentParser(prog="bench.soak", description="Looks for what grows in Postern under load.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--postern", type=Path, default=Path(sys.executable).with_name("postern"))
    asked = parser.parse_args()
    try:
        with world(asked.postern) as around:
            looks = _soak(around, asked.minutes * 60)
    except Trouble as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    grown = growth(looks[WARMUP_CYCLES:])
    print("\n" + ("; ".join(grown) if grown else "nothing has grown"))
    return 1 if grown else 0


def growth(looks: Sequence[Look]) -> list[str]:
    """What was more in the last third of `looks` than in the first, beyond what it may breathe, in words."""
    third = max(1, len(looks) // 3)
    grown = []
    for name, (share, room) in ROOM.items():
        first = statistics.median(getattr(look, name) for look in looks[:third])
        last = statistics.median(getattr(look, name) for look in looks[-third:])
        if last > first * (1 + share) + room:
            grown.append(f"{name} has grown from {first:,.0f} to {last:,.0f}")
    return grown


def _soak(around: World, seconds: float) -> list[Look]:
    contender = Watched(around)
    contender.start()
    started = time.monotonic()
    idle = machine.descriptors(contender.pid)
    looks, requests = list[Look](), 0
    print(HEAD)
    while time.monotonic() - started < seconds or len(looks) < WARMUP_CYCLES + 3:
        requests += _cycle(contender)
        looks.append(_look(contender, (time.monotonic() - started) / 60, requests, idle))
        print(looks[-1].line(), flush=True)
    return looks


def _cycle(contender: Postern) -> int:
    """All kinds of load, some of it at the same time; returns how many requests were answered."""
    with contextlib.ExitStack() as stack:
        for path, status, headers in (("/live/events", 200, ()), ("/live/socket", 101, contender.socket_headers())):
            stack.enter_context(visitors(contender, path, headers)).open(VISITORS, status)
        contender.cookie = contender.signed_in()
        done = [
            wrk(contender, "/small", 6, 32),
            wrk(contender, "/upload", 3, 32, method="POST", body=10 << 10),
            wrk(contender, "/100k", 3, 32),
            wrk(contender, "/10m", 2, 8),
        ]
    return int(sum(one["requests"] for one in done)) + 2 * VISITORS


def _look(contender: Watched, minute: float, requests: int, idle: int) -> Look:
    """Wait until what the load left is gone, as far as it goes, and count."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while machine.descriptors(contender.pid) > idle + 40 and time.monotonic() < deadline:
        time.sleep(0.1)
    tasks, objects = contender.inside()
    pid = contender.pid
    resident, own = machine.resident(pid), machine.memory(pid)
    return Look(minute, requests, resident, own, machine.descriptors(pid), tasks, objects)


if __name__ == "__main__":
    sys.exit(main())
