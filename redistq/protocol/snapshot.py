"""Snapshot: every figure of one queue at one instant, and how it is read from the server's answer.

Used by monitors, producers and all that says why nothing comes. Never talks to a server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker in a snapshot; ``details`` is what it registered, as text."""

    consumer: str
    deadline_ms: int
    pending: int
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every figure of one queue at one instant, times in ms of the server's clock.

    ``ready + pending + delayed + waiting`` is all that waits or runs; ``waiting`` are the tasks of
    all priorities of the queue that may not run yet. ``oldest_ms``, ``next_due_ms`` and
    ``waiting_since_ms`` are None when nothing is unread, delayed or waiting; ``next_timer_ms`` is
    when the next timer of the queue is due. ``counters`` holds totals since the queue began.
    """

    now_ms: int
    ready: int
    pending: int
    delayed: int
    next_due_ms: int | None
    dead: int
    oldest_ms: int | None
    group: str
    lease_ms: int | None
    paused: bool
    history: int
    workers_total: int
    counters: dict[str, int]
    workers: list[WorkerRow] = field(default_factory=list)
    waiting: int = 0
    waiting_since_ms: int | None = None
    next_timer_ms: int | None = None


def read_snapshot(reply: list[Any]) -> Snapshot:
    """Return the answer of ``snapshot``."""
    raw = {reply[i].decode(): reply[i + 1] for i in range(0, len(reply), 2)}
    counters = _pairs(raw["counters"])
    return Snapshot(
        now_ms=raw["now_ms"],
        ready=max(raw["length"] - raw["pending"], 0),
        pending=raw["pending"],
        delayed=raw["delayed"],
        next_due_ms=None if raw["next_due_ms"] < 0 else raw["next_due_ms"],
        dead=raw["dead"],
        oldest_ms=None if raw["oldest_ms"] < 0 else raw["oldest_ms"],
        group=raw["group"].decode(),
        lease_ms=None if raw["lease_ms"] < 0 else raw["lease_ms"],
        paused=bool(raw["paused"]),
        history=raw["history"],
        workers_total=raw["workers_total"],
        counters={name: int(value) for name, value in counters.items()},
        workers=[
            WorkerRow(row[0].decode(), row[1], row[2], _pairs(row[3])) for row in raw["workers"]
        ],
        waiting=raw["waiting"],
        waiting_since_ms=None if raw["waiting_since_ms"] < 0 else raw["waiting_since_ms"],
        next_timer_ms=None if raw["next_timer_ms"] < 0 else raw["next_timer_ms"],
    )


def _pairs(flat: list[bytes]) -> dict[str, str]:
    text = [item.decode("utf-8", "replace") for item in flat]
    return dict(zip(text[::2], text[1::2], strict=True))
