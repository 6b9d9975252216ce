"""One refresh of a dashboard as plain frozen records: what a queue looks like right now.

Read by dashboards, the command line and the metrics; made by TaskMonitor.tick. It needs no pandas
and never talks to a server. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..display.text import plural
from ..protocol.commands import Commands, Snapshot, WorkerRow

SETTLED_STATES = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Event:
    """The end of one attempt, as the history keeps it.

    ``entry`` is the event's place in the history (give the newest to the next tick);
    ``queued_ms`` is when this attempt became ready (None: it never did, a delayed task that was
    cancelled); ``run_ms`` is how long the handler ran (None: nobody knows, its worker died, or it
    never ran); ``note`` is the type of the error, or empty.
    """

    entry: str
    id: str
    name: str
    state: str
    worker: str
    attempt: int
    finished_ms: int
    queued_ms: int | None
    run_ms: float | None
    note: str

    @property
    def started_ms(self) -> float | None:
        """When the handler started; None when that is not known."""
        return None if self.run_ms is None else self.finished_ms - self.run_ms

    @property
    def wait_ms(self) -> float | None:
        """How long the attempt was ready before its handler started; None when not known."""
        if self.run_ms is None or self.queued_ms is None:
            return None
        return max(0.0, self.finished_ms - self.run_ms - self.queued_ms)


@dataclass(frozen=True, slots=True)
class Running:
    """A task in a worker's hands since ``since_ms``.

    ``started`` says that the worker's last heartbeat (one every third of a lease) listed it as
    being run; otherwise it was handed over and has started since, or starts within moments.
    ``preview`` is the start of the payload's JSON.
    """

    entry: str
    id: str
    name: str
    worker: str
    attempt: int
    recovered: int
    since_ms: int
    started: bool
    preview: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A failed task that is kept: its last error, and the start of its payload's JSON."""

    id: str
    name: str
    died_ms: int
    attempt: int
    worker: str
    run_ms: float | None
    error_type: str
    error: str
    traceback: str
    preview: str


@dataclass(frozen=True, slots=True)
class BatchRow:
    """The counters of one batch; ``finished_ms`` is None while it runs."""

    id: str
    name: str
    total: int
    succeeded: int
    failed: int
    cancelled: int
    retried: int
    created_ms: int
    finished_ms: int | None

    @property
    def settled(self) -> int:
        """How many of its tasks have come to their end."""
        return self.succeeded + self.failed + self.cancelled

    @property
    def state(self) -> str:
        """running or finished."""
        return "running" if self.finished_ms is None else "finished"

    @property
    def waiting(self) -> int:
        """How many of its tasks wait or run."""
        return max(0, self.total - self.settled)


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
    first.
    """

    snapshot: Snapshot
    events: tuple[Event, ...]
    missed: bool
    cursor: str
    running: tuple[Running, ...]
    dead: tuple[DeadLetter, ...]
    batches: tuple[BatchRow, ...] = field(default=())

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
        alive = (w for w in self.snapshot.workers if w.deadline_ms >= self.snapshot.now_ms)
        return tuple(sorted(alive, key=lambda w: w.consumer))

    @property
    def silent(self) -> tuple[WorkerRow, ...]:
        """Workers past their deadline that nobody has recovered yet, by name."""
        dead = (w for w in self.snapshot.workers if w.deadline_ms < self.snapshot.now_ms)
        return tuple(sorted(dead, key=lambda w: w.consumer))

    @property
    def slots(self) -> int:
        """How many threads the living workers have."""
        return sum(slots_of(worker) for worker in self.workers)

    @property
    def running_count(self) -> int:
        """How many tasks are being run, as far as anyone knows: see ``running_of``."""
        return running_count(self.snapshot)

    @property
    def waiting(self) -> int:
        """Tasks that are ready and unread: the length of the queue."""
        return self.snapshot.ready

    def count(self, state: str) -> int:
        """How many attempts ended in a state since the queue began."""
        return self.snapshot.counters.get(state, 0)

    def running_on(self, consumer: str) -> tuple[Running, ...]:
        """What one worker holds, oldest first."""
        return tuple(task for task in self.running if task.worker == consumer)

    def since(self, earlier: Tick) -> Rates:
        """What happened between an earlier tick and this one, from the counters: exact however
        much it was, save that replayed dead letters count as added."""
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
        tick alone; over less than a minute where they reach back less far. For a tick without
        ``after``."""
        since = self.now_ms - 60_000
        if self.missed and self.events and self.events[0].finished_ms > since:
            since = self.events[0].finished_ms
        settled = sum(
            event.finished_ms >= since and event.state in ("succeeded", "failed")
            for event in self.events
        )
        return settled * 1000 / max(self.now_ms - since, 1)

    @property
    def health(self) -> tuple[str, str]:
        """A word (ok, idle, paused, warning, bad) and one sentence that says why."""
        return health(self.snapshot)


