"""Sign-in attempts: what a browser must bring back from Logto to finish the sign-in it began.

One sealed cookie for each attempt, named after a hash of its state: tabs that sign in side by side have a cookie each and
cannot disturb one another, which also serves Logto's habit of delivering the state of the one tab's attempt to the other. The
callback is the only path that gets these cookies, so that is where old ones are cleared.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy import cookies
from proxy.errors import Unsealable
from proxy.sealing import KeyRing
from proxy.settings import Settings

ATTEMPT_SECONDS: Final = 600
COOKIE_BYTES: Final = 2048
# For all attempts of a browser, half of what nginx in front takes for one field: eight of common size, two of the largest.
_KEPT_BYTES: Final = 4096
_NAME_CHARS: Final = 16


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, between its beginning and the callback."""

    state: str = field(repr=False)
    session: str = field(repr=False)  # the logto package's sign-in session: redirect URI, PKCE verifier, state
    nonce: str = field(repr=False)
    return_to: str
    begun_at: float  # epoch seconds
    again: bool = False  # the person is to sign in anew, even if Logto knows them


class Attempts:
    """Writes and reads attempt cookies."""

    def __init__(self, settings: Settings, ring: KeyRing, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._ring = ring
        self._clock = clock
        self._prefix = cookies.attempt_prefix(settings)
        self._path = settings.prefix + "/callback"

    def name(self, state: str) -> str:
        """Name the cookie of the attempt with `state`; the hash keeps a stranger's state from choosing a name."""
        digest = hashlib.sha256(state.encode("utf-8", "replace")).digest()
        return self._prefix + base64.urlsafe_b64encode(digest).decode()[:_NAME_CHARS]

    def keep(self, attempt: Attempt) -> str:
        """Return the Set-Cookie value that hands `attempt` to the browser. One too large leads back to the front page."""
        name = self.name(attempt.state)
        value = self._seal(name, attempt, attempt.return_to)
        if len(name) + len(value) > COOKIE_BYTES:
            value = self._seal(name, attempt, self._settings.public_url + "/")
        return self._set(name, value, ATTEMPT_SECONDS)

    def find(self, state: str, sent: Mapping[str, str]) -> Attempt | None:
        """Open the attempt with `state` among the cookies that were `sent`; None without one that is still good."""
        name = self.name(state)
        attempt = self._open(name, sent[name]) if name in sent else None
        if attempt is None or not hmac.compare_digest(attempt.state.encode(), state.encode("utf-8", "replace")):
            return None
        return attempt

    def clear(self, state: str) -> str:
        """Return the Set-Cookie value that takes the cookie of the attempt with `state` back."""
        return self._set(self.name(state), "", 0)

    def stale(self, sent: Mapping[str, str]) -> list[str]:
        """List Set-Cookie values that clear what is expired or unreadable, and the oldest of what is too much."""
        mine = [name for name in sent if name.startswith(self._prefix)]
        opened = {name: attempt for name in mine if (attempt := self._open(name, sent[name])) is not None}
        room = _KEPT_BYTES
        kept = set()
        for name in sorted(opened, key=lambda name: opened[name].begun_at, reverse=True):
            room -= len(name) + len(sent[name])
            if room >= 0:
                kept.add(name)
        return [self._set(name, "", 0) for name in mine if name not in kept]

    def _seal(self, name: str, attempt: Attempt, return_to: str) -> str:
        parts = [attempt.state, attempt.session, attempt.nonce, return_to, attempt.begun_at, attempt.again]
        packed = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        return base64.urlsafe_b64encode(self._ring.seal("attempt", packed, context=name.encode())).decode().rstrip("=")

    def _open(self, name: str, value: str) -> Attempt | None:
        try:
            sealed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
            attempt = Attempt(*json.loads(self._ring.open("attempt", sealed, context=name.encode())))
        except (ValueError, TypeError, Unsealable):
            return None
        age = self._clock() - attempt.begun_at
        return attempt if age < ATTEMPT_SECONDS else None

    def _set(self, name: str, value: str, max_age: int) -> str:
        # Lax, whatever the session's cookie is: the callback is a navigation that comes from Logto's site.
        return cookies.build(self._settings, name, value, path=self._path, max_age=max_age, same_site="lax")
