"""The environment over the file: names, lists, secrets in files, and what is said when it goes wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings, SettingsError, load
from proxy.sources import EnvironmentSource, FileSource

SECRET = "correct-horse-battery-staple-0123456789"
OTHER = "another-secret-of-the-right-length-0001"
FILE = f"""
public_url = "https://apps.example.com"
[logto]
endpoint = "https://auth.example.com"
app_id = "app"
app_secret = "{SECRET}"
[[route]]
name = "one"
upstream = "http://one:1"
[[route]]
name = "two"
path = "/two"
upstream = "http://two:1"
allow = [{{ roles = ["a"] }}, {{ users = ["u"] }}]
headers = {{ set = {{ X-A = "{{sub}}" }} }}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "postern.toml"
    path.write_text(FILE, "utf-8")
    return path


def value(settings: Settings, path: str) -> Any:
    here: Any = settings
    for step in path.split("."):
        here = here[int(step)] if step.isdecimal() else getattr(here, step)
    return here


def said(file: Path, environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(file, environ)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("environ", "path", "expected"),
    [
        ({"POSTERN_SESSION__IDLE": "8h"}, "session.idle", 8 * 3600.0),
        ({"POSTERN_SESSION__IDLE": "90"}, "session.idle", 90.0),
        ({"POSTERN_SESSION__COOKIE__NAME": "gate"}, "session.cookie.name", "gate"),
        ({"POSTERN_SESSION__COOKIE__SAME_SITE": "Strict"}, "session.cookie.same_site", "strict"),
        ({"POSTERN_LIMITS__HEADER_COUNT": "50"}, "limits.header_count", 50),
        ({"POSTERN_LIMITS__BODY_BYTES": "10MiB"}, "limits.body_bytes", 10 << 20),
        ({"POSTERN_LOG__LEVEL": "DEBUG"}, "log.level", "debug"),
        ({"POSTERN_LISTEN": "[::1]:3000"}, "listen.host", "::1"),
        ({"POSTERN_LOGTO__SCOPES": "email, roles,"}, "logto.scopes", ("email", "roles")),
        ({"POSTERN_LOGTO__SCOPES": '["email", "roles"]'}, "logto.scopes", ("email", "roles")),
        ({"POSTERN_LOGTO__SCOPES": "['email']"}, "logto.scopes", ("email",)),
        ({"POSTERN_LOGTO__SCOPES": "[]"}, "logto.scopes", ()),
        ({"POSTERN_IDENTITY__FAMILIES": "forwarded,remote"}, "identity.families", ("forwarded", "remote")),
        ({"LOGTO_ENDPOINT": "https://id.example.com"}, "logto.endpoint", "https://id.example.com"),
        ({"LOGTO_APP_ID": "x"}, "logto.app_id", "x"),
        ({"REDIS_URL": "redis://r:1/2"}, "session.store", "redis://r:1/2"),
        ({"REDIS_URL": "redis://r:1/2", "POSTERN_SESSION__STORE": "memory://"}, "session.store", "memory://"),
        ({"POSTERN_ROUTE__0__UPSTREAM": "http://x:1"}, "route.0.upstream", ("http://x:1",)),
        ({"POSTERN_ROUTE__1__UPSTREAM": "http://x:1,http://y:1"}, "route.1.upstream", ("http://x:1", "http://y:1")),
        ({"POSTERN_ROUTE__1__ALLOW": "everyone"}, "route.1.allow", "everyone"),
        ({"POSTERN_ROUTE__1__ALLOW__0__ROLES": "b,c"}, "route.1.allow.0.roles", ("b", "c")),
        ({"POSTERN_ROUTE__1__ALLOW__1__USERS__0": "v"}, "route.1.allow.1.users", ("v",)),
        ({"POSTERN_ROUTE__0__ALLOW__0__ROLES": "b"}, "route.0.allow.0.roles", ("b",)),
        ({"POSTERN_ROUTE__0__DENY": '[{ users = ["v"] }]'}, "route.0.deny.0.users", ("v",)),
        ({"POSTERN_ROUTE__0__DENY": '[{"users": ["v"]}]'}, "route.0.deny.0.users", ("v",)),
        ({"POSTERN_ROUTE__1__HEADERS__SET": '{ X-B = "{name}" }'}, "route.1.headers.set", {"X-B": "{name}"}),
        ({"POSTERN_ROUTE__1__HEADERS__REMOVE": "X-C"}, "route.1.headers.remove", ("X-C",)),
        ({"POSTERN_ROUTE__1__ALLOW__0__CLAIMS": '{"a.b": 1}'}, "route.1.allow.0.claims", {"a.b": 1}),
        (
            {
                "POSTERN_ROUTE__2__NAME": "three",
                "POSTERN_ROUTE__2__PATH": "/3",
                "POSTERN_ROUTE__2__UPSTREAM": "http://3:1",
            },
            "route.2.name",
            "three",
        ),
        ({"POSTERN_ROUTE": '[{name = "n", upstream = "http://n:1"}]'}, "route.0.name", "n"),
        (
            {"POSTERN_ROUTE": '[{"name": "n", "upstream": "http://n:1"}]', "POSTERN_ROUTE__0__PATH": "/p"},
            "route.0.path",
            "/p",
        ),
        ({"POSTERN_TLS": '{"cert": "/c", "key": "/k"}'}, "tls.cert", Path("/c")),
        ({"POSTERN_UPSTREAM": "http://a:1, http://b:1"}, "route.0.upstream", ("http://a:1", "http://b:1")),
    ],
)
def test_variables_override_the_file(file: Path, environ: dict[str, str], path: str, expected: Any) -> None:
    assert value(load(file, environ), path) == expected


