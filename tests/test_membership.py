"""What a rule asks of a guild's member, and how a member is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.membership import GuildRule, Member, member_from
from proxy.route_settings import DiscordRule

GUILD = "200000000000000001"
A, B, C = "300000000000000001", "300000000000000002", "300000000000000003"
DAY = 86400.0
NOW = 1000 * DAY


def rule(**more: Any) -> GuildRule:
    compiled = GuildRule.compiled(DiscordRule.model_validate({"guild": GUILD, **more}))
    assert compiled is not None
    return compiled


@pytest.mark.parametrize(
    ("asked", "member", "lets_in", "keeps_out"),
    [
        ({}, None, False, False),
        ({}, Member(), True, True),
        ({}, Member(pending=True), False, True),
        ({"roles": [A]}, Member(), False, False),
        ({"roles": [A]}, Member(frozenset({A, C})), True, True),
        ({"roles": [A, B]}, Member(frozenset({B})), True, True),
        ({"roles": [A]}, Member(frozenset({A}), pending=True), False, True),
        ({"roles": [A]}, None, False, False),
        ({"all_roles": [A, B]}, Member(frozenset({B})), False, False),
        ({"all_roles": [A, B]}, Member(frozenset({A, B, C})), True, True),
        ({"roles": [C], "all_roles": [A, B]}, Member(frozenset({A, B})), False, False),
        ({"owner": True}, Member(owner=True), True, True),
        ({"owner": True}, Member(frozenset({A})), False, False),
        ({"member_for": "7d"}, Member(joined_at=NOW - 7 * DAY), True, True),
        ({"member_for": "7d"}, Member(joined_at=NOW - 6 * DAY), False, False),
        ({"member_for": "7d"}, Member(joined_at=NOW + DAY), False, False),
        ({"member_for": "7d"}, Member(), False, True),  # unknown: the cautious side
    ],
)
def test_what_holds(asked: dict[str, Any], member: Member | None, lets_in: bool, keeps_out: bool) -> None:
    assert rule(**asked).holds(member, NOW, deny=False) is lets_in
    assert rule(**asked).holds(member, NOW, deny=True) is keeps_out


def test_without_a_guild_there_is_no_rule() -> None:
    assert GuildRule.compiled(None) is None
    assert GuildRule.compiled(DiscordRule.model_validate({"users": ["100000000000000001"]})) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=30)
    | st.sampled_from([A, "9999-12-31T23:59:59+00:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["roles", "joined_at", "pending", "user", "x"]), JSON), st.booleans())
def test_any_object_is_some_member(body: dict[str, Any], owner: bool) -> None:
    member = member_from(body, owner=owner)
    assert all(isinstance(role, str) for role in member.roles)
    assert member.owner is owner
    assert isinstance(member.pending, bool)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00+00:00", 60.0),
        ("1970-01-01T00:01:00.500000+00:00", 60.5),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("", None),
        ("yesterday", None),
        (60, None),
        (None, None),
    ],
)
def test_times(text: Any, seconds: float | None) -> None:
    assert member_from({"joined_at": text}, owner=False).joined_at == seconds
