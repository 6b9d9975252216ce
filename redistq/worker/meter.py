"""What a worker process uses, as its supervisor tells it with a heartbeat: memory and CPU time.

Read by the supervisor, which thereby interrupts no process. Small changes are not told: an idle
worker's heartbeats stay the same, and cost the server no write.
"""

from __future__ import annotations

import time

from ..system.memory import Used, used

LEAST_S = 1.0
"""A share of CPU time is that of at least so long."""
SAME_BYTES = 1 << 20
SAME_PERCENT = 2
SAME_PART = 0.1
"""What is within so much of what was told last, is the same."""


class Meter:
    """Measures one process. Not for several threads at a time."""

    def __init__(self) -> None:
        self._said = ""
        self._bytes = 0
        self._percent: int | None = None
        self._before: Used | None = None
        self._before_at = 0.0

    def said(self, pid: int) -> str:
        """Return what is to be told of the process: bytes of memory and, from the second time on,
        percent of one core; '' where this cannot be known."""
        now = time.monotonic()
        found = used(pid)
        if found is None:
            return ""
        return self.take(found, now)

    def take(self, found: Used, now: float) -> str:
        """Return the same of what a process has at a time (monotonic clock)."""
        if not _is_near(found.resident, self._bytes, SAME_BYTES):
            self._bytes = found.resident
        before = self._before
        seconds = now - self._before_at
        if before is not None and seconds >= LEAST_S:
            percent = round(max(0.0, found.cpu_s - before.cpu_s) / seconds * 100)
            if self._percent is None or not _is_near(percent, self._percent, SAME_PERCENT):
                self._percent = percent
        if before is None or seconds >= LEAST_S:
            self._before = found
            self._before_at = now
        return f"{self._bytes} {'' if self._percent is None else self._percent}"


def _is_near(value: int, told: int, least: int) -> bool:
    return abs(value - told) <= max(least, told * SAME_PART)
