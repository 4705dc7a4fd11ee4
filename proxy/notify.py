"""What a service manager is told, and what it hands over: sd_notify(3) and sd_listen_fds(3), as systemd and others speak them.

Both are a few lines of an environment variable and a datagram; neither needs a library. Without the variables nothing happens.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START
_PATIENCE: Final = 1.0  # seconds that a manager with a full queue may hold up what it has to hear


class Notifier:
    """Tells the service manager how far the gateway is. A manager that does not listen is no reason to stop."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take NOTIFY_SOCKET out of `environ`: what this process starts has nothing to say in its name."""
        address = environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = _watchdog(environ)

    def ready(self, status: str) -> None:
        """Everything is up; also after a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Settings are being read again. The time says which signal this answers (Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The gateway was told to stop, and drains."""
        self._send("STOPPING=1\nSTATUS=draining")

    def alive(self) -> None:
        """The event loop still turns (WatchdogSec=)."""
        self._send("WATCHDOG=1", patience=0.0)  # there will be others

    def _send(self, text: str, patience: float | None = None) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(_PATIENCE if patience is None else patience)
            sender.sendto(text.encode(), self._address)


def _watchdog(environ: MutableMapping[str, str]) -> float | None:
    """Seconds between two signs of life: half of what the manager waits for; None when it does not wait for any."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdecimal() or int(microseconds) == 0 or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2e6


def passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that the service manager has opened for this process (socket activation), if it has.

    Takes the variables out of `environ`. OSError when a descriptor is no socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for fd in range(_FIRST_PASSED, _FIRST_PASSED + int(count)):
        os.set_inheritable(fd, False)
        sockets.append(socket.socket(fileno=fd))
    return sockets
