"""The numbers as Prometheus reads them, and their page of the documentation."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from proxy.counters import FAMILIES, SECONDS, Snapshot, Tally
from proxy.metrics import exposition, metrics_on
from tests.relay_world import run

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "metrics.md").read_text("utf-8")


def numbers() -> Snapshot:
    tally = Tally()
    for seconds in (0.002, 0.2, 100.0):
        tally.request("app", b"GET", 200, "signed_in", seconds, seconds, 0, 7)
    return {**tally.snapshot(["app"]), "postern_workers": [[2]]}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Series -> value: its name, then its labels' values in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in read_text(text)
        for sample in family.samples
    }


class TestExposition:
    def test_counters_and_gauges(self) -> None:
        text, media_type = exposition(numbers(), "")
        assert media_type.startswith("text/plain")
        found = samples(text.decode())
        assert found["postern_requests_total", "GET", "signed_in", "app", "2xx"] == 3
        assert found["postern_response_bytes_total", "app"] == 21
        assert found["postern_workers",] == 2
        assert [value for name, value in found.items() if name[0] == "postern_build_info"] == [1]

    def test_histograms_are_cumulative(self) -> None:
        found = samples(exposition(numbers(), "")[0].decode())
        name = "postern_request_duration_seconds"
        buckets = [found[f"{name}_bucket", str(bound), "app"] for bound in SECONDS]
        assert buckets == [sum(seconds <= bound for seconds in (0.002, 0.2, 100.0)) for bound in SECONDS]
        assert found[f"{name}_bucket", "+Inf", "app"] == found[f"{name}_count", "app"] == 3
        assert found[f"{name}_sum", "app"] == pytest.approx(100.202)

    def test_openmetrics_for_those_who_ask_for_it(self) -> None:
        text, media_type = exposition(numbers(), "application/openmetrics-text; version=1.0.0")
        assert media_type.startswith("application/openmetrics-text")
        families = read_openmetrics(text.decode())  # type: ignore[no-untyped-call]
        assert {family.name for family in families} >= {"postern_requests", "postern_workers"}

    def test_every_family_is_described_even_without_series(self) -> None:
        text = exposition({}, "")[0].decode()
        for family in FAMILIES.values():
            assert f"# HELP {family.name} {family.meaning}" in text
            assert f"# TYPE {family.name} {family.kind}" in text

    def test_labels_cannot_break_out(self) -> None:
        nasty = 'a"} 1\npostern_workers 99\n#\\'
        text = exposition({"postern_upstream_waiting": [[nasty, 1]]}, "")[0].decode()
        assert samples(text)["postern_upstream_waiting", nasty] == 1
        assert ("postern_workers",) not in samples(text)


class TestPage:
    """A series that nobody knows of is of no use, and one that is not there is worse."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_every_series_is_documented_with_its_labels(self, name: str) -> None:
        row = re.search(rf"^\| `{name}` \|([^|]*)\| (.+) \|$", PAGE, re.MULTILINE)
        assert row, f"{name} is not in docs/metrics.md"
        assert tuple(re.findall("`([^`]+)`", row[1])) == FAMILIES[name].labels
        assert row[2].startswith("histogram:") == (FAMILIES[name].kind == "histogram")

    def test_every_documented_series_exists(self) -> None:
        known = set(FAMILIES) | {f"{name}_{part}" for name in FAMILIES for part in ("bucket", "sum", "count")}
        assert set(re.findall(r"\bpostern_[a-z_]+", PAGE)) <= known


@asynccontextmanager
async def listening(snapshot: Snapshot) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def asked() -> Snapshot:
            return snapshot

        async with metrics_on([listener], asked):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def get(url: str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(url, headers=headers)


class TestListener:
    def test_metrics_and_nothing_else(self) -> None:
        async def work() -> list[Any]:
            async with listening(numbers()) as url:
                return [await get(url + path) for path in ("/metrics", "/", "/.postern/healthz")]

        metrics, *others = run(work())
        assert metrics.status_code == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert metrics.headers["cache-control"] == "no-store"
        assert "server" not in metrics.headers
        assert "postern_requests_total{" in metrics.text
        assert [answer.status_code for answer in others] == [404, 404]

    def test_it_ends_with_its_block_even_while_somebody_is_connected(self) -> None:
        async def work() -> None:
            async with listening(numbers()) as url:
                port = int(url.rpartition(":")[2])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            writer.close()

        run(work())
