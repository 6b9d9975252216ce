"""Outcomes: what came of a task: its result, its error, its output, and the call that it was.

Used by futures and batches. What the server holds is not trusted: pickles are unpacked only with
this task's own signature. Nothing is changed here but by ``replay``.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextvars import copy_context
from dataclasses import replace
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, Literal

from ..errors import (
    ConfigurationError,
    ConnectionLost,
    MemoryLimitExceeded,
    PayloadError,
    RedistqError,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TimeLimitExceeded,
    UnknownTask,
)
from ..functions.function import load_function
from ..functions.outband import loaded
from ..functions.references import read_by
from ..functions.results import ResultReader, TaskResults, result_in
from ..functions.scheduled import opened
from ..functions.signing import Signer
from ..functions.written import Call, put_in
from ..protocol.codec import loads
from ..protocol.commands import Commands
from ..protocol.keys import PRIORITIES, batch_task_id
from ..protocol.pieces import Memory
from .queues import ClientQueue, StreamTail

if TYPE_CHECKING:
    from .session import Session

Origin = Literal["call", "named", "unknown"]
"""What is known of a task whose result is read: it is a function call, and its result a packet of
its own; it has a name, and its result is JSON; or only its id is known, and either will do."""

ENDS_PAGE = 1000
"""Entries of a batch's stream of ends that are read in one request."""
CAUSES = 20
"""How many cancelled tasks are passed on the way to the one that failed."""
MOST_KNOWN = 10_000
"""Most tasks of which it is remembered why they did not run."""
_OF_QUEUE = (b"parent ", b"batch ", b"dropped by limit ")
"""What the reasons begin with for which the queue cancels a task."""
_PARENT = re.compile(r"parent (.*) (failed|cancelled|expired)")
FOLLOW_S = 0.5
"""Seconds after which, at most, it is looked again whether a task whose output is followed has
ended; of one that is followed for a shorter time, a tenth of that."""


_OF_KILLED: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (TimeLimitExceeded, MemoryLimitExceeded)
}
"""What a task ends with whose process was killed: nobody could pickle its error."""


