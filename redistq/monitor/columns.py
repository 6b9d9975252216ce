"""What each listing of a queue shows: its columns in order, their kinds, and a record as a row.

Read by the DataFrames and by the command line's tables, JSON and CSV, which thereby never differ.
It needs no pandas and never talks to a server.

Kinds of columns: ``text``, ``label`` (text with few values), ``state`` (STATES in order), ``time``
(server's ms since the epoch), ``span`` (ms), ``count`` (a whole number), ``number`` (one that may
be missing). None stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .rows import (
    BatchRow,
    ConsumerRow,
    DeadLetter,
    DelayedRow,
    Event,
    FailureGroup,
    PendingRow,
    TaskHistory,
    WorkerInfo,
)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Columns (name and kind) and how a record becomes a row of them; ``index`` names the column
    that a DataFrame uses as its index; ``labels`` fixes the values of a label."""

    columns: tuple[tuple[str, str], ...]
    row: Callable[[Any], Row]
    index: str | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _recent(e: Event) -> Row:
    return (
        e.finished_ms,
        e.id,
        e.name,
        e.state,
        e.attempt,
        e.worker,
        e.queued_ms,
        e.started_ms,
        e.wait_ms,
        e.run_ms,
        e.note,
    )


RECENT = Listing(
    (
        ("finished_at", "time"),
        ("task_id", "text"),
        ("name", "label"),
        ("state", "state"),
        ("attempt", "count"),
        ("worker", "label"),
        ("queued_at", "time"),
        ("started_at", "time"),
        ("wait", "span"),
        ("run", "span"),
        ("note", "text"),
    ),
    _recent,
)


def _worker(w: WorkerInfo) -> Row:
    return (
        w.name,
        w.host,
        w.pid,
        w.state,
        w.threads,
        w.pending,
        w.running,
        w.task,
        w.task_id,
        w.task_since_ms,
        w.started_ms,
        w.deadline_ms,
        w.python,
        w.version,
        ", ".join(w.names),
    )


WORKERS = Listing(
    (
        ("worker", "text"),
        ("host", "label"),
        ("pid", "number"),
        ("state", "label"),
        ("threads", "count"),
        ("pending", "count"),
        ("running", "count"),
        ("task", "text"),
        ("task_id", "text"),
        ("task_since", "time"),
        ("started_at", "time"),
        ("deadline_at", "time"),
        ("python", "label"),
        ("version", "label"),
        ("names", "text"),
    ),
    _worker,
    "worker",
    {"state": ("idle", "busy", "paused", "silent")},
)


def _consumer(c: ConsumerRow) -> Row:
    return c.name, c.pending, c.idle_ms, c.inactive_ms, c.state


CONSUMERS = Listing(
    (
        ("consumer", "text"),
        ("pending", "count"),
        ("idle", "span"),
        ("inactive", "span"),
        ("state", "label"),
    ),
    _consumer,
    "consumer",
    {"state": ("alive", "silent", "unknown")},
)


def _pending(p: PendingRow) -> Row:
    return (
        p.id,
        p.name,
        "running",
        p.worker,
        p.attempt,
        p.recovered,
        p.queued_ms,
        p.since_ms,
        p.held_ms,
        p.deliveries,
        p.entry,
        p.preview,
    )


PENDING = Listing(
    (
        ("task_id", "text"),
        ("name", "label"),
        ("state", "state"),
        ("worker", "label"),
        ("attempt", "count"),
        ("recovered", "count"),
        ("queued_at", "time"),
        ("since", "time"),
        ("held", "span"),
        ("deliveries", "count"),
        ("entry", "text"),
        ("payload", "text"),
    ),
    _pending,
)


def _delayed(d: DelayedRow) -> Row:
    return (
        d.id,
        d.name,
        "delayed",
        d.due_ms,
        d.due_in_ms,
        d.reason,
        d.attempt,
        d.recovered,
        d.error_type,
        d.preview,
    )


