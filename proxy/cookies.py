"""The Cookie request field (RFC 6265 5.4): find a cookie in it, list it, take the gateway's own ones out of it.

`http.cookies.SimpleCookie` cannot be used: it stops at the first cookie it does not understand and forgets all that
follow. Logto sets `_logto={"appId":"…"}`, raw JSON, and on localhost its cookies reach every port: one visit to Logto
would hide the gateway's session. Here a cookie is what browsers send: whatever stands between two semicolons.

Nothing raises, whatever the bytes. Values are handed out as they came, quotes and all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection


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


def strip(header: bytes, names: Collection[bytes], prefixes: tuple[bytes, ...] = ()) -> bytes | None:
    """`header` without the cookies in `names` and those whose name starts with one of `prefixes`; None: nothing left.

    The other cookies keep every byte, and their order. Splitting at each semicolon, quoted or not, is the safe reading:
    an app that believes in quoted strings (RFC 2965) would take `a="; postern=…; b="` for one cookie `a`, and an
    attacker who can set `a` and `b` would read the session out of it.
    """
    parts = header.split(b";")
    kept = [part for part in parts if not _is_named(part, names, prefixes)]
    if len(kept) == len(parts):
        return header
    rest = b";".join(kept).lstrip(b" \t")
    return rest if rest.strip(b" \t;") else None


def _is_named(part: bytes, names: Collection[bytes], prefixes: tuple[bytes, ...]) -> bool:
    # strip() without arguments also takes the \v and \f that lenient apps skip before a name
    name = part.partition(b"=")[0].strip()
    return name in names or name.startswith(prefixes)


@functools.lru_cache(maxsize=64)
def _pattern(name: bytes) -> re.Pattern[bytes]:
    # Linear whatever the input: a run of blanks belongs to one semicolon only, and [^;]* cannot fail.
    return re.compile(rb"(?:^|;)[ \t]*" + re.escape(name) + rb"[ \t]*=[ \t]*([^;]*)")
