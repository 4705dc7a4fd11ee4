"""docker-compose.yml, Dockerfile and .env.example, held against the code: commands, variables, ports, paths, networks."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from proxy.cli import main
from proxy.logto_command import VARIABLES
from proxy.logto_setup import _SECRET_QUERY, Extras, settings_before, wanted_for, write_config
from proxy.settings import Settings, load
from tests.e2e.processes import free_port

ROOT = Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"].startswith("postern:")]
VARIABLE = re.compile(r"\$\{(\w+)(?::?([-?])([^}]*))?\}")
ENV_LINE = re.compile(r"(# )?([A-Z][A-Z_0-9]+)=(\S*)$")
# What somebody has filled in who follows .env.example, and what the setup of Logto then tells.
FILLED_IN = {"POSTGRES_PASSWORD": "letters1", "DISCORD_CLIENT_ID": "id1", "DISCORD_CLIENT_SECRET": "discord-secret"}
TOLD = {"LOGTO_APP_ID": "app1", "LOGTO_APP_SECRET": "app-secret", "POSTERN_LOGTO__WEBHOOK_KEY": "k" * 32}
ONE_SHOT = [name for name, service in SERVICES.items() if service["restart"] == "no"]


def env_example() -> dict[str, tuple[bool, str]]:
    """Variable -> whether it is commented out, and the value it shows."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return {found[2]: (bool(found[1]), found[3]) for line in lines if (found := ENV_LINE.match(line))}


def filled_in(text: str, values: dict[str, str]) -> str:
    """`text` with its ${…} replaced, as compose does it."""

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found[1], found[2], found[3]
        if values.get(name):
            return values[name]
        assert operator != "?", f"{name} must be set"
        return rest if operator == "-" else ""

    return VARIABLE.sub(value, text)


def environment(service: str, values: dict[str, str]) -> dict[str, str]:
    """The environment of a service's container: a name without a value is handed on when there is one."""
    given: dict[str, str | None] = SERVICES[service].get("environment", {})
    texts = {name: values.get(name) if text is None else filled_in(str(text), values) for name, text in given.items()}
    return {name: text for name, text in texts.items() if text is not None}


def settings_in_compose(**values: str) -> Settings:
    image = {name: value for name, value in dockerfile_env().items() if name.startswith("POSTERN_")}
    given = environment("postern", {**FILLED_IN, **values})
    assert given.pop("POSTERN_CONFIG") == option(SERVICES["logto-setup"]["command"], "--write-config")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "postern.toml"
        write_config(path, TOLD)
        return load(path, {**image, **given})


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines]


def final_stage() -> list[tuple[str, str]]:
    instructions = dockerfile()
    last = max(number for number, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last:]


def only(name: str) -> str:
    (text,) = [text for word, text in final_stage() if word == name]
    return text


def dockerfile_env() -> dict[str, str]:
    return dict(pair.split("=", 1) for word, text in final_stage() if word == "ENV" for pair in shlex.split(text))


def parses(command: list[str]) -> click.Context:
    """The context that click makes of a `postern` command line, without running it. Raises UsageError."""
    name, *rest = command
    found = main.commands[name]
    if isinstance(found, click.Group):
        name, *rest = rest
        found = found.commands[name]
    return found.make_context(name, rest)


def health_command() -> list[str]:
    command = json.loads(only("HEALTHCHECK").split("CMD", 1)[1])
    return [sys.executable, *command[1:]]


@contextmanager
def running(command: list[str], port: int, environ: dict[str, str]) -> Iterator[None]:
    """A `postern` process that listens on `port`."""
    line = [sys.executable, "-c", "from proxy.cli import main; main()", *command]
    with subprocess.Popen(line, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < deadline:
                with socket.socket() as one:
                    if not one.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.05)
            assert process.poll() is None
            yield
        finally:
            process.terminate()
            process.wait(30)


