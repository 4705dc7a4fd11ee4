"""`postern explain` says what the gate says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.errors import MalformedRequest
from proxy.explain import explain, explain_asking, preset_of
from proxy.settings import Settings, load
from proxy.verdict import Kind

TOML = """
public_url = "https://apps.example.com"
[logto]
endpoint = "https://auth.example.com"
app_id = "app"
app_secret = "secret"
[session.cookie]
domain = "example.com"
[[route]]
name = "wiki"
host = "wiki.example.com"
upstream = "http://127.0.0.1:1"
allow = [{ roles = ["staff"] }, { networks = ["10.0.0.0/8"], roles = ["guest"] }]
headers = { set = { X-Who = "{username} <{email}>" } }
[[route]]
name = "public"
upstream = "http://127.0.0.1:2"
allow = "everyone"
[[route]]
name = "private"
path = "/private"
upstream = "http://127.0.0.1:3"
"""
STAFF = {"sub": "u1", "username": "ann", "email": "ann@example.com", "email_verified": True, "roles": ["staff"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "postern.toml"
    file.write_text(TOML)
    return load(file, {})


@pytest.mark.parametrize(
    ("url", "claims", "client", "kind", "route"),
    [
        ("https://wiki.example.com/a", STAFF, "1.2.3.4", Kind.PASS, "wiki"),
        ("https://wiki.example.com/a", {"sub": "u2"}, "1.2.3.4", Kind.FORBIDDEN, "wiki"),
        ("https://wiki.example.com/a", {"sub": "u2", "roles": ["guest"]}, "10.1.1.1", Kind.PASS, "wiki"),
        ("https://wiki.example.com/a", {"sub": "u2", "roles": ["guest"]}, "1.2.3.4", Kind.FORBIDDEN, "wiki"),
        ("https://wiki.example.com/a", None, "1.2.3.4", Kind.SIGN_IN, "wiki"),
        ("https://apps.example.com/x?y", None, "1.2.3.4", Kind.PASS, "public"),
        ("https://apps.example.com/private/x", None, "1.2.3.4", Kind.SIGN_IN, "private"),
        ("https://apps.example.com/public/..%2fprivate", STAFF, "1.2.3.4", Kind.AMBIGUOUS, "public"),
        ("https://apps.example.com/.postern/me", STAFF, "1.2.3.4", Kind.OWN, None),
    ],
)
def test_the_verdict_is_the_gates(
    settings: Settings, url: str, claims: dict[str, object] | None, client: str, kind: Kind, route: str | None
) -> None:
    verdict = explain(settings, url, "GET", claims, client).verdict
    assert verdict.kind is kind
    assert (verdict.route.name if verdict.route is not None else None) == route


def test_the_head_is_what_the_app_would_get(settings: Settings) -> None:
    head = explain(settings, "https://wiki.example.com/a%2Fb?q=1", "DELETE", STAFF, "1.2.3.4").head
    assert head is not None
    lines = head.decode().split("\r\n")
    assert lines[0] == "DELETE /a%2Fb?q=1 HTTP/1.1"
    assert "Host: wiki.example.com" in lines
    assert "X-Forwarded-User: u1" in lines
    assert "X-Who: ann <ann@example.com>" in lines
    assert "X-Forwarded-For: 1.2.3.4" in lines
    assert "X-Postern-Assertion: (a signed token)" in lines, "a real one would make its reader that person for minutes"


def test_logtos_tokens_are_said_to_be_there_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    values = "X-Id = '{id_token}', X-Api = 'Bearer {access_token:https://api}', Authorization = '{access_token}'"
    file.write_text(f"{TOML}\nbearer = 'https://api'\nallow = 'everyone'\nheaders = {{ set = {{ {values} }} }}")
    settings = load(file, {})

    def told(claims: dict[str, object] | None) -> list[str]:
        head = explain(settings, "https://apps.example.com/private", "GET", claims).head
        assert head is not None
        return [line for line in head.decode().split("\r\n") if line.startswith(("X-Id", "X-Api", "Authorization"))]

    assert told(STAFF) == [
        "X-Id: (the ID token)",
        "X-Api: Bearer (an access token for https://api)",
        "Authorization: (the access token)",
    ]
    assert told(None) == []
    assert told({**STAFF, "client_id": "robot", "scope": ""}) == []


def test_without_guilds_discord_is_not_asked(settings: Settings) -> None:
    explanation = asyncio.run(explain_asking(settings, "https://wiki.example.com/a", "GET", STAFF))
    assert explanation.verdict.kind is Kind.PASS


@pytest.mark.parametrize(("auth_time", "kind"), [(0, Kind.SIGN_IN), (None, Kind.PASS), ("soon", Kind.PASS)])
def test_the_time_of_the_sign_in_is_among_the_claims(tmp_path: Path, auth_time: object, kind: Kind) -> None:
    file = tmp_path / "fresh.toml"
    file.write_text(TOML.replace('roles = ["staff"] }', 'roles = ["staff"], signed_in_within = "15m" }'))
    claims = {**STAFF, "auth_time": auth_time}
    assert explain(load(file, {}), "https://wiki.example.com/a", "GET", claims).verdict.kind is kind


def test_what_passes_nobody_shows_no_head(settings: Settings) -> None:
    assert explain(settings, "https://wiki.example.com/", "GET", None).head is None


@pytest.mark.parametrize("url", ["/relative", "wiki.example.com/x", "https://", ""])
def test_a_url_must_be_absolute(settings: Settings, url: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        explain(settings, url, "GET", None)


def test_claims_without_a_sub_are_nobody(settings: Settings) -> None:
    with pytest.raises(ValueError, match="sub"):
        explain(settings, "https://wiki.example.com/", "GET", {"name": "x"})


def test_what_the_relay_would_refuse_is_refused(settings: Settings) -> None:
    with pytest.raises(MalformedRequest):
        explain(settings, "https://wiki.example.com/a b", "GET", None)


PRESETS = """
[[route]]
name = "grafana"
path = "/grafana"
upstream = "http://127.0.0.1:4"
preset = "grafana"
open = ["health"]
headers = { set = { X-WEBAUTH-USER = "{email}" } }
[[route]]
name = "feeds"
path = "/feeds"
upstream = "http://127.0.0.1:5"
preset = "freshrss"
logout = []
[[route]]
name = "papers"
path = "/papers"
upstream = "http://127.0.0.1:6"
preset = "paperless-ngx"
"""
GRAFANA = (
    "grafana; sets X-WEBAUTH-NAME, X-WEBAUTH-EMAIL, X-WEBAUTH-GROUPS; leads on from /grafana/logout; "
    "opens /grafana/api/health"
)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/grafana/d", GRAFANA),
        ("/grafana/api/health", GRAFANA),
        ("/feeds/i/", "freshrss; sets Remote-User; takes off X-WebAuth-User; could open api"),
        (
            "/papers/x",
            "paperless-ngx; sets Remote-User; leads on from /papers/accounts/logout; bounds sessionid; could open api",
        ),
        ("/private", None),
    ],
)
def test_what_the_preset_has_brought(tmp_path: Path, path: str, told: str | None) -> None:
    file = tmp_path / "presets.toml"
    file.write_text(TOML + PRESETS)
    presets = load(file, {})
    route = explain(presets, "https://apps.example.com" + path, "GET", STAFF).verdict.route
    assert route is not None
    assert preset_of(presets, route) == told
