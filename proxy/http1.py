"""Heads of HTTP/1.1 messages: bytes to values, and nothing else (RFC 9112). No I/O, no clock, no policy.

The law of this file: any input gives a value, "need more" (None), or one named error. It never guesses. Where RFC 9112
lets a recipient repair a message, a proxy that decides who may pass must refuse it instead: whatever two parsers can
read differently is how a request gets past a gate (request smuggling, RFC 9112 section 11.2). So there is no bare LF, no
obs-fold, no white space before a colon, no Transfer-Encoding beside Content-Length, and fields that come after the end
of the header section stay trailers for ever.

Heads are read with two regular expressions over the whole block: the C loop of `re` is what makes this as fast as a
native parser with Python callbacks, while every byte stays accounted for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from proxy.errors import MalformedRequest, MalformedResponse

Fields = list[tuple[bytes, bytes]]


# token (RFC 9110 5.6.2), then OWS, then field-content without control characters (5.5). `^` is anchored to line starts, so
# a line that does not match as a whole is missing from the result and the count gives it away. Possessive quantifiers: each
# class ends where the next part begins, so there is nothing to come back for, on any input.
_FIELD: Final = re.compile(rb"^([!#$%&'*+\-.^_`|~\w]++):[ \t]*+([\t -~\x80-\xff]*+)\r\n", re.MULTILINE)
_REQUEST_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}) ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/1\.([01])\r\n"
)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?\r\n")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
_LENGTH: Final = re.compile(rb"([0-9]{1,18})(?:[ \t]*,[ \t]*\1)*")
_LENGTH_BYTES: Final = 256  # of a Content-Length field, repetitions included
_MARGIN: Final = 64  # what a request line has besides its target: method, spaces, version
_EMPTY_LINES: Final = 4  # before a request line; RFC 9112 2.2 asks for one, old clients sent it after a form

# Whoever is given one of these speaks HTTP again behind the switch, to the app and past the gate: its own paths, its own
# identity headers ("h2c smuggling"). They are never offered to an app; anything else in a tunnel is the app's own protocol.
_SPEAKS_HTTP: Final = re.compile(rb"(?:^|[,\s])(?:h2c?|h3|https?|spdy|tls|ssl)(?:[-/,\s]|$)", re.IGNORECASE)
_UPGRADE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~\w]+(?:/[!#$%&'*+\-.^_`|~\w]+)?")

_REFUSED: Final = frozenset((b"CONNECT", b"TRACE"))
_REMEMBERED: Final = 512  # header sections remembered
_LONGEST_REMEMBERED: Final = 4096  # bytes of the longest that is
_remembered: Final[dict[bytes, Section]] = {}
_responses: Final[dict[bytes, ResponseHead]] = {}  # heads of responses, but not to HEAD, by all their bytes

NO_BODY_STATUS: Final = frozenset((204, 304))  # nor has 1xx: RFC 9110 6.4.1


class RequestHead:
    """A request's head. `fields` keeps order, case and duplicates as sent; `values` maps lower-case names to values.

    In `values`, fields of one name are joined with a comma (RFC 9110 5.3), Cookie with a semicolon (RFC 6265 5.4).
    `length` is the body's size in bytes, None for chunked. `target` is what an upstream is asked for: origin-form (or
    `*`), byte for byte as received, `path` what of it stands before the query; `host` is the authority it is asked of.
    `fields` and `values` may be shared with other heads that have the very same header section: read them, replace them, but
    never change them. `made` is shared likewise: what others have made of the fields, by a key of their own.
    `upgrade` is the protocol to switch to, None when none is asked for that may be given.
    """

    __slots__ = (
        "expect_continue",
        "fields",
        "host",
        "keep_alive",
        "length",
        "made",
        "method",
        "minor",
        "path",
        "target",
        "upgrade",
        "values",
    )

    def __init__(self, method: bytes, target: bytes, minor: int, fields: Fields, values: dict[bytes, bytes]) -> None:
        self.method = method
        self.target = target
        self.path = target
        self.minor = minor
        self.fields = fields
        self.values = values
        self.host = b""
        self.length: int | None = 0
        self.keep_alive = minor == 1
        self.expect_continue = False
        self.upgrade: bytes | None = None
        self.made: dict[object, Any] = {}

    @property
    def query(self) -> bytes:
        """The raw query of the target, without the question mark."""
        return self.target.partition(b"?")[2]


class ResponseHead:
    """A response's head, `fields`, `values` and `made` as in RequestHead. `length` None: until the connection closes.

    The whole of it may be shared with later responses that have the very same head: never change it.
    """

    __slots__ = ("chunked", "fields", "keep_alive", "length", "made", "minor", "reason", "status", "values")

    def __init__(self, status: int, reason: bytes, minor: int, fields: Fields, values: dict[bytes, bytes]) -> None:
        self.status = status
        self.reason = reason
        self.minor = minor
        self.fields = fields
        self.values = values
        self.length: int | None = 0
        self.chunked = False
        self.keep_alive = minor == 1
        self.made: dict[object, Any] = {}


class Section:
    """A header section, read: its fields as sent, their values by lower-case name, and what others have made of them."""

    __slots__ = ("fields", "made", "settled", "values")

    def __init__(self, fields: Fields, values: dict[bytes, bytes]) -> None:
        self.fields = fields
        self.values = values
        self.made: dict[object, Any] = {}
        self.settled: RequestHead | None = None  # an ordinary request with this section, as it was settled


class HeadLimits:
    """How large a head may be: whole head and request target in bytes, number of fields."""

    __slots__ = ("fields", "head", "uri")

    def __init__(self, head: int = 65536, uri: int = 16384, fields: int = 200) -> None:
        self.head = head
        self.uri = uri
        self.fields = fields


DEFAULT_LIMITS: Final = HeadLimits()


def read_request(buffer: bytes | bytearray, limits: HeadLimits = DEFAULT_LIMITS) -> tuple[RequestHead, int] | None:
    """Read one request head from the start of `buffer`.

    Returns the head and the number of bytes it took, or None when more bytes are needed. A few empty lines before the
    request line are skipped (RFC 9112 2.2). Raises MalformedRequest with the status to answer: 400, 405, 414, 417, 431,
    501, 505.
    """
    start = _empty_lines(buffer) if buffer[:1] == b"\r" else 0
    end = buffer.find(b"\r\n\r\n", start)
    if end < 0:
        _check_partial(buffer, start, limits)
        return None
    if end + 2 - start > limits.head:
        raise MalformedRequest(431, "the request's header section is too large")
    line = _REQUEST_LINE.match(buffer, start, end + 2)
    if line is None:
        raise _bad_request_line(bytes(buffer[start : end + 2]), limits)
    method, target, minor = line.groups()
    if len(target) > limits.uri:
        raise MalformedRequest(414, "the request's target is too long")
    block = bytes(buffer[line.end() : end + 2])
    section = _remembered.get(block) or _read_section(block)
    if section is None:
        raise MalformedRequest(400, "a header field is malformed")
    if len(section.fields) > limits.fields:
        raise MalformedRequest(431, "the request has too many header fields")
    request = RequestHead(method, target, 1 if minor == b"1" else 0, section.fields, section.values)
    request.made = section.made
    settled = section.settled
    if settled is not None and settled.minor == request.minor and target[:1] == b"/" and method not in _REFUSED:
        request.path = target.partition(b"?")[0]
        request.host = settled.host
        request.length = settled.length
        request.keep_alive = settled.keep_alive
        request.expect_continue = settled.expect_continue
        request.upgrade = settled.upgrade
        return request, end + 4
    _settle_target(request)
    _settle_request_framing(request)
    if target[:1] == b"/":
        section.settled = _as_settled(request)
    return request, end + 4


def _empty_lines(buffer: bytes | bytearray) -> int:
    """The bytes of the empty lines that `buffer` begins with."""
    start = 0
    while buffer.startswith(b"\r\n", start):
        start += 2
        if start > 2 * _EMPTY_LINES:
            raise MalformedRequest(400, "too many empty lines instead of a request")
    return start


def _as_settled(request: RequestHead) -> RequestHead:
    """What of `request` follows from its header section and version, in a head that nobody else can change."""
    settled = RequestHead(b"", b"", request.minor, request.fields, request.values)
    settled.host = request.host
    settled.length = request.length
    settled.keep_alive = request.keep_alive
    settled.expect_continue = request.expect_continue
    settled.upgrade = request.upgrade
    return settled


def read_response(
    buffer: bytes | bytearray, method: bytes, limits: HeadLimits = DEFAULT_LIMITS
) -> tuple[ResponseHead, int] | None:
    """Read one response head (an interim 1xx one too) to a request of `method` from the start of `buffer`.

    Returns the head and the bytes it took, or None when more are needed. Raises MalformedResponse.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > limits.head:
            raise MalformedResponse("the response's header section is too large")
        if buffer and not b"HTTP/1.".startswith(bytes(buffer[:7])):
            raise MalformedResponse("the response does not begin like HTTP/1")
        return None
    head = bytes(buffer[: end + 2])
    known = _responses.get(head) if method != b"HEAD" else None
    if known is not None:
        return known, end + 4
    if len(head) > limits.head:
        raise MalformedResponse("the response's header section is too large")
    line = _STATUS_LINE.match(head)
    if line is None:
        raise MalformedResponse("the response's status line is malformed")
    minor, status, reason = line.groups()
    fields, values = read_fields(head, line.end())
    if fields is None:
        raise MalformedResponse("a header field of the response is malformed")
    response = ResponseHead(int(status), reason or b"", 1 if minor == b"1" else 0, fields, values)
    _settle_response_framing(response, method)
    if method != b"HEAD" and len(head) <= _LONGEST_REMEMBERED:
        if len(_responses) >= _REMEMBERED:
            _responses.clear()
        _responses[head] = response
    return response, end + 4


