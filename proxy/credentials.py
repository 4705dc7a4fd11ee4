"""What programs present in place of a session cookie: access tokens (RFC 6750) and app passwords. Pure; nothing is verified here.

Only on routes that take such credentials is `Authorization` looked at; everywhere else it belongs to the app. What is one of
ours decides alone: a request whose token is wrong is refused, whatever cookie comes with it. Else a program that lost its access
would go on as whoever's browser its requests happen to pass through, and nobody would notice.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

AUTHORIZATION: Final = b"authorization"
# What every app password begins with, so that scanners for leaked secrets can know it.
APP_PASSWORD: Final = "ppw_"  # noqa: S105 -- a prefix
REALM: Final = "postern"

_TOKEN_BYTES: Final = 16 * 1024
_TOKEN68: Final = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")  # RFC 9110 11.2
_SCHEME: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?: +(.*))?", re.DOTALL)


class Scheme(Enum):
    """Which kind of credential; the value is what the access log calls it."""

    BEARER = "bearer"  # an access token of Logto's
    PASSWORD = "password"  # an app password  # noqa: S105 -- a name


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a credential is not believed: a sentence that quotes nothing of it."""

    detail: str


@dataclass(frozen=True, slots=True)
class Programs:
    """What a route, by name, takes from programs. `audiences`: API resources whose access tokens count; none: no access token."""

    route: str
    audiences: frozenset[str] = frozenset()
    app_passwords: bool = False
    passed_on: bool = False  # the app gets to see the credential

    def presented(self, values: Mapping[bytes, bytes]) -> Credential | None:
        """The credential in `values`, header fields by lower-case name; None when there is none, or only one of the app's own.

        Several Authorization fields come joined by a comma, which stands in none that is ours. Where one of them is ours, all
        are one that nobody can read: neither may it be shown to the app as something else, nor the cookie count beside it.
        """
        given = values.get(AUTHORIZATION, b"")
        if b"," not in given:
            return self._read(given)
        found = next((one for part in given.split(b",") if (one := self._read(part.strip())) is not None), None)
        return Credential(found.scheme, "", self) if found is not None else None

    def _read(self, field_value: bytes) -> Credential | None:
        match = _SCHEME.fullmatch(field_value)
        if match is None:
            return None
        scheme, given = match[1].lower(), match[2] or b""
        if scheme == b"bearer":
            value = given.decode("ascii") if len(given) <= _TOKEN_BYTES and _TOKEN68.fullmatch(given) else ""
            if self.app_passwords and given.startswith(APP_PASSWORD.encode()):
                return Credential(Scheme.PASSWORD, value, self)
            return Credential(Scheme.BEARER, value, self) if self.audiences else None
        if scheme == b"basic" and self.app_passwords:
            password = _password_of(given)
            return Credential(Scheme.PASSWORD, password, self) if password.startswith(APP_PASSWORD) else None
        return None

    def challenge(self, error: str = "", detail: str = "", *, by_browser: bool = False) -> str:
        """The value of `WWW-Authenticate` for a program that has shown nothing yet, or, with `error` (RFC 6750 3.1), not enough.

        Basic would make a browser ask for a user name and a password that its person does not have: `by_browser` leaves it out.
        Programs such as git send a password only after they have been asked for it (RFC 7617 2).
        """
        schemes = []
        if self.audiences:
            schemes.append(f'Bearer realm="{REALM}"')
            if error:
                schemes[0] += f', error="{error}", error_description="{detail}"'
        if self.app_passwords and not by_browser:
            schemes.append(f'Basic realm="{REALM}", charset="UTF-8"')
        return ", ".join(schemes)


@dataclass(frozen=True, slots=True)
class Credential:
    """What was presented, and where. `value` is empty when it is one of ours but cannot be read."""

    scheme: Scheme
    value: str = field(repr=False)
    programs: Programs


def hidden(route: str, programs: Programs | None, *, anywhere: bool) -> Programs | None:
    """What the app of a route that takes `programs` is not shown of credentials; None: it is shown all.

    With app passwords `anywhere` it is shown none of those: programs send theirs to all of a host, wherever it is good for.
    """
    if not anywhere:
        return programs
    return Programs(route, app_passwords=True) if programs is None else replace(programs, app_passwords=True)


def _password_of(given: bytes) -> str:
    """The password in Basic credentials (RFC 7617 2): what comes after the first colon; empty when they cannot be read."""
    if len(given) > _TOKEN_BYTES:
        return ""
    try:
        decoded = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(b":")[2].decode("ascii", "replace")
