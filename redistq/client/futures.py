"""TaskFuture: a task as a ``concurrent.futures.Future`` that is also awaitable.

Made by clients. Waiting costs nothing here: the client's one inbox reader resolves every future.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import reprlib
import sys
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, Literal

from .. import slots
from ..display.html import badge, escape, panel, tag
from ..display.notebook import in_kernel
from ..errors import (
    PayloadError,
    RedistqError,
    ResultTimeout,
    TaskFailed,
    TimeLimitExceeded,
    UnknownTask,
    UntrustedPayload,
)
from ..functions.pickling import load
from ..functions.signing import Signer, is_packet, task_context
from ..protocol.codec import loads
from ..protocol.options import wait_seconds

if TYPE_CHECKING:
    from .client import Client

Origin = Literal["call", "named", "unknown"]
"""What is known of a task whose result is read: it is a function call, and its result a packet of
its own; it has a name, and its result is JSON; or only its id is known, and either will do."""


INTERRUPT_S = 0.2
"""Seconds after which a notebook's interrupt ends an ``await``, at the latest."""


class RemoteTraceback(Exception):
    """Carries the worker's traceback as the cause of an error raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class TaskFuture(Future[Any]):
    """A submitted task's future result.

    Everything ``concurrent.futures`` does with a future works: ``wait``, ``as_completed``,
    callbacks, ``asyncio.wrap_future``. ``await future`` works too; cancelling the wait leaves the
    task alone. ``running`` asks the server; ``cancel`` succeeds while no worker has the task.
    """

    # On the class, for there may be a hundred thousand futures: few of them ever fail.
    _told_cancelled = False
    task_name = "redistq.call"
    """What its task is called where workers look for a handler; '' when that is not known."""
    needs: Sequence[str] = ()
    """Functions and arguments that the server keeps for the call, until it has succeeded."""
    keep_briefly = False
    """Whether a large result need not stay on the server once it is here."""
    _report: dict[str, Any] | None = None
    _origin: Origin = "call"

    def __init__(self, client: Client, task_id: str, name: str) -> None:
        super().__init__()
        if (runner := slots.runner()) is not None:
            self._waiters = slots.Waiters(runner)
        self._held: Client | None = client
        self._known: weakref.ref[Client] = client.reference
        self.task_id, self.name = task_id, name

    @property
    def _client(self) -> Client:
        client = self._known()
        if client is None:
            raise RedistqError(
                f"the client of task {self.task_id} is gone; with another, "
                f"client.future({self.task_id!r}) asks for it"
            )
        return client

    def _settled(self) -> None:
        """It needs its client no more: what a notebook remembers of results keeps no workers."""
        if self.needs and self.cancelled() and self._held is not None:
            needs, self.needs = self.needs, ()
            self._held.blobs.drop(needs)
        self._held = None

    # -- the standard library's interface --------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the task if no worker has it yet; answers whether it is cancelled."""
        if self.done():
            return self.cancelled()
        self._client.sender.cancel((self,))
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker has the task now (one look at the server)."""
        return not self.done() and self._client._is_running(self)

    def result(self, timeout: float | None = None) -> Any:
        """The task's result; raises its own error, with the worker's traceback as the cause, or
        ResultTimeout (a TimeoutError) after ``timeout`` seconds, which says why if that is known.
        """
        timeout = wait_seconds(timeout)
        try:
            if self.done():
                return super().result()
            return slots.wait(super().result, timeout, self.done)
        except TimeLimitExceeded:
            raise  # the task's own, or that of the task which waits for it
        except TimeoutError as error:
            if error is self._exception:  # the task's own
                raise
            raise self._timed_out(timeout) from None
        except CancelledError as error:
            error.args = error.args or (f"task {self.task_id} was cancelled before it started",)
            raise
        except KeyboardInterrupt:
            self._say_it_goes_on()
            raise
        finally:
            del self  # or error, traceback, frame and future would hold each other

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The task's error, or None when it succeeded; waits as ``result`` does."""
        timeout = wait_seconds(timeout)
        try:
            error: BaseException | None = slots.wait(super().exception, timeout, self.done)
            return error
        except TimeLimitExceeded:
            raise
        except TimeoutError:
            raise self._timed_out(timeout) from None
        except CancelledError as error:
            error.args = error.args or (f"task {self.task_id} was cancelled before it started",)
            raise
        except KeyboardInterrupt:
            self._say_it_goes_on()
            raise

    def _timed_out(self, timeout: float | None) -> ResultTimeout:
        client = self._held  # None when it has just ended
        reason = client._why_waiting(timeout or 0.0) if client is not None else ""
        return ResultTimeout(self.task_id, timeout or 0.0, "pending", reason)

    def _say_it_goes_on(self) -> None:
        print(
            f"The wait was stopped; task {self.task_id} goes on. future.cancel() cancels it while "
            "it waits for a worker.",
            file=sys.stderr,
        )

    def __await__(self) -> Generator[Any, None, Any]:
        # Shielded: interrupting a notebook's cell must not cancel the task it waits for.
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Any] = loop.create_future()

        def ended(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(pass_on, self, told)

        self.add_done_callback(ended)
        with kept_awake(), slots.lent():
            return (yield from told.__await__())

    def _cancelled(self) -> None:
        # Told twice, by the caller of ``cancel`` and by the inbox: only the first one notifies.
        with self._condition:
            first, self._told_cancelled = not self._told_cancelled, True
        if first and super().cancel():
            self.set_running_or_notify_cancel()

    # -- post-mortem -----------------------------------------------------------------------------

    @property
    def report(self) -> dict[str, Any]:
        """Of a failed task: type, message, traceback, locals, host, python, output."""
        return self._report or {}

    def logs(self, follow: bool = False) -> Any:
        """What the task printed and logged, as text; lines as they come with ``follow``.

        Complete for tasks submitted with ``options(logs=True)``; otherwise the last lines of a
        task that failed.
        """
        if follow:
            return self._client._follow_logs(self)
        lines = self._client._read_logs(self.task_id)
        return "\n".join(lines if lines else self.report.get("output", []))

    def replay(self) -> TaskFuture:
        """Send the failed task again, as it was; answers a new future for it."""
        return self._client._replay(self)

    def rerun_here(self, debug: bool = False) -> Any:
        """Run the same function with the same arguments in this process, for a look at it.

        With ``debug`` it runs under the debugger, which stops where the error is raised. Raises
        RedistqError when the task's arguments are no longer kept (they are of failed tasks).
        """
        function, args, kwargs = self._client._call_of(self.task_id)
        if not debug:
            return function(*args, **kwargs)
        import pdb

        try:
            return function(*args, **kwargs)
        except Exception as error:
            pdb.post_mortem(error.__traceback__)
            raise

    # -- looks -----------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """pending, succeeded, failed or cancelled, as far as this process knows."""
        if not self.done():
            return "pending"
        if self.cancelled():
            return "cancelled"
        return "failed" if super().exception(0) is not None else "succeeded"

    def __repr__(self) -> str:
        text = f"<TaskFuture {self.task_id} {self.name} {self.state}"
        if self.state == "failed":
            text += f": {_short(super().exception(0), 100)}"
        elif (client := self._held) is not None and client.diagnosis.reason:
            text += f": {client.diagnosis.reason}"
        return text + ">"

    def _repr_html_(self) -> str:
        state = self.state
        rows = [("task", tag("code", self.task_id)), ("function", escape(self.name))]
        if state == "failed":
            rows.append(("error", escape(_short(super().exception(0), 300))))
        elif state == "succeeded":
            rows.append(("result", escape(_short(super().result(0), 300))))
        return panel("TaskFuture", badge(state), rows)


def pass_on(ended: Future[Any], told: asyncio.Future[Any]) -> None:
    """The end of a future to who awaits it in an event loop; called there."""
    if told.done():
        return  # nobody waits any more
    if ended.cancelled():
        told.cancel()
    elif (error := ended.exception()) is None:
        told.set_result(ended.result())
    elif isinstance(error, StopIteration):  # it would be taken for the end of a generator
        wrapped = RuntimeError("the task raised StopIteration")
        wrapped.__cause__ = error
        told.set_exception(wrapped)
    else:
        told.set_exception(error)


class _Alarm:
    """What keeps one event loop awake, and for how many waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.waits = weakref.ref(loop), 0
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        loop = self._loop()
        if loop is not None and self.waits:
            self._timer = loop.call_later(INTERRUPT_S, self.ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


_alarms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Alarm] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """While waiting in a notebook's event loop: let the stop button through.

    The kernel takes an interrupt between two events of its loop; while nothing happens in it, the
    interrupt is only noticed when the wait is over. One timer serves all waits of a loop.
    """
    if not in_kernel():
        yield
        return
    loop = asyncio.get_running_loop()
    alarm = _alarms.get(loop) or _alarms.setdefault(loop, _Alarm(loop))
    alarm.waits += 1
    if alarm.waits == 1:
        alarm.ring()
    try:
        yield
    finally:
        alarm.waits -= 1
        if not alarm.waits:
            alarm.stop()


_shortener = reprlib.Repr()
_shortener.maxlist = _shortener.maxtuple = _shortener.maxdict = _shortener.maxset = 20
_shortener.maxstring = _shortener.maxother = 300


def _short(value: Any, most: int) -> str:
    """A value's text for people; cheap for large ones, and never an error."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):  # arrays and frames, whose own text takes its time
        return f"{type(value).__name__} of shape {shape}"
    try:
        return _shortener.repr(value)[:most]
    except Exception:
        return f"<{type(value).__name__}>"


def decode_result(
    signer: Signer,
    stream: str,
    task_id: str,
    body: bytes | None,
    origin: Origin = "call",
    old: bool = False,
) -> Any:
    """A stored result of a task of that queue: the packet of this very task, or JSON.

    ``old``: the last release's packets will do. Raises UntrustedPayload for any other result, and
    UnknownTask for one that was not kept.
    """
    if body is None:
        error = UnknownTask(task_id)
        error.add_note("The task succeeded, and its result was not kept (result_ttl).")
        raise error
    if origin == "named" or (origin == "unknown" and not is_packet(body)):
        if is_packet(body):
            raise UntrustedPayload(f"the result of task {task_id} is a pickle, where JSON belongs")
        return loads(body)
    old = old or origin == "unknown"
    return _unpickled(signer.unpack("result", task_context(stream, task_id), body, old=old))


def _unpickled(data: bytes) -> Any:
    """The object that a worker sent. Its own code runs here; where that raises what would end this
    process or the thread that reads for all futures, PayloadError is raised instead."""
    try:
        return load(data)
    except Exception:
        raise
    except BaseException as end:
        if isinstance(end, KeyboardInterrupt) and current_thread() is main_thread():
            raise  # somebody stops the wait
        raise PayloadError(f"what the worker sent raises {end!r} when it is unpickled") from end


def decode_error(
    signer: Signer, stream: str, task_id: str, body: bytes, old: bool = False
) -> tuple[BaseException, dict[str, Any]]:
    """A stored error as an exception to raise, and its report.

    It has its own type when that can be trusted and imported here, and is a TaskFailed otherwise:
    the server's own errors (WorkerLost) are text alone, and so is what somebody else wrote there.
    The worker's traceback is its cause.
    """
    found = loads(body)
    report: dict[str, Any] = found if isinstance(found, dict) else {"message": str(found)}
    error: BaseException = TaskFailed(task_id, {**report, "traceback": ""})
    if pickled := report.pop("pickle", None):
        try:
            packet = base64.b64decode(pickled)
            own = _unpickled(signer.unpack("error", task_context(stream, task_id), packet, old=old))
            # What would end this process (SystemExit and its kin) is told, not done.
            if isinstance(own, Exception):
                error = own
        except Exception as why:
            error.add_note(f"Its own type was not restored: {type(why).__name__}: {why}")
    if report.get("traceback"):
        # Not by plain assignment, which an exception of a frozen dataclass refuses.
        BaseException.__setattr__(error, "__cause__", RemoteTraceback(str(report["traceback"])))
    return error, report


def settle_future(
    future: TaskFuture, signer: Signer, stream: str, state: str, body: bytes | None
) -> None:
    """Give a future its end; one that was cancelled meanwhile keeps that."""
    if future.done():
        return
    task_id, origin = future.task_id, future._origin
    try:
        if state == "succeeded":
            future.set_result(decode_result(signer, stream, task_id, body, origin))
        elif state == "failed":
            old = origin == "unknown"
            error, future._report = decode_error(signer, stream, task_id, body or b"{}", old)
            future.set_exception(error)
        else:
            future._cancelled()
    except CancelledError:
        pass
    except Exception as why:
        # A result that cannot be read is an error of this task, not of its reader.
        if not future.done():
            future.set_exception(why)


def in_order(futures: list[TaskFuture], deadline: Any) -> Iterator[Any]:
    """Results in order, as Executor.map gives them; what is left is cancelled when one is not
    taken."""
    try:
        futures.reverse()
        while futures:
            futures[-1].exception(deadline())
            yield futures.pop().result()  # and not kept: whoever takes it has the only one
    finally:
        if futures:
            with contextlib.suppress(RedistqError):
                futures[0]._client.sender.cancel(futures)


def flattened(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """The results of chunks, one by one; none is kept once it was given."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
