"""The command: what it prints, where, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from proxy.cli import main
from tests.e2e.processes import free_port

SIDECAR = {
    "POSTERN_PUBLIC_URL": "http://localhost:3000",
    "POSTERN_UPSTREAM": "http://127.0.0.1:9",
    "LOGTO_ENDPOINT": "http://127.0.0.1:9",
    "LOGTO_APP_ID": "app",
    "LOGTO_APP_SECRET": "very-secret-indeed",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file and no variable of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("POSTERN_", "LOGTO_", "REDIS_")):
            monkeypatch.delenv(name)


class Process:
    """The command, running."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proxy", *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_answering(self, url: str) -> int:
        deadline = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, self._process.communicate()
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    return int(response.status)
            except OSError:
                assert time.monotonic() < deadline, "it never answered"
                time.sleep(0.02)

    def stop(self, number: int) -> tuple[int, str, str]:
        self._process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str, str]:
        out, err = self._process.communicate(timeout=20)
        return self._process.returncode, out, err

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def test_secret_is_long_and_never_the_same() -> None:
    first, second = (CliRunner().invoke(main, ["secret"]).output.strip() for _ in range(2))
    assert len(first.encode()) >= 32
    assert first != second


def test_schema_is_a_json_schema_that_takes_the_example_and_refuses_nonsense() -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema"]).output)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    good = {
        "public_url": "https://a.example",
        "logto": {"endpoint": "https://l.example", "app_id": "a", "app_secret": "b"},
        "route": [{"name": "a", "upstream": "http://b:1"}],
    }
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "nonsense": 1})


