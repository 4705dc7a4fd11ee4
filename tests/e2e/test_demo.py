"""`postern demo` and `postern sandbox` as a stranger meets them: a fresh copy, one command, Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway, walk_in
from tests.e2e.person import Person
from tests.e2e.processes import Processes, Running, eventually, free_port, http_status, living

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from proxy.cli import main; sys.argv[0] = 'postern'; sys.exit(main())"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What somebody has who was handed the tree and nothing else."""
    target = tmp_path / "postern"
    target.mkdir()
    shutil.copytree(ROOT / "proxy", target / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture
def demo_of_the_copy(group: Processes, copy: Path) -> tuple[Running, str]:
    port = free_port(3)
    argv = [sys.executable, "-c", MAIN, "demo", "--port", str(port)]
    running = group.start("stranger", argv, env={"PYTHONPATH": str(copy)}, cwd=copy)
    url = f"http://localhost:{port}"
    running.ready(url + "/.postern/healthz")
    return running, url


def test_who_is_suspended_at_the_stand_in_is_out_at_once(demo: Gateway) -> None:
    logto = f"http://localhost:{int(demo.url.rpartition(':')[2]) + 1}"
    with demo.signed_in("Noe") as person, Person() as admin:
        page = admin.browse(logto + "/sandbox/people")
        action = f"{logto}/sandbox/people/noe000000003/suspend"
        page = admin.browse(action, method="POST", fields=page.forms[0].fields, came_from=page.url)
        assert "suspended" in page.text
        eventually(
            lambda: person.request("GET", demo.url + "/.postern/me").status_code == 401 or None,
            what="the session has ended",
        )


@pytest.mark.parametrize("terminal", [True, False], ids=["ctrl-c", "kill -INT"])
def test_it_says_where_to_go_works_and_ends_without_a_trace(
    demo_of_the_copy: tuple[Running, str], terminal: bool
) -> None:
    running, url = demo_of_the_copy
    eventually(lambda: url in running.output(), what="the address to open is printed")
    with Person() as person:
        page = walk_in(person, url + "/reports/2026?quarter=3", "Ada")
        assert page.url == url + "/reports/2026?quarter=3"
        assert page.status == 200
        assert "Ada" in page.text

    family = running.family()
    if terminal:  # a terminal sends the signal to every process in the foreground
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.signal(signal.SIGINT)
    assert running.wait() == 0, running.output()
    eventually(lambda: not living(family), what="every process of the demo has ended")
    assert "Traceback" not in running.output()
    assert http_status(url + "/.postern/healthz") is None


@pytest.mark.parametrize("which", [0, 1, 2], ids=["gateway", "logto", "app"])
def test_a_port_that_is_taken_is_named(group: Processes, which: int) -> None:
    port = free_port(3)
    with socket.create_server(("127.0.0.1", port + which)):
        running = group.postern("demo", "--port", str(port))
        assert running.wait() == 1
    assert f"{port} to {port + 2}" in running.output()
    assert "Traceback" not in running.output()


@pytest.mark.parametrize(
    ("command", "path"), [("sandbox", "/oidc/.well-known/openid-configuration"), ("sample", "/api/me")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_part_of_it_alone(group: Processes, command: str, path: str, number: signal.Signals) -> None:
    port = free_port()
    running = group.postern(command, "--port", str(port))
    running.ready(f"http://localhost:{port}{path}")
    running.signal(number)
    assert running.wait() in {0, -signal.SIGTERM}
    assert "Traceback" not in running.output()
