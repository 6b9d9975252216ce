"""What may not run yet, and what holds it up, as plain frozen records.

Used by the inspector, the frames and the command line. It needs no pandas and never talks to
a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..protocol.limits import LimitState
from .rows import BatchRow, int_or_none, preview_of


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """A task that may not run yet.

    ``reason`` is parents, limit, rate, order, share or paused; ``under`` the key under which it
    waits (empty for parents), ``place`` its place in that line (1: the next; None: no line), and
    ``parents`` how many parents have not ended. ``due_ms`` is its own due time, when it has one.
    """

    id: str
    name: str
    priority: str
    reason: str
    under: str
    since_ms: int
    waited_ms: int
    place: int | None
    parents: int | None
    attempt: int
    due_ms: int | None
    preview: str


def read_waiting(task_id: str, since_ms: int, now_ms: int, fields: Mapping[str, str]) -> WaitingRow:
    """Return a waiting task from its row of browse."""
    reason = fields.get("reason", "")
    line = int_or_none(fields.get("line", ""))
    return WaitingRow(
        id=task_id,
        name=fields.get("name", ""),
        priority=fields.get("lane", "").removeprefix("!") or "normal",
        reason=reason,
        under=fields.get("under", ""),
        since_ms=since_ms,
        waited_ms=max(0, now_ms - since_ms),
        place=None if line is None else line + 1,
        parents=int_or_none(fields.get("parents", "")) if reason == "parents" else None,
        attempt=int_or_none(fields.get("attempt", "")) or 1,
        due_ms=int_or_none(fields.get("due", "")),
        preview=preview_of(fields.get("payload", "")),
    )


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A limit key at one instant; ``next_token_in_ms`` is None where no rate holds it up."""

    state: LimitState
    now_ms: int

    @property
    def next_token_in_ms(self) -> float | None:
        """How long until its rate lets the next task go; None: no rate, or at once."""
        at = self.state.next_token_ms
        return None if at is None or at <= self.now_ms else at - self.now_ms


@dataclass(frozen=True, slots=True)
class GraphRow:
    """A graph of tasks, which is a batch, or a batch on whose end others depend (then ``layers`` is
    None): the longest way through it has so many tasks."""

    batch: BatchRow
    layers: int | None
