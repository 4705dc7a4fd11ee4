"""The benchmark's own arithmetic, its tables and its chart, and the parts that others stand on: what it prints must be true."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import chart, contenders, figures, machine, report, revocation, scenarios, session_size
from bench.figures import Sample
from bench.goals import GOALS, Goal
from bench.processes import Trouble, accepts, fleet, free_port
from bench.profiling import read_stacks, table
from bench.soak import ROOM, Look, growth
from bench.world import HERE, ROOT, fill_in
from tests.redis_server import redis_server


def sample(contender: str, number: int, scenario: str = "small", **values: float) -> Sample:
    return Sample(scenario, contender, number, values, 0.1, 1.0)


def test_a_figure_is_the_middle_and_the_extremes() -> None:
    found = figures.figure([3.0, 1.0, 8.0])
    assert (found.median, found.low, found.high, found.rounds) == (3.0, 1.0, 8.0, 3)
    assert found.spread == pytest.approx(7 / 3)


def test_a_ratio_is_taken_within_each_round() -> None:
    """The machine was half as fast in the second round: that must not show."""
    samples = [sample("nginx", 0, per_cpu=100), sample("postern", 0, per_cpu=30)]
    samples += [sample("nginx", 1, per_cpu=50), sample("postern", 1, per_cpu=15)]
    samples += [sample("postern", 2, per_cpu=1)]  # nobody to hold it against
    found = figures.ratio(samples, "small", "per_cpu", "postern", "nginx")
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == (0.3, 0.3, 0.3, 2)
    assert figures.ratio(samples, "small", "per_cpu", "postern", "caddy") is None
    assert figures.of(samples, "10m", "postern", "mib") is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], share: float) -> None:
    values.sort()
    found = figures.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_percentiles_of_nothing_and_of_everything() -> None:
    assert figures.percentile([], 0.5) == 0.0
    assert figures.percentile([1.0, 2.0, 3.0], 1.0) == 3.0


@pytest.mark.parametrize(
    ("goal", "value", "reached"),
    [
        (Goal("", "small", "per_cpu", "nginx", 0.33), 33.0, True),
        (Goal("", "small", "per_cpu", "nginx", 0.33), 32.9, False),
        (Goal("", "small", "per_cpu", "nginx", 3, at_least=False), 300.0, True),
        (Goal("", "small", "per_cpu", None, 24, at_least=False), 24.1, False),
    ],
)
def test_goals(goal: Goal, value: float, reached: bool) -> None:
    found = goal.figure([sample("nginx", 0, per_cpu=100), sample("postern", 0, per_cpu=value)])
    assert found is not None
    assert goal.reached(found) is reached
    assert goal.figure([]) is None


def test_goals_speak_of_what_is_measured() -> None:
    known = {one.name: one for one in scenarios.SCENARIOS}
    for goal in GOALS:
        assert {goal.ours, goal.rival or goal.ours} <= set(known[goal.scenario].contenders)
        assert goal.ours in known[goal.over or goal.scenario].contenders
        assert any(goal.metric == column.metric for column in known[goal.scenario].columns)


def test_scenarios_name_contenders_that_there_are() -> None:
    names = {kind.name for kind in contenders.ALL}
    assert all(set(one.contenders) <= names for one in scenarios.SCENARIOS)


def test_one_scenario_over_another() -> None:
    goal = Goal("", "forward-auth", "per_cpu", None, 1.2, over="small")
    samples = [
        *(sample("postern", number, "forward-auth", per_cpu=value) for number, value in enumerate((110, 120, 130))),
        *(sample("postern", number, per_cpu=value) for number, value in enumerate((90, 100, 110))),
    ]
    found = goal.figure(samples)
    assert found is not None
    assert (found.median, found.low, found.high) == (1.2, 1.0, 130 / 90)
    assert goal.reached(found)
    assert goal.figure(samples[:3]) is None
    assert len({one.name for one in scenarios.SCENARIOS}) == len(scenarios.SCENARIOS)


def result() -> report.Result:
    versions = {"nginx": "1.22.1", "postern": "0.1.0"}
    facts = {
        "mode": "quick",
        "date": "2026-01-02",
        "commit": "abc",
        "cores": 2,
        "python": "3.11.0",
        "versions": versions,
    }

    def of(contender: str, number: int, per_cpu: float, failed: int) -> Sample:
        rest = {"rate": 10_000.0, "p50": 1.0, "p99": 2.5, "requests": 1000.0}
        return Sample("small", contender, number, {"per_cpu": per_cpu, "failed": failed, **rest}, 0.1, 1.0)

    samples = [of("nginx", number, 90_000.0 + number, 0) for number in range(2)]
    samples += [of("postern", number, 30_000.0, number) for number in range(2)]
    return report.Result(facts, samples)


def test_the_report_says_what_was_measured() -> None:
    text = report.markdown(result())
    assert "Postern 1 of 2,000" in text
    assert "| small GETs per CPU-second, of bare nginx's | ≥ 0.33 | 0.33 (0.33–0.33) | yes |" in text
    rows = [line for line in text.splitlines() if line.startswith(("| nginx", "| Postern"))]
    assert rows[0].startswith("| nginx, forwarding only | 90,000 (90,000–90,001) | 1 | 10,000 |")
    assert rows[1].startswith("| Postern | 30,000 | 0.333 |")
    assert "Caddy" not in text


def test_tables_have_as_many_cells_as_heads() -> None:
    tables: dict[int, set[int]] = {}
    number = 0
    for line in report.markdown(result()).splitlines():
        number += not line
        if line.startswith("|"):
            tables.setdefault(number, set()).add(line.count("|"))
    assert tables
    assert all(len(widths) == 1 for widths in tables.values())


def test_a_stored_result_comes_back(tmp_path: Path) -> None:
    before = result()
    path = report.store(before, tmp_path)
    after = report.load(path)
    assert (after.facts, after.samples) == (before.facts, before.samples)
    assert path.with_suffix(".md").read_text("utf-8") == report.markdown(before)


def test_publishing_replaces_what_stands_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "images" / "bench.svg"
    page.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n", "utf-8")
    for name, value in (("PAGE", page), ("CHART", picture), ("RESULTS", tmp_path / "results")):
        monkeypatch.setattr(report, name, value)
    for _ in range(2):
        report.publish(result())
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- figures -->\n")
    assert text.endswith("<!-- /figures -->\nafter\n")
    assert text.count("### Small GETs") == 1
    assert "old" not in text
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert report.load(tmp_path / "results" / "published.json").samples == result().samples


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    picture = ET.fromstring(chart.bars({"Postern": 0.5, "a <rival>": 1.0, "tiny": 0.0001}))
    name = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in picture.iter(f"{name}rect")]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1)
    assert widths[2] == 1.0
    texts = [text.text for text in picture.iter(f"{name}text")]
    assert texts[2:] == ["a <rival>", "1", "Postern", "0.5", "tiny", "0.0001"]
    assert [bar.get("class") for bar in picture.iter(f"{name}rect")] == [None, "ours", None]


def test_a_soak_tells_what_has_grown() -> None:
    calm = [Look(float(n), n, 50 << 20, 40 << 20, 30, 2, 100_000) for n in range(9)]
    assert growth(calm) == []
    leaking = [Look(look.minute, 0, look.resident, look.own, 30 + 20 * n, 2, 100_000) for n, look in enumerate(calm)]
    assert growth(leaking) == ["descriptors has grown from 50 to 170"]
    assert set(ROOM) <= set(Look.__slots__)


def test_stacks_are_added_up() -> None:
    first = "run (asyncio/runners.py:12);work (/x/site-packages/a/b.py:3) 3"
    second = "run (asyncio/runners.py:14);work (/y/lib/python3.11/a/b.py:4) 1"
    stacks = read_stacks(f"{first}\n{second}\n")
    assert stacks == Counter({"run (asyncio/runners.py);work (a/b.py)": 4})
    assert "| `work (a/b.py)` | 100.0% | 100.0% |" in table(stacks, 5)


def test_cpu_and_memory_of_a_process_and_its_children() -> None:
    before = machine.cpu_seconds(os.getpid())
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    with machine.Meter(os.getpid()) as meter:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert machine.cpu_seconds(os.getpid()) - before >= 0.28
    assert meter.usage.cpu >= 0.28
    assert meter.usage.seconds >= 0.28
    assert 1 << 20 < machine.memory(os.getpid()) <= machine.resident(os.getpid()) * 1.1
    assert machine.descriptors(os.getpid()) >= 3
    assert machine.family(os.getpid()) >= {os.getpid()}


def test_every_placeholder_of_the_configurations_is_filled(tmp_path: Path) -> None:
    values = {
        name: 1
        for path in (HERE / "config").iterdir()
        for name in re.findall(r"(?<!\$)\$([a-z_]+)", path.read_text("utf-8"))
    }
    for path in (HERE / "config").iterdir():
        text = fill_in(path.name, tmp_path, values).read_text("utf-8")
        left = set(re.findall(r"\$[a-z_]+", text))
        assert left <= {"$http_host", "$http_upgrade", "$connection_upgrade"}, path.name


def test_programs_end_with_their_fleet(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    with fleet(tmp_path) as programs:
        port = free_port()
        running = programs.start("server", [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1"], core)
        running.listening(port)
        with pytest.raises(Trouble, match="ended with status 3"):
            programs.start("short", [sys.executable, "-c", "raise SystemExit(3)"], core).listening(free_port())
    assert running.popen.returncode is not None
    assert not accepts(port)


def test_a_crowd_listens_and_talks_to_the_live_app(tmp_path: Path) -> None:
    port, core = free_port(), min(os.sched_getaffinity(0))
    environ = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    with fleet(tmp_path) as programs:
        programs.start("live", [sys.executable, "-m", "bench.live", str(port)], core, environ).listening(port)
        streams = _crowd(port, "/live/events", "open 5\nwatch 2\n", environ)
        assert streams[0] == {"HTTP/1.1 200 OK": 5}
        assert streams[1]["events"] >= 5
        assert streams[1]["lost"] == 0
        headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        sockets = _crowd(port, "/live/socket", "open 5\necho 3\n", environ, *headers)
        assert sockets == [{"HTTP/1.1 101 Switching Protocols": 5}, {"echoed": 3, "lost": 0}]


def _crowd(port: int, path: str, commands: str, environ: dict[str, str], *headers: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "bench.crowd", str(port), path, "Host: localhost", *headers]
    done = subprocess.run(command, input=commands, env=environ, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_how_long_an_ended_session_passes_is_told_with_its_worst() -> None:
    lines = revocation.report([1.0, 2.0, 3.0, 40.0], 4).splitlines()
    assert lines[-1] == "| 4 | 4 | 2.0 | 40.0 | 40.0 | 40.0 |"


def test_what_sessions_cost_is_held_to_the_goals() -> None:
    found = session_size.Found(100, 1800.0, 2500.0, 10, 0.1, 0.2, 3.0, 4.0)
    assert "| so a million sessions need | 2.33 GiB |" in found.table()
    assert found.good
    assert not replace(found, all=4097.0).good
    assert not replace(found, waited_ending=10.1).good


def test_what_sessions_cost_is_measured_at_a_real_redis() -> None:
    with redis_server() as server:
        found = asyncio.run(session_size.measure(server.port, 30, 12))
    assert (found.sessions, found.of_one) == (30, 12)
    assert 1000 < found.key < session_size.GOAL_BYTES
    assert min(found.all, found.listed, found.ended) > 0
