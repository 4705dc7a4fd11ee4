"""What a run found: stored as JSON, told as Markdown tables, published in docs/.

`python -m bench.report RESULT.json` publishes a run that was stored before.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from bench import chart, figures
from bench.contenders import ALL, Contender
from bench.figures import Figure, Sample
from bench.goals import GOALS
from bench.scenarios import SCENARIOS, Column, Scenario
from bench.world import HERE, ROOT

RESULTS: Final = HERE / "results"
PAGE: Final = ROOT / "docs" / "performance.md"
CHART: Final = ROOT / "docs" / "images" / "bench.svg"
TITLES: Final = {kind.name: kind.title for kind in ALL}
_PLACE: Final = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One run: facts about it, and every sample."""

    facts: Mapping[str, Any]
    samples: list[Sample]


def facts(contenders: Mapping[str, Contender], mode: str) -> dict[str, Any]:
    """What one has to know to read the figures. Names no machine: only what it is like."""
    return {
        "mode": mode,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit_of(contenders["postern"].world.postern) if "postern" in contenders else "",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version for name, one in contenders.items() if (version := one.version())},
    }


def store(result: Result, directory: Path = RESULTS) -> Path:
    """Write a run's JSON and Markdown; returns where the JSON lies."""
    directory.mkdir(exist_ok=True)
    name = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M%S}-{result.facts['mode']}"
    path = directory / f"{name}.json"
    path.write_text(_json(result), "utf-8")
    path.with_suffix(".md").write_text(markdown(result), "utf-8")
    return path


def load(path: Path) -> Result:
    """Read a stored run."""
    found = json.loads(path.read_text("utf-8"))
    return Result(found["facts"], [Sample(**sample) for sample in found["samples"]])


def publish(result: Result) -> None:
    """Put the tables into docs/performance.md, the chart beside it, and the figures into results/published.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "published.json").write_text(_json(result), "utf-8")
    page = PAGE.read_text("utf-8")
    PAGE.write_text(_PLACE.sub(lambda place: f"{place[1]}\n{markdown(result)}\n{place[2]}", page), "utf-8")
    ratios = {
        name: found
        for name in TITLES
        if (found := figures.ratio(result.samples, "small", "per_cpu", name, "nginx")) is not None
    }
    if ratios:
        CHART.parent.mkdir(exist_ok=True)
        CHART.write_text(chart.bars({TITLES[name]: ratio.median for name, ratio in ratios.items()}), "utf-8")


def markdown(result: Result) -> str:
    """Everything as Markdown: how it was measured, the goals, a table for each scenario."""
    parts = [_preamble(result), _goals(result.samples)]
    parts += [_table(one, result.samples) for one in SCENARIOS if any(s.scenario == one.name for s in result.samples)]
    return "\n".join(part for part in parts if part)


def _preamble(result: Result) -> str:
    facts, samples = result.facts, result.samples
    named = (f"{TITLES[name].partition(',')[0]} {version}" for name, version in facts["versions"].items())
    versions = ", ".join(dict.fromkeys(named))  # Postern runs with other settings, too
    foreign = figures.figure([sample.foreign for sample in samples])
    load = figures.figure([sample.load for sample in samples])
    rounds = figures.figure([sample.round + 1.0 for sample in samples])
    return (
        f"Measured {facts['date']} ({facts['mode']} run, up to {rounds.high:.0f} rounds, commit {facts['commit']}) on "
        f"{facts['cores']} cores: one for the proxy, one for load, app and Redis. Python {facts['python']}, {versions}. Other "
        f"work on the machine took {foreign.median:.2f} cores (median; {foreign.low:.2f} to {foreign.high:.2f}), load average "
        f"{load.low:.1f} to {load.high:.1f}. Each figure is the median over the rounds, with the lowest and the highest in "
        f"brackets; a ratio is taken within each round. {_failures(samples)}\n"
    )


def _failures(samples: list[Sample]) -> str:
    failed, asked = Counter[str](), Counter[str]()
    for sample in samples:
        failed[sample.contender] += int(sample.values.get("failed", 0))
        asked[sample.contender] += int(sample.values.get("requests", 0))
    told = [f"{TITLES[name]} {count} of {asked[name]:,}" for name, count in failed.items() if count]
    return f"Requests that failed: {', '.join(told) or 'none'}."


def _goals(samples: list[Sample]) -> str:
    rows = []
    for goal in GOALS:
        found = goal.figure(samples)
        if found is not None:
            sign, mark = "≥" if goal.at_least else "≤", "yes" if goal.reached(found) else "**no**"
            rows.append(f"| {goal.title} | {sign} {goal.bound:g} | {_number(found, 2)} | {mark} |")
    return "\n".join(("| goal | | measured | reached |", "|---|---|---|---|", *rows, "")) if rows else ""


def _table(scenario: Scenario, samples: list[Sample]) -> str:
    heads = [""]
    for column in scenario.columns:
        heads += [column.title, *(["of nginx's"] if column.versus else [])]
    measured = {sample.contender for sample in samples if sample.scenario == scenario.name}
    order = sorted(measured, key=lambda name: _rank(name, scenario, samples))
    lines = ["| " + " | ".join([TITLES[name], *_cells(scenario, name, samples)]) + " |" for name in order]
    rule = "|---|" + "--:|" * (len(heads) - 1)
    return "\n".join((f"### {scenario.title}", "", "| " + " | ".join(heads) + " |", rule, *lines, ""))


def _cells(scenario: Scenario, name: str, samples: list[Sample]) -> Iterable[str]:
    for column in scenario.columns:
        found = figures.of(samples, scenario.name, name, column.metric)
        yield _number(found, column.digits) if found else ""
        if column.versus:
            yield _versus(scenario, column, name, samples)


def _versus(scenario: Scenario, column: Column, name: str, samples: list[Sample]) -> str:
    ratio = figures.ratio(samples, scenario.name, column.metric, name, "nginx")
    return f"{ratio.median:.3g}" if ratio else ""


def _rank(name: str, scenario: Scenario, samples: list[Sample]) -> float:
    """Where a contender stands in the table: nothing in between first, then by the first column."""
    found = figures.of(samples, scenario.name, name, scenario.columns[0].metric)
    if found is None or name == "direct":
        return -float("inf")
    return -found.median if scenario.columns[0].metric.endswith("per_cpu") else found.median


def _number(found: Figure, digits: int) -> str:
    middle = f"{found.median:,.{digits}f}"
    return middle if found.low == found.high else f"{middle} ({found.low:,.{digits}f}–{found.high:,.{digits}f})"


def _json(result: Result) -> str:
    samples = [dataclasses.asdict(sample) for sample in result.samples]
    for sample in samples:
        sample["values"] = {key: float(f"{value:.6g}") for key, value in sample["values"].items()}
        sample["foreign"] = round(sample["foreign"], 3)
        sample["load"] = round(sample["load"], 2)
    rows = ",\n    ".join(json.dumps(sample) for sample in samples)
    return f'{{\n  "facts": {json.dumps(dict(result.facts))},\n  "samples": [\n    {rows}\n  ]\n}}\n'


def commit_of(postern: Path) -> str:
    """The commit of the checkout that an installed `postern` runs from; "unknown" when it runs from none."""
    where = [str(postern.with_name("python")), "-c", "import proxy; print(proxy.__path__[0])"]
    package = subprocess.run(where, capture_output=True, text=True, check=False, cwd="/").stdout.strip() or "/"
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    return (
        subprocess.run(describe, capture_output=True, text=True, check=False, cwd=package).stdout.strip() or "unknown"
    )


if __name__ == "__main__":
    publish(load(Path(sys.argv[1])))
