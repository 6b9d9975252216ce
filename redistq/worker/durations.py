"""Pace: how long the tasks of each name take in this process, and what to expect of the next ones.

The execution measures; the fetcher asks, so that it holds no more than a moment's work. Names are
kept apart because a queue mixes them: thousands of short tasks say nothing about another name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

UNSEEN_NS = 100_000_000
"""A task of a name that never ran here counts as this long: a guess that is too long costs a little
traffic, one that is too short keeps others' work from them."""
NAMES = 1_000
"""Labelled names with a mean of their own; those beyond share that of their handler."""
SAMPLE = 16
"""So many tasks say enough."""


class Durations:
    """How long the tasks of one name take; ``threaded`` says whether runners run them.

    Runners add to ``busy_ns`` and ``done``, only the fetcher asks for the mean. Without a lock an
    addition may be lost to another runner's: the mean is an estimate anyway.
    """

    __slots__ = ("_mean", "_seen", "_seen_at", "busy_ns", "done", "threaded")

    def __init__(self, threaded: bool = True) -> None:
        self.threaded = threaded
        self.busy_ns = self.done = 0
        self._seen, self._seen_at = (0, 0), 0.0
        self._mean: float | None = None

    def mean_ns(self) -> float:
        """How long one takes these days."""
        busy, done = self.busy_ns, self.done
        new, mean = done - self._seen[1], self._mean
        # Sixteen say enough at any time, and a few when they take long: whoever has just read
        # hundreds of tasks for a moment's work must notice soon that they are none.
        if new >= SAMPLE or (new > 0 and (mean is None or time.monotonic() - self._seen_at > 0.05)):
            recent = max(0.0, (busy - self._seen[0]) / new)
            if mean is not None:
                share = 0.8 if recent > mean else 0.5
                recent = share * recent + (1 - share) * mean
            self._mean = mean = recent
            self._seen, self._seen_at = (busy, done), time.monotonic()
        return UNSEEN_NS if mean is None else mean


UNKNOWN = Durations(threaded=False)
"""Of tasks that no handler here runs: they are let go of at once."""


def total_ns(counts: Mapping[Durations, int]) -> float:
    """How long runners take for so many of each."""
    return sum(times.mean_ns() * n for times, n in counts.items() if times.threaded)


def fitting(tasks: Iterable[Durations], budget_ns: float) -> int:
    """How many of these, from the first, runners finish in this time."""
    count = 0
    for times in tasks:
        if times.threaded:
            budget_ns -= times.mean_ns()
            if budget_ns < 0:
                break
        count += 1
    return count


class Forecast:
    """What to expect of the tasks to come: the mixture of names that came last."""

    def __init__(self) -> None:
        self._shares: dict[Durations, float] = {}

    def read(self, counts: Mapping[Durations, int]) -> None:
        """So many of each came now."""
        if counts.keys() == self._shares.keys() and len(counts) == 1:
            return  # as ever
        total = sum(n for times, n in counts.items() if times is not UNKNOWN)
        if not total:
            return
        new = min(total / SAMPLE, 1.0) if self._shares else 1.0
        shares = {}
        if new < 1.0:
            shares = {t: share * (1 - new) for t, share in self._shares.items() if share > 0.01}
        for times, n in counts.items():
            if times is not UNKNOWN:
                shares[times] = shares.get(times, 0.0) + new * n / total
        self._shares = shares

    def mean_ns(self) -> float | None:
        """How long one takes, about; None before the first."""
        if not self._shares:
            return None
        return sum(times.mean_ns() * share for times, share in self._shares.items())
