"""What is measured. A scenario is one value in SCENARIOS: add one there, and it is run, stored and printed like the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from bench import figures, machine
from bench.contenders import Contender
from bench.figures import Sample
from bench.loads import Visitors, open_loop, visitors, wrk
from bench.machine import Meter, Usage
from bench.processes import Trouble

STREAMS: Final = 1000
SOCKETS: Final = 4000
ECHOES: Final = 200
FORWARD_AUTH: Final = "/.postern/auth"
FORWARDED: Final = {  # as Traefik and Caddy ask
    "X-Forwarded-Method": "GET",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "localhost",
    "X-Forwarded-Uri": "/small",
    "X-Forwarded-For": "198.51.100.7",
}
KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds. `patience`: for waiting while others keep the machine busy, and for measuring again."""

    name: str
    warmup: float
    seconds: float
    latency_seconds: float
    live_seconds: int
    patience: float


FULL: Final = Pace("full", 1, 4, 10, 8, 120)
QUICK: Final = Pace("quick", 1, 2, 3, 3, 0)


@dataclass(slots=True)
class Run:
    """One run so far: who takes part, and what was measured."""

    pace: Pace
    contenders: Mapping[str, Contender]
    samples: list[Sample] = field(default_factory=list)
    rate: float = 0.0  # of the latency scenario, once it is known

    def half_peak(self) -> float:
        """Half of what Postern was measured to take of small GETs, in requests per second."""
        if not self.rate:
            known = figures.of(self.samples, "small", "postern", "rate")
            peak = known.median if known else closed("/small", 32)(self.contenders["postern"], self)[0]["rate"]
            self.rate = round(peak / 2, -2)
        return self.rate


Measured = tuple[dict[str, float], Usage]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as the tables show it; `versus`: with a column beside it that gives it as a multiple of nginx's."""

    metric: str
    title: str
    digits: int = 0
    versus: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """`measure` returns values and usage for one contender. `fresh`: in a process that has just been started.

    `possible` tells whether a contender can do it at all: one that cannot, such as an older Postern, is left out.
    """

    name: str
    title: str
    contenders: Sequence[str]
    columns: Sequence[Column]
    measure: Callable[[Contender, Run], Measured]
    possible: Callable[[Contender], bool] = lambda _: True
    fresh: bool = False
    rounds: int = 3
    quick_rounds: int = 1

    def rounds_at(self, pace: Pace) -> int:
        """How often everybody has a turn."""
        return self.quick_rounds if pace.name == QUICK.name else self.rounds


def closed(
    path: str, connections: int, method: str = "GET", body: int = 0, more: Mapping[str, str] | None = None
) -> Callable[[Contender, Run], Measured]:
    """Measure what goes through when every connection asks again as soon as it is answered."""

    def measure(contender: Contender, run: Run) -> Measured:
        contender.check(path, more)
        wrk(contender, path, run.pace.warmup, connections, method=method, body=body, more=more)
        with Meter(contender.pid) as meter:
            found = wrk(contender, path, run.pace.seconds, connections, method=method, body=body, more=more)
        contender.check(path, more)  # the session was there to the end
        seconds, cpu = found["micros"] / 1e6, meter.usage.cpu
        mib = (found["bytes"] + found["requests"] * body) / MIB
        return {
            "per_cpu": found["requests"] / cpu,
            "rate": found["requests"] / seconds,
            "mib": mib / seconds,
            "mib_per_cpu": mib / cpu,
            "cores": cpu / meter.usage.seconds,
            "p50": found["p50"] / 1000,
            "p99": found["p99"] / 1000,
            "requests": found["requests"],
            "failed": found["errors"],
        }, meter.usage

    return measure


def answers_forward_auth(contender: Contender) -> bool:
    """Whether it tells another proxy who may pass."""
    return contender.ask(FORWARD_AUTH, FORWARDED) == 200


def latency(contender: Contender, run: Run) -> Measured:
    """Measure how long answers take at half of Postern's peak, from when each request was due."""
    rate = run.half_peak()
    with Meter(contender.pid) as meter:
        found = open_loop(contender, "/small", rate, run.pace.warmup, run.pace.latency_seconds)
    values = {key: value / 1000 for key, value in found.items() if key not in ("requests", "lost")}
    return {"rate": rate, "requests": found["requests"], "failed": found["lost"], **values}, meter.usage


def streams(contender: Contender, run: Run) -> Measured:
    """Measure 1,000 event streams with an event per second: CPU, how late events come, memory."""
    _touch_live(contender, "/live/events", 200, ())
    with visitors(contender, "/live/events") as crowd:
        kib = _memory_of(contender, crowd, STREAMS, 200)
        with Meter(contender.pid) as meter:
            found = crowd.ask("watch", run.pace.live_seconds)
    if found["lost"] or found["events"] < 0.95 * STREAMS * run.pace.live_seconds:
        raise Trouble(f"{contender.title}: of {STREAMS} streams came {found}\n{contender.running.said()}")
    lags = {name: found[name] for name in ("p50", "p99", "p100")}
    own = {} if contender.name == "direct" else {"kib": kib, "cores": meter.usage.cpu / meter.usage.seconds}
    return {**own, **lags}, meter.usage


