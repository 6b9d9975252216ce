"""Flows: tasks that follow each other, written before anything is sent.

``sig`` is one task; ``chain`` runs its parts one after the other, ``group`` side by side, ``chord``
a group and then what takes all of its results, ``map_reduce`` a task for each item and then one, or
a tree, that puts the results together. They nest. A flow is plain data: producers and clients send
it (``producer.add_flow``, ``client.submit``, or as a part of a graph), and the same flow may be
sent many times.

How a task gets the result of what comes before it: a function, as its last argument (after a group,
the list of its results), one decorated with ``@task`` where it has room for one more; a task that
is given by its name reads it, ``context.results()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import ConfigurationError
from .handlers import handler_of
from .protocol.keys import new_task_id
from .protocol.limits import Limit
from .protocol.options import CallOptions, TaskOptions

Task = str | Callable[..., Any]
"""A named task's name, or a function."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One task that is not sent yet: its name and payload, or a function and its arguments."""

    task: Task
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task."""

    def options(self, **options: Any) -> Signature:
        """Return the same task with options: those of add_task or of Client.options."""
        return replace(self, given={**self.given, **options})

    def __repr__(self) -> str:
        name = self.task if isinstance(self.task, str) else getattr(self.task, "__name__", "?")
        return f"sig({name})"


@dataclass(frozen=True, slots=True)
class Chain:
    """Parts that run one after the other."""

    parts: tuple[Flow, ...]

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.parts))})"


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that run side by side."""

    parts: tuple[Flow, ...]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.parts[:3]))
        return f"group({shown}{', …' if len(self.parts) > 3 else ''})"


Flow = Signature | Chain | Group
FLOWS = (Signature, Chain, Group)
Part = Flow | Task
"""What flows are made of: a name or a function alone is its signature without arguments."""


def sig(task: Task, /, *args: Any, **kwargs: Any) -> Signature:
    """Return one task: ``sig("name", payload)``, or ``sig(fn, *args, **kwargs)``."""
    if isinstance(task, str) and (kwargs or len(args) > 1):
        raise TypeError("a named task takes one payload: sig('name', payload)")
    if not isinstance(task, str) and not callable(task):
        raise TypeError(f"sig takes a task's name or a function, not {task!r:.60}")
    return Signature(task, args, kwargs)


def chain(*parts: Part) -> Chain:
    """Return a flow whose parts run one after the other, each when all before it has succeeded."""
    return Chain(_checked("chain", parts))


def group(*parts: Part | Iterable[Part]) -> Group:
    """Return a flow whose parts run side by side; they may be given as one list."""
    if len(parts) == 1 and isinstance(parts[0], Iterable) and not isinstance(parts[0], str):
        parts = tuple(parts[0])
    return Group(_checked("group", parts))


def chord(parts: Group | Iterable[Part], callback: Part) -> Chain:
    """Return a flow that runs a group, and then ``callback`` with the list of its results."""
    return chain(parts if isinstance(parts, Group) else group(parts), callback)


def map_reduce(
    each: Task, items: Iterable[Any], reduce: Task, *, fan_in: int | None = None
) -> Chain:
    """Return a flow of one task ``each`` for an item, and then ``reduce`` with all the results.

    With ``fan_in`` no task takes more than so many results: ``reduce`` is called in a tree, so it
    must be a function whose results may be reduced again.
    """
    if fan_in is not None and (not isinstance(fan_in, int) or fan_in < 2):
        raise ConfigurationError(f"fan_in is a whole number, 2 or more, not {fan_in!r}")
    layer: list[Flow] = [sig(each, item) for item in items]
    if not layer:
        raise ConfigurationError("map_reduce needs one item or more")
    while fan_in is not None and len(layer) > fan_in:
        starts = range(0, len(layer), fan_in)
        layer = [chord(group(layer[at : at + fan_in]), reduce) for at in starts]
    return chord(Group(tuple(layer)), reduce)


def _checked(what: str, parts: Iterable[Any]) -> tuple[Flow, ...]:
    found: list[Flow] = []
    for part in parts:
        if isinstance(part, FLOWS):
            found.append(part)
        elif isinstance(part, str) or callable(part):
            found.append(sig(part))
        else:
            raise TypeError(
                f"a {what} is made of names, functions, sig(...) and other flows, not "
                f"{part!r:.60}; a function's arguments go in its signature: sig(fn, x)"
            )
    if not found:
        raise ConfigurationError(f"a {what} needs one part or more")
    return tuple(found)