DELAYED = Listing(
    (
        ("task_id", "text"),
        ("name", "label"),
        ("state", "state"),
        ("due_at", "time"),
        ("due_in", "span"),
        ("reason", "label"),
        ("attempt", "count"),
        ("recovered", "count"),
        ("error_type", "label"),
        ("payload", "text"),
    ),
    _delayed,
    labels={"reason": ("delay", "retry", "snooze", "unknown")},
)


def _dead(d: DeadLetter) -> Row:
    return (
        d.id,
        d.name,
        "failed",
        d.died_ms,
        d.error_type,
        d.error,
        d.attempt,
        d.worker,
        d.run_ms,
        d.preview,
        d.traceback,
    )


DEAD = Listing(
    (
        ("task_id", "text"),
        ("name", "label"),
        ("state", "state"),
        ("died_at", "time"),
        ("error_type", "label"),
        ("error", "text"),
        ("attempt", "count"),
        ("worker", "label"),
        ("run", "span"),
        ("payload", "text"),
        ("traceback", "text"),
    ),
    _dead,
)


def _failures(f: FailureGroup) -> Row:
    return f.error_type, f.name, f.count, f.first_ms, f.last_ms, f.example_id, f.error


FAILURES = Listing(
    (
        ("error_type", "label"),
        ("name", "label"),
        ("count", "count"),
        ("first_at", "time"),
        ("last_at", "time"),
        ("example_id", "text"),
        ("error", "text"),
    ),
    _failures,
)


def _batch(b: BatchRow) -> Row:
    return (
        b.id,
        b.name,
        b.state,
        b.total,
        b.waiting,
        b.succeeded,
        b.failed,
        b.cancelled,
        b.retried,
        b.created_ms,
        b.finished_ms,
        None if b.finished_ms is None else b.finished_ms - b.created_ms,
    )


BATCHES = Listing(
    (
        ("batch", "text"),
        ("name", "text"),
        ("state", "label"),
        ("total", "count"),
        ("waiting", "count"),
        ("succeeded", "count"),
        ("failed", "count"),
        ("cancelled", "count"),
        ("retried", "count"),
        ("created_at", "time"),
        ("finished_at", "time"),
        ("took", "span"),
    ),
    _batch,
    "batch",
    {"state": ("running", "finished")},
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a task, or (the last) how the task stands now."""

    attempt: int
    state: str
    queued_ms: int | None
    started_ms: float | None
    finished_ms: int | None
    wait_ms: float | None
    run_ms: float | None
    worker: str
    note: str


def attempts_of(task: TaskHistory) -> list[Attempt]:
    """Return a task's attempts, oldest first; where the last is not its end, one more says how it
    stands."""
    found = [
        Attempt(
            attempt=e.attempt,
            state=e.state,
            queued_ms=e.queued_ms,
            started_ms=e.started_ms,
            finished_ms=e.finished_ms,
            wait_ms=e.wait_ms,
            run_ms=e.run_ms,
            worker=e.worker,
            note=e.note,
        )
        for e in task.events
    ]
    if not found or found[-1].state != task.state:
        found.append(
            Attempt(
                attempt=task.attempt,
                state=task.state,
                queued_ms=task.since_ms,
                started_ms=None,
                finished_ms=task.finished_ms,
                wait_ms=None,
                run_ms=None,
                worker=task.worker,
                note=task.error_type,
            )
        )
    return found


def _attempt(a: Attempt) -> Row:
    return (
        a.attempt,
        a.state,
        a.queued_ms,
        a.started_ms,
        a.finished_ms,
        a.wait_ms,
        a.run_ms,
        a.worker,
        a.note,
    )


ATTEMPTS = Listing(
    (
        ("attempt", "count"),
        ("state", "state"),
        ("queued_at", "time"),
        ("started_at", "time"),
        ("finished_at", "time"),
        ("wait", "span"),
        ("run", "span"),
        ("worker", "label"),
        ("note", "text"),
    ),
    _attempt,
)
