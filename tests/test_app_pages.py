"""Apps set up by the lines of their pages in docs/apps: whom each takes the sender of a request for that Postern let through.

Each is what the app's documentation says it does with its settings, and the settings are the page's: a page that names another
header than the preset sets, or leaves out the list of proxies to believe, fails here.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.presets import PRESETS
from tests.loops import run
from tests.relay_world import relay_world

ROOT = Path(__file__).resolve().parent.parent
APPS = ROOT / "docs" / "apps"
GATEWAY, ELSEWHERE = "172.20.0.5", "203.0.113.9"
SETTINGS = """
public_url = "http://localhost:3000"
[logto]
endpoint = "http://127.0.0.1:9"
app_id = "a"
app_secret = "s"
"""
NAVIGATION = ("Sec-Fetch-Mode: navigate", "Accept: text/html")
ADA = {"username": "ada", "name": "Zoë Ⅳ", "email": "ada@example.com", "roles": ("dev", "ops")}
FROM_DISCORD = {"sub": "k3sx9d8w2q1a"}

Fields = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody, as an app knows them."""

    user: str
    email: str = ""
    name: str = ""
    groups: tuple[str, ...] = ()
    role: str = ""


def block(page: str, language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", (APPS / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, page
    return found[1]


def value(fields: Fields, name: str) -> str:
    """A field as Go and Java have it: the first of the name, in any case."""
    return next((text for known, text in fields if known.lower() == name.lower()), "")


def cgi(fields: Fields, name: str) -> str:
    """A field as WSGI has it: `-` and `_` are one, and the last counts (RFC 3875 4.1.18)."""
    found = [text for known, text in fields if "HTTP_" + known.upper().replace("-", "_") == name]
    return found[-1] if found else ""


def among(peer: str, networks: str) -> bool:
    return any(ip_address(peer) in ip_network(network.strip()) for network in networks.split(","))


def grafana(fields: Fields, peer: str) -> Account | None:
    """https://grafana.com/docs/grafana/latest/setup-grafana/configure-access/configure-authentication/auth-proxy/"""
    environ = yaml.safe_load(block("grafana.md", "yaml"))
    accepted = environ.get("GF_AUTH_PROXY_WHITELIST", "")
    if environ["GF_AUTH_PROXY_ENABLED"] != "true" or (accepted and not among(peer, accepted)):
        return None
    more = dict(pair.split(":") for pair in environ["GF_AUTH_PROXY_HEADERS"].split())
    told = {key: value(fields, more.get(key, "")) for key in ("Name", "Email", "Role", "Groups")}
    user = value(fields, environ["GF_AUTH_PROXY_HEADER_NAME"])
    groups = tuple(filter(None, told["Groups"].split(",")))
    role = value(fields, "X-WEBAUTH-ROLE")  # for whoever has followed the page's advice on roles
    return Account(user, told["Email"], told["Name"], groups, role) if user else None


def gitea(fields: Fields, peer: str) -> Account | None:
    """https://docs.gitea.com/usage/authentication#reverse-proxy, and the same for Forgejo."""
    ini = configparser.ConfigParser()
    ini.read_string(block("gitea.md", "ini"))
    service, security = ini["service"], ini["security"]
    trusted = security.get("REVERSE_PROXY_TRUSTED_PROXIES", "127.0.0.0/8,::1/128")
    if not service.getboolean("ENABLE_REVERSE_PROXY_AUTHENTICATION") or not among(peer, trusted):
        return None
    user = value(fields, security["REVERSE_PROXY_AUTHENTICATION_USER"])
    emails, names = (
        service.getboolean("ENABLE_REVERSE_PROXY_EMAIL"),
        service.getboolean("ENABLE_REVERSE_PROXY_FULL_NAME"),
    )
    email = value(fields, security["REVERSE_PROXY_AUTHENTICATION_EMAIL"]) if emails else ""
    name = value(fields, security["REVERSE_PROXY_AUTHENTICATION_FULL_NAME"]) if names else ""
    return Account(user, email, name) if user else None


def jenkins(fields: Fields, _peer: str) -> Account | None:
    """https://plugins.jenkins.io/reverse-proxy-auth-plugin/"""
    rows = dict(
        re.findall(
            r"^\| ((?:Header|Custom) [\w ]+) \| `([^`]+)` \|", (APPS / "jenkins.md").read_text("utf-8"), re.MULTILINE
        )
    )
    user = value(fields, rows["Header User Name"])
    groups = value(fields, rows["Header Groups Name"])
    mail, name = value(fields, rows["Header User Mail"]), value(fields, rows["Header User Display Name"])
    return (
        Account(user, mail, name, tuple(filter(None, groups.split(rows["Header Groups Delimiter"])))) if user else None
    )


def miniflux(fields: Fields, peer: str) -> Account | None:
    """https://miniflux.app/docs/configuration.html; it does not start with the header and without the networks."""
    environ = yaml.safe_load(block("miniflux.md", "yaml"))
    user = value(fields, environ["AUTH_PROXY_HEADER"]) if among(peer, environ["TRUSTED_REVERSE_PROXY_NETWORKS"]) else ""
    return Account(user) if user else None


def paperless(fields: Fields, _peer: str) -> Account | None:
    """https://docs.paperless-ngx.com/configuration/#hosting-and-security"""
    environ = yaml.safe_load(block("paperless-ngx.md", "yaml"))
    user = cgi(fields, environ["PAPERLESS_HTTP_REMOTE_USER_HEADER_NAME"])
    return Account(user) if user and environ["PAPERLESS_ENABLE_HTTP_REMOTE_USER"] == "true" else None


App = Callable[[Fields, str], Account | None]
BELIEVERS: dict[str, tuple[str, App, Account]] = {
    "grafana": ("grafana.md", grafana, Account("ada", "ada@example.com", "Zoë Ⅳ", ("dev", "ops"))),
    "gitea": ("gitea.md", gitea, Account("ada", "ada@example.com", "Zoë Ⅳ")),
    "forgejo": ("gitea.md", gitea, Account("ada", "ada@example.com", "Zoë Ⅳ")),
    "jenkins": ("jenkins.md", jenkins, Account("ada", "ada@example.com", "Zoë Ⅳ", ("dev", "ops"))),
    "miniflux": ("miniflux.md", miniflux, Account("ada")),
    "paperless-ngx": ("paperless-ngx.md", paperless, Account("ada")),
}
FORGED = sorted(
    {header for preset in PRESETS.values() for header in preset.headers}
    | {"X-WEBAUTH-ROLE", "HTTP-Remote-User", "REMOTE_USER"}
)


def settings_for(preset: str) -> str:
    """The route of the page, here and before the stand-in, with all opened that the preset knows of."""
    toml = block(BELIEVERS[preset][0], "toml")
    toml = re.sub(r"^(host|open) = .*\n", "", toml, flags=re.MULTILINE)
    toml = re.sub(r"^upstream = .*$", 'upstream = "UPSTREAM"', toml, flags=re.MULTILINE)
    words = ", ".join(f'"{word}"' for word in PRESETS[preset].open)
    return SETTINGS + re.sub(r"^preset = .*$", f'preset = "{preset}"\nopen = [{words}]', toml, flags=re.MULTILINE)


def request(path: str, *fields: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "Host: localhost:3000", *fields, "", "")).encode()


