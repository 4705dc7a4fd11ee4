"""The numbers as Prometheus reads them, on a listener of their own: they tell of every route and server there is."""

from __future__ import annotations

import asyncio
import logging
import platform
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.counters import FAMILIES, SECONDS, Family, Row, Snapshot, added

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BOUNDS = [*map(str, SECONDS), "+Inf"]
_log = logging.getLogger("postern")


class _Numbers(Collector):
    """One set of numbers, as prometheus-client collects them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Every family, in the order of `FAMILIES`, those without any series as well."""
        for name, family in FAMILIES.items():
            yield _metric(family, self._snapshot.get(name, []))


def _metric(family: Family, rows: Iterable[Row]) -> Metric:
    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    metric: Any = kinds[family.kind](family.name, family.meaning, labels=family.labels)
    for *labels, value in rows:
        if family.kind == "histogram":
            metric.add_metric(labels, buckets=list(zip(_BOUNDS, _running(value[1:]), strict=True)), sum_value=value[0])
        else:
            metric.add_metric(labels, value)
    return metric  # type: ignore[no-any-return]  # one of three classes that share no signature


def _running(counts: Iterable[float]) -> Iterator[float]:
    """Each bucket's count with those of all smaller ones: so Prometheus wants them."""
    total = 0.0
    for count in counts:
        total += count
        yield total


def exposition(snapshot: Snapshot, accept: str) -> tuple[bytes, str]:
    """`snapshot` in the text format that suits an Accept field best, and its media type."""
    registry = CollectorRegistry()
    registry.register(_Numbers(added([snapshot, _build_info()])))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


def _build_info() -> Snapshot:
    return {"postern_build_info": [[version("postern"), platform.python_version(), 1]]}


class _Quiet(uvicorn.Server):
    """A second server in the process: signals are not its business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


@asynccontextmanager
async def metrics_on(sockets: list[socket.socket], numbers: Callable[[], Awaitable[Snapshot]]) -> AsyncIterator[None]:
    """Serve `GET /metrics` on `sockets` as long as the block runs; `numbers` is asked for each scrape."""

    async def metrics(request: Request) -> Response:
        text, media_type = exposition(await numbers(), request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": media_type, "Cache-Control": "no-store"})

    config = uvicorn.Config(
        Starlette(routes=[Route("/metrics", metrics)]),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        limit_concurrency=32,
        timeout_graceful_shutdown=1,
    )
    server = _Quiet(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets))
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        await serving
