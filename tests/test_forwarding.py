"""Whose word counts for where a request came from. Everything a client can write must be worth nothing."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.forwarding import PSEUDONYM, Forwarding, Origin, loops, parse_address, parse_forwarded
from proxy.http1 import RequestHead, read_request

EDGE = "10.0.0.1"
TRUSTED = Forwarding((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
NOBODY = Forwarding(())


def head(*fields: str, host: str = "app.example.com") -> RequestHead:
    raw = "\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode("latin-1")
    found = read_request(raw)
    assert found is not None
    return found[0]


def origin(*fields: str, peer: str = EDGE, forwarding: Forwarding = TRUSTED, host: str = "app.example.com") -> Origin:
    return forwarding.origin(head(*fields, host=host), forwarding.peer(peer), b"http")


class TestStrangers:
    FIELDS = (
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: admin.example.com",
        "Forwarded: for=6.6.6.6;proto=https;host=admin.example.com",
        "X-Real-IP: 6.6.6.6",
    )

    @pytest.mark.parametrize("forwarding", [TRUSTED, NOBODY])
    @pytest.mark.parametrize("peer", ["198.51.100.7", "2001:db8::7", "::ffff:198.51.100.7"])
    def test_what_they_say_is_nothing(self, forwarding: Forwarding, peer: str) -> None:
        got = origin(*self.FIELDS, peer=peer, forwarding=forwarding)
        assert (got.client, got.scheme, got.host, got.trusted) == (peer, b"http", b"app.example.com", False)
        assert b"6.6.6.6" not in got.fields
        assert b"admin" not in got.fields
        assert b"X-Forwarded-For: %b\r\n" % peer.encode() in got.fields

    def test_a_unix_socket_is_believed_only_where_somebody_is(self) -> None:
        assert origin(*self.FIELDS, peer="", forwarding=NOBODY).trusted is False
        got = origin(*self.FIELDS, peer="")
        assert (got.trusted, got.client, got.scheme) == (True, "6.6.6.6", b"https")
        assert b"X-Forwarded-For: 6.6.6.6\r\n" in got.fields

    def test_a_unix_socket_has_no_address_to_send_on(self) -> None:
        got = origin(peer="", forwarding=NOBODY)
        assert (got.client, got.address) == ("", None)
        assert b"X-Forwarded-For" not in got.fields

    def test_the_origin_of_a_connection_is_worked_out_once_for_each_host(self) -> None:
        peer = NOBODY.peer("198.51.100.7")
        first = NOBODY.origin(head(), peer, b"http")
        assert NOBODY.origin(head(), peer, b"http") is first
        assert NOBODY.origin(head(host="other.example.com"), peer, b"http").name == "other.example.com"


class TestTrustedProxies:
    @pytest.mark.parametrize(
        ("hops", "client", "chain"),
        [
            ("", EDGE, EDGE),
            ("198.51.100.7", "198.51.100.7", "198.51.100.7, 10.0.0.1"),
            ("6.6.6.6, 198.51.100.7", "198.51.100.7", "198.51.100.7, 10.0.0.1"),
            ("198.51.100.7, 10.0.0.2", "198.51.100.7", "198.51.100.7, 10.0.0.2, 10.0.0.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3", "10.0.0.3, 10.0.0.2, 10.0.0.1"),
            # What stands left of something that is no address may be anybody's: here the edge could not name its client.
            ("6.6.6.6, unknown", EDGE, EDGE),
            ("6.6.6.6,", EDGE, EDGE),
            ("6.6.6.6, , 10.0.0.2", "10.0.0.2", "10.0.0.2, 10.0.0.1"),
            ("198.51.100.7:4711", "198.51.100.7", "198.51.100.7, 10.0.0.1"),
            ("[2001:db8::7]:4711", "2001:db8::7", "2001:db8::7, 10.0.0.1"),
            ("::ffff:198.51.100.7", "198.51.100.7", "198.51.100.7, 10.0.0.1"),
            ("fe80::1%eth0", "fe80::1", "fe80::1, 10.0.0.1"),
            ("6.6.6.6\t,\t198.51.100.7\t", "198.51.100.7", "198.51.100.7, 10.0.0.1"),
        ],
    )
    def test_the_client_is_the_rightmost_hop_that_is_not_trusted(self, hops: str, client: str, chain: str) -> None:
        got = origin(f"X-Forwarded-For: {hops}")
        assert (got.client, got.address) == (client, ip_address(client))
        assert b"X-Forwarded-For: %b\r\n" % chain.encode() in got.fields

    def test_two_fields_are_one_list(self) -> None:
        assert origin("X-Forwarded-For: 6.6.6.6", "x-forwarded-for: 198.51.100.7").client == "198.51.100.7"

    def test_a_list_without_end_costs_no_more_than_a_long_one(self) -> None:
        got = origin("X-Forwarded-For: " + ",".join(["6.6.6.6", *["10.0.0.2"] * 5_000]))
        assert got.client == "10.0.0.2"
        assert got.fields.count(b"10.0.0.2") == 32

    @pytest.mark.parametrize(
        ("value", "scheme"),
        [("https", b"https"), ("HTTPS", b"https"), ("http", b"http"), ("http, https", b"https"),
         ("ftp", b"http"), ("", b"http"), ("https,", b"http"), ("javascript", b"http")],
    )  # fmt: skip
    def test_the_scheme(self, value: str, scheme: bytes) -> None:
        assert origin(f"X-Forwarded-Proto: {value}").scheme == scheme

    @pytest.mark.parametrize(
        ("value", "host"),
        [
            ("apps.example.com", b"apps.example.com"),
            ("apps.example.com:8443", b"apps.example.com:8443"),
            ("6.example, apps.example.com", b"apps.example.com"),
            ("[2001:db8::1]:80", b"[2001:db8::1]:80"),
            ("", b"app.example.com"),
            ("a b", b"app.example.com"),
            ("user@apps.example.com", b"app.example.com"),
            ("apps.example.com/x", b"app.example.com"),
            ("a" * 300, b"app.example.com"),
        ],
    )
    def test_the_host(self, value: str, host: bytes) -> None:
        got = origin(f"X-Forwarded-Host: {value}")
        assert (got.host, got.name) == (host, host.decode())
        assert b"X-Forwarded-Host: %b\r\n" % host in got.fields

    def test_every_request_of_a_connection_is_believed_for_itself(self) -> None:
        """A proxy carries requests of many clients over one connection; only the very same fields mean the same."""
        peer = TRUSTED.peer(EDGE)

        def client(*fields: str, host: str = "app.example.com") -> tuple[str, bytes, bytes]:
            got = TRUSTED.origin(head(*fields, host=host), peer, b"http")
            return got.client, got.scheme, got.host

        ann = ("X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: https")
        bob = ("X-Forwarded-For: 198.51.100.8", "X-Forwarded-Proto: http")
        for _ in range(2):
            assert client(*ann) == ("198.51.100.7", b"https", b"app.example.com")
            assert client(*ann) == ("198.51.100.7", b"https", b"app.example.com")
            assert client(*bob) == ("198.51.100.8", b"http", b"app.example.com")
            assert client(*bob, host="other.example.com") == ("198.51.100.8", b"http", b"other.example.com")
            assert client() == (EDGE, b"http", b"app.example.com")

    def test_the_authority_of_a_target_counts_beside_the_same_fields(self) -> None:
        peer = TRUSTED.peer(EDGE)
        for host in (b"a.example.com", b"b.example.com", b"a.example.com"):
            asked = head()
            asked.host = host  # as an absolute target gives it
            assert TRUSTED.origin(asked, peer, b"http").host == host


class TestForwarded:
    """RFC 7239."""

    @pytest.mark.parametrize(
        ("value", "client", "scheme", "host"),
        [
            ("for=198.51.100.7;proto=https;host=apps.example.com", "198.51.100.7", b"https", b"apps.example.com"),
            ("For=198.51.100.7; PROTO=HTTPS", "198.51.100.7", b"https", b"app.example.com"),
            ('for="[2001:db8::7]:4711"', "2001:db8::7", b"http", b"app.example.com"),
            ("for=6.6.6.6;host=evil.example, for=198.51.100.7;host=a.example", "198.51.100.7", b"http", b"a.example"),
            # The outer of two trusted proxies knows what the client asked for, the inner one only what the outer asked.
            ("for=198.51.100.7;proto=https;host=a, for=10.0.0.2;proto=http;host=b", "198.51.100.7", b"https", b"a"),
            ("for=6.6.6.6;host=evil, for=unknown;host=a.example", EDGE, b"http", b"a.example"),
            ("for=_hidden", EDGE, b"http", b"app.example.com"),
            ("proto=https", EDGE, b"https", b"app.example.com"),
            ('host="a\\.example"', EDGE, b"http", b"a.example"),
            ("", EDGE, b"http", b"app.example.com"),
            ("for=198.51.100.7 proto=https", EDGE, b"http", b"app.example.com"),
            ('for="198.51.100.7', EDGE, b"http", b"app.example.com"),
        ],
    )
    def test_is_read(self, value: str, client: str, scheme: bytes, host: bytes) -> None:
        got = origin(f"Forwarded: {value}")
        assert (got.client, got.scheme, got.host) == (client, scheme, host)

    @pytest.mark.parametrize(
        "field", ["X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: http", "X-Forwarded-Host: a.example"]
    )
    def test_is_not_mixed_with_the_other_kind(self, field: str) -> None:
        """A proxy that writes X-Forwarded- fields passes a client's Forwarded on untouched."""
        got = origin(field, "Forwarded: for=6.6.6.6;proto=https;host=evil.example")
        assert got.client in (EDGE, "198.51.100.7")
        assert got.scheme == b"http"
        assert b"evil" not in got.host

    @given(st.text(st.characters(codec="latin-1"), max_size=80))
    def test_anything_gives_a_list(self, value: str) -> None:
        elements = parse_forwarded(value)
        assert all(name == name.lower() for element in elements for name in element)

    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from(["for", "by", "host", "proto"]),
                st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=12),
                min_size=1,
            ),
            max_size=4,
        )
    )
    def test_what_was_written_is_read(self, elements: list[dict[str, str]]) -> None:
        def quoted(text: str) -> str:
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

        written = ", ".join(";".join(f"{name}={quoted(value)}" for name, value in it.items()) for it in elements)
        assert parse_forwarded(written) == elements


