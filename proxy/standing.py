"""How a server behind stands with us: asked as usual, asked last for a while, or given one request to prove itself.

A server that fails is set aside for a pause that grows from failure to failure, so that a dead one costs next to nothing and one
that restarts is soon back. When the pause is over, a single request tries it; the others stay away until that one was answered.
Being set aside never means being refused: where every server is, they are asked all the same, because a late answer is worth
more than a certain error. Values and a clock, no I/O.
"""

from __future__ import annotations

from typing import Final

FAILURES_IN_A_ROW: Final = 3  # broken answers that set a server aside
FIRST_PAUSE: Final = 1.0  # seconds; each further pause is twice as long
LONGEST_PAUSE: Final = 30.0  # seconds
TRIAL: Final = 5.0  # seconds that the request on trial has for itself


class Standing:
    """The standing of one server. `now` is seconds on a monotonic clock, always the same one."""

    __slots__ = ("_paused_until", "_pauses", "_trial_until", "failures", "healthy")

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.healthy = True  # what the health check says, where there is one
        self._pauses = 0  # in a row
        self._paused_until = 0.0
        self._trial_until = 0.0

    def failed(self, now: float, *, unreachable: bool) -> float | None:
        """Count a failure. Returns the length in seconds of the pause that begins with it, None when none does.

        `unreachable`: no connection came about. That is plain enough to act on at once, and asking again may cost somebody
        the whole connect timeout. A broken answer may be one request's own doing: it takes several in a row.
        """
        self.failures += 1
        if now < self._paused_until:  # a request that was under way when the pause began
            return None
        if not unreachable and not self._pauses and self.failures < FAILURES_IN_A_ROW:
            return None
        pause = LONGEST_PAUSE if self._pauses > 10 else min(FIRST_PAUSE * 2.0**self._pauses, LONGEST_PAUSE)
        self._pauses += 1
        self._paused_until = now + pause
        self._trial_until = 0.0
        return pause

    def answered(self) -> bool:
        """The server has answered: all is forgiven. Returns whether it had been set aside."""
        had_pauses = self._pauses > 0
        self.failures = self._pauses = 0
        self._paused_until = self._trial_until = 0.0
        return had_pauses

    def asked(self, now: float) -> None:
        """A request goes there. After a pause it is the one on trial, and keeps others away for a while."""
        if self._pauses and now >= self._paused_until:
            self._trial_until = now + TRIAL

    def aside(self, now: float) -> bool:
        """Whether other servers should be asked first."""
        return not self.healthy or now < self._paused_until or now < self._trial_until

    def back_at(self) -> float:
        """When its pause ends: among servers that are all set aside, the one that is back first is asked first."""
        return max(self._paused_until, self._trial_until)
