"""The documentation, held against the code: every setting, command, option and path, every link and every example."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from starlette.applications import Starlette
from starlette.routing import Route

from proxy.cli import main
from proxy.errors import UpstreamProblem
from proxy.logto_command import VARIABLES
from proxy.policy import Reason
from proxy.serve import build
from proxy.settings import RouteSettings, RuleSettings, Settings, SettingsError, load
from proxy.texts import TEXTS
from proxy.tree import SHORT_NAMES, key_at, keys
from proxy.verdict import Kind
from scripts.docs import with_reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
OTHER_PROGRAMS = frozenset(
    ("code-server", "cp", "curl", "export", "filebrowser", "git", "jupyter", "pip", "streamlit", "systemctl")
)
# Stands for any settings that an example does not show.
REST: dict[str, Any] = {
    "public_url": "https://apps.example.com",
    "logto": {"endpoint": "https://auth.example.com", "app_id": "a", "app_secret": "s"},
}
ROUTE = {"name": "example", "upstream": "http://app:8080"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(language: str) -> list[Any]:
    """Every code block in `language`, as parameters named by page and number."""
    found = []
    for path in PAGES:
        for number, block in enumerate(FENCE.finditer(path.read_text("utf-8"))):
            if block[1] == language:
                found.append(pytest.param(block[2], id=f"{name_of(path)}-{number}"))
    return found


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """The fragments that a page's headings make, as GitHub and most others do."""
    headings = re.findall(r"^#+ +(.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, fragment = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not fragment or fragment in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_images_are_there(path: Path) -> None:
    for first, second in IMAGE.findall(prose(path)):
        assert (path.parent / (first or second)).is_file()


def test_every_page_can_be_found_from_the_front_page() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen:
            seen.add(page)
            links = (link.partition("#")[0] for link in LINK.findall(prose(page)) if "://" not in link)
            waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert set(PAGES) <= seen


def test_every_setting_is_in_the_reference() -> None:
    page = text_of("docs/settings.md")
    assert page == with_reference(page), "run `make docs`"
    for key in keys(Settings):
        assert key.field.description, key.path
        if key.section is None and "deny" not in key.path[:-1]:  # the page says once that rules are rules
            assert key.variable in page


def test_settings_that_the_prose_names_exist() -> None:
    sections = {key.path[0] for key in keys(Settings)}
    for path in PAGES:
        for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?: = [^`]*)?`", prose(path)):
            steps = tuple(code.split("."))
            if steps[0] in sections and steps[-1] not in ("py", "md"):
                assert key_at(Settings, steps) is not None, f"{name_of(path)}: {code}"


def test_variables_that_the_pages_name_exist() -> None:
    known = {key.variable for key in keys(Settings)} | set(SHORT_NAMES) | {"POSTERN_UPSTREAM", "POSTERN_CONFIG"}
    known |= set(VARIABLES)
    known |= {name + "_FILE" for name in known}
    known |= set(re.findall(r"^(?:# )?([A-Z][A-Z_0-9]+)=", text_of(".env.example"), re.MULTILINE))
    for path in PAGES:
        for name in re.findall(r"\b(?:POSTERN|LOGTO)_[A-Z0-9_]+\b", path.read_text("utf-8")):
            assert re.sub(r"__\d+(?=__|$)", "__N", name) in known, f"{name_of(path)}: {name}"


def params_of(name: str) -> list[click.Parameter]:
    """The options of a command; of a group those of its commands, each once."""
    command = main.commands[name]
    if not isinstance(command, click.Group):
        return list(command.params)
    options = (param for one in command.commands.values() for param in one.params if isinstance(param, click.Option))
    return list({param.opts[0]: param for param in options}.values())


def command_sections() -> dict[str, str]:
    """Command -> the section about it in docs/commands.md."""
    parts = re.split(r"^## `postern (\w+)`\n", text_of("docs/commands.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_command_has_its_section() -> None:
    assert sorted(command_sections()) == sorted(main.commands)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_stands_with_its_command(name: str) -> None:
    options = {option for param in params_of(name) for option in param.opts if option.startswith("--")}
    assert set(re.findall(r"^\| `(--[a-z-]+)", command_sections()[name], re.MULTILINE)) == options


@pytest.mark.parametrize("name", sorted(main.commands))
def test_defaults_are_the_ones_documented(name: str) -> None:
    for param in params_of(name):
        row = re.search(rf"^\| `{param.opts[0]}\b[^\n]*", command_sections()[name], re.MULTILINE)
        assert row
        if isinstance(param.default, str | int) and not isinstance(param.default, bool):
            assert str(param.default) in row[0]


def shell_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command line of every shell block, and of inline code that starts with one of ours: page, words."""
    for path in PAGES:
        text = path.read_text("utf-8")
        lines = [line for block in FENCE.finditer(text) if block[1] == "sh" for line in block[2].splitlines()]
        lines += re.findall(r"(?<!`)`((?:postern|make|docker compose) [^`]+)`(?!`)", FENCE.sub("", text))
        for line in lines:
            words = shlex.split(line, comments=True)
            if words:
                yield name_of(path), words


def test_commands_that_the_pages_show_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    services = set(yaml.safe_load(text_of("docker-compose.yml"))["services"])
    seen = set()
    for page, words in shell_lines():
        program = Path(words[0]).name
        seen.add(program)
        if words[1:] == ["--version"] or program in OTHER_PROGRAMS or "=" in words[0]:
            continue
        if program == "postern":
            example = [word if word != "…" else "https://apps.example.com/" for word in words[2:] if word != "FILE"]
            documented = {option for param in params_of(words[1]) for option in (*param.opts, *param.secondary_opts)}
            assert {word for word in example if word.startswith("--")} <= documented, f"{page}: {words}"
        elif program == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{page}: {words}"
        elif words[:2] == ["docker", "compose"]:
            named = [word for word in words[3:] if not word.startswith("--")]
            assert not named or named[0] in services, f"{page}: {words}"
            assert "postern" not in named or named[1] in main.commands
        else:
            pytest.fail(f"{page}: {words}")
    assert {"postern", "make", "docker"} <= seen


def test_make_help_names_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", text_of("Makefile"), re.MULTILINE)
    assert phony
    assert sorted(re.findall(r"^([a-z]+):.*## ", text_of("Makefile"), re.MULTILINE)) == sorted(phony[1].split())


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_examples_are_settings(block: str, tmp_path: Path) -> None:
    tree = tomllib.loads(block)
    route: dict[str, Any] = dict(ROUTE)
    if tree.keys() <= set(RouteSettings.model_fields):
        tree = {"route": [route | tree]}
    hosts = [route["host"] for route in tree.get("route", []) if "host" in route]
    whole = {**REST, "route": [route], **tree}
    whole["logto"] = {**REST["logto"], **tree.get("logto", {})}
    if hosts and "session" not in tree:
        whole["session"] = {"cookie": {"domain": "example.com"}}
    file = tmp_path / "postern.toml"
    file.write_text("", "utf-8")
    try:
        load(
            file,
            {
                f"POSTERN_{key.upper()}": json.dumps(value) if not isinstance(value, str) else value
                for key, value in whole.items()
            },
        )
    except SettingsError as error:
        pytest.fail(f"{error}")


@pytest.mark.parametrize("block", blocks("json"))
def test_json_examples_are_json(block: str) -> None:
    json.loads(block)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_examples_of_a_sidecar_are_settings(block: str) -> None:
    tree = yaml.safe_load(block)
    if "services" in tree:
        settings = load(None, tree["services"]["postern"]["environment"])
        assert settings.route[0].upstream == ("http://app:8080",)
        assert "ports" not in tree["services"]["app"]


def test_shell_examples_of_the_environment_are_settings() -> None:
    for path in (DOCS / "quickstart.md", DOCS / "logto.md"):
        exports = dict(
            re.findall(r"^(?:export )?((?:POSTERN|LOGTO)_\w+)=(\S+)$", path.read_text("utf-8"), re.MULTILINE)
        )
        rest = {"POSTERN_PUBLIC_URL": "https://apps.example.com", "POSTERN_UPSTREAM": "http://app", "LOGTO_APP_ID": "a"}
        load(None, {"LOGTO_APP_SECRET": "s", **rest, **exports})


def test_every_rule_has_its_row() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", text_of("docs/routes.md"), re.MULTILINE))
    assert set(RuleSettings.model_fields) <= rows


def test_every_own_path_has_its_row() -> None:
    settings = load(None, {"POSTERN_PUBLIC_URL": "http://localhost:3000", "POSTERN_UPSTREAM": "http://app", "LOGTO_APP_ID": "a",
                           "LOGTO_APP_SECRET": "s", "LOGTO_ENDPOINT": "http://localhost:3001"})  # fmt: skip
    app = build(settings).app
    assert isinstance(app, Starlette)
    served = {route.path for route in app.routes if isinstance(route, Route)} - {settings.prefix}
    assert set(re.findall(r"^\| `(/\.postern/[a-z./{}-]*)` \|", text_of("docs/routes.md"), re.MULTILINE)) == served


def test_every_outcome_in_the_log_has_its_row() -> None:
    rows = "\n".join(line.split("|")[1] for line in text_of("docs/logging.md").splitlines() if line.startswith("| `"))
    outcomes = (
        {kind.value for kind in Kind} | {reason.value for reason in Reason} | {one.value for one in UpstreamProblem}
    )
    spoken = "".join(path.read_text("utf-8") for path in (ROOT / "proxy").glob("*.py"))
    outcomes |= set(re.findall(r'Verdict\(Kind\.[A-Z_]+,[^()]*\breason="([a-z_]+)"', spoken))
    # In the place of these stands the word of the decision, or of the failure.
    never = {Kind.PASS.value, Kind.UPSTREAM.value, Kind.FORBIDDEN.value, Reason.NOT_SIGNED_IN.value}
    assert outcomes - never <= set(re.findall(r"`([a-z_-]+)`", rows))


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.toml")), ids=name_of)
def test_example_files_are_settings(path: Path) -> None:
    load(path, {"LOGTO_APP_SECRET": "app-secret"})


def test_pages_that_troubleshooting_quotes_say_that() -> None:
    quoted = re.findall(r'^\*\*(?:\d{3} )?"([A-Z][^"]+)"', text_of("docs/troubleshooting.md"), re.MULTILINE)
    assert len(quoted) > 4
    assert set(quoted) <= set(TEXTS["en"].values())
