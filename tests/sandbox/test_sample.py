"""The sample app over real HTTP and WebSockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import websockets

from proxy.sandbox import create_sample
from tests.sandbox.stand import serving

IDENTITY: dict[bytes, bytes] = {
    b"X-Forwarded-User": b"han000000004",
    b"X-Forwarded-Preferred-Username": b"hanzi",
    b"X-Forwarded-Name": "汉字 é 😀".encode(),
    b"X-Forwarded-Email": b"hanzi@example.test",
    b"X-Forwarded-Groups": b"member, acme00000001:org-member",
    b"X-Forwarded-Discord-Id": b"100000000000000004",
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_sample()) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False, timeout=20) as client:
        yield client


def element(page: str, name: str) -> str:
    found = re.search(rf'id="{name}"[^>]*>(.*?)</', page, re.DOTALL)
    assert found, name
    return found[1]


def test_the_page_greets_by_the_identity_headers(client: httpx2.Client) -> None:
    page = client.get("/", headers=IDENTITY).text
    assert element(page, "user") == "汉字 é 😀"
    assert 'data-sub="han000000004"' in page
    assert "100000000000000004" in page
    assert page.count('class="chip"') == 2


def test_a_stranger_is_greeted_too(client: httpx2.Client) -> None:
    page = client.get("/").text
    assert element(page, "user") == "stranger"
    assert "no identity" in page


def test_the_page_has_what_browser_tests_look_for(client: httpx2.Client) -> None:
    page = client.get("/").text
    for name in ("user", "ws-tick", "ws-state", "sse-tick", "path", "headers", "sign-out", "fetch"):
        assert f'id="{name}"' in page
    assert 'action="/.postern/sign-out"' in page
    assert 'method="post"' in page
    assert 'href="/.postern/"' in page


def test_a_deep_page_shows_the_target_byte_for_byte(client: httpx2.Client) -> None:
    forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "apps.example.test"}
    page = client.get("/reports/2026?quarter=3&q=a%20b", headers=forwarded).text
    assert element(page, "path") == "/reports/2026?quarter=3&amp;q=a%20b"
    assert element(page, "url") == "https://apps.example.test/reports/2026?quarter=3&amp;q=a%20b"


def test_what_clients_send_is_escaped_and_every_header_is_shown(client: httpx2.Client) -> None:
    page = client.get("/?<script>", headers={b"x-evil": b"<script>alert(1)</script>", b"x-latin": b"\xe9"}).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<td>é</td>" in page


def test_the_policy_is_strict_and_everything_is_kept_from_caches(client: httpx2.Client) -> None:
    for path in ("/", "/api/me", "/_sample/sample.js", "/status/404", "/bytes/1"):
        assert client.get(path).headers["cache-control"] == "no-store"
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page.text)
    assert client.get("/_sample/sample.css").headers["content-type"].startswith("text/css")


def test_me_says_the_same_as_json(client: httpx2.Client) -> None:
    found = client.get("/api/me?x=%41", headers=IDENTITY).json()
    assert found["user"] == "han000000004"
    assert found["name"] == "汉字 é 😀"
    assert found["groups"] == ["member", "acme00000001:org-member"]
    assert found["target"] == "/api/me?x=%41"
    assert ["x-forwarded-discord-id", "100000000000000004"] in found["headers"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_echo_tells_what_arrived(client: httpx2.Client, method: str) -> None:
    body = bytes(range(256)) * 1000 if method != "GET" else b""
    found = client.request(method, "/echo?a=1", content=body, headers={"x-one": "1"}).json()
    assert (found["method"], found["target"], found["length"]) == (method, "/echo?a=1", len(body))
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert ["x-one", "1"] in found["headers"]


@pytest.mark.parametrize("count", [0, 1, 65536, 200_000])
def test_bytes_are_as_many_as_asked_for(client: httpx2.Client, count: int) -> None:
    sized = client.get(f"/bytes/{count}")
    chunked = client.get(f"/bytes/{count}?chunked")
    assert sized.headers["content-length"] == str(count)
    assert "content-length" not in chunked.headers
    assert sized.content == chunked.content == (bytes(range(256)) * (count // 256 + 1))[:count]


def test_too_many_bytes_are_refused(client: httpx2.Client) -> None:
    assert client.get(f"/bytes/{10**15}").status_code == 400


@pytest.mark.parametrize("code", [200, 204, 205, 304, 404, 418, 500, 599])
def test_any_status(client: httpx2.Client, code: int) -> None:
    got = client.get(f"/status/{code}")
    assert got.status_code == code
    assert bool(got.content) == (code not in (204, 205, 304))


@pytest.mark.parametrize(
    "path", ["/status/199", "/status/600", "/slow?seconds=x", "/slow?seconds=-1", "/slow?seconds=nan"]
)
def test_what_cannot_be_is_refused(client: httpx2.Client, path: str) -> None:
    assert client.get(path).status_code == 400


def test_slow_answers_late_or_with_a_late_body(client: httpx2.Client) -> None:
    assert client.get("/slow?seconds=0.05").json() == {"slept": 0.05}
    assert client.get("/slow?seconds=0.05&early").text == "begin\nend\n"


def test_events_tick(client: httpx2.Client) -> None:
    with client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(3)]
        second = [next(lines) for _ in range(3)]
    assert (first[0], second[0]) == ("id: 1", "id: 2")
    assert json.loads(first[1].removeprefix("data: "))["tick"] == 1


def test_the_websocket_ticks_and_echoes(url: str) -> None:
    async def scenario() -> tuple[list[Any], Any]:
        live = url.replace("http", "ws") + "/live"
        async with websockets.connect(live, additional_headers={"X-Forwarded-User": "ada"}, proxy=None) as socket:
            await socket.send("<hello>")
            texts = [json.loads(await socket.recv()) for _ in range(2)]
            await socket.send(b"\x00\xff")
            while isinstance(answer := await socket.recv(), str):
                pass
            return texts, answer

    texts, answer = asyncio.run(scenario())
    assert {"echo": "<hello>"} in texts
    assert any(message.get("tick") == 1 and message["user"] == "ada" for message in texts)
    assert answer == b"\x00\xff"


def test_a_peer_that_vanishes_leaves_nothing_behind(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        for _ in range(5):
            socket = await websockets.connect(url.replace("http", "ws") + "/live", proxy=None)
            for _ in range(50):
                await socket.send("x" * 1000)
            socket.transport.abort()

    asyncio.run(scenario())
    with httpx2.Client(trust_env=False) as client:
        assert client.get(url + "/api/me").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_prefix_of_the_gateway_can_be_another() -> None:
    with serving(create_sample(prefix="/_gate")) as url, httpx2.Client(trust_env=False) as client:
        assert 'action="/_gate/sign-out"' in client.get(url).text