def test_what_is_beside_an_overridden_item_stays(file: Path) -> None:
    settings = load(file, {"POSTERN_ROUTE__1__ALLOW__0__ROLES": "b", "POSTERN_SESSION": '{idle = "1h"}'})
    assert [route.name for route in settings.route] == ["one", "two"]
    assert value(settings, "route.1.allow.1.users") == ("u",)
    assert value(settings, "route.1.path") == "/two"
    assert settings.session.idle == 3600.0


@pytest.mark.parametrize(
    "environ",
    [
        {"POSTERN_LISTEN": "", "POSTERN_SESSION__IDLE": "", "LOGTO_APP_ID": "", "POSTERN_NONSENSE": ""},
        {"PATH": "/bin", "LISTEN": "x", "postern_listen": "x", "XPOSTERN_LISTEN": "x", "LOGTO_OTHER": "x", "REDIS_HOST": "x"},
        {
            "POSTERN_SERVICE_HOST": "10.0.0.1", "POSTERN_SERVICE_PORT": "3000", "POSTERN_SERVICE_PORT_HTTP": "3000",
            "POSTERN_PORT": "tcp://10.0.0.1:3000", "POSTERN_PORT_3000_TCP": "tcp://10.0.0.1:3000",
            "POSTERN_PORT_3000_TCP_ADDR": "10.0.0.1", "POSTERN_PORT_3000_TCP_PROTO": "tcp",
        },
    ],
)  # fmt: skip
def test_what_is_not_said_to_us_is_not_heard(file: Path, environ: dict[str, str]) -> None:
    assert load(file, environ) == load(file, {})


@pytest.mark.parametrize(
    ("name", "content", "path", "expected"),
    [
        ("LOGTO_APP_SECRET_FILE", f"{OTHER}\n", "logto.app_secret", OTHER),
        ("POSTERN_LOGTO__APP_SECRET_FILE", f"{OTHER}\r\n", "logto.app_secret", OTHER),
        ("LOGTO_APP_SECRET_FILE", f" {OTHER} ", "logto.app_secret", f" {OTHER} "),
        ("POSTERN_SECRET_FILE", f"{SECRET}\n{OTHER}\n\n", "secret.1", OTHER),
        ("POSTERN_SECRET_FILE", OTHER, "secret.0", OTHER),
        ("REDIS_URL_FILE", "redis://u:p@r:1/0\n", "session.store", "redis://u:p@r:1/0"),
        ("POSTERN_SESSION__STORE_FILE", "redis://u:p@r:1/0", "session.store", "redis://u:p@r:1/0"),
    ],
)
def test_secrets_come_from_files(file: Path, tmp_path: Path, name: str, content: str, path: str, expected: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(content.encode())
    found = value(load(file, {name: str(secret)}), path)
    assert (found if isinstance(found, str) else found.get_secret_value()) == expected


def test_a_secret_with_commas_is_one_secret(file: Path) -> None:
    text = f"{SECRET},{OTHER}"
    settings = load(file, {"POSTERN_SECRET": text})
    assert [item.get_secret_value() for item in settings.secret] == [text]
    settings = load(file, {"POSTERN_SECRET": f'["{SECRET}", "{OTHER}"]'})
    assert [item.get_secret_value() for item in settings.secret] == [SECRET, OTHER]


MISTAKES = tomllib.loads((Path(__file__).parent / "environment_mistakes.toml").read_text("utf-8"))["mistake"]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake["says"].partition(";")[0])
def test_mistakes_are_told_by_the_variable(file: Path, tmp_path: Path, mistake: dict[str, Any]) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_text("x" * 100_000)
    (tmp_path / "short").write_text("hunter2\n")
    environ = {name: text.replace("{folder}", str(tmp_path)) for name, text in mistake["environ"].items()}
    (line,) = said(file, environ)
    assert line == mistake["says"]
    assert not any(secret in line for secret in ("hunter2", SECRET, OTHER))


def test_a_secret_that_cannot_be_had_is_told_once(tmp_path: Path) -> None:
    """Its file is the problem; that the key is missing as well is no news."""
    file = tmp_path / "postern.toml"
    file.write_text(FILE.replace(f'app_secret = "{SECRET}"', ""), "utf-8")
    assert [line.partition(":")[0] for line in said(file, {"LOGTO_APP_SECRET_FILE": "/none"})] == [
        "LOGTO_APP_SECRET_FILE"
    ]


def test_a_mistake_of_the_file_is_not_hidden_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "postern.toml"
    file.write_text("session = 5\n" + FILE, "utf-8")
    assert said(file, {"POSTERN_SESSION__IDLE": "8h"}) == ["session: is a number; accepted: a table"]


def test_a_variable_with_a_line_break_in_its_name_is_told_on_one_line(file: Path) -> None:
    (line,) = said(file, {"POSTERN_A\nB": "x"})
    assert line.startswith('"POSTERN_A\N{REPLACEMENT CHARACTER}B": is not a known variable')


def test_sources_answer_for_one_key_too(file: Path) -> None:
    source = FileSource(Settings, file, required=True)
    assert source.get_field_value(Settings.model_fields["public_url"], "public_url") == (
        "https://apps.example.com", "public_url", False,
    )  # fmt: skip
    environment = EnvironmentSource(Settings, {"POSTERN_PREFIX": "/gate"}, source())
    assert environment.get_field_value(Settings.model_fields["prefix"], "prefix") == ("/gate", "prefix", False)
    assert environment() is environment.tree
    assert "prefix" not in source.tree
