"""Cookies (RFC 6265): find, list and take them out of a Cookie field; name and write the gateway's own.

`http.cookies.SimpleCookie` cannot be used: it stops at the first cookie it does not understand and forgets all that
follow. Logto sets `_logto={"appId":"…"}`, raw JSON, and on localhost its cookies reach every port: one visit to Logto
would hide the gateway's session. Here a cookie is what browsers send: whatever stands between two semicolons.

Nothing raises, whatever the bytes. Values are handed out as they came, quotes and all.
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:  # the relay reads cookies without carrying pydantic along
    from proxy.settings import Settings

LEAVING: Final = b"postern_leaving"
_BELONGS: Final = b"postern_belongs"


def find(header: bytes, name: bytes) -> bytes | None:
    """Value of the first cookie called exactly `name` (case counts) in one Cookie field; None without one."""
    match = _pattern(name).search(header)
    return match[1].rstrip(b" \t") if match else None


def find_all(header: bytes, name: bytes) -> list[bytes]:
    """Every value of `name`, in the order sent.

    A page on a sibling host can plant a second cookie of the same name for the parent domain, and browsers do not say
    which is which (RFC 6265 8.6). A caller that tries only one of them lets such a page lock people out.
    """
    return [value.rstrip(b" \t") for value in _pattern(name).findall(header)]


def parse(header: bytes | str) -> list[tuple[str, str]]:
    """All (name, value) pairs of one Cookie field, in order, read as ISO-8859-1; what has no `=` is left out."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return [(name.strip(" \t"), value.strip(" \t")) for name, _, value in pairs]


def strip(header: bytes, own: tuple[bytes, ...]) -> bytes | None:
    """`header` without the cookies that `is_own` knows as `own`; None: nothing is left of it.

    The other cookies keep every byte, and their order. Splitting at each semicolon, quoted or not, is the safe reading:
    an app that believes in quoted strings (RFC 2965) would take `a="; postern=…; b="` for one cookie `a`, and an
    attacker who can set `a` and `b` would read the session out of it.
    """
    parts = header.split(b";")
    kept = [part for part in parts if not is_own(part, own)]
    if len(kept) == len(parts):
        return header
    rest = b";".join(kept).lstrip(b" \t")
    return rest if rest.strip(b" \t;") else None


def is_own(cookie: bytes, own: tuple[bytes, ...]) -> bool:
    """Whether `cookie` (`name=value`, or a whole Set-Cookie value) bears one of the names in `own`.

    An entry that ends in `_` stands for every name that begins so, any other for itself alone.
    """
    # strip() without arguments also takes the \v and \f that lenient apps skip before a name
    name = cookie.partition(b"=")[0].strip()
    return name.startswith(own) and (name in own or name.startswith(tuple(it for it in own if it.endswith(b"_"))))


def session_name(settings: Settings) -> str:
    """Name of the session cookie.

    `__Host-` wherever it can be: browsers then take that cookie from no other host and from no plain-http page, so
    that neither a sibling host nor a network attacker can plant a session. It rules out a Domain (RFC 6265bis 4.1.3).
    """
    name = settings.session.cookie.name
    return f"__Host-{name}" if is_secure(settings) and not settings.session.cookie.domain else name


def attempt_prefix(settings: Settings) -> str:
    """How the names of sign-in attempts' cookies begin. Their Path rules out `__Host-`; `__Secure-` still helps."""
    name = f"{settings.session.cookie.name}_attempt_"
    return f"__Secure-{name}" if is_secure(settings) else name


def own(settings: Settings) -> tuple[bytes, ...]:
    """Every cookie the gateway sets, or set under another public URL or domain: what `strip` and `is_own` take."""
    name = settings.session.cookie.name.encode()
    return name, b"__Host-" + name, name + b"_attempt_", b"__Secure-" + name + b"_attempt_"


def is_secure(settings: Settings) -> bool:
    """Whether browsers reach the gateway over https, so that its cookies are `Secure`."""
    return settings.public_url.startswith("https://")


def build(settings: Settings, name: str, value: str, *, path: str, max_age: int, same_site: str) -> str:
    """One Set-Cookie value; `max_age` in seconds, 0 deletes. HttpOnly always: no page's script has use for it."""
    parts = [f"{name}={value}", f"Path={path}", f"Max-Age={max_age}", "HttpOnly", f"SameSite={same_site.capitalize()}"]
    if settings.session.cookie.domain:
        parts.insert(1, f"Domain={settings.session.cookie.domain}")
    if is_secure(settings):
        parts.append("Secure")
    return "; ".join(parts)


def leaving(path: str, *, seconds: int = 60) -> str:
    """The Set-Cookie by which a script that has signed somebody out of the app at `path` has the next page lead on; 0 deletes.

    For this host alone, and no secret: the worst that planting one does is a question whether to sign out.
    """
    return f"{LEAVING.decode()}=1; Path={_cookie_path(path)}; Max-Age={seconds}; HttpOnly; SameSite=Lax"


def _cookie_path(path: str) -> str:
    return quote(path, safe="/%!$&'()*+,=:@~")


def strangers(header: bytes, names: frozenset[bytes], session_id: str) -> frozenset[bytes]:
    """Those of `names`, cookies by which an app remembers who somebody is, that are not known to be of the session `session_id`.

    An app that looks at its cookie first takes whoever signs in next with the same browser for who was there, and goes on with
    people who have signed out. So each is remembered (`belonging`) with the session in which it was set; "" is nobody's.
    """
    return frozenset() if _mark(session_id) in find_all(header, _BELONGS) else names


def without(header: bytes, names: frozenset[bytes]) -> bytes | None:
    """`header` without the cookies of these very names; None: nothing is left of it. As careful as `strip`."""
    kept = [part for part in header.split(b";") if part.partition(b"=")[0].strip() not in names]
    rest = b";".join(kept).lstrip(b" \t")
    return rest if rest.strip(b" \t;") else None


def belonging(lines: list[bytes], names: frozenset[bytes], session_id: str, path: str) -> list[str]:
    """The Set-Cookie values to add to an answer of the app at `path` whose own are `lines`; none unless it sets one of `names`.

    The browser may still have others of `names`, of whoever was there before: these are taken from it.
    """
    fresh = {line.partition(b"=")[0].strip() for line in lines} & names
    if not fresh:
        return []
    where, mark = _cookie_path(path), _mark(session_id).decode()
    old = [f"{name.decode()}=; Path={it}; Max-Age=0" for name in sorted(names - fresh) for it in sorted({"/", where})]
    return [*old, f"{_BELONGS.decode()}={mark}; Path={where}; HttpOnly; SameSite=Lax"]


def _mark(session_id: str) -> bytes:
    """What says which session it was to who knows that, and nothing to an app."""
    return hashlib.sha256(b"postern belongs " + session_id.encode()).hexdigest()[:24].encode()


@functools.lru_cache(maxsize=64)
def _pattern(name: bytes) -> re.Pattern[bytes]:
    # Linear whatever the input: a run of blanks belongs to one semicolon only, and [^;]* cannot fail.
    return re.compile(rb"(?:^|;)[ \t]*" + re.escape(name) + rb"[ \t]*=[ \t]*([^;]*)")