class RemoteTraceback(Exception):
    """Carries the worker's traceback as the cause of an error raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def decode_result(
    signer: Signer,
    context: str,
    task_id: str,
    body: Memory | None,
    origin: Origin = "call",
    old: bool = False,
) -> Any:
    """Return a stored result: the packet signed for that context, or JSON.

    ``old``: the last release's packets will do. Raises UntrustedPayload for any other result, and
    UnknownTask for one that was not kept.
    """
    return result_in(signer, context, task_id, body, origin, old=old, unpickle=unpickled)


def unpickled(data: Memory, read: Callable[[Memory], Any] = loaded) -> Any:
    """Return the object that a worker sent. Its own code runs here; where that raises what would
    end this process or the thread that reads for all futures, PayloadError is raised instead."""
    try:
        return read(data)
    except Exception:  # broad: the object's own code; its error is the task's, and raised as it is
        raise
    except BaseException as end:  # broad: what would end the process, turned into an error
        if isinstance(end, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # the user stops the wait
        raise PayloadError(f"what the worker sent raises {end!r} when it is unpickled") from end


def decode_error(
    signer: Signer, context: str, task_id: str, body: bytes, old: bool = False
) -> tuple[BaseException, dict[str, Any]]:
    """Return a stored error as an exception to raise, and its report.

    It has its own type when that can be trusted and imported here, and is a TaskFailed otherwise:
    the server's own errors (WorkerLost) are text alone, and so is what was not written by redistq.
    The worker's traceback is its cause.
    """
    found = loads(body)
    report: dict[str, Any] = found if isinstance(found, dict) else {"message": str(found)}
    error: BaseException = TaskFailed(task_id, {**report, "traceback": ""})
    if pickled := report.pop("pickle", None):
        try:
            packet = base64.b64decode(pickled)
            own = unpickled(signer.unpack("error", context, packet, old=old))
            # What would end this process (SystemExit and its kin) is reported, not raised.
            if isinstance(own, Exception):
                error = own
            if isinstance(own, TimeLimitExceeded) and not own.args:  # raised by its type alone
                own.args = (str(report.get("message") or ""),)
        except Exception as why:  # broad: the error's own code, or a packet that is none
            error.add_note(f"Its own type was not restored: {type(why).__name__}: {why}")
    elif kind := _OF_KILLED.get(str(report.get("type"))):
        error = kind(str(report.get("message") or ""))
    if report.get("traceback"):
        # Not by plain assignment, which an exception of a frozen dataclass refuses.
        BaseException.__setattr__(error, "__cause__", RemoteTraceback(str(report["traceback"])))
    return error, report


class NotRun(TaskCancelled, CancelledError):
    """The queue ended the task before it started; the words say why."""


class NotStarted(TaskExpired, CancelledError):
    """The task had not started by its deadline."""


def is_not_run(state: str, reason: bytes | None) -> bool:
    """Return whether a task that did not come to its end was ended by the queue, not by somebody
    who cancelled it."""
    return state == "expired" or (reason or b"").startswith(_OF_QUEUE)


Root = tuple[str, BaseException | None]
"""Why tasks that depend on each other did not run: the reason of the first of them, and the error
of the one that failed, as far as they are known."""


def not_run(
    queue: ClientQueue, task_id: str, state: str, body: bytes, known: dict[str, Root]
) -> TaskCancelled:
    """Return the error of a task that the queue ended before it started, for that reason; where a
    task failed on which it depends, its words are there, and its error is the cause.

    What was found out is ``known`` when the next task is asked for that depends on this one.
    """
    reason = body.decode("utf-8", "replace")
    if state == "expired":
        return NotStarted(task_id, reason)
    root = first, failure = _root(queue, reason, known)
    if len(known) >= MOST_KNOWN:
        known.clear()
    known[task_id] = root
    words = reason if first == reason else f"{reason}, for {first}"
    if failure is not None:
        words += f": {type(failure).__name__}: {failure}"
    error = NotRun(task_id, words)
    error.__cause__ = failure
    return error


def not_sent(task_id: str, parent: str, why: BaseException) -> TaskCancelled:
    """Return the error of a task whose parent came to its end before it was sent."""
    if isinstance(why, TaskCancelled):
        return NotRun(task_id, f"parent {parent} cancelled")
    error = NotRun(task_id, f"parent {parent} failed: {type(why).__name__}: {why}")
    error.__cause__ = why
    return error


def _root(queue: ClientQueue, reason: str, known: dict[str, Root]) -> Root:
    for _ in range(CAUSES):
        named = _PARENT.fullmatch(reason)
        if named is None:
            break
        if named[1] in known:
            return known[named[1]]
        of, record = _record_of(queue, named[1])
        if named[2] == "failed":
            body = record.get("error")
            context = of.context_of(named[1])
            failure = decode_error(queue.signer, context, named[1], body)[0] if body else None
            known[named[1]] = reason, failure
            return reason, failure
        before = record.get("reason", b"").decode("utf-8", "replace")
        if not before:
            break
        reason = before
    return reason, None


def _record_of(queue: ClientQueue, task_id: str) -> tuple[ClientQueue, dict[str, bytes]]:
    """Return the record of a parent, which may be of another priority than its child."""
    session = queue.session()
    others = () if session is None else (session.queue(name) for name in PRIORITIES)
    for each in (queue, *others):
        watched = each.watch(task_id)
        if watched.state != "unknown":
            return each, watched.record
    return queue, {}


def read_logs(session: Session, task_id: str) -> list[str]:
    """Return the lines that a task has printed so far."""
    rows = session.broker.call(session.queue().commands.log_lines(task_id))
    return [line for _, fields in rows for line in _lines(fields)]


def follow_logs(session: Session, task_id: str, has_ended: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a task as they come, until it has ended."""
    tail = StreamTail(session.broker, session.keys.logs(task_id))
    began = time.monotonic()
    try:
        while True:
            ended = has_ended()
            wait_s = min(FOLLOW_S, max(0.01, (time.monotonic() - began) / 10))
            try:
                rows = tail.read(0.001 if ended else wait_s, count=500)
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
    """Yield the line of an entry; none where redistq did not write it."""
    if len(fields) > 3:
        yield fields[3].decode("utf-8", "replace")


def replay(queue: ClientQueue, task_id: str, anew: bool = False) -> None:
    """Send a failed task again, as it was; raises RedistqError where it is no dead letter."""
    if not queue.replay((task_id,), anew):
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
    results = TaskResults(ResultReader(session.broker, session.keys.stream, session.signer))
    call = copy_context().run(_with_results, results, session, queue, task_id, payload)
    function = load_function(session.blobs.get("function", call.function))
    if call.chunk:

        def chunk() -> list[Any]:
            return [function(*one, **call.kwargs) for one in call.args]

        return chunk, (), {}
    return function, call.args, call.kwargs


def _with_results(
    results: TaskResults, session: Session, queue: ClientQueue, task_id: str, payload: bytes
) -> Call:
    read_by(results.read)
    return whole_call(session, queue, task_id, payload)


def whole_call(
    session: Session, queue: ClientQueue, task_id: str, payload: bytes, *, old: bool = True
) -> Call:
    """Return the call that a task's payload holds, with its large arguments put in."""
    fetch = session.blobs.argument
    data = opened(session.signer, queue.keys.stream, task_id, payload, old=old)
    call = Call.unpickled(data, fetch)
    if call.chunk:
        args: Any = [tuple(put_in(a, fetch) for a in one) for one in call.args]
    else:
        args = tuple(put_in(a, fetch) for a in call.args)
    kwargs = {name: put_in(value, fetch) for name, value in call.kwargs.items()}
    return replace(call, args=args, kwargs=kwargs)


