"""Bars as SVG, with nothing but text: readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

ROW: Final = 34  # pixels
LEFT: Final = 230
WIDTH: Final = 720
TOP: Final = 56
# One set of colours between light and dark, with contrast on both: the page may be dark where the system is light.
_STYLE: Final = """
    text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #6e7681 }
    .title { font-weight: 600; font-size: 15px }
    .quiet { font-size: 13px }
    rect { fill: #8c959f }
    .ours { fill: #2f81f7 }
    text.ours { font-weight: 600 }
"""


def bars(ratios: Mapping[str, float], ours: str = "Postern") -> str:
    """A chart of `ratios` (title -> multiple of nginx's requests per CPU-second), the largest first, `ours` set off."""
    rows = sorted(ratios.items(), key=lambda item: -item[1])
    scale = (WIDTH - LEFT - 80) / max(ratios.values())
    height = TOP + ROW * len(rows) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" aria-labelledby="t">',
        f"  <style>{_STYLE}  </style>",
        '  <title id="t">Requests per CPU-second, small GETs: '
        + escape(", ".join(f"{name} {ratio:.3g}" for name, ratio in rows))
        + "</title>",
        '  <text class="title" x="0" y="18">Requests per CPU-second, relative to nginx that only forwards</text>',
        '  <text class="quiet" x="0" y="38">small GETs, one core for the proxy; longer is better</text>',
    ]
    for number, (name, ratio) in enumerate(rows):
        y = TOP + ROW * number
        kind = ' class="ours"' if name == ours else ""
        width = max(1.0, ratio * scale)
        lines += [
            f'  <text{kind} x="{LEFT - 12}" y="{y + 19}" text-anchor="end">{escape(name)}</text>',
            f'  <rect{kind} x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="22" rx="3"/>',
            f'  <text{kind} x="{LEFT + width + 8:.1f}" y="{y + 19}">{ratio:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
