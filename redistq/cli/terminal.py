"""A terminal as the live screen uses it: keys are read from it, lines are drawn on it.

Keys come without echo and without waiting for Enter, and the terminal is put back; on POSIX only:
elsewhere, or when input is no terminal, there are no keys. Lines are pieces of text with styles,
fitted to a width; text is shown as text: no markup is read in it. rich is imported to draw.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ..display.text import clean, one_line
from ..system.interpreter import require

_NAMES = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[C": "right",
    b"\x1bOC": "right",
    b"\x1b[D": "left",
    b"\x1bOD": "left",
    b"\x1b[5~": "pageup",
    b"\x1b[6~": "pagedown",
    b"\x1b[H": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1b[4~": "end",
    b"\t": "tab",
    b"\x1b[Z": "backtab",
    b"\r": "enter",
    b"\n": "enter",
    b" ": "enter",
    b"k": "up",
    b"j": "down",
}
_ESCAPE_S = 0.05
"""Seconds after which a lone Esc is a key and not the beginning of one."""

BARS = " ▁▂▃▄▅▆▇█"

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""


class Keys:
    """A context in which ``read`` returns keys by name; without a terminal it only waits."""

    def __init__(self, stream: Any = None) -> None:
        stream = sys.stdin if stream is None else stream
        self._fd: int | None = None
        self._before: Any = None
        self._buffer = b""
        try:
            if stream.isatty():
                self._fd = stream.fileno()
        except (AttributeError, OSError, ValueError):
            pass  # closed, or no real file: there are no keys

    def __enter__(self) -> Keys:
        if self._fd is not None:
            try:
                import termios
                import tty
            except ImportError:
                self._fd = None
            else:
                self._before = termios.tcgetattr(self._fd)
                tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None and self._fd is not None:
            import termios

            before = self._before
            self._before = None
            try:
                termios.tcsetattr(self._fd, termios.TCSANOW, before)
            except (OSError, termios.error):
                pass  # the terminal is gone

    @property
    def there(self) -> bool:
        """Whether keys can be read."""
        return self._fd is not None

    def read(self, timeout: float) -> str | None:
        """Return the next key, or None after ``timeout`` seconds. EOFError: input has ended."""
        if self._fd is None:
            time.sleep(timeout)
            return None
        if not self._buffer and not self._more(timeout):
            return None
        if self._buffer == b"\x1b" or (self._buffer in (b"\x1b[", b"\x1bO") or self._unfinished()):
            self._more(_ESCAPE_S)
        return self._take()

    def _unfinished(self) -> bool:
        return any(
            name.startswith(self._buffer) and name != self._buffer
            for name in _NAMES
            if len(name) > 1
        )

    def _more(self, timeout: float) -> bool:
        assert self._fd is not None
        ready, _, _ = select.select([self._fd], [], [], timeout)
        if not ready:
            return False
        data = os.read(self._fd, 64)
        if not data:
            raise EOFError
        self._buffer += data
        return True

    def _take(self) -> str | None:
        for length in (4, 3, 1):
            name = _NAMES.get(self._buffer[:length]) if len(self._buffer) >= length else None
            if name:
                self._buffer = self._buffer[length:]
                return name
        if self._buffer.startswith((b"\x1b[", b"\x1bO")):
            # An unknown sequence: up to its final byte, all of it is one key.
            end = next((i for i, c in enumerate(self._buffer[2:], 2) if 64 <= c < 127), None)
            self._buffer = self._buffer[(end or len(self._buffer)) + 1 :]
            return None
        first = self._buffer[:1]
        self._buffer = self._buffer[1:]
        return "escape" if first == b"\x1b" else first.decode("latin-1")


# -- lines ---------------------------------------------------------------------------------------


def figures(pairs: list[tuple[str, int]]) -> Line:
    """Return names and numbers in a row."""
    line: Line = []
    for name, count in pairs:
        line += [(f"{name} ", ""), (f"{count:,}", "bold"), ("   ", "")]
    return line


def spark(values: list[float], width: int) -> str:
    """Return the newest ``width`` values as bars, the highest full."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    steps = len(BARS) - 1
    bars = "".join(
        BARS[max(1 if v > 0 else 0, round(v / top * steps))] if top > 0 else BARS[0] for v in shown
    )
    return bars.rjust(width)


def gauge_parts(parts: Sequence[tuple[float, str]], width: int) -> Line:
    """Return a bar of so many cells with parts of it, from 0 to 1, in their styles; a part that is
    there at all has a cell, as long as there are any."""
    line: Line = []
    left = width
    for share, style in parts:
        cells = min(left, max(1, int(share * width + 1e-9))) if share > 0 else 0
        left -= cells
        line += [("█" * cells, style)] if cells else []
    if left and sum(share for share, _ in parts) > 1 - 1e-9 and line:
        line[0] = (line[0][0] + "█" * left, line[0][1])  # all have ended: no cell is empty
        left = 0
    return [*line, ("░" * left, "dim")] if left else line


def fit(text: str, width: int) -> str:
    """Return text on exactly ``width`` cells of a terminal: cut with an ellipsis, or padded."""
    cells = require("rich.cells", "cli", "the live screen")
    if cells.cell_len(text) > width:
        text = cells.set_cell_size(text, max(0, width - 1)) + "…" if width > 0 else ""
    return str(cells.set_cell_size(text, width))


def columns(width: int, *parts: tuple[str, int, str]) -> Line:
    """Return pieces of text, each on so many cells (0: all that is left), with a style."""
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
    """Return lines as rich prints them: text only, no markup, none wider than the terminal."""
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
