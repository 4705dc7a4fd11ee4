"""`python -m bench`: everybody on one core, everything else on the other, in turns, round by round."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import contenders, report
from bench.contenders import Contender
from bench.figures import Sample
from bench.machine import MachineTooSmall
from bench.processes import Trouble
from bench.scenarios import FULL, QUICK, SCENARIOS, Run, Scenario
from bench.world import World, world

DISTURBED = 0.15  # cores kept busy by others during a measurement: from here on it is worth another try
TRIES = 3


def main() -> int:
    """Run what the command line asks for. 0: done, 1: something did not work."""
    asked = _arguments()
    pace = QUICK if asked.quick else FULL
    chosen = [one for one in SCENARIOS if not asked.only or one.name in asked.only]
    try:
        with world(asked.postern) as around, _contenders(around, chosen, asked.contenders) as taking_part:
            run = Run(pace, taking_part)
            facts = report.facts(taking_part, pace.name)
            _measure_all(chosen, run, facts)
    except (Trouble, MachineTooSmall) as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if not run.samples:
        print("bench: nothing to measure", file=sys.stderr)
        return 1
    result = report.Result(facts, run.samples)
    print("\n" + report.markdown(result))
    print(f"stored in {report.store(result)}")
    if asked.publish:
        report.publish(result)
    return 0


def _arguments() -> argparse.Namespace:
    names = [one.name for one in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="bench", description="Measures Postern beside other proxies, see docs/performance.md."
    )
    parser.add_argument(
        "--quick", action="store_true", help="under three minutes instead of under fifteen, and rougher"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="SCENARIO", help=f"only these of: {', '.join(names)}"
    )
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these contenders")
    parser.add_argument(
        "--postern",
        type=Path,
        default=Path(sys.executable).with_name("postern"),
        help="the postern command to measure; default: the one installed beside this Python",
    )
    parser.add_argument("--publish", action="store_true", help="put table and chart into docs/")
    return parser.parse_args()


@contextmanager
def _contenders(
    around: World, chosen: Sequence[Scenario], names: Sequence[str] | None
) -> Iterator[dict[str, Contender]]:
    """Start whoever the chosen scenarios need."""
    needed = {name for one in chosen for name in one.contenders if not names or name in names}
    if any(one.name == "latency" for one in chosen):
        needed.add("postern")  # whose peak sets the rate
    found: dict[str, Contender] = {kind.name: kind(around) for kind in contenders.ALL if kind.name in needed}
    for one in found.values():
        one.start()
    yield found


def _measure_all(chosen: Sequence[Scenario], run: Run, facts: dict[str, object]) -> None:
    started = time.monotonic()
    spare = run.pace.repeats
    for scenario in chosen:
        present = [run.contenders[name] for name in scenario.contenders if name in run.contenders]
        able = [contender for contender in present if scenario.possible(contender)]
        print(f"\n{scenario.title}" + ("" if able else ": nobody who can"))
        for number in range(scenario.rounds_at(run.pace)):
            for contender in able:
                sample, spare = _quiet_sample(scenario, contender, run, number, spare)
                run.samples.append(sample)
                print(_line(sample, scenario), flush=True)
    facts["seconds"] = round(time.monotonic() - started)


def _quiet_sample(
    scenario: Scenario, contender: Contender, run: Run, number: int, spare: float
) -> tuple[Sample, float]:
    """Measure once, and again as long as others disturb it and there are seconds to `spare`: the quietest one counts."""
    best: Sample | None = None
    for attempt in range(TRIES):
        started = time.monotonic()
        if scenario.fresh:
            contender.restart()
        values, usage = scenario.measure(contender, run)
        sample = Sample(scenario.name, contender.name, number, values, usage.foreign, usage.load)
        if best is None or sample.foreign < best.foreign:
            best = sample
        if attempt:
            spare -= time.monotonic() - started
        if best.foreign < DISTURBED or spare <= 0:
            break
    assert best is not None
    return best, spare


def _line(sample: Sample, scenario: Scenario) -> str:
    columns = [one for one in scenario.columns if one.metric in sample.values]
    shown = "  ".join(f"{sample.values[one.metric]:>9,.{one.digits}f} {one.title}" for one in columns)
    return f"  {sample.round + 1}  {sample.contender:8}{shown}   (others: {sample.foreign:.2f} cores)"


if __name__ == "__main__":
    sys.exit(main())
