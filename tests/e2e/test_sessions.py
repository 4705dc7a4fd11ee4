"""Sessions in Redis, over restarts, outages and several gateways: nobody let in who may not, nobody signed out who need not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from proxy.sandbox import SANDBOX_APP_SECRET
from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.origin import Origin
from tests.e2e.person import Person
from tests.e2e.processes import Processes, Running, eventually, free_port, start_redis, start_sandbox

Start = Callable[[str], Gateway]


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def redis(group: Processes) -> tuple[Running, str]:
    return start_redis(group)


@pytest.fixture(scope="module")
def start(group: Processes, origin: Origin, redis: tuple[Running, str], start_gateway: StartGateway) -> Start:
    """Start one of several gateways that are one to the browser: the same public URL, Logto and Redis."""
    public_url = f"http://localhost:{free_port()}"
    sandbox = start_sandbox(group, public_url)

    def start(name: str) -> Gateway:
        port = free_port() if name != "public" else int(public_url.rpartition(":")[2])
        env = {"POSTERN_PUBLIC_URL": public_url, "LOGTO_ENDPOINT": sandbox.url, "REDIS_URL": redis[1]}
        return start_gateway(name, origin.url, port=port, env=env)

    return start


@pytest.fixture(scope="module")
def gateway(start: Start) -> Gateway:
    return start("public")


def test_a_session_survives_a_restart(start: Start, gateway: Gateway) -> None:
    with gateway.signed_in("Ada") as person:
        other = start("old")
        assert _status(person, other) == 200
        assert other.running.stop() == 0, other.running.output()
        assert _status(person, start("new")) == 200


def test_a_sign_out_counts_at_once_everywhere(start: Start, gateway: Gateway) -> None:
    other = start("beside")
    with gateway.signed_in("Ada") as person, Person() as thief:
        thief.jar.cookies.update(person.jar.cookies)
        assert _status(thief, other) == 200  # known to both, and cached by both
        page = person.press(person.browse(gateway.url + "/.postern/sign-out"), "Sign out")
        page = person.press(page)  # Logto's own page submits itself by script
        assert page.url.startswith(gateway.url + "/.postern/signed-out"), page
        assert _status(thief, gateway) == 401
        eventually(lambda: _status(thief, other) == 401, within=5, what="the other gateway hears of the sign-out")


def test_an_outage_of_redis_lets_nobody_in_and_signs_nobody_out(
    start: Start, gateway: Gateway, redis: tuple[Running, str]
) -> None:
    fresh = start("without-cache")
    with gateway.signed_in("Max") as person:
        redis[0].signal(signal.SIGSTOP)
        try:
            answer = person.request("GET", fresh.url + "/seen")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "set-cookie" not in answer.headers
            assert answer.headers["content-type"] == "application/problem+json"
            assert _status(person, fresh, "/.postern/readyz") == 503
            assert _status(person, fresh, "/.postern/healthz") == 200
        finally:
            redis[0].signal(signal.SIGCONT)
        eventually(lambda: _status(person, fresh) == 200, within=15, what="the session works again")


def test_no_secret_is_ever_written_to_the_log(gateway: Gateway) -> None:
    with gateway.signed_in("Ada") as person:
        session = person.jar.named("postern")
        assert session
        secret = session.value.rpartition(".")[2]
        person.request("GET", f"{gateway.url}/seen?token=hunter2", headers={"Authorization": "Bearer hunter3"})
    said = gateway.running.output()
    assert SANDBOX_APP_SECRET not in said
    for word in (secret, "code=", "hunter2", "hunter3", "ada@example.test"):
        assert word not in said


def _status(person: Person, gateway: Gateway, path: str = "/seen") -> int:
    return person.request("GET", gateway.url + path).status_code
