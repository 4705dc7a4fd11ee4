"""The app as a whole: its paths, its methods, the fields all answers share, health, failures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Message

from proxy import gateway
from proxy.errors import LogtoUnavailable, StoreUnavailable
from proxy.gateway import Health
from proxy.identity import RelyingParty
from proxy.session import MemoryStore, Session
from tests.gateway_world import FETCH, NAVIGATE, FakeLogto, World, settings_for

OWN_PATHS = ["", "/", "/me", "/sign-in", "/callback", "/sign-out", "/signed-out", "/healthz", "/readyz"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path)) as it:
        yield it


@pytest.mark.parametrize("path", OWN_PATHS)
def test_every_answer_is_private_and_named(world: World, path: str) -> None:
    world.logto.finished = LogtoUnavailable("down")
    answer = world.get("/.postern" + path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"] == "request-1"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", OWN_PATHS)
def test_head_is_as_good_as_get(world: World, path: str) -> None:
    world.logto.finished = LogtoUnavailable("down")
    assert world.request("HEAD", "/.postern" + path, NAVIGATE).status == world.get("/.postern" + path).status


@pytest.mark.parametrize("path", OWN_PATHS)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_405_with_allow(world: World, path: str, method: str) -> None:
    answer = world.request(method, "/.postern" + path, FETCH)
    assert answer.status == 405
    assert answer.headers["allow"] == ("GET, HEAD, POST" if path == "/sign-out" else "GET, HEAD")
    assert answer.problem()["reason"] == "method_not_allowed"


@pytest.mark.parametrize("path", [path for path in OWN_PATHS if path != "/sign-out"])
def test_post_is_for_signing_out_only(world: World, path: str) -> None:
    assert world.post("/.postern" + path).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/sign-in/",
        "/sign-in/x",
        "/SIGN-IN",
        "/me/",
        "//",
        "//me",
        "/../me",
        "/%2e%2e/",
        "/auth",
        "/auth/nginx",
        "/static/../../etc/passwd",
        "/me%00",
    ],
)
def test_everything_else_below_the_prefix_is_404(world: World, path: str) -> None:
    answer = world.get("/.postern" + path)
    assert answer.status == 404
    assert "Nothing here" in answer.text
    assert world.get("/.postern" + path, FETCH).problem()["reason"] == "not_found"


def test_another_prefix_moves_all_of_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, POSTERN_PREFIX="/~gate")
    with World(settings) as world:
        assert world.get("/~gate/healthz").json() == {"status": "ok"}
        assert "/~gate/sign-in" in world.get("/~gate/").text
        assert world.get("/.postern/healthz").status == 302


def test_the_keys_of_the_assertion_are_public(world: World) -> None:
    answer = world.get("/.postern/jwks.json", FETCH)
    assert answer.status == 200
    assert [key["kty"] for key in answer.json()["keys"]] == ["EC"]


# -- health


def test_alive_whatever_is_down(world: World) -> None:
    world.logto.check_error = LogtoUnavailable("down")
    assert world.get("/.postern/healthz").json() == {"status": "ok"}


def test_ready(world: World) -> None:
    answer = world.get("/.postern/readyz")
    assert (answer.status, answer.json()) == (200, {"status": "ready", "store": "ok", "logto": "ok"})


def test_ready_without_logto_but_not_silent_about_it(world: World) -> None:
    world.logto.check_error = LogtoUnavailable("down")
    answer = world.get("/.postern/readyz")
    assert (answer.status, answer.json()["logto"]) == (200, "unavailable")


def probe(logto: FakeLogto, clock: list[float]) -> Health:
    return Health(MemoryStore(idle=1, lifetime=1), cast("RelyingParty", logto), clock=lambda: clock[0])


async def ready(health: Health) -> dict[str, str]:
    response = await health.ready(Request({"type": "http"}))
    content = json.loads(bytes(response.body))
    assert isinstance(content, dict)
    return content


def test_a_crowd_of_probes_asks_logto_once_and_again_when_that_is_old() -> None:
    async def run() -> None:
        logto, now = FakeLogto(), [100.0]
        health = probe(logto, now)
        await asyncio.gather(*(ready(health) for _ in range(20)))
        assert logto.checks == 1
        now[0] += 60
        await ready(health)
        assert logto.checks == 2

    asyncio.run(run())


def test_a_slow_logto_holds_no_probe_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_LOGTO_PATIENCE", 0.01)

    async def run() -> None:
        logto = FakeLogto(hang=True)
        health = probe(logto, [100.0])
        for _ in range(3):
            assert await ready(health) == {"status": "ready", "store": "ok", "logto": "unknown"}
        assert logto.checks == 1

    asyncio.run(run())


def test_a_logto_that_never_answers_is_unavailable_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_LOGTO_FRESH", 0.01)
    monkeypatch.setattr(gateway, "_LOGTO_PATIENCE", 10)
    assert asyncio.run(ready(probe(FakeLogto(hang=True), [100.0])))["logto"] == "unavailable"


def test_a_gateway_that_is_to_stop_is_not_ready_but_alive(world: World) -> None:
    world.app.state.health.draining = True
    answer = world.get("/.postern/readyz")
    assert (answer.status, answer.json()["status"]) == (503, "draining")
    assert world.get("/.postern/healthz").status == 200


class Silent(MemoryStore):
    """A store that never answers a ping."""

    async def ping(self) -> None:
        await asyncio.Event().wait()


class Gone(MemoryStore):
    """A store that cannot be asked anything."""

    async def ping(self) -> None:
        raise StoreUnavailable("connection refused")

    async def load(self, cookie: str) -> Session | None:
        raise StoreUnavailable("connection refused")


@pytest.mark.parametrize("store", [Silent(idle=1, lifetime=1), Gone(idle=1, lifetime=1)])
def test_not_ready_without_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: MemoryStore) -> None:
    monkeypatch.setattr(gateway, "_STORE_PATIENCE", 0.01)
    with World(settings_for(tmp_path), store) as world:
        answer = world.get("/.postern/readyz")
        assert answer.status == 503
        assert answer.json() == {"status": "unavailable", "store": "unavailable", "logto": "ok"}
        assert int(answer.headers["retry-after"]) > 0


# -- failures


def test_the_store_gone_keeps_every_cookie(tmp_path: Path) -> None:
    with World(settings_for(tmp_path), Gone(idle=1, lifetime=1)) as world:
        for path in ("/page", "/.postern/", "/.postern/signed-out"):
            answer = world.get(path, Cookie="__Host-postern=1.x.y")
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
            assert not answer.set_cookies
        problem = world.get("/.postern/me", FETCH, Cookie="__Host-postern=1.x.y").problem()
        assert problem["reason"] == "store_unavailable"
        assert world.get("/open/x", Cookie="__Host-postern=1.x.y").status == 500, "passed by the gate: not for this app"


def test_a_bug_is_a_500_of_ours_and_tells_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.logto.finished = RuntimeError("a secret in a bug")
    answer = world.get("/.postern/callback?code=c")
    assert answer.status == 500
    assert "Something went wrong" in answer.text
    assert "request-1" in answer.text
    assert "secret" not in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"] == "request-1"
    assert "the gateway failed to answer" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("gone"), StoreUnavailable("gone")])
def test_what_fails_once_the_answer_has_begun_is_the_servers_to_end(world: World, error: Exception) -> None:
    async def half(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise error

    async def run() -> None:
        from proxy.verdict import OWN, Call

        call = Call(
            OWN, "request-1", "192.0.2.1", "https", "apps.example.com", "https://apps.example.com/.postern/healthz"
        )
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/.postern/healthz",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "postern": call,
        }

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        with pytest.raises(type(error), match="gone"):
            await world.app(scope, receive, half)

    world.runner.run(run())


def test_a_server_with_lifespan_gets_its_revocations_done(world: World) -> None:
    async def live() -> None:
        events: asyncio.Queue[Message] = asyncio.Queue()
        sent: list[str] = []

        async def send(message: Message) -> None:
            sent.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                answer = await world.ask(
                    "POST",
                    "/.postern/sign-out",
                    {**NAVIGATE, "Sec-Fetch-Site": "same-origin", "Cookie": cookie},
                )
                assert answer.status == 303
                await events.put({"type": "lifespan.shutdown"})

        await events.put({"type": "lifespan.startup"})
        await world.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, events.get, send)
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert len(world.logto.revoked) == 1

    cookie = world.sign_in()
    world.runner.run(live())
