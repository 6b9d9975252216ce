"""How long tasks of each name waited and ran, as histograms, out of a queue's history.

Used by the metrics of Prometheus. The history has both of every attempt that ended, so workers
write nothing for this, and no task pays for it: a scrape reads what has come since the last one.
Names are bounded: the first MOST_NAMES have their own figures, all others together those of OTHER.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..protocol.keys import COUNTED
from .rows import Event
from .tick import Tick

MOST_NAMES = 200
OTHER = "other"
"""The name of all tasks beyond MOST_NAMES names."""
FIRST = 500
"""Most events that come with the figures, in the same call."""
PAGE = 1000
MOST_PAGES = 20
"""Most further pages of a scrape: the history of a queue has about ten."""
BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    *(1800.0, 7200.0),
)
"""Upper ends of the buckets, in seconds."""

Look = Callable[[str | None, int], Tick]
"""Returns a tick with the events after a cursor, the newest so many."""
More = Callable[[str, str, int], list[Event]]
"""Returns events of the history between two places, newest first, at most so many."""


class Histogram:
    """Counts of values by BUCKETS_S."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bucket's upper end, as Prometheus writes it, and how many values are below."""
        below = 0
        for end, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            below += count
            yield end, below


class NameTimes:
    """The histograms of one queue, from its first tick on."""

    def __init__(self, look: Look, more: More) -> None:
        self._look = look
        self._more = more
        self._lock = threading.Lock()  # there may be two scrapes at a time
        self._cursor: str | None = None
        self._ends = 0
        self.waited: dict[str, Histogram] = {}
        """From when an attempt was ready to its start, by name."""
        self.ran: dict[str, Histogram] = {}
        """How long its handler took."""
        self.missed = 0
        """Ends that the history had no longer when it was read: more than it holds came between
        two scrapes."""

    def tick(self) -> Tick:
        """Return a tick, and count the attempts that have ended since the last one."""
        with self._lock:
            return self._tick()

    def _tick(self) -> Tick:
        cursor = self._cursor
        tick = self._look(cursor or None, 1 if cursor is None else FIRST)
        ends = sum(tick.snapshot.counters.get(state, 0) for state in COUNTED)
        if cursor is not None:
            events = list(tick.events)
            if tick.missed:
                events += self._rest(cursor, events[0].entry)
            for event in events:
                self._count(event)
            if len(events) >= tick.snapshot.history:  # all that it holds: perhaps not all there was
                self.missed += max(0, ends - self._ends - len(events))
        self._cursor, self._ends = tick.cursor, ends
        return tick

    def _rest(self, cursor: str, oldest: str) -> Iterator[Event]:
        start = f"({cursor}" if cursor else "-"
        for _ in range(MOST_PAGES):
            page = self._more(f"({oldest}", start, PAGE)
            yield from page
            if len(page) < PAGE:
                return
            oldest = page[-1].entry

    def _count(self, event: Event) -> None:
        if event.run_ms is None or event.wait_ms is None:
            return  # its worker died, or it never ran
        name = event.name
        if name not in self.ran and len(self.ran) >= MOST_NAMES:
            name = OTHER
        self.ran.setdefault(name, Histogram()).add(event.run_ms / 1000)
        self.waited.setdefault(name, Histogram()).add(event.wait_ms / 1000)


def families(core: Any, queue: str, times: NameTimes) -> Iterator[Any]:
    """Yield the families of prometheus_client (``core``) for a queue."""
    for name, what, histograms in (
        ("waiting", "How long attempts were ready before they started", times.waited),
        ("run", "How long the handlers of attempts took", times.ran),
    ):
        family = core.HistogramMetricFamily(
            f"redistq_task_{name}_seconds", what, labels=["queue", "name"]
        )
        for task, histogram in histograms.items():
            buckets = list(histogram.cumulative())
            family.add_metric([queue, task], buckets=buckets, sum_value=histogram.total)
        yield family
    missed = core.CounterMetricFamily(
        "redistq_unobserved_attempts",
        "Ends of attempts that the history dropped before a scrape",
        labels=["queue"],
    )
    missed.add_metric([queue], times.missed)
    yield missed
