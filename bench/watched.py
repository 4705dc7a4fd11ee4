"""`postern` with a window: on SIGRTMIN it writes how many tasks and how many objects there are. For bench/soak.py.

Run as a file, by the Python that `postern` belongs to: watched.py WINDOW ARGUMENT...
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path


def look(_number: int, _frame: object) -> None:
    """Write "tasks objects" to the window, in one step, so that nobody reads half of it."""
    objects = gc.get_objects()
    tasks = sum(1 for one in objects if isinstance(one, asyncio.Task) and not one.done())
    window = Path(sys.argv[1])
    fresh = window.with_suffix(".new")
    fresh.write_text(f"{tasks} {len(objects)}", "ascii")
    fresh.rename(window)


if __name__ == "__main__":
    from proxy.cli import main

    signal.signal(signal.SIGRTMIN, look)
    main(sys.argv[2:], prog_name="postern")
