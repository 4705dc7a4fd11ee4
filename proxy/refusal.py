"""Answers the relay gives by itself: to bytes that are no request, before there is anything to hand to the gateway app."""

from __future__ import annotations

import json
from http import HTTPStatus

from proxy.verdict import Verdict

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def refusal(verdict: Verdict, date: bytes, request_id: bytes) -> bytes:
    """The whole response for `verdict`, as problem+json (RFC 9457); the connection is closed after it."""
    try:
        title = HTTPStatus(verdict.status).phrase
    except ValueError:
        title = "Error"
    problem = {
        "type": "about:blank",
        "title": title,
        "status": verdict.status,
        "detail": verdict.detail,
        "reason": verdict.reason,
        "request_id": request_id.decode("latin-1"),
    }
    body = json.dumps(problem).encode()
    extra = b""
    if verdict.status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra = b"Retry-After: 5\r\n"
    elif verdict.status == HTTPStatus.METHOD_NOT_ALLOWED:
        extra = b"Allow: %b\r\n" % METHODS  # RFC 9110 15.5.6
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"
        b"Date: %b\r\nX-Request-Id: %b\r\n%bConnection: close\r\n\r\n%b"
        % (verdict.status, title.encode(), len(body), date, request_id, extra, body)
    )


def options_answer(date: bytes, request_id: bytes, connection: bytes) -> bytes:
    """The response to an OPTIONS request that ends here: `*` asks about the server as a whole (RFC 9110 9.3.7).

    `connection` is the value of the Connection field, or empty.
    """
    return (
        b"HTTP/1.1 204 No Content\r\nAllow: %b\r\nCache-Control: no-store\r\nDate: %b\r\nX-Request-Id: %b\r\n%b\r\n"
        % (
            METHODS,
            date,
            request_id,
            b"Connection: %b\r\n" % connection if connection else b"",
        )
    )