@lru_cache(maxsize=64)
def connection_options(value: bytes | None) -> frozenset[bytes]:
    """The lower-case options of a Connection field's value (RFC 9110 7.6.1)."""
    if not value:
        return frozenset()
    return frozenset(filter(None, (option.strip(b" \t") for option in value.lower().split(b","))))


def is_authority(host: bytes) -> bool:
    """Whether `host` is a name or an address, with or without a port, and nothing else (RFC 9110 7.2)."""
    return _HOST.fullmatch(host) is not None


def may_tunnel(upgrade: bytes) -> bool:
    """Whether `upgrade`, an Upgrade field's value, names protocols that may be spoken past the gate."""
    return _SPEAKS_HTTP.search(upgrade) is None and all(
        _UPGRADE.fullmatch(protocol.strip(b" \t")) for protocol in upgrade.split(b",")
    )


def _read_section(block: bytes) -> Section | None:
    """Read a header section that is not remembered (`block`: whole lines, each with its end); None when a line is malformed.

    Clients that poll and proxies in front send the same section over and over, and the same bytes mean the same: the latest
    ones are remembered as they were read. Bounded in number and size; a session found through a remembered cookie is looked up
    anew each time.
    """
    fields, values = read_fields(block, 0)
    if fields is None:
        return None
    section = Section(fields, values)
    if len(block) <= _LONGEST_REMEMBERED:
        if len(_remembered) >= _REMEMBERED:
            _remembered.clear()
        _remembered[block] = section
    return section


