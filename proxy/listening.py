"""Where the gateway listens: sockets bound or inherited, and connections taken off them.

All workers wait at the same socket, so that a connection which one worker cannot take is taken by another: nothing is lost when
a worker ends, however it ends. (With SO_REUSEPORT each worker has a queue of its own, and who stands in a dead worker's queue
waits for its successor.) The price is that somebody has to see to fairness: libuv's own server takes everything that waits at
once, and of 32 connections that come together one worker gets 32. So connections are taken one by one here, and whoever has
more of them than another worker lets that one go first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import os
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from proxy.errors import CannotServe
from proxy.settings import Listen, Tls

BACKLOG: Final = 2048
GONE: Final = 0xFFFFFFFF  # what `Loads` says of a worker that takes no connections
_BATCH: Final = 32  # connections taken before others of this worker have their turn
_COURTESY: Final = 0.001  # seconds that a less busy worker has to take what waits
# What accept(2) reports of one connection that is gone again: the next one may be fine.
_PASSING: Final = frozenset(
    (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
     errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM)
)  # fmt: skip
_RECOVERY: Final = 0.5  # seconds without new connections when there are no descriptors left for them
_HANDSHAKE: Final = 15.0  # seconds that TLS may take to begin
_log = logging.getLogger("postern")


def bind(listen: Listen) -> list[socket.socket]:
    """Sockets that listen where `listen` says: one for each address of a name. OSError when one cannot be had."""
    if listen.path is not None:
        return [_bind_unix(listen.path)]
    bound: list[socket.socket] = []
    port = listen.port or 0
    found = socket.getaddrinfo(listen.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(BACKLOG)
            port = port or sock.getsockname()[1]  # a free port, then the same for every address
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _bind_unix(path: str) -> socket.socket:
    with suppress(OSError):
        if stat.S_ISSOCK(Path(path).lstat().st_mode) and not _answers(path):
            Path(path).unlink()  # left behind by a process that is gone
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        Path(path).chmod(0o666)  # who may connect is decided by the directory it lies in
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def server_tls(settings: Tls | None) -> ssl.SSLContext | None:
    """What clients are spoken to with: None without a certificate. Raises CannotServe when it cannot be used."""
    if settings is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.cert, settings.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise CannotServe(
            f"the certificate in {settings.cert} and {settings.key} cannot be used: {_why(error)}"
        ) from None
    return context


def _no_password() -> bytes:
    """Called for a key that is encrypted; without it OpenSSL would ask on the terminal."""
    raise ValueError("the key needs a password")


def _why(error: OSError | ValueError) -> str:
    """A reason without anything of what is in the files."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Loads:
    """How many connections each worker has, in memory that they share. A hint, never a lock."""

    def __init__(self, fd: int, workers: int) -> None:
        """`fd`: a file of four bytes for each worker, as `shared` makes it."""
        self._memory = mmap.mmap(fd, 4 * workers)
        self._counts = memoryview(self._memory).cast("I")

    @staticmethod
    def shared(workers: int) -> int:
        """A new file in memory for the loads of so many workers: its descriptor. Nobody is there yet."""
        fd = os.memfd_create("postern-loads")
        os.write(fd, GONE.to_bytes(4, "little") * workers)
        return fd

    def publish(self, worker: int, connections: int) -> None:
        """Say how many connections `worker` has; GONE when it takes none."""
        self._counts[worker] = connections

    def fair(self, worker: int) -> bool:
        """Whether `worker` has about as few connections as any other.

        A few more make no difference, and where connections come and go quickly numbers are never even.
        """
        least = min(self._counts)
        return self._counts[worker] <= least + 2 + least // 4

    def others(self, worker: int) -> int:
        """A number that stays the same as long as no other worker publishes a new one."""
        return hash((*self._counts[:worker], *self._counts[worker + 1 :]))


class Turn:
    """One worker's part in sharing out connections.

    Who has more connections than another lets that one go first, for a moment. If the other has not moved by then, this one
    takes one itself, then two, then four: whoever is busy soon holds nobody up, and whoever is only slow to wake gets its part.
    """

    def __init__(self, loads: Loads, worker: int) -> None:
        self._loads = loads
        self._worker = worker
        self._left_to: int | None = None  # the others, as they were when it was left to them
        self._waited = False
        self._granted = 1  # connections to take after the next wait
        self._credit = 0  # of those, still to be taken

    def ours(self, connections: int) -> bool:
        """Whether the next connection is this worker's, which has `connections` now. If not, it is to ask again soon."""
        self._loads.publish(self._worker, connections)
        if self._loads.fair(self._worker):
            self._left_to = None
            return True
        others = self._loads.others(self._worker)
        if others != self._left_to:
            self._left_to, self._granted, self._credit, self._waited = others, 1, 0, True
            return False
        if self._waited:
            self._waited = False
            self._credit, self._granted = self._granted, min(self._granted * 2, _BATCH)
        self._credit -= 1
        self._waited = self._credit < 0
        return not self._waited

    def leave(self) -> None:
        """Take no more connections."""
        self._loads.publish(self._worker, GONE)


class Acceptor:
    """Takes connections off one listening socket, and makes a protocol for each."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        *,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        count: Callable[[], int] = lambda: 0,
        turn: Turn | None = None,
    ) -> None:
        """`tls` is asked for each connection: certificates change. `count`: connections that this worker has already."""
        listener.setblocking(False)
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._count = count
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._open = False

    @property
    def opening(self) -> int:
        """Connections that are not yet set up: TLS, mostly."""
        return len(self._opening)

    def start(self) -> None:
        """Take connections from now on."""
        self._open = True
        if self._turn is not None:
            self._turn.ours(self._count())  # so that the others know of it before its first connection
        self._loop.add_reader(self._listener.fileno(), self._take)

    def stop(self) -> None:
        """Take none any more, save those that wait already: closing a socket resets whoever stands in its queue."""
        if not self._open:
            return
        self._rest(None)
        self._open = False
        if self._turn is not None:
            self._turn.leave()
        for _ in range(BACKLOG):  # more than that can only have come meanwhile
            if not self._accept():
                break
        self._listener.close()

    def _take(self) -> None:
        self._again = None
        for _ in range(_BATCH):
            if self._turn is not None and not self._turn.ours(self._count() + self.opening):
                self._rest(_COURTESY)
                return
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Take one connection; False when none waits, or none can be taken now."""
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _PASSING:
                return True
            # Out of descriptors: the connection stays in the queue and the socket readable. To ask on would be a busy loop.
            _log.error("cannot take connections: %s", error.strerror)
            self._rest(_RECOVERY)
            return False
        sock.setblocking(False)
        task = self._loop.create_task(self._set_up(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _set_up(self, sock: socket.socket) -> None:
        tls = self._tls()
        limit = _HANDSHAKE if tls is not None else None
        try:
            await self._loop.connect_accepted_socket(self._protocol, sock, ssl=tls, ssl_handshake_timeout=limit)
        except OSError as error:  # ssl.SSLError is one: a port scan, an old client, a reset
            _log.debug("a connection did not come about: %s", error)
            sock.close()
        except BaseException:  # the end of the process
            sock.close()
            raise

    def _rest(self, seconds: float | None) -> None:
        """Look away from the socket: for `seconds`, or for good."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._open:
            return
        self._loop.remove_reader(self._listener.fileno())
        if seconds is not None:
            self._again = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._again = None
        self._loop.add_reader(self._listener.fileno(), self._take)
