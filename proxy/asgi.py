"""One request answered by the gateway's own ASGI app: the bridge between a client's connection and Starlette.

Small answers only: the app makes pages, redirects and problem documents. Whatever has a body to relay goes by `exchange.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from proxy.bodies import chunk
from proxy.http1 import Fields, RequestHead
from proxy.verdict import Call, bad_request

if TYPE_CHECKING:
    from proxy.connection import ClientConnection

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

MAX_BODY: Final = 65536  # bytes of a form or token posted to the gateway itself
_log = logging.getLogger("postern")


class AsgiCall:
    """Runs the app for one request. `body`, `body_done`, `client_writable` and `cancel` are what the connection calls.

    A refusal wants no body, whatever its size: what of it comes before the answer is forgotten.
    """

    __slots__ = (
        "_arrived",
        "_bodiless",
        "_body",
        "_chunked",
        "_client",
        "_complete",
        "_delivered",
        "_drained",
        "_head",
        "_head_sent",
        "_request_id",
        "_status",
        "_wants_body",
        "body_in",
        "body_out",
        "started",
    )

    takes_body = True  # if only to forget it

    def __init__(self, client: ClientConnection, head: RequestHead, *, wants_body: bool) -> None:
        self._client: ClientConnection | None = client  # None once the client is gone, or has its answer
        self._head = head
        self._wants_body = wants_body
        self._body = bytearray()
        self._complete = head.length == 0 or not wants_body
        self._delivered = False  # the app has all of the body
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._head_sent: bytes | None = None
        self._chunked = False
        self._bodiless = head.method == b"HEAD"
        self._status = 0
        self._request_id = b""
        self.started = False
        self.body_in = 0
        self.body_out = 0

    def start(self, app: App, call: Call) -> asyncio.Task[None]:
        """Run `app` for this request; what it needs to know beyond ASGI is in `scope["postern"]`."""
        self._request_id = call.request_id.encode("latin-1")
        raw_path = self._head.path
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": f"1.{self._head.minor}",
            "method": self._head.method.decode("ascii"),
            "scheme": call.scheme,
            "path": unquote(raw_path.decode("latin-1")),
            "raw_path": raw_path,
            "query_string": self._head.query,
            "root_path": "",
            # With the authority of an absolute-form target in the place of Host (RFC 9112 3.2.2), as the gate saw it.
            "headers": [
                (lower, self._head.host if lower == b"host" else value)
                for lower, value in ((name.lower(), value) for name, value in self._head.fields)
            ],
            "client": (call.client, 0),
            "server": None,
            "state": {},
            "postern": call,
        }
        return asyncio.get_running_loop().create_task(self._run(app, scope))

    def body(self, data: bytes) -> None:
        """Payload of the request's body has come."""
        if not self._wants_body:
            return
        self.body_in += len(data)
        if self.body_in > MAX_BODY:
            if self._client is not None:
                self._client.spoiled(bad_request(413, "the request's body is larger than allowed"))
            return
        self._body += data
        self._arrived.set()

    def body_done(self, _trailers: Fields) -> None:
        """The request's body is complete."""
        self._complete = True
        self._arrived.set()

    def client_writable(self, writable: bool) -> None:
        """The client keeps up with the answer, or not."""
        if writable:
            self._drained.set()
        else:
            self._drained.clear()

    def cancel(self) -> None:
        """The client is gone. A sign-in or sign-out under way is finished all the same: its outcome matters to others."""
        self._client = None
        self._arrived.set()
        self._drained.set()

    async def _run(self, app: App, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:  # noqa: BLE001 -- the last line of defence: a bug answers 500, it does not kill the worker
            _log.exception("the gateway app failed")
        client, self._client = self._client, None
        if client is None:
            return  # it has its answer, or has not waited for one
        if self.started:
            client.cut_short()
        else:
            client.fail()

    async def _receive(self) -> Message:
        if self._head.expect_continue and not self._complete and self._client is not None:
            self._head.expect_continue = False
            self._client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._client is not None and (self._delivered or not (self._body or self._complete)):
            self._arrived.clear()
            if not self._delivered:
                self._client.await_body()
            await self._arrived.wait()
        if self._client is None:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        self._delivered = self._complete
        return {"type": "http.request", "body": body, "more_body": not self._complete}

    async def _send(self, message: Message) -> None:
        client = self._client
        if client is None:
            return
        if message["type"] == "http.response.start":
            self._start_response(client, message)
            return
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if self._head_sent is None:
            raise RuntimeError("a body was sent before its head")
        self.started = True
        head, self._head_sent = self._head_sent, b""
        if head:
            client.respond(self._status, head)
        if body and not self._bodiless:
            self.body_out += len(body)
            client.write(chunk(body) if self._chunked else body)
        if not self._drained.is_set():
            await self._drained.wait()
        if not more and self._client is not None:
            if self._chunked and not self._bodiless:
                client.write(b"0\r\n\r\n")
            self._client = None
            self._arrived.set()
            client.finished()

    def _start_response(self, client: ClientConnection, message: Message) -> None:
        status: int = message["status"]
        fields: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
        names = {name.lower() for name, _ in fields}
        self._bodiless = self._bodiless or status in (204, 304)
        self._chunked = b"content-length" not in names and self._head.minor == 1 and status not in (204, 304)
        if (b"content-length" not in names and not self._chunked and not self._bodiless) or not client.request_read:
            client.keep_alive = False
        if self._chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        if b"date" not in names:
            fields.append((b"date", client.date))
        if b"x-request-id" not in names:
            fields.append((b"x-request-id", self._request_id))
        connection = client.persistence(self._head.minor)
        if connection:
            fields.append((b"connection", connection))
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        if not len(fields) == lines.count(b"\r") == lines.count(b"\n") or b"\0" in lines:
            raise RuntimeError("a header field with a line break in it")
        self._status = status
        self._head_sent = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _reason(status), lines)


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