def sockets(contender: Contender, run: Run) -> Measured:
    """Measure 4,000 idle WebSockets: memory, and what waiting costs. That they carry messages is tried on some."""
    count = min(SOCKETS, contender.world.files // 2 - 500)  # each is two descriptors in a proxy
    headers = contender.socket_headers()
    _touch_live(contender, "/live/socket", 101, headers)
    with visitors(contender, "/live/socket", headers) as crowd:
        kib = _memory_of(contender, crowd, count, 101)
        with Meter(contender.pid) as meter:
            crowd.ask("watch", run.pace.live_seconds)
        found = crowd.ask("echo", ECHOES)
    if found["lost"] or found["echoed"] != ECHOES:
        raise Trouble(f"{contender.title}: of {ECHOES} messages came {found}\n{contender.running.said()}")
    return {"kib": kib, "count": count, "cores": meter.usage.cpu / meter.usage.seconds}, meter.usage


def _touch_live(contender: Contender, path: str, status: int, headers: Sequence[str]) -> None:
    """Open some connections and close them, so that what is loaded once is loaded before memory is measured."""
    with visitors(contender, path, headers) as crowd:
        crowd.open(20, status)


def _memory_of(contender: Contender, crowd: Visitors, count: int, status: int) -> float:
    """Open `count` connections; returns by how many KiB the contender has grown for each."""
    before = machine.memory(contender.pid)
    crowd.open(count, status)
    crowd.ask("watch", 2)
    return (machine.memory(contender.pid) - before) / count / KIB


EVERYONE: Final = ("nginx", "postern", "caddy", "apache", "naive")
_REQUESTS: Final = (
    Column("per_cpu", "requests per CPU-second", versus=True),
    Column("rate", "requests/s"),
    Column("p50", "p50, ms", 2),
    Column("p99", "p99, ms", 2),
)
_BYTES: Final = (Column("mib_per_cpu", "MiB per CPU-second", versus=True), Column("mib", "MiB/s", versus=True))

SCENARIOS: Final = (
    Scenario(
        "small", "Small GETs, 32 connections", EVERYONE, _REQUESTS, closed("/small", 32), rounds=5, quick_rounds=2
    ),
    Scenario("upload", "POSTs of 10 KiB, 32 connections", EVERYONE, _REQUESTS, closed("/upload", 32, "POST", 10 * KIB)),
    Scenario("100k", "Answers of 100 KiB, 32 connections", EVERYONE, _REQUESTS, closed("/100k", 32)),
    Scenario("10m", "Answers of 10 MiB, 8 connections", EVERYONE, _BYTES, closed("/10m", 8)),
    Scenario(
        "forward-auth",
        "Forward-auth answers, 32 connections",
        ("postern",),
        tuple(replace(column, versus=False) for column in _REQUESTS),
        closed(FORWARD_AUTH, 32, more=FORWARDED),
        possible=answers_forward_auth,
    ),
    Scenario(
        "rules",
        "Small GETs through ten routes with five rules, and through one without any",
        ("one-route", "ten-routes"),
        tuple(replace(column, versus=False) for column in _REQUESTS),
        closed("/small", 32),
        rounds=5,
        quick_rounds=2,
    ),
    Scenario(
        "latency",
        "Small GETs at half of Postern's peak rate, open loop",
        ("direct", "nginx", "postern"),
        (
            Column("p50", "p50, ms", 2),
            Column("p99", "p99, ms", 2, versus=True),
            Column("p999", "p99.9, ms", 2),
            Column("max", "max, ms", 1),
            Column("rate", "requests/s"),
        ),
        latency,
        quick_rounds=2,
    ),
    Scenario(
        "streams",
        "1,000 event streams, one event per second each",
        ("direct", "nginx", "postern", "caddy"),
        (
            Column("p50", "delay p50, ms", 2),
            Column("p99", "delay p99, ms", 2),
            Column("p100", "delay max, ms", 1),
            Column("cores", "CPU, cores", 3, versus=True),
            Column("kib", "KiB each", 1, versus=True),
        ),
        streams,
        fresh=True,
        rounds=2,
    ),
    Scenario(
        "sockets",
        "4,000 idle WebSockets",
        ("nginx", "postern", "caddy"),
        (Column("kib", "KiB each", 1, versus=True), Column("cores", "CPU, cores", 3)),
        sockets,
        fresh=True,
        rounds=2,
    ),
)
