"""From samples to figures: medians, spreads, and ratios taken within each round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one contender. `foreign`: cores that other work on the machine kept busy; `load`: its load average."""

    scenario: str
    contender: str
    round: int
    values: dict[str, float]
    foreign: float
    load: float


@dataclass(frozen=True, slots=True)
class Figure:
    """What several rounds say about one thing: the middle, and how far apart they are."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """The distance between the extremes as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def figure(values: Sequence[float]) -> Figure:
    """Make a Figure of at least one value."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of all values do not exceed; 0 when there are none."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else 0.0


def of(samples: Iterable[Sample], scenario: str, contender: str, metric: str) -> Figure | None:
    """The figure for one metric; None when nobody measured it."""
    values = [
        sample.values[metric]
        for sample in samples
        if sample.scenario == scenario and sample.contender == contender and metric in sample.values
    ]
    return figure(values) if values else None


def ratio(samples: Iterable[Sample], scenario: str, metric: str, ours: str, theirs: str) -> Figure | None:
    """`ours` as a multiple of `theirs`, taken within each round, where both met the same machine; None: no such pair."""
    rounds: dict[int, dict[str, float]] = {}
    for sample in samples:
        if sample.scenario == scenario and metric in sample.values:
            rounds.setdefault(sample.round, {})[sample.contender] = sample.values[metric]
    ratios = [values[ours] / values[theirs] for values in rounds.values() if ours in values and values.get(theirs)]
    return figure(ratios) if ratios else None
