"""How the command line shows a listing: a table to read, or JSON or CSV for scripts.

Used by ``redistq monitor``. Names and errors come from all who can add a task, so text is shown as
text: no markup is read in it, and characters that hide text or drive a terminal are made visible.
JSON and CSV hold every column, whole, and need no optional package.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from ..dashboard.words import title
from ..display.text import clean, clock, duration, iso, look, one_line
from ..monitor import columns
from ..monitor.columns import Listing
from ..monitor.rows import TaskHistory
from ..system.interpreter import require
from ..system.memory import in_words


@dataclass(frozen=True, slots=True)
class Shown:
    """A column of a table: which, under what heading, from how many columns of terminal on, and
    the widest it gets."""

    name: str
    heading: str
    from_width: int = 0
    widest: int = 40


TABLES: dict[str, tuple[Shown, ...]] = {
    "recent": (
        Shown("finished_at", "finished"),
        Shown("task_id", "id"),
        Shown("name", "task", 0, 24),
        Shown("state", "state"),
        Shown("attempt", "try", 100),
        Shown("wait", "waited", 110),
        Shown("run", "ran"),
        Shown("worker", "worker", 140),
        Shown("note", "error", 90),
    ),
    "workers": (
        Shown("worker", "worker", 0, 28),
        Shown("state", "state"),
        Shown("running", "runs"),
        Shown("threads", "threads"),
        Shown("pending", "holds", 100),
        Shown("task", "task", 0, 24),
        Shown("task_since", "since"),
        Shown("rss", "memory", 90),
        Shown("cpu", "CPU", 90),
        Shown("pid", "pid", 110),
        Shown("memory_limit", "memory limit", 140),
        Shown("started_at", "up since", 140),
        Shown("python", "python", 150),
        Shown("version", "redistq", 160),
    ),
    "consumers": (
        Shown("consumer", "consumer"),
        Shown("pending", "pending"),
        Shown("state", "worker"),
        Shown("idle", "asked before"),
        Shown("inactive", "got work before", 100),
    ),
    "pending": (
        Shown("task_id", "id"),
        Shown("name", "task", 0, 24),
        Shown("held", "held for"),
        Shown("done", "done"),
        Shown("total", "of"),
        Shown("progress", "progress", 100, 30),
        Shown("attempt", "try"),
        Shown("worker", "worker"),
        Shown("recovered", "recovered", 110),
        Shown("queued_at", "queued", 130),
        Shown("entry", "entry", 150),
        Shown("payload", "payload", 170, 60),
    ),
    "delayed": (
        Shown("task_id", "id"),
        Shown("name", "task", 0, 24),
        Shown("due_at", "due"),
        Shown("due_in", "in"),
        Shown("reason", "because"),
        Shown("attempt", "try", 100),
        Shown("error_type", "last error", 110),
        Shown("payload", "payload", 130, 60),
    ),
    "waiting": (
        Shown("task_id", "id"),
        Shown("name", "task", 0, 24),
        Shown("waited", "waits"),
        Shown("reason", "for"),
        Shown("under", "under", 0, 30),
        Shown("place", "place"),
        Shown("parents", "parents", 90),
        Shown("priority", "priority", 110),
        Shown("attempt", "try", 110),
        Shown("due_at", "due", 130),
        Shown("payload", "payload", 150, 60),
    ),
    "limits": (
        Shown("key", "key", 0, 30),
        Shown("in_use", "in use"),
        Shown("at_most", "at most"),
        Shown("waiting", "waiting"),
        Shown("rate", "rate"),
        Shown("per", "per"),
        Shown("next_token_in", "token in"),
        Shown("paused_at", "paused"),
        Shown("rule", "rule of", 100, 24),
        Shown("burst", "burst", 120),
        Shown("excess", "excess", 120),
        Shown("on_failure", "on failure", 140),
        Shown("weight", "weight", 150),
    ),
    "schedules": (
        Shown("schedule", "schedule", 0, 24),
        Shown("rule", "rule", 0, 40),
        Shown("next_in", "next in"),
        Shown("last_state", "last"),
        Shown("state", "state"),
        Shown("task", "task", 90, 20),
        Shown("next_at", "next (UTC)", 110),
        Shown("last_at", "last (UTC)", 130),
        Shown("fired", "fired", 130),
        Shown("skipped", "skipped", 140),
        Shown("missed", "missed", 150),
        Shown("overlap", "overlap", 150),
        Shown("queue", "queue", 170),
        Shown("fault", "fault", 170, 60),
    ),
    "graphs": (
        Shown("graph", "graph", 0, 24),
        Shown("state", "state"),
        Shown("layers", "layers"),
        Shown("total", "total"),
        Shown("waiting", "waiting"),
        Shown("succeeded", "succeeded"),
        Shown("failed", "failed"),
        Shown("cancelled", "cancelled", 90),
        Shown("created_at", "created", 100),
        Shown("took", "took", 110),
    ),
    "dead": (
        Shown("died_at", "died"),
        Shown("task_id", "id"),
        Shown("name", "task", 0, 20),
        Shown("attempt", "try", 100),
        Shown("error_type", "error", 0, 24),
        Shown("error", "message", 0, 80),
        Shown("worker", "worker", 160),
        Shown("payload", "payload", 200, 60),
    ),
    "failures": (
        Shown("count", "count"),
        Shown("error_type", "error", 0, 24),
        Shown("name", "task", 0, 20),
        Shown("last_at", "last"),
        Shown("first_at", "first", 110),
        Shown("example_id", "for example", 120),
        Shown("error", "message", 0, 80),
    ),
    "batches": (
        Shown("batch", "batch", 0, 24),
        Shown("name", "name", 0, 20),
        Shown("state", "state"),
        Shown("total", "total"),
        Shown("waiting", "waiting"),
        Shown("succeeded", "succeeded"),
        Shown("failed", "failed"),
        Shown("cancelled", "cancelled", 110),
        Shown("expired", "expired", 120),
        Shown("retried", "retried", 110),
        Shown("created_at", "created", 100),
        Shown("took", "took", 120),
    ),
    "task": (
        Shown("attempt", "try"),
        Shown("state", "state"),
        Shown("queued_at", "queued"),
        Shown("started_at", "started", 100),
        Shown("finished_at", "finished"),
        Shown("wait", "waited"),
        Shown("run", "ran"),
        Shown("worker", "worker", 0, 24),
        Shown("note", "error", 100),
    ),
}
STYLES = {
    "succeeded": "green",
    "failed": "red",
    "retried": "magenta",
    "recovered": "yellow",
    "cancelled": "yellow",
    "expired": "yellow",
    "running": "green",
    "busy": "green",
    "silent": "red",
    "paused": "yellow",
}


# -- for scripts ---------------------------------------------------------------------------------


def fields(listing: Listing) -> list[str]:
    """Return the names of a listing's fields for scripts: spans are in seconds and say so."""
    return [f"{name}_s" if kind == "span" else name for name, kind in listing.columns]


