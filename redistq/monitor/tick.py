"""One refresh of a dashboard as plain frozen records: what a queue looks like, and how it is.

Read by dashboards, the command line and the metrics; made by TaskMonitor.tick. How a queue is,
is judged here alone (``condition``, ``verdict``): dashboards, commands and metrics differ in their
words. It needs no pandas and never talks to a server. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..display.text import plural
from ..protocol.commands import Commands, Snapshot, WorkerRow
from ..protocol.keys import COUNTED, ENDED
from ..protocol.limits import LimitState
from ..protocol.waits import read_limit, read_reasons
from .agenda import ScheduleRow, read_agenda
from .rows import (
    BatchRow,
    DeadLetter,
    Event,
    Running,
    WorkerInfo,
    fields_of,
    int_or_none,
    read_batch,
    read_dead,
    read_event,
    read_running,
    text_of,
)

STATS_EVENTS = 300
"""Events read for the figure of throughput: few, because each costs the server some 10 µs."""
LEAST_AGE_MS = 5_000
"""A queue is taken for at least so old: a rate over less says little."""
NEARLY_FULL = 0.9
"""Memory is short where more than so much of its limit is used."""
LATE_MS = 10_000
"""A delayed task that is later than this has no scheduler."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a queue did between two ticks, per second."""

    seconds: float
    added: float
    succeeded: float
    failed: float
    retried: float

    @property
    def settled(self) -> float:
        """Tasks that came to their end, per second (cancelled ones left out)."""
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True)
class Tick:
    """One refresh: every figure, and what is new, of one instant.

    ``events`` are the ends of attempts since the tick's ``after``, oldest first, at most as many
    as were asked for (``missed`` says that there may be more; the counters miss none).
    ``cursor`` is the ``after`` of the next tick. ``running`` is what living workers hold, a fair
    share of each; ``dead`` the newest dead letters and ``batches`` the newest batches, newest
    first. ``reasons`` counts why the oldest hundred of the waiting tasks wait, and ``limits`` are
    the limit keys under which most wait; ``schedules`` those that fire next, of all priorities.
    """

    snapshot: Snapshot
    events: tuple[Event, ...]
    missed: bool
    cursor: str
    running: tuple[Running, ...]
    dead: tuple[DeadLetter, ...]
    batches: tuple[BatchRow, ...] = field(default=())
    reasons: dict[str, int] = field(default_factory=dict)
    limits: tuple[LimitState, ...] = field(default=())
    schedules: tuple[ScheduleRow, ...] = field(default=())

    @property
    def now_ms(self) -> int:
        """The server's time of this tick."""
        return self.snapshot.now_ms

    @property
    def paused(self) -> bool:
        """Whether the queue is paused."""
        return self.snapshot.paused

    @property
    def workers(self) -> tuple[WorkerRow, ...]:
        """The living workers, by name."""
        return condition(self.snapshot).living

    @property
    def silent(self) -> tuple[WorkerRow, ...]:
        """Workers past their deadline whose tasks are not recovered yet, by name."""
        return condition(self.snapshot).silent

    @property
    def slots(self) -> int:
        """How many threads the living workers have."""
        return sum(slots_of(worker) for worker in self.workers)

    @property
    def running_count(self) -> int:
        """How many tasks are being run, as far as is known: see ``running_of``."""
        return running_count(self.snapshot)

    def count(self, state: str) -> int:
        """Return how many attempts ended in a state since the queue began."""
        return self.snapshot.counters.get(state, 0)

    def running_on(self, consumer: str) -> tuple[Running, ...]:
        """Return what one worker holds, oldest first."""
        return tuple(task for task in self.running if task.worker == consumer)

    def since(self, earlier: Tick) -> Rates:
        """Return what happened between an earlier tick and this one. The counters are exact
        however much it was, save that replayed dead letters count as added."""
        seconds = max((self.now_ms - earlier.now_ms) / 1000, 0.001)

        def per_s(now: int, before: int) -> float:
            return max(0, now - before) / seconds

        def rate(state: str) -> float:
            return per_s(self.count(state), earlier.count(state))

        return Rates(
            seconds=seconds,
            added=per_s(_seen(self), _seen(earlier)),
            succeeded=rate("succeeded"),
            failed=rate("failed"),
            retried=rate("retried"),
        )

    @property
    def per_second(self) -> float:
        """Tasks that succeeded or failed per second over the last minute, from the events of this
        tick alone; over less than a minute where they reach back less far, and in a younger queue
        since its first task. For a tick without ``after``."""
        since = self.now_ms - 60_000
        if self.missed and self.events and self.events[0].finished_ms > since:
            since = self.events[0].finished_ms
        elif not self.missed and self.events:
            # All that ever ended: a queue younger than a minute is measured by its age.
            first = self.events[0]
            began = min(first.queued_ms or first.finished_ms, first.finished_ms)
            since = max(since, min(began, self.now_ms - LEAST_AGE_MS))
        settled = sum(
            event.finished_ms >= since and event.state in ("succeeded", "failed")
            for event in self.events
        )
        return settled * 1000 / max(self.now_ms - since, 1)

    @property
    def health(self) -> tuple[str, str]:
        """A word (ok, idle, paused, warning, bad) and one sentence that says why."""
        return verdict(self.snapshot)


