"""What a test's queue holds: its tasks that have not ended, with their payloads."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..codecs.sealing import Seal
from ..connection.broker import Broker
from ..errors import ConfigurationError, PayloadError, PayloadTooLarge, RedistqError
from ..functions.packing import label
from ..functions.written import CALL
from ..handlers import Handler, handler_of
from ..handlers.call_shape import CallShape
from ..monitor.inspector import Inspector
from ..protocol.codec import encode_payload, loads
from ..protocol.commands import MAX_TASKS, Commands
from ..protocol.keys import PRIORITIES
from ..protocol.options import gate_of
from ..protocol.plain_commands import MAX_BYTES
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
        if self.reason and (self.due_in is None or self.attempt > 1):
            state += f" ({self.reason})"
        payload = json.dumps(self.payload, default=repr, ensure_ascii=False)
        return f"{self.name}  {payload:.200}  {state}"


def tasks_in(broker: Broker, lanes: Sequence[Commands], seal: Seal) -> list[Enqueued]:
    """Return the tasks of a queue that have not ended: the ready ones first, then the delayed ones
    by due time, then those that wait."""
    by_priority = dict(zip(PRIORITIES, lanes, strict=True))
    found: list[Enqueued] = []
    for priority, lane in by_priority.items():
        found += _ready(broker, lane, priority, seal)
    delayed: list[Enqueued] = []
    for priority, lane in by_priority.items():
        for row in Inspector(broker, lane).delayed(MOST):
            payload = _payload(broker, lane, row.id, seal)
            found_due = datetime.fromtimestamp(row.due_ms / 1000, UTC)
            due_in = timedelta(milliseconds=row.due_in_ms)
            delayed.append(
                Enqueued(
                    id=row.id,
                    name=row.name,
                    payload=payload,
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
        payload = _payload(broker, lane, waiting.id, seal)
        found.append(
            Enqueued(
                id=waiting.id,
                name=waiting.name,
                payload=payload,
                state="waiting",
                priority=waiting.priority,
                attempt=waiting.attempt,
                reason=f"{waiting.reason} {waiting.under}".strip(),
            )
        )
    return found


def _ready(broker: Broker, lane: Commands, priority: str, seal: Seal) -> Iterator[Enqueued]:
    start = "-"
    while page := broker.call(lane.entries(start, "+")):
        for _, flat in page:
            fields = fields_of(flat)
            yield Enqueued(
                id=fields.get(b"id", b"").decode("utf-8", "replace"),
                name=fields.get(b"name", b"").decode("utf-8", "replace"),
                payload=read_payload(seal, fields),
                state="queued",
                priority=priority,
                attempt=int(fields.get(b"attempt", b"1")),
            )
        if len(page) < MAX_TASKS:
            return
        start = "(" + page[-1][0].decode()


def _payload(broker: Broker, lane: Commands, task_id: str, seal: Seal) -> Any:
    name, opts = broker.call(lane.name_and_options(task_id))
    payload = broker.call(lane.payload(task_id))
    fields = {b"id": task_id.encode(), b"name": name, b"payload": payload, b"opts": opts}
    return read_payload(seal, fields)


def read_payload(seal: Seal, fields: Mapping[bytes, bytes]) -> Any:
    """Return the payload of a task with these fields; None for what cannot be read here."""
    task_id, name, payload, opts = (
        fields.get(field) or b"" for field in (b"id", b"name", b"payload", b"opts")
    )
    with contextlib.suppress(ValueError, RedistqError):
        gate = gate_of(opts) or None
        opened = seal.open_payload(task_id.decode(), name.decode(), payload, gate)[0]
        return loads(opened or b"null")
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
    shape: CallShape | None = None
    """How its handler is called, where that is known."""

    @classmethod
    def of(
        cls, task: str | Callable[..., Any], handlers: Mapping[str, Handler], **wanted: Any
    ) -> Wanted:
        """Return it for a task's name, or for a function: one with ``@task``, or one that a client
        submits."""
        name = task if isinstance(task, str) else f"{CALL}:{label(task)}"
        handler = handlers.get(name)
        with contextlib.suppress(ConfigurationError):
            handler = handler_of(task)
            name = handler.name
        return cls(name, shape=None if handler is None else handler.shape, **wanted)

    def fits(self, task: Enqueued) -> bool:
        """Return whether a task is like that."""
        if task.name != self.name:
            return False
        if self.payload is not ANYTHING and task.payload != _sent(self.payload):
            return False
        return self._is_called(task) and self._is_due(task)

    def _is_called(self, task: Enqueued) -> bool:
        """Return whether it has the arguments that are wanted, however they were written."""
        if self.args is None and self.kwargs is None:
            return True
        args, kwargs = tuple(self.args or ()), dict(self.kwargs or {})
        if self.shape is not None and not self.shape.is_call:
            wanted = self.shape.payload(args, kwargs)
            return bool(task.payload == _sent(wanted))
        if self.shape is None:
            given: dict[str, Any] = {"args": [], "kwargs": {}}
            if isinstance(task.payload, Mapping):
                given.update(task.payload)
            return given == {"args": _sent(list(args)), "kwargs": _sent(kwargs)}
        try:
            call = self.shape.call_of(task.payload)
        except TypeError:  # a call that its handler cannot take
            return False
        if call is None:
            return False
        named = {name: _sent(value) for name, value in call.named.items()}
        bound = self.shape.bind(args, kwargs)
        return named == {name: _sent(value) for name, value in bound.items()}

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


def _sent(value: Any) -> Any:
    """Return a value as it arrives: dataclasses as dicts, say; what cannot be sent (ANY) as it
    is."""
    try:
        return loads(encode_payload("", value, MAX_BYTES))
    except (PayloadError, PayloadTooLarge):
        return value


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
