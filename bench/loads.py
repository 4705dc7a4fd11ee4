"""The load generators, each on the core that is not the contender's: wrk, the open loop, the crowd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import Contender
from bench.processes import Trouble, environment
from bench.world import HERE, ROOT

SEED = 20  # of the open loop's schedule: the same moments for everyone
OPEN_CONNECTIONS = 64
TOLERATED = 0.005  # share of requests that may fail: counted and told, but no reason to throw everything away


def wrk(
    contender: Contender,
    path: str,
    seconds: float,
    connections: int,
    *,
    method: str = "GET",
    body: int = 0,
    more: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Closed loop: as many requests as go through in `seconds`. See wrk.lua for what comes out."""
    options = [
        "--threads",
        "1",
        "--connections",
        str(connections),
        "--timeout",
        "20s",
        "--script",
        str(HERE / "wrk.lua"),
    ]
    fields = {**contender.headers(), **(more or {})}
    headers = [part for name, value in fields.items() for part in ("--header", f"{name}: {value}")]
    extra = ["--", method, str(body)] if body else []
    url = f"http://127.0.0.1:{contender.port}{path}"
    out = _run(contender, ["wrk", *options, "--duration", f"{max(1, round(seconds))}s", *headers, url, *extra])
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    found["errors"] = sum(found[kind] for kind in ("unconnected", "cut", "refused", "late"))
    if found["errors"] > found["requests"] * TOLERATED:
        raise Trouble(f"{contender.title}: {found} for {path}\n{contender.running.said()}")
    return found


def open_loop(contender: Contender, path: str, rate: float, warmup: float, seconds: float) -> dict[str, float]:
    """Open loop: `rate` requests per second whatever happens. See openloop.c for what comes out."""
    headers = [f"{name}: {value}" for name, value in contender.headers().items()]
    numbers = [f"{rate:.0f}", str(warmup), str(seconds), str(OPEN_CONNECTIONS), str(SEED)]
    command = [str(contender.world.openloop), str(contender.port), path, *numbers, *headers]
    found: dict[str, float] = json.loads(_run(contender, command))
    if found["lost"] > found["requests"] * TOLERATED:
        raise Trouble(f"{contender.title}: {found} for {path} at {rate:.0f}/s\n{contender.running.said()}")
    return found


@dataclass(frozen=True, slots=True)
class Visitors:
    """A crowd of open connections to one contender: see crowd.py for its commands."""

    process: subprocess.Popen[str]

    def ask(self, command: str, number: int) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command} {number}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Trouble(f"the crowd has gone: {command}")
        found: dict[str, Any] = json.loads(line)
        return found

    def open(self, count: int, status: int) -> None:
        """Open `count` connections; Trouble when one is not answered with `status`."""
        answers = self.ask("open", count)
        if sum(number for line, number in answers.items() if line.startswith(f"HTTP/1.1 {status} ")) != count:
            raise Trouble(f"of {count} connections: {answers}")


@contextmanager
def visitors(contender: Contender, path: str, headers: Sequence[str] = ()) -> Iterator[Visitors]:
    """A crowd for the length of a `with` block; nobody has come yet."""
    core = contender.world.cores.rest
    mine = [f"{name}: {value}" for name, value in contender.headers().items()]
    argv = [sys.executable, "-m", "bench.crowd", str(contender.live_port), path, *mine, *headers]
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(contender.world.directory), "PYTHONPATH": str(ROOT)},
    )
    try:
        yield Visitors(process)
    finally:
        process.kill()
        process.communicate()


def _run(contender: Contender, command: list[str]) -> str:
    done = subprocess.run(
        ["taskset", "-c", str(contender.world.cores.rest), *command],
        env=environment(Path("/")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Trouble(
            f"{command[0]} against {contender.title}: {done.stderr or done.stdout}\n{contender.running.said()}"
        )
    return done.stdout
