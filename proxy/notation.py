"""How single values are written in the settings: durations, sizes, URLs, names. Each notation reads one kind of value.

A notation is the one place that knows what is accepted: it reads, it words the error, and it describes the value in the
JSON Schema. Readers raise NotationError with what is wrong, put so that it follows the key: `session.idle: is not a duration`.
They echo a value only where it cannot be a secret: never from a secret's own notation, and never a URL, which may hold a
password.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from proxy.paths import canonical, interpretations

ERROR: Final = "notation"  # the type of every validation error raised here; `problems.py` knows it by that


class NotationError(ValueError):
    """A value that cannot be read; the message says what it is, and follows its key."""


@dataclass(frozen=True, slots=True, eq=False)
class Notation:
    """A way to write a value. Used as `Annotated[float, DURATION]`, for which typing wants it hashable: by identity.

    `read` turns what TOML or the environment gives into the value, or raises NotationError. `accepted` completes "accepted: …".
    """

    read: Callable[[Any], Any]
    accepted: str
    schema: Mapping[str, Any]
    secret: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)

    def _validate(self, value: Any) -> Any:
        try:
            return self.read(value)
        except ValueError as error:
            what = str(error)
        raise mistake(what, self.accepted)


def mistake(what: str, accepted: str) -> PydanticCustomError:
    """The validation error for a value that is `what` where `accepted` is."""
    return PydanticCustomError(ERROR, "{what}; accepted: {accepted}", {"what": what, "accepted": accepted})


def kind(value: object) -> str:
    """What `value` is, in the words of TOML."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        dict: "a table",
        list: "a list",
    }
    return names.get(type(value), "a date or time")


def string(value: object) -> str:
    """`value` if it is a string with something in it. Raises NotationError."""
    if not isinstance(value, str):
        raise NotationError(f"is {kind(value)}")
    if not value.strip():
        raise NotationError("is empty")
    return value


def quoted(value: str) -> str:
    """`value` for a message: on one line, and not too much of it."""
    text = value if len(value) <= 60 else value[:57] + "…"
    return (
        '"' + "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text) + '"'
    )


def pattern(expression: str, noun: str, accepted: str) -> Notation:
    """A string that matches `expression` as a whole; otherwise it `is not` a `noun`."""
    compiled = re.compile(expression)

    def read(value: object) -> str:
        text = string(value)
        if not compiled.fullmatch(text):
            raise NotationError(f"{quoted(text)} is not {noun}")
        return text

    return Notation(read, accepted, {"type": "string", "pattern": f"^(?:{expression})$"})


def one_or_more(value: Any) -> Any:
    """A lone string as a list of one, for keys that mostly hold one. Used as `BeforeValidator(one_or_more)`."""
    return (value,) if isinstance(value, str) else value


def choice(*words: str, other: str = "") -> Notation:
    """One of `words`, in any case: the environment is often written in capitals. `other` says what else may stand there."""

    def read(value: object) -> str:
        text = string(value)
        if text.lower() not in words:
            raise NotationError(f"{quoted(text)} is not known")
        return text.lower()

    return Notation(
        read, ", ".join([*(f'"{word}"' for word in words), *([other] if other else [])]), {"enum": list(words)}
    )


def count(least: int, most: int) -> Notation:
    """A whole number from `least` to `most`."""

    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise NotationError(
                f"{quoted(value)} is not a whole number" if isinstance(value, str) else f"is {kind(value)}"
            )
        if not least <= value <= most:
            raise NotationError(f"{value} is out of range")
        return value

    accepted = f"a whole number from {least} to {most}"
    return Notation(read, accepted, {"type": "integer", "minimum": least, "maximum": most})


def _read_flag(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise NotationError(f"is {kind(value)}")
    return value


FLAG: Final = Notation(_read_flag, "true or false", {"type": "boolean"})


# --- durations and sizes ----------------------------------------------------------------------------------------------

_DURATION: Final = r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)"
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_LONGEST: Final = 3650 * 86400.0  # keeps every sum of times far inside what cookies, Redis and timers can hold
_SIZE: Final = r"([0-9]{1,15})(B|KiB|MiB|GiB|)"
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "": 1}


def _read_pause(value: object) -> float:
    """A duration, or 0 for none."""
    if value in (0, "0", "0s") and not isinstance(value, bool):
        return 0.0
    return _read_duration(value)


def _read_duration(value: object) -> float:
    if isinstance(value, str):
        found = re.fullmatch(_DURATION, value)
        if found is None:
            raise NotationError(f"{quoted(value)} is not a duration")
        seconds = float(found[1]) * _SECONDS[found[2]]
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise NotationError(f"is {kind(value)}")
    else:
        seconds = float(value)
    if not (math.isfinite(seconds) and 0.001 <= seconds <= _LONGEST):
        raise NotationError("is out of range")
    return seconds


DURATION: Final = Notation(
    _read_duration,
    "a duration such as 500ms, 30s, 15m, 12h or 7d, or a number of seconds; from 1ms to 3650d",
    {"anyOf": [{"type": "string", "pattern": f"^{_DURATION}$"}, {"type": "number", "exclusiveMinimum": 0}]},
)

# The same where there may be none: no wait, no delay.
PAUSE: Final = Notation(
    _read_pause,
    "a duration such as 500ms, 30s or 15m, or 0 for none; up to 3650d",
    {"anyOf": [{"type": "string", "pattern": f"^{_DURATION}$"}, {"type": "number", "minimum": 0}]},
)