def ends_in(flat: list[bytes], total: int) -> Iterator[tuple[int, str]]:
    """Yield position and state of each task in an entry of a batch's stream of ends."""
    for task_id, state in zip(flat[::2], flat[1::2], strict=True):
        index = task_id.rpartition(b":")[2]
        if index.isdigit() and len(index) < 16 and int(index) < total:
            yield int(index), state.decode("utf-8", "replace")


class BatchEnds:
    """The ends of a batch's tasks, as the server keeps them.

    ``old``: the batch was there already, begun by a release that is not known.
    """

    def __init__(
        self, session: Session, queue: ClientQueue, batch_id: str, total: int, old: bool
    ) -> None:
        self._session = session
        self._queue = queue
        self._id = batch_id
        self._total = total
        self._old = old

    def states(self) -> dict[int, str]:
        """Return the last end of every task that had one, by position."""
        queue = self._queue
        states: dict[int, str] = {}
        start = "-"
        while True:
            page = queue.broker.call(queue.commands.settled_page(self._id, start, ENDS_PAGE))
            for entry, flat in page:
                states.update(ends_in(flat, self._total))
                start = "(" + entry.decode()
            if len(page) < ENDS_PAGE:
                return states

    def read(
        self, indexes: Iterable[int], ended_only: bool = False
    ) -> Iterator[tuple[int, Any, BaseException | None]]:
        """Yield results and errors of settled tasks; an error stands in its value's place too.

        With ``ended_only`` a task is left out that was sent again, while its earlier end still
        stands in the stream.
        """
        queue = self._queue
        order = list(indexes)
        commands = (queue.commands.end_of(batch_task_id(self._id, i)) for i in order)
        for i, (state, result, error, entry, reason) in zip(
            order, queue.pages(commands), strict=True
        ):
            if state == b"succeeded" and result is not None:
                try:
                    value = self._value(i, result)
                except Exception as why:  # broad: the object's own code; it is this task's error
                    yield i, why, why
                else:
                    yield i, value, None
                continue
            failure: BaseException
            if state == b"failed":
                failure, _ = self._error(i, error)
            elif state == b"cancelled":
                why_cancelled = (reason or b"").decode("utf-8", "replace")
                failure = TaskCancelled(batch_task_id(self._id, i), why_cancelled)
            elif state == b"expired":
                failure = TaskExpired(batch_task_id(self._id, i), (reason or b"").decode())
            elif ended_only and entry is not None and state in (None, b"delayed", b"waiting"):
                continue
            else:
                failure = UnknownTask(batch_task_id(self._id, i))
            yield i, failure, failure

    def failures(self) -> dict[int, dict[str, Any]]:
        """Return what is known of each failed task, by position."""
        queue = self._queue
        rows: dict[int, dict[str, Any]] = {}
        failed = sorted(i for i, state in self.states().items() if state == "failed")
        commands = (queue.commands.watch(batch_task_id(self._id, i)) for i in failed)
        for i, reply in zip(failed, queue.pages(commands), strict=True):
            watched = Commands.read_watch(reply)
            if watched.state != "failed":
                continue
            _, report = self._error(i, watched.record["error"])
            rows[i] = {
                "item": self._item(i, watched.record.get("payload")),
                "error": report.get("type", ""),
                "message": report.get("message", ""),
                "traceback": report.get("traceback", ""),
                "attempts": int(watched.record.get("attempt", b"1")),
                "task_id": batch_task_id(self._id, i),
                "version": report.get("version", 1),
            }
        return rows

    def _value(self, index: int, body: Memory) -> Any:
        task_id = batch_task_id(self._id, index)
        context = self._queue.context_of(task_id)
        return decode_result(self._session.signer, context, task_id, body, old=self._old)

    def _error(self, index: int, body: bytes) -> tuple[BaseException, dict[str, Any]]:
        task_id = batch_task_id(self._id, index)
        context = self._queue.context_of(task_id)
        return decode_error(self._session.signer, context, task_id, body, self._old)

    def _item(self, index: int, payload: bytes | None) -> Any:
        if not payload:
            return None
        task_id = batch_task_id(self._id, index)
        call = whole_call(self._session, self._queue, task_id, payload, old=self._old)
        return call.args[0]


def check_on_error(on_error: str) -> None:
    """Raise ConfigurationError for what is no way to give the errors among many results."""
    if on_error not in ("raise", "skip", "return"):
        raise ConfigurationError(f"on_error is 'raise', 'skip' or 'return', not {on_error!r}")
