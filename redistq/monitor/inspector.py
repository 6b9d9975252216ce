"""Lists what a queue holds as plain frozen records: for scripts, the command line and frames.

Made by TaskMonitor. It needs no pandas, and its cost is that of the rows listed, whatever the
queue's length. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..codecs.sealing import Kind, Seal, seal_of
from ..connection.broker import Broker
from ..connection.redis_py import ServerError
from ..errors import (
    ConfigurationError,
    GroupMissing,
    UnknownBatch,
    UnknownTask,
    Unreadable,
    UntrustedPayload,
)
from ..producer.shape import SUMMARY, read_summary
from ..protocol.commands import MAX_TASKS, Commands, Watched
from ..protocol.envelope import is_envelope
from ..protocol.headers import headers_of
from ..protocol.keys import ENDED
from ..protocol.limits import states_of
from ..protocol.options import gate_of
from ..protocol.plain_commands import read_time
from ..protocol.steps import awaited_event, why_put_off
from ..protocol.waits import most_waiting_first, read_why
from .agenda import ScheduleRow
from .failures import groups_of
from .rows import (
    BatchRow,
    ConsumerRow,
    DeadLetter,
    DelayedRow,
    Event,
    FailureGroup,
    PendingRow,
    TaskHistory,
    fields_of,
    int_or_none,
    preview_of,
    progress_since,
    read_batch,
    read_dead,
    read_error,
    read_event,
    read_output,
    text_of,
)
from .schedules import read_rows
from .waits import GraphRow, LimitRow, WaitingRow, read_waiting

FACTS_PAGE = 1000
"""Facts about limit keys that are read at a time."""
EVENTS_PAGE = 1000
EVENTS_MAX = 100_000
"""Most events read for one answer; the history holds about 10,000 unless workers say otherwise."""


class Inspector:
    """Lists what one queue holds; every method is a few calls that only read."""

    def __init__(self, broker: Broker, commands: Commands, seal: Seal | None = None) -> None:
        """``seal`` opens what a codec has sealed."""
        self._seal = seal or seal_of(None, commands.keys.stream)
        self._broker = broker
        self._commands = commands

    def events(
        self, n: int | None = 100, *, since_ms: int | None = None, until_ms: int | None = None
    ) -> list[Event]:
        """Return ends of attempts, newest first: at most ``n`` (None: all that is kept)."""
        most = EVENTS_MAX if n is None else _count(n)
        found: list[Event] = []
        end = "+" if until_ms is None else str(until_ms)
        start = "-" if since_ms is None else str(max(since_ms, 0))
        while len(found) < most:
            count = min(EVENTS_PAGE, most - len(found))
            page = self._broker.call(self._commands.history_page(end, start, count))
            found += [read_event(entry, flat) for entry, flat in page]
            if len(page) < count:
                break
            end = "(" + found[-1].entry
        return found

    def pending(self, n: int = 100) -> list[PendingRow]:
        """Return tasks handed to workers and not settled, oldest first."""
        found = []
        for now_ms, row in self._pages("pending", n):
            entry, worker, idle, deliveries, task_id, name, attempt, recovered, payload = row[:9]
            since_ms = now_ms - int(idle)
            found.append(
                PendingRow(
                    entry=text_of(entry),
                    id=text_of(task_id),
                    name=text_of(name),
                    worker=text_of(worker),
                    attempt=int_or_none(text_of(attempt)) or 1,
                    recovered=int_or_none(text_of(recovered)) or 0,
                    queued_ms=int(entry.split(b"-", 1)[0]),
                    since_ms=since_ms,
                    held_ms=int(idle),
                    deliveries=int(deliveries),
                    preview=preview_of(payload),
                    progress=progress_since(row[9], since_ms),
                )
            )
        return found

    def delayed(self, n: int = 100) -> list[DelayedRow]:
        """Return tasks that wait for their time, the next due first."""
        found = []
        for now_ms, row in self._pages("delayed", n, full=False):
            fields = fields_of(row[2])
            due = int(float(row[1]))
            found.append(
                DelayedRow(
                    id=text_of(row[0]),
                    name=fields.get("name", ""),
                    due_ms=due,
                    due_in_ms=due - now_ms,
                    reason=fields.get("reason", ""),
                    event=awaited_event(fields.get("reason", ""), fields.get("awaits", "")),
                    attempt=int_or_none(fields.get("attempt", "")) or 1,
                    recovered=int_or_none(fields.get("recovered", "")) or 0,
                    error_type=read_error(fields.get("error", ""))["type"],
                    preview=preview_of(fields.get("payload", "")),
                )
            )
        return found

    def waiting(self, n: int = 100) -> list[WaitingRow]:
        """Return tasks of all priorities that may not run yet, those first that wait longest."""
        return [
            read_waiting(text_of(row[0]), int(float(row[1])), now_ms, fields_of(row[2]))
            for now_ms, row in self._pages("waiting", n, full=False)
        ]

    def limits(self, n: int | None = None) -> list[LimitRow]:
        """Return limit keys, those first under which most tasks wait; at most ``n`` (None: all).

        All are read, page after page, whatever ``n`` is: of ten thousand keys in some ten calls a
        thousand keys. Between two calls the queue goes on.
        """
        facts: dict[str, str] = {}
        cursor = "0"
        while True:
            raw, flat = self._broker.call(self._commands.limits_page(cursor, FACTS_PAGE))
            facts.update(fields_of(flat))
            cursor = text_of(raw)
            if cursor == "0":
                break
        now_ms = read_time(self._broker.call(self._commands.time))
        states = most_waiting_first(states_of(facts).values())
        return [LimitRow(state, now_ms) for state in states[: n and _count(n)]]

    def schedules(self, n: int | None = None) -> list[ScheduleRow]:
        """Return the schedules of the queue, of all its priorities, the next first, paused ones
        last; at most ``n`` (None: all)."""
        return read_rows(self._broker, self._commands, n and _count(n))

    def dead(self, n: int = 100, *, full: bool = True) -> list[DeadLetter]:
        """Return failed tasks that are kept, newest first; without ``full``, no tracebacks."""
        return [
            read_dead(text_of(row[0]), int(float(row[1])), fields_of(row[2]))
            for _, row in self._pages("dead", n, full=full)
        ]

    def failures(self, n: int = 1000) -> list[FailureGroup]:
        """Return the newest ``n`` dead letters by error and task, the most frequent first."""
        return [group for group, _ in groups_of(self.dead(n, full=False))]

    def consumers(self) -> list[ConsumerRow]:
        """Return consumers of the group as the server lists them, by name; none without a group."""
        try:
            reply = self._broker.call(self._commands.consumers())
        except GroupMissing:
            return []
        except ServerError as error:
            if "no such key" in str(error):
                return []
            raise
        snapshot = Commands.read_snapshot(self._broker.call(self._commands.snapshot(1000)))
        alive = {w.consumer: w.deadline_ms >= snapshot.now_ms for w in snapshot.workers}
        found = []
        for flat in reply:
            row: dict[str, Any] = {text_of(flat[i]): flat[i + 1] for i in range(0, len(flat), 2)}
            name = text_of(row["name"])
            inactive = row.get("inactive", -1)
            found.append(
                ConsumerRow(
                    name=name,
                    pending=int(row["pending"]),
                    idle_ms=int(row["idle"]),
                    inactive_ms=None if inactive < 0 else int(inactive),
                    alive=alive.get(name),
                )
            )
        return sorted(found, key=lambda c: c.name)

    def batches(self, n: int = 100) -> list[BatchRow]:
        """Return batches, newest first."""
        ids = [text_of(raw) for raw in self._broker.call(self._commands.newest_batches(_count(n)))]
        records = self._broker.call_many([self._commands.batch_record(id) for id in ids])
        return [read_batch(id, fields_of(flat)) for id, flat in zip(ids, records, strict=True)]

    def batch(self, batch_id: str) -> BatchRow:
        """Return one batch. Raises UnknownBatch."""
        flat = self._broker.call(self._commands.batch_record(batch_id))
        if not flat:
            raise UnknownBatch(batch_id)
        return read_batch(batch_id, fields_of(flat))

    def graphs(self, n: int = 100) -> list[GraphRow]:
        """Return the graphs among the newest ``n`` batches, and those on whose end others depend,
        newest first."""
        rows = self.batches(n)
        shapes = self._broker.call_many([self._commands.shape(row.id, (SUMMARY,)) for row in rows])
        found = [GraphRow(row, _layers(raw[0])) for row, raw in zip(rows, shapes, strict=True)]
        return [row for row in found if row.layers is not None or row.batch.dependants]

    def layers(self, batch_id: str) -> int | None:
        """Return how many layers a graph has; None for a batch that is no graph."""
        return _layers(self._broker.call(self._commands.shape(batch_id, (SUMMARY,)))[0])

    def log(self, task_id: str) -> list[str]:
        """Return the lines that a task has printed, as far as they are kept."""
        rows = self._broker.call(self._commands.log_lines(task_id))
        return [text_of(fields[3]) for _, fields in rows if len(fields) > 3]

    def task(self, task_id: str) -> TaskHistory:
        """Return all that is known of one task. Raises UnknownTask when that is nothing."""
        watched = Commands.read_watch(self._broker.call(self._commands.watch(task_id)))
        events = [
            read_event(row[0], row[1])
            for _, row in self._pages("history", EVENTS_MAX, task_id=task_id)
        ][::-1]
        if any(is_envelope(watched.record.get(name, b"")) for name in _SEALED):
            watched = self._opened(task_id, watched)
        record = {name: text_of(value) for name, value in watched.record.items()}
        if watched.state == "unknown" and not events:
            raise UnknownTask(task_id)
        if watched.state in ("queued", "running"):
            # The record of a task in the stream names nothing but its entry.
            for _, flat in self._broker.call(self._commands.entry(record["entry"])):
                fields = {"name": "", "payload": "", "attempt": ""} | fields_of(flat)
                raw = dict(zip(flat[::2], flat[1::2], strict=False))
                if is_envelope(raw.get(b"payload", b"")):
                    named = {text_of(name): value for name, value in raw.items()}
                    opened = self._opened(task_id, replace(watched, record=named))
                    fields["payload"] = text_of(opened.record["payload"])
                record |= fields
        why = ""
        if watched.state == "waiting":
            why = read_why(self._broker.call(self._commands.why(task_id))).words()
        elif watched.state in ("cancelled", "expired"):
            why = record.get("reason", "")
        elif watched.state == "delayed":
            why = why_put_off(watched.record)
        return _history_of(task_id, watched, record, events, why)

    def _opened(self, task_id: str, watched: Watched) -> Watched:
        """Return a record with what was sealed as it was before, as far as there is a key."""
        record = dict(watched.record)
        name = text_of(record.get("name", b""))
        for field, kind in _SEALED.items():
            body = record.get(field, b"")
            if not is_envelope(body):
                continue
            with contextlib.suppress(Unreadable, UntrustedPayload):
                if kind is None:
                    gate = gate_of(record.get("opts", b""))
                    record[field] = self._seal.open_payload(task_id, name, body, gate)[0]
                else:
                    record[field] = self._seal.open_of_task(kind, task_id, body)
        return replace(watched, record=record)

    def _pages(
        self, kind: str, n: int, *, full: bool = True, task_id: str = ""
    ) -> Iterator[tuple[int, list[Any]]]:
        """Yield server time and row, page after page, at most ``n`` rows looked at."""
        limit = EVENTS_PAGE if kind == "history" else MAX_TASKS
        left = _count(n)
        start = ""
        while left > 0:
            # Among the delayed are timers, which are passed over: they count for no row.
            page = limit if kind == "delayed" else min(left, limit)
            now_ms, rows, after = self._broker.call(
                self._commands.browse(kind, page, start, full=full, task_id=task_id)
            )
            for row in rows[:left]:
                yield now_ms, row
            if not after:
                return
            left -= len(rows) if kind == "delayed" else limit
            start = text_of(after)


_SEALED: Mapping[str, Kind | None] = {"payload": None, "result": "result", "error": "error"}
"""Fields of a record that a codec may have sealed."""


def _layers(summary: bytes | None) -> int | None:
    """Return how many layers a graph has; None for what is no graph."""
    with contextlib.suppress(ValueError, TypeError):
        return read_summary(summary).layers if summary else None
    return None


def _count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ConfigurationError(f"n is a whole number, at least 1: {n!r}")
    return n


def _since_ms(record: Mapping[str, str], *, waits: bool) -> int | None:
    """Return since when a task waits, is queued or runs; None where it is not known."""
    if waits:  # a place in line is of microseconds
        place = int_or_none(record.get("place", ""))
        return None if place is None else place // 1000
    return int_or_none(record.get("entry", "").split("-")[0])


def _history_of(
    task_id: str, watched: Watched, record: dict[str, str], events: list[Event], why: str
) -> TaskHistory:
    """Return what a task's record and the ends of its attempts, oldest first, say of it."""
    last = events[-1] if events else None
    state = watched.state
    if state == "unknown":
        state = last.state if last is not None and last.state in ENDED else "settled"
    finished_ms = None
    if state in (*ENDED, "settled"):
        finished_ms = int_or_none(record.get("finished_ms", ""))
        if finished_ms is None and last is not None:
            finished_ms = last.finished_ms
    worker = watched.consumer or record.get("worker", "") or (last.worker if last else "")
    error = read_error(record.get("error", ""))
    return TaskHistory(
        id=task_id,
        name=record.get("name") or (last.name if last else ""),
        state=state,
        attempt=int_or_none(record.get("attempt", "")) or (last.attempt if last else 1),
        worker="" if state in ("queued", "delayed", "waiting") else worker,
        since_ms=_since_ms(record, waits=state == "waiting"),
        finished_ms=finished_ms,
        payload=preview_of(record.get("payload", "")),
        result=preview_of(record.get("result", "")),
        error_type=error["type"],
        error=error["message"],
        traceback=error["traceback"],
        events=tuple(events),
        why=why,
        headers=headers_of(record.get("opts", "").encode()),
        output=read_output(record.get("error", "")),
    )
