"""DataFrames of what a queue holds: each frame's columns, dtypes and order, in one place.

Used by TaskMonitor. A frame is a contract: the columns below, in this order and with these dtypes,
also when it is empty (docs/frames.md). It never talks to a server.

Kinds of columns: ``text`` (pandas' string dtype; object before pandas 3), ``label`` (categorical),
``state`` (categorical, STATES in order), ``time`` (datetime64[ms, UTC]), ``span``
(timedelta64[us]), ``count`` (int64), ``number`` (Int64, may be missing), ``real`` (float64),
``flag`` (bool).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError
from .extras import need
from .records import (
    ConsumerRow,
    DelayedRow,
    FailureGroup,
    PendingRow,
    TaskHistory,
    WorkerInfo,
)
from .tick import BatchRow, DeadLetter, Event

if TYPE_CHECKING:
    import pandas as pd

STATES = (
    *("delayed", "queued", "running", "retried", "snoozed", "recovered"),
    *("succeeded", "failed", "cancelled", "expired", "settled"),
)
"""Every state a task or one of its attempts may be in, in the order of a task's life."""

Schema = Sequence[tuple[str, str]]

RECENT: Schema = (
    *(("finished_at", "time"), ("id", "text"), ("name", "label"), ("state", "state")),
    *(("attempt", "count"), ("worker", "label"), ("queued_at", "time"), ("started_at", "time")),
    *(("wait", "span"), ("run", "span"), ("note", "text")),
)
WORKERS: Schema = (
    *(("worker", "text"), ("host", "label"), ("pid", "number"), ("state", "label")),
    *(("threads", "count"), ("pending", "count"), ("running", "count"), ("task", "text")),
    *(("task_id", "text"), ("task_since", "time"), ("started_at", "time")),
    *(("deadline_at", "time"), ("python", "label"), ("version", "label"), ("names", "text")),
)
CONSUMERS: Schema = (
    *(("consumer", "text"), ("pending", "count"), ("idle", "span"), ("inactive", "span")),
    ("state", "label"),
)
PENDING: Schema = (
    *(("id", "text"), ("name", "label"), ("worker", "label"), ("attempt", "count")),
    *(("recovered", "count"), ("queued_at", "time"), ("since", "time"), ("held", "span")),
    *(("deliveries", "count"), ("entry", "text"), ("payload", "text")),
)
DELAYED: Schema = (
    *(("id", "text"), ("name", "label"), ("due_at", "time"), ("due_in", "span")),
    *(("reason", "label"), ("attempt", "count"), ("recovered", "count")),
    *(("error_type", "label"), ("payload", "text")),
)
DEAD: Schema = (
    *(("id", "text"), ("name", "label"), ("died_at", "time"), ("error_type", "label")),
    *(("error", "text"), ("attempt", "count"), ("worker", "label"), ("run", "span")),
    *(("payload", "text"), ("traceback", "text")),
)
FAILURES: Schema = (
    *(("error_type", "label"), ("name", "label"), ("count", "count"), ("first_at", "time")),
    *(("last_at", "time"), ("example_id", "text"), ("error", "text")),
)
BATCHES: Schema = (
    *(("batch", "text"), ("name", "text"), ("state", "label"), ("total", "count")),
    *(("waiting", "count"), ("succeeded", "count"), ("failed", "count"), ("cancelled", "count")),
    *(("retried", "count"), ("created_at", "time"), ("finished_at", "time"), ("elapsed", "span")),
)
ATTEMPTS: Schema = (
    *(("attempt", "count"), ("state", "state"), ("queued_at", "time"), ("started_at", "time")),
    *(("finished_at", "time"), ("wait", "span"), ("run", "span"), ("worker", "label")),
    ("note", "text"),
)
THROUGHPUT = ("succeeded", "failed", "retried", "snoozed", "recovered", "cancelled")
QUANTILES = (0.5, 0.9, 0.95, 0.99)

WORKER_STATES = ("idle", "busy", "paused", "silent")
CONSUMER_STATES = ("alive", "silent", "unknown")
REASONS = ("delay", "retry", "snooze", "unknown")
BATCH_STATES = ("running", "finished")
_LABELS: dict[tuple[int, str], tuple[str, ...]] = {
    (id(WORKERS), "state"): WORKER_STATES,
    (id(CONSUMERS), "state"): CONSUMER_STATES,
    (id(DELAYED), "reason"): REASONS,
    (id(BATCHES), "state"): BATCH_STATES,
}


def pandas() -> Any:
    """pandas, or an ImportError that says how to install it."""
    return need("pandas", "notebook", "DataFrames")


