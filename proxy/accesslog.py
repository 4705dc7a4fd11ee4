"""One line per request: who asked what, what became of it, how long it took. Fields in docs/logging.md.

The path is logged without its query, the user by `sub`; no token, cookie or other header ever gets here. Lines are gathered,
and a thread writes them together a few times per second: whoever reads them may stop reading, as a full pipe to a log
collector does, without stopping the gateway. What finds no room then is counted, and the count is written in its place.
"""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from proxy.request import Request
    from proxy.verdict import Verdict

_WORDS_KEPT: Final = 2048  # hosts, users, routes … kept as they are written
_FLUSH_SECONDS: Final = 0.2
_GATHERED: Final = 20_000  # lines kept while nobody takes them
_PATH_CHARACTERS: Final = 2048  # of a path in a line: log collectors cut or refuse long lines
_LONG_LINE: Final = 4096  # characters: more than that do not go through a pipe in one piece
_SHORT_PATH: Final = 256  # characters of a path in a line that would be too long; each may take six when it is written
_LAST_SECONDS: Final = 2.0  # how long the end of the process may wait for the last lines to be taken
# What json.dumps itself uses for strings: quotes, controls and everything outside ASCII are escaped, so that nothing a
# client sends can end a line or begin another.
_VIA_SHORT: Final = {"cookie": "", "bearer": " via=bearer", "password": " via=password"}
_VIA: Final = {"cookie": "", "bearer": ',"via":"bearer"', "password": ',"via":"password"'}
_escape: Final = json.encoder.encode_basestring_ascii


class Stream(Protocol):
    """What lines are written to, whole ones at a time. Both methods may block, and raise OSError."""

    def write(self, text: str, /) -> object:
        """Write `text`."""

    def flush(self) -> object:
        """Hold nothing back."""


class _Escaped(dict[str, str]):
    """Words that come again and again, as JSON strings; bounded."""

    def __missing__(self, text: str) -> str:
        if len(self) >= _WORDS_KEPT:
            self.clear()
        escaped = self[text] = _escape(text)
        return escaped


_known: Final = _Escaped()


class AccessLog:
    """Writes access lines to `stream` as JSON or for reading on a console; `stream` None writes nothing.

    `lost` counts the lines that nobody took.
    """

    def __init__(self, stream: Stream | None, form: Literal["json", "console"]) -> None:
        self._stream = stream
        self._json = form == "json"
        self._lines: list[str] = []
        self._lost = 0  # since that was last written
        self.lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: threading.Thread | None = None

    def redirect(self, stream: Stream | None, form: Literal["json", "console"]) -> None:
        """Write to another stream from now on, or in another form; what is gathered goes there too."""
        self._stream = stream
        self._json = form == "json"

    def write(self, request: Request, *, cut: bool = False) -> None:
        """Add the line of a request that has just ended; `cut` when its answer is incomplete."""
        if self._stream is None:
            return
        verdict = request.verdict
        session = verdict.session if verdict is not None else None
        route = verdict.route.name if verdict is not None and verdict.route is not None else ""
        self._add(
            request.id.decode("latin-1"),
            request.origin.client,
            request.head.method.decode("ascii"),
            request.origin.name,
            request.head.path[:_PATH_CHARACTERS].decode("latin-1"),
            request.status,
            route,
            "cut_short" if cut else verdict.reason if verdict is not None else "",
            session.identity.sub if session is not None else "",
            request.seconds * 1000,
            request.body_out,
            session.via if session is not None else "cookie",
        )

    def refused(self, peer: str, request_id: bytes, verdict: Verdict) -> None:
        """Add the line of something that could not be read as a request."""
        if self._stream is not None:
            self._add(request_id.decode("latin-1"), peer, "-", "", "", verdict.status, "", verdict.reason, "", 0.0, 0)

    def flush(self) -> None:
        """Write what is gathered, as far as it is taken: for the end of the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for _ in range(2):  # what has been gathered meanwhile, once; on a full disk something would be left for ever
            if self._taken(_LAST_SECONDS) and (self._lines or self._lost):
                self._hand_over()
        self._taken(_LAST_SECONDS)

    def _add(
        self,
        request_id: str,
        client: str,
        method: str,
        host: str,
        path: str,
        status: int,
        route: str,
        outcome: str,
        user: str,
        milliseconds: float,
        sent: int,
        via: str = "cookie",
    ) -> None:
        if len(self._lines) >= _GATHERED:
            self._lose(1)
            return
        if self._json:
            line = (
                f'{{"time":{time.time():.3f},"event":"request","id":{_escape(request_id)},"client":{_known[client]},'
                f'"method":{_known[method]},"host":{_known[host]},"path":{_escape(path)},"status":{status},'
                f'"route":{_known[route]},"outcome":{_known[outcome]},"user":{_known[user]},'
                f'"ms":{milliseconds:.2f},"bytes":{sent}{_VIA[via]}}}\n'
            )
        else:
            who = _escape(user or "-")[1:-1] + _VIA_SHORT[via]
            line = (
                f"{time.strftime('%H:%M:%S')} {status} {method} {_escape(host + path)[1:-1]} {milliseconds:.1f} ms {sent} B "
                f"route={route or '-'} {outcome} user={who} id={_escape(request_id)[1:-1]}\n"
            )
        if len(line) > _LONG_LINE and len(path) > _SHORT_PATH:
            path = path[:_SHORT_PATH]
            self._add(request_id, client, method, host, path, status, route, outcome, user, milliseconds, sent, via)
            return
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._later)

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self.lost += lines

    def _later(self) -> None:
        self._timer = None
        if self._taken():
            self._hand_over()
        else:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._later)

    def _taken(self, seconds: float = 0.0) -> bool:
        """Whether the last lines handed over have been taken; waits so long for it."""
        if self._writing is not None and self._writing.is_alive():
            self._writing.join(seconds)
            return not self._writing.is_alive()
        return True

    def _hand_over(self) -> None:
        """Give what is gathered to a thread."""
        lines, self._lines = self._lines, []
        lost, self._lost = self._lost, 0
        if lost and self._json:
            lines.append(f'{{"time":{time.time():.3f},"event":"lines_lost","lines":{lost}}}\n')
        elif lost:
            lines.append(f"{time.strftime('%H:%M:%S')} {lost} lines lost: they were not taken in time\n")
        # A daemon: a process that is told to stop does not wait for a reader that has stopped reading.
        self._writing = threading.Thread(target=self._write, args=("".join(lines),), name="access log", daemon=True)
        self._writing.start()

    def _write(self, text: str) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError) as error:
            # Nobody to tell, and no reason to stop serving. Whoever read a pipe is gone for good; a full disk may be emptied.
            self._lose(text.count("\n"))
            if not isinstance(error, OSError) or error.errno == errno.EPIPE:
                self._stream = None
