"""Results: what came of other tasks, read where a task runs that needs it.

``TaskResults`` reads by reference (references.py), each result once for one task; used by the
worker's handler for function calls and by the contexts of named tasks. A result is trusted as its
reader's own client would trust it: a packet must be signed for the very task that is named, and the
name stands in a call that was signed itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from ..connection.broker import Broker
from ..errors import RedistqError, UnknownTask, UntrustedPayload
from ..protocol.codec import loads
from ..protocol.keys import QueueKeys, at_priority, batch_task_id
from ..protocol.plain_commands import PlainCommands
from .pickling import load
from .references import Kind, Reference
from .signing import Signer, is_packet, task_context

_PAGE = 100
"""Results that are read together."""


def result_in(
    signer: Signer,
    context: str,
    task_id: str,
    body: bytes | None,
    kind: Kind = "call",
    *,
    old: bool = False,
    unpickle: Callable[[bytes], Any] = load,
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
        return loads(body)
    return unpickle(signer.unpack("result", context, body, old=old or kind == "unknown"))


class TaskResults:
    """Reads results of other tasks of the same queue, each once; for one task that runs."""

    def __init__(self, broker: Broker, stream: str, signer: Signer | None) -> None:
        self._broker = broker
        self._stream = stream
        """The queue's name on the server, without a priority."""
        self._signer = signer
        self._known: dict[Reference, Any] = {}

    def read(self, reference: Reference) -> Any:
        """Return the result that a reference stands for.

        Raises RedistqError for a task that has not succeeded, UnknownTask where its result is not
        there any more, and UntrustedPayload.
        """
        if reference not in self._known:
            ids = [reference.id]
            if reference.kind == "batch":
                ids = [batch_task_id(reference.id, i) for i in range(reference.total)]
            found = list(self._results(reference, ids))
            self._known[reference] = found if reference.kind == "batch" else found[0]
        return self._known[reference]

    def _results(self, reference: Reference, ids: list[str]) -> Iterator[Any]:
        keys = QueueKeys(at_priority(self._stream, reference.lane))
        commands = PlainCommands(keys)
        kind: Kind = "call" if reference.kind == "batch" else reference.kind
        source = iter(ids)
        while page := list(itertools.islice(source, _PAGE)):
            replies = list(self._broker.call_many(commands.end_of(one) for one in page))
            for task_id, (state, body, *_) in zip(page, replies, strict=True):
                if state != b"succeeded":
                    raise _not_there(task_id, state)
                context = task_context(keys.stream, task_id)
                yield self._result(context, task_id, body, kind)

    def _result(self, context: str, task_id: str, body: bytes | None, kind: Kind) -> Any:
        if self._signer is not None:
            return result_in(self._signer, context, task_id, body, kind)
        if body is not None and is_packet(body):
            raise UntrustedPayload(
                f"the result of task {task_id} is that of a function call, which only another "
                "function call can read"
            )
        return None if body is None else loads(body)


def _not_there(task_id: str, state: bytes | None) -> RedistqError:
    if state is None:
        error = UnknownTask(task_id)
        error.add_note("Its result is needed here, and its record is gone, or it runs again.")
        return error
    return RedistqError(
        f"the result of task {task_id} is needed here, and it {state.decode('utf-8', 'replace')}"
    )
