"""A client's end of the wire, as everything that speaks to clients needs it: written to, read from, and never waited for
without end.

Deadlines are one number per connection, looked at by the relay's sweep once a second: no timer is set or cancelled for a
request. A client that takes what it is sent may be as slow as it likes; one that takes nothing for `send_timeout` is cut
off, however much of it the kernel would still hold.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from proxy.relay import Relay

FOREVER: Final = float("inf")
_LINGER_SECONDS: Final = 5.0  # how long a connection that is being closed still reads
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# States of a TCP connection (Linux, tcp_states.h).
TCP_CLOSE: Final = 7  # reset by the peer
TCP_CLOSE_WAIT: Final = 8  # the peer sends no more
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)  # elsewhere nobody can tell


class Wire(asyncio.Protocol):
    """The transport to a client, with the pace of both directions. `deadline` is on the event loop's clock."""

    # What tells that a client has left that is not read from. A client that sends no more has, as far as HTTP goes: nobody
    # can tell a half-closed connection from a closed one, and work for somebody who is gone is worse than none.
    _gone_states: ClassVar = frozenset((TCP_CLOSE, TCP_CLOSE_WAIT))

    __slots__ = (
        "_behind",
        "_blocked",
        "_closing",
        "_expire",
        "_idle",
        "_limits",
        "_reading",
        "_relay",
        "_transport",
        "deadline",
    )

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._limits = relay.plan.limits
        self._idle = self._limits.idle_timeout
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._expire: Callable[[], None] = self.close
        self._reading = True
        self._closing = False
        self._blocked = False  # the client does not keep up with what it is sent
        self._behind = 0  # bytes it had not taken when that was last looked at
        self.deadline = FOREVER

    def write(self, data: bytes) -> None:
        """Send bytes to the client; progress, as far as deadlines go."""
        self._transport.write(data)
        if not self._blocked:
            self.deadline = self._relay.now + self._idle

    def pause(self) -> None:
        """Read no more from the client for now."""
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from the client again."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()

    def close(self) -> None:
        """Close once the client has taken everything."""
        self._closing = True
        if not self._transport.is_closing():
            self._transport.close()
        self._wait_for_taking(self._limits.send_timeout)

    def linger(self) -> None:
        """Close so that the last answer arrives: unread bytes would turn a close into a reset (RFC 9112 9.6).

        Our half is closed, and what the client still sends is read and forgotten until it closes its own. Over TLS there is
        no half of a connection to close; the answer itself tells the client that it was the last.
        """
        self._closing = True
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            with suppress(OSError, RuntimeError):  # the client may be quicker
                self._transport.write_eof()
        self.resume()
        self._wait_for_taking(_LINGER_SECONDS)

    def reset(self) -> None:
        """Close so that nobody can take what was sent for complete.

        A clean FIN tells an HTTP/1.0 client, or one reading until the end, that it has everything (RFC 9112 8). Unix sockets
        have no reset: there only a length or the chunked coding tells.
        """
        self._closing = True
        sock = self._socket()
        if sock is not None:
            with suppress(OSError, ValueError):  # already gone
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def expire(self) -> None:
        """The present deadline has passed. A client that has taken something since gets another."""
        left = self._untaken()
        if 0 < left < self._behind:
            self._behind = left
            self.deadline = self._relay.now + self._limits.send_timeout
            return
        self.deadline = FOREVER
        self._expire()

    def probe(self) -> None:
        """Notice a client that has left while nothing is read from it: the end of its stream is then not seen either."""
        if not self._reading and not self._transport.is_closing() and self._has_left():
            self._transport.abort()

    def pause_writing(self) -> None:
        """The client does not keep up (asyncio.Protocol)."""
        self._blocked = True
        self._behind = self._untaken()
        self.deadline = self._relay.now + self._limits.send_timeout

    def resume_writing(self) -> None:
        """The client keeps up again (asyncio.Protocol)."""
        self._blocked = False
        self.deadline = self._relay.now + self._idle

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self.deadline = self._relay.now + seconds
        self._expire = then

    def _wait_for_taking(self, seconds: float) -> None:
        self._behind = self._untaken() + 1  # whatever is left after the first deadline earns a second one
        self._wait(seconds, self._transport.abort)

    def _socket(self) -> socket.socket | None:
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        return sock

    def _untaken(self) -> int:
        """Bytes sent that the client has not taken: those still with us, and those in the kernel (tcp(7), SIOCOUTQ)."""
        ours = self._transport.get_write_buffer_size()
        sock = self._socket()
        if sock is None:
            return ours
        try:
            return ours + int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
        except (OSError, ValueError):
            return ours

    def _has_left(self) -> bool:
        sock = self._socket()
        if sock is None or _TCP_INFO is None:
            return False
        try:
            return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] in self._gone_states
        except (OSError, ValueError):
            return False  # a unix socket
