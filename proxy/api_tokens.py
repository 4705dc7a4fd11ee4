"""Access tokens for APIs, kept with a session: how long one is handed out, when it is got anew, when it is forgotten. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from proxy.claims import ApiToken, Audience, Identity, Tokens

# Of a token's life, how much goes by before another one is asked for in the background.
_RENEW_AT: Final = 0.8
# The app needs some time to use what it is given: so long before its end, or a tenth of its life, a token is out of use here.
_MARGIN_SECONDS: Final = 10.0
# A shorter life than this would have every request wait for another token.
SHORTEST_LIFE: Final = 5.0
# Logto's no counts so long before it is asked again, and as long again while nobody gets an answer.
_REFUSED_SECONDS: Final = 300.0


def issued(value: str, now: float, expires_at: float) -> ApiToken:
    """The token `value`, got at `now`, that is good until `expires_at` (epoch seconds)."""
    life = expires_at - now
    return ApiToken(value, now + life * _RENEW_AT, expires_at - min(_MARGIN_SECONDS, life / 10))


def refused(now: float) -> ApiToken:
    """That Logto gives no token, as it said at `now`."""
    return ApiToken("", now + _REFUSED_SECONDS, now + 2 * _REFUSED_SECONDS)


def missing(tokens: Tokens, audiences: Collection[Audience], now: float) -> list[Audience]:
    """Those of `audiences` for which it is not known what Logto has to give."""
    return [it for it in audiences if (known := tokens.for_apis.get(it)) is None or now >= known.until]


def due(tokens: Tokens, audiences: Collection[Audience], now: float) -> list[Audience]:
    """Those of `audiences` for which Logto should be asked (again)."""
    return [it for it in audiences if (known := tokens.for_apis.get(it)) is None or now >= known.renew_at]


def handed_out(tokens: Tokens, audiences: Collection[Audience], now: float) -> Tokens:
    """`tokens`, of those for APIs only what is for one of `audiences` and good at `now`."""
    known = {it: tokens.for_apis[it] for it in audiences if it in tokens.for_apis}
    return replace(tokens, for_apis={it: token for it, token in known.items() if token.value and now < token.until})


def with_token(tokens: Tokens, audience: Audience, token: ApiToken, now: float) -> Tokens:
    """`tokens` with one more, and without those that are out of use."""
    kept = {it: known for it, known in tokens.for_apis.items() if now < known.until}
    return replace(tokens, for_apis={**kept, audience: token})


def carried_over(tokens: Tokens, before: Identity, after: Identity, now: float) -> dict[Audience, ApiToken]:
    """What remains of the tokens for APIs when Logto has been asked about the person again.

    All that is good, or nothing: what such a token permits follows from roles and memberships, and where these are others than
    before, neither an old token nor an old no is handed on.
    """
    if _permissions(before) != _permissions(after):
        return {}
    return {audience: token for audience, token in tokens.for_apis.items() if now < token.until}


def _permissions(identity: Identity) -> tuple[frozenset[str], ...]:
    return frozenset(identity.roles), frozenset(identity.organizations), frozenset(identity.organization_roles)
