"""Lines of a terminal: pieces of text with styles, fitted to a width, and what rich prints of them.

Used by the live screen. Text is shown as text: no markup is read in it.
"""

from __future__ import annotations

from typing import Any

from ..display.text import clean, one_line
from ..system.interpreter import require

BARS = " ▁▂▃▄▅▆▇█"

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""


def figures(pairs: list[tuple[str, int]]) -> Line:
    """Names and numbers in a row."""
    line: Line = []
    for name, count in pairs:
        line += [(f"{name} ", ""), (f"{count:,}", "bold"), ("   ", "")]
    return line


def spark(values: list[float], width: int) -> str:
    """The newest ``width`` values as bars, the highest full."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    steps = len(BARS) - 1
    bars = "".join(
        BARS[max(1 if v > 0 else 0, round(v / top * steps))] if top > 0 else BARS[0] for v in shown
    )
    return bars.rjust(width)


def fit(text: str, width: int) -> str:
    """Text on exactly ``width`` cells of a terminal: cut with an ellipsis, or padded."""
    cells = require("rich.cells", "cli", "the live screen")
    if cells.cell_len(text) > width:
        text = cells.set_cell_size(text, max(0, width - 1)) + "…" if width > 0 else ""
    return str(cells.set_cell_size(text, width))


def columns(width: int, *parts: tuple[str, int, str]) -> Line:
    """Pieces of text, each on so many cells (0: all that is left), with a style."""
    line: Line = []
    left = width
    for text, wanted, style in parts:
        size = min(left, wanted or left)
        if size <= 0:
            break
        lead = text[: len(text) - len(text.lstrip(" "))]
        gap = 1 if wanted else 0
        piece = fit(lead + clean(one_line(text), 2000), size - gap) + " " * gap
        line.append((piece, style))
        left -= size
    return line


def drawn(lines: list[Line], width: int) -> Any:
    """Lines as something rich prints: text only, no markup, none wider than the terminal."""
    rich_text = require("rich.text", "cli", "the live screen")
    found = []
    for line in lines:
        text = rich_text.Text(no_wrap=True, overflow="ellipsis")
        for piece, style in line:
            text.append(piece, style=style)
        text.rstrip()
        text.truncate(width, overflow="ellipsis")
        found.append(text)
    return rich_text.Text("\n", no_wrap=True, overflow="ellipsis").join(found)
