"""Who may pass: a route's rules, compiled; a person and a request in, a decision with its reason out.

`deny` wins over `allow`. Within a rule every criterion must hold, within a criterion one value is enough, and one rule of a
list is enough. Nobody matches a criterion about persons, so nobody is let in by one, and nobody is kept out by one either:
`allow = "everyone"` with a denied user keeps that user out only while signed in. Where a fact is missing the cautious side is
taken: an unknown address is in no network that is allowed and in every one that is denied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal

from proxy.claims import Identity
from proxy.criteria import (
    Address,
    Expected,
    Network,
    Values,
    at_least,
    claim_holds,
    claims_covered,
    domain_of,
    expected_of,
    folded,
    is_below,
    is_below_one,
    is_within,
    networks_covered,
    set_of,
    spelled,
)
from proxy.membership import GuildRule, Members
from proxy.settings import RouteSettings, RuleSettings

Mode = Literal["everyone", "signed-in", "rules"]


class Reason(Enum):
    """Why a decision is what it is. The value is what logs and answers carry; `word` is the same at the price of an attribute."""

    def __init__(self, word: str) -> None:
        self.word = word

    EVERYONE = "everyone"  # the route asks for nothing
    SIGNED_IN = "signed_in"  # any user may
    RULE = "rule"  # a rule of `allow` holds
    DENY_RULE = "deny_rule"  # a rule of `deny` holds
    NO_RULE = "no_rule"  # no rule of `allow` holds
    NOT_SIGNED_IN = "not_signed_in"  # nobody is there whom a rule could hold for
    MEMBERSHIP_UNKNOWN = "membership_unknown"  # it depends on a Discord guild, and who is in it is not known
    NOT_A_MEMBER = "not_a_member"  # the route is for the members of an organization in Logto
    SIGN_IN_TOO_OLD = "sign_in_too_old"  # a rule would hold, had the person signed in lately


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of a request.

    `rule` is the index, from 0, of the rule that decided, in `allow` for RULE and in `deny` for DENY_RULE. `detail` is a
    sentence for people; it names criteria, never whom they are about. `needs_sign_in`: refused only because nobody is signed
    in, or not lately, so a sign-in may help.
    """

    allowed: bool
    reason: Reason
    rule: int | None = None
    detail: str = ""
    needs_sign_in: bool = False


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What policies see of a request: `path` normalised, `client` None when unknown, `now` in epoch seconds.

    `signed_in_at` (epoch seconds) is when the person was last asked who they are, None when that is unknown; `members` is what
    Discord says of the person in the guilds that the policy names.
    """

    method: str
    path: str
    client: Address | None
    now: float
    signed_in_at: float | None = None
    members: Members = field(default_factory=dict)


_EVERYONE: Final = Decision(True, Reason.EVERYONE, detail="the route is open to everyone")
_SIGNED_IN: Final = Decision(True, Reason.SIGNED_IN, detail="the route is open to any signed-in user")
_NOT_SIGNED_IN: Final = Decision(False, Reason.NOT_SIGNED_IN, detail="nobody is signed in", needs_sign_in=True)
_UNKNOWN: Final = Decision(False, Reason.MEMBERSHIP_UNKNOWN, detail="Discord has not said who is in the guild")
_NOT_A_MEMBER: Final = Decision(False, Reason.NOT_A_MEMBER, detail="the person is not in the route's organization")
_NO_RULE: Final = Decision(False, Reason.NO_RULE, detail="no rule allows it")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule, compiled. Criteria that are not given are None. Equal rules are those that hold for the same requests."""

    users: Values
    usernames: Values
    emails: Values
    email_domains: Values
    roles: Values
    organizations: Values
    organization_roles: Values
    claims: frozenset[Expected] | None
    networks: frozenset[Network] | None
    methods: Values
    paths: Values
    discord_users: Values
    clients: Values
    scopes: frozenset[frozenset[str]] | None  # sets of scopes, of one of which an access token must have every one
    guild: GuildRule | None
    signed_in_within: float | None  # seconds

    @classmethod
    def compiled(cls, rule: RuleSettings) -> _Rule:
        return cls(
            users=set_of(rule.users),
            usernames=set_of(rule.usernames),
            emails=None if rule.emails is None else frozenset(map(folded, rule.emails)),
            email_domains=None if rule.email_domains is None else frozenset(map(folded, rule.email_domains)),
            roles=set_of(rule.roles),
            organizations=set_of(rule.organizations),
            organization_roles=set_of(rule.organization_roles),
            claims=None if rule.claims is None else frozenset(map(expected_of, rule.claims.items())),
            networks=None if rule.networks is None else frozenset(rule.networks),
            methods=set_of(rule.methods),
            paths=set_of(rule.paths),
            discord_users=None if rule.discord is None else set_of(rule.discord.users),
            clients=set_of(rule.clients),
            scopes=None if rule.scopes is None else frozenset(frozenset(one.split(" ")) for one in rule.scopes),
            guild=GuildRule.compiled(rule.discord),
            signed_in_within=rule.signed_in_within,
        )

    @property
    def personal(self) -> bool:
        """Whether a criterion is about persons."""
        return any(
            criterion is not None
            for criterion in (
                self.users, self.usernames, self.emails, self.email_domains, self.roles, self.organizations,
                self.organization_roles, self.claims, self.discord_users, self.clients, self.scopes, self.guild,
                self.signed_in_within,
            )
        )  # fmt: skip

    @property
    def sees_request(self) -> bool:
        """Whether a criterion is about anything but the person: the request, the time, or a guild."""
        return any(
            criterion is not None
            for criterion in (self.networks, self.methods, self.paths, self.guild, self.signed_in_within)
        )

    @property
    def sees_more(self) -> bool:
        """Whether a criterion is about anything but the person and the method."""
        return any(
            criterion is not None for criterion in (self.networks, self.paths, self.guild, self.signed_in_within)
        )

    @property
    def criteria(self) -> str:
        """The names of the criteria given."""
        return ", ".join(name for name in self.__slots__ if getattr(self, name) is not None)

    def fits_person(self, identity: Identity) -> bool:
        """Whether every criterion about persons holds for `identity`."""
        return (
            (self.users is None or identity.sub in self.users)
            and (self.usernames is None or identity.username in self.usernames)
            and (self.roles is None or not self.roles.isdisjoint(identity.roles))
            and (self.organizations is None or not self.organizations.isdisjoint(identity.organizations))
            and (self.organization_roles is None or not self.organization_roles.isdisjoint(identity.organization_roles))
            and (self.emails is None or (identity.email is not None and folded(identity.email) in self.emails))
            and (self.email_domains is None or domain_of(identity.email) in self.email_domains)
            and (self.discord_users is None or identity.discord_id in self.discord_users)
            and (self.claims is None or all(claim_holds(identity.claims, claim) for claim in self.claims))
            and (self.clients is None or identity.client in self.clients)
            and (self.scopes is None or any(scopes.issubset(identity.scopes) for scopes in self.scopes))
        )

    def could_fit(self, identity: Identity) -> bool:
        """Whether nothing that an access token says speaks against every criterion about persons holding.

        It names a subject, a client and scopes, and of everything else only what somebody had put into it: who is banned by a
        role must not come in by a token that is silent on roles.
        """
        told = identity.claims
        return (
            (self.users is None or identity.sub in self.users)
            and (self.clients is None or identity.client in self.clients)
            and (self.scopes is None or any(scopes.issubset(identity.scopes) for scopes in self.scopes))
            and (self.usernames is None or identity.username is None or identity.username in self.usernames)
            and (self.roles is None or "roles" not in told or not self.roles.isdisjoint(identity.roles))
            and (self.emails is None or identity.email is None or folded(identity.email) in self.emails)
            and (
                self.email_domains is None or identity.email is None or domain_of(identity.email) in self.email_domains
            )
            and (self.discord_users is None or identity.discord_id is None or identity.discord_id in self.discord_users)
        )

    def speaks_of(self, identity: Identity | None) -> bool:
        """Whether a rule of `deny` is to be taken as one about `identity`; nobody is in none that is about persons."""
        if identity is None:
            return not self.personal
        return self.could_fit(identity) if identity.is_program else self.fits_person(identity)

    def fits_request(self, facts: RequestFacts, *, deny: bool) -> bool:
        """Whether every criterion about the request holds.

        Methods are case-sensitive (RFC 9110 9.1), but an app may not know: what denies DELETE denies `delete`.
        """
        method = facts.method.upper() if deny else facts.method
        return (
            (self.methods is None or method in self.methods)
            and (self.networks is None or is_within(facts.client, self.networks, unknown=deny))
            and (self.paths is None or is_below(facts.path, self.paths, deny=deny))
        )

    def fits_member(self, identity: Identity | None, facts: RequestFacts, *, deny: bool) -> bool | None:
        """Whether the criteria about a guild hold; None when that is not known."""
        if self.guild is None:
            return True
        if identity is None or identity.discord_id is None:
            return deny and identity is not None and identity.is_program  # a token says nothing of Discord
        if self.guild.guild not in facts.members:
            return None
        return self.guild.holds(facts.members[self.guild.guild], facts.now, deny=deny)

    def is_fresh(self, facts: RequestFacts) -> bool:
        """Whether the person signed in lately enough. A sign-in to come is a clock's skew."""
        if self.signed_in_within is None:
            return True
        return facts.signed_in_at is not None and facts.now - facts.signed_in_at <= self.signed_in_within

    def covers(self, other: _Rule) -> bool:
        """Whether this rule certainly holds wherever `other` does: it asks for nothing that the other does not."""
        return (
            all(at_least(mine, theirs) for mine, theirs in self._sets(other))
            and self.guild in (None, other.guild)
            and claims_covered(self.claims, other.claims)
            and (self.scopes is None or (other.scopes is not None and other.scopes <= self.scopes))
            and networks_covered(self.networks, other.networks)
            and (
                self.paths is None
                or (other.paths is not None and all(is_below_one(p, self.paths) for p in other.paths))
            )
            and (
                self.signed_in_within is None
                or (other.signed_in_within is not None and other.signed_in_within <= self.signed_in_within)
            )
        )

    def _sets(self, other: _Rule) -> Iterator[tuple[Values, Values]]:
        for name in ("users", "usernames", "emails", "roles", "organizations", "organization_roles", "methods"):
            yield getattr(self, name), getattr(other, name)
        yield self.email_domains, other.email_domains
        yield self.discord_users, other.discord_users
        yield self.clients, other.clients


