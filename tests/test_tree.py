"""The tree of keys, and its names in messages and in the environment."""

from __future__ import annotations

import pytest

from proxy.header_settings import HeaderSettings
from proxy.route_settings import RouteSettings, RuleSettings
from proxy.settings import Settings
from proxy.tree import Path, dotted, key_at, keys, section_at, value_at, variable


def test_every_key_is_reached_by_its_own_path() -> None:
    for key in keys(Settings):
        path = tuple(0 if step == "*" else step for step in key.path)
        found = key_at(Settings, path)
        assert found is not None
        assert (found.field, found.section, found.secret) == (key.field, key.section, key.secret)


def test_every_key_that_holds_a_value_has_a_notation_and_a_description() -> None:
    for key in keys(Settings):
        assert key.field.description, key.path
        assert key.field.description.endswith("."), key.path
        assert key.notation is not None or key.section is not None, key.path


@pytest.mark.parametrize(
    "path",
    [("nope",), ("session", "nope"), ("session", 0), ("route", "name"), ("route", "x", "name"), ("listen", "host"), (0,)],
)  # fmt: skip
def test_no_key_is_made_up(path: Path) -> None:
    assert key_at(Settings, path) is None


def test_items_and_the_users_own_keys_belong_to_their_key() -> None:
    route = key_at(Settings, ("route", 3))
    assert route is not None
    assert (route.path, route.many) == (("route",), True)
    header = key_at(Settings, ("route", 0, "headers", "set", "X-Any"))
    assert header is not None
    assert (header.path[-1], header.mapping) == ("set", True)


def test_sections() -> None:
    assert section_at(Settings, ()) is Settings
    assert section_at(Settings, ("route", 0)) is RouteSettings
    assert section_at(Settings, ("route", 0, "deny", 1)) is RuleSettings
    assert section_at(Settings, ("route", 0, "headers")) is HeaderSettings
    assert section_at(Settings, ("listen",)) is None
    assert section_at(Settings, ("nope",)) is None


def test_secrets_are_known_as_such() -> None:
    assert {dotted(key.path) for key in keys(Settings) if key.secret} == {
        "secret",
        "logto.app_secret",
        "logto.webhook_key",
        "logto.application[].app_secret",
        "session.store",
        "discord.bot_token",
    }


def test_names() -> None:
    assert dotted(()) == "settings"
    assert dotted(("route", 2, "upstream", 0)) == "route[2].upstream[0]"
    assert dotted(("headers", "X A", "x\ny")) == 'headers."X A"."x\N{REPLACEMENT CHARACTER}y"'
    assert dotted(("route", "*", "name")) == "route[].name"
    assert variable(("route", "*", "headers", "set")) == "POSTERN_ROUTE__N__HEADERS__SET"
    assert variable(("route", 0, "name")) == "POSTERN_ROUTE__0__NAME"


def test_values() -> None:
    tree = {"a": [{"b": 1}], "c": 5}
    assert value_at(("a", 0, "b"), tree) == 1
    assert value_at((), tree) is tree
    assert value_at(("a", 1), tree) is None
    assert value_at(("a", "b"), tree) is None
    assert value_at(("c", "d"), tree) is None
