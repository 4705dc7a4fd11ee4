"""Reads the corpus of odd requests; its notation is described in requests/README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REQUESTS = Path(__file__).parent / "requests"
FILES = sorted(REQUESTS.glob("*.http"))
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|\{(.+)\*([0-9]+)\}|\{(cookie)\}|([rnt0\\]))")
_PLAIN = {"r": "\r", "n": "\n", "t": "\t", "0": "\0", "\\": "\\"}


@dataclass(frozen=True)
class Case:
    """Bytes for one connection, and what becomes of each request in them: "pass", "wait" or a status."""

    name: str
    outcomes: tuple[str, ...]
    text: str

    def wire(self, cookie: bytes) -> bytes:
        """The bytes as they are sent; `cookie` is a session's, as in a Cookie field."""

        def byte(match: re.Match[str]) -> str:
            hexadecimal, repeated, times, session, plain = match.groups()
            if hexadecimal:
                return chr(int(hexadecimal, 16))
            if repeated:
                return str(repeated).replace("|", "\r\n") * int(times)
            return cookie.decode("ascii") if session else _PLAIN[plain]

        return _ESCAPE.sub(byte, self.text).encode("latin-1")


def cases(file: Path) -> list[Case]:
    """The cases of one file, in order."""
    blocks = re.split(r"^=== ", file.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return [_case(block.splitlines()) for block in blocks]


def _case(lines: list[str]) -> Case:
    name, arrow, *rest = lines
    assert arrow.startswith("--> "), f"{name}: no arrow"
    if rest[-1:] == [""]:
        rest.pop()
    text = "".join(line[:-1] if re.search(r"(?<!\\)(?:\\\\)*\\$", line) else line + "\r\n" for line in rest)
    return Case(name, tuple(arrow.removeprefix("--> ").split()), text)
