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
    from proxy.gate import Verdict
    from proxy.request import Request

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

    def write(self, request: Request, *, cut: bool = False) -> None:
        """Add the line of a request that has just ended; `cut` when its answer is incomplete."""
        if self._stream is None:
            return
        verdict = request.verdict
        session = verdict.session if verdict is not None else None
        route = verdict.route.name if verdict is not None and verdict.route is not None else ""
        outcome = "cut_short" if cut else verdict.reason if verdict is not None else ""
        self._add(
            request.id.decode("latin-1"),
            request.origin.client,
            request.head.method.decode("ascii"),
            request.head.host.decode("latin-1"),
            request.head.path.decode("latin-1"),
            request.status,
            route,
            outcome,
            session.identity.sub if session is not None else "",
            request.seconds * 1000,
            request.body_out,
        )

    def refused(self, peer: str, request_id: bytes, verdict: Verdict) -> None:
        """Add the line of something that could not be read as a request."""
        if self._stream is not None:
            self._add(request_id.decode("latin-1"), peer, "-", "", "", verdict.status, "", verdict.reason, "", 0.0, 0)

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
    ) -> None:
        if self._json:
            line = (
                f'{{"time":{time.time():.3f},"event":"request","id":{_escape(request_id)},"client":{_escape(client)},'
                f'"method":{_escape(method)},"host":{_escape(host)},"path":{_escape(path)},"status":{status},'
                f'"route":{_escape(route)},"outcome":{_escape(outcome)},"user":{_escape(user)},'
                f'"ms":{milliseconds:.2f},"bytes":{sent}}}\n'
            )
        else:
            line = (
                f"{time.strftime('%H:%M:%S')} {status} {method} {_escape(host + path)[1:-1]} {milliseconds:.1f} ms {sent} B "
                f"route={route or '-'} {outcome} user={_escape(user or '-')[1:-1]} id={_escape(request_id)[1:-1]}\n"
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
