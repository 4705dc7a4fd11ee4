"""A route's settings: what it takes, who may pass, what the app is told."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.route_settings import HeaderSettings, RouteSettings, RuleSettings, fold_header


def route(**more: Any) -> RouteSettings:
    return RouteSettings.model_validate({"name": "app", "upstream": "http://app:8080", **more})


def refused(**more: Any) -> list[tuple[int | str, ...]]:
    with pytest.raises(ValidationError) as caught:
        route(**more)
    return [error["loc"] for error in caught.value.errors()]


def test_a_route_as_short_as_can_be() -> None:
    short = route()
    assert (short.name, short.host, short.path, short.upstream) == ("app", None, "/", ("http://app:8080",))
    assert (short.allow, short.deny, short.headers) == ("signed-in", (), HeaderSettings())


def test_a_route_with_everything() -> None:
    full = route(
        host="*.Example.com",
        path="/Admin/",
        upstream=["https://a", "unix:/b.sock"],
        allow=[
            {
                "users": ["u"],
                "usernames": ["n"],
                "emails": ["a@b.c"],
                "email_domains": ["B.c"],
                "roles": ["r"],
                "organizations": ["o"],
                "organization_roles": ["o:r s"],
                "claims": {"a.b": 1, "c": ["x", True]},
                "networks": ["10.0.0.0/8"],
                "methods": ["get"],
            }
        ],
        deny=[{"users": ["v"]}],
        headers={"set": {"X-Team": "{claims.team}"}, "remove": ["X-Debug"]},
    )
    assert (full.host, full.path, full.upstream) == ("*.example.com", "/Admin", ("https://a", "unix:/b.sock"))
    assert not isinstance(full.allow, str)
    (rule,) = full.allow
    assert rule.email_domains == ("b.c",)
    assert rule.claims == {"a.b": 1, "c": ("x", True)}
    assert rule.networks == (ip_network("10.0.0.0/8"),)
    assert rule.methods == ("GET",)
    assert full.deny == (RuleSettings(users=("v",)),)
    assert full.headers.set == {"X-Team": "{claims.team}"}


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


@pytest.mark.parametrize("given", [{}, {"users": None}])
def test_a_rule_that_would_match_everybody_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="empty rule"):
        RuleSettings.model_validate(given)


@pytest.mark.parametrize("key", sorted(RuleSettings.model_fields))
def test_a_criterion_without_values_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        RuleSettings.model_validate({key: {} if key == "claims" else []})
    with pytest.raises(ValidationError):
        RuleSettings.model_validate({key: [""]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, {}, [], [[]], ["a", {}], [None]])
def test_a_claim_is_compared_with_plain_values_only(value: Any) -> None:
    with pytest.raises(ValidationError):
        RuleSettings.model_validate({"claims": {"team": value}})


@pytest.mark.parametrize("path", ["email", "phone_number", "", " "])
def test_a_claim_that_nobody_verified_decides_nothing(path: str) -> None:
    with pytest.raises(ValidationError):
        RuleSettings.model_validate({"claims": {path: "x"}})


@pytest.mark.parametrize(
    ("given", "speaks"),
    [
        ({}, False),
        ({"allow": [{"roles": ["a"]}]}, False),
        ({"organization": "acme00000001"}, True),
        ({"allow": [{"roles": ["a"]}, {"organizations": ["acme"]}]}, True),
        ({"allow": [{"organization_roles": ["acme:admin"]}]}, True),
        ({"deny": [{"organizations": ["acme"]}]}, True),
        ({"headers": {"set": {"X-Tenants": "{organizations}"}}}, True),
        ({"headers": {"set": {"X-Tenants": "{roles}"}}}, False),
        ({"allow": "everyone", "organization": ""}, False),
    ],
)
def test_routes_that_speak_of_organizations(given: dict[str, Any], speaks: bool) -> None:
    route = RouteSettings.model_validate({"name": "r", "upstream": "http://a:1", **given})
    assert route.speaks_of_organizations is speaks


@pytest.mark.parametrize(
    "given", [{"allow": "everyone", "organization": "acme"}, {"organization": "a b"}, {"organization": "acme:admin"}]
)
def test_an_organization_that_cannot_be_meant(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RouteSettings.model_validate({"name": "r", "upstream": "http://a:1", **given})
