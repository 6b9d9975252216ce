"""CallGraph: a graph of function calls, and of named tasks among them. Made by clients.

``CallNode`` stands for one of its tasks: as an argument of another call for its result, and once
the graph was sent, for its future. ``submit_flow`` sends a flow without a graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from ..flows import Flow, Signature, Step, steps_of, taking
from ..functions.packing import Shared, arguments_of, keep_needs_s, label
from ..functions.pickling import Parents
from ..functions.references import Kind, Referable, Reference
from ..functions.written import CALL, Call
from ..producer.graph import GRAPH_TTL_S, Graph
from ..protocol.codec import encode_payload
from ..protocol.options import CallOptions, wait_seconds
from .awaiting import countdown
from .batch import Batch
from .futures import TaskFuture, exception_within
from .gates import gate_of, prepare
from .submission import check_function, submit, task_options

if TYPE_CHECKING:
    import pandas as pd

    from .queues import ClientQueue
    from .session import Session


_PLAIN = {kind: kind.__name__.encode() for kind in (int, float, str, bytes, bool, type(None))}


class CallNode(Referable):
    """One task of a graph; an argument of another call, anywhere in it, for its result."""

    def __init__(
        self, graph: CallGraph, position: int, task_id: str, kind: Kind, name: str
    ) -> None:
        self.graph = graph
        self.position = position
        self.task_id = task_id
        self.name = name
        self._kind: Kind = kind
        self._future: TaskFuture | None = None
        self._reference: Reference | None = None
        self._identity = ""

    @property
    def queue(self) -> ClientQueue:
        """The queue of the task."""
        return self.graph.queue

    def future(self) -> TaskFuture:
        """Return the task's future; the graph was sent."""
        if self._future is None:
            session = self.graph.session
            future = TaskFuture(session, self.queue, self.task_id, self.name)
            future.origin = "named" if self._kind == "named" else "call"
            session.exchange.expect(future)
            self._future = future
        return self._future

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's result; see TaskFuture.result."""
        return self.future().result(timeout)

    def reference(self) -> Reference:
        """Return what stands for its result."""
        if self._reference is None:
            self._reference = Reference(self._kind, self.queue.priority, self.task_id)
        return self._reference

    def prepare(self, client: Session) -> None:
        """Raise ConfigurationError where what depends on it would be in another queue."""
        if self.graph.session is client:
            return  # the usual
        self.queue.check_same(client, f"task {self.task_id}")

    def failure(self) -> None:
        """Return None: how it ended is on the server."""

    def identity(self) -> str:
        """Return what names its result: all that it was made of."""
        if not self._identity:
            self._identity = self.graph.digest_at(self.position).hex()
        return self._identity

    def __repr__(self) -> str:
        return f"<CallNode {self.task_id} {self.name}>"


