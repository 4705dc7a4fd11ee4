"""Where a WebDAV COPY or MOVE leads: a second target, in the field Destination (RFC 4918 10.3).

It needs the same judgement as the first one. Who may read `/shared` and must not write to `/private` could otherwise have the
app move something from the one to the other.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from proxy.rewriting import PathMap

FIELD: Final = b"destination"
# Simple-ref (RFC 4918 8.3): an absolute URI, or a path. No userinfo, no fragment, nothing that would have to be encoded.
_SIMPLE_REF: Final = re.compile(rb"(?:((?i:https?))://([A-Za-z0-9.:\[\]_~%-]+))?(/[!-\"$-~]*)?")


class Destination(NamedTuple):
    """A Destination taken apart; without `scheme` and `authority` it is one on the host that was asked."""

    scheme: bytes
    authority: bytes
    target: bytes

    @property
    def path(self) -> bytes:
        """The path, as the field has it."""
        return self.target.partition(b"?")[0]

    def within(self, mapping: PathMap | None, origin: bytes) -> bytes:
        """The field's value for an app that knows its own paths, and goes by `origin` (empty: by the client's word).

        Raises ValueError when the path is not below what is stripped.
        """
        target = self.target if mapping is None else mapping.up(self.target)
        if not self.authority:
            return target
        return (origin or b"%b://%b" % (self.scheme, self.authority)) + target


def read_destination(value: bytes) -> Destination | None:
    """Take the value of a Destination field apart; None for anything else, several of them among it."""
    found = _SIMPLE_REF.fullmatch(value)
    if found is None or not value:
        return None
    scheme, authority, target = found.groups(b"")
    return Destination(scheme, authority, target or b"/")
