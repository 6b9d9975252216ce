"""How a queue is: the conditions that matter, judged in one place, and a verdict in one sentence.

Used by ticks, the command line, dashboards and metrics, which differ in their words alone. Pure
functions of a snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..display.text import plural
from ..protocol.commands import Snapshot, WorkerRow
from .rows import int_or_none

LATE_MS = 10_000
"""A delayed task that is later than this has no scheduler."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What a snapshot says of its queue.

    ``living`` and ``silent`` are the workers before and past their deadline, by name; ``work`` is
    what is ready or in workers' hands; ``late_ms`` is how late the next delayed task is (0: in
    time, or within LATE_MS, or there is a better reason than a missing scheduler).
    """

    living: tuple[WorkerRow, ...]
    silent: tuple[WorkerRow, ...]
    work: int
    delayed: int
    paused: bool
    late_ms: int

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.work and not self.delayed

    @property
    def unserved(self) -> bool:
        """Whether there is something to do and no living worker."""
        return not self.empty and not self.living


def condition(shot: Snapshot) -> Condition:
    """Return what a snapshot says of its queue."""
    workers = sorted(shot.workers, key=lambda w: w.consumer)
    living = tuple(w for w in workers if w.deadline_ms >= shot.now_ms)
    late_ms = 0 if shot.next_due_ms is None else shot.now_ms - shot.next_due_ms
    return Condition(
        living=living,
        silent=tuple(w for w in workers if w.deadline_ms < shot.now_ms),
        work=shot.ready + shot.pending,
        delayed=shot.delayed,
        paused=shot.paused,
        late_ms=late_ms if late_ms > LATE_MS and living and not shot.paused else 0,
    )


def verdict(shot: Snapshot) -> tuple[str, str]:
    """Return a word (ok, idle, paused, warning, bad) and one sentence that says why."""
    now = condition(shot)
    if now.unserved:
        waiting = plural(now.work + now.delayed, "task")
        verb = "waits" if now.work + now.delayed == 1 else "wait"
        return "bad", f"no worker runs and {waiting} {verb}: redistq worker your.module --queue …"
    if now.silent:
        silent = plural(len(now.silent), "worker")
        return "warning", f"{silent} silent; what they ran is recovered in a moment"
    if now.paused:
        return "paused", "the queue is paused: nothing is started until it is resumed"
    if now.late_ms:
        return "warning", f"a delayed task is {now.late_ms / 1000:,.0f} s late: no scheduler runs"
    if now.empty:
        return "idle", "nothing waits and nothing runs"
    running = plural(running_count(shot), "task")
    return "ok", f"{plural(len(now.living), 'worker')}, {running} running"


def slots_of(worker: WorkerRow) -> int:
    """Return how many threads a worker has."""
    return int_or_none(worker.details.get("threads", "")) or 0


def running_of(worker: WorkerRow) -> int:
    """Return how many tasks a worker runs: those its heartbeat listed, or as many of those it holds
    as it has threads (a worker holds few that it has not started)."""
    listed = len(worker.details.get("running", "").split())
    return max(min(listed, worker.pending), min(slots_of(worker), worker.pending))


def running_count(shot: Snapshot) -> int:
    """Return how many tasks the living workers run."""
    return sum(running_of(worker) for worker in condition(shot).living)
