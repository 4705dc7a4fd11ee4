"""Event loops for tests: closed whatever became of the test, and nothing left open in them unnoticed."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(
    work: Coroutine[Any, Any, T],
    *,
    within: float = 60.0,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> T:
    """Run a test's coroutine, for `within` seconds at most, on the event loop that the gateway runs on.

    uvloop reports what it finds open by a ResourceWarning from within its own closing. Where warnings are errors, that breaks
    off the closing half way, and the loop then waits for ever for what it has not closed: so a test that failed would hang.
    Here they are heard first, and are an error afterwards, of a test that did not fail anyway.
    """
    runner = asyncio.Runner(loop_factory=loop)
    try:
        result = runner.run(asyncio.wait_for(work, within))
    finally:
        with warnings.catch_warnings(record=True) as left_open:
            warnings.simplefilter("always", ResourceWarning)
            runner.close()
    assert not left_open, [str(warning.message) for warning in left_open]
    return result
