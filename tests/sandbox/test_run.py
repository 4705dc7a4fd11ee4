"""Running the sandbox: ports, addresses, ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest

from proxy.sandbox import SANDBOX_APP_ID, SandboxConfig, create_sample
from proxy.sandbox.faults import Fault
from proxy.sandbox.run import Addresses, address, listen, running, running_logto, serve_sample, serve_sandbox

PUBLIC = "http://localhost:3000"


def fetch_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False, timeout=20)


@contextlib.asynccontextmanager
async def sandbox(app_port: int | None = 0) -> AsyncIterator[Addresses]:
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    served = serve_sandbox("127.0.0.1", 0, app_port=app_port, public_url=PUBLIC + "/", ready=ready.set_result)
    task = asyncio.create_task(served)
    try:
        yield await asyncio.wait_for(ready, 20)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_both_are_served_until_cancelled_and_free_their_ports() -> None:
    async def scenario() -> Addresses:
        async with sandbox() as found, fetch_client() as client:
            assert found.app is not None
            metadata = (await client.get(found.logto + "/oidc/.well-known/openid-configuration")).json()
            assert metadata["issuer"] == found.logto + "/oidc"
            query = {
                "client_id": SANDBOX_APP_ID,
                "redirect_uri": PUBLIC + "/.postern/callback",
                "response_type": "code",
                "scope": "openid",
            }
            got = await client.get(found.logto + "/oidc/auth", params=query)
            assert got.status_code == 303
            assert (await client.get(found.app + "/api/me")).json()["user"] is None
            return found

    found = asyncio.run(scenario())
    assert found.logto.startswith("http://localhost:")
    for url in (found.logto, found.app):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int((url or "").rsplit(":", 1)[1]))) != 0


def test_the_app_may_be_left_out() -> None:
    async def scenario() -> None:
        async with sandbox(app_port=None) as found:
            assert found.app is None

    asyncio.run(scenario())


def test_streams_and_what_hangs_do_not_hold_up_the_end() -> None:
    async def scenario() -> None:
        async with fetch_client() as client:
            async with sandbox() as found:
                assert found.app is not None
                await client.post(found.logto + "/sandbox/api/faults", json={"endpoint": "jwks", "hang": True})
                hanging = asyncio.create_task(client.get(found.logto + "/oidc/jwks"))
                streaming = client.stream("GET", found.app + "/events")
                answer = await streaming.__aenter__()
                assert (await anext(answer.aiter_lines())).startswith("id: 1")
                while (await client.get(found.logto + "/sandbox/api/log?endpoint=jwks")).json()["count"] == 0:
                    await asyncio.sleep(0.01)
            assert (await hanging).status_code == 200
            await streaming.__aexit__(None, None, None)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_taken_port_is_an_error_and_frees_the_other() -> None:
    async def scenario() -> None:
        with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
            await serve_sandbox("127.0.0.1", 0, app_port=taken.getsockname()[1], public_url=PUBLIC)

    asyncio.run(scenario())


def test_the_app_may_be_served_alone() -> None:
    async def scenario() -> None:
        with listen("127.0.0.1", 0) as free:
            port = free.getsockname()[1]
        task = asyncio.create_task(serve_sample("127.0.0.1", port))
        async with fetch_client() as client:
            deadline = asyncio.get_running_loop().time() + 20
            while asyncio.get_running_loop().time() < deadline and not task.done():
                with contextlib.suppress(httpx2.ConnectError):
                    assert (await client.get(f"http://127.0.0.1:{port}/status/204")).status_code == 204
                    break
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_addresses_are_urls() -> None:
    with listen("127.0.0.1", 0) as four:
        assert address(four) == f"http://127.0.0.1:{four.getsockname()[1]}"
        assert address(four, "localhost").startswith("http://localhost:")
        assert address(four, "::1") == f"http://[::1]:{four.getsockname()[1]}"
        assert four.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_logto_for_a_test_has_the_address_it_listens_on() -> None:
    async def scenario() -> None:
        config = SandboxConfig(client_id="another")
        async with running_logto(config) as logto, fetch_client() as client:
            assert logto.state.config.issuer == logto.url + "/oidc"
            assert logto.state.config.client_id == "another"
            logto.state.faults.append(Fault("jwks", status=503))
            assert (await client.get(logto.url + "/oidc/jwks")).status_code == 503

    asyncio.run(scenario())


def test_an_app_that_cannot_start_says_so() -> None:
    async def scenario() -> None:
        listener = listen("127.0.0.1", 0)
        listener.close()
        with pytest.raises(OSError):
            async with running(create_sample(), listener):
                raise AssertionError("never started")

    asyncio.run(scenario())


def test_the_configuration_for_a_gateway() -> None:
    config = SandboxConfig.for_gateway("http://localhost:3001/", "https://apps.example.com/", prefix="/_gate")
    assert config.issuer == "http://localhost:3001/oidc"
    assert config.redirect_uris == ("https://apps.example.com/_gate/callback",)
    assert config.post_logout_redirect_uris == ("https://apps.example.com/_gate/signed-out",)
    assert config.client_secret not in repr(config)
