"""Results: what came of other tasks, read where a task runs that needs it.

``ResultReader`` reads those of one queue, ``TaskResults`` by reference (references.py) what one
task needs, each result once, and those of several tasks in one round trip; used by the worker's
handler for function calls and by the contexts of named tasks. A result is trusted as its
reader's own client would trust it: a packet must be signed for the very task that is named, and the
name stands in a call that was signed itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..codecs.sealing import Seal, seal_of
from ..connection.broker import Broker
from ..errors import RedistqError, UnknownTask, UntrustedPayload
from ..protocol.codec import loads
from ..protocol.keys import QueueKeys, at_priority, batch_task_id
from ..protocol.pieces import Memory
from ..protocol.plain_commands import PlainCommands
from .outband import loaded
from .references import Kind, Reference
from .signing import Signer, is_packet, task_context
from .spill import opened as spilled

_FIRST_PAGE = 8
_PAGE = 100
"""Results of one task that are read together: at first, and at most."""
_PAGE_BYTES = 8 * 1024 * 1024
"""Bytes of them, about."""
SMALL = 64 * 1024
"""Bytes of a result that is read ahead of the task that needs it."""

Row = Sequence[Memory | None]
"""State and result, as a task's record has them."""


def result_in(
    signer: Signer,
    context: str,
    task_id: str,
    body: Memory | None,
    kind: Kind = "call",
    *,
    old: bool = False,
    unpickle: Callable[[Memory], Any] = loaded,
) -> Any:
    """Return a stored result: the packet signed for that context, or JSON.

    ``old``: the last release's packets will do; ``unpickle`` makes an object of what is signed.
    Raises UntrustedPayload for any other result, and
    UnknownTask for one that was not kept.
    """
    if body is None:
        error = UnknownTask(task_id)
        error.add_note("The task succeeded, and its result was not kept (result_ttl).")
        raise error
    if kind == "named" or (kind == "unknown" and not is_packet(body)):
        if is_packet(body):
            raise UntrustedPayload(f"the result of task {task_id} is a pickle, where JSON belongs")
        return loads(bytes(body))
    return unpickle(spilled(signer, "result", context, body, old=old or kind == "unknown"))


class ResultReader:
    """Reads results of tasks of one queue, of whatever lane; for all tasks that run."""

    def __init__(
        self, broker: Broker, stream: str, signer: Signer | None, seal: Seal | None = None
    ) -> None:
        """``seal`` opens results of named tasks."""
        self._broker = broker
        self._seal = seal or seal_of(None, stream)
        self._stream = stream
        """The queue's name on the server, without a priority."""
        self._signer = signer
        self._lanes: dict[str, PlainCommands] = {}

    def lane(self, lane: str) -> PlainCommands:
        """Return the commands of one of the queue's lanes."""
        found = self._lanes.get(lane)
        if found is None:
            found = PlainCommands(QueueKeys(at_priority(self._stream, lane)))
            self._lanes[lane] = found
        return found

    def rows(self, references: Sequence[Reference]) -> list[Row]:
        """Return state and stored result of tasks, asked for together."""
        commands = [self.lane(one.lane).result_of(one.id) for one in references]
        if len(commands) == 1:
            return [self._broker.call(commands[0])]
        return list(self._broker.call_many(commands))

    def read_small(self, references: Sequence[Reference], most: int) -> dict[Reference, Any]:
        """Return the stored results that are small, as they are, of at most about so many bytes in
        all; what is large, or not there, is left out."""
        commands = [self.lane(one.lane).result_size(one.id) for one in references]
        wanted: list[Reference] = []
        for reference, size in zip(references, self._broker.call_all(commands), strict=True):
            if 0 < size <= SMALL and most > 0:
                wanted.append(reference)
                most -= size
        if not wanted:
            return {}
        commands = [self.lane(one.lane).small_result_of(one.id) for one in wanted]
        rows = zip(wanted, self._broker.call_all(commands), strict=True)
        return {reference: body for reference, (state, body) in rows if state == b"succeeded"}

    def opened(self, reference: Reference, body: Memory) -> Memory:
        """Return the data of the signed result of a call; raises UntrustedPayload."""
        assert self._signer is not None
        return self._signer.unpack("result", self._context(reference), body)

    def value(self, reference: Reference, row: Row) -> Any:
        """Return the result that a row holds; raises as ``TaskResults.read``."""
        state, body = row
        if state != b"succeeded":
            raise _not_there(reference.id, state)
        if body is not None and not is_packet(body) and reference.kind in ("named", "unknown"):
            body = self._seal.open_of_task("result", reference.id, bytes(body))
        if self._signer is not None:
            context = self._context(reference)
            return result_in(self._signer, context, reference.id, body, reference.kind)
        if body is not None and is_packet(body):
            raise UntrustedPayload(
                f"the result of task {reference.id} is that of a function call, which only another "
                "function call can read"
            )
        return None if body is None else loads(bytes(body))

    def _context(self, reference: Reference) -> str:
        return task_context(self.lane(reference.lane).keys.stream, reference.id)


