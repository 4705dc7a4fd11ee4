"""Discord's rate limits: how long to hold a request back, learnt from the answers to earlier ones.

Discord groups paths into buckets that it names only in its answers (`X-RateLimit-Bucket`), tells how many requests are left in
one (`-Remaining`) and in how many seconds it is full again (`-Reset-After`), and answers 429 with `Retry-After` to whoever does
not listen: for one bucket, or for everything (`X-RateLimit-Global`). Who goes on not listening is shut out for longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

_LONGEST: Final = 3600.0  # seconds: no answer holds us back for longer, whatever it says
_UNTOLD: Final = 5.0  # seconds to wait after a 429 that does not say
_REMEMBERED: Final = 1024


class RateLimits:
    """What is known of the limits. Times are seconds on the caller's clock; `path` stands for what Discord counts together."""

    def __init__(self) -> None:
        self._buckets: dict[str, str] = {}  # path -> bucket
        self._left: dict[str, tuple[int, float]] = {}  # bucket -> requests left, and when it is full again
        self._global_until = -math.inf

    def wait(self, path: str, now: float) -> float:
        """How long a request for `path` has to wait; 0 when it may go."""
        left, full_at = self._left.get(self._buckets.get(path, path), (1, now))
        return max(self._global_until - now, full_at - now if left <= 0 else 0.0, 0.0)

    def spend(self, path: str, now: float) -> None:
        """Count a request in that is about to be sent: others that are sent beside it see less left."""
        bucket = self._buckets.get(path, path)
        left, full_at = self._left.get(bucket, (0, -math.inf))
        if full_at > now:
            self._left[bucket] = (left - 1, full_at)
        else:
            self._left.pop(bucket, None)

    def hold(self, path: str | None, seconds: float, now: float) -> None:
        """Let nobody ask for `path`, or for anything (None), for so many seconds more: somebody else was told to wait."""
        if path is None:
            self._global_until = max(self._global_until, now + min(seconds, _LONGEST))
        else:
            self._left[self._buckets.get(path, path)] = (0, now + min(seconds, _LONGEST))

    def learn(self, path: str, status: int, headers: Mapping[str, str], now: float) -> None:
        """Take in an answer to a request for `path`; `headers` with names in lower case."""
        if len(self._left) >= _REMEMBERED or len(self._buckets) >= _REMEMBERED:
            self._left.clear()
            self._buckets.clear()
        bucket = headers.get("x-ratelimit-bucket")
        if bucket:
            # One bucket's name serves many guilds, each of which is counted apart.
            bucket = self._buckets[path] = f"{bucket} {path}"
        else:
            bucket = self._buckets.get(path, path)
        reset = _seconds(headers.get("x-ratelimit-reset-after"))
        if status == 429:
            after = _seconds(headers.get("retry-after")) or reset or _UNTOLD
            if headers.get("x-ratelimit-global", "").lower() == "true":
                self._global_until = max(self._global_until, now + after)
            else:
                self._left[bucket] = (0, now + after)
        elif reset is not None and headers.get("x-ratelimit-remaining", "").isdecimal():
            left = int(headers["x-ratelimit-remaining"][:9])
            before, full_at = self._left.get(bucket, (left, now))
            # Answers overtake each other: of two that speak of the same window the smaller number is the later one.
            self._left[bucket] = (min(left, before) if full_at > now else left, now + reset)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return min(seconds, _LONGEST) if seconds >= 0 else None
