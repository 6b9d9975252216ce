"""What a test's queue holds: its tasks that have not ended, with their payloads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..functions.written import CALL
from ..handlers import handler_of
from ..monitor.inspector import Inspector
from ..protocol.codec import loads
from ..protocol.commands import MAX_TASKS, Commands
from ..protocol.keys import PRIORITIES
from ..worker.outcome import fields_of

MOST = 10_000
"""Most tasks of each kind that are looked at."""
NEAR = timedelta(seconds=1)
"""How far a due time may be from the one that is asked for: the clock goes on meanwhile."""
SHOWN = 20
"""Most tasks that a message lists."""


class _Anything:
    def __repr__(self) -> str:
        return "ANYTHING"


ANYTHING: Any = _Anything()


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A task that has not ended. ``state`` is ``queued`` (or running), ``delayed`` or ``waiting``
    (for others, for room or for its turn)."""

    id: str
    name: str
    payload: Any
    """As it would be given to the handler; None for a function call."""
    state: str
    priority: str
    attempt: int
    due: datetime | None = None
    """When it may run, where it is delayed."""
    due_in: timedelta | None = None
    reason: str = ""
    """Why it is delayed, or waits."""

    def __str__(self) -> str:
        state = self.state
        if self.due_in is not None:
            state += f", due in {round(self.due_in.total_seconds(), 1):g} s"
        if self.reason not in ("", "delay"):
            state += f" ({self.reason})"
        payload = json.dumps(self.payload, default=repr, ensure_ascii=False)
        return f"{self.name}  {payload:.200}  {state}"


def tasks_in(broker: Broker, lanes: Sequence[Commands]) -> list[Enqueued]:
    """Return the tasks of a queue that have not ended: the ready ones first, then the delayed ones
    by due time, then those that wait."""
    by_priority = dict(zip(PRIORITIES, lanes, strict=True))
    found: list[Enqueued] = []
    for priority, lane in by_priority.items():
        found += _ready(broker, lane, priority)
    delayed: list[Enqueued] = []
    for priority, lane in by_priority.items():
        for row in Inspector(broker, lane).delayed(MOST):
            payload = broker.call(lane.payload(row.id))
            found_due = datetime.fromtimestamp(row.due_ms / 1000, UTC)
            due_in = timedelta(milliseconds=row.due_in_ms)
            delayed.append(
                Enqueued(
                    id=row.id,
                    name=row.name,
                    payload=_read(payload),
                    state="delayed",
                    priority=priority,
                    attempt=row.attempt,
                    due=found_due,
                    due_in=due_in,
                    reason=row.reason,
                )
            )
    found += sorted(delayed, key=lambda task: task.due or datetime.max.replace(tzinfo=UTC))
    for waiting in Inspector(broker, lanes[0]).waiting(MOST):
        lane = by_priority.get(waiting.priority, lanes[0])
        payload = broker.call(lane.payload(waiting.id))
        found.append(
            Enqueued(
                id=waiting.id,
                name=waiting.name,
                payload=_read(payload),
                state="waiting",
                priority=waiting.priority,
                attempt=waiting.attempt,
                reason=f"{waiting.reason} {waiting.under}".strip(),
            )
        )
    return found


def _ready(broker: Broker, lane: Commands, priority: str) -> Iterator[Enqueued]:
    start = "-"
    while page := broker.call(lane.entries(start, "+")):
        for _, flat in page:
            fields = fields_of(flat)
            yield Enqueued(
                id=fields.get(b"id", b"").decode("utf-8", "replace"),
                name=fields.get(b"name", b"").decode("utf-8", "replace"),
                payload=_read(fields.get(b"payload")),
                state="queued",
                priority=priority,
                attempt=int(fields.get(b"attempt", b"1")),
            )
        if len(page) < MAX_TASKS:
            return
        start = "(" + page[-1][0].decode()


def _read(payload: bytes | None) -> Any:
    with contextlib.suppress(ValueError):
        return loads(payload or b"null")
    return None


# -- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a task is to be like."""

    name: str
    payload: Any = ANYTHING
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    delayed: bool | float | timedelta | datetime | None = None

    @classmethod
    def of(cls, task: str | Callable[..., Any], **wanted: Any) -> Wanted:
        """Return it for a task's name, or for a function: one with ``@task``, or one that a client
        submits."""
        if isinstance(task, str):
            return cls(task, **wanted)
        with contextlib.suppress(ConfigurationError):
            return cls(handler_of(task).name, **wanted)
        return cls(f"{CALL}:{getattr(task, '__name__', task)}", **wanted)

    def fits(self, task: Enqueued) -> bool:
        """Return whether a task is like that."""
        if task.name != self.name:
            return False
        if self.payload is not ANYTHING and task.payload != self.payload:
            return False
        call = task.payload if isinstance(task.payload, Mapping) else {}
        if self.args is not None and call.get("args") != list(self.args):
            return False
        if self.kwargs is not None and call.get("kwargs") != dict(self.kwargs):
            return False
        return self._is_due(task)

    def _is_due(self, task: Enqueued) -> bool:
        wanted = self.delayed
        if wanted is None:
            return True
        if isinstance(wanted, bool) or task.due_in is None or task.due is None:
            return wanted == (task.state == "delayed")
        if isinstance(wanted, datetime):
            return abs(task.due - wanted) <= NEAR
        wait = wanted if isinstance(wanted, timedelta) else timedelta(seconds=wanted)
        return abs(task.due_in - wait) <= NEAR

    def __str__(self) -> str:
        said = [self.name]
        for what in ("payload", "args", "kwargs", "delayed"):
            value = getattr(self, what)
            if value is not None and value is not ANYTHING:
                said.append(f"{what}={value!r}")
        return ", ".join(said)


def complaint(wanted: Wanted, fitting: int, count: int | None, tasks: Sequence[Enqueued]) -> str:
    """Return what to say when other tasks are there than wanted."""
    asked = "at least one is wanted" if count is None else f"{count} wanted"
    lines = [f"{fitting} tasks are enqueued as ({wanted}), {asked}."]
    if not tasks:
        lines.append("The queue is empty.")
    else:
        lines.append(f"In the queue ({len(tasks)}):")
        lines += [f"  {task}" for task in tasks[:SHOWN]]
        if len(tasks) > SHOWN:
            lines.append(f"  … and {len(tasks) - SHOWN} more")
    return "\n".join(lines)
