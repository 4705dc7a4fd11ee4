"""Presets fill in what a route leaves open, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.claims import Identity
from proxy.presets import PRESETS, Preset, filled_in, opened
from proxy.route_settings import RouteSettings
from proxy.templating import Template

WANTED = {
    "code-server", "django-remote-user", "filebrowser", "forgejo", "freshrss", "gitea", "gradio", "grafana", "home-assistant",
    "jenkins", "jupyterlab", "lidarr", "miniflux", "node-red", "open-webui", "paperless-ngx", "prowlarr", "radarr", "radicale",
    "sonarr", "streamlit",
}  # fmt: skip


APPS = Path(__file__).resolve().parent.parent / "docs" / "apps"


def route(**more: Any) -> RouteSettings:
    return RouteSettings.model_validate({"name": "app", "upstream": "http://app:8080", **more})


def refused(**more: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        route(**more)
    return str(caught.value)


def test_who_has_one() -> None:
    assert set(PRESETS) == WANTED


@pytest.mark.parametrize(("name", "preset"), PRESETS.items(), ids=PRESETS)
def test_each_makes_a_route_that_can_be_read(name: str, preset: Preset) -> None:
    made = route(preset=name, open=list(preset.open))
    assert made.headers.set == preset.headers
    assert made.headers.remove == preset.remove
    assert made.logout == preset.logout
    assert made.encoding == preset.encoding
    assert made.login_cookies == preset.login_cookies
    assert made.allow == "signed-in", "nothing is opened unasked"


@pytest.mark.parametrize(("name", "preset"), PRESETS.items(), ids=PRESETS)
def test_each_tells_the_app_of_somebody_without_a_username(name: str, preset: Preset) -> None:
    """Whoever came straight from Discord has none."""
    identity = Identity(sub="s0062qn56eia", email="ada@example.com", name="Ada")
    values = {header: Template.parse(value).render(identity, None) for header, value in preset.headers.items()}
    logins = {header for header, value in preset.headers.items() if value == "{login}"}
    assert not preset.headers or logins or "X-Forwarded-Email" in values, f"{name} does not say who it is"
    assert all(values[header] == "s0062qn56eia" for header in logins)


def test_what_the_route_says_counts() -> None:
    made = route(
        preset="grafana",
        headers={"set": {"x_webauth_user": "{email}", "X-Team": "{sub}"}, "remove": ["X-WEBAUTH-GROUPS", "X-Debug"]},
        logout=["/signout"],
        encoding="rfc2047",
    )
    assert made.headers.set == {
        "X-WEBAUTH-NAME": "{name}",
        "X-WEBAUTH-EMAIL": "{email}",
        "x_webauth_user": "{email}",
        "X-Team": "{sub}",
    }
    assert made.headers.remove == ("X-WEBAUTH-GROUPS", "X-Debug")
    assert (made.logout, made.encoding) == (("/signout",), "rfc2047")
    assert route(preset="grafana", logout=[]).logout == ()
    assert route(preset="freshrss", headers={"remove": ["X-Debug"]}).headers.remove == ("X-WebAuth-User", "X-Debug")


def test_below_a_path() -> None:
    made = route(preset="grafana", path="/grafana", open=["health", "/grafana/public"])
    assert made.logout == ("/grafana/logout",)
    assert opened(made.preset, made.path, made.open) == ("/grafana/api/health", "/grafana/public")


def test_paths_open_without_a_preset() -> None:
    assert opened(None, "/", ("/healthz", "/metrics", "/healthz")) == ("/healthz", "/metrics")
    with pytest.raises(KeyError):
        opened(None, "/", ("health",))


def test_mistakes_name_what_would_do() -> None:
    assert "grafana" in refused(preset="grafanna")
    assert "health" in refused(preset="grafana", open=["helth"])
    assert "paths" in refused(open=["health"])
    assert "/grafana" in refused(path="/grafana", preset="grafana", open=["/api/health"])
    assert "/grafana" in refused(path="/grafana", logout=["/logout"])
    assert "preset" in refused(preset=7)


@pytest.mark.parametrize(
    "more",
    [{"headers": 7}, {"headers": {"set": 7}}, {"headers": {"remove": 7}}, {"headers": {"set": {7: "x"}}}, {"path": 7}],
)
def test_nonsense_beside_a_preset_is_reported_as_what_it_is(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        route(preset="grafana", **more)
    assert {error["loc"][0] for error in caught.value.errors()} <= {next(iter(more)), "logout"}


@given(st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_whatever_stands_there_is_left_to_who_checks_it(value: Any) -> None:
    assert filled_in(value) == value


def rows() -> dict[str, list[str]]:
    """Preset -> its row in the table of apps."""
    found: dict[str, list[str]] = {}
    for line in (APPS / "README.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and "`" in cells[1]:
            found |= dict.fromkeys(re.findall("`([a-z-]+)`", cells[1]), cells)
    return found


def test_every_preset_has_its_row_and_no_row_is_without_one() -> None:
    assert set(rows()) == set(PRESETS)


@pytest.mark.parametrize(("name", "preset"), PRESETS.items(), ids=PRESETS)
def test_the_page_says_what_the_preset_does(name: str, preset: Preset) -> None:
    cells = rows()[name]
    page = re.search(r"\(([a-z-]+\.md)\)", cells[0])
    assert page
    text = (APPS / page[1]).read_text("utf-8")
    assert f'"{name}"' in text
    for header in preset.headers:
        assert re.search(rf"^\|[^|\n]*`{header}`", text, re.MULTILINE) or f"| `{header}` |" in text, header
    assert set(re.findall("`([a-z]+)`", cells[4])) == set(preset.open)
    assert (cells[3] == "leads on") == bool(preset.logout)
