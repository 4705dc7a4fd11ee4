"""Settings as a whole: what loads, and every way in which it does not, with the very words people read."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.sandbox.config import SANDBOX_APP_ID, SANDBOX_APP_SECRET
from proxy.settings import Listen, Settings, SettingsError, load, schema

ROOT = Path(__file__).resolve().parent.parent
SECRET = "correct-horse-battery-staple-0123456789"
LOGTO = f'endpoint = "https://auth.example.com"\napp_id = "app"\napp_secret = "{SECRET}"'
ROUTE = 'name = "app"\nupstream = "http://app:8080"'
ENVIRONMENT = {
    "POSTERN_PUBLIC_URL": "https://apps.example.com",
    "POSTERN_UPSTREAM": "http://app:8080",
    "LOGTO_ENDPOINT": "https://auth.example.com",
    "LOGTO_APP_ID": "app",
    "LOGTO_APP_SECRET": SECRET,
}


def document(
    *,
    public_url: str = "https://apps.example.com",
    top: str = "",
    logto: str = LOGTO,
    logto_too: str = "",
    more: str = "",
    route: str = ROUTE,
    route_too: str = "",
) -> str:
    """A whole file, right but for what is given."""
    logto, route = f"[logto]\n{logto}\n{logto_too}", f"[[route]]\n{route}\n{route_too}"
    return f'public_url = "{public_url}"\n{top}\n{logto}\n{more}\n{route}\n'


def loaded(folder: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    file = folder / "postern.toml"
    file.write_text(text, "utf-8")
    return load(file, environ or {})


def problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(folder, text, environ)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    assert caught.value.__context__ is None, "pydantic's error holds every value given, secrets too"
    return [str(problem) for problem in caught.value.problems]


MISTAKES = tomllib.loads((ROOT / "tests" / "settings_mistakes.toml").read_text("utf-8"))["mistake"]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["says"][0].partition(";")[0])
def test_mistakes_are_told_exactly(tmp_path: Path, mistake: dict[str, Any]) -> None:
    parts = {key: value for key, value in mistake.items() if key not in ("says", "whole")}
    found = problems(tmp_path, mistake.get("whole", document(**parts)))
    assert found == mistake["says"]
    assert not any("hunter2" in line or SECRET in line or "\n" in line for line in found)


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ({"more": "[guilds]\nbot_token = 'hunter2'"}, "guilds"),
        ({"route_too": "profile = 'grafana'"}, "route[0].profile"),
        ({"route_too": "allow = [{ signed_in_after = '1h' }]"}, "route[0].allow[0].signed_in_after"),
        ({"route_too": "deny = [{ discord = { names = ['1'] } }]"}, "route[0].deny[0].discord.names"),
    ],
)
def test_what_is_not_there_yet_is_refused_rather_than_ignored(tmp_path: Path, parts: dict[str, str], key: str) -> None:
    """A rule that is passed over would let in whom it was written against."""
    first, *_ = problems(tmp_path, document(**parts))
    assert first.startswith(f"{key}: is not a known key")
    assert "hunter2" not in first


def test_a_file_of_many_mistakes_tells_all_of_them_at_once(tmp_path: Path) -> None:
    text = """
        public_url = "https://apps.example.com/x"
        colour = "red"
        [logto]
        endpoint = "https://auth.example.com"
        app_secret = "hunter2"
        [session]
        idle = "soon"
        cookie = { domain = "org", same_site = "never" }
        [[route]]
        name = "a"
        upstream = "ftp://x"
        [[route]]
        name = "a"
        path = "/.postern/x"
        upstream = "http://127.0.0.1:3000"
        allow = [{ roles = [] }]
        shade = 1
    """
    found = problems(tmp_path, text, {"POSTERN_LISTEN": "0.0.0.0:3000", "POSTERN_LOG__LEVL": "x"})
    assert [line.partition(":")[0] for line in found] == [
        "POSTERN_LOG__LEVL",
        "public_url",
        "logto.app_id",
        "session.idle",
        "session.cookie.same_site",
        "route[0].upstream",
        "route[1].allow[0].roles",
        "route[1].shade",
        "colour",
        "route[1].name",
        "route[1].path",
        "route[1].upstream",
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"public_url = \n", "is not TOML: Invalid value (at line 1, column 14)"),
        (b"a = 1\nb = [1, 2\n", "is not TOML: Unclosed array (at line 3, column 1)"),
        (b"a = 1\na = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"a = 1\nb = '\xff'\n", "is not TOML: a byte that is no UTF-8 (at line 2, column 6)"),
        (b"[session]\n[session]\n", "is not TOML: Cannot declare ('session',) twice (at line 2, column 9)"),
    ],
)
def test_a_broken_file_is_told_with_line_and_column(tmp_path: Path, data: bytes, expected: str) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(data)
    with pytest.raises(SettingsError) as caught:
        load(file, ENVIRONMENT)
    assert str(caught.value) == f"{file}: {expected}; accepted: TOML 1.0 in UTF-8"


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    for path, environ in ((missing, ENVIRONMENT), (None, {**ENVIRONMENT, "POSTERN_CONFIG": str(missing)})):
        with pytest.raises(SettingsError, match=re.escape(f"{missing}: does not exist; accepted: a TOML file")):
            load(path, environ)
    with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path, ENVIRONMENT)


def test_the_environment_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no config/postern.toml here
    settings = load(None, ENVIRONMENT)
    assert settings.public_url == "https://apps.example.com"
    assert settings.logto.issuer == "https://auth.example.com/oidc"
    assert settings.logto.internal_endpoint == "https://auth.example.com"
    assert settings.session.store == "memory://"
    (route,) = settings.route
    assert (route.name, route.host, route.path, route.upstream, route.allow) == (
        "default", None, "/", ("http://app:8080",), "signed-in",
    )  # fmt: skip


def test_the_file_that_postern_config_names_is_read(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(document(), "utf-8")
    assert load(None, {"POSTERN_CONFIG": str(file)}).route[0].name == "app"


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    settings = loaded(tmp_path, document())
    assert settings.listen == Listen("127.0.0.1", 3000)
    assert (settings.tls, settings.secret, settings.prefix, settings.trusted_proxies) == (None, (), "/.postern", ())
    assert settings.logto.scopes == ("email", "identities", "roles")
    assert (settings.logto.connector, settings.logto.resources, settings.logto.timeout) == (None, (), 10.0)
    assert (settings.session.idle, settings.session.lifetime) == (12 * 3600.0, 7 * 86400.0)
    cookie = settings.session.cookie
    assert (cookie.name, cookie.domain, cookie.same_site) == ("postern", "", "lax")
    assert settings.identity.families == ("forwarded",)
    limits = settings.limits
    assert (limits.head_bytes, limits.header_count, limits.uri_bytes, limits.body_bytes) == (65536, 200, 16384, 0)
    assert (limits.head_timeout, limits.body_timeout, limits.keep_alive, limits.connect_timeout) == (15, 60, 75, 5)
    assert (limits.first_byte_timeout, limits.idle_timeout, limits.tunnel_idle_timeout) == (60, 900, 3600)
    assert limits.max_connections == 10_000
    assert (settings.log.format, settings.log.level) == ("auto", "info")
    assert settings.warnings == (
        "session.store is this process's memory: a restart signs everybody out, and workers do not share sessions",
    )


@pytest.mark.parametrize(
    ("more", "route", "resources", "organizations"),
    [
        ("", "", ("https://own",), False),
        ("", "headers.set = { X-A = '{access_token:https://api}', X-B = '{sub} {access_token:https://own}' }",
         ("https://own", "https://api"), False),
        ("", "organization = 'acme'\nheaders.set = { X-A = '{access_token:https://api}' }", ("https://own", "https://api"), True),
        ("", "organization = 'acme'\nheaders.set = { X-A = '{organization_token}' }",
         ("https://own", "urn:logto:resource:organizations"), True),
        ("[headers]\nset = { X-A = '{organization_token:acme}' }", "",
         ("https://own", "urn:logto:resource:organizations"), True),
        ("[headers]\nset = { X-A = '{organization_token}' }", "", ("https://own",), True),
        ("[headers]\nset = { X-A = '{{access_token:https://api}}' }", "", ("https://own",), False),
    ],
)  # fmt: skip
def test_a_sign_in_asks_for_what_the_templates_need(
    tmp_path: Path, more: str, route: str, resources: tuple[str, ...], organizations: bool
) -> None:
    logto = LOGTO + "\nresources = ['https://own']"
    settings = loaded(tmp_path, document(logto=logto, more=more, route=f"{ROUTE}\n{route}"))
    assert settings.resources == resources
    assert ("urn:logto:scope:organizations" in settings.scopes) is organizations


def test_blank_means_absent(tmp_path: Path) -> None:
    text = document(
        top='tls = { cert = "", key = "" }',
        logto=LOGTO + '\ninternal_endpoint = ""\nconnector = ""',
        more='[session.cookie]\ndomain = ""',
        route=ROUTE + '\nhost = ""',
    )
    settings = loaded(tmp_path, text)
    assert (settings.tls, settings.logto.connector, settings.route[0].host) == (None, None, None)
    assert settings.logto.internal_endpoint == settings.logto.endpoint


def test_settings_cannot_be_changed_and_do_not_show_secrets(tmp_path: Path) -> None:
    text = document(
        top=f'secret = "{SECRET}"', more='[session]\nstore = "redis://u:hunter2@redis:6379/0?password=hunter2"'
    )
    settings = loaded(tmp_path, text)
    assert settings.session.store.startswith("redis://u:hunter2@")
    for shown in (repr(settings), str(settings), f"{settings.session!r}"):
        assert "hunter2" not in shown
        assert SECRET not in shown
    with pytest.raises(ValidationError):
        settings.public_url = "https://evil.example"
    with pytest.raises(ValidationError):
        settings.session.idle = 1.0


def test_settings_made_in_python_read_nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_URL", "https://evil.example")
    monkeypatch.setenv("LISTEN", "0.0.0.0:1")
    with pytest.raises(ValidationError, match="public_url"):
        Settings.model_validate({})


def test_secrets_seal_and_without_any_one_is_derived(tmp_path: Path) -> None:
    given_two = loaded(tmp_path, document(top=f'secret = ["{SECRET}", "{SECRET[::-1]}"]'))
    assert given_two.seal_secrets == (SECRET.encode(), SECRET[::-1].encode())
    derived = loaded(tmp_path, document()).seal_secrets
    assert derived == loaded(tmp_path, document()).seal_secrets
    assert len(derived) == 1
    assert len(derived[0]) == 32
    assert SECRET.encode() not in derived[0]
    other = loaded(tmp_path, document(logto=LOGTO.replace(SECRET, SECRET[::-1])))
    assert other.seal_secrets != derived


@pytest.mark.parametrize(
    ("public_url", "https", "host"),
    [
        ("https://Apps.Example.com:443/", True, "apps.example.com"),
        ("http://localhost:3000", False, "localhost"),
        ("http://[::1]:3000", False, "[::1]"),
    ],
)
def test_the_public_url_is_taken_apart(tmp_path: Path, public_url: str, https: bool, host: str) -> None:
    settings = loaded(tmp_path, document(public_url=public_url))
    assert (settings.https, settings.public_host) == (https, host)
    assert settings.public_url == public_url.lower().removesuffix("/").removesuffix(":443")


APPLICATION = """[[logto.application]]
hosts = ["b.test", "*.b.test"]
cookie_domain = "b.test"
app_id = "b"
app_secret = "b"
"""
WARNINGS: list[tuple[str, str]] = [
    (
        document(public_url="http://apps.example.com"),
        "public_url is plain http: whoever is on the way can read session",
    ),
    (document(logto=LOGTO.replace("https", "http")), "logto.endpoint is plain http"),
    (
        document(logto=LOGTO.replace(SECRET, "sandbox-secret-of-no-value-00001")),
        "logto.app_secret is that of the sandbox",
    ),
    (document(top="trusted_proxies = ['0.0.0.0/0']"), "trusted_proxies holds every address"),
    (document(), "session.store is this process's memory"),
    (
        document(public_url="https://a.other.org", more="[session.cookie]\nsame_site = 'strict'"),
        "session.cookie.same_site is strict and Logto is on another site",
    ),
    (
        document(more="[session.cookie]\ndomain = 'example.com'"),
        "session.cookie.domain is set but no route names a host",
    ),
    (
        document(more=APPLICATION, route_too='host = "apps.example.com"'),
        "logto.application[0].hosts names b.test, where no route answers",
    ),
]


@pytest.mark.parametrize(("text", "warning"), WARNINGS)
def test_what_is_probably_not_meant_is_warned_of(tmp_path: Path, text: str, warning: str) -> None:
    assert any(line.startswith(warning) for line in loaded(tmp_path, text).warnings)


@pytest.mark.parametrize("hosts", [["b.test", "x.y.b.test"], ["b.test", "*.x.b.test"], ["b.test", "*.b.test"], [""]])
def test_an_application_whose_hosts_have_routes_is_not_warned_of(tmp_path: Path, hosts: list[str]) -> None:
    routes = "".join(
        f'[[route]]\nname = "r{number}"\nupstream = "http://app:8080"\nhost = "{host}"\n'
        for number, host in enumerate(hosts)
    )
    settings = loaded(
        tmp_path, document(more=APPLICATION, route_too='path = "/x"\nhost = "apps.example.com"\n' + routes)
    )
    assert not any("logto.application" in line for line in settings.warnings)


def test_nothing_is_warned_of_on_this_machine(tmp_path: Path) -> None:
    text = document(
        public_url="http://localhost:3000", logto=LOGTO.replace("https://auth.example.com", "http://127.0.0.1:3001")
    )
    assert loaded(tmp_path, text).warnings == ()


def test_a_route_from_the_environment_replaces_those_of_the_file_and_says_so(tmp_path: Path) -> None:
    settings = loaded(tmp_path, document(), {"POSTERN_UPSTREAM": "http://other:1"})
    assert [route.name for route in settings.route] == ["default"]
    assert settings.warnings[0].startswith("POSTERN_UPSTREAM replaces the 1 routes of ")


@pytest.mark.parametrize("file", sorted((ROOT / "config").rglob("*.toml")), ids=lambda path: path.name)
def test_the_files_that_come_along_load_without_a_warning(file: Path) -> None:
    own_secret = file.name == "postern.toml"
    assert load(file, {} if own_secret else {"LOGTO_APP_SECRET": SECRET}).warnings == ()


def test_the_example_file_is_for_the_sandbox() -> None:
    settings = load(ROOT / "config" / "postern.toml", {})
    assert settings.logto.app_id == SANDBOX_APP_ID
    assert settings.logto.app_secret.get_secret_value() == SANDBOX_APP_SECRET


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TOP_KEYS = sorted(schema()["properties"])


@given(st.dictionaries(st.sampled_from(TOP_KEYS) | st.text(max_size=8), JSON, max_size=4))
def test_whatever_is_in_a_file_either_loads_or_is_told(data: dict[str, object]) -> None:
    """Any tree at all: no exception but ours, one line per problem, and no value of a secret in any."""
    environ = dict(ENVIRONMENT)
    for key, value in data.items():
        if key.isidentifier() and key.isascii():
            environ[f"POSTERN_{key.upper()}"] = json.dumps(value)
    environ.pop("POSTERN_CONFIG", None)
    found = told(environ)
    assert found is None or found
    for line in found or ():
        assert "\n" not in line
        assert SECRET not in line


def told(environ: dict[str, str]) -> list[str] | None:
    """What is wrong with `environ` over the example file; None if nothing is."""
    try:
        load(ROOT / "config" / "postern.toml", environ)
    except SettingsError as error:
        return [str(problem) for problem in error.problems]
    return None
