"""Steps and events of function calls, from a notebook: seen, run again here, gone on with.

``WithSteps`` is a part of futures, ``SendsEvents`` of clients. What steps hold is unpickled only
with the task's own signature.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..context import TaskContext, as_current, serve_contexts
from ..errors import RedistqError
from ..functions.blobs import BLOB_TTL_S
from ..functions.scheduled import opened
from ..functions.steps import SignedSteps, signed_event
from ..functions.written import Call
from ..producer.sansio import run
from ..producer.steps import sending, steps_of
from ..protocol.codec import dumps, loads
from ..protocol.commands import Commands
from ..protocol.keys import new_task_id, without_priority
from ..protocol.options import Seconds, shown
from ..protocol.steps import EVENT_KEPT_S, RecordedStep, StepStatus, read_recalled
from ..worker.steps import Suspension, TaskSteps
from .outcomes import call_of

if TYPE_CHECKING:
    from .futures import TaskFuture
    from .queues import ClientQueue
    from .session import Session


class WithSteps:
    """What a future can do with the steps of its task."""

    __slots__ = ()
    task_id: str
    name: str
    queue: ClientQueue
    _session: Any

    def steps(self) -> list[StepStatus]:
        """Return the steps that the task has done (``context.step`` and its kin), in order."""
        return run(self.queue.broker, steps_of(self.queue.commands, self.task_id))

    def debug(self, *, events: Mapping[str, Any] | None = None, post_mortem: bool = True) -> Any:
        """Run the function here as the failed task would go on: steps that are done are given back
        as they were, later ones run here and are not kept.

        Where it raises, the debugger stops there (not with ``post_mortem=False``). A sleep is
        passed over; a wait for an event that has not come is given one of ``events``. Of an
        ``async def`` function: ``await future.debug()``. It works for tasks that sleep, too.

        Raises RedistqError where the task's arguments are not kept.
        """
        session = self._session
        function, args, kwargs = call_of(session, self.queue, self.task_id)
        steps = recorded(session, self.queue, self.task_id, events or {})
        context = _context(self, steps)
        guard = _Debugger() if post_mortem else nullcontext()
        with guard, as_current(context):
            result = function(*args, **kwargs)
        return _awaited(result, context, guard) if inspect.iscoroutine(result) else result

    def continue_with(self, fn: Callable[..., Any]) -> TaskFuture:
        """Run the failed task again with another function, the mended one, and the arguments it
        had: it goes on after the steps that are done. Return a new future for it.

        The function asks for the same steps in the same order, as far as they are done. Raises
        RedistqError where the task has not failed, or its arguments are not kept.
        """
        if not callable(fn):
            raise TypeError(f"continue_with takes a function, not {shown(fn)}")
        session, queue = self._session, self.queue
        _send_again(session, queue, self.task_id, fn)
        again: Any = type(self)(session, queue, self.task_id, self.name)  # type: ignore[call-arg]
        again.origin = "call"
        session.exchange.expect(again)
        return again  # type: ignore[no-any-return]


class SendsEvents:
    """What a client can send to tasks that wait."""

    __slots__ = ()
    _session: Session

    def send_event(
        self,
        name: str,
        payload: Any = None,
        *,
        task: str | TaskFuture | None = None,
        keep: Seconds = EVENT_KEPT_S,
    ) -> int:
        """Let the tasks go on that wait for an event of that name (``context.wait_for``); return
        how many do by now. As TaskProducer.send_event, and signed: functions take it, too.

        ``task`` is one future, or one id, for a message to that task alone.
        """
        session = self._session
        task_id = task if isinstance(task, str) or task is None else task.task_id
        stream = session.keys.stream
        body = signed_event(session.signer, stream, name, payload, task_id or "")
        commands = session.queue().commands
        return run(session.broker, sending(commands, name, body, task_id, keep))


# -- steps that run here --------------------------------------------------------------------------


class Remembered:
    """A StepStore of this process: what was recorded, and nothing that is kept."""

    def __init__(self, now_ms: int, steps: dict[int, RecordedStep]) -> None:
        self._now_ms = now_ms
        self._steps = steps

    def recall(self) -> tuple[int, dict[int, RecordedStep]]:
        """See StepStore."""
        return self._now_ms, dict(self._steps)

    def keep(self, number: int, name: str, run_ms: float, body: bytes) -> bool:
        """See StepStore."""
        return True

    def expect(self, wait: Suspension) -> tuple[str, int, RecordedStep | None]:
        """See StepStore."""
        return "none", self._now_ms, None

    def give_up(self) -> None:
        """See StepStore."""


class LocalSteps(TaskSteps):
    """The steps of a task that runs here for a look: nothing is put off."""

    __slots__ = ("_events",)

    def __init__(self, store: Remembered, codec: SignedSteps, events: Mapping[str, Any]) -> None:
        super().__init__(store, codec)
        self._events = events

    def _check_thread(self, name: str, twin: str) -> None:
        """In a notebook a loop runs that may be held up: its user waits for this."""

    def _sleep(self, number: int, wait_ms: int) -> None:
        if self._known(number, "sleep", "sleep") is None:
            print(f"context.sleep: {wait_ms / 1000:g} s, passed over here")

    def _wait_for(self, number: int, event: str, wait_ms: int | None, default: Any) -> Any:
        step = self._known(number, "event", event)
        if step is not None and step.kind != "wait":
            return super()._wait_for(number, event, wait_ms, default)
        if event in self._events:
            return self._events[event]
        raise RedistqError(
            f"the task waits for event {event!r}, which has not come: give one to "
            f"future.debug(events={{{event!r}: ...}}), or send it (client.send_event)"
        )


def recorded(
    session: Session, queue: ClientQueue, task_id: str, events: Mapping[str, Any]
) -> LocalSteps:
    """Return the steps of a call as the server has them."""
    now_ms, steps = read_recalled(queue.broker.call(queue.commands.recall(task_id, whole=True)))
    stream = without_priority(queue.keys.stream)
    codec = SignedSteps(session.signer, stream, queue.context_of(task_id), task_id)
    return LocalSteps(Remembered(now_ms, steps), codec, events)


def _context(future: Any, steps: LocalSteps) -> TaskContext:
    log = logging.LoggerAdapter(logging.getLogger("redistq.task"), {"task_id": future.task_id})
    queue = future.queue.keys.stream
    context = TaskContext(future.task_id, future.name, queue, 1, 0, 1, "", "here", log)
    context._steps = steps
    return context


class _Debugger:
    """Stops where an exception was raised; it goes on to the caller then."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            import pdb

            pdb.post_mortem(traceback)