class CallGraph(Graph):
    """A graph of function calls; see Graph.

    ``submit`` and ``map`` take what those of a client take, and return nodes instead of futures.
    A node as an argument of another call stands for its result.
    """

    def __init__(self, session: Session, options: CallOptions, name: str) -> None:
        self._queue = session.queue(options.priority)
        super().__init__(session.broker, self._queue.commands, name)
        self.session = session
        self._given = options.kept(GRAPH_TTL_S)
        self._needs: list[str] = []
        self._shared = Shared()
        self._fingerprints: dict[str, bytes] = {}

    @property
    def queue(self) -> ClientQueue:
        """The queue of its tasks, of their priority."""
        return self._queue

    def __enter__(self) -> CallGraph:
        super().__enter__()
        self._needs = []
        self._shared = Shared()
        return self

    # -- writing ---------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> CallNode:
        """Add a call, or a named task with its payload; return its node."""
        return self._add(fn, args, kwargs, self._given, ())

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[CallNode]:
        """Add one call an item; return their nodes."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]

    def after(self, parents: Any, **options: Any) -> BoundGraph:
        """Return the graph with its next calls running after others, whose results they do not
        take; a mapping says of each "success", "end" (of any kind) or "failure"."""
        return BoundGraph(self, self._given.changed(options), parents)

    def options(self, **options: Any) -> BoundGraph:
        """Return the graph with options of its next calls: those of Client.options."""
        return BoundGraph(self, self._given.changed(options), ())

    def add_flow(self, flow: Flow) -> list[CallNode]:
        """Add the tasks of a flow; return their nodes, in the order in which they are written."""
        nodes: list[CallNode] = []
        steps, _ = steps_of(flow)
        for step in steps:
            before = [nodes[i] for i in step.after]
            nodes.append(self._add_step(step.signature, step, before))
        return nodes

    def _add_step(self, signature: Signature, step: Step, before: Sequence[CallNode]) -> CallNode:
        options = self._given.changed(signature.given)
        args, after = taking(step, before)
        return self._add(signature.task, args, signature.kwargs, options, after)

    def _add(
        self,
        fn: Callable[..., Any] | str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        after: Any,
    ) -> CallNode:
        plan = self._open_plan
        position = len(plan.tasks)
        task_id = self.task_id(position)
        parents: Parents = {}
        is_call = not isinstance(fn, str)
        if isinstance(fn, str):
            packed = self._named(fn, args, kwargs)
        else:
            packed = self._call(fn, args, kwargs, options, task_id, parents)
        name, payload, called, given = packed
        prepare(self.session, parents)
        nodes: Iterable[Any] = parents.values()
        if after or options.gate:
            after = after or options.gate.get("after") or ()
            if isinstance(after, Iterable) and not isinstance(after, str | Mapping):
                after = [*after]
            nodes = [*nodes, *(after if isinstance(after, Mapping | list) else (after,))]
        before = [node.position for node in nodes if type(node) is CallNode and node.graph is self]
        keyed = args[0] if args else None
        if is_call and options.gate:
            keyed = arguments_of(cast(Callable[..., Any], fn), args, kwargs)
        gate = gate_of(self._queue, options, keyed, parents, after, alone=False)
        text = None if gate is None else gate.text
        opts = task_options(self.session, options, name, task_id, batch=self.name, gate=text)
        digest = plan.digest(name.encode(), given, before)
        seals = None if is_call else self._queue.seals
        if seals is not None:
            payload = seals.payload(task_id, name, payload)
        fields = (task_id, name, payload, opts, options.due)
        plan.add(fields, () if gate is None else gate.conditions, called, digest, before)
        return CallNode(self, position, task_id, "call" if is_call else "named", called)

    def _named(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, bytes, str, bytes]:
        if kwargs or len(args) > 1:
            raise TypeError("a named task takes one payload: graph.submit('name', payload)")
        most = self.session.settings.max_payload_bytes
        payload = encode_payload(name, args[0] if args else None, most)
        return name, payload, name, payload

    def _call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        task_id: str,
        parents: Parents,
    ) -> tuple[str, bytes, str, bytes]:
        """Return a call's task name and payload, what it is called, and what names it."""
        check_function(fn, "submit")
        keep_s = keep_needs_s(options)
        packer = self.session.packer
        function = packer.store_function(fn, keep_s, self._needs, self._shared)
        setup = packer.store_setup(options, keep_s, self._needs, self._shared)
        code = function + setup
        named = self._fingerprints.get(code)
        if named is None:
            from ..functions.fingerprint import fingerprint_of

            both = fn if options.setup is None else (fn, options.setup)
            named = self._fingerprints[code] = fingerprint_of(both, "the function")
        given = named + named_by(args, kwargs)
        call = Call.under(options, function, args, dict(kwargs), setup=setup)
        context = self._queue.context_of(task_id)
        packet = packer.pack(context, call, keep_s, self._needs, self._shared, parents)
        called = options.name or label(fn)
        return f"{CALL}:{called}", packet, called, given

    def digest_at(self, position: int) -> bytes:
        """Return what names a task that was added here."""
        assert self._plan is not None
        return self._plan.tasks[position].digest

    def _send(self) -> None:
        session = self.session
        session.exchange.presence.begin()
        super()._send()
        batch = self.batch()
        batch._needs = self._needs
        batch._want()
        session.exchange.hold(batch, begun=True)

    # -- looking ---------------------------------------------------------------------------------

    def batch(self) -> Batch:
        """Return the batch that counts its tasks."""
        return Batch(self.session, self.queue.priority, self.name, self.total)

    def wait(self, timeout: float | None = None) -> CallGraph:
        """Wait until every task has ended; raises ResultTimeout after ``timeout`` seconds."""
        self.batch().wait(timeout)
        return self

    def results(self, timeout: float | None = None) -> list[Any]:
        """Return the results of the tasks after which no other of the graph runs, in the order in
        which they were added; raises what the first failed one raised, and ResultTimeout after
        ``timeout`` seconds. A graph of another program has them, too."""
        timeout = wait_seconds(timeout)
        left = countdown(timeout)
        self.wait(timeout)
        shape = self.shape(self.total)
        inner = {parent for node in shape for parent in node.parents}
        futures: list[TaskFuture] = []
        for position, node in enumerate(shape):
            if position not in inner:
                future = TaskFuture(self.session, self.queue, self.task_id(position), node.name)
                future.origin = self._origin_at(position)
                futures.append(future)
        self.session.exchange.expect_all(futures)
        for future in futures:
            exception_within(future, left, timeout)
        return [future.result() for future in futures]

    def _origin_at(self, position: int) -> Literal["call", "named", "unknown"]:
        """Return what the task at a position is, as far as that is known here."""
        if self._plan is None:
            return "unknown"
        name = self._plan.tasks[position].fields[1]
        return "call" if name.partition(":")[0] == CALL else "named"

    def failures(self) -> pd.DataFrame:
        """Return one row a failed task; see Batch.failures."""
        return self.batch().failures()


