"""The settings of header fields: what the app is told besides who somebody is, and what becomes of its answers' fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import field_validator

from proxy.notation import Notation, NotationError, kind, mistake, pattern, quoted
from proxy.sections import HTTP_TOKEN, Section, written
from proxy.templating import ACCEPTED, Template

# Framing and hop-by-hop fields are each side's own (RFC 9110 7.6.1); the others are the gateway's word on where a request
# came from, which a template must not be able to forge.
_FRAMING: Final = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
_OWN: Final = frozenset(("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"))
_HEADER_NAME: Final = "a header name that neither frames the message nor says where it came from"


def _read_header_name(value: object) -> str:
    text = pattern(HTTP_TOKEN, "a header name", _HEADER_NAME).read(value)
    folded = fold_header(text)
    if folded in _FRAMING or folded in _OWN or folded.startswith("x-postern-"):
        raise NotationError("belongs to the gateway")
    return str(text)


# An answer's framing, cookies, places and dates are not plain text to be replaced: the gateway reads and writes them itself.
_NOT_ANSWERED: Final = _FRAMING | {"date", "location", "set-cookie", "via", "x-request-id"}
_ANSWER_NAME: Final = "a header name, but for framing, cookies, Location, Date, Via and X-Request-Id"


def _read_answer_header(value: object) -> str:
    text = pattern(HTTP_TOKEN, "a header name", _ANSWER_NAME).read(value)
    if text.lower() in _NOT_ANSWERED:
        raise NotationError("belongs to the gateway")
    return str(text)


def fold_header(name: str) -> str:
    """`name` as CGI and WSGI tell names apart: in any case, `_` the same as `-`."""
    return name.lower().replace("_", "-")


def _read_template(value: object) -> str:
    if not isinstance(value, str):
        raise NotationError(f"is {kind(value)}")
    if not value or value != value.strip() or not value.isprintable():
        raise NotationError("is empty, has spaces at an end, or holds a control character")
    Template.parse(value)
    return value


_HEADER: Final = Notation(_read_header_name, _HEADER_NAME, {"type": "string"})
_ANSWER_HEADER: Final = Notation(_read_answer_header, _ANSWER_NAME, {"type": "string"})
_ANSWER_VALUE: Final = pattern(
    r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", "a header's value", "printable ASCII without spaces at an end"
)
_TEMPLATE: Final = Notation(_read_template, ACCEPTED, {"type": "string", "minLength": 1})


class HeaderSettings(Section):
    """Header fields for the app behind, beside the identity families."""

    set: Mapping[Annotated[str, _HEADER], Annotated[str, _TEMPLATE]] = written(
        {}, "Fields to set, with templates such as `{email}` for values. A client's are deleted."
    )
    remove: tuple[Annotated[str, _HEADER], ...] = written((), "Fields of the client's to take off.")

    @field_validator("set")
    @classmethod
    def _each_once(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        seen: dict[str, str] = {}
        for name in value:
            other = seen.setdefault(fold_header(name), name)
            if other is not name:
                raise mistake(
                    f"has {quoted(other)} and {quoted(name)}, which apps take for the same", "each header once"
                )
        return value


class ResponseSettings(Section):
    """Header fields of the app's answers, changed on the way to the browser."""

    set: Mapping[Annotated[str, _ANSWER_HEADER], Annotated[str, _ANSWER_VALUE]] = written(
        {}, "Fields to set; the app's own of these names are taken off."
    )
    remove: tuple[Annotated[str, _ANSWER_HEADER], ...] = written((), "Fields of the app's to take off.")

    @field_validator("set")
    @classmethod
    def _each_once(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if len({name.lower() for name in value}) < len(value):
            raise mistake("has a header twice, in different case", "each header once")
        return value


class CommonHeaders(HeaderSettings):
    """Header fields for every app."""


class CommonResponse(ResponseSettings):
    """Header fields of every app's answers."""