class TaskResults:
    """Reads results of other tasks of the same queue, each once; for one task that runs."""

    def __init__(
        self,
        reader: ResultReader,
        needed: Sequence[Reference] = (),
        ahead: Mapping[Reference, Memory] | None = None,
    ) -> None:
        """``needed`` are results that the task will ask for; ``ahead`` has the data of those calls
        whose results were read before, their signatures checked."""
        self._reader = reader
        self._known: dict[Reference, Any] = {}
        self._needed = iter(needed)
        self._ahead = ahead or {}
        self._rows: dict[Reference, Row] = {}
        self._page = _FIRST_PAGE

    def expect(self, references: Iterable[Reference]) -> None:
        """Read these with each other, once the first of them is asked for."""
        self._needed = iter(references)

    def read(self, reference: Reference) -> Any:
        """Return the result that a reference stands for.

        Raises RedistqError for a task that has not succeeded, UnknownTask where its result is not
        there any more, and UntrustedPayload.
        """
        if reference in self._known:
            return self._known[reference]
        found: Any
        if (data := self._ahead.get(reference)) is not None:
            found = loaded(data)
        elif reference.kind == "batch":
            found = self._read_batch(reference)
        else:
            if reference not in self._rows:
                self._read_page(reference)
            found = self._reader.value(reference, self._rows.pop(reference))
        self._known[reference] = found
        return found

    def _read_page(self, reference: Reference) -> None:
        """Read the rows of a reference and of others that will be asked for: about as many as the
        results so far say can be held."""
        page = [reference]
        for other in self._needed:
            if other.kind != "batch" and not self._is_here(other) and other != reference:
                page.append(other)
                if len(page) >= self._page:
                    break
        rows = self._reader.rows(page)
        self._rows.update(zip(page, rows, strict=True))
        largest = max(len(body or b"") for _, body in rows)
        self._page = max(1, min(_PAGE, _PAGE_BYTES // max(largest, 1)))

    def _is_here(self, reference: Reference) -> bool:
        return reference in self._known or reference in self._ahead or reference in self._rows

    def _read_batch(self, batch: Reference) -> list[Any]:
        calls = (
            Reference("call", batch.lane, batch_task_id(batch.id, i)) for i in range(batch.total)
        )
        found: list[Any] = []
        while page := list(itertools.islice(calls, _PAGE)):
            rows = self._reader.rows(page)
            found.extend(map(self._reader.value, page, rows))
        return found


def _not_there(task_id: str, state: Memory | None) -> RedistqError:
    if state is None:
        error = UnknownTask(task_id)
        error.add_note("Its result is needed here, and its record is gone, or it runs again.")
        return error
    ended = bytes(state).decode("utf-8", "replace")
    return RedistqError(f"the result of task {task_id} is needed here, and it {ended}")
