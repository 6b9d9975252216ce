"""The progress bar of a batch: a widget in notebooks, a text line in terminals, nothing in pipes.

Used by batches while somebody waits for them. tqdm draws; this module says what.
"""

from __future__ import annotations

import sys
from typing import Any

from ..display.notebook import in_kernel


class Progress:
    """Shows how far a batch is; ``wanted`` None means: when somebody looks at the output."""

    def __init__(self, label: str, total: int, wanted: bool | None) -> None:
        self._bar: Any = None
        self._label, self._total = label, total
        if wanted is None:
            wanted = in_kernel() or sys.stderr.isatty()
        self._wanted = wanted

    def _open(self, done: int) -> None:
        try:
            if in_kernel():
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm
        except ImportError:
            print(
                f"{self._label}: {self._total:,} tasks (for a progress bar: pip install "
                "redistq[notebook])",
                file=sys.stderr,
            )
            return
        self._bar = tqdm(
            total=self._total,
            # Done before we looked: the rate and the time left are those of what runs now.
            initial=done,
            desc=self._label,
            unit="task",
            smoothing=0.1,
            dynamic_ncols=True,
        )

    def show(self, counts: dict[str, int]) -> None:
        """Draw the counts of a batch; nothing when it was at its end already when first seen."""
        done = sum(counts.get(state, 0) for state in ("succeeded", "failed", "cancelled"))
        if self._wanted:
            self._wanted = False
            if counts.get("waiting"):
                self._open(done)
        bar = self._bar
        if bar is None:
            return
        rest = {
            name: counts[name] for name in ("failed", "cancelled", "retried") if counts.get(name)
        }
        bar.set_postfix(rest, refresh=False)
        bar.n = done
        bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
