"""Node-RED behind the gateway, as docs/apps/node-red.md sets it up: it takes people for who the gateway says they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.e2e import npm
from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.person import Person
from tests.e2e.processes import Processes, free_port

HERE = Path(__file__).parent / "node_red"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "apps" / "node-red.md"
ROUTE = """
[[route]]
name = "flows"
upstream = "http://127.0.0.1:{port}"
preset = "node-red"
open = ["/hooks"]
"""
# What comes in at /hooks/who is answered with who the gateway said it was.
FLOW: list[dict[str, Any]] = [
    {"id": "t", "type": "tab", "label": "who"},
    {"id": "in", "z": "t", "type": "http in", "url": "/who", "method": "get", "wires": [["say"]]},
    {"id": "say", "z": "t", "type": "function", "wires": [["out"]],
     "func": "msg.payload = {user: msg.req.headers['x-forwarded-user'] || null}; return msg;"},
    {"id": "out", "z": "t", "type": "http response", "wires": []},
]  # fmt: skip


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def flows(
    port: int, group: Processes, start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory
) -> Gateway:
    npm.install(HERE)
    own = HERE / "node_modules" / "node-red" / "red.js"
    directory = tmp_path_factory.mktemp("flows")
    settings = ["--settings", str(HERE / "settings.js"), "--userDir", str(directory), "--port", str(port)]
    node_red = group.start("node-red", [npm.program("node"), own, *settings, "-D", "uiHost=127.0.0.1"])
    node_red.ready(f"http://127.0.0.1:{port}/auth/login", status=lambda status: status == 200)
    return start_gateway("node-red", ROUTE.format(port=port))


@pytest.fixture
def person(flows: Gateway) -> Iterator[Person]:
    with flows.signed_in("Ada") as person:
        yield person


def test_its_settings_are_those_of_the_page() -> None:
    written = re.search(r"^```js\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert written
    assert written[1] == "".join((HERE / "settings.js").read_text("utf-8").splitlines(keepends=True)[1:])


def test_whoever_signs_in_at_the_gateway_is_signed_in(flows: Gateway, person: Person) -> None:
    page = person.browse(flows.url + "/")
    assert page.status == 200
    assert b"<title>Node-RED</title>" in page.body
    answer = person.request("GET", flows.url + "/settings")
    assert answer.json()["user"] == {"username": "ada", "permissions": "*"}


@pytest.mark.parametrize("name", ["X-Forwarded-User", "x_forwarded_user", "X-FORWARDED-USER"])
def test_nobody_else_is_who_they_say(flows: Gateway, person: Person, name: str) -> None:
    assert person.request("GET", flows.url + "/settings", headers={name: "admin"}).json()["user"]["username"] == "ada"
    with Person(headers={name: "admin"}) as stranger:
        assert stranger.request("GET", flows.url + "/settings").status_code == 401


def test_past_the_gateway_it_knows_nobody(port: int, flows: Gateway) -> None:
    assert flows.running.alive
    with Person() as stranger:
        assert stranger.request("GET", f"http://127.0.0.1:{port}/flows").status_code == 401


def test_what_flows_take_from_outside_is_open_and_told_of_no_stranger(flows: Gateway, person: Person) -> None:
    _deploy(flows, person)
    with Person(headers={"X-Forwarded-User": "admin"}) as stranger:
        answer = stranger.request("GET", flows.url + "/hooks/who")
        assert (answer.status_code, answer.json()) == (200, {"user": None})
        assert stranger.request("POST", flows.url + "/flows", content=b"[]").status_code == 401
    answer = person.request("GET", flows.url + "/hooks/who", headers={"X_Forwarded_User": "admin"})
    assert answer.json() == {"user": "ada"}


def test_the_editor_hears_of_news_over_its_websocket(flows: Gateway, person: Person) -> None:
    with connect(
        flows.url.replace("http", "ws", 1) + "/comms",
        origin=Origin(flows.url),
        additional_headers={"Cookie": person.cookie_header(flows.url)},
        open_timeout=30,
        proxy=None,
    ) as socket:
        socket.send(json.dumps({"subscribe": "notification/#"}))
        _deploy(flows, person)
        assert "notification/runtime-deploy" in _topics(socket)


def test_its_sign_out_leads_to_the_gateways(flows: Gateway, person: Person) -> None:
    answer = person.request("POST", flows.url + "/auth/revoke", content=b"{}", headers=_JSON)
    assert answer.json() == {"redirect": "/.postern/sign-out"}


_JSON = {"Content-Type": "application/json"}


def _deploy(flows: Gateway, person: Person) -> None:
    answer = person.request("POST", flows.url + "/flows", content=json.dumps(FLOW).encode(), headers=_JSON)
    assert answer.status_code == 204, answer.text


def _topics(socket: Any) -> Iterator[str]:
    """What the editor is told of, as it comes."""
    while True:
        told = json.loads(socket.recv(timeout=60))
        yield from (one["topic"] for one in (told if isinstance(told, list) else [told]) if "topic" in one)