# -- as steps, parents first -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One task of a flow: it follows those at these positions, whose results it takes."""

    signature: Signature
    after: tuple[int, ...]
    as_list: bool
    """Whether it takes the results as a list, or that of the one before it as it is."""


def steps_of(flow: Flow) -> tuple[list[Step], tuple[int, ...]]:
    """Return a flow's tasks, each after those it follows, and the positions of its ends."""
    steps: list[Step] = []
    ends, _ = _add(steps, flow, (), False)
    return steps, ends


def _add(
    steps: list[Step], flow: Flow, after: tuple[int, ...], as_list: bool
) -> tuple[tuple[int, ...], bool]:
    """Append a flow that follows others; return its ends, and whether they are many to those that
    follow it."""
    if isinstance(flow, Signature):
        steps.append(Step(flow, after, as_list))
        return (len(steps) - 1,), False
    if isinstance(flow, Chain):
        for part in flow.parts:
            after, as_list = _add(steps, part, after, as_list)
        return after, as_list
    ends: list[int] = []
    for part in flow.parts:
        ends += _add(steps, part, after, as_list)[0]
    return tuple(ends), True


def taking(step: Step, before: Sequence[Any]) -> tuple[tuple[Any, ...], Sequence[Any]]:
    """Return the arguments of a flow's task, and what else it runs after: a function takes the
    results of those before it as its last argument, a named task reads them."""
    signature = step.signature
    if isinstance(signature.task, str) or not before:
        return signature.args, before
    last = list(before) if step.as_list else before[0]
    return (*signature.args, last), ()


def steps_to_one(flow: Flow) -> list[Step]:
    """Return the tasks of a flow that takes the place of the task which returned it; raises
    ConfigurationError for one that could not end that."""
    steps, ends = steps_of(flow)
    if len(ends) != 1:
        raise ConfigurationError(
            f"a flow that a handler returns ends in one task, and this one in {len(ends)}: end "
            "it with a chord, chord(group(...), callback), whose callback reads the results"
        )
    if any("task_id" in step.signature.given for step in steps):
        raise ConfigurationError(
            "tasks of a flow that a handler returns have ids of their own: leave out task_id"
        )
    return steps


@dataclass(frozen=True, slots=True)
class PackedTask:
    """One task of a flow that a function call returned, ready to be sent."""

    id: str
    name: str
    payload: bytes
    options: TaskOptions | CallOptions
    gate: str | None
    conditions: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True)
class PackedFlow:
    """A flow that a function call returned, ready to be sent: its last task ends the call's."""

    tasks: list[PackedTask]


def payload_of(step: Step) -> tuple[Any, dict[str, Any]]:
    """Return the payload of a flow's named task, and its options. Raises TypeError for arguments
    that it does not take."""
    signature = step.signature
    args, given = signature.args, {**signature.given}
    handler = None if isinstance(signature.task, str) else handler_of(signature.task)
    shape = None if handler is None else handler.shape
    if shape is None:
        if signature.kwargs or len(args) > 1:
            raise TypeError("a named task takes one payload: sig('name', payload)")
        return (args[0] if args else None), given
    batches = handler is not None and handler.batching is not None
    may_take = step.after and given.get("takes") is None and not batches
    if may_take and (payload := shape.with_room(args, signature.kwargs)) is not None:
        given["takes"] = "results" if step.as_list else "result"
        return payload[0], given
    if not (args or signature.kwargs or shape.is_call):
        return None, given  # as ever: it reads what it wants
    return shape.payload(args, signature.kwargs), given


def items_of(flow: Flow) -> list[dict[str, Any]]:
    """Return a flow of named tasks as items for ``add_tasks``, with their ids: those of their own
    where their options say one."""
    steps, _ = steps_of(flow)
    ids = [step.signature.given.get("task_id") or new_task_id() for step in steps]
    items = []
    for step, task_id in zip(steps, ids, strict=True):
        payload, given = payload_of(step)
        item = {"type": step.signature.task, **given, "task_id": task_id, "payload": payload}
        if step.after:
            if given.get("after") is not None:
                raise ConfigurationError(
                    f"{step.signature!r} runs after the part before it, so its own after= has no "
                    "place: make what it is to wait for a part of the flow, as in "
                    "chain(group(a, b), c)"
                )
            item["after"] = [ids[i] for i in step.after]
        items.append(item)
    return items
