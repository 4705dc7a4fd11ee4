"""Access tokens of Logto's for API resources: what must be in one, and who it speaks of (RFC 9068). No I/O.

The signature is checked before, by id_tokens.py, under the `typ` that no ID token and no logout token has. What a program may do
is said by the token's audience, client and scopes; of the person behind it, if there is one, it says the `sub` alone, unless
somebody has had more put into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from proxy.claims import Audience, Identity, identity_from_claims
from proxy.id_tokens import LEEWAY, BadToken, check_times, text_of, time_of

ACCESS_TOKEN: Final = "at+jwt"  # the `typ` of access tokens  # noqa: S105 -- a media type


@dataclass(frozen=True, slots=True)
class AccessToken:
    """Who a token speaks of, which API resources it is for, and until when (epoch seconds, clocks' differences included)."""

    identity: Identity
    audiences: frozenset[str]
    expires_at: float


def read_access_token(claims: Mapping[str, Any], *, issuer: str, now: float) -> AccessToken:
    """Read signed `claims` as an access token of `issuer` that is valid at `now` (epoch seconds); raises BadToken."""
    if claims.get("iss") != issuer:
        raise BadToken("its iss is another issuer")
    check_times(claims, now)
    client = text_of(claims, "client_id")
    if client is None or text_of(claims, "sub") is None:
        raise BadToken("it names no subject or no client")
    told = {name: value for name, value in claims.items() if name != "jti"}
    identity = identity_from_claims(told)
    organization = text_of(claims, "organization_id")
    return AccessToken(
        replace(
            identity,
            client=client,
            scopes=_scopes(claims.get("scope")),
            organizations=(organization,) if organization is not None else (),
            organization_roles=(),
        ),
        _audiences(claims.get("aud")),
        time_of(claims, "exp") + LEEWAY,
    )


def check_issued(token: AccessToken, audience: Audience, *, sub: str, client: str) -> None:
    """Check that `token` is what was asked for: of `sub`, for `audience`, issued to the application `client`; raises BadToken.

    It goes to an app that takes whoever it speaks of for who is there: nobody else's may ever be handed on.
    """
    if token.identity.sub != sub:
        raise BadToken("its sub is another person's")
    if token.identity.client != client:
        raise BadToken("it was issued to another application")
    if audience.claim not in token.audiences:
        raise BadToken("its aud is not what was asked for")
    within = token.identity.organizations
    if within != ((audience.organization,) if audience.organization is not None else ()) and (
        within or audience.resource is not None  # a token for an organization need not say a second time which one
    ):
        raise BadToken("it is within another organization")


def _scopes(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str):
        raise BadToken("its scope is no text")
    return tuple(value.split())


def _audiences(value: Any) -> frozenset[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BadToken("its aud is no list of names")
    return frozenset(names)
