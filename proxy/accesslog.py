"""One line per request: who asked what, what became of it, how long it took. Fields in docs/logging.md.

The path is logged without its query, the user by `sub`; no token, cookie or other header ever gets here. What has ended is
noted, and put into words some dozens at a time: what the processor has at hand for the second line it would have to fetch
anew for each. A thread writes the lines together a few times per second: whoever reads them may stop reading, as a full pipe
to a log collector does, without stopping the gateway. What finds no room then is counted, and the count is written in its place.
"""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from proxy.request import Request
    from proxy.verdict import Verdict

_WORDS_KEPT: Final = 2048  # hosts, users, routes … kept as they are written
_NOTED: Final = 64  # requests that are put into words together
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

# What is noted of a request: when it ended (epoch seconds), its id, the client, method, host, path, status, route, outcome, user,
# how long it took (seconds), bytes of payload sent, how the user is known.
_Note = tuple[float, bytes, str, bytes, str, bytes, int, str, str, str, float, int, str]


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
        self._notes: list[_Note] = []
        self._lines: list[str] = []
        self._lost = 0  # since that was last written
        self.lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: threading.Thread | None = None

    def redirect(self, stream: Stream | None, form: Literal["json", "console"]) -> None:
        """Write to another stream from now on, or in another form; what is gathered goes there too."""
        self._word()
        self._stream = stream
        self._json = form == "json"

    def write(self, request: Request, seconds: float, sent: int, *, cut: bool = False) -> None:
        """Note a request that has just ended, after so many `seconds` and bytes of payload `sent`; `cut`: incompletely."""
        if self._stream is None:
            return
        route = outcome = user = ""
        via = "cookie"
        verdict = request.verdict
        if verdict is not None:
            outcome, session = verdict.reason, verdict.session
            if verdict.route is not None:
                route = verdict.route.name
            if session is not None:
                user, via = session.identity.sub, session.via
        if cut:
            outcome = "cut_short"
        head, origin = request.head, request.origin
        notes = self._notes
        notes.append(
            (
                time.time(),
                request.id,
                origin.client,
                head.method,
                origin.name,
                head.path,
                request.status,
                route,
                outcome,
                user,
                seconds,
                sent,
                via,
            )
        )
        if len(notes) >= _NOTED or self._timer is None:
            self._noted()

    def refused(self, peer: str, request_id: bytes, verdict: Verdict) -> None:
        """Note something that could not be read as a request."""
        if self._stream is not None:
            became = verdict.status, "", verdict.reason, "", 0.0, 0, "cookie"
            self._notes.append((time.time(), request_id, peer, b"-", "", b"", *became))
            self._noted()

    def flush(self) -> None:
        """Write what is gathered, as far as it is taken: for the end of the process."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._word()
        for _ in range(2):  # what has been gathered meanwhile, once; on a full disk something would be left for ever
            if self._taken(_LAST_SECONDS) and (self._lines or self._lost):
                self._hand_over()
        self._taken(_LAST_SECONDS)

    def _noted(self) -> None:
        if len(self._notes) >= _NOTED:
            self._word()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._later)

    def _word(self) -> None:
        """Put into words what is noted."""
        notes, self._notes = self._notes, []
        room = max(_GATHERED - len(self._lines), 0)
        if len(notes) > room:
            self._lose(len(notes) - room)
            del notes[room:]
        form = _in_json if self._json else _for_reading
        lines = form(notes)
        if max(map(len, lines), default=0) > _LONG_LINE:
            lines = form(
                [_shortened(note) if len(line) > _LONG_LINE else note for note, line in zip(notes, lines, strict=True)]
            )
        self._lines += lines

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self.lost += lines

    def _later(self) -> None:
        self._timer = None
        self._word()
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


def _in_json(notes: Iterable[_Note]) -> list[str]:
    lines = []
    for ended, request_id, client, method, host, path, status, route, outcome, user, seconds, sent, via in notes:
        lines.append(
            f'{{"time":{ended:.3f},"event":"request","id":{_escape(request_id.decode("latin-1"))},"client":{_known[client]},'
            f'"method":{_known[method.decode("ascii")]},"host":{_known[host]},'
            f'"path":{_escape(path[:_PATH_CHARACTERS].decode("latin-1"))},"status":{status},'
            f'"route":{_known[route]},"outcome":{_known[outcome]},"user":{_known[user]},'
            f'"ms":{seconds * 1000:.2f},"bytes":{sent}{_VIA[via]}}}\n'
        )
    return lines


def _for_reading(notes: Iterable[_Note]) -> list[str]:
    lines = []
    for ended, request_id, _, method, host, path, status, route, outcome, user, seconds, sent, via in notes:
        where = _escape(host + path[:_PATH_CHARACTERS].decode("latin-1"))[1:-1]
        who = _escape(user or "-")[1:-1] + _VIA_SHORT[via]
        lines.append(
            f"{time.strftime('%H:%M:%S', time.localtime(ended))} {status} {method.decode('ascii')} {where} "
            f"{seconds * 1000:.1f} ms {sent} B route={route or '-'} {outcome} user={who} "
            f"id={_escape(request_id.decode('latin-1'))[1:-1]}\n"
        )
    return lines


def _shortened(note: _Note) -> _Note:
    return (*note[:5], note[5][:_SHORT_PATH], *note[6:])
