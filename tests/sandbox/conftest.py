"""One stand-in Logto per run, emptied before each test; a receiver of back-channel logouts; one sample app."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.sandbox import create_logto
from proxy.sandbox.keys import KeyStore
from tests.sandbox.stand import CONFIG, Browser, Stand, recorded_people, serving


@pytest.fixture(scope="session")
def one_stand() -> Iterator[Stand]:
    app = create_logto(CONFIG)
    with serving(app) as url:
        yield Stand(url, app.state.sandbox)


@pytest.fixture
def stand(one_stand: Stand) -> Stand:
    """A stand-in as if fresh, with its own people."""
    one_stand.state.reset()
    one_stand.state.config = CONFIG
    one_stand.state.keys = KeyStore()
    return one_stand


@pytest.fixture
def recorded(stand: Stand, receiver: Receiver) -> Stand:
    """The stand-in set up as the recorded Logto was."""
    stand.state.people = recorded_people()
    stand.state.config = dataclasses.replace(CONFIG, backchannel_logout_uri=receiver.url)
    return stand


@pytest.fixture
def browser(stand: Stand) -> Iterator[Browser]:
    with stand.browser() as browser:
        yield browser


@dataclass
class Receiver:
    """What a back-channel logout URI got, and what it answers."""

    url: str = ""
    status: int = 200
    forms: list[dict[str, str]] = field(default_factory=list)
    user_agents: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="session")
def one_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    async def take(request: Request) -> Response:
        form = await request.form()
        receiver.forms.append({name: str(value) for name, value in form.items()})
        receiver.user_agents.append(request.headers.get("user-agent"))
        return Response(status_code=receiver.status)

    with serving(Starlette(routes=[Route("/backchannel", take, methods=["POST"])])) as url:
        receiver.url = url + "/backchannel"
        yield receiver


@pytest.fixture
def receiver(one_receiver: Receiver) -> Receiver:
    one_receiver.status = 200
    one_receiver.forms.clear()
    one_receiver.user_agents.clear()
    return one_receiver
