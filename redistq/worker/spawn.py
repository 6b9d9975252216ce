"""Tasks that a handler spawns: kept with its attempt, sent with its settlement, and only with it.

Used by Attempt, which gives each context its ``Spawner``, and by the settler, which writes what was
spawned into the call that settles. Nothing here talks to a server: a child is checked and encoded
when it is spawned, and is there once its parent's success is. An attempt that fails, is tried
again, or whose lease was lost leaves none, so a task that runs twice leaves its children once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import tracing
from ..errors import ConfigurationError, RedistqError
from ..handlers import handler_of
from ..producer.gated import TaskId
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.gate import Gate
from ..protocol.keys import check_line, new_task_id
from ..protocol.limits import Limit
from ..protocol.options import NO_OPTIONS, OPTIONS_OF_GATE, TaskOptions

MOST_SPAWNED = 1_000
"""Tasks that one attempt may spawn: the call that settles it adds them all in one step."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of them, together."""
Child = tuple[str, str, bytes, bytes, str, str]
"""A task to add, as ``enqueue_gated`` takes it: id, name, payload, options, due, conditions."""


class Spawner:
    """What one attempt has spawned."""

    __slots__ = ("_batch", "_closed", "_stream", "children", "limits", "size")

    def __init__(self, stream: str, batch: str) -> None:
        """``stream`` is the queue of the task, ``batch`` the one it belongs to."""
        self._stream = stream
        self._batch = batch
        self._closed = False
        self.children: list[Child] = []
        self.limits: set[Limit] = set()
        """Those declared in code with a rule, which the queue may not have yet."""
        self.size = 0
        """Bytes of them all."""

    def close(self) -> None:
        """Let nothing more be spawned."""
        self._closed = True

    def spawn(
        self,
        type: str | Callable[..., Any],
        payload: Any,
        task_id: str | None,
        in_batch: bool,
        given: Mapping[str, Any],
    ) -> TaskId:
        """Keep a task, checked and encoded; return its id. Raises what ``add_task`` raises, and
        RedistqError once the attempt has ended."""
        if self._closed:
            raise RedistqError(
                "this task has ended: what it spawns travels with its end, so spawn before it "
                "returns, or add tasks with a TaskProducer"
            )
        if len(self.children) >= MOST_SPAWNED:
            raise ConfigurationError(
                f"a task spawns at most {MOST_SPAWNED:,} others: let each of some tasks spawn a "
                "part of them, or add them with TaskProducer.add_tasks"
            )
        if isinstance(type, str):
            name = type
        else:
            handler = handler_of(type)
            name = handler.name
            if handler.gate:
                given = {**handler.gate, **{k: v for k, v in given.items() if v is not None}}
        check_line("a task's type", name)
        data = encode_payload(name, payload, DEFAULT_MAX_BYTES)
        options = TaskOptions.of(given, "a task") if given else NO_OPTIONS
        if task_id is not None:
            check_line("a task_id", task_id)
        new_id = task_id or new_task_id()
        batch = self._batch or None if in_batch else None
        trace = None
        if tracing.active is not None:
            trace = tracing.active.created(new_id, name, self._stream)
        gate = None if OPTIONS_OF_GATE.isdisjoint(given) else Gate.of(given, payload, self._stream)
        text, conditions = (None, "") if gate is None else (gate.text, gate.conditions)
        opts = options.written(gate=text, batch=batch, trace=trace)
        size = len(data) + len(opts) + len(conditions)
        if self.size + size > MOST_BYTES:
            raise ConfigurationError(
                f"what a task spawns is {MOST_BYTES:,} bytes at most, for it travels in one call: "
                "store the data elsewhere and pass a path or key, or add the tasks with "
                "TaskProducer.add_tasks"
            )
        if gate is not None:
            self.limits.update(gate.limits)
        self.size += size
        self.children.append((new_id, name, data, opts, options.due if given else "", conditions))
        return TaskId.of(new_id, self._stream)


def written(outcomes: Iterable[tuple[int, Iterable[Child]]]) -> bytes:
    """Return the children of outcomes, by their positions from 1, as ``settle`` takes them: each
    field with its length before it."""
    parts: list[bytes] = []
    for position, children in outcomes:
        for child in children:
            for field in (str(position), *child):
                raw = field if isinstance(field, bytes) else field.encode()
                parts.append(b"%d:%s" % (len(raw), raw))
    return b"".join(parts)
