"""Notations: each way to write a value, read right or refused."""

from __future__ import annotations

import math
import re
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from proxy.notation import (
    DOMAIN,
    DURATION,
    FLAG,
    NETWORK,
    PATH,
    PAUSE,
    PREFIX,
    STORE,
    Notation,
    NotationError,
    StoreUrl,
    choice,
    count,
    is_loopback,
    optional,
    pattern,
    quoted,
    secret,
    size,
)

SIZE = size(16, 1 << 30)
SECRET = secret(8, "a secret")


@pytest.mark.parametrize(
    ("notation", "written", "expected"),
    [
        (DURATION, "500ms", 0.5),
        (DURATION, "30s", 30.0),
        (DURATION, "15m", 900.0),
        (DURATION, "12h", 43200.0),
        (DURATION, "7d", 604800.0),
        (DURATION, "1.5h", 5400.0),
        (DURATION, "45", 45.0),
        (DURATION, 45, 45.0),
        (DURATION, 0.25, 0.25),
        (PAUSE, "0s", 0.0),
        (PAUSE, "0", 0.0),
        (PAUSE, 0, 0.0),
        (PAUSE, "250ms", 0.25),
        (PAUSE, 3, 3.0),
        (SIZE, "16", 16),
        (SIZE, "16B", 16),
        (SIZE, "64KiB", 65536),
        (SIZE, "10MiB", 10485760),
        (SIZE, "1GiB", 1 << 30),
        (SIZE, 4096, 4096),
        (count(1, 9), 5, 5),
        (count(1, 9), "5", 5),
        (choice("a", "b"), "A", "a"),
        (FLAG, True, True),
        (FLAG, "False", False),
        (NETWORK, "10.0.0.0/8", ip_network("10.0.0.0/8")),
        (NETWORK, "10.1.2.3", ip_network("10.1.2.3/32")),
        (NETWORK, "fd00::/8", ip_network("fd00::/8")),
        (DOMAIN, "Example.COM", "example.com"),
        (PATH, "/", "/"),
        (PATH, "/admin/", "/admin"),
        (PATH, "/caf%C3%A9", "/café"),
        (PATH, "/café", "/café"),
        (PATH, "/my files", "/my files"),
        (PATH, "/a/../b", "/b"),
        (PREFIX, "/.postern", "/.postern"),
        (PREFIX, "/a/b", "/a/b"),
        (STORE, "memory://", "memory://"),
        (STORE, "redis://redis:6379/0", "redis://redis:6379/0"),
        (STORE, "rediss://u:p%40@[::1]:6380/15?socket_timeout=1", "rediss://u:p%40@[::1]:6380/15?socket_timeout=1"),
        (STORE, "unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        (STORE, "redis+sentinel://:p@a,b:26380,[::1]/mymaster/3", "redis+sentinel://:p@a,b:26380,[::1]/mymaster/3"),
        (STORE, "rediss+cluster://u:p@a:7000,b?ssl_ca_certs=/ca", "rediss+cluster://u:p@a:7000,b?ssl_ca_certs=/ca"),
        (SECRET, "12345678", SecretStr("12345678")),
        (SECRET, SecretStr("12345678"), SecretStr("12345678")),
        (optional(DOMAIN), "", None),
        (optional(DOMAIN), None, None),
        (optional(DOMAIN, "x"), "", "x"),
        (optional(DOMAIN), "A.b", "a.b"),
    ],
)
def test_what_is_written_is_read(notation: Notation, written: Any, expected: Any) -> None:
    assert notation.read(written) == expected


@pytest.mark.parametrize(
    ("notation", "written", "message"),
    [
        (DURATION, "", '"" is not a duration'),
        (DURATION, "1 h", '"1 h" is not a duration'),
        (DURATION, "1H", '"1H" is not a duration'),
        (DURATION, "-1s", '"-1s" is not a duration'),
        (DURATION, "1h30m", '"1h30m" is not a duration'),
        (DURATION, "1e3s", '"1e3s" is not a duration'),
        (DURATION, "\u0661s", '"\u0661s" is not a duration'),
        (DURATION, math.nan, "is out of range"),
        (DURATION, -1, "is out of range"),
        (DURATION, "0s", "is out of range"),
        (DURATION, "4000d", "is out of range"),
        (DURATION, False, "is true or false"),
        (DURATION, [], "is a list"),
        (SIZE, "64KB", '"64KB" is not a size'),
        (SIZE, "1.5MiB", '"1.5MiB" is not a size'),
        (SIZE, "", '"" is not a size'),
        (SIZE, 15, "is out of range"),
        (SIZE, "2GiB", "is out of range"),
        (SIZE, True, "is true or false"),
        (SIZE, 1.0, "is a number"),
        (count(1, 9), "x", '"x" is not a whole number'),
        (count(1, 9), "-5", '"-5" is not a whole number'),
        (count(1, 9), True, "is true or false"),
        (count(1, 9), 10, "10 is out of range"),
        (choice("a"), 1, "is a number"),
        (FLAG, "yes", "is a string"),
        (FLAG, 1, "is a number"),
        (NETWORK, "10.0.0.0/33", '"10.0.0.0/33" is not a network'),
        (NETWORK, "10.0.0.1/8", '"10.0.0.1/8" has bits beyond its prefix; the network is 10.0.0.0/8'),
        (NETWORK, "::1/8", '"::1/8" has bits beyond its prefix; the network is ::/8'),
        (DOMAIN, "a..b", '"a..b" is not a domain'),
        (DOMAIN, "-a.b", '"-a.b" is not a domain'),
        (PATH, "/a//b", '"/a//b" can be read as another path'),
        (PATH, "/a%2fb", '"/a%2fb" can be read as another path'),
        (PATH, "/a;b", '"/a;b" can be read as another path'),
        (PATH, "/a.", '"/a." can be read as another path'),
        (PATH, "/a%25b", '"/a%25b" can be read as another path'),
        (PATH, "/a#b", '"/a#b" can be read as another path'),
        (PATH, "/\uff41", '"/\uff41" can be read as another path'),
        (PATH, "/a\x00", '"/a\N{REPLACEMENT CHARACTER}" can be read as another path'),
        (PREFIX, "/", '"/" is not a prefix'),
        (PREFIX, "/..", '"/.." is not a prefix'),
        (PREFIX, "/a/", '"/a/" is not a prefix'),
        (PREFIX, "/a%2f", '"/a%2f" is not a prefix'),
        (STORE, "redis://", "is not a complete store URL"),
        (STORE, "redis://h:x/0", "is not a complete store URL"),
        (STORE, "memory://x", "is not a complete store URL"),
        (STORE, "unix://", "is not a complete store URL"),
        (STORE, "redis+sentinel://a,b", "is not a complete store URL"),
        (STORE, "redis+sentinel://a,,b/m", "is not a complete store URL"),
        (STORE, "redis+cluster://a/3", "is not a complete store URL"),
        (STORE, "redis+magic://a", "is not the URL of a known store"),
        (STORE, "http://h", "is not the URL of a known store"),
        (SECRET, "hunter2", "is shorter than 8 bytes"),
        (SECRET, "", "is empty"),
        (SECRET, 12345678, "is a number"),
        (pattern("a+", "an a", "a"), "b", '"b" is not an a'),
    ],
)
def test_what_is_written_wrong_is_refused(notation: Notation, written: Any, message: str) -> None:
    with pytest.raises(NotationError) as caught:
        notation.read(written)
    assert str(caught.value) == message


@given(st.floats(min_value=0.001, max_value=86400 * 3650), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_durations_are_numbers_of_their_unit(seconds: float, unit: str) -> None:
    scale = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    number = f"{seconds / scale:.6f}"
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{6}", number) and 0.001 <= float(number) * scale <= 86400 * 3650:
        assert DURATION.read(number + unit) == pytest.approx(float(number) * scale)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(), max_size=2)))
def test_nothing_but_a_notation_error_comes_of_anything(written: Any) -> None:
    for notation in (DURATION, SIZE, NETWORK, DOMAIN, PATH, PREFIX, STORE, SECRET, count(1, 9), choice("a")):
        try:
            notation.read(written)
        except NotationError as error:
            assert str(error)  # noqa: PT017 -- either outcome is right


def test_quoting_keeps_messages_on_one_line_and_short() -> None:
    assert quoted("a\nb\x1b[0m") == '"a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[0m"'
    assert len(quoted("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("redis://:hunter2@redis:6379/0", "redis://**@redis:6379/0"),
        ("rediss://user:hun@ter2@redis/0", "rediss://**@redis/0"),
        ("redis://redis/0?password=hunter2", "redis://redis/0?**"),
        ("unix://u:hunter2@/run/r.sock", "unix://**@/run/r.sock"),
    ],
)
def test_the_repr_of_a_store_hides_its_password(url: str, shown: str) -> None:
    store = StoreUrl(url)
    assert repr(store) == repr(shown)
    assert store == url


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("app.localhost", True),
        ("127.8.9.10", True),
        ("[::1]", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("example.com", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
