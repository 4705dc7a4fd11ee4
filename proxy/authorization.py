"""The authorization request: what the logto package makes, with what it cannot say, and without what was not wanted. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode

from proxy.settings import LogtoSettings

# Logto drops all extras of a request with a first_screen that it does not know.
SCREENS: Final = frozenset(
    ("sign_in", "register", "reset_password", "single_sign_on", "identifier:sign_in", "identifier:register")
)
_CONNECTOR: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOCALES: Final = re.compile(r"[A-Za-z0-9 -]{1,64}")
_IDENTIFIERS: Final = re.compile(r"(?:email|phone|username)(?: (?:email|phone|username)){0,2}")
_HINT_CHARS: Final = 256
_PROMPTS: Final = {"login": "login", "consent": "consent", "none": "none"}
# An offline refresh token is only given together with `consent`, which asks nobody anything in a first-party application.
_OFFLINE_PROMPTS: Final = {"login": "login consent", "consent": "consent", "none": "none"}

_ANY_AGE: Final = (
    "315360000"  # ten years, in seconds: asks for `auth_time` (OpenID Connect Core 3.1.2.1), and for nothing else
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a sign-in shall begin, as whoever asks for it put it; None for what nobody cares about."""

    screen: str | None = None  # Logto's first_screen
    connector: str | None = None  # straight on to this social connector
    prompt: str | None = None  # login, consent or none
    ui_locales: str | None = None
    identifier: str | None = None  # what an `identifier:…` screen asks for
    login_hint: str | None = None
    auth_time: bool = False  # the ID token shall say when the person was last asked who they are
    organization: str | None = None  # the id of the one whose app it is: Logto then shows that one's sign-in page


def authorization_url(url: str, logto: LogtoSettings, nonce: str, wishes: Wishes) -> str:
    """Complete the package's `url`. Values that Logto would not understand are left out."""
    offline = logto.refresh == "offline"
    extras = {
        "nonce": nonce,
        "first_screen": wishes.screen if wishes.screen in SCREENS else None,
        "direct_sign_in": _straight_on(logto, wishes),
        "ui_locales": _fitting(_LOCALES, wishes.ui_locales),
        "identifier": _fitting(_IDENTIFIERS, wishes.identifier),
        "login_hint": wishes.login_hint if wishes.login_hint and len(wishes.login_hint) <= _HINT_CHARS else None,
        "prompt": (_OFFLINE_PROMPTS if offline else _PROMPTS).get(wishes.prompt or ""),
        "organization_id": wishes.organization,
        "max_age": _ANY_AGE if wishes.auth_time else None,
    }
    if not offline:
        url = _within_the_session(url)
    return with_query(url, {name: value for name, value in extras.items() if value is not None})


def with_query(url: str, extras: Mapping[str, str]) -> str:
    """Put parameters on a URL, in the place of those of the same name."""
    base, _, query = url.partition("?")
    kept = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] not in extras]
    return f"{base}?{urlencode([*kept, *extras.items()])}"


def _straight_on(logto: LogtoSettings, wishes: Wishes) -> str | None:
    """Past Logto's own page: where the wish says, else where the settings say, unless a screen is wished for."""
    if wishes.connector:
        target = _fitting(_CONNECTOR, wishes.connector)
        return f"social:{target}" if target else None
    if wishes.screen:
        return None
    if logto.sso:
        return f"sso:{logto.sso}"
    return f"social:{logto.connector}" if logto.connector and _CONNECTOR.fullmatch(logto.connector) else None


def _within_the_session(url: str) -> str:
    """Ask for nothing that outlives the session at Logto: the package always asks for offline access, and for consent to it."""
    base, _, query = url.partition("?")
    kept = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "scope":
            kept.append((name, " ".join(scope for scope in value.split() if scope != "offline_access")))
        elif name != "prompt":
            kept.append((name, value))
    return f"{base}?{urlencode(kept)}"


def _fitting(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value and pattern.fullmatch(value) else None
