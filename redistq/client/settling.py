"""The ends that futures are given: by what the server says of their tasks, and by this process.

Used by what takes work and what hears of its end: the sender, the result listener, the session.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import CancelledError, Future

from ..codecs.sealing import Kind
from ..errors import RedistqError, TaskCancelled
from ..functions.signing import Signer
from ..protocol.pieces import Memory
from .futures import LATER, TaskFuture
from .outcomes import decode_error, decode_result


def settle(future: TaskFuture, signer: Signer, state: str, body: Memory | None) -> None:
    """Give a future the end of its task; one that was cancelled meanwhile keeps that."""
    if future.done():
        return
    future.ended_at = time.monotonic()
    task_id = future.task_id
    origin = future.origin
    context = future.queue.context_of(task_id)
    try:
        if origin != "call" and state in ("succeeded", "failed"):
            kind: Kind = "result" if state == "succeeded" else "error"
            body = future.queue.opened(kind, task_id, body if body is None else bytes(body))
        if state == "succeeded":
            future.set_result(decode_result(signer, context, task_id, body, origin))
        elif state == "failed":
            error, future._report = decode_error(
                signer, context, task_id, bytes(body or b"{}"), origin == "unknown"
            )
            future.set_exception(error)
        else:
            future._why = bytes(body or b"").decode("utf-8", "replace")
            mark_cancelled(future)
    except CancelledError:
        pass
    except Exception as why:  # broad: what cannot be read is its task's error, not its reader's
        fail(future, why)


def leave_there(future: TaskFuture) -> None:
    """Give a future its end, and leave its result on the server until it is asked for."""
    if not future.done():
        future.ended_at = time.monotonic()
        with contextlib.suppress(CancelledError):
            future.set_result(LATER)


def fail(future: TaskFuture, error: BaseException) -> None:
    """Give a future an error, unless it has its end."""
    if not future.done():
        future.set_exception(error)


def mark_cancelled(future: TaskFuture) -> None:
    """Give a future the end of a task that was cancelled.

    Called by ``cancel`` and for the inbox's notification: only the first call notifies waiters.
    """
    with future._condition:
        first = not future._is_marked
        future._is_marked = True
    if first and Future.cancel(future):
        future.set_running_or_notify_cancel()


def release(future: TaskFuture) -> None:
    """Let a future go on without its session: what a notebook remembers keeps no workers."""
    session = future._held
    was_cancelled = future.cancelled() or isinstance(future._exception, TaskCancelled)
    if future.needs and was_cancelled and session is not None:
        needs = future.needs
        future.needs = ()
        session.blobs.drop(needs)
    future._held = None


def disown(future: TaskFuture) -> None:
    """End a future of the parent's in a forked process; a thread that is not here may have held its
    locks."""
    future._condition = threading.Condition()
    vars(future)["_done_callbacks"] = []
    fail(
        future,
        RedistqError(f"task {future.task_id} belongs to the process that forked this one"),
    )
