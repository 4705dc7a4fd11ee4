"""The way to a server: its name looked up, its addresses tried, a connected socket handed out.

Names are looked up again and again, because a container that is replaced comes back under another address; yet only once at a
time, because a resolver that hangs must not fill the threads that every other lookup needs. Where a name has several addresses
they are tried as RFC 8305 (Happy Eyeballs) has it, so that a dead one costs a quarter of a second and not the whole timeout.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

HEAD_START: Final = 0.25  # seconds before the next address is tried as well (RFC 8305 8)
KNOWN_SECONDS: Final = 5.0  # how long the addresses of a name are believed; the system tells no lifetime
_BACKLOG_FULL: Final = 0.02  # seconds until a unix socket whose backlog is full is tried again

Address = tuple[socket.AddressFamily, tuple[Any, ...]]  # the second as `connect` takes it, by family


class Dialer:
    """Connects to one server: `host` (a name or an address) and `port`, or the `path` of a unix socket."""

    def __init__(self, host: str, port: int, path: str | None = None) -> None:
        self._host = host
        self._port = port
        self._path = path
        self._fixed = _literal(host, port)
        self._known: tuple[Address, ...] = ()
        self._known_until = 0.0
        self._lookup: asyncio.Task[None] | None = None

    async def dial(self) -> socket.socket:
        """A connected socket, not blocking. Raises OSError, socket.gaierror when the name leads nowhere. No deadline."""
        if self._path is not None:
            return await _dial_unix(self._path)
        if self._fixed is not None:
            return await _attempt(self._fixed)
        addresses = await self._addresses()
        try:
            return await first_of(addresses)
        except OSError:
            self._known_until = 0.0  # the name may have moved
            raise

    async def _addresses(self) -> tuple[Address, ...]:
        loop = asyncio.get_running_loop()
        if loop.time() < self._known_until:
            return self._known
        if self._lookup is None:
            self._lookup = loop.create_task(self._look_up())
            self._lookup.add_done_callback(_notice)
        try:
            await asyncio.shield(self._lookup)  # whoever waits may give up; the lookup goes on for the others
        except socket.gaierror as error:
            # A resolver that cannot answer now is no reason to forget where the server was a moment ago.
            if error.errno != socket.EAI_AGAIN or not self._known:
                raise
        return self._known

    async def _look_up(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._known = interleaved([(family, address) for family, _, _, _, address in found])
            self._known_until = loop.time() + KNOWN_SECONDS
        finally:
            self._lookup = None


def interleaved(addresses: Sequence[Address]) -> tuple[Address, ...]:
    """`addresses` in their order, the families taking turns: one family may lead nowhere as a whole (RFC 8305 4)."""
    families: dict[int, deque[Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], deque()).append(address)
    mixed: list[Address] = []
    while families:
        for family in list(families):
            mixed.append(families[family].popleft())
            if not families[family]:
                del families[family]
    return tuple(mixed)


async def first_of(addresses: Sequence[Address]) -> socket.socket:
    """The first of `addresses` that accepts, each given a head start before the next. Raises the first OSError if none does."""
    if len(addresses) == 1:
        return await _attempt(addresses[0])
    loop = asyncio.get_running_loop()
    waiting = deque(addresses)
    running: set[asyncio.Task[socket.socket]] = set()
    failures: list[OSError] = []
    try:
        while waiting or running:
            if waiting:
                running.add(loop.create_task(_attempt(waiting.popleft())))
            done, _ = await asyncio.wait(
                running, timeout=HEAD_START if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                running.discard(attempt)
                try:
                    return attempt.result()
                except OSError as error:
                    failures.append(error)
        raise failures[0] if failures else OSError(errno.EADDRNOTAVAIL, "the name has no address")
    finally:
        for attempt in running:
            _abandon(attempt)


def _notice(lookup: asyncio.Task[None]) -> None:
    """Take note of a failed lookup that nobody waits for any more, or asyncio complains that nobody did."""
    if not lookup.cancelled():
        lookup.exception()


def _abandon(attempt: asyncio.Task[socket.socket]) -> None:
    """Drop an attempt that lost the race, perhaps by a hair."""
    if not attempt.done():
        attempt.cancel()
        attempt.add_done_callback(_abandon)
    elif not attempt.cancelled():
        with suppress(OSError):
            attempt.result().close()


async def _attempt(address: Address) -> socket.socket:
    family, place = address
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connect(connecting, place)
    except BaseException:
        connecting.close()
        raise
    return connecting


async def _connect(connecting: socket.socket, place: tuple[Any, ...]) -> None:
    """Connect to an address. The event loop's own `sock_connect` would look it up once more, in a thread, for each connection."""
    with suppress(BlockingIOError, InterruptedError):  # EINPROGRESS, or a signal: it goes on (connect(2))
        connecting.connect(place)
        return
    loop = asyncio.get_running_loop()
    settled = asyncio.Event()
    loop.add_writer(connecting, settled.set)
    try:
        await settled.wait()
    finally:
        loop.remove_writer(connecting)
    error = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def _dial_unix(path: str) -> socket.socket:
    """Connecting a unix socket succeeds or fails at once, except when its backlog is full: then there is nothing to wait on."""
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        while True:
            try:
                connecting.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_BACKLOG_FULL)
            else:
                return connecting
    except BaseException:
        connecting.close()
        raise


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return (socket.AF_INET, (host, port)) if version == 4 else (socket.AF_INET6, (host, port, 0, 0))
