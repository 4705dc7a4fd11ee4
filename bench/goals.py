"""What Postern means to reach, as ratios to others on the same machine in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench import figures
from bench.figures import Figure, Sample


@dataclass(frozen=True, slots=True)
class Goal:
    """`metric` of Postern in `scenario`, as a multiple of `rival`'s (None: as it is), is at least or at most `bound`."""

    title: str
    scenario: str
    metric: str
    rival: str | None
    bound: float
    at_least: bool = True

    def reached(self, found: Figure) -> bool:
        """Whether the median is on the right side."""
        return found.median >= self.bound if self.at_least else found.median <= self.bound

    def figure(self, samples: Sequence[Sample]) -> Figure | None:
        """What was measured; None when this run did not measure it."""
        if self.rival is None:
            return figures.of(samples, self.scenario, "postern", self.metric)
        return figures.ratio(samples, self.scenario, self.metric, "postern", self.rival)


GOALS = (
    Goal("small GETs per CPU-second, of bare nginx's", "small", "per_cpu", "nginx", 0.33),
    Goal("small GETs per CPU-second, of Caddy's", "small", "per_cpu", "caddy", 3),
    Goal("small GETs per CPU-second, of Apache + mod_auth_openidc's", "small", "per_cpu", "apache", 8),
    Goal("small GETs per CPU-second, of the naive gateway's", "small", "per_cpu", "naive", 40),
    Goal("10 MiB answers: throughput, of bare nginx's", "10m", "mib", "nginx", 0.7),
    Goal("p99 at half of the peak rate, of bare nginx's", "latency", "p99", "nginx", 3, at_least=False),
    Goal("KiB for each idle WebSocket", "sockets", "kib", None, 24, at_least=False),
)
