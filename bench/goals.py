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
    ours: str = "postern"
    over: str | None = None  # another scenario, whose figure for the same the one in `scenario` is divided by

    def reached(self, found: Figure) -> bool:
        """Whether the median is on the right side."""
        return found.median >= self.bound if self.at_least else found.median <= self.bound

    def figure(self, samples: Sequence[Sample]) -> Figure | None:
        """What was measured; None when this run did not measure it."""
        if self.rival is not None:
            return figures.ratio(samples, self.scenario, self.metric, self.ours, self.rival)
        found = figures.of(samples, self.scenario, self.ours, self.metric)
        if self.over is None or found is None:
            return found
        base = figures.of(samples, self.over, self.ours, self.metric)
        if base is None:
            return None
        return Figure(found.median / base.median, found.low / base.high, found.high / base.low, found.rounds)


GOALS = (
    Goal("small GETs per CPU-second, of bare nginx's", "small", "per_cpu", "nginx", 0.33),
    Goal("small GETs per CPU-second, of Caddy's", "small", "per_cpu", "caddy", 3),
    Goal("small GETs per CPU-second, of Apache + mod_auth_openidc's", "small", "per_cpu", "apache", 8),
    Goal("small GETs per CPU-second, of the naive gateway's", "small", "per_cpu", "naive", 40),
    Goal("10 MiB answers: throughput, of bare nginx's", "10m", "mib", "nginx", 0.7),
    Goal("p99 at half of the peak rate, of bare nginx's", "latency", "p99", "nginx", 3, at_least=False),
    Goal(
        "forward-auth answers per CPU-second, of relayed small GETs'",
        "forward-auth",
        "per_cpu",
        None,
        1.2,
        over="small",
    ),
    Goal(
        "small GETs with ten routes and five rules, of one route's without",
        "rules",
        "per_cpu",
        "one-route",
        0.95,
        ours="ten-routes",
    ),
    Goal("KiB for each idle WebSocket", "sockets", "kib", None, 24, at_least=False),
)
