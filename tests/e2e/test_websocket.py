"""WebSockets through the gateway: every message, every extension, every close code, and nobody's but the signed-in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin as OriginHeader

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.origin import MIB, Origin
from tests.e2e.processes import eventually


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def gateway(origin: Origin, start_gateway: StartGateway) -> Gateway:
    return start_gateway("websocket", origin.ws_url)


@pytest.fixture(scope="module")
def cookie(gateway: Gateway) -> Iterator[str]:
    with gateway.signed_in("Ada") as person:
        yield person.cookie_header(gateway.url)


def _open(gateway: Gateway, cookie: str, *, origin: str | None = None, compression: str | None = "deflate") -> connect:
    return connect(
        gateway.url.replace("http", "ws", 1) + "/live?room=a%20b",
        origin=OriginHeader(origin or gateway.url),
        additional_headers={"Cookie": cookie} if cookie else {},
        compression=compression,
        max_size=32 * MIB,
        open_timeout=15,
        proxy=None,
    )


def test_ten_thousand_messages_come_back_in_order(gateway: Gateway, cookie: str) -> None:
    async def talk() -> list[str | bytes]:
        async with _open(gateway, cookie) as socket:
            reading = asyncio.create_task(_collect(socket, 10_000))
            for number in range(10_000):
                await socket.send(f"message {number}" if number % 2 else number.to_bytes(4, "big"))
            return await asyncio.wait_for(reading, 60)

    assert asyncio.run(talk()) == [
        f"message {number}" if number % 2 else number.to_bytes(4, "big") for number in range(10_000)
    ]


def test_a_message_of_16_mib_comes_back_whole(gateway: Gateway, cookie: str) -> None:
    message = random.Random(16).randbytes(16 * MIB)

    async def talk() -> str | bytes:
        async with _open(gateway, cookie, compression=None) as socket:
            await socket.send(message)
            return await asyncio.wait_for(socket.recv(), 30)

    assert asyncio.run(talk()) == message


def test_compression_is_agreed_on_end_to_end(gateway: Gateway, cookie: str, origin: Origin) -> None:
    """permessage-deflate (RFC 7692) is between the two ends; the gateway only carries its frames."""

    async def talk() -> tuple[list[str], str | bytes]:
        async with _open(gateway, cookie) as socket:
            await socket.send("compress me " * 1000)
            names = [str(extension.name) for extension in socket.protocol.extensions]
            return names, await asyncio.wait_for(socket.recv(), 15)

    names, echoed = asyncio.run(talk())
    assert names == ["permessage-deflate"]
    assert [str(extension.name) for extension in origin.sockets[-1].protocol.extensions] == names
    assert echoed == "compress me " * 1000


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "library"), (4321, "déjà vu")])
def test_the_clients_close_code_reaches_the_app(
    gateway: Gateway, cookie: str, origin: Origin, code: int, reason: str
) -> None:
    async def talk() -> None:
        async with _open(gateway, cookie) as socket:
            await socket.send("hello")
            await socket.recv()
            await socket.close(code, reason)

    origin.closes.clear()
    asyncio.run(talk())
    eventually(lambda: (code, reason) in origin.closes, what=f"the app sees {code}, not only {origin.closes}")


@pytest.mark.parametrize("code", [1000, 1011, 3000, 4999])
def test_the_apps_close_code_reaches_the_client(gateway: Gateway, cookie: str, code: int) -> None:
    async def talk() -> tuple[int | None, str | None]:
        async with _open(gateway, cookie) as socket:
            await socket.send(f"close:{code}")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), 15)
            return socket.close_code, socket.close_reason

    assert asyncio.run(talk()) == (code, "as asked")


def test_pings_are_answered_by_the_app_itself(gateway: Gateway, cookie: str) -> None:
    async def talk() -> float:
        async with _open(gateway, cookie) as socket:
            return await asyncio.wait_for(await socket.ping(), 15)

    assert asyncio.run(talk()) >= 0


@pytest.mark.parametrize(
    ("with_session", "origin_header", "status"),
    [(False, None, 401), (True, "https://evil.example", 403), (True, "null", 403)],
)
def test_who_may_not_is_told_so_before_any_frame(
    gateway: Gateway, cookie: str, with_session: bool, origin_header: str | None, status: int
) -> None:
    """Cross-site WebSocket hijacking: the browser sends the cookie along whichever page opens the socket."""

    async def talk() -> int:
        with pytest.raises(InvalidStatus) as refused:
            async with _open(gateway, cookie if with_session else "", origin=origin_header):
                pass
        return refused.value.response.status_code

    assert asyncio.run(talk()) == status


async def _collect(socket: ClientConnection, count: int) -> list[str | bytes]:
    return [await socket.recv() for _ in range(count)]