def frame(schema: Schema, rows: Iterable[Sequence[Any]], index: str | None = None) -> pd.DataFrame:
    """A DataFrame of exactly these columns and dtypes, with ``index`` as its index if given."""
    pd = pandas()
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    data = {
        name: column(kind, values, _LABELS.get((id(schema), name), ()))
        for (name, kind), values in zip(schema, columns, strict=True)
    }
    found = pd.DataFrame(data, columns=[name for name, _ in schema])
    return found if index is None else found.set_index(index)


def column(kind: str, values: Sequence[Any], labels: Sequence[str] = ()) -> pd.Series[Any]:
    """One column: times from ms since the epoch, spans from ms, None where nothing is known."""
    pd = pandas()
    if kind == "time":
        found = pd.Series(_integers(values, 1).view("datetime64[ms]"))
        return found.dt.tz_localize("UTC")
    if kind == "span":
        return pd.Series(_integers(values, 1000).view("timedelta64[us]"))
    if kind in ("state", "label"):
        names = STATES if kind == "state" else (labels or sorted({v for v in values if v}))
        dtype = pd.CategoricalDtype(
            pd.Index(list(names), dtype=text_dtype()), ordered=kind == "state"
        )
        known = set(names)
        return pd.Series(pd.Categorical([v if v in known else None for v in values], dtype=dtype))
    return pd.Series(list(values), dtype=text_dtype() if kind == "text" else _PLAIN[kind])


_PLAIN = {"count": "int64", "number": "Int64", "real": "float64", "flag": "bool"}


def text_dtype() -> Any:
    """What pandas makes of strings: ``str`` since pandas 3, ``object`` before."""
    return "str" if int(pandas().__version__.split(".")[0]) >= 3 else object


def _integers(values: Sequence[Any], factor: int) -> Any:
    """Whole numbers as 64-bit integers; None becomes the smallest one, which numpy reads as NaT."""
    import numpy as np

    nothing = np.iinfo("int64").min
    return np.array([nothing if v is None else round(v * factor) for v in values], dtype="int64")


# -- one function a frame ------------------------------------------------------------------------


def recent(events: Iterable[Event]) -> pd.DataFrame:
    """Ends of attempts."""
    return frame(
        RECENT,
        (
            (
                *(e.finished_ms, e.id, e.name, e.state, e.attempt, e.worker, e.queued_ms),
                *(e.started_ms, e.wait_ms, e.run_ms, e.note),
            )
            for e in events
        ),
    )


def workers(rows: Iterable[WorkerInfo]) -> pd.DataFrame:
    """Worker processes, indexed by name."""
    return frame(
        WORKERS,
        (
            (
                *(w.name, w.host, w.pid, w.state, w.threads, w.pending, w.running, w.task),
                *(w.task_id, w.task_since_ms, w.started_ms, w.deadline_ms, w.python, w.version),
                ", ".join(w.names),
            )
            for w in rows
        ),
        "worker",
    )


def consumers(rows: Iterable[ConsumerRow]) -> pd.DataFrame:
    """Consumers as the server lists them, indexed by name."""
    return frame(
        CONSUMERS,
        ((c.name, c.pending, c.idle_ms, c.inactive_ms, c.state) for c in rows),
        "consumer",
    )


def pending(rows: Iterable[PendingRow]) -> pd.DataFrame:
    """Tasks in workers' hands."""
    return frame(
        PENDING,
        (
            (
                *(p.id, p.name, p.worker, p.attempt, p.recovered, p.queued_ms, p.since_ms),
                *(p.held_ms, p.deliveries, p.entry, p.preview),
            )
            for p in rows
        ),
    )


def delayed(rows: Iterable[DelayedRow]) -> pd.DataFrame:
    """Tasks that wait for their time."""
    return frame(
        DELAYED,
        (
            (
                *(d.id, d.name, d.due_ms, d.due_in_ms, d.reason, d.attempt, d.recovered),
                *(d.error_type, d.preview),
            )
            for d in rows
        ),
    )


def dead(rows: Iterable[DeadLetter]) -> pd.DataFrame:
    """Failed tasks that are kept."""
    return frame(
        DEAD,
        (
            (
                *(d.id, d.name, d.died_ms, d.error_type, d.error, d.attempt, d.worker, d.run_ms),
                *(d.preview, d.traceback),
            )
            for d in rows
        ),
    )


def failures(rows: Iterable[FailureGroup]) -> pd.DataFrame:
    """Dead letters by error and task name."""
    return frame(
        FAILURES,
        (
            (f.error_type, f.name, f.count, f.first_ms, f.last_ms, f.example_id, f.error)
            for f in rows
        ),
    )


