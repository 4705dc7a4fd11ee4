"""Readings of a path: the matrix of tricks, and the promise that plain paths have no other reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.paths import MOST_CHARACTERS, MOST_READINGS, PLAIN, canonical, interpretations, readings

# raw path, canonical reading, what a careless server could take it for besides
MATRIX: list[tuple[bytes, str, set[str]]] = [
    (b"/public/../admin", "/admin", {"/public/../admin"}),
    (b"/public/./admin", "/public/admin", {"/public/./admin"}),
    (b"/public/%2e%2e/admin", "/admin", {"/public/../admin", "/public/%2e%2e/admin"}),
    (b"/public/%2E./admin", "/admin", {"/public/../admin"}),
    (b"/public/..%2fadmin", "/public/..%2Fadmin", {"/public/../admin", "/admin"}),
    (b"/public%2f..%2fadmin", "/public%2F..%2Fadmin", {"/admin"}),
    (b"/public/%252e%252e/admin", "/public/%252e%252e/admin", {"/public/%2e%2e/admin", "/admin"}),
    (b"/public/%25252e%25252e/admin", "/public/%25252e%25252e/admin", {"/admin"}),
    (b"/public/..%5cadmin", "/public/..\\admin", {"/admin"}),
    (b"/public\\..\\admin", "/public\\..\\admin", {"/public/../admin", "/admin"}),
    (b"/public/..;/admin", "/public/..;/admin", {"/public/../admin", "/admin"}),
    (b"/public/..;a=b/admin", "/public/..;a=b/admin", {"/admin"}),
    (b"/;x/admin", "/;x/admin", {"//admin", "/admin"}),
    (b"/admin;x", "/admin;x", {"/admin"}),
    (b"/admin;/x", "/admin;/x", {"/admin/x", "/admin"}),
    (b"/admin%3b/x", "/admin;/x", {"/admin/x", "/admin"}),
    (b"/admin%00", "/admin%00", {"/admin"}),
    (b"/admin%00/public", "/admin%00/public", {"/admin", "/admin/public"}),
    (b"/ad%00min", "/ad%00min", {"/admin", "/ad"}),
    (b"/ad%09min", "/ad%09min", {"/admin"}),
    (b"/ad%0amin", "/ad%0Amin", {"/admin"}),
    (b"//admin", "//admin", {"/admin", "/"}),
    (b"//x/admin", "//x/admin", {"/x/admin", "/admin"}),
    (b"/a//admin", "/a//admin", {"/a/admin"}),
    (b"/a//../admin", "/a/admin", {"/admin"}),
    (b"/%61dmin", "/admin", {"/%61dmin"}),
    (b"/%2561dmin", "/%2561dmin", {"/%61dmin", "/admin"}),
    (b"/public/%c0%ae%c0%ae/admin", "/public/%C0%AE%C0%AE/admin", {"/admin"}),
    (b"/public/..%c0%afadmin", "/public/..%C0%AFadmin", {"/admin"}),
    (b"/public/..%e0%80%afadmin", "/public/..%E0%80%AFadmin", {"/admin"}),
    (b"/public/..%f0%80%80%afadmin", "/public/..%F0%80%80%AFadmin", {"/admin"}),
    (b"/public/..%f8%80%80%80%afadmin", "/public/..%F8%80%80%80%AFadmin", {"/admin"}),
    (b"/public/..%fc%80%80%80%80%afadmin", "/public/..%FC%80%80%80%80%AFadmin", {"/admin"}),
    (b"/public/..%c1%9cadmin", "/public/..%C1%9Cadmin", {"/admin"}),
    (b"/public/..\xc0\xafadmin", "/public/..%C0%AFadmin", {"/admin"}),
    (b"/public/%u002e%u002e/admin", "/public/%u002e%u002e/admin", {"/admin"}),
    (b"/public/..%u2215admin", "/public/..%u2215admin", {"/public/..\u2215admin"}),
    (b"/public/..%uff0fadmin", "/public/..%uff0fadmin", {"/admin"}),
    (b"/public/..%ef%bc%8fadmin", "/public/..\uff0fadmin", {"/admin"}),
    (b"/public/%ef%bc%8e%ef%bc%8e/admin", "/public/\uff0e\uff0e/admin", {"/admin"}),
    (b"/admin.", "/admin.", {"/admin"}),
    (b"/admin%20", "/admin ", {"/admin"}),
    (b"/public/..%20/admin", "/public/.. /admin", {"/admin"}),
    (b"/admin#/public", "/admin", {"/admin#/public"}),
    (b"/public#/../admin", "/public", {"/admin"}),
    (b"/admin%23/public", "/admin#/public", {"/admin"}),
    (b"/admin%3f/public", "/admin?/public", {"/admin"}),
    (b"/public?/../admin", "/public", set()),
    (b"/public?x=%2e%2e/admin", "/public", set()),
    (b"/../../admin", "/admin", {"/../../admin"}),
    (b"/..", "/", {"/.."}),
    (b"/a/b/..", "/a/", {"/a/b/.."}),
    (b"/a/.", "/a/", {"/a/."}),
    (b"/%", "/%", set()),
    (b"/%zz", "/%zz", set()),
    (b"/%2", "/%2", set()),
    (b"/%ud800", "/%ud800", set()),
    (b"/caf%C3%A9", "/café", {"/caf%C3%A9"}),
    (b"/caf\xc3\xa9", "/café", set()),
    (b"/caf\xe9", "/caf%E9", {"/caf\udce9"}),
    (b"/a%2Fb", "/a%2Fb", {"/a/b"}),
    (b"/a%25b", "/a%25b", {"/a%b"}),
    (b"", "/", set()),
    (b"*", "/*", set()),
    (b"admin", "/admin", set()),
    (b"?", "/", set()),
]


@pytest.mark.parametrize(("raw", "expected", "others"), MATRIX)
def test_tricks_are_seen_through(raw: bytes, expected: str, others: set[str]) -> None:
    found = interpretations(raw)
    assert canonical(raw) == found[0] == expected
    assert others <= set(found[1:])
    assert len(set(found)) == len(found)


PLAIN_PATHS = (
    b"/", b"/a", b"/a/", b"/a/b.c", b"/.postern", b"/.well-known/x", b"/a/..b", b"/~u/-_!$&'()*+,=:@", b"/v1.2/x", b"/a=b:c",
)  # fmt: skip
ODD_PATHS = (
    b"", b"//", b"/a//", b"/.", b"/..", b"/a/..", b"/a/.", b"/a.", b"/a./b", b"/...", b"/%61", b"/a;b", b"/a\\b", b"/a b",
    b"/a\x00", b"/a\n", b"/\xc3\xa9", b"/a?", b"/a#", b"a", b"*", b"/a|b", b"/<", b"/[x]", b'/"',
)  # fmt: skip


@pytest.mark.parametrize("path", PLAIN_PATHS)
def test_plain_paths_have_one_reading(path: bytes) -> None:
    assert PLAIN.fullmatch(path)
    found = readings(path)
    assert (found.canonical, found.others, found.complete) == (path.decode(), (), True)


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_paths_are_not_taken_for_plain_ones(path: bytes) -> None:
    assert not PLAIN.fullmatch(path)


PIECES = st.sampled_from([
    b"/", b".", b"..", b"a", b"admin", b"%2e", b"%2F", b"%5c", b"\\", b";x", b"%3b", b"%00", b"%252e", b"%25",
    b"%c0%af", b"#", b"%23", b"%3f", b" ", b"%20", b"%09", b"\xef\xbc\x8f", b"%ef%bc%8e", b"//", b"%u002f", b"\xff",
    b"%", b"?",
])  # fmt: skip
RAW = st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=40)


@given(RAW)
def test_reading_never_fails_and_starts_at_the_root(raw: bytes) -> None:
    found = readings(raw)
    for path in (found.canonical, *found.others):
        assert path.startswith("/")
    assert found.canonical.isprintable()
    assert not any(segment in (".", "..") for segment in found.canonical.split("/"))


@given(RAW)
def test_the_plain_form_is_the_fast_way_to_the_same_answer(raw: bytes) -> None:
    if PLAIN.fullmatch(raw):
        assert interpretations(raw) == (raw.decode("ascii"),)


@given(RAW)
def test_reading_the_canonical_path_again_changes_nothing(raw: bytes) -> None:
    """Written as a path again, the canonical reading is its own: `%2F` and `%25` stay what they were."""
    once = canonical(raw)
    assert canonical(once.replace("?", "%3F").replace("#", "%23").encode()) == once


@given(st.lists(st.sampled_from([b"a", b"%2F", b"%252F", b"%25", b"2F", b"/"]), max_size=8).map(b"".join))
def test_two_different_paths_stay_different(raw: bytes) -> None:
    other = raw.replace(b"%2F", b"/")
    assert (canonical(b"/" + raw) == canonical(b"/" + other)) == (raw == other)


LONG = (
    b"/", b"..", b"%2e", b"%2f", b"\\", b";", b"%00", b"%252e", b"%c0%af", b" ", b"%20", b"%ef%bc%8f", b"//a;%5c..%00/%252f",
)  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_the_longest_request_cannot_keep_the_gateway_busy(piece: bytes) -> None:
    """Bounds, not times: what is read is limited in number and in characters, and says so when it was not all."""
    raw = (b"/" + piece * 16384)[:16384]
    found = readings(raw)
    steps = 15
    assert len(found.others) <= MOST_READINGS + steps
    assert sum(map(len, found.others)) <= steps * (MOST_CHARACTERS + len(raw))
