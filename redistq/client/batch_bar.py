"""How far a batch is, as people see it: a bar that moves while it is waited for, and a still one.

Used by batches and their waits. In a notebook the bar is HTML in three colours, which stays in the
stored notebook as it ended; in a terminal a line that tqdm draws; in a pipe nothing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from ..display.batches import NEXT, ended_of, face_of, far_said, line_of, more_said
from ..display.html import MUTED, Html, escape, join, mono, tag
from ..display.notebook import Outlet, in_kernel
from ..display.text import FAILED, SUCCEEDED, clock, plural
from ..protocol.keys import ENDED

DRAWN_EVERY_S = 0.1
RATE_OVER_S = 10.0
LEAST_S = 0.5
"""A rate over less says little."""
_TERMINAL = {FAILED.color: "red", SUCCEEDED.color: "green"}


class BatchBar:
    """Shows how far a batch is; ``wanted`` None means: where the output is seen by a user."""

    def __init__(self, label: str, wanted: bool | None) -> None:
        self._bar: _NotebookBar | _TerminalBar | None = None
        self._label = label
        if wanted is None:
            wanted = in_kernel() or sys.stderr.isatty()
        self._wanted = wanted

    def show(self, counts: Mapping[str, int]) -> None:
        """Draw the counts of a batch; nothing when it was at its end already when first seen."""
        if self._wanted:
            self._wanted = False
            if counts.get("waiting"):
                kind = _NotebookBar if in_kernel() else _TerminalBar
                self._bar = kind(self._label, counts)
        if self._bar is not None:
            self._bar.draw(counts)

    def close(self) -> None:
        """Leave the bar as it is, in the colour of how the batch ended."""
        if self._bar is not None:
            self._bar.close()


class _NotebookBar:
    """A line of HTML below the cell, put in place of itself a few times a second."""

    def __init__(self, label: str, counts: Mapping[str, int]) -> None:
        self._label = label
        self._began = time.monotonic()
        self._trail: deque[tuple[float, int]] = deque()
        self._counts: Mapping[str, int] = counts
        self._drawn_at = self._began
        self._outlet = Outlet()
        self._outlet.show(self._bundle())

    def draw(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        now = time.monotonic()
        self._trail.append((now, ended_of(counts)))
        while now - self._trail[0][0] > RATE_OVER_S and len(self._trail) > 2:
            self._trail.popleft()
        if now - self._drawn_at >= DRAWN_EVERY_S:
            self._drawn_at = now
            self._outlet.replace(self._bundle())

    def close(self) -> None:
        self._outlet.replace(self._bundle(closed=True))
        self._outlet.close()

    def _bundle(self, *, closed: bool = False) -> dict[str, str]:
        now = time.monotonic()
        since, before = self._trail[0] if self._trail else (now, 0)
        rate = (ended_of(self._counts) - before) / (now - since) if now - since > LEAST_S else 0.0
        more = more_said(self._counts, rate, (now - self._began) * 1000)
        if closed and self._counts.get("waiting"):
            more = f"not waited for since {clock(time.time() * 1000)} UTC; the batch goes on"
        lines: list[str] = [line_of(self._label, self._counts, more)]
        if closed:
            lines += next_lines(self._counts)
        text = f"{self._label}: {far_said(self._counts)}, {face_of(self._counts)[0]}, {more}"
        return {"text/plain": text, "text/html": str(join(lines))}


class _TerminalBar:
    """A line of the terminal, drawn by tqdm; without tqdm one line that names it."""

    def __init__(self, label: str, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._bar: Any = None
        total = counts["total"]
        try:
            from tqdm import tqdm
        except ImportError:
            print(
                f"{label}: {total:,} tasks (for a progress bar: pip install redistq[notebook])",
                file=sys.stderr,
            )
            return
        self._bar = tqdm(
            total=total,
            # Done before we looked: the rate and the time left are those of what runs now.
            initial=ended_of(counts),
            desc=label,
            unit="task",
            smoothing=0.1,
            dynamic_ncols=True,
        )

    def draw(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        if self._bar is None:
            return
        rest = {name: counts[name] for name in (*ENDED[1:], "retried") if counts.get(name)}
        self._bar.set_postfix(rest, refresh=False)
        self._bar.total = counts["total"]  # a batch may grow
        self._bar.n = ended_of(counts)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is None:
            return
        if not self._counts.get("waiting") and sys.stderr.isatty():
            self._bar.colour = _TERMINAL.get(face_of(self._counts)[1], "yellow")
        self._bar.close()


def next_lines(counts: Mapping[str, int]) -> list[str]:
    """Return what can be done about a batch's failures, as HTML; nothing where there are none."""
    if not counts.get("failed"):
        return []
    said = f"{plural(counts['failed'], 'task')} failed: "
    return [tag("div", tag("span", said, style=MUTED), mono(NEXT), style="font-size:13px")]


def batch_picture(name: str, counts: Mapping[str, int], now_ms: float) -> Html:
    """Return a still picture of a batch, as it was at a moment of the server's clock (ms)."""
    told = [f"{counts[state]:,} {state}" for state in (*ENDED, "retried") if counts.get(state)]
    if counts.get("waiting"):
        told.insert(0, f"{counts['waiting']:,} waiting or running")
    told.append(f"at {clock(now_ms)} UTC")
    lines = [line_of(name, counts, " · ".join(told)), *next_lines(counts)]
    if counts.get("waiting"):
        lines.append(_waits())
    return join(lines)


def _waits() -> Html:
    said = ".show() waits with a bar that moves, .cancel() cancels what has not started"
    return tag("div", escape("next: "), mono(said), style=f"font-size:13px;{MUTED}")