def slots_of(worker: WorkerRow) -> int:
    """A worker's threads."""
    return int_or_none(worker.details.get("threads", "")) or 0


def running_of(worker: WorkerRow) -> int:
    """How many tasks a worker runs: those its heartbeat listed, or as many of those it holds as it
    has threads (a worker holds few that it has not started)."""
    listed = len(worker.details.get("running", "").split())
    return max(min(listed, worker.pending), min(slots_of(worker), worker.pending))


def running_count(snapshot: Snapshot) -> int:
    """How many tasks the living workers run."""
    alive = (w for w in snapshot.workers if w.deadline_ms >= snapshot.now_ms)
    return sum(running_of(worker) for worker in alive)


def health(snapshot: Snapshot) -> tuple[str, str]:
    """A word (ok, idle, paused, warning, bad) and one sentence that says why."""
    alive = [w for w in snapshot.workers if w.deadline_ms >= snapshot.now_ms]
    silent = len(snapshot.workers) - len(alive)
    work = snapshot.ready + snapshot.pending
    if (work or snapshot.delayed) and not alive:
        waiting = plural(work + snapshot.delayed, "task")
        verb = "waits" if work + snapshot.delayed == 1 else "wait"
        return "bad", f"no worker runs and {waiting} {verb}: redistq worker your.module --queue …"
    if silent:
        return (
            "warning",
            f"{plural(silent, 'worker')} silent; what they ran is recovered in a moment",
        )
    if snapshot.paused:
        return "paused", "the queue is paused: nothing is started until it is resumed"
    late_ms = 0 if snapshot.next_due_ms is None else snapshot.now_ms - snapshot.next_due_ms
    if late_ms > 10_000:
        return "warning", f"a delayed task is {late_ms / 1000:,.0f} s late: no scheduler runs"
    if not work and not snapshot.delayed:
        return "idle", "nothing waits and nothing runs"
    running = plural(running_count(snapshot), "task")
    return "ok", f"{plural(len(alive), 'worker')}, {running} running"


def _seen(tick: Tick) -> int:
    shot = tick.snapshot
    settled = sum(tick.count(state) for state in SETTLED_STATES)
    return shot.ready + shot.pending + shot.delayed + settled


# -- reading what tick.lua answers ---------------------------------------------------------------


def read_tick(
    reply: list[Any],
    after: str,
    limit: int,
    held: Mapping[str, Running],
    known: Mapping[tuple[str, int], DeadLetter],
) -> Tick:
    """The answer of ``Calls.tick``; ``held`` and ``known`` are what was not sent again."""
    figures, events, running, dead, batches = reply
    snapshot = Commands.read_snapshot(figures)
    read = tuple(read_event(entry, flat) for entry, flat in reversed(events))
    letters = []
    for raw_id, raw_died, flat in dead:
        task_id, died = text_of(raw_id), int(float(raw_died))
        found = known.get((task_id, died)) if not flat else None
        letters.append(found or read_dead(task_id, died, fields_of(flat)))
    return Tick(
        snapshot=snapshot,
        events=read,
        missed=len(read) >= limit,
        cursor=read[-1].entry if read else after or "0-0",
        running=tuple(_read_running(row, snapshot.now_ms, held) for row in running),
        dead=tuple(letters),
        batches=tuple(read_batch(text_of(row[0]), fields_of(row[1])) for row in batches),
    )