def _seen(tick: Tick) -> int:
    shot = tick.snapshot
    settled = sum(tick.count(state) for state in ENDED)
    return shot.ready + shot.pending + shot.delayed + shot.waiting + settled


# -- how the queue is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Condition:
    """What a snapshot says of its queue.

    ``living`` and ``silent`` are the workers before and past their deadline, by name; ``work`` is
    what is ready or in workers' hands, ``waiting`` what may not run yet, of all priorities;
    ``late_ms`` is how late the next delayed task or timer is (0: in time, or within LATE_MS, or
    there is a better reason than a missing scheduler).
    """

    living: tuple[WorkerRow, ...]
    silent: tuple[WorkerRow, ...]
    work: int
    delayed: int
    waiting: int
    paused: bool
    late_ms: int

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self.work and not self.delayed and not self.waiting

    @property
    def unserved(self) -> bool:
        """Whether there is something to do and no living worker."""
        return not self.empty and not self.living


def condition(shot: Snapshot) -> Condition:
    """Return what a snapshot says of its queue."""
    workers = sorted(shot.workers, key=lambda w: w.consumer)
    living = tuple(w for w in workers if w.deadline_ms >= shot.now_ms)
    due = min(ms for ms in (shot.next_due_ms, shot.next_timer_ms, shot.now_ms) if ms is not None)
    late_ms = shot.now_ms - due
    return Condition(
        living=living,
        silent=tuple(w for w in workers if w.deadline_ms < shot.now_ms),
        work=shot.ready + shot.pending,
        delayed=shot.delayed,
        waiting=shot.waiting,
        paused=shot.paused,
        late_ms=late_ms if late_ms > LATE_MS and living and not shot.paused else 0,
    )


def is_unused(shot: Snapshot) -> bool:
    """Return whether a queue has no task and never had one."""
    tasks = shot.ready + shot.pending + shot.delayed + shot.dead
    return not tasks and not any(shot.counters.values())


def verdict(shot: Snapshot) -> tuple[str, str]:
    """Return a word (ok, idle, paused, warning, bad) and one sentence that says why."""
    now = condition(shot)
    if now.unserved:
        count = now.work + now.delayed + now.waiting
        verb = "waits" if count == 1 else "wait"
        start = "redistq worker your.module --queue …"
        return "bad", f"no worker runs and {plural(count, 'task')} {verb}: {start}"
    if now.silent:
        silent = plural(len(now.silent), "worker")
        return "warning", f"{silent} silent; what they ran is recovered in a moment"
    if now.paused:
        return "paused", "the queue is paused: nothing is started until it is resumed"
    if now.late_ms:
        what = "a timer" if shot.next_due_ms is None else "a delayed task"
        return "warning", f"{what} is {now.late_ms / 1000:,.0f} s late: no scheduler runs"
    if now.empty:
        return "idle", "nothing waits and nothing runs"
    running = plural(running_count(shot), "task")
    held = f", {plural(now.waiting, 'task')} may not run yet" if now.waiting else ""
    return "ok", f"{plural(len(now.living), 'worker')}, {running} running{held}"


def slots_of(worker: WorkerRow) -> int:
    """Return how many threads a worker has."""
    return int_or_none(worker.details.get("threads", "")) or 0


def running_of(worker: WorkerRow) -> int:
    """Return how many tasks a worker runs: those its heartbeat listed, or as many of those it holds
    as it has threads (a worker holds few that it has not started)."""
    listed = len(worker.details.get("running", "").split())
    return max(min(listed, worker.pending), min(slots_of(worker), worker.pending))


def memory_of(worker: WorkerRow) -> int | None:
    """Return the bytes of memory that a worker has, as its last heartbeat said; None: not known."""
    return int_or_none(worker.details.get("rss", ""))