def test_the_compose_specification_accepts_the_file() -> None:
    line = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE_FILE)]
    found = subprocess.run(line, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_every_variable_is_explained_in_the_example_and_used() -> None:
    text = COMPOSE_FILE.read_text("utf-8")
    handed_on = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    assert set(env_example()) == {found[1] for found in VARIABLE.finditer(text)} | handed_on


def test_what_the_example_calls_a_default_is_one() -> None:
    defaults = {found[1]: found[3] for found in VARIABLE.finditer(COMPOSE_FILE.read_text("utf-8")) if found[2] == "-"}
    assert defaults == {name: value for name, (_, value) in env_example().items() if name in defaults}


def test_each_block_of_the_example_says_what_it_is_for() -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if ENV_LINE.match(line):
            above = next(text for text in reversed(lines[:number]) if not ENV_LINE.match(text))
            assert above.startswith("# "), f".env.example:{number + 1}: nothing explains {line}"


def test_the_example_filled_in_makes_settings_that_hold() -> None:
    settings = settings_in_compose()
    assert settings.public_url == "http://localhost:3000"
    assert settings.logto.endpoint == "http://localhost:3001"
    assert settings.session.store.startswith("redis://redis:")
    assert [route.upstream for route in settings.route] == [("http://app:8000",)]


def test_everything_commented_out_in_the_example_may_be_turned_on() -> None:
    shown = {name: value for name, (_, value) in env_example().items() if value}
    settings = settings_in_compose(**shown, POSTERN_SECRET="0123456789abcdef0123456789abcdef")
    assert settings.logto.connector == "discord"
    assert settings.trusted_proxies


def test_without_the_example_filled_in_nothing_starts_half() -> None:
    with pytest.raises(AssertionError, match="POSTGRES_PASSWORD must be set"):
        environment("logto", {})


@pytest.mark.parametrize("name", OURS)
def test_commands_are_ones_that_postern_has(name: str) -> None:
    parses(SERVICES[name].get("command") or json.loads(only("CMD")))


def test_the_gateway_finds_everyone_by_name_port_and_network() -> None:
    settings = settings_in_compose()
    ports = {"redis": 6379, "logto": 3001, "app": parses(SERVICES["app"]["command"]).params["port"]}
    urls = [settings.session.store, settings.logto.internal_endpoint, settings.route[0].upstream[0]]
    assert {urlsplit(url).hostname: urlsplit(url).port for url in urls} == ports
    for name in ports:
        assert set(SERVICES[name]["networks"]) & set(SERVICES["postern"]["networks"]), name
    assert environment("logto", FILLED_IN)["ENDPOINT"] == settings.logto.endpoint
    database = urlsplit(environment("logto", FILLED_IN)["DB_URL"])
    postgres = environment("postgres", FILLED_IN)
    assert (database.hostname, database.port) == ("postgres", 5432)
    assert [database.username, database.password, database.path[1:]] == [
        postgres[f"POSTGRES_{key}"] for key in ("USER", "PASSWORD", "DB")
    ]


def test_only_postern_and_logto_can_be_reached_from_outside() -> None:
    internal = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"postern", "logto"}
    for name, service in SERVICES.items():
        assert name in published or set(service["networks"]) <= internal, name
    for ports in published.values():
        for port in ports:
            assert filled_in(port, {}).startswith("127.0.0.1:"), "published to the world by default"
    # The app believes its headers: whoever shares a network with it can be anybody.
    assert [name for name, service in SERVICES.items() if "apps" in service["networks"]] == ["postern", "app"]
    sample = parses(SERVICES["app"]["command"])
    assert sample.params["host"] == "0.0.0.0"


def test_every_service_is_watched_and_waits_for_health_or_for_the_end_of_what_ends() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            ends = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert condition == {"condition": ends}
        if name not in ONE_SHOT:
            assert "healthcheck" in service or "command" not in service, f"{name}: the image's check is for `serve`"
            assert "healthcheck" in service or name == "postern"


def test_logto_is_set_up_from_inside_for_how_browsers_see_it() -> None:
    given = environment("logto-setup", FILLED_IN)
    assert "command" in SERVICES["logto-setup"]
    settings, pending = settings_before(Path(os.devnull), given)
    assert pending == {"logto.app_id", "logto.app_secret", "route"}
    gateway = settings_in_compose()
    assert (settings.public_url, settings.logto.issuer) == (gateway.public_url, gateway.logto.issuer)
    assert settings.logto.internal_endpoint == gateway.logto.internal_endpoint
    wanted = wanted_for(settings, pending, Extras(gateway_url=given["LOGTO_GATEWAY_URL"]))
    assert wanted.hook == f"http://postern:{gateway.listen.port}/.postern/hooks/logto"
    assert environment("logto", FILLED_IN)["ADMIN_ENDPOINT"] == given["LOGTO_ADMIN_ENDPOINT"]
    known = {*VARIABLES, *(name + "_FILE" for name in VARIABLES)}
    assert {name for name in given if name.startswith("LOGTO_")} <= known | {"LOGTO_ENDPOINT"}
    for name in ("logto-key", "logto-setup"):
        assert SERVICES[name]["volumes"] == ["setup:/setup"]
        assert set(SERVICES[name]["networks"]) & set(SERVICES["logto"]["networks"])
    (key,) = SERVICES["logto-key"]["command"]
    assert given["LOGTO_ADMIN_SECRET_FILE"] in key
    assert _SECRET_QUERY in key
    assert only("USER").split(":")[0] in key
    postgres, reader = environment("postgres", FILLED_IN), environment("logto-key", FILLED_IN)
    assert [reader[f"PG{it}"] for it in ("USER", "PASSWORD", "DATABASE")] == [
        postgres[f"POSTGRES_{it}"] for it in ("USER", "PASSWORD", "DB")
    ]
    assert SERVICES["postern"]["volumes"] == ["setup:/setup:ro"]


