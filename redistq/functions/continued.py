"""Flows that function calls return: packed where the call ran, to take the place of its task.

Used by the handler for function calls. The calls of such a flow are written and signed as a client
writes them: a worker has the key that its clients have, and signs nothing of what it was not told
by a call that was signed itself. The task that returned the flow ends as the flow's last, whose
result and error are therefore signed for that task: its client takes them as its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigurationError
from ..flows import Flow, PackedFlow, PackedTask, Step, sig, steps_to_one, taking
from ..protocol.codec import DEFAULT_MAX_BYTES, encode_payload
from ..protocol.gate import Gate, with_parents
from ..protocol.keys import PRIORITY_MARK, check_line, new_call_id, new_task_id
from ..protocol.options import CallOptions, TaskOptions
from .blobs import Blobs
from .packing import Packer, Shared, arguments_of, keep_needs_s, label
from .pickling import Parents
from .references import Kind, Referable, Reference, as_it_is
from .signing import task_context
from .written import CALL, Call


class FlowTask(Referable):
    """One task of a flow, as an argument of those that follow it."""

    __slots__ = ("_reference",)

    def __init__(self, kind: Kind, lane: str, task_id: str) -> None:
        self._reference = Reference(kind, lane, task_id)

    def reference(self) -> Reference:
        """Return what stands for its result."""
        return self._reference


def packed(flow: Flow, packer: Packer, blobs: Blobs, stream: str, answers: str) -> PackedFlow:
    """Return the tasks of a flow of that queue's, of which the last ends the task ``answers``.

    Raises ConfigurationError for a flow that could not end it, and what a client raises for calls
    that cannot be sent.
    """
    steps = steps_to_one(flow)
    if isinstance(steps[-1].signature.task, str):  # its result is signed by nobody
        steps.append(Step(sig(as_it_is), (len(steps) - 1,), False))
    packing = _FlowPacking(packer, stream, answers)
    for step in steps:
        packing.add(step, is_last=step is steps[-1])
    blobs.leave(packing.needs)
    return PackedFlow(packing.tasks)


class _FlowPacking:
    """A flow while it is packed."""

    def __init__(self, packer: Packer, stream: str, answers: str) -> None:
        self._packer = packer
        self._stream = stream
        self._lane = stream.partition(PRIORITY_MARK)[2] or "normal"
        self._answers = answers
        self._shared = Shared()
        self._stands: list[FlowTask] = []
        self.needs: list[str] = []
        self.tasks: list[PackedTask] = []

    def add(self, step: Step, is_last: bool) -> None:
        """Pack the next task."""
        task = step.signature.task
        args, after = taking(step, [self._stands[i] for i in step.after])
        edges = [stand.reference().edge for stand in after]
        if isinstance(task, str):
            self._add_named(task, args, step, edges)
        else:
            self._add_call(args, step, is_last)

    def _add_named(self, name: str, args: Sequence[Any], step: Step, edges: Sequence[str]) -> None:
        given = step.signature.given
        check_line("a task's type", name)
        payload = args[0] if args else None
        data = encode_payload(name, payload, DEFAULT_MAX_BYTES)
        options = TaskOptions.of(given, "a task")
        self._keep("named", new_task_id(), name, data, options, given, payload, edges)

    def _add_call(self, args: tuple[Any, ...], step: Step, is_last: bool) -> None:
        signature = step.signature
        fn: Any = signature.task
        options = CallOptions().changed(signature.given)
        _check(options, self._lane)
        kwargs = dict(signature.kwargs)
        keep_s = keep_needs_s(options)
        function = self._packer.store_function(fn, keep_s, self.needs, self._shared)
        setup = self._packer.store_setup(options, keep_s, self.needs, self._shared)
        task_id = new_call_id()
        parents: Parents = {}
        packet = self._packer.pack(
            task_context(self._stream, task_id),
            Call.under(options, function, args, kwargs, setup=setup),
            keep_s,
            self.needs,
            self._shared,
            parents,
            self._answers if is_last else "",
        )
        name = f"{CALL}:{options.name or label(fn)}"
        keyed = arguments_of(fn, args, kwargs) if options.gate else None
        edges = [reference.edge for reference in parents]
        self._keep("call", task_id, name, packet, options, options.gate, keyed, edges)

    def _keep(
        self,
        kind: Kind,
        task_id: str,
        name: str,
        data: bytes,
        options: TaskOptions | CallOptions,
        given: Any,
        keyed: Any,
        edges: Sequence[str],
    ) -> None:
        gate = Gate.of(given, keyed, self._stream)
        text = None if gate is None else gate.text
        conditions = list(edges)
        if gate is not None and gate.conditions:
            conditions += gate.conditions.split("\n")
        if edges:
            text = with_parents(text or "")
        limits = () if gate is None else gate.limits
        lines = "\n".join(dict.fromkeys(conditions))
        self.tasks.append(PackedTask(task_id, name, data, options, text, lines, limits))
        self._stands.append(FlowTask(kind, self._lane, task_id))


def _check(options: CallOptions, lane: str) -> None:
    """Raise ConfigurationError for what a call in a returned flow cannot have."""
    for what, is_given in (
        ("cache", options.cache is not None),
        ("unique", options.gate.get("unique") is not None),
        ("priority", options.priority not in ("normal", lane)),
    ):
        if is_given:
            raise ConfigurationError(
                f"a call of a flow that a function returns has no {what}: it is one of its own, in "
                "the queue of the task that returned it"
            )