def read_fields(head: bytes, start: int) -> tuple[Fields, dict[bytes, bytes]] | tuple[None, dict[bytes, bytes]]:
    """The field lines of `head` from `start` to its end, and their values by lower-case name; None when one is malformed."""
    values: dict[bytes, bytes] = {}
    fields: Fields = _FIELD.findall(head, start)
    if len(fields) != head.count(b"\n", start):
        return None, values
    if head.find(b" \r\n", start) >= 0 or head.find(b"\t\r\n", start) >= 0:  # trailing OWS is no part of a value
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    for name, value in fields:
        lower = name.lower()
        if lower in values:
            values[lower] = values[lower] + (b"; " if lower == b"cookie" else b", ") + value
        else:
            values[lower] = value
    return fields, values


def _check_partial(buffer: bytes | bytearray, start: int, limits: HeadLimits) -> None:
    """Refuse what can no longer become an acceptable head, before its end has come."""
    waiting = len(buffer) - start
    line_end = buffer.find(b"\n", start)
    if line_end < 0:
        if waiting > limits.uri + _MARGIN:
            raise MalformedRequest(414, "the request's target is too long")
        if waiting and not _could_be_request_line(bytes(buffer[start : start + 41])):
            raise MalformedRequest(400, "this does not begin like an HTTP request")
        return
    if _REQUEST_LINE.match(buffer, start) is None:
        raise _bad_request_line(bytes(buffer[start : line_end + 1]), limits)
    if waiting > limits.head + 1:  # the head itself ends before the empty line, half of which may be there
        raise MalformedRequest(431, "the request's header section is too large")
    lines = buffer.count(b"\n", start)
    if lines > limits.fields + 1:
        raise MalformedRequest(431, "the request has too many header fields")
    if lines != buffer.count(b"\r\n", start):
        raise MalformedRequest(400, "a line of the request does not end with CRLF")