async def _awaited(work: Coroutine[Any, Any, Any], context: TaskContext, guard: Any) -> Any:
    serve_contexts(lambda: context, thread=False)
    with guard:
        return await work


# -- going on with another function ---------------------------------------------------------------


def _send_again(session: Session, queue: ClientQueue, task_id: str, fn: Callable[..., Any]) -> None:
    """Send a failed task again with another function."""
    watched = queue.watch(task_id)
    record = watched.record
    if watched.state != "failed" or not record.get("payload"):
        raise RedistqError(
            f"task {task_id} has not failed, it is {watched.state}: only a failed task can go on "
            "with another function"
        )
    context = queue.context_of(task_id)
    data = opened(session.signer, queue.keys.stream, task_id, record["payload"])
    call = Call.unpickled(data, session.blobs.argument)
    keep_s = BLOB_TTL_S
    needs: list[str] = []
    call = replace(call, function=session.packer.store_function(fn, keep_s, needs))
    packet = session.packer.pack(context, call, keep_s, needs)
    opts = _without_deadline(record.get("opts", b""))
    row = (task_id, record["name"], packet, opts, "", "", "")
    refused = Commands.read_refused(
        queue.broker.call(queue.commands.resubmit(new_task_id(), [row]))
    )
    if refused.lost or refused.broken:
        why = next(iter(refused.broken.values()), "it has been sent again since")
        raise RedistqError(f"task {task_id} cannot go on with another function: {why}")


def _without_deadline(opts: bytes) -> bytes:
    """Return a task's options without the time by which it was to start: it has."""
    found = loads(opts) if opts else {}
    if "gate" not in found:
        return opts
    lines = found["gate"].split("\n")
    gate = "\n".join(line for line in lines if not line.startswith("x "))
    return dumps({**found, "gate": gate})