class TestCheck:
    def test_offline_only_reads_the_settings(self) -> None:
        result = CliRunner().invoke(main, ["check", "--offline"], env=SIDECAR)
        assert result.exit_code == 0, result.output
        assert result.output.startswith("ok    settings: 1 route(s) for http://localhost:3000")

    def test_bad_settings_are_2_with_a_line_for_each(self) -> None:
        result = CliRunner().invoke(
            main, ["check"], env={**SIDECAR, "POSTERN_SESSION__IDLE": "soon", "POSTERN_NONSENSE": "1"}
        )
        assert result.exit_code == 2
        assert "POSTERN_SESSION__IDLE" in result.stderr
        assert "POSTERN_NONSENSE" in result.stderr
        assert "very-secret-indeed" not in result.output

    def test_each_thing_that_fails_gets_its_line_and_its_remedy(self) -> None:
        result = CliRunner().invoke(main, ["check"], env={**SIDECAR, "REDIS_URL": "redis://:hunter2@127.0.0.1:9/0"})
        assert result.exit_code == 1
        failures = [line for line in result.output.splitlines() if line.startswith("fail")]
        assert len(failures) == 3, result.output
        assert "REDIS_URL" in failures[0]
        assert "LOGTO_ENDPOINT" in failures[1]
        assert "upstream http://127.0.0.1:9" in failures[2]
        assert "hunter2" not in result.output

    def test_nothing_else_is_said_of_what_fails(self) -> None:
        status, out, err = Process("check", **SIDECAR).end()
        assert status == 1
        assert "LOGTO_ENDPOINT" in out
        assert err == ""

    def test_what_answers_is_ok(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            upstream = f"http://127.0.0.1:{server.getsockname()[1]}"
            result = CliRunner().invoke(main, ["check"], env={**SIDECAR, "POSTERN_UPSTREAM": upstream})
        assert "ok    session store (memory)" in result.output
        assert f"ok    upstream {upstream}" in result.output


class TestExplain:
    def test_without_a_person(self) -> None:
        result = CliRunner().invoke(main, ["explain", "--url", "http://localhost:3000/x"], env=SIDECAR)
        assert result.exit_code == 0, result.output
        assert "verdict  sign_in (302)" in result.output

    def test_with_claims(self, tmp_path: Path) -> None:
        claims = tmp_path / "claims.json"
        claims.write_text('{"sub": "u1", "name": "Ann"}')
        result = CliRunner().invoke(
            main, ["explain", "--url", "http://localhost:3000/x", "--claims", str(claims)], env=SIDECAR
        )
        assert "verdict  pass" in result.output
        assert "  X-Forwarded-Name: Ann" in result.output

    def test_the_preset_of_the_route(self) -> None:
        env = {key: value for key, value in SIDECAR.items() if key != "POSTERN_UPSTREAM"}
        env["POSTERN_ROUTE"] = '[{"name": "lab", "upstream": "http://127.0.0.1:9", "preset": "jupyterlab"}]'
        result = CliRunner().invoke(main, ["explain", "--url", "http://localhost:3000/x"], env=env)
        assert "route    lab\npreset   jupyterlab; leads on from /logout\n" in result.output

    @pytest.mark.parametrize(("content", "message"), [("[]", "JSON object"), ("{", "Expecting"), ("{}", "sub")])
    def test_bad_claims_are_bad_usage(self, tmp_path: Path, content: str, message: str) -> None:
        claims = tmp_path / "claims.json"
        claims.write_text(content)
        result = CliRunner().invoke(main, ["explain", "--url", "http://a/", "--claims", str(claims)], env=SIDECAR)
        assert result.exit_code == 2
        assert message in result.stderr

    def test_a_request_that_no_client_may_send(self) -> None:
        result = CliRunner().invoke(
            main, ["explain", "--url", "http://localhost:3000/", "--method", "TRACE"], env=SIDECAR
        )
        assert "bad request (405)" in result.output


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_serves_with_nothing_around_it_and_a_signal_ends_it_cleanly(
        self, started: list[Process], number: signal.Signals
    ) -> None:
        port = free_port()
        process = Process("serve", "--listen", f"127.0.0.1:{port}", **SIDECAR)
        started.append(process)
        assert process.until_answering(f"http://127.0.0.1:{port}/.postern/healthz") == 200
        status, out, err = process.stop(number)
        assert status == 0, err
        assert "listening" in err
        assert "/.postern/healthz" in out
        assert "very-secret-indeed" not in out + err

    def test_a_taken_port_is_1_and_says_so(self, started: list[Process]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            process = Process("serve", "--listen", f"127.0.0.1:{port}", **SIDECAR)
            started.append(process)
            status, _, err = process.end()
        assert status == 1
        assert str(port) in err

    def test_bad_settings_are_2(self, started: list[Process]) -> None:
        process = Process("serve", POSTERN_PUBLIC_URL="nonsense")
        started.append(process)
        status, _, err = process.end()
        assert status == 2
        assert "POSTERN_PUBLIC_URL" in err


def test_the_sandbox_and_the_sample_app_run_until_interrupted(started: list[Process]) -> None:
    port = free_port(2)
    process = Process("sandbox", "--port", str(port), "--app-port", str(port + 1))
    started.append(process)
    process.until_answering(f"http://127.0.0.1:{port}/oidc/.well-known/openid-configuration")
    process.until_answering(f"http://127.0.0.1:{port + 1}/")
    status, out, err = process.stop(signal.SIGINT)
    assert status == 0, err
    assert f"stand-in Logto on http://localhost:{port}" in out

    process = Process("sample", "--port", str(port))
    started.append(process)
    process.until_answering(f"http://127.0.0.1:{port}/")
    assert process.stop(signal.SIGINT)[0] == 0


def test_the_demo_runs_all_three_and_ends_them_together(started: list[Process]) -> None:
    port = free_port(3)
    process = Process("demo", "--port", str(port))
    started.append(process)
    process.until_answering(f"http://127.0.0.1:{port}/.postern/readyz")
    process.until_answering(f"http://127.0.0.1:{port + 1}/oidc/jwks")
    process.until_answering(f"http://127.0.0.1:{port + 2}/")
    status, out, err = process.stop(signal.SIGINT)
    assert status == 0, err
    assert f"http://localhost:{port}" in out
    for offset in range(3):
        socket.create_server(("127.0.0.1", port + offset)).close()


@pytest.mark.parametrize("command", [["sandbox", "--port"], ["sample", "--port"]])
def test_a_taken_port_is_said(started: list[Process], command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = Process(*command, str(taken.getsockname()[1]))
        started.append(process)
        status, _, err = process.end()
    assert status == 1
    assert "cannot listen" in err


def test_the_demo_says_which_ports_it_needs(started: list[Process]) -> None:
    port = free_port(3)
    with socket.create_server(("127.0.0.1", port + 1)):
        process = Process("demo", "--port", str(port))
        started.append(process)
        status, _, err = process.end()
    assert status == 1
    assert f"{port} to {port + 2}" in err
