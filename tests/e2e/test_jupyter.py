"""JupyterLab behind the gateway: kernels talk over WebSockets, files go up in pieces and come down in one."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.person import Person
from tests.e2e.processes import Processes, free_port

MIB = 1024 * 1024
ROUTE = """
[[route]]
name = "lab"
upstream = "{upstream}"
preset = "jupyterlab"
"""


@pytest.fixture(scope="module")
def lab(group: Processes, start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway before a JupyterLab that has no login of its own."""
    port, root = free_port(), tmp_path_factory.mktemp("notebooks")
    settings = [
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_root=True",
        f"--ServerApp.root_dir={root}",
        "--IdentityProvider.token=",
        "--LabApp.news_url=",  # no call home
    ]
    jupyter = group.start("jupyterlab", [Path(sys.executable).with_name("jupyter-lab"), *settings], env=_near_python())
    jupyter.ready(f"http://127.0.0.1:{port}/api")
    return start_gateway("jupyter", ROUTE.format(upstream=f"http://127.0.0.1:{port}"))


@pytest.fixture
def person(lab: Gateway) -> Iterator[Person]:
    with lab.signed_in("Ada") as person:
        page = person.browse(lab.url + "/lab")  # sets Jupyter's own _xsrf cookie
        assert page.status == 200
        assert "JupyterLab" in page.body.decode()
        yield person


def test_a_kernel_computes_over_its_websocket(lab: Gateway, person: Person) -> None:
    kernel = _api(person, lab, "POST", "/api/kernels", {"name": "python3"})
    url = f"{lab.url.replace('http', 'ws', 1)}/api/kernels/{kernel['id']}/channels?session_id={uuid.uuid4().hex}"
    with connect(
        url,
        origin=Origin(lab.url),
        additional_headers={"Cookie": person.cookie_header(lab.url)},
        max_size=None,
        open_timeout=30,
    ) as socket:
        request = _execute("1+1")
        socket.send(json.dumps(request))
        assert _result(socket, request["header"]["msg_id"]) == "2"
    _api(person, lab, "DELETE", f"/api/kernels/{kernel['id']}")


def test_a_file_of_50_mib_goes_up_in_pieces_and_comes_down_the_same(lab: Gateway, person: Person) -> None:
    content = random.Random(50).randbytes(50 * MIB)
    pieces = [content[start : start + 4 * MIB] for start in range(0, len(content), 4 * MIB)]
    for number, piece in enumerate(pieces, 1):
        chunk = number if number < len(pieces) else -1  # how JupyterLab's own uploads say "the last"
        model = {"type": "file", "format": "base64", "content": base64.b64encode(piece).decode(), "chunk": chunk}
        _api(person, lab, "PUT", "/api/contents/large.bin", model)
    # Jupyter serves files only to its own pages, which it tells by Referer and Host: both must come through as they were.
    down = person.request("GET", lab.url + "/files/large.bin", headers={"Referer": lab.url + "/lab"})
    assert down.status_code == 200, down.text[:500]
    assert hashlib.sha256(down.content).digest() == hashlib.sha256(content).digest()


def test_without_a_session_nothing_of_it_can_be_reached(lab: Gateway) -> None:
    with Person() as stranger:
        assert stranger.request("GET", lab.url + "/api/contents").status_code == 401
        assert stranger.request("POST", lab.url + "/api/kernels", content=b"{}").status_code == 401


def test_its_log_out_leads_on_to_the_gateways(lab: Gateway) -> None:
    """Without a login of its own it could only say that there is nothing to log out of."""
    with lab.signed_in("Max", at="/lab") as leaving:
        page = leaving.browse(lab.url + "/logout", came_from=lab.url + "/lab")
        assert page.url == lab.url + "/.postern/sign-out"
        leaving.press(page, "Sign out")
        assert leaving.request("GET", lab.url + "/api/contents").status_code == 401


def _api(person: Person, lab: Gateway, method: str, path: str, model: dict[str, Any] | None = None) -> dict[str, Any]:
    xsrf = person.jar.named("_xsrf")
    assert xsrf, "Jupyter's cookie did not come through the gateway"
    response = person.request(
        method,
        lab.url + path,
        headers={"X-XSRFToken": xsrf.value, "Content-Type": "application/json", "Origin": lab.url},
        content=json.dumps(model).encode() if model else b"",
    )
    assert response.status_code in {200, 201, 204}, response.text
    answer: dict[str, Any] = response.json() if response.content else {}
    return answer


def _execute(code: str) -> dict[str, Any]:
    """An execute_request (Jupyter messaging 5.3)."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": "e2e",
        "username": "",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    return {
        "header": header,
        "parent_header": {},
        "metadata": {},
        "channel": "shell",
        "content": content,
        "buffers": [],
    }


def _result(socket: Any, request: str) -> str:
    """The plain text of the execute_result that answers the message `request`."""
    while True:
        message = json.loads(socket.recv(timeout=60))
        if message["parent_header"].get("msg_id") == request and message["msg_type"] == "execute_result":
            text: str = message["content"]["data"]["text/plain"]
            return text


def _near_python() -> dict[str, str]:
    """Kernels are found by the interpreter's own prefix, and `python` in their spec by the PATH."""
    return {"JUPYTER_PREFER_ENV_PATH": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
