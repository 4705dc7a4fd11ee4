"""The settings of a route that concern the servers behind it: TLS towards them, and how their health is checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from proxy.notation import FLAG, HOST, Notation, NotationError, kind, mistake, optional, pattern, quoted, string
from proxy.paths import PLAIN
from proxy.sections import Seconds, Section, written

_FILE: Final = optional(
    Notation(lambda value: Path(string(value)), "the path of a PEM file", {"type": "string", "minLength": 1})
)
_SERVER_NAME: Final = optional(
    pattern(rf"{HOST}|[0-9A-Fa-f:.]+", "a host name or address", 'a name such as "app.internal", or an address')
)
_TARGET: Final = pattern(
    r"/[\x21\x22\x24-\x7e]*", "a path", 'a path such as "/healthz", with its query where it has one'
)
_AUTHORITY: Final = optional(
    pattern(rf"(?:{HOST}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?", "a host", 'a host such as "app.example.com"')
)
_STATUSES: Final = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")


class Statuses(NamedTuple):
    """The statuses from `least` to `most`, both included."""

    least: int
    most: int


def _read_statuses(value: object) -> Statuses:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else string(value)
    found = _STATUSES.fullmatch(text)
    if found is None:
        raise NotationError(f"{quoted(text)} is neither a status nor a range of them")
    least, most = int(found[1]), int(found[2] or found[1])
    if least < 200 or most < least:
        raise NotationError(f"{quoted(text)} holds no final status")
    return Statuses(least, most)


_STATUS: Final = Notation(
    _read_statuses,
    'a status such as "204", or a range such as "200-399"',
    {"anyOf": [{"type": "string", "pattern": f"^{_STATUSES.pattern}$"}, {"type": "integer", "minimum": 200}]},
)


def _read_prefix(value: object) -> str:
    if not isinstance(value, str):
        raise NotationError(f"is {kind(value)}")
    path = value.rstrip("/")
    if path and not PLAIN.fullmatch(path.encode("utf-8", "replace")):
        raise NotationError(f"{quoted(value)} is not a plain path")
    return path


PREFIX: Final = Notation(
    _read_prefix,
    'a path such as "/app": plain characters, whole segments',
    {"type": "string", "pattern": "^(?:/.*)?$"},
)


class UpstreamTls(Section):
    """TLS towards a route's `https` upstreams."""

    ca: Annotated[Path | None, _FILE] = written(
        None, "Certificate authorities to trust instead of the system's, PEM. These files are read again when they change."
    )  # fmt: skip
    client_cert: Annotated[Path | None, _FILE] = written(None, "Certificate to show to the app, PEM.")
    client_key: Annotated[Path | None, _FILE] = written(None, "Its private key, PEM, without a password.")
    server_name: Annotated[str | None, _SERVER_NAME] = written(
        None, "Name that the app's certificate must have. Default: the host of the upstream."
    )
    insecure_skip_verify: Annotated[bool, FLAG] = written(
        False, "Believe any certificate: whoever is on the way to the app can read and change everything."
    )

    @field_validator("client_key")
    @classmethod
    def _with_its_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "client_cert" in info.data and (value is None) != (info.data["client_cert"] is None):
            raise mistake(
                "is missing" if value is None else "has no client_cert",
                "both of client_cert and client_key, or neither",
            )
        return value

    @field_validator("insecure_skip_verify")
    @classmethod
    def _not_beside_ca(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("ca") is not None:
            raise mistake("is on, and so nothing would be checked against ca", "one of the two")
        return value


class HealthSettings(Section):
    """Regular questions to each server of a route, so that a sick one is asked last."""

    path: Annotated[str, _TARGET] = Field(description="What to ask for.")
    host: Annotated[str | None, _AUTHORITY] = written(
        None, "The `Host` to ask with. Default: the upstream's own host and port."
    )
    interval: Seconds = written("10s", "How often to ask, give or take a tenth.")
    timeout: Seconds = written("2s", "How long the answer may take.")
    status: Annotated[Statuses, _STATUS] = written("200-399", "A healthy answer's status, or a range of them.")


@dataclass(frozen=True, slots=True)
class Server:
    """One server behind, and all that is said about how to use it. Equal ones share connections, whatever their routes.

    `url` is http://host[:port], https://host[:port] or unix:/path; `max_connections` 0 means any number.
    """

    url: str
    tls: UpstreamTls | None = None
    health: HealthSettings | None = None
    max_connections: int = 0
