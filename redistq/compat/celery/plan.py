"""What tasks a signature stands for, each after those it follows; and how they are sent.

All tasks of a signature go in one call to each queue, parents first. What a task takes of those
before it stands in its payload (``results``), and is read by reference when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...flows import Chain, Flow, Group
from ...flows import Signature as FlowSignature
from ...protocol.keys import new_task_id
from ..unsupported import NotSupported
from . import signals
from .canvas import Signature, chain, chord, group, maybe_signature
from .options import options_of
from .payload import payload_of
from .result import AsyncResult, GroupResult, Result

if TYPE_CHECKING:
    from .app import Celery

ONE, LIST = "one", "list"
"""What a task takes of those before it: the result of one, or the list of their results."""


@dataclass(slots=True)
class Step:
    """One task that is to be sent."""

    signature: Signature
    id: str
    queue: str
    after: dict[str, str] = field(default_factory=dict)
    takes: str = ""
    error_of: str = ""
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Part:
    """What was added of a signature: its last tasks, its result, what those that follow take."""

    ends: list[Step]
    result: Result
    gives: str


class Plan:
    """The tasks of one signature, parents first."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.steps: list[Step] = []

    def add(
        self,
        found: Signature,
        after: Sequence[Step] = (),
        takes: str = "",
        parent: Result | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> Part:
        """Add the tasks of a signature behind others; ``more`` are options of what it is part
        of."""
        more = {**(more or {})}
        if isinstance(found, chain):
            return self._chain(found, after, takes, parent, more)
        if isinstance(found, chord):
            header = group(*found.tasks, app=found._app).clone(
                found["args"], found["kwargs"].get("first")
            )
            body = found.body.clone((), None, **{**more, **found["options"]})
            if not found.tasks:
                return self.add(body.clone(([],)), after, "", parent)
            side = self.add(header, after, takes, parent, _shared(found["options"]))
            return self.add(body, side.ends, LIST, side.result)
        if isinstance(found, group):
            return self._group(found, after, takes, parent, more)
        return self._task(found, after, takes, parent, more)

    def _chain(
        self,
        found: chain,
        after: Sequence[Step],
        takes: str,
        parent: Result | None,
        more: dict[str, Any],
    ) -> Part:
        tasks = found.tasks
        if not tasks:
            raise TypeError("a chain needs one task or more")
        given = {**more, **found["options"]}
        last: Part | None = None
        for at, task in enumerate(tasks):
            if at == 0:
                task = task.clone(found["args"], found["kwargs"].get("first"))
            own = {**_shared(given)}
            if "link_error" in given:
                own["link_error"] = given["link_error"]
            if at == len(tasks) - 1:
                own |= {name: given[name] for name in ("link", "task_id") if name in given}
            if at == 0:
                own |= {name: given[name] for name in ("countdown", "eta") if name in given}
            part = self.add(task, after, takes, parent, own)
            if not part.ends and at < len(tasks) - 1:
                raise TypeError("an empty group has no results that the next task could take")
            after, takes, parent, last = part.ends, part.gives, part.result, part
        assert last is not None
        return last

    def _group(
        self,
        found: group,
        after: Sequence[Step],
        takes: str,
        parent: Result | None,
        more: dict[str, Any],
    ) -> Part:
        given = {**more, **found["options"]}
        if "link" in given:
            raise NotSupported("link of a group", "make it a chord: chord(group, callback)")
        group_id = str(given.pop("task_id", "") or new_task_id())
        ends: list[Step] = []
        results = []
        for task in found.tasks:
            task = task.clone(found["args"], found["kwargs"].get("first"))
            part = self.add(task, after, takes, None, given)
            ends += part.ends
            results.append(part.result)
        return Part(ends, GroupResult(group_id, results, parent=parent, app=self.app), LIST)

    def _task(
        self,
        found: Signature,
        after: Sequence[Step],
        takes: str,
        parent: Result | None,
        more: dict[str, Any],
    ) -> Part:
        given = {**more, **found["options"]}
        options, beside = options_of(self.app, found.task, given, found.args, found.kwargs)
        queue = str(options.pop("queue"))
        task_id = str(options.pop("task_id", None) or new_task_id())
        takes = "" if found.immutable else takes
        step = Step(found, task_id, queue, {}, takes, "", options)
        for one in after:
            if one.queue != queue:
                raise NotSupported(
                    f"{found.task} in queue {queue!r} after {one.signature.task} in {one.queue!r}",
                    "tasks that follow one another belong to one queue: route them there, or let "
                    "the last task of one queue add the first of the other",
                )
            step.after[one.id] = "success"
        self.steps.append(step)
        result = AsyncResult(
            task_id, app=self.app, task_name=found.task, queue=queue, parent=parent,
            ignored=bool(beside.get("ignore_result")),
        )  # fmt: skip
        for linked in _several(beside.get("link")):
            self.add(maybe_signature(linked, found._app), [step], ONE)
        for linked in _several(beside.get("link_error")):
            self._error_step(maybe_signature(linked, found._app), step)
        return Part([step], result, ONE)

    def _error_step(self, found: Signature, of: Step) -> None:
        if isinstance(found, (chain, group, chord)):
            raise NotSupported(
                f"link_error={found!r}", "link one task, which starts the others: sig.delay()"
            )
        options, _ = options_of(self.app, found.task, found["options"], found.args, found.kwargs)
        task_id = str(options.pop("task_id", None) or new_task_id())
        if options.pop("queue") != of.queue and found["options"].get("queue"):
            raise NotSupported("a link_error in another queue", "route it to its task's queue")
        step = Step(found, task_id, of.queue, {of.id: "failure"}, "", of.id, options)
        if found.immutable:
            step.error_of = ""
        self.steps.append(step)


def _several(linked: Any) -> list[Any]:
    if linked is None:
        return []
    return [linked] if isinstance(linked, Mapping) else list(linked)


def _shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a flow that hold for each of its tasks."""
    own = ("link", "link_error", "task_id", "countdown", "eta")
    return {name: value for name, value in given.items() if name not in own}


def item_of(step: Step) -> dict[str, Any]:
    """Return a task as ``add_tasks`` takes it."""
    payload = payload_of(step.signature.args, step.signature.kwargs, step.takes, step.error_of)
    item = {"type": step.signature.task, "task_id": step.id, "payload": payload, **step.more}
    if step.after:
        item["after"] = step.after
    return item


def send(app: Celery, found: Signature) -> Result:
    """Send the tasks that a signature stands for; return its result."""
    plan = Plan(app)
    result = plan.add(found).result
    by_queue: dict[str, list[Step]] = {}
    for step in plan.steps:
        by_queue.setdefault(step.queue, []).append(step)
    for queue, steps in by_queue.items():
        for step in steps:
            _publishing(signals.before_task_publish, step)
        items = [item_of(step) for step in steps]
        producer = app.producer(queue)
        if len(items) == 1:
            item = items[0]
            producer.add_task(item.pop("type"), item.pop("payload"), **item)
        else:
            producer.add_tasks(items)
        for step in steps:
            _publishing(signals.after_task_publish, step)
    return result


def _publishing(signal: signals.Signal, step: Step) -> None:
    if not signal.receivers:
        return
    headers = {"id": step.id, "task": step.signature.task, "argsrepr": repr(step.signature.args)}
    headers["kwargsrepr"] = repr(step.signature.kwargs)
    signal.send(
        sender=step.signature.task,
        body=(list(step.signature.args), dict(step.signature.kwargs), {}),
        exchange="",
        routing_key=step.queue,
        headers=headers,
        properties={"correlation_id": step.id},
        declare=[],
        retry_policy=None,
    )


def flow_of(app: Celery, found: Signature, takes: str = "") -> tuple[Flow, str]:
    """Return a signature as a flow of redistq, which takes a task's place, and what follows it
    takes."""
    if isinstance(found, chord):
        head, body = group(*found.tasks).clone(found["args"]), found.body
        return flow_of(app, chain(head, body, app=found._app), takes)
    if isinstance(found, chain):
        parts: list[Flow] = []
        for at, task in enumerate(found.tasks):
            part, takes = flow_of(app, task.clone(found["args"]) if at == 0 else task, takes)
            parts.append(part)
        return Chain(tuple(parts)), takes
    if isinstance(found, group):
        flows = [flow_of(app, task.clone(found["args"]), takes)[0] for task in found.tasks]
        return Group(tuple(flows)), LIST
    options, beside = options_of(app, found.task, found["options"], found.args, found.kwargs)
    if beside.get("link") or beside.get("link_error"):
        raise NotSupported("link in a signature that takes a task's place", "write a chain")
    options.pop("queue")
    options.pop("task_id", None)
    payload = payload_of(found.args, found.kwargs, "" if found.immutable else takes, "")
    return FlowSignature(found.task, (payload,), {}, options), ONE
