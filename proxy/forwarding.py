"""Where a request came from: the client's address, and the scheme and host that the browser sees.

Only what arrives on the wire is known; the rest is somebody's word. A proxy in `trusted_proxies` is believed, nobody else
is, and this is the one place that decides so. A client can write any X-Forwarded-For it likes, and every proxy on the way
appends to it: the client's address is the rightmost hop that is not a trusted proxy, whatever stands left of it.

The host found here is the one that routes are chosen by, and also the Host that the app gets. With one host judged and
another forwarded, `X-Forwarded-Host: public` beside `Host: admin` would pass by the rules of the one and be served as the
other by a server that has both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from proxy.http1 import RequestHead, is_authority

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# What this process calls itself in Via. Another gateway of the same kind in front or behind is another one; what comes back
# to this very one runs in a circle (RFC 9110 7.6.3).
PSEUDONYM: Final = b"postern-" + os.urandom(4).hex().encode()

_HOPS: Final = 32  # the nearest hops that are looked at: a head has room for thousands, and each costs time
_HOST_BYTES: Final = 255 + 6  # a name (RFC 1035 2.3.4) and a port
_X_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
_PAIR: Final = re.compile(
    r'[ \t]*([A-Za-z]+)=(?:([!#$%&\'*+\-.^_`|~\w:\[\]]+)|"((?:[^"\\]|\\.)*)")[ \t]*([;,]|\Z)', re.ASCII
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, after the word of trusted proxies: `scheme` and `host` as the browser sees them."""

    client: str
    address: Address | None
    scheme: bytes
    host: bytes
    name: str  # the host as text
    trusted: bool  # the peer on the wire is a trusted proxy
    fields: bytes  # the X-Forwarded- fields to send on, ready for the wire


class Peer:
    """Whoever is at the other end of a connection. `origin` is the last one worked out: connections keep to one host.

    `section` and `asked` are the header section and the host that it was worked out from, where a proxy's word was part of it.
    `crowd` is what connections are counted by, None for those that are not. An IPv6 client has a whole /64 to itself.
    """

    __slots__ = ("address", "asked", "crowd", "origin", "section", "text", "trusted")

    def __init__(self, text: str, address: Address | None, trusted: bool) -> None:
        self.text = text
        self.address = address
        self.trusted = trusted
        self.origin: Origin | None = None
        self.section: dict[bytes, bytes] | None = None
        self.asked = b""
        self.crowd: int | str | None = None
        if not trusted and address is not None:
            self.crowd = int(address) >> 64 if isinstance(address, IPv6Address) else str(address)


NOBODY: Final = Peer("", None, trusted=False)  # before it is known who has connected


class Forwarding:
    """Decides whom to believe about the client's address, scheme and host."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def trusts(self, address: Address | None) -> bool:
        """Whether `address` is one of the trusted proxies'."""
        return address is not None and any(
            address.version == network.version and address in network for network in self._trusted
        )

    def peer(self, text: str) -> Peer:
        """What is to be known about whoever connected from `text`, an address, or "" for a unix socket."""
        address = parse_address(text)
        return Peer(text, address, self.trusts(address) or (not text and bool(self._trusted)))

    def origin(self, head: RequestHead, peer: Peer, scheme: bytes) -> Origin:
        """The origin of `head`, which arrived from `peer` over `scheme`."""
        known = peer.origin
        if peer.trusted:
            # A remembered header section is the very same object: what followed from it follows from it again.
            if known is None or peer.section is not head.values or peer.asked != head.host:
                known = peer.origin = self._forwarded(head, peer, scheme)
                peer.section, peer.asked = head.values, head.host
            return known
        if known is None or known.host != head.host:
            known = peer.origin = _origin(peer, (), scheme, head.host)
        return known

    def _forwarded(self, head: RequestHead, peer: Peer, scheme: bytes) -> Origin:
        """What a trusted proxy says, in the X-Forwarded- fields or, where there are none, in Forwarded (RFC 7239).

        A proxy that writes the one kind passes the other on as the client sent it: they are never mixed.
        """
        values = head.values
        if b"forwarded" in values and values.keys().isdisjoint(_X_FORWARDED):
            elements = parse_forwarded(values[b"forwarded"].decode("latin-1"))
            way = self._way(element.get("for", "") for element in reversed(elements))
            said = elements[-max(len(way), 1)] if elements else {}  # the element about the client has its host, too
            proto, host = said.get("proto", ""), said.get("host", "")
        else:
            hops, proto, host = (values.get(name, b"").decode("latin-1") for name in _X_FORWARDED)
            way = self._way(reversed(hops.rsplit(",", _HOPS)))
            proto, host = (text.rpartition(",")[2].strip() for text in (proto, host))
        proto_bytes, host_bytes = proto.lower().encode("latin-1"), host.encode("latin-1")
        return _origin(
            peer,
            way,
            proto_bytes if proto_bytes in (b"http", b"https") else scheme,
            host_bytes if len(host_bytes) <= _HOST_BYTES and is_authority(host_bytes) else head.host,
        )

    def _way(self, hops: Iterable[str]) -> list[Address]:
        """The addresses from the nearest of `hops` to the client.

        Whatever stands behind the client, or behind a hop that is no address, is anybody's invention and left out: an app
        that takes the first address of X-Forwarded-For for the client is right then.
        """
        way: list[Address] = []
        for hop in hops:
            address = parse_address(hop)
            if address is None or len(way) == _HOPS:
                break
            way.append(address)
            if not self.trusts(address):
                break
        return way


def loops(head: RequestHead) -> bool:
    """Whether `head` has been forwarded by this process before."""
    via = head.values.get(b"via")
    return via is not None and PSEUDONYM in via


def parse_address(text: str) -> Address | None:
    """An IP address out of a hop ("1.2.3.4", "1.2.3.4:5", "[::1]:5", "::1%eth0"); IPv4-mapped ones become IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def parse_forwarded(value: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field, parameters by lower-case name (RFC 7239 4); none at all when it is malformed."""
    elements: list[dict[str, str]] = [{}]
    position = 0
    while position < len(value):
        pair = _PAIR.match(value, position)
        if pair is None:
            return []
        name, token, quoted, end = pair.groups()
        elements[-1].setdefault(name.lower(), token if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        if end == ",":
            elements.append({})
        position = pair.end()
    return elements if elements[-1] else elements[:-1]


def _origin(peer: Peer, way: Sequence[Address], scheme: bytes, host: bytes) -> Origin:
    client = str(way[-1]) if way else peer.text
    chain = ", ".join([*map(str, reversed(way)), *([peer.text] if peer.text else [])]).encode("ascii", "replace")
    fields = b"X-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n" % (scheme, host)
    if chain:
        fields = b"X-Forwarded-For: %b\r\n%b" % (chain, fields)
    address = way[-1] if way else peer.address
    return Origin(client, address, scheme, host, host.decode("latin-1"), peer.trusted, fields)
