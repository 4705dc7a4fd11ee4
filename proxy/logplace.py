"""The places that access lines are written to: standard output, standard error, or a file that others rotate.

Several workers write to the same place. A line stays whole because no write is longer than a pipe takes in one piece (PIPE_BUF,
pipe(7)); a socket to the journal does as well. To a file every write is one, however long, and is made as one: between two
of them the event loop and the writing thread would hand each other the interpreter, thousands of times per second.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from typing import Final

_STREAMS: Final = {"stdout": 1, "stderr": 2}


class LogPlace:
    """What `log.access` names: "stdout", "stderr" or the path of a file, made where there is none. OSError if it cannot be."""

    def __init__(self, place: str) -> None:
        self._path = None if place in _STREAMS else place
        self._fd = _STREAMS[place] if self._path is None else _open(place)
        self._file = _is_file(self._fd)

    @property
    def terminal(self) -> bool:
        """Whether people look at it as it is written."""
        return os.isatty(self._fd)

    def write(self, text: str) -> None:
        """Write whole lines. Blocks as long as nobody takes them; OSError when nobody will."""
        data = text.encode()
        for piece in (data,) if self._file else pieces(data):
            left = piece
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # somebody has made the stream non-blocking, and it is full
                    select.select((), (self._fd,), ())

    def flush(self) -> None:
        """Nothing is held back here."""

    def reopen(self) -> None:
        """Go on in a new file of the same name, when the old one was moved away. OSError leaves everything as it was."""
        if self._path is not None:
            fd = _open(self._path)
            # In one step: a thread that is writing at this moment writes to the one or to the other.
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
            self._file = _is_file(self._fd)

    def close(self) -> None:
        """Let go of a file."""
        if self._path is not None and self._fd >= 0:
            fd, self._fd = self._fd, -1  # first: the number may soon be that of something else
            os.close(fd)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of whole lines, none longer than PIPE_BUF unless it is a single line."""
    start = 0
    while len(data) - start > select.PIPE_BUF:
        end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]
