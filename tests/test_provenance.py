"""Whose wish a POST is: every combination of what browsers say of it."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from proxy.provenance import from_own_page
from proxy.verdict import OWN, Call

PUBLIC = "https://apps.example.com"


def request(scheme: str = "https", host: str = "apps.example.com", **fields: str) -> Request:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    call = Call(OWN, "request-1", "192.0.2.1", scheme, host, f"{scheme}://{host}/")
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "postern": call})


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        (request(sec_fetch_site="same-origin"), True),
        (request(sec_fetch_site="none"), True),
        (request(sec_fetch_site="same-site"), False),
        (request(sec_fetch_site="cross-site"), False),
        (request(sec_fetch_site=""), False),
        (request(sec_fetch_site="cross-site", origin=PUBLIC), False),
        (request(sec_fetch_site="same-origin", origin="https://evil.example"), True),  # no page can set the former
        (request(origin=PUBLIC), True),
        (request(origin="HTTPS://APPS.example.com"), True),
        (request(origin="http://apps.example.com"), False),
        (request(origin="https://apps.example.com:8443"), False),
        (request(origin="https://other.example.com", host="other.example.com"), True),
        (request(origin="https://other.example.com"), False),
        (request(origin="null"), False),
        (request(origin=""), False),
        (request(), False),
    ],
)
def test_only_a_page_of_ours_or_the_person(asked: Request, ours: bool) -> None:
    assert from_own_page(asked, PUBLIC) is ours
