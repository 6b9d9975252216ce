"""Dask collections on redistq's workers: ``dask.compute(x, scheduler=client.dask_get)``.

Each task of a Dask graph becomes a call, and what it depends on goes from worker to worker: only
what was asked for comes here. Dask itself writes and optimises the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import TaskCancelled
from ..protocol.options import CallOptions
from ..system.interpreter import require
from .futures import TaskFuture, cancel_all
from .submission import submit

if TYPE_CHECKING:
    from .session import Session


def run_node(node: Any, values: dict[Any, Any]) -> Any:
    """Run a task of a Dask graph with the results of those it depends on; called by workers."""
    return node(values)


def compute_graph(session: Session, options: CallOptions, graph: Any, keys: Any) -> Any:
    """Return the values of keys of a Dask graph, nested as the keys are.

    Raises what the first task raised that failed; what has not started is cancelled then, and
    after an interrupt.
    """
    require("dask", "dask", "Dask collections")
    from dask import core
    from dask._task_spec import convert_legacy_graph

    if not isinstance(graph, Mapping):
        graph = graph.__dask_graph__()
    nodes = convert_legacy_graph(graph)
    flat: Any = core.flatten
    wanted = list(flat(keys)) if isinstance(keys, list) else [keys]
    sending = _Sending(session, options, nodes)
    with _watched(nodes, sending):
        try:
            for key in _needed(nodes, wanted):
                sending.send(key)
            return _nested(keys, sending)
        except BaseException:  # broad: an interrupt, or what a task raised; raised again
            with contextlib.suppress(Exception):
                cancel_all([future for future in sending.futures() if not future.done()])
            raise


class _Sending:
    """The tasks of one graph on their way."""

    def __init__(self, session: Session, options: CallOptions, nodes: Mapping[Any, Any]) -> None:
        self._session = session
        self._options = options
        self._nodes = nodes
        self._values: dict[Any, Any] = {}
        self.on_sent: Any = None
        """Told of each key that is sent, and its future."""

    def send(self, key: Any) -> None:
        """Send a task whose parents were sent; data and other names of tasks need no task."""
        from dask._task_spec import Alias, DataNode
        from dask.utils import key_split

        node = self._nodes[key]
        if isinstance(node, DataNode):
            self._values[key] = node.value
        elif isinstance(node, Alias):
            self._values[key] = self._values[node.target]
        else:
            options = self._options
            if options.name is None:
                options = options.changed({"name": str(key_split(key))[:100] or "dask"})
            future = submit(self._session, *_call_of(node, self._values), options)
            self._values[key] = future
            if self.on_sent is not None:
                self.on_sent(key, future)

    def futures(self) -> Iterator[TaskFuture]:
        """Yield the futures of all tasks that were sent."""
        return (value for value in self._values.values() if isinstance(value, TaskFuture))

    def value(self, key: Any) -> Any:
        """Return the value of a key, waiting for its task."""
        value = self._values[key]
        if not isinstance(value, TaskFuture):
            return value
        try:
            return value.result()
        except TaskCancelled:
            # It did not run since another failed: that one's error is what counts.
            for future in self.futures():
                if future.done() and future.state == "failed":
                    future.result()
            raise


def _call_of(node: Any, values: Mapping[Any, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the call that a task is, with futures for what it depends on: of its own function
    where its arguments can be told apart, so that one function of many tasks is sent once."""
    from dask._task_spec import Task

    if type(node) is Task:
        try:
            args = tuple([_argument(one, values) for one in node.args])
            return node.func, args, {n: _argument(one, values) for n, one in node.kwargs.items()}
        except _Nested:
            pass
    return run_node, (node, {parent: values[parent] for parent in node.dependencies}), {}


class _Nested(Exception):
    """An argument is a task in itself."""


def _argument(value: Any, values: Mapping[Any, Any]) -> Any:
    from dask._task_spec import Alias, DataNode, GraphNode, List, TaskRef, Tuple

    kind = type(value)
    if kind is TaskRef:
        return values[value.key]
    if kind is Alias:
        return values[value.target]
    if kind is DataNode:
        return value.value
    if kind is List or kind is Tuple:
        return value.klass([_argument(one, values) for one in value.args])
    if isinstance(value, GraphNode):
        raise _Nested
    return value


def _needed(nodes: Mapping[Any, Any], wanted: list[Any]) -> list[Any]:
    """Return the keys that these need, each after those it depends on, in Dask's order."""
    from dask.order import order

    found: set[Any] = set()
    stack = [*wanted]
    while stack:
        key = stack.pop()
        if key not in found:
            found.add(key)
            stack += nodes[key].dependencies
    needed = {key: nodes[key] for key in found}
    places = order(needed)
    return sorted(needed, key=places.__getitem__)


def _nested(keys: Any, sending: _Sending) -> Any:
    if isinstance(keys, list):
        return tuple([_nested(key, sending) for key in keys])
    return sending.value(keys)


@contextlib.contextmanager
def _watched(nodes: Mapping[Any, Any], sending: _Sending) -> Iterator[None]:
    """Let Dask's callbacks, such as its ProgressBar, see the graph run."""
    from dask import callbacks as module

    told_by: Any = module  # it carries no types
    with told_by.local_callbacks(None) as callbacks:
        start, start_state, before, after, finish = told_by.unpack_callbacks(callbacks)
        if not callbacks:
            yield
            return
        state: dict[str, Any] = {name: set() for name in ("waiting", "running", "finished")}
        state |= {"ready": set(nodes), "cache": {}}

        def on_sent(key: Any, future: TaskFuture) -> None:
            state["ready"].discard(key)
            state["running"].add(key)
            for told in before:
                told(key, nodes, state)
            future.add_done_callback(lambda _: on_end(key))

        def on_end(key: Any) -> None:
            state["running"].discard(key)
            state["finished"].add(key)
            for told in after:
                told(key, None, nodes, state, "")

        for told in start:
            told(nodes)
        for told in start_state:
            told(nodes, state)
        sending.on_sent = on_sent
        failed = True
        try:
            yield
            failed = False
        finally:
            for told in finish:
                told(nodes, state, failed)
