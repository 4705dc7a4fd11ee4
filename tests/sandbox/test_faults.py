"""Misbehaviour on request, and the request log."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import httpx2
import pytest
from starlette.types import Message

from proxy.sandbox.faults import Fault, Misbehaviour, endpoint_of
from tests.sandbox.stand import Browser, Stand

JWKS = "/oidc/jwks"


def wait_for(done: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("order", "status", "kind", "text"),
    [
        ({"status": 503}, 503, "text/html; charset=utf-8", "<h1>503</h1>"),
        ({"body": "<p>maintenance"}, 200, "text/html; charset=utf-8", "maintenance"),
        ({"json": {"keys": []}}, 200, "application/json", '{"keys": []}'),
        ({"status": 500, "body": "oops", "content_type": "text/plain"}, 500, "text/plain", "oops"),
        ({"json": {"keys": "none"}, "status": 404}, 404, "application/json", '"none"'),
    ],
)
def test_an_endpoint_answers_what_was_ordered(
    browser: Browser, order: dict[str, Any], status: int, kind: str, text: str
) -> None:
    assert browser.client.post("/sandbox/api/faults", json={"endpoint": "jwks", **order}).status_code == 200
    got = browser.get(JWKS)
    assert (got.status_code, got.headers["content-type"]) == (status, kind)
    assert text in got.text
    assert browser.get("/oidc/.well-known/openid-configuration").status_code == 200
    browser.client.delete("/sandbox/api/faults")
    assert "kid" in browser.get(JWKS).text


def test_ten_megabytes(stand: Stand, browser: Browser) -> None:
    stand.state.faults.append(Fault("discovery", huge=True))
    got = browser.get("/oidc/.well-known/openid-configuration")
    assert len(got.content) > 10 * 1024 * 1024
    assert "padding" in json.loads(got.content)


def test_a_fault_may_wear_off_and_may_be_for_all(stand: Stand, browser: Browser) -> None:
    stand.state.faults.append(Fault("*", status=500, times=2))
    assert [browser.get(JWKS).status_code for _ in range(3)] == [500, 500, 200]


def test_a_delay_delays(stand: Stand, browser: Browser) -> None:
    stand.state.faults.append(Fault("jwks", delay=0.2))
    begun = time.monotonic()
    assert browser.get(JWKS).status_code == 200
    assert time.monotonic() - begun >= 0.19


def test_what_hangs_goes_on_when_released(stand: Stand, browser: Browser) -> None:
    stand.state.faults.append(Fault("jwks", hang=True))
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(browser.get(JWKS).status_code))
    thread.start()
    wait_for(lambda: stand.state.received("jwks"))
    assert not answers
    with stand.browser() as other:
        other.client.delete("/sandbox/api/faults")
    thread.join(10)
    assert answers == [200]


def test_a_client_that_gives_up_is_let_go(stand: Stand, browser: Browser) -> None:
    stand.state.faults.append(Fault("jwks", hang=True))
    with pytest.raises(httpx2.TimeoutException):
        browser.client.get(JWKS, timeout=0.2)
    assert stand.state.received("jwks")[0].answered == []
    stand.state.faults.clear()
    assert browser.get(JWKS).status_code == 200


@pytest.mark.parametrize(
    "order", [{"endpoint": "nowhere"}, {"endpoint": "jwks", "delay": -1}, {"endpoint": "jwks", "x": 1}]
)
def test_a_wrong_order_is_refused(browser: Browser, order: dict[str, Any]) -> None:
    assert browser.client.post("/sandbox/api/faults", json=order).status_code == 400


def test_the_log_counts_and_keeps_no_secret(stand: Stand, browser: Browser) -> None:
    tokens = browser.tokens("ada000000001")
    browser.refresh(tokens["refresh_token"])
    browser.get(JWKS)
    found = browser.client.get("/sandbox/api/log", params={"endpoint": "token"})
    assert found.json()["count"] == 2
    assert [entry["params"]["grant_type"] for entry in found.json()["requests"]] == [
        "authorization_code",
        "refresh_token",
    ]
    everything = browser.client.get("/sandbox/api/log").text
    for secret in (
        tokens["access_token"],
        tokens["refresh_token"],
        tokens["id_token"],
        stand.state.config.client_secret,
    ):
        assert secret not in everything
    entry = stand.state.received("auth")[0]
    assert (entry.method, entry.params["prompt"], entry.answered) == ("GET", "consent", [303])
    browser.client.delete("/sandbox/api/log")
    assert browser.client.get("/sandbox/api/log").json()["count"] == 0


def test_repeated_parameters_are_all_logged(stand: Stand, browser: Browser) -> None:
    browser.authorize(resource=["a", "b", "c"])
    assert stand.state.received("auth")[0].params["resource"] == ["a", "b", "c"]


def test_endpoints_have_names() -> None:
    assert endpoint_of("/oidc/token") == "token"
    assert endpoint_of("/sign-in") == "page"


def test_other_protocols_pass(stand: Stand) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(Misbehaviour(app, stand.state)({"type": "lifespan"}, receive, send))
    assert seen == ["lifespan"]