def read_event(entry: bytes, flat: list[bytes]) -> Event:
    """One entry of the history."""
    fields = fields_of(flat)
    finished = int(entry.split(b"-", 1)[0])
    return Event(
        entry=entry.decode(),
        id=fields.get("id", ""),
        name=fields.get("name", ""),
        state=fields.get("state", ""),
        worker=fields.get("worker", ""),
        attempt=int_or_none(fields.get("attempt", "")) or 1,
        finished_ms=finished,
        queued_ms=int_or_none(fields.get("queued_ms", "")),
        run_ms=float_or_none(fields.get("run_ms", "")),
        note=fields.get("note", ""),
    )


def _read_running(row: list[Any], now_ms: int, held: Mapping[str, Running]) -> Running:
    entry, worker, idle, started, task_id, name, attempt, recovered, preview = row
    before = held.get(text_of(entry))
    if before is not None and not task_id:
        # An entry never changes; only who holds it, and for how long, is new.
        return replace(
            before, worker=text_of(worker), since_ms=now_ms - int(idle), started=bool(started)
        )
    return Running(
        entry=text_of(entry),
        id=text_of(task_id),
        name=text_of(name),
        worker=text_of(worker),
        attempt=int_or_none(text_of(attempt)) or 1,
        recovered=int_or_none(text_of(recovered)) or 0,
        since_ms=now_ms - int(idle),
        started=bool(started),
        preview=preview_of(preview),
    )


def read_dead(task_id: str, died_ms: int, fields: Mapping[str, str]) -> DeadLetter:
    """A failed task's record; one that has expired gives an empty letter."""
    error = read_error(fields.get("error", ""))
    return DeadLetter(
        id=task_id,
        name=fields.get("name", ""),
        died_ms=died_ms,
        attempt=int_or_none(fields.get("attempt", "")) or 1,
        worker=fields.get("worker", ""),
        run_ms=float_or_none(fields.get("run_ms", "")),
        error_type=error["type"],
        error=error["message"],
        traceback=error["traceback"],
        preview=preview_of(fields.get("payload", "")),
    )


def read_batch(batch_id: str, fields: Mapping[str, str]) -> BatchRow:
    """A batch's record; one that has expired gives zeros."""

    def count(name: str) -> int:
        return int_or_none(fields.get(name, "")) or 0

    return BatchRow(
        id=batch_id,
        name=fields.get("name", ""),
        total=count("total"),
        succeeded=count("succeeded"),
        failed=count("failed"),
        cancelled=count("cancelled"),
        retried=count("retried"),
        created_ms=count("created_ms"),
        finished_ms=int_or_none(fields.get("finished_ms", "")),
    )


def read_error(text: str) -> dict[str, str]:
    """An error's type, message and traceback; text that is no error is its own message."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {"message": text}
    if not isinstance(found, dict):
        found = {"message": text}
    return {key: str(found.get(key, "")) for key in ("type", "message", "traceback")}


def preview_of(payload: bytes | str) -> str:
    """The start of a payload as text; a packet (see pickling.py) is only named as one."""
    text = text_of(payload)
    return "(a pickled call)" if text.startswith("\0rq") else text[:200]


def text_of(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def fields_of(flat: list[Any]) -> dict[str, str]:
    text = [text_of(item) for item in flat]
    return dict(zip(text[::2], text[1::2], strict=False))


def int_or_none(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