def size(least: int, most: int) -> Notation:
    """A number of bytes from `least` to `most`."""

    def read(value: object) -> int:
        if isinstance(value, str):
            found = re.fullmatch(_SIZE, value)
            if found is None:
                raise NotationError(f"{quoted(value)} is not a size")
            value = int(found[1]) * _BYTES[found[2]]
        if isinstance(value, bool) or not isinstance(value, int):
            raise NotationError(f"is {kind(value)}")
        if not least <= value <= most:
            raise NotationError("is out of range")
        return value

    accepted = f"a size such as 64KiB or 10MiB, or a number of bytes; from {_in_bytes(least)} to {_in_bytes(most)}"
    schema = {"anyOf": [{"type": "string", "pattern": f"^{_SIZE}$"}, {"type": "integer", "minimum": least}]}
    return Notation(read, accepted, schema)


def _in_bytes(number: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if number and number % _BYTES[unit] == 0:
            return f"{number // _BYTES[unit]}{unit}"
    return str(number)


# --- secrets ----------------------------------------------------------------------------------------------------------


def secret(least: int, accepted: str) -> Notation:
    """A secret of at least `least` bytes. Neither messages nor reprs ever show it."""

    def read(value: object) -> SecretStr:
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        text = string(value)
        if len(text.encode("utf-8", "replace")) < least:
            raise NotationError(f"is shorter than {least} bytes")
        return SecretStr(text)

    schema = {"type": "string", "format": "password", "writeOnly": True, "minLength": least}
    return Notation(read, accepted, schema, secret=True)


class StoreUrl(str):
    """A session store's URL: a string whose repr hides the password in it."""

    __slots__ = ()

    def __repr__(self) -> str:
        # redis-py takes the password from the query too.
        return repr(re.sub(r"\?.*", "?**", re.sub(r"(?<=://)[^/?]*@", "**@", str(self))))


_HOST_AND_PORT: Final = r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_STORE: Final = re.compile(
    r"memory://"
    rf"|rediss?://(?:[^@/?#\s]*@)?{_HOST_AND_PORT}(?:/[0-9]{{0,4}})?(?:\?[^\s#]*)?"
    r"|unix://(?:[^@/?#\s]*@)?/[^?#\s]+(?:\?[^\s#]*)?"
    rf"|rediss?\+sentinel://(?:[^@/?#\s]*@)?{_HOST_AND_PORT}(?:,{_HOST_AND_PORT})*/[^/?#\s]+(?:/[0-9]{{1,4}})?(?:\?[^\s#]*)?"
    rf"|rediss?\+cluster://(?:[^@/?#\s]*@)?{_HOST_AND_PORT}(?:,{_HOST_AND_PORT})*/?0?(?:\?[^\s#]*)?"
)


def _read_store(value: object) -> StoreUrl:
    text = string(value)
    if not _STORE.fullmatch(text):
        known = re.match(r"(?:memory|rediss?(?:\+sentinel|\+cluster)?|unix):", text)
        raise NotationError("is not a complete store URL" if known else "is not the URL of a known store")
    return StoreUrl(text)


STORE: Final = Notation(
    _read_store,
    "memory://, redis://host:6379/0, unix:///path/to/redis.sock, redis+sentinel://host,host/master or redis+cluster://host,host; "
    "with TLS rediss",
    {"type": "string", "pattern": r"^(?:memory|rediss?(?:\+sentinel|\+cluster)?|unix)://"},
    secret=True,
)


# --- networks, hosts, paths -------------------------------------------------------------------------------------------


def _read_network(value: object) -> IPv4Network | IPv6Network:
    text = string(value)
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = ip_network(text, strict=False)
    except ValueError:
        raise NotationError(f"{quoted(text)} is not a network") from None
    # Which of the two was meant matters: one is an address, the other a whole network of them.
    raise NotationError(f"{quoted(text)} has bits beyond its prefix; the network is {meant}")


NETWORK: Final = Notation(
    _read_network, "a network such as 10.0.0.0/8 or fd00::/8, or one address", {"type": "string", "minLength": 2}
)

LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST: Final = rf"{LABEL}(?:\.{LABEL})*"


def lowered(notation: Notation) -> Notation:
    """`notation`, its value in lower case."""
    return replace(notation, read=lambda value: notation.read(value).lower())


def optional(notation: Notation, absent: str | None = None) -> Notation:
    """`notation`, or `absent` for an empty string: how a generated file says that it has nothing to say."""
    schema = {"anyOf": [dict(notation.schema), {"const": ""}]}
    return replace(
        notation, read=lambda value: absent if value is None or value == "" else notation.read(value), schema=schema
    )


DOMAIN: Final = lowered(
    pattern(rf"{HOST}", "a domain", 'a domain such as "example.com", without "@" and "*"; in its ASCII form (xn--…)')
)


def _read_path(value: object) -> str:
    text = string(value)
    if not text.startswith("/"):
        raise NotationError(f"{quoted(text)} does not start with /")
    path = canonical(text.encode("utf-8", "replace"))
    # A route whose own path can be read in several ways would be ambiguous for every request to it.
    if "?" in text or "#" in text or interpretations(path.encode()) != (path,):
        raise NotationError(f"{quoted(text)} can be read as another path")
    return path.rstrip("/") or "/"


PATH: Final = Notation(
    _read_path,
    'a plain path such as "/" or "/admin", which covers what is below it too',
    {"type": "string", "pattern": "^/"},
)

_PREFIX_SEGMENT: Final = r"[A-Za-z0-9_~.-]*[A-Za-z0-9_~-]"
PREFIX: Final = pattern(
    rf"(?:/{_PREFIX_SEGMENT}){{1,4}}",
    "a prefix",
    'a path such as "/.postern", of letters, digits and ._~-, not "/", without a slash at its end',
)


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine by its name alone: `localhost`, 127.0.0.0/8, ::1."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
