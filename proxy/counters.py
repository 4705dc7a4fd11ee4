"""What is counted, and how: plain numbers in each worker, added up when somebody asks.

A counter costs the relay one lookup in a dictionary and a few additions per request. Labels, text and the sum over the workers
are made when the numbers are read. Every label has few values, whatever clients send: routes, servers, results and reasons come
from the settings and from this code, methods and statuses are put into classes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_METHODS: Final = {name: name.decode() for name in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")}
_OTHER: Final = "other"
_NOTED: Final = 64  # requests that are sorted in together, while all that this takes is at the processor's hand

# Family -> rows: the values of its labels, then a number; of a histogram, the sum and the count of each bucket.
Row = list[Any]
Snapshot = dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class Family:
    """One family of series. A gauge that `combine` is given for is not the sum over the workers."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    combine: Callable[[float, float], float] | None = None

    def has(self, row: object) -> bool:
        """Whether `row` is one of this family."""
        if not isinstance(row, list) or len(row) != len(self.labels) + 1:
            return False
        values = row[-1] if self.kind == "histogram" else row[-1:]
        size = len(SECONDS) + 2 if self.kind == "histogram" else 1
        return (
            all(isinstance(label, str) for label in row[:-1])
            and isinstance(values, list)
            and len(values) == size
            and all(isinstance(value, int | float) for value in values)
        )


FAMILIES: Final = {
    family.name: family
    for family in (
        Family(
            "postern_requests_total",
            "counter",
            "Requests that have ended, by what became of them.",
            ("route", "method", "status", "outcome"),
        ),
        Family(
            "postern_request_duration_seconds",
            "histogram",
            "From a request's head to the end of its answer; not of WebSockets.",
            ("route",),
        ),
        Family(
            "postern_first_byte_seconds",
            "histogram",
            "From a request's head to the head of its answer.",
            ("route",),
        ),
        Family("postern_request_bytes_total", "counter", "Payload received from clients.", ("route",)),
        Family("postern_response_bytes_total", "counter", "Payload sent to clients.", ("route",)),
        Family("postern_connections", "gauge", "Open connections of clients, WebSockets among them."),
        Family("postern_connections_accepted_total", "counter", "Connections that clients have made."),
        Family("postern_tunnels", "gauge", "Open WebSockets and other tunnels."),
        Family("postern_upstream_connections", "gauge", "Connections to a server behind.", ("upstream", "state")),
        Family("postern_upstream_waiting", "gauge", "Requests that wait for a connection's place.", ("upstream",)),
        Family("postern_upstream_aside", "gauge", "Workers that ask this server last for now.", ("upstream",)),
        Family("postern_upstream_failures_total", "counter", "Requests that it failed.", ("upstream", "problem")),
        Family("postern_upstream_retries_total", "counter", "Requests sent a second time, first to it.", ("upstream",)),
        Family("postern_sessions_held", "gauge", "Sessions in the workers' memory."),
        Family(
            "postern_session_lookups_total", "counter", "Sessions looked for, by where they were found.", ("found",)
        ),
        Family("postern_store_seconds", "histogram", "How long it took to ask the session store for a session."),
        Family("postern_store_errors_total", "counter", "Requests that were refused because it did not answer."),
        Family("postern_sign_ins_total", "counter", "Sign-ins that have ended, by result.", ("result",)),
        Family("postern_log_lines_lost_total", "counter", "Lines of the access log that nobody took in time."),
        Family("postern_settings_generation", "gauge", "Settings in force: 1, and one more for each reload.", (), min),
        Family("postern_workers", "gauge", "Workers that answer."),
        Family("postern_worker_restarts_total", "counter", "Workers started anew, because one had ended unasked."),
        Family("postern_build_info", "gauge", "The version that runs.", ("version", "python")),
    )
}