class TestAnything:
    @given(
        st.lists(
            st.sampled_from(["6.6.6.6", "10.0.0.2", "198.51.100.7", "unknown", "", "fd00::1", "::1", "x" * 9]),
            max_size=6,
        ),
        st.sampled_from([EDGE, "198.51.100.7", "fd00::9", ""]),
    )
    def test_a_client_chooses_its_address_only_where_nobody_on_the_way_knows_better(
        self, hops: list[str], peer: str
    ) -> None:
        """The client is the peer, or a hop with nothing but trusted proxies' addresses to its right."""
        got = origin("X-Forwarded-For: " + ", ".join(hops), peer=peer)
        if got.client == peer or (not peer and not got.client):
            return
        assert got.trusted
        place = max(index for index, hop in enumerate(hops) if parse_address(hop) == got.address)
        assert all(TRUSTED.trusts(parse_address(hop)) for hop in hops[place + 1 :])

    @given(st.text(max_size=40))
    def test_addresses(self, text: str) -> None:
        address = parse_address(text)
        assert address is None or parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("peer", "same", "other"),
    [
        ("198.51.100.7", "198.51.100.7", "198.51.100.8"),
        ("::ffff:198.51.100.7", "198.51.100.7", "::ffff:198.51.100.8"),
        ("2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:3::1"),
    ],
)
def test_crowds_are_clients(peer: str, same: str, other: str) -> None:
    """An IPv6 client chooses among 2^64 addresses as it likes."""
    assert NOBODY.peer(peer).crowd == NOBODY.peer(same).crowd is not None
    assert NOBODY.peer(peer).crowd != NOBODY.peer(other).crowd


@pytest.mark.parametrize("peer", [EDGE, "fd00::1", ""])
def test_trusted_proxies_are_no_crowd(peer: str) -> None:
    assert TRUSTED.peer(peer).crowd is None


def test_a_loop_is_this_very_process_coming_back() -> None:
    own = PSEUDONYM.decode()
    assert loops(head(f"Via: 1.1 {own}"))
    assert loops(head("Via: 1.1 edge", f"Via: 1.0 {own} (x), 1.1 other"))
    assert not loops(head("Via: 1.1 postern, 1.1 postern-00000000"))
    assert not loops(head())
