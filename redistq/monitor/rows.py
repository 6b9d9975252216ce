"""What a queue holds as plain frozen records, and how each is read from the server's answers.

Used by the monitor, the dashboards and the command line. It needs no pandas and never talks to a
server. Times are milliseconds of the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..protocol.envelope import described
from ..protocol.progress import Progress, read_progress

SEALED = "(sealed)"
"""The type of an error that cannot be read here."""


@dataclass(frozen=True, slots=True)
class Event:
    """The end of one attempt, as the history keeps it.

    ``entry`` is the event's place in the history (give the newest to the next tick);
    ``queued_ms`` is when this attempt became ready (None: it never did, a delayed task that was
    cancelled); ``run_ms`` is how long the handler ran (None: not known, its worker died, or it
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
    ``preview`` is the start of the payload's JSON, ``progress`` how far it is, as its handler says
    it (None: it says nothing).
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
    progress: Progress | None = None


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
    expired: int = 0
    dependants: bool = False
    """Whether tasks depend on its end."""
    version: int = 1
    """The newest version of its function; the first is 1."""

    @property
    def settled(self) -> int:
        """How many of its tasks have come to their end."""
        return self.succeeded + self.failed + self.cancelled + self.expired

    @property
    def state(self) -> str:
        """running or finished."""
        return "running" if self.finished_ms is None else "finished"

    @property
    def waiting(self) -> int:
        """How many of its tasks wait or run."""
        return max(0, self.total - self.settled)

    @property
    def took_ms(self) -> int | None:
        """How long it took; None while it runs."""
        return None if self.finished_ms is None else self.finished_ms - self.created_ms


@dataclass(frozen=True, slots=True)
class PendingRow:
    """A task in a worker's hands: ``since_ms`` is when it was handed over, ``progress`` how far it
    is, as its handler says it."""

    entry: str
    id: str
    name: str
    worker: str
    attempt: int
    recovered: int
    queued_ms: int
    since_ms: int
    held_ms: int
    deliveries: int
    preview: str
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class DelayedRow:
    """A task that waits for its time. ``reason`` is delay, retry, snooze, sleep, event (its name is
    ``event``) or unknown (no worker here has a handler for it); ``due_in_ms`` is negative when it
    is late."""

    id: str
    name: str
    due_ms: int
    due_in_ms: int
    reason: str
    event: str
    attempt: int
    recovered: int
    error_type: str
    preview: str


@dataclass(frozen=True, slots=True)
class ConsumerRow:
    """A consumer as the server lists it; ``inactive_ms`` is None when the server does not say.
    ``alive`` says whether its worker's heartbeat is in time (None: no worker goes by this name)."""

    name: str
    pending: int
    idle_ms: int
    inactive_ms: int | None
    alive: bool | None

    @property
    def state(self) -> str:
        """alive, silent or unknown."""
        return {True: "alive", False: "silent", None: "unknown"}[self.alive]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process. ``state`` is busy, idle, paused, or silent (its deadline has passed).

    ``rss`` are the bytes of memory it has, ``cpu`` the share of one core it used (1.0: all of it)
    and ``memory_limit`` the bytes its container may have; each None where that is not known."""

    name: str
    host: str
    pid: int | None
    state: str
    threads: int
    pending: int
    running: int
    task: str
    task_id: str
    task_since_ms: int | None
    started_ms: int | None
    deadline_ms: int
    python: str
    version: str
    group: str
    names: tuple[str, ...]
    rss: int | None = None
    cpu: float | None = None
    memory_limit: int | None = None


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Dead letters of one task name that died of one type of error; ``error`` is the newest."""

    error_type: str
    name: str
    count: int
    first_ms: int
    last_ms: int
    example_id: str
    error: str


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


@dataclass(frozen=True, slots=True)
class TaskHistory:
    """All that is known of one task: its attempts that ended, oldest first, and how it stands.

    ``state`` is waiting, delayed, queued, running, succeeded, failed, cancelled, expired, or
    settled (its record has expired and the history tells no end). ``why`` says in words what it
    waits for, or why it was cancelled or expired. Payload and result are the start of their JSON.
    """

    id: str
    name: str
    state: str
    attempt: int
    worker: str
    since_ms: int | None
    finished_ms: int | None
    payload: str
    result: str
    error_type: str
    error: str
    traceback: str
    events: tuple[Event, ...]
    why: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What travels with it, by name; where its options are still there."""
    output: tuple[str, ...] = ()
    """The last lines that a function call printed before it failed."""

    def attempts(self) -> list[Attempt]:
        """Return its attempts, oldest first; where the last is not its end, one more says how it
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
            for e in self.events
        ]
        if not found or found[-1].state != self.state:
            found.append(
                Attempt(
                    attempt=self.attempt,
                    state=self.state,
                    queued_ms=self.since_ms,
                    started_ms=None,
                    finished_ms=self.finished_ms,
                    wait_ms=None,
                    run_ms=None,
                    worker=self.worker,
                    note=self.error_type or self.why,
                )
            )
        return found