def fields_of(head: bytes) -> Fields:
    lines = head.decode().split("\r\n")[1:]
    return [(name, text) for name, _, text in (line.partition(": ") for line in lines) if name]


def heard(
    preset: str, path: str, *fields: str, person: dict[str, Any] | None = None, peer: str = GATEWAY
) -> Account | None:
    """Whom the app takes the sender of a request for, which gets through; `person` is signed in."""

    async def conversation() -> Fields:
        async with relay_world(settings_for(preset)) as site:
            site.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            cookie = (f"Cookie: {(await site.sign_in(**person)).decode()}",) if person is not None else ()
            status, _, _ = await site.ask(request(path, *fields, *cookie))
            assert status == 200
            return fields_of(site.upstream.heads[-1])

    return BELIEVERS[preset][1](run(conversation()), peer)


@pytest.mark.parametrize("preset", BELIEVERS)
def test_people_are_who_they_are(preset: str) -> None:
    assert heard(preset, "/", person=ADA) == BELIEVERS[preset][2]


@pytest.mark.parametrize("preset", BELIEVERS)
def test_who_came_straight_from_discord_has_a_name_too(preset: str) -> None:
    assert heard(preset, "/", person=FROM_DISCORD) == Account("k3sx9d8w2q1a")


@pytest.mark.parametrize("preset", BELIEVERS)
@pytest.mark.parametrize("person", [ADA, FROM_DISCORD], ids=["with everything", "with an id alone"])
def test_nobody_is_who_they_say(preset: str, person: dict[str, Any]) -> None:
    lies = [spelled for name in FORGED for spelled in (f"{name}: admin", f"{name.lower().replace('-', '_')}: admin")]
    assert heard(preset, "/", *lies, person=person) == heard(preset, "/", person=person)


@pytest.mark.parametrize(
    ("preset", "path"), [(name, path) for name in BELIEVERS for paths in PRESETS[name].open.values() for path in paths]
)
def test_on_what_is_open_a_stranger_is_nobody(preset: str, path: str) -> None:
    assert heard(preset, path, *(f"{name}: admin" for name in FORGED)) is None


@pytest.mark.parametrize("preset", ["grafana", "gitea", "forgejo", "miniflux"])
def test_whose_page_has_a_list_of_proxies_believes_nobody_else(preset: str) -> None:
    assert heard(preset, "/", person=ADA, peer=ELSEWHERE) is None


@pytest.mark.parametrize(("preset", "path"), [(name, path) for name in BELIEVERS for path in PRESETS[name].logout])
def test_its_sign_out_leads_on(preset: str, path: str) -> None:
    async def conversation() -> None:
        async with relay_world(settings_for(preset)) as site:
            site.upstream.answering(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n")
            cookie = f"Cookie: {(await site.sign_in(**ADA)).decode()}"
            status, head, _ = await site.ask(request(path, *NAVIGATION, cookie))
            assert status == 303
            assert b"\r\nLocation: http://localhost:3000/.postern/sign-out\r\n" in head

    run(conversation())


def test_what_the_table_calls_the_real_one_is_run() -> None:
    table = (APPS / "README.md").read_text("utf-8")
    real = {
        name
        for row in re.findall(r"^\|.*\| the real one \|$", table, re.MULTILINE)
        for name in re.findall("`([a-z-]+)` \\|", row)[:1]
    }
    tried = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests" / "e2e").glob("test_*.py"))
    assert real == {name for name in PRESETS if f'preset = "{name}"' in tried}
