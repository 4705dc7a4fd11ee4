"""Running the stand-in Logto and the sample app: real sockets, one event loop, ended by cancelling."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

import uvicorn
from starlette.types import ASGIApp

from .config import SandboxConfig
from .logto import create_logto
from .sample import create_sample
from .state import SandboxState

# Seconds that an answer under way may take at the end; what hangs on purpose has been let go of by then.
_GRACE = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the sandbox can be reached: base URLs without trailing slash; `app` is None when it was not asked for."""

    logto: str
    app: str | None


@dataclass(frozen=True, slots=True)
class RunningLogto:
    """A stand-in Logto that listens at `url`, and its memory."""

    url: str
    state: SandboxState


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to whoever runs the event loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. OSError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=128)
    # Accepted connections inherit it. asyncio sets it only where the socket names its protocol, which these do not, and
    # without it an answer's body waits 40 ms for the acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address(listener: socket.socket, host: str | None = None) -> str:
    """The base URL of a listening socket; `host` instead of its IP address."""
    name, port = listener.getsockname()[:2]
    name = host or name
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


@contextlib.asynccontextmanager
async def running(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on `listener` for as long as the block lasts. The socket is closed afterwards."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose forwarded headers count is the app's own setting
        timeout_graceful_shutdown=_GRACE,
        ws="websockets-sansio",
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def running_logto(config: SandboxConfig | None = None, *, port: int = 0) -> AsyncIterator[RunningLogto]:
    """A stand-in Logto on 127.0.0.1 for the length of the block; the configuration's endpoint becomes its address."""
    listener = listen("127.0.0.1", port)
    url = address(listener)
    app = create_logto(replace(config or SandboxConfig(), endpoint=url))
    state: SandboxState = app.state.sandbox
    async with running(app, listener):
        try:
            yield RunningLogto(url, state)
        finally:
            state.release()


async def serve_sandbox(
    host: str,
    port: int,
    *,
    app_port: int | None,
    public_url: str,
    ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Run the stand-in Logto on `host`:`port`, and the sample app on `app_port` unless None, until cancelled.

    `public_url` is the gateway's, for the redirect URIs. `ready` hears the addresses once both ports are open: that is how
    a port 0 becomes known. OSError when a port is taken.
    """
    async with contextlib.AsyncExitStack() as stack:
        listener = listen(host, port)
        stack.callback(listener.close)
        app_listener = None
        if app_port is not None:
            app_listener = listen(host, app_port)
            stack.callback(app_listener.close)
        logto_url = address(listener, "localhost" if host in ("127.0.0.1", "::1", "0.0.0.0", "::") else host)
        logto = create_logto(SandboxConfig.for_gateway(logto_url, public_url))
        if ready is not None:  # said before the first answer: who has got one may rely on it
            ready(Addresses(logto_url, address(app_listener) if app_listener is not None else None))
        await stack.enter_async_context(running(logto, listener))
        stack.callback(logto.state.sandbox.release)
        if app_listener is not None:
            await _serve_app(stack, app_listener)
        await asyncio.Event().wait()


async def serve_sample(host: str, port: int) -> None:
    """Run only the sample app, until cancelled. OSError when the port is taken."""
    async with contextlib.AsyncExitStack() as stack:
        listener = listen(host, port)
        stack.callback(listener.close)
        await _serve_app(stack, listener)
        await asyncio.Event().wait()


async def _serve_app(stack: contextlib.AsyncExitStack, listener: socket.socket) -> None:
    sample = create_sample()
    await stack.enter_async_context(running(sample, listener))
    stack.callback(sample.state.closing.set)  # streams without an end get one before the server waits for them
