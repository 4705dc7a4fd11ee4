"""Header values outside ASCII, for apps that cannot read UTF-8 there. Each way can be undone, whatever the value was."""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import quote

# All that can be seen in ASCII, but for the percent sign: what looks encoded already must not be decoded to something else.
_AS_IT_IS: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_WORD_BYTES: Final = 45  # 60 characters in base64: an encoded word has at most 75 (RFC 2047 2)


def percent_encoded(value: bytes) -> bytes:
    """`value`, UTF-8, with every byte outside ASCII, and every percent sign, as `%XX` (RFC 3986 2.1)."""
    return quote(value, safe=_AS_IT_IS).encode("ascii")


def encoded_words(value: bytes) -> bytes:
    """`value`, UTF-8, as encoded words (RFC 2047 2) where it is not plain ASCII, or could be taken for one."""
    if value.isascii() and b"=?" not in value:
        return value
    words, word = [], b""
    for character in value.decode("utf-8"):
        piece = character.encode("utf-8")
        if len(word) + len(piece) > _WORD_BYTES:
            words.append(word)
            word = b""
        word += piece
    return b" ".join(b"=?UTF-8?B?%b?=" % base64.b64encode(one) for one in (*words, word))
