"""Write what the documentation takes from the code: the table of settings in docs/settings.md."""

from __future__ import annotations

from pathlib import Path

from proxy.settings import reference

SETTINGS = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
BEGIN = "<!-- reference: written by `make docs` -->\n"
END = "<!-- /reference -->\n"


def with_reference(text: str) -> str:
    """Return `text` with the table of all settings between the two marks. ValueError when a mark is missing."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start] + "\n" + reference() + "\n" + text[end:]


if __name__ == "__main__":
    SETTINGS.write_text(with_reference(SETTINGS.read_text("utf-8")), "utf-8")
