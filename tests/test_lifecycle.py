"""The life of one gateway process: signals, reloads, what the service manager is told, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from proxy import lifecycle
from proxy.reloading import Source
from tests.certificates import Authority
from tests.e2e.processes import free_port
from tests.life_world import BASE, GET, NOTHING, ROOT, Load, life, metrics
from tests.relay_world import Upstream, run


async def another(text: bytes) -> Upstream:
    upstream = Upstream()
    upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
    await upstream.start()
    return upstream


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_ends_with_0(self, tmp_path: Path, number: signal.Signals) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                assert (await running.ask())[0] == 200
                running.signal(number)
                assert await running.ended() == 0
                assert running.events()[-1] == "stopped"
                assert "Traceback" not in running.said

        run(work())

    def test_under_load_what_was_sent_is_answered(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                load = Load(running, 16)
                async with load:
                    await load.more(500)
                    running.signal(signal.SIGTERM)
                    await running.ended()
                assert load.lost == []
                assert load.refused > 0

        run(work())

    def test_a_second_signal_does_not_wait(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                asked = asyncio.Event()

                async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    await running.upstream.head(reader)
                    asked.set()
                    await reader.read()

                running.upstream.script = never
                client = await running.connect()
                client.send(GET)
                await asked.wait()
                running.signal(signal.SIGTERM)
                await running.until_said("draining for up to 30 s")
                assert running.process.poll() is None
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0
                await running.until_said("not waiting for what is under way")
                client.abort()

        run(work())

    def test_while_a_balancer_is_to_notice_it_serves_on(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path, {"POSTERN_DRAIN__DELAY": "60s"}) as running:
                running.signal(signal.SIGTERM)
                await running.until_said("stopping")
                status, _, body = await running.ask(GET.replace(b"/x", b"/.postern/readyz"))
                assert (status, b"draining" in body) == (503, True)
                assert (await running.ask())[0] == 200
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0

        run(work())

    def test_a_unix_socket_goes_with_it(self, tmp_path: Path) -> None:
        async def work() -> None:
            path = tmp_path / "s"
            async with life(tmp_path, NOTHING, "--listen", f"unix:{path}") as running:
                assert path.is_socket()
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0
                assert not path.exists()

        run(work())


class TestNotStarting:
    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        async def work() -> None:
            with socket.create_server(("127.0.0.1", 0)) as other:
                place = f"127.0.0.1:{other.getsockname()[1]}"
                async with life(tmp_path, NOTHING, "--listen", place, wait=False) as running:
                    assert await running.ended() == 1
                    assert f"cannot listen on {place}: Address already in use" in running.said
                    assert "Traceback" not in running.said

        run(work())

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_metrics_port_that_is_taken(self, tmp_path: Path, workers: str) -> None:
        async def work() -> None:
            with socket.create_server(("127.0.0.1", 0)) as other:
                place = f"127.0.0.1:{other.getsockname()[1]}"
                environ = {"POSTERN_METRICS__LISTEN": place, "REDIS_URL": "redis://127.0.0.1:9/0"}
                async with life(tmp_path, environ, "--workers", workers, wait=False) as running:
                    assert await running.ended() == 1
                    assert f"cannot listen on {place}" in running.said

        run(work())

    def test_a_certificate_that_is_not_there(self, tmp_path: Path) -> None:
        async def work() -> None:
            environ = {"POSTERN_TLS__CERT": "/nowhere/cert", "POSTERN_TLS__KEY": "/nowhere/key"}
            async with life(tmp_path, environ, wait=False) as running:
                assert await running.ended() == 1
                assert "cannot be used: no such file" in running.said.lower()
                assert "Traceback" not in running.said

        run(work())


class TestReloading:
    def test_by_signal_under_load_nothing_is_dropped(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                other = await another(b"other")
                load = Load(running, 8)
                async with load:
                    await load.more(200)
                    for generation in (2, 3, 4):
                        upstream = other if generation % 2 == 0 else running.upstream
                        await running.reload(running.route(f"app{generation}", upstream.url))
                        await running.until_said(f"settings reloaded: generation {generation}")
                        await load.more(100)
                    assert (load.lost, load.refused, load.connections) == ([], 0, 8)
                    assert (await running.ask())[2] == b"other"
                await other.stop()

        run(work())

    def test_what_is_wrong_is_not_taken_and_all_of_it_is_said(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                await running.reload(running.route("Not A Name"), more='[session]\nidle = "soon"\n')
                await running.until_said("the settings in force stay as they are: generation 1")
                assert sum("settings not taken: session.idle" in event for event in running.events()) == 1
                assert sum("settings not taken: route[0].name" in event for event in running.events()) == 1
                assert (await running.ask())[0] == 200
                await running.reload(running.route())
                await running.until_said("settings reloaded: generation 2")

        run(work())

    def test_a_certificate_that_does_not_fit_is_not_taken(self, tmp_path: Path) -> None:
        async def work() -> None:
            authority = Authority(tmp_path)
            (cert, key), (_, other) = authority.issue("one", "localhost"), authority.issue("two", "localhost")
            tls = '[tls]\ncert = "{}"\nkey = "{}"\n'
            async with life(tmp_path) as running:
                await running.reload(running.route(), more=tls.format(cert, other))
                await running.until_said("cannot be used: key values mismatch")
                assert (await running.ask())[0] == 200
                await running.reload(running.route(), more=tls.format(cert, key))
                await running.until_said("settings reloaded: generation 2")
                client_tls = ssl.create_default_context(cafile=authority.file)
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", running.port, ssl=client_tls, server_hostname="localhost"
                )
                writer.transport.abort()

        run(work())

    def test_what_cannot_be_changed_is_named(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                await running.reload(running.route("other"), more='[session]\nstore = "redis://127.0.0.1:9/0"\n')
                await running.until_said("settings reloaded: generation 2")
                assert any(event.startswith("session.store cannot be changed") for event in running.events())
                assert (await running.ask())[0] == 200

        run(work())

    def test_the_level_of_the_log(self, tmp_path: Path) -> None:
        async def work() -> None:
            async with life(tmp_path) as running:
                await running.reload(running.route(), more='[log]\nlevel = "warning"\n')
                await running.until_said("settings reloaded: generation 2")
                running.signal(signal.SIGTERM)
                assert await running.ended() == 0
                assert "stopped" not in running.events()

        run(work())

    def test_by_watching_the_file_the_secret_and_the_certificate(self, tmp_path: Path) -> None:
        async def work() -> None:
            authority = Authority(tmp_path)
            cert, key = authority.issue("one", "localhost")
            secret = tmp_path / "secret"
            secret.write_text("s" * 32)
            environ = {"POSTERN_RELOAD": "watch", "POSTERN_SECRET_FILE": str(secret)}
            environ |= {"POSTERN_TLS__CERT": str(cert), "POSTERN_TLS__KEY": str(key)}
            async with life(tmp_path, environ) as running:

                async def served_by() -> str:
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1",
                        running.port,
                        ssl=ssl.create_default_context(cafile=authority.file),
                        server_hostname="localhost",
                    )
                    subject = writer.get_extra_info("peercert")["subject"]
                    writer.transport.abort()
                    return str(subject[0][0][1])

                assert await served_by() == "one"
                running.write(running.route("other"))
                await running.until_said("generation 2")
                secret.write_text("t" * 32)
                await running.until_said("generation 3")
                new_cert, new_key = authority.issue("two", "localhost")
                new_cert.replace(cert)
                new_key.replace(key)
                await running.until_said("generation 4")
                assert await served_by() == "two"
                running.write("nonsense")
                await running.until_said("settings not taken")
                running.write(running.route())
                await running.until_said("generation 5")

        run(work())


class TestLogs:
    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
    def test_a_new_file_when_the_old_one_was_moved_away(self, tmp_path: Path, number: signal.Signals) -> None:
        async def work() -> None:
            path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
            async with life(tmp_path, {"POSTERN_LOG__ACCESS": str(path)}) as running:
                await running.ask()
                await running.until(lambda: path.read_text().count("\n") == 1, "a line")
                path.rename(moved)
                running.signal(number)
                await running.until(path.exists, "a new file")
                await running.ask()
                await running.until(lambda: path.read_text().count("\n") == 1, "a line in the new file")
                assert moved.read_text().count("\n") == 1

        run(work())


class TestMetrics:
    def test_on_a_listener_of_their_own(self, tmp_path: Path) -> None:
        async def work() -> None:
            port = free_port()
            async with life(tmp_path, {"POSTERN_METRICS__LISTEN": f"127.0.0.1:{port}"}) as running:
                for _ in range(3):
                    await running.ask()
                found = await metrics(port)
                assert found["postern_requests_total", "GET", "everyone", "app", "2xx"] == 3
                assert found["postern_settings_generation",] == found["postern_workers",] == 1
                await running.reload(running.route("other"))
                await running.until_said("generation 2")
                await running.ask()
                found = await metrics(port)
                assert found["postern_settings_generation",] == 2
                assert found["postern_requests_total", "GET", "everyone", "other", "2xx"] == 1
                assert ("postern_requests_total", "GET", "everyone", "app", "2xx") not in found
                assert (await running.ask(GET.replace(b"/x", b"/metrics")))[2] == b"hello", "the app's, if anybody's"

        run(work())

    def test_at_a_unix_socket(self, tmp_path: Path) -> None:
        async def work() -> None:
            place = tmp_path / "metrics.sock"
            async with life(tmp_path, {"POSTERN_METRICS__LISTEN": f"unix:{place}"}):
                reader, writer = await asyncio.open_unix_connection(place)
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert b"postern_workers 1" in await asyncio.wait_for(reader.read(-1), 20)
                writer.close()

        run(work())


class TestServiceManager:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_it_hears_of_every_step(self, tmp_path: Path, workers: str) -> None:
        async def work() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(str(tmp_path / "notify"))
                manager.settimeout(20)

                async def heard() -> str:
                    while True:
                        text = (await asyncio.to_thread(manager.recv, 1000)).decode()
                        if text != "WATCHDOG=1":
                            return text.partition("\n")[0]

                environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
                environ |= {"REDIS_URL": "redis://127.0.0.1:9/0", "POSTERN_WORKERS": workers}
                async with life(tmp_path, environ) as running:
                    assert await heard() == "READY=1"
                    assert await asyncio.to_thread(manager.recv, 1000) == b"WATCHDOG=1"
                    running.signal(signal.SIGHUP)
                    assert await heard() == "RELOADING=1"
                    assert await heard() == "READY=1"
                    running.signal(signal.SIGTERM)
                    assert await heard() == "STOPPING=1"
                    assert await running.ended() == 0

        run(work())

    def test_a_socket_that_it_has_opened(self, tmp_path: Path) -> None:
        """systemd puts it at descriptor 3 and names this very process: done here by what becomes that process."""
        code = (
            "import os, sys\nfd = int(sys.argv.pop(1))\nos.dup2(fd, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'proxy', *sys.argv[1:]])\n"
        )
        file = tmp_path / "postern.toml"
        file.write_text(BASE + '[[route]]\nname = "app"\nupstream = "http://127.0.0.1:9"\n')
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(listener.fileno()), "serve", "--config", str(file)],
                pass_fds=(listener.fileno(),),
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "POSTERN_LISTEN": "127.0.0.1:1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                with socket.create_connection(listener.getsockname(), timeout=20) as client:
                    client.sendall(
                        b"GET /.postern/healthz HTTP/1.1\r\nHost: localhost:3000\r\nConnection: close\r\n\r\n"
                    )
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
            finally:
                process.terminate()
                assert process.wait(20) == 0


@contextmanager
def _as_standard_error(fd: int) -> Iterator[None]:
    """Standard error leads to `fd`: a file, which can be read over and over without losing what is written meanwhile."""
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.fixture
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_log_as_before")
def test_a_whole_life_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is doubtful is said at the start and after a reload; a bug in a reload is not the end."""
    path, file = tmp_path / "s", tmp_path / "postern.toml"
    doubtful = BASE.replace("localhost:3000", "apps.example.com")
    text = f'listen = "unix:{path}"\n{doubtful}[[route]]\nname = "app"\nupstream = "http://127.0.0.1:9"\n'
    file.write_text(text)
    source = Source(file, {"POSTERN_LOG__FORMAT": "json"})
    log = tmp_path / "stderr"

    def until(what: str, times: int) -> None:
        deadline = time.monotonic() + 30
        while log.read_text().count(what) < times and time.monotonic() < deadline:
            time.sleep(0.01)

    def from_outside() -> None:
        until("listening on", 1)
        os.kill(os.getpid(), signal.SIGHUP)
        until("generation 2", 1)
        with mock.patch("proxy.serve.RouteTable.from_settings", side_effect=RuntimeError("a bug")):
            os.kill(os.getpid(), signal.SIGHUP)
            until("stay as they are: generation 2", 1)
        os.kill(os.getpid(), signal.SIGTERM)

    outside = threading.Thread(target=from_outside)
    with log.open("a", buffering=1) as stderr, _as_standard_error(stderr.fileno()):
        monkeypatch.setattr(sys, "stderr", stderr)
        outside.start()
        lifecycle.run(source.read(), source)
        outside.join()
    said = log.read_text()
    assert said.count("public_url is plain http") == 2
    assert "RuntimeError: a bug" in said
    assert "settings not taken: they cannot be taken by what is running" in said
    assert '"event": "stopped"' in said
    assert not path.exists()
