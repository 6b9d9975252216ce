"""What can be asked of a call that was made: its output, its arguments, another try.

Used by futures and batches. It reads what the server keeps of the task, and changes nothing but by
``replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionLost, RedistqError
from ..functions.call import Call, Ref, load_function, load_here
from .tail import StreamTail

if TYPE_CHECKING:
    from .queues import ClientQueue
    from .session import Session

LOOK_S = 0.5
"""Seconds after which it is looked again whether a task whose output is followed has ended."""


def read_logs(session: Session, task_id: str) -> list[str]:
    """Return the lines that a task has printed so far."""
    rows = session.broker.call(session.queue().commands.log_lines(task_id))
    return [line for _, fields in rows for line in _lines(fields)]


def follow_logs(session: Session, task_id: str, has_ended: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a task as they come, until it has ended."""
    tail = StreamTail(session.broker, session.keys.logs(task_id))
    try:
        while True:
            ended = has_ended()
            try:
                rows = tail.read(0.001 if ended else LOOK_S, count=500)
            except ConnectionLost:
                if ended:
                    return
                tail.pause()
                continue
            for fields in rows:
                yield from _lines(fields)
            if ended and not rows:
                return
    finally:
        tail.close()


def _lines(fields: list[bytes]) -> Iterator[str]:
    """Yield the line of an entry; none where somebody else wrote it."""
    if len(fields) > 3:
        yield fields[3].decode("utf-8", "replace")


def replay(queue: ClientQueue, task_id: str) -> None:
    """Send a failed task again, as it was; raises RedistqError where it is no dead letter."""
    if not queue.replay((task_id,)):
        raise RedistqError(f"task {task_id} is no dead letter; only failed tasks are replayed")


def call_of(
    session: Session, queue: ClientQueue, task_id: str
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return the function of a failed task and its arguments, to be called here."""
    payload = queue.watch(task_id).record.get("payload")
    if not payload:
        raise RedistqError(
            f"the arguments of task {task_id} are not kept: only failed tasks keep theirs"
        )
    call = whole_call(session, queue, task_id, payload)
    function = load_function(session.blobs.get("function", call.function))
    if call.chunk:

        def chunk() -> list[Any]:
            return [function(*one, **call.kwargs) for one in call.args]

        return chunk, (), {}
    return function, call.args, call.kwargs


def whole_call(
    session: Session, queue: ClientQueue, task_id: str, payload: bytes, *, old: bool = True
) -> Call:
    """Return the call that a task's payload holds, with its large arguments put in."""
    fetch = session.blobs.argument
    data = session.signer.unpack("call", queue.context_of(task_id), payload, old=old)
    call = Call.unpickled(data, fetch)

    def real(value: Any) -> Any:
        if isinstance(value, Ref):
            return load_here(fetch(value.digest), "an argument", fetch)
        return value

    if call.chunk:
        args: Any = [tuple(real(a) for a in one) for one in call.args]
    else:
        args = tuple(real(a) for a in call.args)
    return replace(call, args=args, kwargs={n: real(v) for n, v in call.kwargs.items()})