def test_a_stop_leaves_time_to_finish() -> None:
    drain = settings_in_compose().drain
    assert float(SERVICES["postern"]["stop_grace_period"].removesuffix("s")) > drain.delay + drain.timeout


@pytest.mark.parametrize("name", OURS)
def test_our_containers_need_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_ports_agree_between_image_and_compose() -> None:
    port = settings_in_compose().listen.port
    assert only("EXPOSE") == str(port)
    assert [filled_in(one, {}).rpartition(":")[2] for one in SERVICES["postern"]["ports"]] == [str(port)]
    assert settings_in_compose().listen.host == "0.0.0.0"


def test_the_image_runs_postern_as_nobody() -> None:
    user, group = only("USER").split(":")
    assert int(user) >= 1000
    assert int(group) >= 1000
    assert json.loads(only("ENTRYPOINT")) == [next(iter(project()["scripts"]))]
    parses(json.loads(only("CMD")))


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def test_the_image_is_what_the_project_says() -> None:
    labels = dict(pair.split("=", 1) for pair in shlex.split(only("LABEL")))
    assert labels["org.opencontainers.image.title"] == project()["name"]
    assert labels["org.opencontainers.image.licenses"] == project()["license"]
    base = next(text for word, text in dockerfile() if word == "ARG")
    version = re.fullmatch(r"PYTHON=python:(3\.\d+)-slim-\w+", base)
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in project()["classifiers"]


def test_the_final_stage_builds_nothing() -> None:
    runs = [text for word, text in final_stage() if word == "RUN"]
    assert all("install" not in run.replace("uninstall", "") for run in runs)
    copies = [text for word, text in final_stage() if word == "COPY"]
    assert all(text.startswith("--from=build ") for text in copies)


def test_everything_installed_is_locked_and_hashed() -> None:
    installs = [
        part for word, text in dockerfile() if word == "RUN" for part in text.split("&&") if " install " in part
    ]
    assert installs
    for install in installs:
        assert "--require-hashes --only-binary :all:" in install or "--no-deps --no-index /wheels/" in install


def test_the_build_context_holds_what_is_copied() -> None:
    rules = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        source for word, text in dockerfile() if word == "COPY" and "--from" not in text for source in text.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)
    assert any(fnmatch("proxy/__pycache__", rule) for rule in rules)


def test_health_is_checked_by_the_images_own_means() -> None:
    port = free_port()
    environ = {"POSTERN_LISTEN": f"127.0.0.1:{port}"}
    nobody = subprocess.run(health_command(), env=environ, capture_output=True)
    assert nobody.returncode != 0
    gateway = {"POSTERN_PUBLIC_URL": "http://localhost", "POSTERN_UPSTREAM": "http://127.0.0.1:1", **environ}
    logto = {"LOGTO_ENDPOINT": "http://127.0.0.1:1", "LOGTO_APP_ID": "app", "LOGTO_APP_SECRET": "app-secret"}
    with running(json.loads(only("CMD")), port, {**gateway, **logto}):
        found = subprocess.run(health_command(), env=environ, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        wrong = subprocess.run(health_command(), env={**environ, "POSTERN_PREFIX": "/elsewhere"}, capture_output=True)
        assert wrong.returncode != 0


def test_the_sample_apps_check_finds_it_well() -> None:
    port = free_port()
    with running(["sample", "--port", str(port)], port, {}):
        check = [text.replace(":8000/", f":{port}/") for text in SERVICES["app"]["healthcheck"]["test"][2:]]
        found = subprocess.run([sys.executable, *check], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
