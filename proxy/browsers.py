"""What a User-Agent field says of a browser, in the words that people know it by. Never trusted, only shown."""

from __future__ import annotations

from typing import Final

_CHARS: Final = 40
# The first that fits counts: nearly all claim to be Mozilla, and many to be Chrome and Safari as well.
_BROWSERS: Final = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Vivaldi/", "Vivaldi"),
    ("FxiOS/", "Firefox"),
    ("Firefox/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("HeadlessChrome/", "Chrome"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("Windows", "Windows"),
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("CrOS", "ChromeOS"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


def browser_name(user_agent: str) -> str:
    """`Firefox on Linux` and the like; of anything else its first word; "" for nothing.

    Whatever it is, no control character and no line break comes out: it may be meant for a terminal or a log.
    """
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    if browser and system:
        return f"{browser} on {system}"
    words = user_agent.split()
    first = browser or system or (words[0] if words else "")
    return "".join(char if char.isprintable() else "�" for char in first)[:_CHARS]
