"""TaskGraph and AsyncTaskGraph: a graph of named tasks. Made by producers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..codecs.sealing import Seal
from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..flows import Flow, Step, payload_of, steps_of
from ..handlers import OfFunction
from ..middleware import Layers, NewTask, ambient
from ..middleware.chain import added, given_by, new_task
from ..protocol.codec import encode_payload
from ..protocol.commands import Commands
from ..protocol.gate import MOST_PARENTS, Gate, edges_of, with_parents
from ..protocol.keys import batch_task_id, check_line
from ..protocol.limits import Limit
from ..protocol.options import NO_OPTIONS, OPTIONS_OF_TASKS, TaskOptions, unknown_option
from .graph import GRAPH_TTL_S, AsyncGraph, Graph
from .graph_operations import GraphOperations
from .limits import LimitOperations
from .sansio import Operation

if TYPE_CHECKING:
    from ..connection.async_broker import AsyncBroker

TaskName = str | Callable[..., Any]


class TaskWriting(GraphOperations):
    """What graphs of named tasks add."""

    def _prepare(self, max_bytes: int, layers: Layers, seals: Seal | None) -> None:
        self._seals = seals
        self._layers = layers
        self._limits: set[Limit] = set()
        self._max_bytes = max_bytes
        self._positions: dict[str, int] = {}
        self._checked: set[str] = set()
        self._needs = edges_of("?", self._commands.keys.stream)[0].removesuffix("?")
        usual = NO_OPTIONS.kept(GRAPH_TTL_S)
        self._plain = usual.written(batch=self.name)
        self._gated = usual.written(batch=self.name, gate=with_parents(""))

    def _begin(self) -> None:
        super()._begin()
        self._positions = {}
        self._limits = set()

    def add(self, type: TaskName, payload: Any = None, *, after: Any = None, **options: Any) -> str:
        """Add one task and return its id.

        ``after`` is an id that ``add`` returned, or that of any task of this queue, or a list of
        them: the task runs when these have succeeded. A mapping says of each whether that is
        "success", "end" (of any kind) or "failure". An option that is None is not given: what the
        handler says of it holds.
        """
        plan = self._open_plan
        named = payload
        if isinstance(type, str):
            name = type
        else:
            task = OfFunction.of(type, payload, options)
            name, payload, options, named = task.name, task.payload, {**task.given}, task.named
        task_id = batch_task_id(self.name, len(plan.tasks))
        layers = (*ambient.around, *self._layers)
        if not layers:
            return self._add(task_id, name, payload, named, after, options)

        def make(new: NewTask) -> str:
            keyed = named if new.payload is payload else new.payload
            return self._add(task_id, new.name, new.payload, keyed, after, {**given_by(new)})

        stream = self._commands.keys.stream
        return added(layers, new_task(task_id, name, stream, payload, options), make)

    def _add(
        self,
        task_id: str,
        name: str,
        payload: Any,
        named: Any,
        after: Any,
        options: dict[str, Any],
    ) -> str:
        plan = self._open_plan
        if name not in self._checked:
            check_line("a task's type", name)
            self._checked.add(name)
        data = encode_payload(name, payload, self._max_bytes)
        edges, parents = self._edges(after) if after is not None else ([], [])
        bare = None  # what names the task: not the headers, which may be others each time
        if options:
            opts, bare, due, conditions = self._options(options, named, bool(edges))
            edges = [*edges, *conditions]
        else:
            opts = self._gated if edges else self._plain
            due = ""
        position = len(plan.tasks)
        digest = plan.digest(name.encode(), b"".join((data, b"\0", bare or opts)), parents)
        if self._seals is not None:
            data = self._seals.payload(task_id, name, data)
        plan.add((task_id, name, data, opts, due), edges, name, digest, parents)
        self._positions[task_id] = position
        return task_id

    def add_flow(self, flow: Flow, *, after: Any = None) -> list[str]:
        """Add the tasks of a flow, which begins after others; return their ids, in the order in
        which they are written."""
        ids: list[str] = []
        steps, _ = steps_of(flow)
        for step in steps:
            ids.append(self._add_step(step, [ids[i] for i in step.after] or after))
        return ids

    def _add_step(self, step: Step, after: Any) -> str:
        payload, given = payload_of(step)
        return self.add(step.signature.task, payload, after=after, **given)

    def _options(
        self, given: Mapping[str, Any], payload: Any, gated: bool
    ) -> tuple[bytes, bytes, str, list[str]]:
        """Return the options of a task as they stand in its entry, the same without headers, when
        it is due, and the conditions that they make."""
        if unknown := given.keys() - OPTIONS_OF_TASKS:
            raise unknown_option("a task of a graph", sorted(unknown)[0], OPTIONS_OF_TASKS)
        if given.get("unique") is not None:
            raise ConfigurationError(
                "a task of a graph has no unique key: it is the only one of its name and place"
            )
        options = TaskOptions.of(given, "a task of a graph").kept(GRAPH_TTL_S)
        gate = Gate.of(given, payload, self._commands.keys.stream)
        text = None if gate is None else gate.text
        if gated:
            text = with_parents(text or "")
        if gate is not None:
            self._limits.update(gate.limits)
        conditions = gate.conditions.split("\n") if gate is not None and gate.conditions else []
        opts = options.written(batch=self.name, gate=text)
        bare = opts
        if options.headers:
            bare = options.written(batch=self.name, gate=text, headers=None)
        return opts, bare, options.due, conditions

    def _edges(self, after: Any) -> tuple[list[str], list[int]]:
        """Return the conditions that ``after`` stands for, and which tasks of this graph it
        names."""
        if (own := self._own(after)) is not None:
            return own
        if isinstance(after, Iterable) and not isinstance(after, str | Mapping):
            after = list(after)
        edges = edges_of(after, self._commands.keys.stream)
        named = after if isinstance(after, Mapping | list) else (after,)
        positions = (self._positions.get(one) for one in named if isinstance(one, str))
        return edges, [position for position in positions if position is not None]

    def _own(self, after: Any) -> tuple[list[str], list[int]] | None:
        """As _edges, quickly: of tasks of this graph by their ids, as most are; None of others."""
        ids = [after] if type(after) is str else after
        if type(ids) is not list or len(ids) > MOST_PARENTS:
            return None
        find = self._positions
        try:
            positions = [find[one] for one in ids]
        except (KeyError, TypeError):
            return None
        needs = self._needs
        return [needs + one for one in dict.fromkeys(ids)], positions

    def _sending(self) -> Operation[None]:
        yield from LimitOperations(self._commands).declare(self._limits)
        yield from super()._sending()


class TaskGraph(TaskWriting, Graph):
    """A graph of named tasks; see Graph.

    ``add`` takes what ``add_task`` takes and returns the task's id, by which other tasks of the
    graph run after it. A handler reads the results of those before it: ``context.results()``.
    """

    def __init__(
        self,
        broker: Broker,
        commands: Commands,
        name: str,
        max_bytes: int,
        layers: Layers = (),
        seals: Seal | None = None,
    ) -> None:
        super().__init__(broker, commands, name)
        self._prepare(max_bytes, layers, seals)

    def __enter__(self) -> TaskGraph:
        super().__enter__()
        return self


class AsyncTaskGraph(TaskWriting, AsyncGraph):
    """TaskGraph for ``await``: ``async with producer.graph("etl") as graph``, in which tasks are
    added without it; see AsyncGraph."""

    def __init__(
        self,
        broker: AsyncBroker,
        commands: Commands,
        name: str,
        max_bytes: int,
        layers: Layers = (),
        seals: Seal | None = None,
    ) -> None:
        super().__init__(broker, commands, name)
        self._prepare(max_bytes, layers, seals)

    async def __aenter__(self) -> AsyncTaskGraph:
        await super().__aenter__()
        return self
