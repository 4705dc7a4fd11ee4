"""Spellings of a private path asked of real proxies in front: what these make of a path on the way opens nothing either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typing_extensions import override

from tests.e2e.conftest import StartGateway
from tests.e2e.fronts import STARTED, Ports
from tests.e2e.processes import Processes, free_port
from tests.e2e.wire import Wire
from tests.test_path_matrix import SPELLINGS, private_to


class _App(BaseHTTPRequestHandler):
    """Serves what any of the careless servers of the matrix would for the bytes that arrived."""

    timeout = 20

    def do_GET(self) -> None:
        # `path` has its slashes merged by now.
        target = self.requestline.split(" ")[1].encode("latin-1")
        body = b"PRIVATE to " + " ".join(sorted(private_to(target))).encode() if private_to(target) else b"open to all"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def app() -> Iterator[int]:
    """The port of the app."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _App) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module", params=list(STARTED))
def front(request: pytest.FixtureRequest, group: Processes, start_gateway: StartGateway, app: int) -> str:
    """The URL of a proxy in front of an app with an open route and a private one."""
    ports = Ports(free_port(), free_port(), app)
    url = f"http://localhost:{ports.front}"
    rules = f"""
        [[route]]
        name = "rest"
        upstream = "http://127.0.0.1:{app}"
        allow = "everyone"
        [[route]]
        name = "private"
        path = "/private"
        upstream = "http://127.0.0.1:{app}"
        allow = [{{ roles = ["admin"] }}]
    """
    env = {
        "POSTERN_PUBLIC_URL": url,
        "POSTERN_TRUSTED_PROXIES": "127.0.0.1/32",
        "LOGTO_ENDPOINT": f"http://127.0.0.1:{free_port()}",  # nobody signs in here
    }
    start_gateway(f"paths-{request.param}", rules, port=ports.gateway, env=env)
    STARTED[request.param](group, ports, "/open")
    return url.replace("localhost", "127.0.0.1")


def ask(front: str, target: bytes) -> tuple[int, bytes]:
    """Ask for exactly these bytes, as a stranger: the status and the body."""
    with Wire(front) as wire:
        wire.send(
            b"GET %b HTTP/1.1\r\nHost: localhost:%d\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
            % (target, int(front.rpartition(":")[2]))
        )
        status, _ = wire.head()
        body = bytearray(wire._kept)
        while piece := wire.socket.recv(65536):
            body += piece
        return status, bytes(body)


def test_no_spelling_opens_what_is_private(front: str) -> None:
    for target in (b"/open", b"/open/x?next=/private", b"/open/a-b_c~d.html"):
        assert ask(front, target) == (200, b"open to all"), target
    for spelling in SPELLINGS:
        status, body = ask(front, spelling)
        assert b"PRIVATE" not in body, (spelling, body)
        assert 200 <= status < 500, spelling