def cpu_of(worker: WorkerRow) -> float | None:
    """Return the share of one core that a worker used before its last heartbeat; None: not
    known."""
    percent = int_or_none(worker.details.get("cpu", ""))
    return None if percent is None else percent / 100


def limit_of(worker: WorkerRow) -> int | None:
    """Return the bytes of memory that a worker's container may have; None: no limit, or not
    known."""
    return int_or_none(worker.details.get("memory_limit", ""))


def running_count(shot: Snapshot) -> int:
    """Return how many tasks the living workers run."""
    return sum(running_of(worker) for worker in condition(shot).living)


# -- the figures and workers of a tick -----------------------------------------------------------


def stats_of(tick: Tick, queue: str) -> dict[str, Any]:
    """Return the figures of a tick (one without ``after``) by name, in a fixed order."""
    shot = tick.snapshot
    oldest = shot.oldest_ms
    due = shot.next_due_ms
    word, why = tick.health
    return {
        "queue": queue,
        "queue_length": shot.ready,
        "pending": shot.pending,
        "running": running_count(shot),
        "delayed": shot.delayed,
        "waiting": shot.waiting,
        **{state: tick.count(state) for state in COUNTED},
        "dead": shot.dead,
        "workers": len(tick.workers),
        "slots": tick.slots,
        "oldest_age_s": 0.0 if oldest is None else max(0, shot.now_ms - oldest) / 1000,
        "next_due_s": None if due is None else (due - shot.now_ms) / 1000,
        "throughput": round(tick.per_second, 3),
        "paused": shot.paused,
        "health": word,
        "reason": why,
        "group": shot.group,
        "as_of_ms": shot.now_ms,
    }


def workers_of(tick: Tick) -> list[WorkerInfo]:
    """Return the workers of a tick by name, with the first of what each runs."""
    shot = tick.snapshot
    found = []
    for worker in sorted(shot.workers, key=lambda w: w.consumer):
        details = worker.details
        held = tick.running_on(worker.consumer)
        running = running_of(worker)
        started = sorted(held, key=lambda task: not task.started)
        if worker.deadline_ms < shot.now_ms:
            state = "silent"
        elif worker.pending:
            state = "busy"
        else:
            state = "paused" if shot.paused else "idle"
        found.append(
            WorkerInfo(
                name=worker.consumer,
                host=details.get("host", ""),
                pid=int_or_none(details.get("pid", "")),
                state=state,
                threads=slots_of(worker),
                pending=worker.pending,
                running=0 if state == "silent" else running,
                task=started[0].name if started else "",
                task_id=started[0].id if started else "",
                task_since_ms=started[0].since_ms if started else None,
                started_ms=int_or_none(details.get("started_ms", "")),
                deadline_ms=worker.deadline_ms,
                python=details.get("python", ""),
                version=details.get("version", ""),
                group=details.get("group", ""),
                names=tuple(name for name in details.get("names", "").split("\n") if name),
                rss=memory_of(worker),
                cpu=cpu_of(worker),
                memory_limit=limit_of(worker),
            )
        )
    return found


# -- reading tick.lua's answer ------------------------------------------------------------------


def read_tick(
    reply: list[Any],
    after: str,
    limit: int,
    held: Mapping[str, Running],
    known: Mapping[tuple[str, int], DeadLetter],
    base: str = "",
) -> Tick:
    """Return ``Commands.tick``'s answer; ``held`` and ``known`` are what was not sent again,
    ``base`` the queue's name without a priority."""
    figures, events, running, dead, batches, reasons, limits, schedules = reply
    snapshot = Commands.read_snapshot(figures)
    read = tuple(read_event(entry, flat) for entry, flat in reversed(events))
    letters = []
    for raw_id, raw_died, flat in dead:
        task_id = text_of(raw_id)
        died = int(float(raw_died))
        found = known.get((task_id, died)) if not flat else None
        letters.append(found or read_dead(task_id, died, fields_of(flat)))
    return Tick(
        snapshot=snapshot,
        events=read,
        missed=len(read) >= limit,
        cursor=read[-1].entry if read else after or "0-0",
        running=tuple(read_running(row, snapshot.now_ms, held) for row in running),
        dead=tuple(letters),
        batches=tuple(read_batch(text_of(row[0]), fields_of(row[1])) for row in batches),
        reasons=read_reasons(reasons),
        limits=tuple(map(read_limit, limits)),
        schedules=read_agenda(schedules, base, snapshot.now_ms),
    )
