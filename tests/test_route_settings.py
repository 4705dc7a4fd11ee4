"""A route's settings: what it takes, who may pass, what the app is told."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.header_settings import HeaderSettings
from proxy.route_settings import RouteSettings, RuleSettings


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
