"""Prefetch: how much work a worker process takes ahead of its runners, and what it gives back.

*Problem.* A worker that reads one task at a time spends a round trip on each; one that reads
hundreds ahead keeps them from workers that are idle, should they turn out to take long. Nobody says
beforehand how long a task takes, a queue mixes short names with long ones, and an answer to a read
is a fact: what it brought is ours until we give it back.

*Trick.* Hold a moment's work, measured in time: 50 ms (``PREFETCH_NS``), by the mean that tasks of
each name take in this process (``Durations``), and by the mixture of names that came last. Since
that is a guess, it is put right afterwards, three times:

- *When a page has come* (``keep``): the names in it are known now. Is it much more than was meant,
  and did it empty the queue, then others may be idle: all but a moment's work goes back.
- *While it is held* (``surplus``): the means move when the tasks turn out long. Twenty times a
  second the work in hand is weighed anew, and what is beyond twice a moment's work is offered.
- *When nothing starts* (``is_stuck``): all runners are busy with long tasks. After a quarter of a
  second what waits behind them is offered; refused, then less and less often.

Offering is cheap and safe: the server takes a task back only when nothing is left to read
(``release``), in the same step, so with a backlog nothing moves at all. A refusal means that others
have enough to do; the more we hold, the less it matters when we ask again.

*Rejected.* A fixed number of tasks: right for one duration only. One read a task: a third of the
throughput. Stealing by idle workers: they would have to know who holds what, and take from the
living. Asking for less instead of giving back: a long task is noticed only once it runs, and by
then its page is here.

``Prefetch`` starts no thread, talks to no server and reads no clock: the fetcher says what there is
and what time it is, and does what it hears. All of that runs once a page, not once a task.

How long tasks take is measured by the executor, once a task. Names are kept apart because a queue
mixes them: thousands of short tasks say nothing about another name. ``Forecast`` is what to expect
of the tasks to come.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

PREFETCH_NS = 50_000_000
"""Most unstarted work held, in time: what runs in 50 ms."""
PREFETCH_TASKS = 500
"""Most unstarted work held, in tasks."""
PREFETCH_MIXED = 16
"""Most tasks read at a time for the event loop of a worker that has busy threads as well."""
SURPLUS_NS = 2 * PREFETCH_NS
"""Unstarted work beyond this, in time, is offered to workers that are idle, down to PREFETCH_NS."""
STUCK_S = 0.25
"""Held work that nobody could start for this long is offered to other workers."""
LONGEST_STUCK_S = 4.0
"""Where others refuse it time and again: at most this long until it is offered once more."""
LOOK_S = 0.05
"""While unstarted work is held, how often the fetcher looks whether it is too much."""
UNSEEN_NS = 100_000_000
"""A task of a name that never ran here counts as this long: a guess that is too long costs a little
traffic, one that is too short keeps others' work from them."""
NAMES = 1_000
"""Labelled names with a mean of their own; those beyond share that of their handler."""
SAMPLE = 16
"""So many tasks say enough."""