def batches(rows: Iterable[BatchRow], now_ms: int) -> pd.DataFrame:
    """Batches, indexed by id."""
    return frame(
        BATCHES,
        (
            (
                *(b.id, b.name, b.state, b.total, b.waiting, b.succeeded, b.failed, b.cancelled),
                *(b.retried, b.created_ms, b.finished_ms),
                (now_ms if b.finished_ms is None else b.finished_ms) - b.created_ms,
            )
            for b in rows
        ),
        "batch",
    )


def attempts(task: TaskHistory) -> pd.DataFrame:
    """A task's attempts, oldest first, and how it stands when it has not come to its end."""
    rows: list[tuple[Any, ...]] = [
        (
            *(e.attempt, e.state, e.queued_ms, e.started_ms, e.finished_ms, e.wait_ms, e.run_ms),
            *(e.worker, e.note),
        )
        for e in task.events
    ]
    if not task.events or task.events[-1].state != task.state:
        rows.append(
            (
                *(task.attempt, task.state, task.since_ms, None, task.finished_ms, None, None),
                *(task.worker, task.error_type),
            )
        )
    return frame(ATTEMPTS, rows)


def throughput(
    events: Sequence[Event], start_ms: int, end_ms: int, step_ms: int, by: str | None = None
) -> pd.DataFrame:
    """Ends of attempts per step from ``start_ms`` up to ``end_ms``; steps without one are 0."""
    pd = pandas()
    import numpy as np

    first, steps = start_ms // step_ms, max(1, math.ceil(end_ms / step_ms) - start_ms // step_ms)
    begin = pd.Timestamp(first * step_ms, unit="ms", tz="UTC").as_unit("ms")
    index = pd.date_range(begin, periods=steps, freq=pd.Timedelta(step_ms, unit="ms"), name="ts")
    keys = [] if by is None else sorted({getattr(event, by) for event in events})
    names = [(key, state) for key in keys for state in THROUGHPUT]
    at = {name: i for i, name in enumerate(names if by else THROUGHPUT)}
    counts = np.zeros((steps, len(at)), dtype="int64")
    for event in events:
        row = event.finished_ms // step_ms - first
        where = at.get((getattr(event, by), event.state) if by else event.state)
        if where is not None and 0 <= row < steps:
            counts[row, where] += 1
    if by is None:
        columns = pd.Index(list(THROUGHPUT), dtype=text_dtype())
    else:
        columns = pd.MultiIndex.from_tuples(names, names=[by, "state"])
    return pd.DataFrame(counts, index=index.as_unit("ms"), columns=columns)


def latency(
    events: Iterable[Event], by: str = "name", quantiles: Sequence[float] = QUANTILES
) -> pd.DataFrame:
    """Queueing and run time quantiles of attempts that ran, per ``by``."""
    import statistics

    groups: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.run_ms is not None and event.wait_ms is not None and event.worker:
            groups.setdefault(getattr(event, by), []).append((event.wait_ms, event.run_ms))
    marks = [f"p{100 * q:g}" for q in quantiles]
    schema: Schema = (
        *((by, "text"), ("count", "count")),
        *((f"wait_{mark}", "span") for mark in marks),
        *((f"run_{mark}", "span") for mark in marks),
        *(("wait_mean", "span"), ("run_mean", "span"), ("run_max", "span")),
    )
    rows = []
    for key in sorted(groups):
        waits, runs = (sorted(part) for part in zip(*groups[key], strict=True))
        rows.append(
            (
                *(key, len(runs)),
                *(quantile(waits, q) for q in quantiles),
                *(quantile(runs, q) for q in quantiles),
                *(statistics.fmean(waits), statistics.fmean(runs), runs[-1]),
            )
        )
    return frame(schema, rows, by)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, between neighbours in proportion."""
    at = (len(ordered) - 1) * q
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def milliseconds(span: Any, what: str) -> int:
    """A span such as "5min", a timedelta or seconds, as whole ms; raises ConfigurationError."""
    pd = pandas()
    try:
        if isinstance(span, int | float) and not isinstance(span, bool):
            span = pd.Timedelta(span, unit="s")
        ms = round(pd.Timedelta(span) / pd.Timedelta(1, unit="ms"))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(f"{what} is a span such as '5min' or seconds: {span!r}") from error
    if ms < 1:
        raise ConfigurationError(f"{what} is longer than 0: {span!r}")
    return int(ms)


def stamp(found: pd.DataFrame, **facts: Any) -> pd.DataFrame:
    """The frame with ``attrs["redistq"]``: when and where it was read."""
    found.attrs["redistq"] = facts
    return found


def iso(ms: int) -> str:
    """A server time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
