"""How a request path is read: the one reading that rules see, and every other that a careless server behind might have.

The gateway judges a path and forwards the target untouched. Whoever can make the app behind read another path than the
one judged walks past the rules: `/public/..%2fadmin` is below `/public` here and `/admin` there. Guessing which server
stands behind is hopeless, so this module makes every reading it knows of and lets `routes.py` refuse where they disagree.

A careless server is modelled as a sequence of careless steps, each of which servers are known to do: decode once more
(percent, double percent, overlong UTF-8, `%u002f`), resolve dot segments, merge slashes, take a backslash for a slash, cut
path parameters, stop at a NUL, fold compatibility characters, trim what Windows trims, take `//host` for an authority.
Every state that any order of these steps can reach is a reading.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

# Paths in this form have one reading whatever server looks at them: no escape, no parameter, no empty or dot segment, no
# segment that ends in a dot. Almost every request has it, so the rest of this module is hardly ever reached.
PLAIN: Final = re.compile(rb"/|(?:/[A-Za-z0-9_~!$&'()*+,=:@.-]*[A-Za-z0-9_~!$&'()*+,=:@-])+/?")

# A path of n odd characters can have exponentially many readings. Reading stops at either bound, and what could not be read
# to the end is treated as readable in every way. Sized so that the worst request costs milliseconds.
MOST_READINGS: Final = 96
MOST_CHARACTERS: Final = 32 * 1024

_ESCAPED_BYTE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNICODE_ESCAPE: Final = re.compile(r"%[uU]([0-9A-Fa-f]{4})")
_UNRESERVED: Final = re.compile(r"%(2[DEde]|3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|5[Ff]|7[Ee])")
_SLASHES: Final = re.compile(r"/{2,}")
_PARAMETERS: Final = re.compile(r";[^/]*")
_QUERY: Final = re.compile(r"[?#]")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY: Final = re.compile(r"//[^/]*")
# Each alternative can start at one place of a run only, so that a run of spaces costs linear time.
_WINDOWS: Final = re.compile(r"(?:(?<=[^/. ])[. ]+|(?<! ) +)(?=/|$)")
_OVERLONG: Final = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    rb"|\xf8[\x80-\x87][\x80-\xbf]{3}|\xfc[\x80-\x83][\x80-\xbf]{4}"
)
_UNDECODED: Final = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as `surrogateescape` carries them


@dataclass(frozen=True, slots=True)
class Readings:
    """Every way to read one path. `complete` is False when there are more than could be made."""

    canonical: str
    others: tuple[str, ...]
    complete: bool


def canonical(raw_path: bytes) -> str:
    """The reading of `raw_path` that rules see: RFC 3986 6.2.2, percent-decoded once, dot segments resolved.

    An encoded slash is data, not a separator, so `%2F` stays as it is, and so do `%25`, what cannot be printed and bytes that
    are no UTF-8: the result tells any two different paths apart, and can be logged. What follows `?` or `#` is not part of
    the path. Whatever does not start with a slash (`*`) gets one. Never raises.
    """
    path = re.split(rb"[?#]", raw_path, maxsplit=1)[0]
    if not path.startswith(b"/"):
        path = b"/" + path
    if PLAIN.fullmatch(path):
        return path.decode("ascii")
    return _resolve("/".join(_segment(segment) for segment in path.split(b"/")))


def interpretations(raw_path: bytes) -> tuple[str, ...]:
    """Every reading of `raw_path`, the canonical one first; a plain path has just that. Never raises."""
    found = readings(raw_path)
    return (found.canonical, *found.others)


def readings(raw_path: bytes) -> Readings:
    """Every reading of `raw_path`, as far as the bounds allow. Never raises."""
    first = canonical(raw_path)
    start = raw_path.partition(b"?")[0].decode("utf-8", "surrogateescape")
    if not start.startswith("/"):
        start = "/" + start
    seen = {start: None}
    waiting = [start]
    budget = MOST_CHARACTERS
    while waiting:
        path = waiting.pop()
        budget -= len(path)
        if budget < 0 or len(seen) > MOST_READINGS:
            return Readings(first, tuple(other for other in seen if other != first), complete=False)
        for step in _STEPS:
            reading = step(path) or "/"
            if reading not in seen:
                seen[reading] = None
                waiting.append(reading)
    return Readings(first, tuple(other for other in seen if other != first), complete=True)


def _segment(raw: bytes) -> str:
    """One segment, decoded except for what would read differently afterwards."""
    decoded = _ESCAPED_BYTE.sub(_keep_or_decode, raw).decode("utf-8", "surrogateescape")
    if decoded.isprintable():
        return decoded
    return "".join(character if character.isprintable() else _escaped(character) for character in decoded)


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def _keep_or_decode(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return match[0].upper() if byte in b"/%" or byte < 0x20 or byte == 0x7F else bytes((byte,))


def _resolve(path: str) -> str:
    """RFC 3986 5.2.4: `.` and `..` segments taken out; `..` at the root stays at the root."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1:] in (["."], [".."]):
        kept.append("")
    return "/" + "/".join(kept)


