"""Real Redis Clusters and real sets of Sentinels on loopback, made of redis-server processes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from tests.e2e.processes import free_port
from tests.redis_server import RedisServer

PATIENCE = 30.0
NODE_TIMEOUT_MS = 1000


class RedisCluster:
    """Masters that share the slots, each with as many replicas as asked for. The same URL names all of them."""

    def __init__(self, masters: int = 3, replicas: int = 0) -> None:
        self.masters = [self._node() for _ in range(masters)]
        self.replicas = [self._node() for _ in range(masters * replicas)]

    @staticmethod
    def _node() -> RedisServer:
        return RedisServer(
            *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-allow-replica-migration", "no"),
            *("--repl-diskless-sync-delay", "0"),
        )

    @property
    def nodes(self) -> list[RedisServer]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def start(self) -> None:
        """Start all nodes, have them meet, share the slots out, and wait until the cluster is well."""
        for node in self.nodes:
            node.start()
        first = self.masters[0]
        for node in self.nodes[1:]:
            first.do("CLUSTER", "MEET", "127.0.0.1", node.port, self._bus_port(node))
        share = 16384 // len(self.masters)
        for index, node in enumerate(self.masters):
            last = 16383 if node is self.masters[-1] else share * (index + 1) - 1
            node.do("CLUSTER", "ADDSLOTSRANGE", share * index, last)
        known = len(self.nodes)
        self.wait(lambda node: f"cluster_known_nodes:{known}" in self.info(node))
        for index, replica in enumerate(self.replicas):
            replica.do("CLUSTER", "REPLICATE", self.node_id(self.masters[index % len(self.masters)]))
        self.wait(lambda node: "cluster_state:ok" in self.info(node))
        for replica in self.replicas:
            wait_until(lambda replica=replica: "master_link_status:up" in text(replica.do("INFO", "replication")))

    def wait(self, condition: Any) -> None:
        for node in self.nodes:
            wait_until(lambda node=node: condition(node))

    @staticmethod
    def info(node: RedisServer) -> str:
        return text(node.do("CLUSTER", "INFO"))

    @staticmethod
    def node_id(node: RedisServer) -> str:
        return text(node.do("CLUSTER", "MYID"))

    @staticmethod
    def _bus_port(node: RedisServer) -> int:
        return int(node.options[node.options.index("--cluster-port") + 1])

    def do_on_masters(self, *command: Any) -> list[Any]:
        """Run a command on every master there is at present."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(redis.ConnectionError):
                if text(node.do("ROLE")[0]) == "master":
                    found.append(node.do(*command))
        return found

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
            shutil.rmtree(node.directory, ignore_errors=True)


class SentinelSet:
    """A master with a replica, and Sentinels that watch them."""

    NAME = "postern-master"

    def __init__(self, sentinels: int = 3, *options: str) -> None:
        self.options = options
        self.first = self._server()
        self.second = self._server()
        self.ports = [free_port() for _ in range(sentinels)]
        self.directory = Path(tempfile.mkdtemp(prefix="sentinels-"))
        self._processes: list[subprocess.Popen[bytes]] = []

    def _server(self) -> RedisServer:
        return RedisServer("--repl-diskless-sync-delay", "0", "--repl-timeout", "3", *self.options)

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + f"/{self.NAME}"

    def start(self) -> None:
        """Start the servers and the Sentinels, and wait until all of them know each other."""
        self.first.start()
        self.second.start()
        self.second.do("REPLICAOF", "127.0.0.1", self.first.port)
        wait_until(lambda: "master_link_status:up" in text(self.second.do("INFO", "replication")))
        quorum = len(self.ports) // 2 + 1
        for port in self.ports:
            config = self.directory / f"{port}.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self.directory}\n"
                f"sentinel monitor {self.NAME} 127.0.0.1 {self.first.port} {quorum}\n"
                f"sentinel down-after-milliseconds {self.NAME} 500\n"
                f"sentinel failover-timeout {self.NAME} 3000\n"
            )
            with (self.directory / "log").open("ab") as log:
                command = ["redis-server", str(config), "--sentinel"]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        others, slaves = len(self.ports) - 1, 1
        for port in self.ports:
            wait_until(lambda port=port: self._knows(port, others, slaves))

    def _knows(self, port: int, sentinels: int, slaves: int) -> bool:
        try:
            with contextlib.closing(redis.Redis(port=port, socket_timeout=2, decode_responses=True)) as client:
                state = client.execute_command("SENTINEL MASTER", self.NAME)  # type: ignore[no-untyped-call]
        except redis.RedisError:
            return False
        return int(state["num-other-sentinels"]) >= sentinels and int(state["num-slaves"]) >= slaves

    @property
    def master(self) -> RedisServer:
        """Whichever the Sentinels name."""
        with contextlib.closing(redis.Redis(port=self.ports[0], socket_timeout=2, decode_responses=True)) as client:
            _, port = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.NAME)  # type: ignore[no-untyped-call]
        return self.first if int(port) == self.first.port else self.second

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for server in (self.first, self.second):
            server.stop()
            shutil.rmtree(server.directory, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def redis_cluster(masters: int = 3, replicas: int = 0) -> Iterator[RedisCluster]:
    """Run a Cluster for the length of a `with` block or a fixture."""
    cluster = _started(lambda: RedisCluster(masters, replicas))
    try:
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def sentinel_set(sentinels: int = 3, *options: str) -> Iterator[SentinelSet]:
    """Run a master, a replica and Sentinels for the length of a `with` block or a fixture."""
    group = _started(lambda: SentinelSet(sentinels, *options))
    try:
        yield group
    finally:
        group.stop()


Group = TypeVar("Group", RedisCluster, SentinelSet)


def _started(make: Callable[[], Group]) -> Group:
    """Make and start a group; once more, with other ports, when somebody else was quicker to take one of them."""
    for attempt in range(3):
        group = make()
        try:
            group.start()
        except (RuntimeError, AssertionError):
            group.stop()
            if attempt == 2:
                raise
        else:
            break
    return group


def wait_until(condition: Any, *, within: float = PATIENCE) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def text(value: Any) -> str:
    """An answer of redis-server as text, whatever redis-py has made of it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return "\n".join(f"{key}:{value[key]}" for key in value)
    return str(value)


__all__: Sequence[str] = ("RedisCluster", "SentinelSet", "redis_cluster", "sentinel_set", "text", "wait_until")
