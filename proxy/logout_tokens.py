"""Logout tokens: what must be in one before it ends a session (OpenID Connect Back-Channel Logout 1.0, section 2.6). No I/O.

The signature is checked before, by id_tokens.py. Whoever could make this code believe a token of another kind could sign
people out with what passes through many hands: hence `typ`, `events`, and no `nonce`, each of which no ID token satisfies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from proxy.id_tokens import LEEWAY, BadToken, check_issued, text_of, time_of

LOGOUT_TOKEN: Final = "logout+jwt"  # the `typ` of logout tokens  # noqa: S105 -- a media type
EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
# Logto's live two minutes. One that lived for days would have to be remembered for days, so that nobody uses it twice.
LONGEST_LIFE: Final = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """Who is signed out: one session at Logto (`sid`), or without one everything of a person (`sub`)."""

    sub: str | None
    sid: str | None
    jti: str
    expires_at: float  # epoch seconds
    client_id: str = ""  # the one of our applications at Logto that it was sent to


def read_logout_token(claims: Mapping[str, Any], *, issuer: str, client_id: str, now: float) -> LogoutToken:
    """Read signed `claims` as a logout token for this client, valid at `now` (epoch seconds); raises BadToken."""
    check_issued(claims, issuer=issuer, client_id=client_id, now=now)
    expires_at = time_of(claims, "exp")
    if expires_at - time_of(claims, "iat") > LONGEST_LIFE or expires_at > now + LONGEST_LIFE + LEEWAY:
        raise BadToken("it lives longer than it is remembered")
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise BadToken("it announces no logout")
    if "nonce" in claims:
        raise BadToken("it has a nonce, as an ID token has")
    jti = text_of(claims, "jti")
    if jti is None:
        raise BadToken("it has no usable jti")
    for name in ("sub", "sid"):
        # One that is there and cannot be read must not turn "this session" into "all of this person's".
        if claims.get(name) is not None and text_of(claims, name) is None:
            raise BadToken(f"it has no usable {name}")
    sub, sid = text_of(claims, "sub"), text_of(claims, "sid")
    if sub is None and sid is None:
        raise BadToken("it says neither sub nor sid")
    return LogoutToken(sub, sid, jti, expires_at, client_id)
