"""Whether a value fits what a rule asks: tables of what must not be taken for the same, and properties of coverage."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.criteria import (
    at_least,
    claim_holds,
    claims_covered,
    domain_of,
    expected_of,
    folded,
    is_below,
    is_within,
    networks_covered,
    set_of,
    spelled,
)

VALUES = st.none() | st.frozensets(st.sampled_from("abc"))
NETWORKS = st.frozensets(
    st.sampled_from([*map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32", "2001:db8:1::/48"))]),
    min_size=1,
)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ada@Example.COM", "ada@example.com", True),
        ("ada@example.com", "ada@example.org", False),
        ("stra\N{LATIN SMALL LETTER SHARP S}e@example.com", "strasse@example.com", False),
        ("ada@stra\N{LATIN SMALL LETTER SHARP S}e.example", "ada@strasse.example", False),
        ("\N{KELVIN SIGN}im@example.com", "kim@example.com", False),
        ("ada@b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", "ada@xn--bcher-kva.example", True),
    ],
)
def test_addresses_are_folded_in_ascii_and_nowhere_else(one: str, other: str, same: bool) -> None:
    assert (folded(one) == folded(other)) is same


@pytest.mark.parametrize(
    ("email", "domain"),
    [
        ("ada@Example.com", "example.com"),
        ("ada@evil.example@example.com", None),
        ("@example.com", None),
        ("example.com", None),
        (None, None),
    ],
)
def test_a_domain_is_told_only_where_it_is_plain(email: str | None, domain: str | None) -> None:
    assert domain_of(email) == domain


@pytest.mark.parametrize(
    ("actual", "expected", "holds"),
    [
        ("blue", "blue", True),
        (["red", "blue"], "blue", True),
        ("blue", ("red", "blue"), True),
        (True, 1, False),
        (1, True, False),
        (1.0, 1, True),
        ("1", 1, False),
        (None, "blue", False),
        ({"blue": 1}, "blue", False),
        ([["blue"]], "blue", False),
    ],
)
def test_a_claim_has_a_value_of_the_same_type_or_a_list_with_one(actual: object, expected: object, holds: bool) -> None:
    assert claim_holds({"team": actual}, expected_of(("team", expected))) is holds


@pytest.mark.parametrize(
    ("path", "place", "allowed", "denied"),
    [
        ("/admin", "/admin", True, True),
        ("/admin/users", "/admin", True, True),
        ("/administrator", "/admin", False, False),
        ("/ADMIN/users", "/admin", False, True),
        ("/a%20b", "/a b", False, True),
        ("/a%c3%9c", "/a\N{LATIN CAPITAL LETTER U WITH DIAERESIS}", False, True),
        ("/", "/admin", False, False),
        ("/anything", "/", True, True),
    ],
)
def test_what_denies_a_path_is_read_generously_and_what_allows_to_the_letter(
    path: str,
    place: str,
    allowed: bool,
    denied: bool,
) -> None:
    assert is_below(path, [place], deny=False) is allowed
    assert is_below(path, [place], deny=True) is denied
    assert spelled(place)[0] == place


@pytest.mark.parametrize(
    ("client", "inside"), [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), ("2001:db8::1", False)]
)
def test_a_client_is_in_a_network_by_its_real_address(client: str, inside: bool) -> None:
    assert is_within(ip_address(client), frozenset([ip_network("10.0.0.0/8")]), unknown=not inside) is inside


@pytest.mark.parametrize("unknown", [True, False])
def test_an_unknown_client_is_where_the_cautious_say(unknown: bool) -> None:
    assert is_within(None, frozenset([ip_network("0.0.0.0/0")]), unknown=unknown) is unknown


@given(mine=VALUES, theirs=VALUES, value=st.sampled_from("abcd"))
def test_what_asks_for_no_more_is_met_by_whoever_meets_the_other(
    mine: frozenset[str] | None, theirs: frozenset[str] | None, value: str
) -> None:
    if at_least(mine, theirs) and (theirs is None or value in theirs):
        assert mine is None or value in mine


@given(
    mine=NETWORKS, theirs=NETWORKS, client=st.sampled_from(["10.1.2.3", "10.9.0.1", "11.0.0.1", "2001:db8::1", "::1"])
)
def test_networks_that_cover_others_hold_everybody_in_them(
    mine: frozenset[object], theirs: frozenset[object], client: str
) -> None:
    address = ip_address(client)
    if networks_covered(mine, theirs) and is_within(address, theirs, unknown=False):  # type: ignore[arg-type]  # sampled: both families
        assert is_within(address, mine, unknown=False)  # type: ignore[arg-type]  # as above


def test_coverage_of_what_is_not_asked() -> None:
    network = frozenset([ip_network("10.0.0.0/8")])
    assert networks_covered(None, network)
    assert networks_covered(None, None)
    assert not networks_covered(network, None)
    blue, either = expected_of(("team", "blue")), expected_of(("team", ("blue", "red")))
    assert claims_covered(frozenset([either]), frozenset([blue]))
    assert not claims_covered(frozenset([blue]), frozenset([either]))
    assert not claims_covered(frozenset([blue]), None)
    assert claims_covered(None, None)
    assert set_of(None) is None
    assert set_of(["a", "a"]) == frozenset("a")