# -- reading them --------------------------------------------------------------------------------


def read_event(entry: bytes, flat: list[bytes]) -> Event:
    """Return one entry of the history."""
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


def read_running(row: list[Any], now_ms: int, held: Mapping[str, Running]) -> Running:
    entry, worker, idle, started, task_id, name, attempt, recovered, preview, said = row
    since_ms = now_ms - int(idle)
    progress = progress_since(said, since_ms)
    before = held.get(text_of(entry))
    if before is not None and not task_id:
        # An entry never changes; only its holder, and for how long it has it, are new.
        return replace(
            before,
            worker=text_of(worker),
            since_ms=since_ms,
            started=bool(started),
            progress=progress,
        )
    return Running(
        entry=text_of(entry),
        id=text_of(task_id),
        name=text_of(name),
        worker=text_of(worker),
        attempt=int_or_none(text_of(attempt)) or 1,
        recovered=int_or_none(text_of(recovered)) or 0,
        since_ms=since_ms,
        started=bool(started),
        preview=preview_of(preview),
        progress=progress,
    )


def progress_since(raw: bytes | str, since_ms: int) -> Progress | None:
    """Return how far a task is that is in a worker's hands since then; what was said before is of
    an attempt that has ended."""
    found = read_progress(raw)
    return found if found is not None and found.at * 1000 >= since_ms - 1 else None


def read_dead(task_id: str, died_ms: int, fields: Mapping[str, str]) -> DeadLetter:
    """Return a failed task's record; one that has expired gives an empty letter."""
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
    """Return a batch's record; one that has expired gives zeros."""

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
        expired=count("expired"),
        dependants=fields.get("dependants", "") == "1",
        version=int_or_none(fields.get("version", "")) or 1,
    )


def read_error(text: str) -> dict[str, str]:
    """Return an error's type, message and traceback; text that is no error is its own message; one
    that a codec sealed is only named as such."""
    if sealed := described(text):
        return {"type": SEALED, "message": sealed, "traceback": ""}
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {"message": text}
    if not isinstance(found, dict):
        found = {"message": text}
    return {key: str(found.get(key, "")) for key in ("type", "message", "traceback")}


def read_output(text: str) -> tuple[str, ...]:
    """Return the last lines that the report of an error keeps of what was printed; () for none."""
    try:
        lines = json.loads(text).get("output", ()) if text else ()
    except (ValueError, AttributeError):
        return ()
    return tuple(map(str, lines)) if isinstance(lines, list) else ()


def preview_of(payload: bytes | str) -> str:
    """Return the start of a payload as text; a packet (see signing.py), and what a codec sealed, is
    only named as one."""
    text = text_of(payload)
    if text.startswith("\0rq"):
        return described(text) or "(a pickled call)"
    return text[:200]


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
