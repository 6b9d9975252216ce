"""The parents of a task that runs: the tasks it ran after, and their results, read when asked for.

Made by attempts for the contexts of handlers. Read from the server, by reference: no result stands
in the task itself, and one that nobody asks for is not read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import RedistqError, ServerUnavailable
from ..protocol.keys import PRIORITY_MARK, without_priority

if TYPE_CHECKING:
    from ..functions.references import Kind, Reference
    from ..functions.results import TaskResults
    from .queues import WorkerQueue

_EDGE = re.compile(r"([sef])([tb])(?:!([a-z]+))? (.*)")


class TaskParents:
    """What one task ran after; for one attempt."""

    def __init__(self, queue: WorkerQueue, task_id: str) -> None:
        self._queue = queue
        self._task_id = task_id
        self._found: list[tuple[str, Reference]] | None = None
        self._results: TaskResults | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of its parents, batches by their names, in the order in which they were given."""
        return [reference.id for _, reference in self._edges()]

    def results(self) -> list[Any]:
        """Return the results of its parents in order, of a batch the list of its results; None for
        one that need not succeed and did not."""
        found = []
        reader = self._reader()
        reader.expect(reference for _, reference in self._edges())
        for policy, reference in self._edges():
            try:
                found.append(reader.read(reference))
            except RedistqError as error:
                if policy == "s" or isinstance(error, ServerUnavailable):
                    raise
                found.append(None)
        return found

    def result(self, task_id: str) -> Any:
        """Return the result of one parent, or of another task of this queue."""
        for _, reference in self._edges():
            if reference.id == task_id:
                return self._reader().read(reference)
        return self._reader().read(self._reference("unknown", self._lane, task_id))

    @property
    def _lane(self) -> str:
        return self._queue.commands.keys.stream.partition(PRIORITY_MARK)[2] or "normal"

    def _edges(self) -> list[tuple[str, Reference]]:
        """Return policy and parent of each edge, as the task's record has them."""
        if self._found is None:
            raw = self._ask(self._queue.commands.edges(self._task_id)) or b""
            lines = map(_EDGE.fullmatch, raw.decode("utf-8", "replace").split("\n"))
            self._found = [
                (
                    line[1],
                    self._reference("batch" if line[2] == "b" else "unknown", *line.group(3, 4)),
                )
                for line in lines
                if line is not None
            ]
        return self._found

    def _reference(self, kind: Kind, lane: str | None, task_id: str) -> Reference:
        from ..functions.references import Reference

        total = 0
        if kind == "batch":
            total = int(self._ask(self._queue.commands.batch_total(task_id)) or 0)
        return Reference(kind, lane or "normal", task_id, total)

    def _reader(self) -> TaskResults:
        if self._results is None:
            from ..functions.results import ResultReader, TaskResults

            stream = without_priority(self._queue.commands.keys.stream)
            self._results = TaskResults(ResultReader(self._broker, stream, None, self._queue.seal))
        return self._results

    def _ask(self, command: Any) -> Any:
        return self._broker.call(command)

    @property
    def _broker(self) -> Any:
        broker = self._queue.broker
        if broker is None:
            raise RedistqError("this worker cannot read results of other tasks")
        return broker