class BoundGraph:
    """A graph with options set for what is added next."""

    def __init__(self, graph: CallGraph, options: CallOptions, after: Any) -> None:
        self._graph = graph
        self._given = options
        self._after = after

    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> CallNode:
        """As CallGraph.submit."""
        return self._graph._add(fn, args, kwargs, self._given, self._after)

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> list[CallNode]:
        """As CallGraph.map."""
        return [self.submit(fn, *args) for args in zip(*iterables, strict=False)]


def named_by(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Return what names the arguments of a call: 20 bytes. Of plain values and tasks, which most
    graphs are made of, without the general way."""
    parts = [b"plain"]
    for value in args:
        kind = _PLAIN.get(type(value))
        if kind is not None:
            text = hex(value) if type(value) is int else repr(value)
        elif isinstance(value, Referable):
            kind, text = b"task", value.identity()
        else:
            break
        data = text.encode("utf-8", "surrogatepass")
        parts.append(b"%b %d %b" % (kind, len(data), data))
    else:
        if not kwargs:
            return hashlib.blake2b(b"".join(parts), digest_size=20).digest()
    from ..functions.fingerprint import fingerprint_of

    return fingerprint_of((args, kwargs), "the arguments")


def submit_flow(session: Session, flow: Flow, options: CallOptions) -> Any:
    """Send the tasks of a flow; return the future of its end, or a list where it has several."""
    steps, ends = steps_of(flow)
    futures: list[TaskFuture] = []
    for step in steps:
        signature = step.signature
        args, after = taking(step, [futures[i] for i in step.after])
        own = options.changed(signature.given)
        futures.append(
            submit(session, signature.task, args, dict(signature.kwargs), own, after=after)
        )
    found = [futures[i] for i in ends]
    return found[0] if len(found) == 1 else found