def _decode(path: str) -> str:
    if "%" not in path:
        return path
    return unquote_to_bytes(path.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _decode_unreserved(path: str) -> str:
    """What RFC 3986 6.2.2.2 lets anybody decode, leaving `%2F`: dots appear without new separators."""
    return _UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path) if "%" in path else path


def _decode_unicode_escapes(path: str) -> str:
    """`%u002f`, as IIS reads it. Surrogates are left alone: alone they are no character."""

    def character(match: re.Match[str]) -> str:
        code = int(match[1], 16)
        return match[0] if 0xD800 <= code <= 0xDFFF else chr(code)

    return _UNICODE_ESCAPE.sub(character, path) if "%" in path else path


def _decode_overlong(path: str) -> str:
    """`%c0%af` as a slash: UTF-8 decoders that do not check for the shortest form (RFC 3629 10)."""

    def character(match: re.Match[bytes]) -> bytes:
        lead, *rest = match[0]
        code = lead & (0x1F if len(rest) == 1 else 0x0F if len(rest) == 2 else 0x07 if len(rest) == 3 else 0x03)
        for byte in rest:
            code = code << 6 | byte & 0x3F
        return bytes((code,)) if code < 0x80 else match[0]

    if not _UNDECODED.search(path):
        return path
    raw = _OVERLONG.sub(character, path.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def _merge(path: str) -> str:
    return _SLASHES.sub("/", path)


def _backslash(path: str) -> str:
    return path.replace("\\", "/")


def _cut_parameters(path: str) -> str:
    """`/a;x/..;y/b` as `/a/../b`: servlet containers take `;…` off each segment."""
    return _PARAMETERS.sub("", path)


def _cut_at_parameter(path: str) -> str:
    return path.partition(";")[0]


def _cut_at_query(path: str) -> str:
    """An escaped `?` or `#`, once decoded, may end the path; so may a bare `#`."""
    return _QUERY.split(path, maxsplit=1)[0]


def _cut_at_nul(path: str) -> str:
    return path.partition("\0")[0]


def _drop_controls(path: str) -> str:
    """Control characters left out, as URL parsers do with tabs and line breaks."""
    return _CONTROLS.sub("", path)


def _fold_compatibility(path: str) -> str:
    """`／` as `/` and `．` as `.`: NFKC and the best-fit tables of code pages."""
    return path if path.isascii() else unicodedata.normalize("NFKC", path)


def _trim_as_windows(path: str) -> str:
    """Spaces and dots at the end of a file name do not count there: `/admin. ` is `/admin`, `.. ` is `..`."""
    return _WINDOWS.sub("", path)


def _drop_authority(path: str) -> str:
    """`//x/admin` as `/admin`: a target handed to a URL parser as if it were a reference (RFC 3986 4.2)."""
    return _AUTHORITY.sub("", path, count=1) if path.startswith("//") else path


_STEPS: Final[tuple[Callable[[str], str], ...]] = (
    _decode, _decode_unreserved, _decode_unicode_escapes, _decode_overlong, _resolve, _merge, _backslash, _cut_parameters,
    _cut_at_parameter, _cut_at_query, _cut_at_nul, _drop_controls, _fold_compatibility, _trim_as_windows, _drop_authority,
)  # fmt: skip
