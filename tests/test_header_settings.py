"""Header fields in the settings: which names may be touched, and which values may be written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from proxy.header_settings import ResponseSettings, fold_header
from proxy.route_settings import RouteSettings


def route(**more: Any) -> RouteSettings:
    return RouteSettings.model_validate({"name": "app", "upstream": "http://app:8080", **more})


def refused(**more: Any) -> list[tuple[int | str, ...]]:
    with pytest.raises(ValidationError) as caught:
        route(**more)
    return [error["loc"] for error in caught.value.errors()]


@pytest.mark.parametrize(
    "name",
    [
        "Host", "HOST", "Content-Length", "content_length", "Transfer-Encoding", "Connection", "Keep-Alive", "Proxy-Connection",
        "TE", "Trailer", "Upgrade", "Expect", "X-Forwarded-For", "x_forwarded_for", "X-Forwarded-Host", "X-Forwarded-Proto",
        "Forwarded", "X-Request-Id", "X-Postern-Assertion", "x-postern-anything", "", "X A", "X:A", "X\nA", "Ä",
    ],
)  # fmt: skip
def test_headers_that_frame_or_say_where_from_cannot_be_touched(name: str) -> None:
    assert refused(headers={"set": {name: "x"}}) == [("headers", "set", name, "[key]")]
    assert refused(headers={"remove": [name]}) == [("headers", "remove", 0)]


@pytest.mark.parametrize(
    "name", ["Authorization", "X-Forwarded-User", "Remote-User", "X-WEBAUTH-USER", "X_Team", "Cookie"]
)
def test_headers_that_tell_who_somebody_is_can_be_set(name: str) -> None:
    assert route(headers={"set": {name: "{sub}"}}).headers.set == {name: "{sub}"}


@pytest.mark.parametrize("template", ["", " ", " x", "x ", "a\nb", "a\r\nX-Evil: b", "a\0b", "a\x7f", "{sub", "{nope}"])
def test_templates_that_could_break_a_header_are_refused(template: str) -> None:
    assert refused(headers={"set": {"X-A": template}}) == [("headers", "set", "X-A")]


@pytest.mark.parametrize(("name", "folded"), [("X-Team", "x-team"), ("x_team", "x-team"), ("X__A", "x--a"), ("A", "a")])
def test_folding(name: str, folded: str) -> None:
    assert fold_header(name) == folded


def test_a_header_twice_in_another_spelling_is_refused() -> None:
    assert refused(headers={"set": {"X-Team": "a", "x_team": "b"}}) == [("headers", "set")]
    with pytest.raises(ValidationError, match="twice"):
        ResponseSettings.model_validate({"set": {"X-A": "a", "x-a": "b"}})