class Histogram:
    """Durations in seconds, sorted into the buckets of `SECONDS` and one for whatever is longer."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    @property
    def row(self) -> Row:
        """The sum, then the count of each bucket by itself."""
        return [self.sum, *self.counts]


class _RouteTally:
    __slots__ = ("duration", "first_byte", "received", "requests", "sent")

    def __init__(self) -> None:
        self.requests: dict[tuple[bytes, int, str], int] = {}
        self.duration = Histogram()
        self.first_byte = Histogram()
        self.received = 0
        self.sent = 0


class Tally:
    """What one worker has counted since it started."""

    def __init__(self) -> None:
        self._routes: dict[str, _RouteTally] = {}
        self._noted: list[tuple[str, bytes, int, str, float, float, int, int]] = []
        self.connections = 0
        self.found_in_memory = 0
        self.found_in_store = 0
        self.not_found = 0
        self.store_errors = 0
        self.store_seconds = Histogram()

    def request(
        self,
        route: str,
        method: bytes,
        status: int,
        outcome: str,
        first_byte: float,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Count a request that has ended; `route` is empty where there was none, `first_byte` 0 where there was no answer."""
        noted = self._noted
        noted.append((route, method, status, outcome, first_byte, seconds, received, sent))
        if len(noted) >= _NOTED:
            self._count()

    def _count(self) -> None:
        """Sort what is noted into the numbers."""
        noted, self._noted = self._noted, []
        for route, method, status, outcome, first_byte, seconds, received, sent in noted:
            tally = self._routes.get(route)
            if tally is None:
                tally = self._routes[route] = _RouteTally()
            key = (
                method if method in _METHODS else b"",
                status // 100 or 4,
                outcome,
            )  # no status: the client did not wait
            tally.requests[key] = tally.requests.get(key, 0) + 1
            if first_byte:
                tally.first_byte.observe(first_byte)
            if status != 101:  # a WebSocket lasts as long as somebody looks at a page
                tally.duration.observe(seconds)
            tally.received += received
            tally.sent += sent

    def store_asked(self, seconds: float, *, found: bool, failed: bool) -> None:
        """Count a question for a session that only the store could answer."""
        self.store_seconds.observe(seconds)
        if failed:
            self.store_errors += 1
        elif found:
            self.found_in_store += 1
        else:
            self.not_found += 1

    def snapshot(self, routes: Collection[str]) -> Snapshot:
        """The numbers as they stand, of `routes` and of what had none. Other routes are gone, and so are their numbers."""
        self._count()
        for name in self._routes.keys() - {"", *routes}:
            del self._routes[name]
        tallies = list(self._routes.items())
        return {
            "postern_requests_total": [
                [name, _METHODS.get(method, _OTHER), f"{status}xx", outcome, count]
                for name, tally in tallies
                for (method, status, outcome), count in tally.requests.items()
            ],
            "postern_request_duration_seconds": [[name, tally.duration.row] for name, tally in tallies],
            "postern_first_byte_seconds": [[name, tally.first_byte.row] for name, tally in tallies],
            "postern_request_bytes_total": [[name, tally.received] for name, tally in tallies],
            "postern_response_bytes_total": [[name, tally.sent] for name, tally in tallies],
            "postern_connections_accepted_total": [[self.connections]],
            "postern_session_lookups_total": [
                ["memory", self.found_in_memory],
                ["store", self.found_in_store],
                ["nowhere", self.not_found],
            ],
            "postern_store_seconds": [[self.store_seconds.row]],
            "postern_store_errors_total": [[self.store_errors]],
        }


def added(snapshots: Iterable[Snapshot], only: Literal["lasting"] | None = None) -> Snapshot:
    """The sum of several workers' numbers; with "lasting" only of those that outlive a worker: not of gauges.

    What is no row of a known family is left out: the numbers come from processes that the network talks to.
    """
    sums: dict[str, dict[tuple[str, ...], Any]] = {}
    for snapshot in snapshots:
        for name, rows in snapshot.items():
            family = FAMILIES.get(name)
            if family is None or (only == "lasting" and family.kind == "gauge"):
                continue
            into = sums.setdefault(name, {})
            for row in filter(family.has, rows if isinstance(rows, list) else ()):
                labels, value = tuple(row[:-1]), row[-1]
                into[labels] = _sum(family, into[labels], value) if labels in into else value
    return {name: [[*labels, value] for labels, value in rows.items()] for name, rows in sums.items()}


def _sum(family: Family, one: Any, other: Any) -> Any:
    if family.kind == "histogram":
        return [a + b for a, b in zip(one, other, strict=True)]
    return family.combine(one, other) if family.combine is not None else one + other


def without_routes_but(snapshot: Mapping[str, list[Row]], routes: Collection[str]) -> Snapshot:
    """`snapshot` without the series of routes that are none of `routes`: so many settings, so many names."""
    known = {"", *routes}
    return {
        name: [row for row in rows if FAMILIES[name].labels[:1] != ("route",) or row[0] in known]
        for name, rows in snapshot.items()
    }
