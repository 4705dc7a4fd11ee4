"""Answers that the relay gives by itself."""

from __future__ import annotations

import json

import pytest

from proxy.http1 import read_response
from proxy.refusal import METHODS, options_answer, refusal
from proxy.verdict import Kind, Verdict, bad_request


@pytest.mark.parametrize(
    ("verdict", "title", "extra"),
    [
        (bad_request(400, "a header field is malformed"), "Bad Request", None),
        (bad_request(405, "TRACE is not served here"), "Method Not Allowed", (b"allow", METHODS)),
        (bad_request(408, "too slow"), "Request Timeout", None),
        (bad_request(431, "too large"), "Request Header Fields Too Large", None),
        (bad_request(505, "only HTTP/1.1"), "HTTP Version Not Supported", None),
        (Verdict(Kind.OVERLOADED, status=503, detail="too many connections"), "Service Unavailable", (b"retry-after", b"5")),
        (bad_request(599, "no such status"), "Error", None),
    ],
)  # fmt: skip
def test_a_refusal_is_a_whole_response(verdict: Verdict, title: str, extra: tuple[bytes, bytes] | None) -> None:
    raw = refusal(verdict, b"now", b"id-1")
    found = read_response(raw, b"GET")
    assert found is not None
    head, used = found
    assert (head.status, head.reason.decode()) == (verdict.status, title)
    assert head.length == len(raw) - used
    assert not head.keep_alive
    assert head.values[b"content-type"] == b"application/problem+json"
    assert head.values[b"cache-control"] == b"no-store"
    assert (head.values[b"date"], head.values[b"x-request-id"]) == (b"now", b"id-1")
    assert extra is None or head.values[extra[0]] == extra[1]
    assert json.loads(raw[used:]) == {
        "type": "about:blank",
        "title": title,
        "status": verdict.status,
        "detail": verdict.detail,
        "reason": verdict.reason,
        "request_id": "id-1",
    }


@pytest.mark.parametrize("connection", [b"", b"close", b"keep-alive"])
def test_options(connection: bytes) -> None:
    found = read_response(options_answer(b"now", b"id-1", connection), b"OPTIONS")
    assert found is not None
    head, _ = found
    assert (head.status, head.length) == (204, 0)
    assert head.values[b"allow"] == METHODS
    assert head.values.get(b"connection", b"") == connection
    assert b"content-length" not in head.values