_METHOD_START: Final = re.compile(rb"\r?|[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,40}(?: .*)?", re.DOTALL)


def _could_be_request_line(start: bytes) -> bool:
    return _METHOD_START.fullmatch(start) is not None


def _bad_request_line(head: bytes, limits: HeadLimits) -> MalformedRequest:
    line = head.partition(b"\n")[0]
    if len(line) > limits.uri + _MARGIN:
        return MalformedRequest(414, "the request's target is too long")
    if re.search(rb" HTTP/(?!1\.[01]\r?$)[0-9]\.[0-9]\r?$", line):
        return MalformedRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    return MalformedRequest(400, "the request line is malformed")


def _settle_target(request: RequestHead) -> None:
    """Find the authority and the origin-form target (RFC 9112 3.2, 3.3)."""
    target = request.target
    host = request.values.get(b"host")
    if request.method in _REFUSED:
        raise MalformedRequest(405, f"{request.method.decode()} is not served here")
    if host is None:
        raise MalformedRequest(400, "the request has no Host")
    if target[:1] != b"/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            host, rest = absolute.groups()
            rest = rest or b"/"
            request.target = rest if rest[:1] == b"/" else b"/" + rest
            if not is_authority(request.values[b"host"]):
                raise MalformedRequest(400, "the request's Host is malformed")
        elif target != b"*" or request.method != b"OPTIONS":
            raise MalformedRequest(400, "the request's target is malformed")
    if not is_authority(host):
        raise MalformedRequest(400, "the request's Host is malformed or sent twice")
    request.host = host
    request.path = request.target.partition(b"?")[0]


def _settle_request_framing(request: RequestHead) -> None:
    """Decide where the body ends (RFC 9112 6.3), refusing whatever two parsers could read differently."""
    values = request.values
    coding = values.get(b"transfer-encoding")
    length = values.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise MalformedRequest(400, "Content-Length and Transfer-Encoding exclude each other")
        if request.minor == 0:
            raise MalformedRequest(400, "Transfer-Encoding does not exist in HTTP/1.0")
        if coding.lower() != b"chunked":
            if b"chunked" in coding.lower():
                raise MalformedRequest(400, "chunked must be the only transfer coding")
            raise MalformedRequest(501, "this transfer coding is not implemented")
        request.length = None
    elif length is not None:
        request.length = _content_length(length)
        if request.length is None:
            raise MalformedRequest(400, "Content-Length is malformed")
    connection = values.get(b"connection")
    if connection is not None:
        options = connection_options(connection)
        if b"close" in options:
            request.keep_alive = False
        elif request.minor == 0 and b"keep-alive" in options:
            request.keep_alive = True
        if request.minor == 1 and b"upgrade" in options:
            wanted = values.get(b"upgrade")
            if wanted and may_tunnel(wanted):
                request.upgrade = wanted
    if request.minor == 1 and b"expect" in values:
        if values[b"expect"].lower() != b"100-continue":
            raise MalformedRequest(417, "only 100-continue can be expected")
        request.expect_continue = request.length != 0


def _settle_response_framing(response: ResponseHead, method: bytes) -> None:
    """Decide where the response's body ends (RFC 9112 6.3)."""
    values = response.values
    status = response.status
    coding = values.get(b"transfer-encoding")
    length = values.get(b"content-length")
    connection = connection_options(values.get(b"connection"))
    if b"close" in connection:
        response.keep_alive = False
    elif response.minor == 0 and b"keep-alive" in connection:
        response.keep_alive = True
    if length is not None and _content_length(length) is None:
        raise MalformedResponse("Content-Length of the response is malformed")
    if coding is not None and (length is not None or response.minor == 0 or coding.lower() != b"chunked"):
        raise MalformedResponse("the response's framing is ambiguous")
    if status < 200 or status in NO_BODY_STATUS or method == b"HEAD":
        response.length = 0
    elif coding is not None:
        response.chunked = True
        response.length = None
    elif length is not None:
        response.length = _content_length(length)
    else:
        response.length = None
        response.keep_alive = False


def _content_length(value: bytes) -> int | None:
    match = _LENGTH.fullmatch(value) if len(value) <= _LENGTH_BYTES else None
    return int(match[1]) if match else None
