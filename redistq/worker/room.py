"""Room: where the fetcher waits when enough is held, and how others tell it that there is room.

Runners and the settler make room all the time; only when the fetcher waits, and little is left to
run, one of them rings. Without that every task that starts would wake it.
"""

from __future__ import annotations

import threading


class Room:
    """A bell of the fetcher's; anyone rings, the fetcher alone waits."""

    __slots__ = ("_bell", "low", "waits")

    def __init__(self) -> None:
        self._bell = threading.Event()
        self.waits = False
        """Whether the fetcher waits for room."""
        self.low = 0
        """While it waits: a runner rings when no more than so many tasks are left."""

    def ring(self) -> None:
        """Wake the fetcher, or let its next wait be over at once."""
        self._bell.set()

    def forget(self) -> None:
        """Take what was rung so far for heard."""
        self._bell.clear()

    def wait(self, seconds: float) -> None:
        """Wait until somebody rings, or has rung; the next wait is for another ring."""
        self._bell.wait(seconds)
        self._bell.clear()
