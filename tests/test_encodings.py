"""Header values outside ASCII, and back again."""

from __future__ import annotations

from email.header import decode_header, make_header
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.encodings import encoded_words, percent_encoded

VALUES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=200).map(str.strip)


@pytest.mark.parametrize(
    ("text", "percent", "words"),
    [
        ("ada", b"ada", b"ada"),
        ("Ada Lovelace <ada@example.com>", b"Ada Lovelace <ada@example.com>", b"Ada Lovelace <ada@example.com>"),
        ("L\u00f6velace", b"L%C3%B6velace", b"=?UTF-8?B?TMO2dmVsYWNl?="),
        ("100%", b"100%25", b"100%"),
        ("%C3%B6", b"%25C3%25B6", b"%C3%B6"),
        ("=?UTF-8?B?YWRtaW4=?=", b"=?UTF-8?B?YWRtaW4=?=", b"=?UTF-8?B?PT9VVEYtOD9CP1lXUnRhVzQ9Pz0=?="),
    ],
)
def test_ways(text: str, percent: bytes, words: bytes) -> None:
    assert percent_encoded(text.encode()) == percent
    assert encoded_words(text.encode()) == words


@given(VALUES)
def test_each_way_leads_back(text: str) -> None:
    percent, words = percent_encoded(text.encode()), encoded_words(text.encode())
    assert unquote(percent.decode("ascii")) == text
    assert percent.isascii()
    assert words.isascii()
    assert b"\r" not in percent + words
    assert b"\n" not in percent + words
    if not text.isascii():
        assert all(len(word) <= 75 for word in words.split(b" "))
        assert str(make_header(decode_header(words.decode("ascii")))) == text
