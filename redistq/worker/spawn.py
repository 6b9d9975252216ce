"""Tasks that a handler spawns or returns as a flow: kept with its attempt, sent with its
settlement, and only with it.

Used by Attempt, which gives each context its ``Spawner``, and by the settler, which writes what was
spawned into the call that settles. Nothing here talks to a server: a child is checked and encoded
when it is spawned, and is there once its parent's success is. An attempt that fails, is tried
again, or whose lease was lost leaves none, so a task that runs twice leaves its children once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..codecs.sealing import Seal
from ..errors import ConfigurationError, RedistqError
from ..flows import Flow, PackedFlow, PackedTask, items_of, steps_to_one
from ..handlers import OfFunction
from ..middleware import Layers, NewTask, ambient
from ..middleware.chain import added, given_by, headers_of, new_task
from ..producer.gated import TaskId
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.gate import Gate
from ..protocol.keys import check_line, new_task_id
from ..protocol.limits import Limit
from ..protocol.options import NO_OPTIONS, OPTIONS_OF_GATE, CallOptions, TaskOptions, gate_of
from .sealed import TaskSeal

MOST_SPAWNED = 1_000
"""Tasks that one attempt may spawn: the call that settles it adds them all in one step."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of them, together."""
Child = tuple[str, str, bytes, bytes, str, str]
"""A task to add, as ``enqueue_gated`` takes it: id, name, payload, options, due, conditions."""


class Spawner:
    """What one attempt has spawned."""

    __slots__ = (
        *("_batch", "_closed", "_layers", "_seal", "_seals", "_stream", "children", "limits"),
        "size",
    )

    def __init__(
        self,
        stream: str,
        batch: str,
        layers: Layers = (),
        seal: TaskSeal | None = None,
        seals: Seal | None = None,
    ) -> None:
        """``stream`` is the queue of the task, ``batch`` the one it belongs to, ``layers`` what
        stands around what it spawns. ``seal`` is for its children, ``seals`` for the named tasks
        of flows that function calls return."""
        self._layers = layers
        self._seal = seal
        self._seals = seals
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
        ends: str = "",
    ) -> TaskId:
        """Keep a task, checked and encoded; return its id. Raises what ``add_task`` raises, and
        RedistqError once the attempt has ended. ``ends`` is the task that ends as this one does."""
        if self._closed:
            raise RedistqError(
                "this task has ended: what it spawns travels with its end, so spawn before it "
                "returns, or add tasks with a TaskProducer"
            )
        self._check_room()
        named = payload
        if isinstance(type, str):
            name = type
        else:
            task = OfFunction.of(type, payload, given)
            name, payload, given, named = task.name, task.payload, task.given, task.named
        if task_id is not None:
            check_line("a task_id", task_id)
        new_id = task_id or new_task_id()
        layers = (*ambient.around, *self._layers)
        if not layers:
            return self._spawn(new_id, name, payload, named, in_batch, given, ends)

        def make(new: NewTask) -> TaskId:
            keyed = named if new.payload is payload else new.payload
            return self._spawn(new_id, new.name, new.payload, keyed, in_batch, given_by(new), ends)

        return added(layers, new_task(new_id, name, self._stream, payload, given), make)

    def _spawn(
        self,
        new_id: str,
        name: str,
        payload: Any,
        named: Any,
        in_batch: bool,
        given: Mapping[str, Any],
        ends: str,
    ) -> TaskId:
        check_line("a task's type", name)
        data = encode_payload(name, payload, DEFAULT_MAX_BYTES)
        options = TaskOptions.of(given, "a task") if given else NO_OPTIONS
        batch = self._batch or None if in_batch else None
        gate = None if OPTIONS_OF_GATE.isdisjoint(given) else Gate.of(given, named, self._stream)
        text, conditions = (None, "") if gate is None else (gate.text, gate.conditions)
        limits = () if gate is None else gate.limits
        if self._seal is not None:
            data = self._seal.child(new_id, name, data, text, ends)
        self._keep(PackedTask(new_id, name, data, options, text, conditions, limits), batch, None)
        return TaskId.of(new_id, self._stream)

    def _check_room(self) -> None:
        if len(self.children) >= MOST_SPAWNED:
            raise ConfigurationError(
                f"a task spawns at most {MOST_SPAWNED:,} others: let each of some tasks spawn a "
                "part of them, or add them with TaskProducer.add_tasks"
            )

    def _keep(self, task: PackedTask, batch: str | None, home: str | None) -> None:
        options = task.options
        opts = options.written(gate=task.gate, batch=batch, home=home)
        size = len(task.payload) + len(opts) + len(task.conditions)
        if self.size + size > MOST_BYTES:
            raise ConfigurationError(
                f"what a task spawns is {MOST_BYTES:,} bytes at most, for it travels in one call: "
                "store the data elsewhere and pass a path or key, or add the tasks with "
                "TaskProducer.add_tasks"
            )
        self.limits.update(task.limits)
        self.size += size
        fields = (task.id, task.name, task.payload, opts, options.due)
        self.children.append((*fields, task.conditions))

    def spawn_flow(self, flow: Flow | PackedFlow, task_id: str, home: str | None) -> str:
        """Keep the tasks of a flow that takes the place of the task that runs; return the id of the
        last, as which that one ends. Its function calls belong to ``home``. Raises as ``spawn``,
        and ConfigurationError for a flow that could not end it."""
        last = ""
        if isinstance(flow, PackedFlow):
            for task in flow.tasks:
                self._check_room()
                is_call = isinstance(task.options, CallOptions)
                headers = headers_of(
                    ambient.around, task.id, task.name, self._stream, task.options.headers
                )
                options = replace(task.options, headers=headers)
                if not is_call and self._seals is not None:
                    data = self._seals.payload(task.id, task.name, task.payload, task.gate)
                    task = replace(task, payload=data)
                self._keep(replace(task, options=options), None, home if is_call else None)
                last = task.id
        else:
            steps_to_one(flow)
            items = items_of(flow)
            answers = task_id if self._seal is None else self._seal.ends
            for item in items:
                name, payload, new_id = item.pop("type"), item.pop("payload"), item.pop("task_id")
                ends = answers if item is items[-1] else ""
                last = self.spawn(name, payload, new_id, False, item, ends)
        if any(line[:1] == "u" for line in gate_of(self.children[-1][3]).split("\n")):
            raise ConfigurationError(
                "the last task of a flow that a handler returns is not unique: where its key is "
                "taken it would not be added, and nothing would end the task that returned it"
            )
        if task_id in self._parents_of(last):
            raise ConfigurationError(
                "a task of the flow waits for the task that returned it, which ends when the flow "
                "has ended: leave it out of after"
            )
        return last

    def _parents_of(self, last: str) -> set[str]:
        """Return the ids of all that one of these runs after, as far as they are known here."""
        after = {child[0]: child[5].split("\n") for child in self.children}
        found: set[str] = set()
        left = [last]
        while left:
            for line in after.pop(left.pop(), ()):
                parent = line.partition(" ")[2]
                if line[1:2] == "t" and parent not in found:
                    found.add(parent)
                    left.append(parent)
        return found


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
