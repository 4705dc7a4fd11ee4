"""A real redis-server on loopback for tests: start it, stop it, freeze it, bring it back on the same port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.e2e.processes import free_port

READY_SECONDS = 15.0


class RedisServer:
    """One redis-server process with a directory of its own; a context manager.

    `options` go to the command line as they are (`"--requirepass", "x"`). The port stays the same over restarts. With
    `url_query` the URL carries options for the client.
    """

    def __init__(self, *options: str, scheme: str = "redis", user: str = "", url_query: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.port = free_port()
        self.socket = self.directory / "s"
        self.options = options
        self._scheme = scheme
        self._user = f"{user}@" if user else ""
        self._query = f"?{url_query}" if url_query else ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._user}127.0.0.1:{self.port}/0{self._query}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"

    def client(self) -> redis.Redis:
        """A synchronous client over the unix socket, whatever the TCP port asks for; close it after use."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5, retry=Retry(NoBackoff(), 0))

    def do(self, *command: Any) -> Any:
        """Run one command as an administrator would with redis-cli."""
        with contextlib.closing(self.client()) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def start(self, *, wait: bool = True) -> None:
        """Start the process; with `wait`, return when it takes commands."""
        listen = (
            ["--port", "0", "--tls-port", str(self.port)] if self._scheme == "rediss" else ["--port", str(self.port)]
        )
        command = [
            *("redis-server", *listen, "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.directory), "--save", "", "--appendonly", "no", "--loglevel", "warning"),
            *("--enable-debug-command", "yes", *self.options),
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the server answers; being asked for a password, or being a replica, is an answer too."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.do("PING")
            except (redis.AuthenticationError, redis.ResponseError):
                return
            except (redis.ConnectionError, redis.TimeoutError):
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End the process at once; what it held in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self, *, wait: bool = True) -> None:
        self.stop()
        self.start(wait=wait)

    def pause(self) -> None:
        """Freeze the process: connections are accepted by the kernel, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        for _ in range(3):
            try:
                self.start()
            except RuntimeError:
                self.port = free_port()  # somebody else was quicker to take the one before
            else:
                return self
        self.__exit__(None, None, None)
        raise RuntimeError("redis-server does not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def redis_server(*options: str, scheme: str = "redis", user: str = "", url_query: str = "") -> Iterator[RedisServer]:
    """Run a redis-server for the length of a `with` block or a fixture."""
    with RedisServer(*options, scheme=scheme, user=user, url_query=url_query) as server:
        yield server