@dataclass(frozen=True, slots=True)
class _Judged:
    """A rule with what follows when it holds, and what is worth knowing of it beforehand."""

    rule: _Rule
    decision: Decision
    personal: bool  # some criterion is about persons
    anytime: bool  # no criterion is about the request
    stale: Decision  # what follows when it would hold, had the person signed in lately


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Policy:
    """The rules of one route: immutable; equal to another when the same requests pass it.

    `anonymous`: everyone passes, `any_user`: every signed-in user does, both without a look at anything else. `sees_request`:
    more than who somebody is counts, `sees_method_alone`: nothing but that and the method does. `paths` are those that rules
    name, `guilds` the Discord guilds, `owned` those of whose owners they speak.
    """

    _mode: Mode
    _allow: tuple[_Judged, ...]
    _deny: tuple[_Judged, ...]
    _key: tuple[Mode, frozenset[_Rule], frozenset[_Rule], str | None]
    _organization: str | None
    anonymous: bool
    any_user: bool
    sees_request: bool
    sees_method_alone: bool
    paths: frozenset[str]
    guilds: frozenset[str]
    owned: frozenset[str]

    @classmethod
    def from_settings(cls, route: RouteSettings) -> Policy:
        """The policy that a route's `allow` and `deny` make."""
        mode: Mode = route.allow if isinstance(route.allow, str) else "rules"
        rules = () if isinstance(route.allow, str) else route.allow
        allow = tuple(_judged(index, rule, allow=True) for index, rule in enumerate(rules))
        deny = tuple(_judged(index, rule, allow=False) for index, rule in enumerate(route.deny))
        asked = [one.rule.guild for one in (*allow, *deny) if one.rule.guild is not None]
        return cls(
            _mode=mode,
            _allow=allow,
            _deny=deny,
            _key=(
                mode,
                frozenset(one.rule for one in allow),
                frozenset(one.rule for one in deny),
                route.organization,
            ),
            _organization=route.organization,
            anonymous=mode == "everyone" and not deny and route.organization is None,
            any_user=mode == "signed-in" and not deny and route.organization is None,
            sees_request=any(one.rule.sees_request for one in (*allow, *deny)),
            sees_method_alone=not any(one.rule.sees_more for one in (*allow, *deny)),
            guilds=frozenset(guild.guild for guild in asked),
            owned=frozenset(guild.guild for guild in asked if guild.owner),
            paths=frozenset(path for one in (*allow, *deny) for path in one.rule.paths or ()),
        )

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Policy) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Policy({self._mode}, allow={len(self._allow)}, deny={len(self._deny)})"

    def zone(self, path: str) -> frozenset[str]:
        """Which of the paths that rules name `path` is in, however it is spelled: in one zone the same rules apply."""
        if not self.paths:
            return self.paths
        exactly = {named for named in self.paths if is_below_one(path, spelled(named))}
        lowered = path.casefold()
        generously = {"~" + named for named in self.paths if is_below_one(lowered, map(str.casefold, spelled(named)))}
        return frozenset(exactly | generously)

    def doubts(self) -> Iterator[str]:
        """Rules that can change nothing, a sentence each: another one always speaks first, or says the same."""
        for one in self._allow:
            deny = next((other for other in self._deny if other.rule.covers(one.rule)), None)
            if deny is not None:
                yield f"allow[{one.decision.rule}] lets nobody in: deny[{deny.decision.rule}] keeps out everybody it fits"
        for name, rules in (("allow", self._allow), ("deny", self._deny)):
            for index, one in enumerate(rules):
                for before, other in enumerate(rules):
                    equal = one.rule == other.rule
                    if before != index and other.rule.covers(one.rule) and (before < index or not equal):
                        yield f"{name}[{index}] adds nothing: {name}[{before}] holds whenever it does"
                        break

    def decide(self, identity: Identity | None, facts: RequestFacts) -> Decision:
        """Whether `identity` (None: nobody is signed in) may make the request that `facts` describe."""
        for one in self._deny:
            if one.rule.speaks_of(identity) and (one.anytime or one.rule.fits_request(facts, deny=True)):
                member = one.rule.fits_member(identity, facts, deny=True)
                if member is None:
                    return _UNKNOWN
                if member:
                    return one.decision
        if self._organization is None:
            return self._allowed(identity, facts)
        if identity is not None and self._organization not in identity.organizations:
            return _NOT_A_MEMBER
        decision = self._allowed(identity, facts)
        # A rule on networks alone lets nobody in particular pass: nobody is in an organization.
        return _NOT_SIGNED_IN if identity is None and decision.allowed else decision

    def _allowed(self, identity: Identity | None, facts: RequestFacts) -> Decision:
        """What `allow` says."""
        if self._mode == "everyone":
            return _EVERYONE
        if self._mode == "signed-in":
            return _NOT_SIGNED_IN if identity is None else _SIGNED_IN
        refusal = _NO_RULE
        for one in self._allow:
            if not (one.anytime or one.rule.fits_request(facts, deny=False)):
                continue
            if identity is None and one.personal:
                refusal = _NOT_SIGNED_IN  # this rule could hold for somebody
            elif identity is None or one.rule.fits_person(identity):
                member = one.rule.fits_member(identity, facts, deny=False)
                if member and one.rule.is_fresh(facts):
                    return one.decision
                if member is None:
                    refusal = _UNKNOWN
                elif member and refusal is not _UNKNOWN:
                    refusal = one.stale
        return refusal


def _judged(index: int, settings: RuleSettings, *, allow: bool) -> _Judged:
    rule = _Rule.compiled(settings)
    reason, name = (Reason.RULE, "allow") if allow else (Reason.DENY_RULE, "deny")
    decision = Decision(allow, reason, index, f"{name}[{index}] holds ({rule.criteria})")
    anytime = rule.methods is None and rule.networks is None and rule.paths is None
    detail = (
        f"allow[{index}] holds only for {rule.signed_in_within:.0f} s after a sign-in" if rule.signed_in_within else ""
    )
    stale = Decision(False, Reason.SIGN_IN_TOO_OLD, index, detail, needs_sign_in=True)
    return _Judged(rule, decision, rule.personal, anytime, stale)
