"""One client connection, byte for byte: for what HTTP clients hide (1xx, resets, who says what first)."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Wire:
    """A TCP connection to `url`'s host. Reads fail after `patience` seconds of silence, so that no test can hang."""

    def __init__(self, url: str, *, cookie: str = "", patience: float = 15.0) -> None:
        parts = urlsplit(url)
        self.host, self.cookie = parts.netloc, cookie
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=patience)
        self._kept = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self, method: str, target: str, *fields: str, version: str = "HTTP/1.1") -> None:
        """Send a request head with Host and the session's cookie, plus `fields` ("Name: value")."""
        lines = [f"{method} {target} {version}", f"Host: {self.host}", *fields]
        if self.cookie:
            lines.append(f"Cookie: {self.cookie}")
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> tuple[int, dict[str, str]]:
        """The next head: its status, and its fields by lower-case name (the last of a name)."""
        while b"\r\n\r\n" not in self._kept:
            self._more()
        raw, _, self._kept = self._kept.partition(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), fields

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        while len(self._kept) < length:
            self._more()
        data, self._kept = self._kept[:length], self._kept[length:]
        return data

    def ends_cleanly(self) -> bool:
        """Read to the end: True for an orderly close, False for a reset."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
            return True
        return False

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {self._kept[:200]!r}")
        self._kept += data
