"""One line per request: who asked what, what became of it, how long it took. Fields in docs/logging.md.

The path is logged without its query, the user by `sub`; no token, cookie or other header ever gets here. Lines are gathered and
written together a few times per second: the relay's hot path pays for formatting, not for a system call.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Final, Literal, TextIO

if TYPE_CHECKING:
    from proxy.asgi import AsgiCall
    from proxy.connection import ClientConnection
    from proxy.exchange import Exchange

_FLUSH_SECONDS: Final = 0.2
_escape: Final = (
    json.encoder.encode_basestring_ascii
)  # what json.dumps itself uses for strings: quotes, controls, non-ASCII


class AccessLog:
    """Writes access lines to `stream` as JSON or for reading on a console; `stream` None writes nothing."""

    def __init__(self, stream: TextIO | None, form: Literal["json", "console"]) -> None:
        self._stream = stream
        self._json = form == "json"
        self._lines: list[str] = []
        self._flusher: asyncio.TimerHandle | None = None

    def write(self, connection: ClientConnection, work: Exchange | AsgiCall | None, *, cut: bool = False) -> None:
        """Add the line of the request that `connection` has just ended; `cut` when its answer is incomplete."""
        if self._stream is None:
            return
        head, verdict = connection.head, connection.verdict
        method = head.method.decode("ascii") if head is not None else "-"
        path = head.path.decode("latin-1") if head is not None else "-"
        host = head.host.decode("latin-1") if head is not None else "-"
        session = verdict.session if verdict is not None else None
        route = verdict.route.name if verdict is not None and verdict.route is not None else ""
        outcome = "cut_short" if cut else verdict.reason if verdict is not None else ""
        milliseconds = connection.seconds * 1000
        sent = work.body_out if work is not None else 0
        request_id = connection.request_id.decode("latin-1")
        if self._json:
            line = (
                f'{{"time":{time.time():.3f},"event":"request","id":{_escape(request_id)},"client":{_escape(connection.client)},'
                f'"method":{_escape(method)},"host":{_escape(host)},"path":{_escape(path)},"status":{connection.status},'
                f'"route":{_escape(route)},"outcome":{_escape(outcome)},"user":{_escape(session.identity.sub if session else "")},'
                f'"ms":{milliseconds:.2f},"bytes":{sent}}}\n'
            )
        else:
            user = session.identity.sub if session else "-"
            line = (
                f"{time.strftime('%H:%M:%S')} {connection.status} {method} {_escape(host + path)[1:-1]} "
                f"{milliseconds:.1f} ms {sent} B route={route or '-'} {outcome} user={_escape(user)[1:-1]} id={request_id}\n"
            )
        self._lines.append(line)
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what is gathered."""
        self._flusher = None
        lines, self._lines = self._lines, []
        if lines and self._stream is not None:
            self._stream.write("".join(lines))
            self._stream.flush()
