"""`python -m bench`: everybody on one core, everything else on the other, in turns, round by round."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench import contenders, machine, report
from bench.contenders import Contender
from bench.figures import Sample
from bench.machine import MachineTooSmall, Meter
from bench.processes import Trouble
from bench.scenarios import FULL, QUICK, SCENARIOS, Run, Scenario
from bench.world import World, world

DISTURBED = 0.15  # cores kept busy by others: from here on a measurement had better wait, or be made again
TRIES = 3
LOOK = 0.5  # seconds


def main() -> int:
    """Run what the command line asks for. 0: done, 1: something did not work; what did is stored all the same."""
    asked = _arguments()
    if asked.nice:
        os.nice(asked.nice)  # inherited by all that is started from here on
        machine.precedence(os.getpid(), asked.nice)
    pace = QUICK if asked.quick else FULL
    if asked.patience is not None:
        pace = replace(pace, patience=asked.patience)
    chosen = [one for one in SCENARIOS if not asked.only or one.name in asked.only]
    started = time.monotonic()
    try:
        with world(asked.postern) as around, _contenders(around, chosen, asked.contenders) as taking_part:
            facts = report.facts(taking_part, pace.name)
            run = Run(pace, taking_part)
            if asked.add_to:
                earlier, names = report.load(asked.add_to), {one.name for one in chosen}
                run.samples += [sample for sample in earlier.samples if sample.scenario not in names]
                facts["versions"] = {**earlier.facts["versions"], **facts["versions"]}
            trouble = _measure_all(chosen, run, around)
            facts["seconds"] = round(time.monotonic() - started)
    except (Trouble, MachineTooSmall) as trouble:
        print(f"bench: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if asked.nice:
            machine.precedence(os.getpid(), 0)  # the session is the caller's, and goes on
    if not run.samples:
        print("bench: nothing to measure", file=sys.stderr)
        return 1
    result = report.Result(facts, run.samples)
    print("\n" + report.markdown(result))
    print(f"stored in {report.store(result)}")
    if asked.publish and not trouble:
        report.publish(result)
    return 1 if trouble else 0


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
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="how long to wait in all while others keep the machine busy; default: two minutes, with --quick none",
    )
    parser.add_argument("--nice", type=int, default=0, help="take precedence over other work: -10, say; only root may")
    parser.add_argument(
        "--add-to", type=Path, metavar="RESULT", help="take what is not measured now from an earlier run's JSON"
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


def _measure_all(chosen: Sequence[Scenario], run: Run, around: World) -> bool:
    """Measure everybody, round by round. What does not work is told, and the rest goes on; returns whether there was such."""
    trouble = False
    spare = run.pace.patience
    for scenario in chosen:
        present = [run.contenders[name] for name in scenario.contenders if name in run.contenders]
        able = [contender for contender in present if scenario.possible(contender)]
        print(f"\n{scenario.title}" + ("" if able else ": nobody who can"))
        for number in range(scenario.rounds_at(run.pace)):
            for contender in able:
                try:
                    sample, spare = _quiet_sample(scenario, contender, run, number, spare)
                except Trouble as found:
                    trouble = True
                    print(f"bench: {found}\n{around.fleet.ended()}", file=sys.stderr)
                    continue
                run.samples.append(sample)
                print(_line(sample, scenario), flush=True)
    return trouble


def _quiet_sample(
    scenario: Scenario, contender: Contender, run: Run, number: int, spare: float
) -> tuple[Sample, float]:
    """Measure when the machine is quiet, again when it was not: the quietest one counts. Waiting takes from `spare` seconds."""
    best: Sample | None = None
    for attempt in range(TRIES):
        spare = _wait_for_quiet(spare)
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


def _wait_for_quiet(spare: float) -> float:
    """Return what is left of `spare` seconds when others leave the machine alone, or 0 when they never do."""
    while spare > 0:
        with Meter(os.getpid()) as meter:
            time.sleep(LOOK)
        if meter.usage.foreign < DISTURBED:
            break
        spare -= meter.usage.seconds
    return spare


def _line(sample: Sample, scenario: Scenario) -> str:
    columns = [one for one in scenario.columns if one.metric in sample.values]
    shown = "  ".join(f"{sample.values[one.metric]:>9,.{one.digits}f} {one.title}" for one in columns)
    return f"  {sample.round + 1}  {sample.contender:8}{shown}   (others: {sample.foreign:.2f} cores)"


if __name__ == "__main__":
    sys.exit(main())
