"""The criteria of rules, one value each: whether somebody's value, address or path fits what a rule asks, and whether one rule's
demand is at least another's.

Nothing here guesses: what is not plainly the same does not fit, but that what denies is read generously.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final
from urllib.parse import quote

from proxy.claims import lookup

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Values = frozenset[str] | None  # None: the rule does not ask
Expected = tuple[str, frozenset[tuple[str, Any]]]  # a claim's path, and the values it may have, with their types
_ESCAPE: Final = re.compile("%[0-9A-F]{2}")


def set_of(values: Iterable[str] | None) -> Values:
    """The values that a rule names."""
    return None if values is None else frozenset(values)


def folded(text: str) -> str:
    """`text`, an address or a domain, with ASCII letters in lower case and the domain's labels as A-labels.

    Nothing else is folded or normalised: `casefold` makes `ß` and `ss` one, `lower` and even NFC turn the Kelvin sign into a
    `k`, and such mappings have let people take over the accounts of others. Labels outside ASCII are encoded as they are
    (RFC 5891 4.4), without IDNA 2003's mapping, which turns `ß` into `ss` as well.
    """
    local, at, domain = text.rpartition("@")
    return _ascii_lower(local) + at + ".".join(map(_a_label, domain.split(".")))


def _ascii_lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(c.lower() if c.isascii() else c for c in text)


def _a_label(label: str) -> str:
    lowered = _ascii_lower(label)
    return lowered if lowered.isascii() else "xn--" + lowered.encode("punycode").decode("ascii")


def domain_of(email: str | None) -> str | None:
    """The domain of an address; None where it is not plain which part is the domain (`a@evil@corp`)."""
    if email is None or email.count("@") != 1 or email.startswith("@"):
        return None
    return folded(email).partition("@")[2]


def expected_of(item: tuple[str, Any]) -> Expected:
    """A claim's path with its value or values, as a rule has them, made comparable."""
    path, expected = item
    return path, frozenset(map(_typed, expected if isinstance(expected, tuple) else (expected,)))


def _typed(value: Any) -> tuple[str, Any]:
    """`value` with its JSON type: in Python True == 1, in JSON not."""
    if isinstance(value, bool):
        return "boolean", value
    return ("number", value) if isinstance(value, int | float) else ("string", value)


def claim_holds(claims: Mapping[str, Any], claim: Expected) -> bool:
    """Whether the claim, or an item of it if it is a list, has one of the values expected."""
    path, expected = claim
    actual = lookup(claims, path)
    values = actual if isinstance(actual, list) else [actual]
    return any(isinstance(value, str | int | float | bool) and _typed(value) in expected for value in values)


def is_below(path: str, places: Iterable[str], *, deny: bool) -> bool:
    """Whether `path`, normalised, is one of `places` or below one.

    What denies is read generously: an app that takes `/ADMIN` for `/admin`, or decodes nothing, is still behind the rule.
    """
    if deny:
        return is_below_one(path.casefold(), [form.casefold() for place in places for form in spelled(place)])
    return is_below_one(path, places)


def is_below_one(path: str, places: Iterable[str]) -> bool:
    """Whether `path` is one of `places` or below one, to the letter."""
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def spelled(place: str) -> tuple[str, str, str]:
    """`place` as it may stand in a reading: decoded, or escaped in either case as browsers write it."""
    escaped = quote(place, safe="/!$&'()*+,:=@~")
    return place, escaped, _ESCAPE.sub(lambda match: match[0].lower(), escaped)


def at_least(mine: Values, theirs: Values) -> bool:
    """Whether whoever fits `theirs` fits `mine`."""
    return mine is None or (theirs is not None and theirs <= mine)


def claims_covered(mine: frozenset[Expected] | None, theirs: frozenset[Expected] | None) -> bool:
    """The same for claims: every one that `mine` asks for is asked for by `theirs`, and with no value more."""
    asked = dict(theirs or ())
    return all(path in asked and asked[path] <= expected for path, expected in mine or ())


def networks_covered(mine: frozenset[Network] | None, theirs: frozenset[Network] | None) -> bool:
    """The same for networks."""
    if mine is None or theirs is None:
        return mine is None
    return all(any(_is_part(one, network) for network in mine) for one in theirs)


def _is_part(one: Network, whole: Network) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(whole, IPv4Network) and one.subnet_of(whole)
    return isinstance(whole, IPv6Network) and one.subnet_of(whole)


def is_within(client: Address | None, networks: frozenset[Network], *, unknown: bool) -> bool:
    """Whether the client is in one of `networks`; `unknown` where nobody knows who the client is."""
    if client is None:
        return unknown
    if isinstance(client, IPv6Address) and client.ipv4_mapped is not None:
        client = client.ipv4_mapped  # ::ffff:10.0.0.1 is 10.0.0.1 come in by a dual-stack socket
    return any(client in network for network in networks)
