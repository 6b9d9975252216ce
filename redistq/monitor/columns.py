"""What each listing of a queue shows: its columns in order, their kinds and their sources.

Read by the DataFrames and by the command line's tables, JSON and CSV, which thereby never differ.
It needs no pandas and never talks to a server.

Kinds of columns: ``text``, ``label`` (text with few values), ``state`` (STATES in order), ``time``
(server's ms since the epoch), ``span`` (ms), ``count`` (a whole number), ``number`` (one that may
be missing), ``real`` (any number, which may be missing), ``bytes`` (a whole number that may be
missing), ``share`` (1.0 is all of one). None stands for what is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from ..protocol.keys import PRIORITIES
from ..protocol.limits import EXCESS, ON_FAILURE
from ..protocol.schedules import MISSED, OVERLAP
from ..protocol.waits import REASONS

Source = str | Callable[[Any], Any]
"""Where a column's value comes from: an attribute of the record, or a function of it."""


class Listing:
    """Columns, each with its name, kind and source.

    ``index`` names the column that a DataFrame uses as its index; ``labels`` fixes the values of a
    label.
    """

    def __init__(
        self,
        *shown: tuple[str, str, Source],
        index: str | None = None,
        labels: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.columns = tuple((name, kind) for name, kind, _ in shown)
        self.index = index
        self.labels: Mapping[str, tuple[str, ...]] = labels or {}
        self._sources = tuple(
            attrgetter(source) if isinstance(source, str) else source for _, _, source in shown
        )

    def row(self, record: Any) -> tuple[Any, ...]:
        """Return a record's values in the order of the columns."""
        return tuple(source(record) for source in self._sources)


RECENT = Listing(
    ("finished_at", "time", "finished_ms"),
    ("task_id", "text", "id"),
    ("name", "label", "name"),
    ("state", "state", "state"),
    ("attempt", "count", "attempt"),
    ("worker", "label", "worker"),
    ("queued_at", "time", "queued_ms"),
    ("started_at", "time", "started_ms"),
    ("wait", "span", "wait_ms"),
    ("run", "span", "run_ms"),
    ("note", "text", "note"),
)
"""Of ``Event``."""

WORKERS = Listing(
    ("worker", "text", "name"),
    ("host", "label", "host"),
    ("pid", "number", "pid"),
    ("state", "label", "state"),
    ("threads", "count", "threads"),
    ("pending", "count", "pending"),
    ("running", "count", "running"),
    ("task", "text", "task"),
    ("task_id", "text", "task_id"),
    ("task_since", "time", "task_since_ms"),
    ("started_at", "time", "started_ms"),
    ("deadline_at", "time", "deadline_ms"),
    ("python", "label", "python"),
    ("version", "label", "version"),
    ("names", "text", lambda worker: ", ".join(worker.names)),
    ("rss", "bytes", "rss"),
    ("cpu", "share", "cpu"),
    ("memory_limit", "bytes", "memory_limit"),
    index="worker",
    labels={"state": ("idle", "busy", "paused", "silent")},
)
"""Of ``WorkerInfo``."""

CONSUMERS = Listing(
    ("consumer", "text", "name"),
    ("pending", "count", "pending"),
    ("idle", "span", "idle_ms"),
    ("inactive", "span", "inactive_ms"),
    ("state", "label", "state"),
    index="consumer",
    labels={"state": ("alive", "silent", "unknown")},
)
"""Of ``ConsumerRow``."""

PENDING = Listing(
    ("task_id", "text", "id"),
    ("name", "label", "name"),
    ("state", "state", lambda _: "running"),
    ("worker", "label", "worker"),
    ("attempt", "count", "attempt"),
    ("recovered", "count", "recovered"),
    ("queued_at", "time", "queued_ms"),
    ("since", "time", "since_ms"),
    ("held", "span", "held_ms"),
    ("deliveries", "count", "deliveries"),
    ("entry", "text", "entry"),
    ("payload", "text", "preview"),
    ("done", "real", lambda row: row.progress and row.progress.done),
    ("total", "real", lambda row: row.progress and row.progress.total),
    ("progress", "text", lambda row: row.progress.text if row.progress else ""),
)
"""Of ``PendingRow``."""

DELAYED = Listing(
    ("task_id", "text", "id"),
    ("name", "label", "name"),
    ("state", "state", lambda _: "delayed"),
    ("due_at", "time", "due_ms"),
    ("due_in", "span", "due_in_ms"),
    ("reason", "label", "reason"),
    ("event", "label", "event"),
    ("attempt", "count", "attempt"),
    ("recovered", "count", "recovered"),
    ("error_type", "label", "error_type"),
    ("payload", "text", "preview"),
    labels={"reason": ("delay", "retry", "snooze", "sleep", "event", "room", "unknown")},
)
"""Of ``DelayedRow``."""

WAITING = Listing(
    ("task_id", "text", "id"),
    ("name", "label", "name"),
    ("state", "state", lambda _: "waiting"),
    ("reason", "label", "reason"),
    ("under", "label", "under"),
    ("since", "time", "since_ms"),
    ("waited", "span", "waited_ms"),
    ("place", "number", "place"),
    ("parents", "number", "parents"),
    ("priority", "label", "priority"),
    ("attempt", "count", "attempt"),
    ("due_at", "time", "due_ms"),
    ("payload", "text", "preview"),
    labels={"reason": REASONS, "priority": PRIORITIES},
)
"""Of ``WaitingRow``."""

LIMITS = Listing(
    ("key", "text", "state.key"),
    ("rule", "text", "state.rule_key"),
    ("at_most", "number", "state.at_most"),
    ("rate", "real", "state.rate"),
    ("per", "span", lambda row: None if row.state.rate is None else row.state.per * 1000),
    ("burst", "number", lambda row: None if row.state.rate is None else row.state.burst),
    ("in_use", "count", "state.in_use"),
    ("waiting", "count", "state.waiting"),
    ("next_token_in", "span", "next_token_in_ms"),
    ("paused_at", "time", "state.paused_ms"),
    ("excess", "label", lambda row: row.state.excess if row.state.has_rule else None),
    ("on_failure", "label", lambda row: row.state.on_failure if row.state.has_rule else None),
    ("weight", "number", lambda row: row.state.weight if row.state.has_rule else None),
    index="key",
    labels={
        "excess": EXCESS,
        "on_failure": ON_FAILURE,
    },
)
"""Of ``LimitRow``."""

SCHEDULES = Listing(
    ("schedule", "text", "schedule.name"),
    ("task", "label", "schedule.task"),
    ("rule", "text", "schedule.rule"),
    ("state", "label", "state"),
    ("next_at", "time", "next_ms"),
    ("next_in", "span", "next_in_ms"),
    ("last_at", "time", "last_ms"),
    ("last_state", "state", lambda row: row.last_state or None),
    ("last_id", "text", "schedule.last_id"),
    ("fired", "count", "schedule.fired"),
    ("skipped", "count", "schedule.skipped"),
    ("missed", "label", "schedule.missed"),
    ("overlap", "label", "schedule.overlap"),
    ("queue", "label", "schedule.queue"),
    ("source", "label", "schedule.source"),
    ("fault", "text", "schedule.fault"),
    index="schedule",
    labels={"state": ("active", "paused"), "missed": MISSED, "overlap": OVERLAP},
)
"""Of ``ScheduleRow``."""

DEAD = Listing(
    ("task_id", "text", "id"),
    ("name", "label", "name"),
    ("state", "state", lambda _: "failed"),
    ("died_at", "time", "died_ms"),
    ("error_type", "label", "error_type"),
    ("error", "text", "error"),
    ("attempt", "count", "attempt"),
    ("worker", "label", "worker"),
    ("run", "span", "run_ms"),
    ("payload", "text", "preview"),
    ("traceback", "text", "traceback"),
)
"""Of ``DeadLetter``."""

FAILURES = Listing(
    ("error_type", "label", "error_type"),
    ("name", "label", "name"),
    ("count", "count", "count"),
    ("first_at", "time", "first_ms"),
    ("last_at", "time", "last_ms"),
    ("example_id", "text", "example_id"),
    ("error", "text", "error"),
)
"""Of ``FailureGroup``."""

BATCHES = Listing(
    ("batch", "text", "id"),
    ("name", "text", "name"),
    ("state", "label", "state"),
    ("total", "count", "total"),
    ("waiting", "count", "waiting"),
    ("succeeded", "count", "succeeded"),
    ("failed", "count", "failed"),
    ("cancelled", "count", "cancelled"),
    ("retried", "count", "retried"),
    ("created_at", "time", "created_ms"),
    ("finished_at", "time", "finished_ms"),
    ("took", "span", "took_ms"),
    ("expired", "count", "expired"),
    ("version", "count", "version"),
    index="batch",
    labels={"state": ("running", "finished")},
)
"""Of ``BatchRow``."""

GRAPHS = Listing(
    ("graph", "text", "batch.id"),
    ("state", "label", "batch.state"),
    ("layers", "number", "layers"),
    ("total", "count", "batch.total"),
    ("waiting", "count", "batch.waiting"),
    ("succeeded", "count", "batch.succeeded"),
    ("failed", "count", "batch.failed"),
    ("cancelled", "count", "batch.cancelled"),
    ("expired", "count", "batch.expired"),
    ("retried", "count", "batch.retried"),
    ("created_at", "time", "batch.created_ms"),
    ("finished_at", "time", "batch.finished_ms"),
    ("took", "span", "batch.took_ms"),
    index="graph",
    labels={"state": ("running", "finished")},
)
"""Of ``GraphRow``."""

ATTEMPTS = Listing(
    ("attempt", "count", "attempt"),
    ("state", "state", "state"),
    ("queued_at", "time", "queued_ms"),
    ("started_at", "time", "started_ms"),
    ("finished_at", "time", "finished_ms"),
    ("wait", "span", "wait_ms"),
    ("run", "span", "run_ms"),
    ("worker", "label", "worker"),
    ("note", "text", "note"),
)
"""Of ``Attempt``."""