class Prefetch:
    """Decide how much to hold for ``threads`` runners and, with ``has_loop``, an event loop.

    ``has_sync`` says whether there are handlers that runners run. In the methods, ``waiting`` is
    how many tasks wait for runners, ``idle`` how many runners wait for tasks, ``started`` how many
    tasks runners have ever started, and ``now`` a time of any clock that only goes forwards.
    """

    def __init__(self, threads: int, *, has_sync: bool = True, has_loop: bool = False) -> None:
        self._threads = threads
        self._has_sync = has_sync
        self._has_loop = has_loop
        self._forecast = Forecast()
        self.low = 0
        """Ask for more when no more than so many tasks wait, less than half of what is meant to:
        many at a time, not one by one."""
        self._seen_started = -1
        self._offered_at = -1  # how many had been started when work that was stuck was offered
        self._stuck_since = 0.0
        self._stuck_s = STUCK_S
        self._look_at = 0.0

    # -- how much to read ------------------------------------------------------------------------

    def room(self, *, waiting: int, idle: int, started: int, loop_room: int = 0) -> int:
        """Return how many more tasks to read: about 50 ms' worth; of long ones, one for each idle
        runner. 0 or less: none."""
        room = 0
        if self._has_sync:
            mean = self._forecast.mean_ns()
            if started == self._offered_at or mean is None or mean >= PREFETCH_NS:
                room = idle - waiting
            else:
                ahead = min(int(self._threads * PREFETCH_NS / max(mean, 1)), PREFETCH_TASKS)
                self.low = (ahead - 1) // 2
                room = ahead - waiting if waiting <= self.low else 0
                room = max(room, idle - waiting)
        if self._has_loop:
            if self._has_sync:  # what is read for the loop may turn out to be work for threads
                loop_room = min(loop_room, PREFETCH_MIXED - waiting)
            room = max(room, loop_room)
        return min(room, PREFETCH_TASKS)

    def share(self, names: Set[Durations]) -> float:
        """Return which part of the tasks to come is of these names, about; 0 before the first."""
        return self._forecast.share(names)

    def learn(self, page: Sequence[Durations]) -> None:
        """Expect the names of this page to come again."""
        self._forecast.read(Counter(page))

    # -- what to keep ----------------------------------------------------------------------------

    def keep(self, page: Sequence[Durations], *, drained: bool, idle: int) -> int:
        """Return how many tasks of a page to keep, from the first; others are to be offered.

        ``drained``: the page was all there was to read.
        """
        # With an event loop, this few may have been read for it: more than threads have room for.
        few = self._has_loop and len(page) <= PREFETCH_MIXED
        if drained and not few and total_ns(Counter(page)) > self._threads * SURPLUS_NS:
            return max(fitting(page, self._threads * PREFETCH_NS), idle, 1)
        return len(page)

    def refused(self, now: float) -> None:
        """Keep what a page had too much: others have enough to do. Look again a little later."""
        self._look_at = now + LOOK_S

    def surplus_is_due(self, now: float) -> bool:
        """Return whether to weigh what is held: once in a while."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        return True

    def surplus(self, held: Sequence[Durations]) -> int:
        """Return how many tasks of those that wait are to be offered, from the last."""
        if total_ns(Counter(held)) <= self._threads * SURPLUS_NS:
            return 0
        return len(held) - max(fitting(held, self._threads * PREFETCH_NS), self._threads)

    def surplus_refused(self, held: Sequence[Durations], now: float) -> None:
        """Keep it: others have enough to do. The more is held, the less it matters when they are
        asked again."""
        self._look_at = now + max(LOOK_S, total_ns(Counter(held)) / 1e9 / 16)

    # -- what is stuck ---------------------------------------------------------------------------

    def came(self, now: float) -> None:
        """Note that a page has come: nothing of it is stuck yet."""
        self._stuck_since = now

    def is_stuck(self, now: float, *, waiting: int, started: int) -> bool:
        """Return whether what waits is to be offered, since no runner has started any for a
        while."""
        if started != self._seen_started or not waiting:
            self._seen_started = started
            self._stuck_since = now
            if started != self._offered_at:
                self._stuck_s = STUCK_S
            return False
        return now - self._stuck_since >= self._stuck_s

    def offered_stuck(self, now: float, *, started: int) -> None:
        """It was offered: until a runner starts a task none is read ahead, and what waits is
        offered again after twice the time."""
        self._offered_at = started
        self._stuck_since = now
        self._stuck_s = min(self._stuck_s * 2, LONGEST_STUCK_S)


def room_with_batches(room: int, waiting: int, idle: int, free: int, share: float) -> int:
    """Return how many more tasks to read where some names are gathered: ``free`` more of those may
    be held, which are about that ``share`` of what comes, and ``room`` more of the others."""
    others = max(room, PREFETCH_MIXED - waiting, 0)
    if share >= 1.0:
        return min(free, PREFETCH_TASKS)
    count = min(others / (1.0 - share), free / share if share > 0 else others)
    return min(max(int(count), idle - waiting), PREFETCH_TASKS)


# -- how long tasks take ---------------------------------------------------------------------------


class Forecast:
    """What to expect of the tasks to come, by the mixture of names that came last."""

    def __init__(self) -> None:
        self._shares: dict[Durations, float] = {}

    def read(self, counts: Mapping[Durations, int]) -> None:
        """Count that so many of each came now."""
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

    def share(self, names: Set[Durations]) -> float:
        """Return which part of them is of these names."""
        return sum(share for times, share in self._shares.items() if times in names)

    def mean_ns(self) -> float | None:
        """Return how long one takes, about; None before the first."""
        if not self._shares:
            return None
        return sum(times.mean_ns() * share for times, share in self._shares.items())


class Durations:
    """How long the tasks of one name take; ``threaded`` says whether runners run them.

    Runners add to ``busy_ns`` and ``done``, only the fetcher asks for the mean. Without a lock an
    addition may be lost to another runner's: the mean is an estimate anyway.
    """

    __slots__ = ("_mean", "_seen_at", "_seen_busy_ns", "_seen_done", "busy_ns", "done", "threaded")

    def __init__(self, threaded: bool = True) -> None:
        self.threaded = threaded
        self.busy_ns = 0
        self.done = 0
        self._seen_busy_ns = 0
        self._seen_done = 0
        self._seen_at = 0.0
        self._mean: float | None = None

    def mean_ns(self) -> float:
        """Return how long one takes these days."""
        busy = self.busy_ns
        done = self.done
        new = done - self._seen_done
        mean = self._mean
        # Sixteen say enough at any time, and a few when they take long: whoever has just read
        # hundreds of tasks for a moment's work must notice soon that they are none.
        if new >= SAMPLE or (new > 0 and (mean is None or time.monotonic() - self._seen_at > 0.05)):
            recent = max(0.0, (busy - self._seen_busy_ns) / new)
            if mean is not None:
                share = 0.8 if recent > mean else 0.5
                recent = share * recent + (1 - share) * mean
            self._mean = mean = recent
            self._seen_busy_ns = busy
            self._seen_done = done
            self._seen_at = time.monotonic()
        return UNSEEN_NS if mean is None else mean


UNKNOWN = Durations(threaded=False)
"""Of tasks that no handler here runs: they are let go of at once."""


def total_ns(counts: Mapping[Durations, int]) -> float:
    """Return how long runners take for so many of each."""
    return sum(times.mean_ns() * n for times, n in counts.items() if times.threaded)


def fitting(tasks: Iterable[Durations], budget_ns: float) -> int:
    """Return how many of these, from the first, runners finish in this time."""
    count = 0
    for times in tasks:
        if times.threaded:
            budget_ns -= times.mean_ns()
            if budget_ns < 0:
                break
        count += 1
    return count
