"""What a service manager is told and hands over, with a real socket at its end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.notify import Notifier, passed_sockets

# What systemd does: descriptors from 3 on, and the variables for this very process.
PASSED = """
import json, os, sys
high = [os.dup(int(fd)) for fd in sys.argv[1:]]
for place, fd in enumerate(high, 3):
    os.dup2(fd, place)
os.environ["LISTEN_PID"] = str(os.getpid())
from proxy.notify import passed_sockets
sockets = passed_sockets(os.environ)
print(json.dumps([[sock.getsockname()[1], sock.family.name, os.get_inheritable(sock.fileno())] for sock in sockets]))
print(json.dumps([name for name in os.environ if name.startswith("LISTEN_")]))
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


def test_a_manager_hears_of_each_step(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "OTHER": "1"}
    notifier = Notifier(environ)
    assert environ == {"OTHER": "1"}, "what this process starts must not speak in its name"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("serving https://apps.example.com")
    notifier.reloading()
    notifier.stopping()
    notifier.alive()
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving https://apps.example.com"
    first, _, second = manager.recv(1000).partition(b"\n")
    assert first == b"RELOADING=1"
    name, _, value = second.partition(b"=")
    assert name == b"MONOTONIC_USEC"
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.recv(1000) == b"STOPPING=1\nSTATUS=draining"
    assert manager.recv(1000) == b"WATCHDOG=1"


def test_a_manager_in_the_abstract_namespace() -> None:
    name = f"postern-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).alive()
        assert manager.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "relative", "@nobody-listens-here"])
def test_nobody_listens(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address}).ready("x")


def test_a_manager_that_does_not_read_holds_up_little_and_hears_what_matters_when_it_does(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(5000):
        notifier.alive()
    monkeypatch.setattr("proxy.notify._PATIENCE", 0.01)
    notifier.stopping()
    reading = threading.Thread(target=lambda: [manager.recv(1000) for _ in range(3)])
    monkeypatch.undo()
    reading.start()
    notifier.ready("x")
    reading.join()
    heard = [manager.recv(1000)]
    while not heard[-1].startswith(b"READY=1"):
        heard.append(manager.recv(1000))
    assert b"STOPPING=1" not in heard


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_wants_two_signs_of_life_in_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog == seconds
    assert environ == {}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many", "LISTEN_FDNAMES": "x"},
    ],
)
def test_sockets_for_nobody_or_somebody_else(environ: dict[str, str]) -> None:
    assert passed_sockets(environ) == []
    assert environ == {}


def test_sockets_are_taken_from_descriptor_3_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [one.getsockname()[1], two.getsockname()[1]]
        found = subprocess.run(
            [sys.executable, "-c", PASSED, str(one.fileno()), str(two.fileno())],
            pass_fds=(one.fileno(), two.fileno()),
            env={
                **os.environ,
                "LISTEN_FDS": "2",
                "LISTEN_FDNAMES": "a:b",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            },
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
    sockets, variables = map(json.loads, found.stdout.splitlines())
    assert sockets == [[port, "AF_INET", False] for port in ports]
    assert variables == []
