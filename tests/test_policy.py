"""Policies: who passes, why, and what no rule may ever do."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.claims import Identity
from proxy.membership import Member, Members
from proxy.policy import Decision, Policy, Reason, RequestFacts
from proxy.settings import RouteSettings

ADA = Identity(
    sub="ada1",
    username="ada",
    name="Ada",
    email="Ada@Corp.example",
    roles=("ops", "dev"),
    organizations=("acme",),
    organization_roles=("acme:admin",),
    discord_id="100000000000000001",
    claims={
        "team": "blue",
        "level": 3,
        "staff": True,
        "tags": ["x", 7],
        "none": None,
        "custom_data": {"plan": "pro", "a.b": 1},
        "dotted.key": "d",
        "object": {"x": 1},
    },
)
NOBODY_SPECIAL = Identity(sub="eve1")


def policy(allow: Any = "signed-in", deny: Any = ()) -> Policy:
    raw = {"name": "r", "upstream": "http://a:1", "allow": allow, "deny": list(deny)}
    return Policy.from_settings(RouteSettings.model_validate(raw))


def facts(
    method: str = "GET",
    client: str | None = "10.1.2.3",
    path: str = "/",
    signed_in_at: float | None = None,
    members: Members | None = None,
) -> RequestFacts:
    address = None if client is None else ip_address(client)
    return RequestFacts(method, path, address, 10_000.0, signed_in_at, {} if members is None else members)


def test_everyone_and_any_user() -> None:
    everyone, any_user = policy("everyone"), policy()
    assert (everyone.anonymous, everyone.any_user) == (True, False)
    assert (any_user.anonymous, any_user.any_user) == (False, True)
    for identity in (None, ADA):
        decision = everyone.decide(identity, facts())
        assert (decision.allowed, decision.reason, decision.needs_sign_in) == (True, Reason.EVERYONE, False)
    assert any_user.decide(ADA, facts()).reason is Reason.SIGNED_IN
    refused = any_user.decide(None, facts())
    assert (refused.allowed, refused.reason, refused.needs_sign_in) == (False, Reason.NOT_SIGNED_IN, True)


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ({"users": ["ada1"]}, True),
        ({"users": ["ada"]}, False),
        ({"users": ["ADA1"]}, False),  # ids are opaque
        ({"usernames": ["ada", "bob"]}, True),
        ({"usernames": ["Ada"]}, False),
        ({"emails": ["ada@corp.example"]}, True),
        ({"emails": ["ADA@CORP.EXAMPLE"]}, True),
        ({"emails": ["eve@corp.example"]}, False),
        ({"email_domains": ["corp.example"]}, True),
        ({"email_domains": ["CORP.Example"]}, True),
        ({"email_domains": ["example"]}, False),
        ({"email_domains": ["sub.corp.example"]}, False),
        ({"roles": ["ops"]}, True),
        ({"roles": ["admin", "dev"]}, True),
        ({"roles": ["Ops"]}, False),
        ({"roles": ["acme:admin"]}, False),
        ({"organizations": ["acme"]}, True),
        ({"organizations": ["acm"]}, False),
        ({"organization_roles": ["acme:admin"]}, True),
        ({"organization_roles": ["other:admin"]}, False),
        ({"claims": {"team": "blue"}}, True),
        ({"claims": {"team": ["red", "blue"]}}, True),
        ({"claims": {"team": "red"}}, False),
        ({"claims": {"team": "blue", "level": 3}}, True),
        ({"claims": {"team": "blue", "level": 4}}, False),
        ({"claims": {"level": 3.0}}, True),
        ({"claims": {"level": "3"}}, False),
        ({"claims": {"staff": True}}, True),
        ({"claims": {"staff": 1}}, False),
        ({"claims": {"staff": "true"}}, False),
        ({"claims": {"tags": "x"}}, True),
        ({"claims": {"tags": 7}}, True),
        ({"claims": {"tags": ["z", "x"]}}, True),
        ({"claims": {"custom_data.plan": "pro"}}, True),
        ({"claims": {"dotted.key": "d"}}, True),
        ({"claims": {"custom_data.a.b": 1}}, False),
        ({"claims": {"none": "None"}}, False),
        ({"claims": {"absent": "x"}}, False),
        ({"claims": {"object": "x"}}, False),
        ({"networks": ["10.0.0.0/8"]}, True),
        ({"networks": ["10.0.0.0/16", "10.1.0.0/16"]}, True),
        ({"networks": ["192.168.0.0/16"]}, False),
        ({"networks": ["::/0"]}, False),
        ({"methods": ["GET"]}, True),
        ({"methods": ["get"]}, True),
        ({"methods": ["POST", "PUT"]}, False),
        ({"paths": ["/"]}, True),
        ({"paths": ["/admin"]}, False),
        ({"discord": {"users": ["100000000000000001"]}}, True),
        ({"discord": {"users": ["100000000000000002"]}}, False),
        ({"roles": ["ops"], "networks": ["10.0.0.0/8"], "methods": ["GET"]}, True),
        ({"roles": ["ops"], "networks": ["11.0.0.0/8"]}, False),
        ({"roles": ["admin"], "networks": ["10.0.0.0/8"]}, False),
        ({"roles": ["ops"], "methods": ["POST"]}, False),
    ],
)
def test_each_criterion(rule: dict[str, Any], holds: bool) -> None:
    allowed = policy([rule]).decide(ADA, facts())
    assert allowed.allowed is holds
    assert allowed.reason is (Reason.RULE if holds else Reason.NO_RULE)
    denied = policy("everyone", [rule]).decide(ADA, facts())
    assert denied.allowed is not holds
    assert denied.reason is (Reason.DENY_RULE if holds else Reason.EVERYONE)
    assert not allowed.needs_sign_in
    assert not denied.needs_sign_in


EMAILS: list[tuple[str | None, dict[str, list[str]], bool]] = [
    (None, {"email_domains": ["corp"]}, False),
    ("a@corp", {"email_domains": ["corp"]}, True),
    ("a@evil@corp", {"email_domains": ["corp"]}, False),
    ('"a@evil"@corp', {"email_domains": ["corp"]}, False),
    ("a@corp@evil", {"email_domains": ["corp"]}, False),
    ("@corp", {"email_domains": ["corp"]}, False),
    ("corp", {"email_domains": ["corp"]}, False),
    ("a@xcorp", {"email_domains": ["corp"]}, False),
    ("a@corp.", {"email_domains": ["corp"]}, False),
    ("a@sub.corp", {"email_domains": ["corp"]}, False),
    ("a@CORP", {"email_domains": ["corp"]}, True),
    ("a@corp ", {"email_domains": ["corp"]}, False),
    ("a@\uff43orp", {"email_domains": ["corp"]}, False),  # a full-width c
    ("a@\u212aelvin.example", {"email_domains": ["kelvin.example"]}, False),  # the Kelvin sign
    ("a@stra\u00dfe.example", {"email_domains": ["strasse.example"]}, False),
    ("a@stra\u00dfe.example", {"email_domains": ["xn--strae-oqa.example"]}, True),
    ("a@b\u00fccher.example", {"email_domains": ["xn--bcher-kva.example"]}, True),
    ("a@bu\u0308cher.example", {"email_domains": ["xn--bcher-kva.example"]}, False),  # decomposed: no domain is
    ("a@XN--BCHER-KVA.example", {"email_domains": ["xn--bcher-kva.example"]}, True),
    ("stra\u00dfe@corp.com", {"emails": ["strasse@corp.com"]}, False),
    ("mi\u212ae@corp.com", {"emails": ["mike@corp.com"]}, False),
    ("m\u0131ke@corp.com", {"emails": ["mike@corp.com"]}, False),  # a dotless i
    ("Mike@Corp.com", {"emails": ["mike@corp.com"]}, True),
    ("mike@corp.com", {"emails": ["MIKE@corp.com"]}, True),
    ("J\u00f6rg@corp.com", {"emails": ["j\u00f6rg@corp.com"]}, True),
    ("a@b\u00fccher.example", {"emails": ["a@xn--bcher-kva.example"]}, True),
    (None, {"emails": ["mike@corp.com"]}, False),
]


@pytest.mark.parametrize(("email", "rule", "holds"), EMAILS)
def test_an_address_is_whose_it_looks_like_or_nobodys(email: str | None, rule: dict[str, Any], holds: bool) -> None:
    identity = Identity(sub="x", email=email, claims={"email": "mike@corp.com", "email_verified": False})
    assert policy([rule]).decide(identity, facts()).allowed is holds


def test_deny_wins_and_says_which_rule() -> None:
    decision = policy([{"roles": ["ops"]}], [{"users": ["other"]}, {"users": ["ada1"], "methods": ["GET"]}]).decide(
        ADA, facts()
    )
    assert decision == Decision(False, Reason.DENY_RULE, 1, "deny[1] holds (users, methods)", needs_sign_in=False)


def test_the_rule_that_allows_is_named() -> None:
    decision = policy([{"roles": ["x"]}, {"organizations": ["acme"]}, {"users": ["ada1"]}]).decide(ADA, facts())
    assert decision == Decision(True, Reason.RULE, 1, "allow[1] holds (organizations)")
    assert policy([{"roles": ["x"]}]).decide(ADA, facts()).detail == "no rule allows it"


@pytest.mark.parametrize(
    ("allow", "deny", "method", "client", "reason"),
    [
        ([{"roles": ["ops"]}], [], "GET", "10.1.2.3", Reason.NOT_SIGNED_IN),
        ([{"roles": ["ops"], "methods": ["POST"]}], [], "GET", "10.1.2.3", Reason.NO_RULE),  # signing in would not help
        ([{"roles": ["ops"], "methods": ["POST"]}], [], "POST", "10.1.2.3", Reason.NOT_SIGNED_IN),
        ([{"roles": ["ops"], "networks": ["11.0.0.0/8"]}], [], "GET", "10.1.2.3", Reason.NO_RULE),
        ([{"networks": ["10.0.0.0/8"]}], [], "GET", "10.1.2.3", Reason.RULE),  # no sign-in from there
        ([{"networks": ["10.0.0.0/8"]}], [], "GET", "9.9.9.9", Reason.NO_RULE),
        ([{"networks": ["10.0.0.0/8"]}, {"roles": ["ops"]}], [], "GET", "9.9.9.9", Reason.NOT_SIGNED_IN),
        ([{"roles": ["ops"]}, {"networks": ["10.0.0.0/8"]}], [], "GET", "10.9.9.9", Reason.RULE),
        ([{"methods": ["GET", "HEAD"]}], [], "GET", None, Reason.RULE),
        ("everyone", [{"users": ["ada1"]}], "GET", "10.1.2.3", Reason.EVERYONE),  # nobody is not ada
        ("everyone", [{"networks": ["10.0.0.0/8"]}], "GET", "10.1.2.3", Reason.DENY_RULE),
        ("everyone", [{"networks": ["10.0.0.0/8"], "users": ["ada1"]}], "GET", "10.1.2.3", Reason.EVERYONE),
        ("signed-in", [{"methods": ["DELETE"]}], "DELETE", "10.1.2.3", Reason.DENY_RULE),
        ("signed-in", [{"methods": ["DELETE"]}], "GET", "10.1.2.3", Reason.NOT_SIGNED_IN),
        ("signed-in", [{"users": ["ada1"]}], "GET", "10.1.2.3", Reason.NOT_SIGNED_IN),
    ],
)
def test_nobody(allow: Any, deny: Any, method: str, client: str | None, reason: Reason) -> None:
    decision = policy(allow, deny).decide(None, facts(method, client))
    assert decision.reason is reason
    assert decision.allowed is (reason in (Reason.RULE, Reason.EVERYONE))
    assert decision.needs_sign_in is (reason is Reason.NOT_SIGNED_IN)


@pytest.mark.parametrize(
    ("client", "network", "holds"),
    [
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),  # a v4 client on a dual-stack socket
        ("::ffff:11.1.2.3", "10.0.0.0/8", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.4", "10.1.2.3", False),
    ],
)
def test_networks(client: str, network: str, holds: bool) -> None:
    assert policy([{"networks": [network]}]).decide(None, facts(client=client)).allowed is holds


def test_an_unknown_address_is_taken_the_cautious_way() -> None:
    rule = {"networks": ["10.0.0.0/8"]}
    assert not policy([rule]).decide(ADA, facts(client=None)).allowed
    assert not policy("everyone", [rule]).decide(ADA, facts(client=None)).allowed


def test_a_method_in_another_case_is_denied_but_not_allowed() -> None:
    """Methods are case-sensitive, apps are not always."""
    assert not policy([{"methods": ["DELETE"]}]).decide(ADA, facts("delete")).allowed
    assert not policy("everyone", [{"methods": ["DELETE"]}]).decide(ADA, facts("delete")).allowed


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (("everyone",), ("everyone",), True),
        (("everyone",), ("signed-in",), False),
        (("signed-in",), ("signed-in", [{"users": ["a"]}]), False),
        (([{"users": ["a", "b"]}],), ([{"users": ["b", "a"]}],), True),
        (([{"users": ["a"]}, {"roles": ["r"]}],), ([{"roles": ["r"]}, {"users": ["a"]}],), True),
        (([{"users": ["a"]}],), ([{"usernames": ["a"]}],), False),
        (([{"users": ["a"]}],), ([{"users": ["a"], "methods": ["GET"]}],), False),
        (([{"claims": {"a": 1}}],), ([{"claims": {"a": True}}],), False),
        (([{"claims": {"a": [1, 2]}}],), ([{"claims": {"a": [2, 1]}}],), True),
        (([{"email_domains": ["A.example"]}],), ([{"email_domains": ["a.example"]}],), True),
        (([{"networks": ["10.0.0.0/8"]}],), ([{"networks": ["10.0.0.0/9"]}],), False),
    ],
)
def test_policies_are_equal_when_their_rules_are(one: Any, other: Any, equal: bool) -> None:
    first, second = policy(*one), policy(*other)
    assert (first == second) is equal
    assert first == policy(*one)
    if equal:
        assert hash(first) == hash(second)
    assert first != "everyone"
    assert "Policy(" in repr(first)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        policy().anonymous = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "place", "allowed", "denied"),
    [
        ("/admin", "/admin", True, True),
        ("/admin/", "/admin", True, True),
        ("/admin/x/y", "/admin", True, True),
        ("/administrator", "/admin", False, False),
        ("/", "/admin", False, False),
        ("/x/admin", "/admin", False, False),
        ("/anything", "/", True, True),
        ("/ADMIN/x", "/admin", False, True),  # an app may not care about case
        ("/caf\u00e9/x", "/caf\u00e9", True, True),
        ("/caf%C3%A9", "/caf\u00e9", False, True),  # an app may decode nothing
        ("/caf%c3%a9/x", "/caf\u00e9", False, True),
        ("/cafe", "/caf\u00e9", False, False),
    ],
)
def test_paths(path: str, place: str, allowed: bool, denied: bool) -> None:
    rule = {"paths": [place]}
    assert policy([rule]).decide(None, facts(path=path)).allowed is allowed
    assert policy("everyone", [rule]).decide(None, facts(path=path)).allowed is not denied


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (0, Reason.RULE),
        (900, Reason.RULE),
        (901, Reason.SIGN_IN_TOO_OLD),
        (-50, Reason.RULE),  # a clock's skew
        (None, Reason.SIGN_IN_TOO_OLD),
    ],
)
def test_signed_in_within(age: float | None, reason: Reason) -> None:
    rules = policy([{"roles": ["ops"], "signed_in_within": "15m"}])
    asked = facts(signed_in_at=None if age is None else 10_000.0 - age)
    decision = rules.decide(ADA, asked)
    assert decision.reason is reason
    assert decision.allowed is (reason is Reason.RULE)
    assert decision.needs_sign_in is not decision.allowed
    assert rules.decide(NOBODY_SPECIAL, asked).reason is Reason.NO_RULE  # to whom a new sign-in would not help
    assert rules.decide(None, asked).reason is Reason.NOT_SIGNED_IN


def test_a_sign_in_of_long_ago_is_asked_again_only_where_no_other_rule_holds() -> None:
    fresh = {"roles": ["ops"], "signed_in_within": "15m"}
    assert policy([fresh, {"roles": ["dev"]}]).decide(ADA, facts()).allowed
    assert policy([fresh, {"roles": ["nobody"]}]).decide(ADA, facts()).reason is Reason.SIGN_IN_TOO_OLD
    assert policy([{"methods": ["POST"], **fresh}]).decide(ADA, facts()).reason is Reason.NO_RULE
    assert policy([fresh], [{"users": ["ada1"]}]).decide(ADA, facts()).reason is Reason.DENY_RULE


GUILD, MOD = "200000000000000001", "300000000000000001"
GUILD_RULE = {"discord": {"guild": GUILD, "roles": [MOD]}}


@pytest.mark.parametrize(
    ("allow", "deny", "members", "reason"),
    [
        ([GUILD_RULE], [], {GUILD: Member(frozenset({MOD}))}, Reason.RULE),
        ([GUILD_RULE], [], {GUILD: Member()}, Reason.NO_RULE),
        ([GUILD_RULE], [], {GUILD: None}, Reason.NO_RULE),
        ([GUILD_RULE], [], {}, Reason.MEMBERSHIP_UNKNOWN),
        ([GUILD_RULE, {"roles": ["ops"]}], [], {}, Reason.RULE),  # Discord need not be asked
        ([GUILD_RULE, {"roles": ["no"]}], [], {}, Reason.MEMBERSHIP_UNKNOWN),
        ([{**GUILD_RULE, "roles": ["no"]}], [], {}, Reason.NO_RULE),  # whatever it says
        ([{**GUILD_RULE, "methods": ["PUT"]}], [], {}, Reason.NO_RULE),
        ([{**GUILD_RULE, "signed_in_within": "1h"}], [], {}, Reason.MEMBERSHIP_UNKNOWN),
        ([{**GUILD_RULE, "signed_in_within": "1h"}], [], {GUILD: Member(frozenset({MOD}))}, Reason.SIGN_IN_TOO_OLD),
        ([{"signed_in_within": "1h"}, GUILD_RULE], [], {}, Reason.MEMBERSHIP_UNKNOWN),
        ([GUILD_RULE, {"signed_in_within": "1h"}], [], {}, Reason.MEMBERSHIP_UNKNOWN),
        ("signed-in", [GUILD_RULE], {GUILD: Member(frozenset({MOD}))}, Reason.DENY_RULE),
        ("signed-in", [GUILD_RULE], {GUILD: Member(frozenset({MOD}), pending=True)}, Reason.DENY_RULE),
        ("signed-in", [GUILD_RULE], {GUILD: None}, Reason.SIGNED_IN),
        ("everyone", [GUILD_RULE], {}, Reason.MEMBERSHIP_UNKNOWN),
        ("everyone", [{**GUILD_RULE, "roles": ["no"]}], {}, Reason.EVERYONE),
        ([{"roles": ["ops"]}], [GUILD_RULE], {}, Reason.MEMBERSHIP_UNKNOWN),
        ([GUILD_RULE], [{"users": ["ada1"]}], {}, Reason.DENY_RULE),
    ],
)
def test_guilds(allow: Any, deny: Any, members: Members, reason: Reason) -> None:
    rules = policy(allow, deny)
    decision = rules.decide(ADA, facts(members=members))
    assert decision.reason is reason
    assert decision.allowed is (reason in (Reason.RULE, Reason.SIGNED_IN, Reason.EVERYONE))
    assert rules.guilds == {GUILD}
    assert rules.owned == frozenset()


def test_who_has_no_discord_account_is_in_no_guild() -> None:
    assert policy([GUILD_RULE]).decide(NOBODY_SPECIAL, facts()).reason is Reason.NO_RULE
    assert policy([GUILD_RULE]).decide(None, facts()).reason is Reason.NOT_SIGNED_IN
    assert policy("everyone", [GUILD_RULE]).decide(None, facts()).reason is Reason.EVERYONE
    assert policy([{"discord": {"guild": GUILD, "owner": True}}]).owned == {GUILD}


def lost(allow: int, deny: int) -> str:
    return f"allow[{allow}] lets nobody in: deny[{deny}] keeps out everybody it fits"


def idle(rules: str, one: int, other: int) -> str:
    return f"{rules}[{one}] adds nothing: {rules}[{other}] holds whenever it does"


@pytest.mark.parametrize(
    ("allow", "deny", "doubts"),
    [
        ([{"roles": ["a"]}], [], []),
        ("signed-in", [{"roles": ["a"]}], []),
        ([{"roles": ["a"]}], [{"roles": ["a", "b"]}], [lost(0, 0)]),
        ([{"roles": ["a", "b"]}], [{"roles": ["a"]}], []),
        ([{"roles": ["a"], "methods": ["GET"]}], [{"roles": ["a"]}], [lost(0, 0)]),
        ([{"roles": ["a"]}], [{"roles": ["a"], "methods": ["GET"]}], []),
        ([{"roles": ["a"]}, {"roles": ["a"]}], [], [idle("allow", 1, 0)]),
        ([{"roles": ["a"], "users": ["u"]}, {"roles": ["a"]}], [], [idle("allow", 0, 1)]),
        ([{"roles": ["a"]}, {"roles": ["a"], "signed_in_within": "15m"}], [], [idle("allow", 1, 0)]),
        ([{"signed_in_within": "15m"}, {"signed_in_within": "1h"}], [], [idle("allow", 0, 1)]),
        ([{"networks": ["10.1.0.0/16"]}], [{"networks": ["10.0.0.0/8"]}], [lost(0, 0)]),
        ([{"networks": ["10.0.0.0/8", "::1"]}], [{"networks": ["10.0.0.0/8"]}], []),
        ([{"networks": ["fd00::/64"]}], [{"networks": ["fd00::/8"]}], [lost(0, 0)]),
        ([{"paths": ["/a/b"]}], [{"paths": ["/a"]}], [lost(0, 0)]),
        ([{"paths": ["/a"]}], [{"paths": ["/a/b"]}], []),
        ([{"claims": {"x": 1, "y": 2}}], [{"claims": {"x": [1, 3]}}], [lost(0, 0)]),
        ([{"claims": {"x": 1}}], [{"claims": {"x": 1, "y": 2}}], []),
        ([{"roles": ["x"]}], [{"discord": {"users": ["100000000000000001"]}}], []),
        ("everyone", [{"users": ["a"]}, {"users": ["a", "b"]}], [idle("deny", 0, 1)]),
    ],
)
def test_rules_that_change_nothing_are_pointed_out(allow: Any, deny: Any, doubts: list[str]) -> None:
    assert list(policy(allow, deny).doubts()) == doubts


WORDS = st.sampled_from(["a", "b", "c"])
LISTS = st.lists(WORDS, min_size=1, max_size=2)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "users": LISTS,
        "usernames": LISTS,
        "roles": LISTS,
        "organizations": LISTS,
        "emails": st.lists(st.sampled_from(["a@x.y", "b@x.y"]), min_size=1),
        "email_domains": st.lists(st.sampled_from(["x.y", "z.y"]), min_size=1),
        "claims": st.dictionaries(WORDS, WORDS | st.booleans() | st.lists(WORDS, min_size=1), min_size=1, max_size=2),
        "networks": st.lists(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "::/0"]), min_size=1),
        "methods": st.lists(st.sampled_from(["GET", "POST"]), min_size=1),
        "paths": st.lists(st.sampled_from(["/", "/a", "/a/b"]), min_size=1),
        "discord": st.sampled_from(
            [
                {"users": ["100000000000000001"]},
                {"guild": "200000000000000001"},
                {"guild": "200000000000000001", "owner": True},
            ]
        ),
    },
).filter(bool)
FRESH_RULES = RULES | RULES.map(lambda rule: {**rule, "signed_in_within": "1h"})
ALLOW = st.sampled_from(["everyone", "signed-in"]) | st.lists(FRESH_RULES, min_size=1, max_size=3)
PEOPLE = st.none() | st.builds(
    Identity,
    sub=WORDS,
    username=st.none() | WORDS,
    email=st.none() | st.sampled_from(["a@x.y", "b@z.y", "a@evil@x.y"]),
    roles=st.lists(WORDS, max_size=2).map(tuple),
    organizations=st.lists(WORDS, max_size=2).map(tuple),
    discord_id=st.none() | st.just("100000000000000001"),
    claims=st.dictionaries(WORDS, st.none() | WORDS | st.booleans() | st.lists(WORDS), max_size=2),
)
REQUESTS = st.builds(
    RequestFacts,
    method=st.sampled_from(["GET", "POST", "get"]),
    path=st.sampled_from(["/", "/a", "/a/b/c", "/A", "/ab"]),
    client=st.none() | st.sampled_from([ip_address("10.1.1.1"), ip_address("9.9.9.9"), ip_address("::1")]),
    now=st.just(10_000.0),
    signed_in_at=st.none() | st.sampled_from([0.0, 9_000.0]),
    members=st.dictionaries(
        st.just("200000000000000001"), st.none() | st.builds(Member, owner=st.booleans(), pending=st.booleans())
    ),
)


@given(ALLOW, st.lists(RULES, max_size=2), RULES, PEOPLE, REQUESTS)
def test_one_more_deny_never_lets_anybody_in(
    allow: Any, deny: list[Any], more: Any, who: Identity | None, what: RequestFacts
) -> None:
    without, together = policy(allow, deny).decide(who, what), policy(allow, [*deny, more]).decide(who, what)
    assert without.allowed or not together.allowed
    assert without.needs_sign_in or not together.needs_sign_in


@given(st.lists(RULES, min_size=1, max_size=3), RULES, st.lists(RULES, max_size=2), PEOPLE, REQUESTS)
def test_one_more_allow_never_locks_anybody_out(
    allow: list[Any], more: Any, deny: list[Any], who: Identity | None, what: RequestFacts
) -> None:
    without, together = policy(allow, deny).decide(who, what), policy([*allow, more], deny).decide(who, what)
    assert together.allowed or not without.allowed


@given(ALLOW, st.lists(RULES, max_size=2), PEOPLE, REQUESTS)
def test_every_decision_has_its_reason(allow: Any, deny: list[Any], who: Identity | None, what: RequestFacts) -> None:
    decision = policy(allow, deny).decide(who, what)
    assert decision.detail
    assert decision.allowed is (decision.reason in (Reason.EVERYONE, Reason.SIGNED_IN, Reason.RULE))
    assert (decision.rule is not None) is (decision.reason in (Reason.RULE, Reason.DENY_RULE, Reason.SIGN_IN_TOO_OLD))
    if decision.needs_sign_in:
        assert (decision.reason is Reason.SIGN_IN_TOO_OLD) is (who is not None)
        assert not decision.allowed


@given(ALLOW, st.lists(RULES, max_size=2), st.integers(0, 2), PEOPLE, REQUESTS)
def test_a_rule_that_adds_nothing_may_as_well_go(
    allow: Any, deny: list[Any], index: int, who: Identity | None, what: RequestFacts
) -> None:
    whole = policy(allow, deny)
    if (
        isinstance(allow, str)
        or len(allow) <= index
        or not any(one.startswith(f"allow[{index}] ") for one in whole.doubts())
    ):
        return
    rest = [rule for number, rule in enumerate(allow) if number != index]
    assert not rest or policy(rest, deny).decide(who, what).allowed == whole.decide(who, what).allowed
    assert rest or not whole.decide(who, what).allowed


@given(ALLOW, PEOPLE, REQUESTS)
def test_the_fast_answers_are_those_of_the_long_way(allow: Any, who: Identity | None, what: RequestFacts) -> None:
    found = policy(allow)
    decision = found.decide(who, what)
    if found.anonymous:
        assert decision.allowed
    if found.any_user:
        assert decision.allowed is (who is not None)


@given(ALLOW, st.lists(RULES, max_size=2), PEOPLE, REQUESTS, REQUESTS)
def test_what_sees_no_request_says_the_same_of_any(
    allow: Any, deny: list[Any], who: Identity | None, what: RequestFacts, other: RequestFacts
) -> None:
    """The gate leaves out what such a policy would not look at."""
    found = policy(allow, deny)
    if not found.sees_request:
        assert found.decide(who, what) == found.decide(who, other)
    if found.sees_method_alone:
        assert found.decide(who, what) == found.decide(who, replace(other, method=what.method))


@pytest.mark.parametrize(
    ("rule", "sees", "more"),
    [
        ({"roles": ["ops"], "users": ["a"], "emails": ["a@b.c"], "claims": {"x": "y"}}, False, False),
        ({"discord": {"users": ["100000000000000001"]}}, False, False),
        ({"methods": ["GET"]}, True, False),
        ({"roles": ["ops"], "methods": ["GET"]}, True, False),
        ({"networks": ["10.0.0.0/8"]}, True, True),
        ({"paths": ["/a"]}, True, True),
        ({"paths": ["/a"], "methods": ["GET"]}, True, True),
        ({"roles": ["ops"], "signed_in_within": "1h"}, True, True),
        ({"discord": {"guild": "200000000000000001"}}, True, True),
    ],
)
def test_which_rules_see_more_than_the_person_and_the_method(rule: dict[str, Any], sees: bool, more: bool) -> None:
    assert policy([rule]).sees_request is sees
    assert policy([rule]).sees_method_alone is not more
    if "signed_in_within" not in rule:
        assert policy("signed-in", [rule]).sees_request is sees
        assert policy("signed-in", [rule]).sees_method_alone is not more


# -- an organization's route ------------------------------------------------------------------------------------------


def for_members(allow: Any = "signed-in", deny: Any = (), organization: str = "acme") -> Policy:
    raw = {"name": "r", "upstream": "http://a:1", "allow": allow, "deny": list(deny), "organization": organization}
    return Policy.from_settings(RouteSettings.model_validate(raw))


OLD = [{"roles": ["ops"], "signed_in_within": 60}]


@pytest.mark.parametrize(
    ("allow", "deny", "who", "reason", "needs_sign_in"),
    [
        ("signed-in", [], ADA, Reason.SIGNED_IN, False),
        ("signed-in", [], NOBODY_SPECIAL, Reason.NOT_A_MEMBER, False),
        ("signed-in", [], None, Reason.NOT_SIGNED_IN, True),
        ([{"roles": ["ops"]}], [], ADA, Reason.RULE, False),
        ([{"roles": ["boss"]}], [], ADA, Reason.NO_RULE, False),
        ([{"users": ["eve1"]}], [], NOBODY_SPECIAL, Reason.NOT_A_MEMBER, False),
        (OLD, [], ADA, Reason.SIGN_IN_TOO_OLD, True),
        ([{"users": ["eve1"], "signed_in_within": 60}], [], NOBODY_SPECIAL, Reason.NOT_A_MEMBER, False),
        ([{"networks": ["10.0.0.0/8"]}], [], None, Reason.NOT_SIGNED_IN, True),
        ([{"networks": ["10.0.0.0/8"]}], [], NOBODY_SPECIAL, Reason.NOT_A_MEMBER, False),
        ([{"networks": ["10.0.0.0/8"]}], [], ADA, Reason.RULE, False),
        ([{"networks": ["192.0.2.0/24"]}], [], None, Reason.NO_RULE, False),
        ("signed-in", [{"networks": ["10.0.0.0/8"]}], None, Reason.DENY_RULE, False),
        ("signed-in", [{"users": ["ada1"]}], ADA, Reason.DENY_RULE, False),
    ],
)
def test_an_organizations_route_is_for_its_members_alone(
    allow: Any, deny: Any, who: Identity | None, reason: Reason, needs_sign_in: bool
) -> None:
    decision = for_members(allow, deny).decide(who, facts())
    assert (decision.reason, decision.needs_sign_in) == (reason, needs_sign_in)
    assert decision.allowed is (reason in (Reason.SIGNED_IN, Reason.RULE))


def test_an_organization_is_part_of_what_makes_policies_equal() -> None:
    assert for_members() == for_members()
    assert for_members() != for_members(organization="other")
    assert for_members() != policy()
    assert (for_members().any_user, for_members().anonymous) == (False, False)


@given(st.lists(st.sampled_from(["acme", "acm", "acme2", "ACME", ""]), max_size=4))
def test_nobody_passes_an_organizations_route_who_is_not_in_it(organizations: list[str]) -> None:
    someone = Identity(sub="x", organizations=tuple(organizations), organization_roles=("acme:admin",))
    assert for_members().decide(someone, facts()).allowed is ("acme" in organizations)
