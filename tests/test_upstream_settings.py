"""The settings of a route about the servers behind it: what is read, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.routes import RouteTable
from proxy.settings import RouteSettings, Settings, SettingsError, load, schema
from proxy.upstream_settings import HealthSettings, Server, UpstreamTls

ROUTE = 'name = "app"\nupstream = "https://app.internal"\n'
ENVIRONMENT = {
    "POSTERN_PUBLIC_URL": "https://apps.example.com",
    "LOGTO_ENDPOINT": "https://auth.example.com",
    "LOGTO_APP_ID": "app",
    "LOGTO_APP_SECRET": "secret",
}


def loaded(folder: Path, route: str, environ: dict[str, str] | None = None) -> Settings:
    file = folder / "postern.toml"
    file.write_text(f"[[route]]\n{route}", "utf-8")
    return load(file, ENVIRONMENT | (environ or {}))


def route_of(folder: Path, route: str, environ: dict[str, str] | None = None) -> RouteSettings:
    return loaded(folder, ROUTE + route, environ).route[0]


def problem(folder: Path, route: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(folder, route)
    assert len(caught.value.problems) == 1, str(caught.value)
    return str(caught.value)


def test_nothing_has_to_be_said(tmp_path: Path) -> None:
    route = route_of(tmp_path, "")
    assert (route.strip_prefix, route.add_prefix, route.preserve_host, route.max_connections) == ("", "", True, 0)
    assert route.servers == (Server("https://app.internal"),)
    assert RouteTable.from_settings(loaded(tmp_path, ROUTE)).routes[0].mapping is None


def test_all_that_can_be_said(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        """
        name = "app"
        path = "/apps/wiki"
        upstream = ["https://a.internal:8443", "http://b:8080", "unix:/run/c.sock"]
        strip_prefix = "/apps/wiki/"
        add_prefix = "/mediawiki"
        preserve_host = false
        max_connections = 20
        tls = { ca = "/ca.pem", client_cert = "/c.pem", client_key = "/c.key", server_name = "app.internal" }
        health = { path = "/healthz?full=1", host = "app.example.com:8080", interval = "1m", timeout = "500ms", status = 204 }
        """,
    )
    route = RouteTable.from_settings(settings).routes[0]
    tls = UpstreamTls.model_validate(
        {"ca": "/ca.pem", "client_cert": "/c.pem", "client_key": "/c.key", "server_name": "app.internal"}
    )
    health = HealthSettings.model_validate(
        {"path": "/healthz?full=1", "host": "app.example.com:8080", "interval": 60, "timeout": 0.5, "status": 204}
    )
    urls = ("https://a.internal:8443", "http://b:8080", "unix:/run/c.sock")
    assert route.servers == tuple(Server(url, tls, health, 20) for url in urls)
    assert route.mapping is not None
    assert (route.mapping.strip, route.mapping.add, route.preserve_host) == ("/apps/wiki", "/mediawiki", False)


def test_a_prefix_that_is_none(tmp_path: Path) -> None:
    settings = loaded(tmp_path, ROUTE + 'strip_prefix = "/"\nadd_prefix = ""\n')
    assert RouteTable.from_settings(settings).routes[0].mapping is None


def test_the_environment_says_it_too(tmp_path: Path) -> None:
    route = route_of(
        tmp_path,
        "",
        {
            "POSTERN_ROUTE__0__PRESERVE_HOST": "FALSE",
            "POSTERN_ROUTE__0__TLS__INSECURE_SKIP_VERIFY": "true",
            "POSTERN_ROUTE__0__TLS__CA": "",
            "POSTERN_ROUTE__0__HEALTH__PATH": "/up",
            "POSTERN_ROUTE__0__HEALTH__STATUS": "200-299",
            "POSTERN_ROUTE__0__MAX_CONNECTIONS": "5",
        },
    )
    assert route.preserve_host is False
    assert route.tls == UpstreamTls(insecure_skip_verify=True)
    assert route.health is not None
    assert (route.health.path, route.health.status) == ("/up", (200, 299))
    assert route.max_connections == 5


def test_servers_that_are_used_alike_are_equal(tmp_path: Path) -> None:
    table = 'tls = { ca = "/ca.pem" }\nhealth = { path = "/" }\n'
    first, second = route_of(tmp_path, table), route_of(tmp_path, table)
    assert len({*first.servers, *second.servers}) == 1
    assert first.servers != route_of(tmp_path, "").servers


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (
            ROUTE + "tls = { client_cert = '/c.pem' }",
            "route[0].tls.client_key: is missing; accepted: both of client_cert and client_key, or neither",
        ),
        (
            ROUTE + "tls = { client_key = '/c.pem' }",
            "route[0].tls.client_key: has no client_cert; accepted: both of client_cert and client_key, or neither",
        ),
        (
            ROUTE + "tls = { ca = '/ca.pem', insecure_skip_verify = true }",
            "route[0].tls.insecure_skip_verify: is on, and so nothing would be checked against ca; accepted: one of the two",
        ),
        (
            ROUTE + "tls = { insecure_skip_verify = 1 }",
            "route[0].tls.insecure_skip_verify: is a number; accepted: true or false",
        ),
        (
            ROUTE + "tls = { insecure_skip_verify = 'yes' }",
            "route[0].tls.insecure_skip_verify: is a string; accepted: true or false",
        ),
        (
            ROUTE + "tls = { verify = false }",
            "route[0].tls.verify: is not a known key; accepted: ca, client_cert, client_key, insecure_skip_verify, server_name",
        ),
        (
            ROUTE + "tls = { server_name = 'https://app' }",
            ('route[0].tls.server_name: "https://app" is not a host name or address; accepted: a name such as "app.internal", '
            "or an address"),
        ),
        (
            "name = 'a'\nupstream = 'http://app'\ntls = { ca = '/ca.pem' }",
            "route[0].tls: is given, but no upstream is https; accepted: an https upstream, or no tls",
        ),
        (
            ROUTE + "health = { }",
            'route[0].health.path: is missing; accepted: a path such as "/healthz", with its query where it has one',
        ),
        (
            ROUTE + "health = { path = 'up' }",
            'route[0].health.path: "up" is not a path; accepted: a path such as "/healthz", with its query where it has one',
        ),
        (
            ROUTE + "health = { path = '/', status = '200-' }",
            ('route[0].health.status: "200-" is neither a status nor a range of them; accepted: a status such as "204", '
            'or a range such as "200-399"'),
        ),
        (
            ROUTE + "health = { path = '/', status = '399-200' }",
            ('route[0].health.status: "399-200" holds no final status; accepted: a status such as "204", or a range such as '
            '"200-399"'),
        ),
        (
            ROUTE + "health = { path = '/', status = 100 }",
            'route[0].health.status: "100" holds no final status; accepted: a status such as "204", or a range such as "200-399"',
        ),
        (
            ROUTE + "health = { path = '/', status = true }",
            'route[0].health.status: is true or false; accepted: a status such as "204", or a range such as "200-399"',
        ),
        (
            ROUTE + "path = '/wiki'\nstrip_prefix = '/wik'",
            'route[0].strip_prefix: "/wik" is not how path begins; accepted: path, or whole segments of its beginning',
        ),
        (
            ROUTE + "strip_prefix = '/wiki'",
            'route[0].strip_prefix: "/wiki" is not how path begins; accepted: path, or whole segments of its beginning',
        ),
        (
            ROUTE + "add_prefix = '/a/../b'",
            ('route[0].add_prefix: "/a/../b" is not a plain path; accepted: a path such as "/app": plain characters, whole '
            "segments"),
        ),
        (
            ROUTE + "add_prefix = 'b'",
            'route[0].add_prefix: "b" is not a plain path; accepted: a path such as "/app": plain characters, whole segments',
        ),
        (
            ROUTE + "add_prefix = 1",
            'route[0].add_prefix: is a number; accepted: a path such as "/app": plain characters, whole segments',
        ),
        (
            ROUTE + "max_connections = -1",
            "route[0].max_connections: -1 is out of range; accepted: a whole number from 0 to 1000000",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_exactly(tmp_path: Path, route: str, says: str) -> None:
    assert problem(tmp_path, route) == says


def test_what_is_wrong_elsewhere_is_told_beside_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, "name = 'a'\nupstream = 'ftp://x'\npath = 'x'\nstrip_prefix = '/y'\ntls = { ca = 1 }")
    assert [one.key for one in caught.value.problems] == ["route[0].path", "route[0].upstream", "route[0].tls.ca"]


def test_whoever_believes_any_certificate_is_told_so_at_every_start(tmp_path: Path) -> None:
    quiet, loud = (loaded(tmp_path, ROUTE + extra).warnings for extra in ("", "tls = { insecure_skip_verify = true }"))
    (warning,) = set(loud) - set(quiet)
    assert warning.startswith(
        "route[0].tls.insecure_skip_verify is on: whoever is on the way to the app of route app can"
    )


def test_editors_learn_of_it() -> None:
    definitions: dict[str, Any] = schema()["$defs"]
    assert definitions["UpstreamTls"]["properties"]["insecure_skip_verify"]["type"] == "boolean"
    assert definitions["HealthSettings"]["required"] == ["path"]
