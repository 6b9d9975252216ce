"""The gatherer: holds the tasks of batch handlers until there are enough of a name, or until the
first has waited for its time.

Used by the fetcher, which puts tasks in, and by runners and the event loop, which take groups. What
waits here is unstarted work like any other: it goes back when the worker stops, its queue is
paused, or others have time for it. A group is made when it is taken, not before: what comes while
all runners are busy joins it.

``due`` is what runners look at, without a lock. It is true only where a group can be taken, so
nobody runs in a circle: there must be slots for its tasks, too.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..handlers.batching import Batching
from .outcome import fields_of
from .prefetch import LONGEST_STUCK_S, PREFETCH_NS, PREFETCH_TASKS, STUCK_S, Durations
from .queues import Delivery, WorkerQueue

LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks of one name that run together, and the slots in which they are shown."""

    tasks: list[Delivery]
    slots: list[int]


class Slots:
    """The slots of a process for tasks in batches; thread-safe."""

    def __init__(self, slots: range) -> None:
        self._free = deque(slots)
        self.on_freed: list[Callable[[], None]] = []

    def take(self, count: int) -> list[int]:
        """Return so many slots, or fewer where there are no more."""
        taken: list[int] = []
        try:
            while len(taken) < count:
                taken.append(self._free.popleft())
        except IndexError:
            pass
        return taken

    def give_back(self, slots: list[int]) -> None:
        """Take slots back."""
        none_left = not self._free
        self._free.extend(slots)
        if none_left:
            for tell in self.on_freed:
                tell()

    def __len__(self) -> int:
        return len(self._free)


class Gatherer:
    """Gathers tasks by name for one kind of runners; ``wake`` is called when a group is due."""

    def __init__(
        self,
        names: Mapping[bytes, tuple[Batching, Durations]],
        slots: Slots,
        runners: int,
        wake: Callable[[], None],
    ) -> None:
        """``runners`` is how many groups may run at a time."""
        self._names = names
        self._slots = slots
        self._runners = runners
        self._wake = wake
        self._waiting: dict[bytes, deque[tuple[float, Delivery]]] = {n: deque() for n in names}
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._next = math.inf
        self._stopped = False
        self._due_since = math.inf
        self._stuck_s = STUCK_S
        self.due = False
        """Whether there is a group to take now."""
        slots.on_freed.append(self._look_again)

    @property
    def times(self) -> frozenset[Durations]:
        """What is known of how long its tasks take, by name."""
        return frozenset(times for _, times in self._names.values())

    @property
    def holds(self) -> bool:
        """Whether anything waits here."""
        return any(self._waiting.values())

    # -- the fetcher -----------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many more tasks to hold: of each name one batch, or a moment's work."""
        room = 0
        for name, (batching, times) in self._names.items():
            most = max(batching.size, 1)
            if times.done:
                ahead = int(self._runners * PREFETCH_NS / max(times.mean_ns(), 1))
                most = max(most, min(ahead, PREFETCH_TASKS))
            room += max(most - len(self._waiting[name]), 0)
        return room

    def put(self, tasks: list[Delivery], arrived: float | None = None) -> None:
        """Hold these; they have waited since ``arrived`` (monotonic), by default since now."""
        since = time.monotonic() if arrived is None else arrived
        with self._lock:
            for task in tasks:
                self._waiting[name_of(task)].append((since, task))
            wake, early = self._look()
        if wake:
            self._wake()
        if early:
            self._bell.set()

    def put_first(self, tasks: list[Delivery]) -> None:
        """Hold these again, before what waits: they have waited long enough."""
        with self._lock:
            for task in reversed(tasks):
                self._waiting[name_of(task)].appendleft((0.0, task))
            wake, _ = self._look()
        if wake:
            self._wake()

    def take_unstarted(self) -> list[Delivery]:
        """Return all that waits, which is no longer ours to run."""
        with self._lock:
            found = [task for waiting in self._waiting.values() for _, task in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
            self._look()
        return found

    def withdraw(self, key: tuple[bytes, WorkerQueue]) -> Delivery | None:
        """Return the task with that entry, of that queue, which is no longer ours to run; None
        where it does not wait here."""
        with self._lock:
            for waiting in self._waiting.values():
                for at, (_, task) in enumerate(waiting):
                    if (task[0], task[2]) == key:
                        del waiting[at]
                        self._look()
                        return task
        return None

    def is_stuck(self, now: float) -> bool:
        """Return whether a group has been due for a while, and nobody took it; then it is to be
        offered to other workers, and after twice the time once more."""
        with self._lock:
            if now - self._due_since < self._stuck_s:
                return False
            self._due_since = now
            self._stuck_s = min(self._stuck_s * 2, LONGEST_STUCK_S)
            return True

    # -- runners ---------------------------------------------------------------------------------

    def take(self) -> Group | None:
        """Return the group that has been due the longest, which is the caller's to run; None where
        none is due."""
        with self._lock:
            name = self._first_due(time.monotonic())
            if name is None:
                self._look()
                return None
            waiting = self._waiting[name]
            slots = self._slots.take(min(self._names[name][0].size, len(waiting)))
            tasks = [waiting.popleft()[1] for _ in slots]
            self._stuck_s = STUCK_S
            self._due_since = math.inf
            wake, early = self._look(again=True)
        if wake:
            self._wake()
        if early:
            self._bell.set()
        return Group(tasks, slots) if tasks else None

    def _first_due(self, now: float) -> bytes | None:
        found, since = None, math.inf
        for name, waiting in self._waiting.items():
            batching = self._names[name][0]
            if not waiting:
                continue
            first = waiting[0][0]
            is_due = len(waiting) >= batching.size or first + batching.within <= now
            if is_due and first < since:
                found, since = name, first
        return found

    def _look(self, again: bool = False) -> tuple[bool, bool]:
        """See what is due, with the lock held; return whether to wake a runner, and whether the
        thread's next look is earlier than it thinks. ``again``: a group was taken just now."""
        now = time.monotonic()
        was_due = self.due and not again
        self.due = len(self._slots) > 0 and self._first_due(now) is not None
        if not self.due:
            self._due_since = math.inf
        elif not was_due or self._due_since == math.inf:
            self._due_since = now
        ends = (
            waiting[0][0] + self._names[name][0].within
            for name, waiting in self._waiting.items()
            if waiting
        )
        after = [end for end in ends if end > now]
        earliest = min(after, default=math.inf)
        early = earliest < self._next
        if early:
            self._next = earliest
        return self.due and not was_due, early

    def _look_again(self) -> None:
        with self._lock:
            wake, early = self._look()
        if wake:
            self._wake()
        if early:
            self._bell.set()

    # -- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Let groups be due when their time is over, until ``stop``: what its thread does."""
        while not self._stopped:
            self._bell.wait(min(max(self._next - time.monotonic(), 0.0), LONGEST_WAIT_S))
            self._bell.clear()
            with self._lock:
                self._next = math.inf
                wake, _ = self._look()
            if wake:
                self._wake()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._bell.set()


def name_of(task: Delivery) -> bytes:
    """Return the name of a task."""
    flat = task[1]
    return flat[3] if flat[2] == b"name" else fields_of(flat)[b"name"]
