"""One worker's numbers: what was counted, and how things stand at this moment."""

from __future__ import annotations

import time
from typing import Any

from proxy.counters import Snapshot, added
from proxy.pool import Pool
from proxy.serve import Gateway
from proxy.tunnel import ClientTunnel


def measured(gateway: Gateway, generation: int) -> Snapshot:
    """The numbers of `gateway`, which serves by the `generation`-th settings."""
    relay = gateway.relay
    routes = [route.name for route in gateway.gate.routes.routes]
    standing: Snapshot = {
        "postern_connections": [[len(relay.connections)]],
        "postern_tunnels": [[sum(isinstance(connection, ClientTunnel) for connection in relay.connections)]],
        "postern_log_lines_lost_total": [[gateway.log.lost]],
        "postern_sign_ins_total": [[result, count] for result, count in gateway.sign_ins.items()],
        "postern_sessions_held": [[gateway.store.held]],
        "postern_settings_generation": [[generation]],
        "postern_workers": [[1]],
    }
    counted = relay.tally.snapshot(routes) if relay.tally is not None else {}
    # Of one URL there can be several pools, with other certificates or limits: their sum is what the server sees.
    return added([standing, counted, *(_of_pool(pool) for pool in gateway.upstreams)])


def _of_pool(pool: Pool) -> Snapshot:
    url = pool.url
    active, idle, waiting = pool.counts
    failures: list[list[Any]] = [[url, problem.value, count] for problem, count in pool.failures.items()]
    return {
        "postern_upstream_connections": [[url, "active", active], [url, "idle", idle]],
        "postern_upstream_waiting": [[url, waiting]],
        "postern_upstream_aside": [[url, int(pool.standing.aside(time.monotonic()))]],
        "postern_upstream_failures_total": failures,
        "postern_upstream_retries_total": [[url, pool.retries]],
    }
