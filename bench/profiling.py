"""Where Postern's CPU goes under load: `python -m bench.profiling [PATH] [--method POST --body 10240]`, sampled by py-spy.

Prints the functions that the interpreter was in when it was looked at, by their own time and by the time of everything that they
call. py-spy looks from outside, and stops the process for a moment each time so as to see whole stacks.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

from bench.contenders import Postern
from bench.loads import wrk
from bench.processes import Trouble
from bench.world import World, world

RATE: Final = 200  # looks per second
_LINE: Final = re.compile(r":\d+\)$")
_SITE: Final = re.compile(r"\(.*/(?:site-packages|lib/python3\.\d+)/")


def main() -> int:
    """Run what the command line asks for. 0: done, 1: something did not work."""
    parser = argparse.ArgumentParser(prog="bench.profiling", description="Shows where Postern's CPU goes under load.")
    parser.add_argument("path", nargs="?", default="/small", help="what is asked for; default: /small")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--body", type=int, default=0, help="bytes of a request's body")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--top", type=int, default=30, help="how many functions to show")
    parser.add_argument("--postern", type=Path, default=Path(sys.executable).with_name("postern"))
    asked = parser.parse_args()
    try:
        with world(asked.postern) as around:
            stacks = _record(around, asked)
    except Trouble as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    print(table(stacks, asked.top))
    return 0


def _record(around: World, asked: argparse.Namespace) -> Counter[str]:
    contender = Postern(around)
    contender.start()
    wrk(contender, asked.path, 2, 32, method=asked.method, body=asked.body)
    output = around.directory / "stacks"
    options = ["--pid", str(contender.pid), "--duration", str(asked.seconds), "--rate", str(RATE)]
    command = ["py-spy", "record", *options, "--format", "raw", "--output", str(output)]
    spy = subprocess.Popen(
        ["taskset", "-c", str(around.cores.rest), Path(sys.executable).with_name("py-spy"), *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wrk(contender, asked.path, asked.seconds + 2, 32, method=asked.method, body=asked.body)
    _, said = spy.communicate(timeout=30)
    if spy.returncode:
        raise Trouble(f"py-spy: {said}")
    return read_stacks(output.read_text("utf-8"))


def read_stacks(text: str) -> Counter[str]:
    """Read py-spy's raw format, one line for each stack with the number of times it was seen; lines in functions do not count."""
    stacks = Counter[str]()
    for line in text.splitlines():
        stack, _, seen = line.rpartition(" ")
        stacks[";".join(_LINE.sub(")", _SITE.sub("(", frame)) for frame in stack.split(";"))] += int(seen)
    return stacks


def table(stacks: Counter[str], top: int) -> str:
    """The `top` functions by their own time, with the time of all that they call beside it, as Markdown."""
    own, whole = Counter[str](), Counter[str]()
    for stack, seen in stacks.items():
        frames = stack.split(";")
        own[frames[-1]] += seen
        for frame in set(frames):
            whole[frame] += seen
    total = sum(stacks.values()) or 1
    rows = [f"| `{frame}` | {seen / total:.1%} | {whole[frame] / total:.1%} |" for frame, seen in own.most_common(top)]
    return "\n".join(("| function | own time | with what it calls |", "|---|--:|--:|", *rows))


if __name__ == "__main__":
    sys.exit(main())
