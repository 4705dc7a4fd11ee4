"""One run of the gateway as its own process: what signals do to it, what the service manager hears, what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0  # seconds, on a busy machine
SETTINGS = """
public_url = "http://localhost:3000"
prefix = "{prefix}"
{more}
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "app"
app_secret = "very-secret-indeed"
[[route]]
name = "app"
upstream = "http://127.0.0.1:9"
"""


class Gateway:
    """`postern serve` on a unix socket below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "postern.toml"
        self.socket = folder / "gateway.sock"
        self.said = folder / "stderr"
        self.lines = folder / "access.log"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.settimeout(PATIENCE)
        self.manager.bind(str(folder / "notify.sock"))

    def set(self, *, prefix: str = "/.postern", more: str = "") -> None:
        """Write the settings, as one piece: a watching gateway must not meet half of them."""
        new = self.file.with_suffix(".new")
        new.write_text(SETTINGS.format(prefix=prefix, more=more), "utf-8")
        new.replace(self.file)

    def start(self, **environ: str) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("POSTERN_", "LOGTO_"))}
        own = {
            "POSTERN_LISTEN": f"unix:{self.socket}",
            "POSTERN_LOG__ACCESS": str(self.lines),
            "NOTIFY_SOCKET": str(self.folder / "notify.sock"),
        }
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "proxy", "serve", "--config", str(self.file)],
                cwd=ROOT,
                env={**plain, **own, **environ},
                stderr=said,
            )

    def told(self) -> str:
        """What the service manager hears next."""
        return self.manager.recv(4096).decode()

    def status(self, path: str) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.socket))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n".encode())
            return int(client.makefile("rb").readline().split(b" ")[1])

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.02)

    def says(self, text: str) -> bool:
        return text in self.said.read_text()


@contextmanager
def gateway(folder: Path, *, more: str = "", **environ: str) -> Iterator[Gateway]:
    """A gateway that has said that it is ready."""
    found = Gateway(folder)
    found.set(more=more)
    found.start(**environ)
    try:
        assert found.told() == "READY=1\nSTATUS=serving http://localhost:3000"
        yield found
    finally:
        with suppress(ProcessLookupError):
            found.process.kill()
        found.process.wait()
        found.manager.close()


def test_it_says_when_it_is_ready_and_when_it_stops_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        assert it.status("/.postern/healthz") == 200
        it.process.terminate()
        assert it.told() == "STOPPING=1\nSTATUS=draining"
        assert it.process.wait(PATIENCE) == 0
        assert not it.socket.exists()
        assert it.says("stopped")


def test_sighup_reads_the_settings_again_and_wrong_ones_are_not_taken(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        it.set(prefix="/.gate")
        it.process.send_signal(signal.SIGHUP)
        assert it.told().startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert it.told().startswith("READY=1\n")
        assert it.status("/.gate/healthz") == 200
        assert it.says("settings reloaded: generation 2")
        it.set(prefix="no path", more="nonsense = 1")
        it.process.send_signal(signal.SIGHUP)
        assert it.told().startswith("RELOADING=1\n")
        assert it.told().startswith("READY=1\n")
        assert it.status("/.gate/healthz") == 200
        assert it.says("settings not taken: nonsense: is not a known key")
        assert it.says("the settings in force stay as they are: generation 2")


def test_what_cannot_change_while_it_runs_is_named(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        it.set(prefix="/.gate", more='metrics = { listen = "127.0.0.1:9464" }')
        it.process.send_signal(signal.SIGHUP)
        it.until(lambda: it.says("settings reloaded: generation 2"))
        assert it.says("metrics cannot be changed while the gateway runs")
        assert it.status("/.gate/healthz") == 200


def test_a_change_of_the_file_is_enough_where_files_are_watched(tmp_path: Path) -> None:
    with gateway(tmp_path, more='reload = "watch"') as it:
        it.set(prefix="/.gate", more='reload = "watch"')
        it.until(lambda: it.says("settings reloaded: generation 2"))
        assert it.status("/.gate/healthz") == 200


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path, number: signal.Signals) -> None:
    with gateway(tmp_path) as it:
        assert it.status("/.postern/healthz") == 200
        it.until(lambda: "/.postern/healthz" in it.lines.read_text())
        it.lines.rename(tmp_path / "access.log.1")
        it.process.send_signal(number)
        it.until(it.lines.exists)
        assert it.status("/.postern/jwks.json") == 200
        it.until(lambda: "/.postern/jwks.json" in it.lines.read_text())
        assert "/.postern/healthz" not in it.lines.read_text()


def test_told_to_stop_twice_it_does_not_wait(tmp_path: Path) -> None:
    with gateway(tmp_path, more='drain = { delay = "10m" }') as it:
        it.process.send_signal(signal.SIGINT)
        it.until(lambda: it.says("stopping: draining for up to 630 s"))
        assert it.status("/.postern/readyz") == 503
        assert it.status("/.postern/healthz") == 200
        it.process.send_signal(signal.SIGINT)
        assert it.process.wait(PATIENCE) == 0
        assert it.says("told to stop again: not waiting for what is under way")


def test_the_watchdog_hears_that_it_is_alive(tmp_path: Path) -> None:
    with gateway(tmp_path, WATCHDOG_USEC="200000") as it:
        assert [it.told() for _ in range(3)] == ["WATCHDOG=1"] * 3


def test_a_place_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        it = Gateway(tmp_path)
        it.set()
        it.start(POSTERN_LISTEN=f"127.0.0.1:{port}")
        assert it.process.wait(PATIENCE) == 1
        it.manager.close()
    last = it.said.read_text().splitlines()[-1]
    assert last == f"cannot listen on 127.0.0.1:{port}: Address already in use; is something else running there?"


def test_metrics_are_served_where_they_are_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "metrics.sock"
    with gateway(tmp_path, more=f'metrics = {{ listen = "unix:{place}" }}') as it:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(place))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"postern_workers 1" in client.makefile("rb").read()
        it.process.terminate()
        assert it.process.wait(PATIENCE) == 0


def test_several_workers_are_one_gateway_to_the_service_manager(tmp_path: Path) -> None:
    with gateway(tmp_path, POSTERN_WORKERS="2", REDIS_URL="redis://127.0.0.1:9/0") as it:
        assert it.status("/.postern/healthz") == 200
        it.set(prefix="/.gate")
        it.process.send_signal(signal.SIGHUP)
        assert it.told().startswith("RELOADING=1\n")
        assert it.told().startswith("READY=1\n")
        assert [it.status("/.gate/healthz") for _ in range(4)] == [200] * 4
        it.process.terminate()
        assert it.told() == "STOPPING=1\nSTATUS=draining"
        assert it.process.wait(PATIENCE) == 0