def plain_row(listing: Listing, record: Any) -> list[Any]:
    """Return a record's values for scripts: times as ISO 8601, spans in seconds."""
    values = []
    for (_, kind), value in zip(listing.columns, listing.row(record), strict=True):
        if value is not None and kind == "time":
            value = iso(value)
        elif value is not None and kind == "span":
            value = round(value / 1000, 6)
        values.append(value)
    return values


def plain(listing: Listing, records: Iterable[Any]) -> list[dict[str, Any]]:
    """Return records as mappings for JSON."""
    names = fields(listing)
    return [dict(zip(names, plain_row(listing, r), strict=True)) for r in records]


def facts_of_stats(values: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of ``stats_of`` for JSON."""
    facts = {**values, "as_of": iso(values["as_of_ms"])}
    del facts["as_of_ms"]
    return facts


def facts_of_task(task: TaskHistory) -> dict[str, Any]:
    """Return all that is known of a task, for JSON."""
    facts = ("name", "state", "why", "attempt", "worker", "payload", "result", "headers")
    errors = ("error_type", "error", "traceback")
    return (
        {"task_id": task.id}
        | {name: getattr(task, name) for name in facts + errors}
        | {"attempts": plain(columns.ATTEMPTS, task.attempts())}
    )


def write_json(value: Any, out: TextIO | None = None) -> None:
    """A value as JSON in ASCII: text cannot drive the terminal it may be printed to."""
    print(json.dumps(value, indent=2), file=out or sys.stdout)


def write_csv(
    names: Sequence[str], rows: Iterable[Sequence[Any]], out: TextIO | None = None
) -> None:
    """Rows as CSV with a heading; what is not known is empty."""
    out = out or sys.stdout
    visible = clean if out.isatty() else None
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = ["" if value is None else value for value in row]
        if visible:
            cells = [visible(c, len(c)) if isinstance(c, str) else c for c in cells]
        writer.writerow(cells)


# -- for people ----------------------------------------------------------------------------------


def console(what: str = "tables", **options: Any) -> Any:
    """Return standard output for ``what``; raises ImportError without rich."""
    rich_console = require("rich.console", "cli", what)
    found = rich_console.Console(highlight=False, **options)
    found.on_broken_pipe = _raise_it  # rich would end the process with 1
    return found


def _raise_it() -> None:
    """Raise the BrokenPipeError that is being handled, for ``written`` to see."""
    raise


def human(kind: str, value: Any, now_ms: float) -> str:
    """Return one value to read, on one line."""
    if value is None:
        return "–"
    if kind == "time":
        day = 86_400_000
        today = int(value) // day == int(now_ms) // day
        return clock(value) if today else iso(value)[:16].replace("T", " ")
    if kind == "span":
        return f"{duration(-value)} late" if value < 0 else duration(value)
    if kind == "bytes":
        return in_words(value)
    if kind == "share":
        return f"{value:.0%}"
    if kind in ("count", "number", "real"):
        return {"count": f"{value:,}", "real": f"{value:g}"}.get(kind, str(value))
    return clean(one_line(str(value)), 400) or "–"


def table(name: str, listing: Listing, records: Sequence[Any], out: Any, now_ms: float) -> Any:
    """Return a rich table of records that fits the console."""
    box = require("rich.box", "cli", "tables")
    text = require("rich.text", "cli", "tables")
    tables = require("rich.table", "cli", "tables")
    kinds = dict(listing.columns)
    places = {column: i for i, (column, _) in enumerate(listing.columns)}
    shown = [column for column in TABLES[name] if out.width >= column.from_width]
    found = tables.Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in shown:
        kind = kinds[column.name]
        right = kind in ("count", "number", "real", "span", "bytes", "share")
        # What is fixed in width keeps it; text gives way, with an ellipsis and on one line.
        fixed = right or kind in ("time", "state") or column.name in ("task_id", "example_id")
        found.add_column(
            column.heading,
            justify="right" if right else "left",
            no_wrap=fixed,
            overflow="ellipsis",
            max_width=column.widest,
            min_width=None if fixed else min(5, len(column.heading)),
        )
    for record in records:
        row = listing.row(record)
        cells = []
        for column in shown:
            kind = kinds[column.name]
            value = row[places[column.name]]
            if value and column.name in ("name", "task"):
                value = title(value)
            words = human(kind, value, now_ms)
            if kind == "state" and value:
                words = f"{look(value).glyph} {words}"
            style = STYLES.get(str(value), "") if column.name == "state" else ""
            cells.append(text.Text(words, style=style, no_wrap=True, overflow="ellipsis"))
        found.add_row(*cells)
    return found
