"""Counting: what ends up in which series, sums over workers, and labels that stay few."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.counters import FAMILIES, SECONDS, Family, Histogram, Snapshot, Tally, added, without_routes_but


def count(tally: Tally, **changes: Any) -> None:
    request = {
        "route": "app",
        "method": b"GET",
        "status": 200,
        "outcome": "signed_in",
        "first_byte": 0.02,
        "seconds": 0.03,
        "received": 0,
        "sent": 5,
    }
    tally.request(**{**request, **changes})


def requests(tally: Tally, *routes: str) -> dict[tuple[str, ...], int]:
    return {tuple(row[:-1]): row[-1] for row in tally.snapshot(routes)["postern_requests_total"]}


class TestTally:
    @pytest.mark.parametrize(
        ("changes", "labels"),
        [
            ({}, ("app", "GET", "2xx", "signed_in")),
            ({"method": b"BREW"}, ("app", "other", "2xx", "signed_in")),
            ({"method": b"get"}, ("app", "other", "2xx", "signed_in")),
            ({"status": 503, "outcome": "upstream_busy"}, ("app", "GET", "5xx", "upstream_busy")),
            ({"status": 101}, ("app", "GET", "1xx", "signed_in")),
            ({"status": 0, "outcome": "cut_short"}, ("app", "GET", "4xx", "cut_short")),
            ({"route": "", "outcome": "no_route", "status": 404}, ("", "GET", "4xx", "no_route")),
        ],
    )
    def test_labels(self, changes: dict[str, Any], labels: tuple[str, ...]) -> None:
        tally = Tally()
        count(tally, **changes)
        count(tally, **changes)
        assert requests(tally, "app") == {labels: 2}

    def test_whatever_clients_send_there_are_few_series(self) -> None:
        tally = Tally()
        for number in range(1000):
            count(tally, method=b"M%d" % number, status=200 + number % 400)
        assert len(requests(tally, "app")) == 4

    def test_bytes_and_times(self) -> None:
        tally = Tally()
        count(tally, received=10, sent=20, first_byte=0.001, seconds=70.0)
        count(tally, received=1, sent=2, first_byte=0.0, seconds=0.0015)
        numbers = tally.snapshot(["app"])
        assert numbers["postern_request_bytes_total"] == [["app", 11]]
        assert numbers["postern_response_bytes_total"] == [["app", 22]]
        ((_, first),) = numbers["postern_first_byte_seconds"]
        assert first == [0.001, 1, *[0] * len(SECONDS)]
        ((_, whole),) = numbers["postern_request_duration_seconds"]
        assert whole == [70.0015, 0, 1, *[0] * (len(SECONDS) - 2), 1]

    def test_a_websocket_is_no_slow_request(self) -> None:
        tally = Tally()
        count(tally, status=101, seconds=3600.0)
        ((_, row),) = tally.snapshot(["app"])["postern_request_duration_seconds"]
        assert sum(row) == 0

    def test_sessions(self) -> None:
        tally = Tally()
        tally.found_in_memory += 3
        tally.store_asked(0.002, found=True, failed=False)
        tally.store_asked(0.002, found=False, failed=False)
        tally.store_asked(2.0, found=False, failed=True)
        numbers = tally.snapshot([])
        assert numbers["postern_session_lookups_total"] == [["memory", 3], ["store", 1], ["nowhere", 1]]
        assert numbers["postern_store_errors_total"] == [[1]]
        ((row,),) = numbers["postern_store_seconds"]
        assert (row[0], sum(row[1:])) == (pytest.approx(2.004), 3)

    def test_routes_that_are_gone_are_forgotten(self) -> None:
        tally = Tally()
        count(tally)
        count(tally, route="old")
        count(tally, route="")
        assert {labels[0] for labels in requests(tally, "app")} == {"app", ""}
        assert {labels[0] for labels in requests(tally, "app", "old")} == {"app", ""}


@given(st.lists(st.floats(0, 100, allow_nan=False)))
def test_every_duration_is_in_one_bucket(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    for bound in SECONDS:
        assert sum(histogram.counts[: SECONDS.index(bound) + 1]) == sum(value <= bound for value in values)


def example(number: int) -> Snapshot:
    tally = Tally()
    for _ in range(number):
        count(tally)
        tally.store_asked(0.1, found=True, failed=False)
    return {**tally.snapshot(["app"]), "postern_connections": [[number]], "postern_settings_generation": [[number]]}


class TestAdded:
    def test_counters_gauges_and_histograms(self) -> None:
        total = added([example(2), example(3)])
        assert total["postern_requests_total"] == [["app", "GET", "2xx", "signed_in", 5]]
        assert total["postern_connections"] == [[5]]
        assert total["postern_settings_generation"] == [[2]], "the least: what holds everywhere"
        ((row,),) = total["postern_store_seconds"]
        assert row[0] == pytest.approx(0.5)
        assert sum(row[1:]) == 5

    def test_what_is_added_is_not_changed(self) -> None:
        one, other = example(1), example(2)
        before = copy.deepcopy((one, other))
        added([one, other])
        assert (one, other) == before

    def test_gauges_end_with_their_worker(self) -> None:
        lasting = added([example(2)], "lasting")
        assert lasting["postern_requests_total"]
        assert "postern_connections" not in lasting
        assert {FAMILIES[name].kind for name in lasting} == {"counter", "histogram"}

    @pytest.mark.parametrize(
        "nonsense",
        [
            {"rm -rf": [[1]]},
            {"postern_connections": 1},
            {"postern_connections": [1]},
            {"postern_connections": [["x"]]},
            {"postern_connections": [[1, 2]]},
            {"postern_connections": [[None]]},
            {"postern_requests_total": [["app", "GET", "2xx", 5, 1]]},
            {"postern_store_seconds": [[1]]},
            {"postern_store_seconds": [[[1, 2]]]},
            {"postern_store_seconds": [[["1"] * (len(SECONDS) + 2)]]},
        ],
    )
    def test_nonsense_is_left_out(self, nonsense: dict[str, Any]) -> None:
        assert all(rows == [] for rows in added([nonsense]).values())
        assert added([nonsense, example(1)])["postern_connections"] == [[1]]

    def test_the_sum_of_nothing(self) -> None:
        assert added([]) == {}

    @given(st.lists(st.integers(0, 5), max_size=4))
    def test_the_order_does_not_matter(self, numbers: list[int]) -> None:
        def total(order: list[int]) -> Any:
            return added([example(number) for number in order]).get("postern_response_bytes_total")

        assert total(numbers) == total(numbers[::-1])


def test_series_of_routes_that_are_gone() -> None:
    kept = without_routes_but({**example(1), "postern_upstream_waiting": [["http://app", 0]]}, ["other"])
    assert kept["postern_requests_total"] == []
    assert kept["postern_connections"] == [[1]]
    assert kept["postern_upstream_waiting"] == [["http://app", 0]]
    assert without_routes_but(example(1), ["app"]) == example(1)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_names_follow_prometheus(family: Family) -> None:
    assert family.name.startswith("postern_")
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.meaning.endswith(".")
