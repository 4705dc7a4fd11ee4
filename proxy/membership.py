"""What Discord says of somebody in a guild, and what a rule asks of them.

Decoded leniently, trusted narrowly: Discord adds fields at will, and what is missing or of another type counts as the less of
two things. A member who has yet to accept the guild's rules (`pending`) is none as far as letting in goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from proxy.route_settings import DiscordRule


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a guild. `roles` are ids, without the one that everybody has; `joined_at` in epoch seconds."""

    roles: frozenset[str] = frozenset()
    joined_at: float | None = None
    pending: bool = False
    owner: bool = False


class Doubt(Enum):
    """Why it is not known whether somebody is a member."""

    ASK = "ask"  # nobody has asked lately: `learn` may help
    LOST = "lost"  # Discord has not answered, or not what it should have, and may not be asked again yet


# Guild id -> the member, or None for somebody who is no member there. A guild that is missing is one nobody can tell about.
Members = Mapping[str, Member | None]


def member_from(body: Mapping[str, Any], *, owner: bool) -> Member:
    """Read Discord's guild member object."""
    roles = body.get("roles")
    return Member(
        roles=frozenset(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else frozenset(),
        joined_at=_time(body.get("joined_at")),
        pending=body.get("pending") is True,
        owner=owner,
    )


def _time(value: object) -> float | None:
    """The epoch seconds of an ISO 8601 time, taken as UTC where it names no zone; None when it is none."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class GuildRule:
    """What a rule asks about one guild, compiled. Everything given must hold; of `roles` one is enough."""

    guild: str
    roles: frozenset[str] | None
    all_roles: frozenset[str]
    owner: bool
    member_for: float  # seconds

    @classmethod
    def compiled(cls, rule: DiscordRule | None) -> GuildRule | None:
        """The part of `rule` that is about a guild; None without one."""
        if rule is None or rule.guild is None:
            return None
        return cls(
            guild=rule.guild,
            roles=None if rule.roles is None else frozenset(rule.roles),
            all_roles=frozenset(rule.all_roles or ()),
            owner=bool(rule.owner),
            member_for=rule.member_for or 0.0,
        )

    def holds(self, member: Member | None, now: float, *, deny: bool) -> bool:
        """Whether it holds for `member` at `now` (epoch seconds); what denies does not need them to be settled in."""
        if member is None or (member.pending and not deny):
            return False
        return (
            (self.roles is None or not self.roles.isdisjoint(member.roles))
            and self.all_roles <= member.roles
            and (not self.owner or member.owner)
            and (not self.member_for or self._long_enough(member.joined_at, now, unknown=deny))
        )

    def _long_enough(self, joined_at: float | None, now: float, *, unknown: bool) -> bool:
        return unknown if joined_at is None else now - joined_at >= self.member_for
