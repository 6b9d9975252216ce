"""TaskFuture: a task as a ``concurrent.futures.Future`` that is also awaitable.

Made by clients. Waiting costs nothing here: the client's one inbox reader resolves every future.
"""

from __future__ import annotations

import asyncio
import contextlib
import reprlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from .. import slots
from ..display.html import badge, escape, panel, tag
from ..display.text import plural
from ..errors import RedistqError, ResultTimeout, TaskCancelled, TimeLimitExceeded
from ..functions.references import Referable, Reference
from ..producer.operations import Wish, wish_of
from ..protocol.options import wait_seconds
from . import outcomes
from .awaiting import kept_awake, pass_on
from .outcomes import Origin, decode_result
from .progress import WithProgress, progress_rows
from .steps import WithSteps
from .stream import WithStream

if TYPE_CHECKING:
    from .queues import ClientQueue
    from .session import Session

SURELY_KEPT_S = 300.0
"""Seconds after its end for which a task's result is taken to be on the server: half of the time
that a large one is kept there once it is here."""


class Later:
    """Stands in a future for a result that is still on the server."""


LATER = Later()


class TaskFuture(WithSteps, WithProgress, WithStream, Referable, Future[Any]):
    """A submitted task's future result.

    As an argument of another call, anywhere in it, it stands for its result: that call runs when
    this one has succeeded, and what large results are does not pass through this process.
    Everything ``concurrent.futures`` does with a future works: ``wait``, ``as_completed``,
    callbacks, ``asyncio.wrap_future``. ``await future`` works too; cancelling the wait leaves the
    task alone. ``running`` asks the server; ``cancel`` succeeds while no worker has the task.
    """

    # On the class, for there may be a hundred thousand futures: few of them ever fail.
    task_name = "redistq.call"
    """What its task is called where workers look for a handler; '' when that is not known."""
    needs: Sequence[str] = ()
    """Functions and arguments that the server keeps for the call, until it has succeeded."""
    keep_briefly = False
    """Whether a large result need not stay on the server once it is here."""
    is_stream = False
    """Whether the call was sent to be streamed: its result is how many items there are."""
    is_parent = False
    """Whether another task needs its result; a large one stays on the server then."""
    ended_at = 0.0
    """When its end came here, by the monotonic clock."""
    origin: Origin = "call"
    _is_marked = False
    """Whether ``mark_cancelled`` was called for it."""
    _why = ""
    """Why its task was cancelled, in words; empty for one that had not started."""
    _report: dict[str, Any] | None = None

    def __init__(self, session: Session, queue: ClientQueue, task_id: str, name: str) -> None:
        super().__init__()
        if (runner := slots.runner()) is not None:
            self._waiters = slots.Waiters(runner)
        self._held: Session | None = session
        self.queue = queue
        self.task_id = task_id
        self.name = name

    @property
    def _session(self) -> Session:
        """The session that sent it; raises RedistqError when that is gone."""
        session = self.queue.session()
        if session is None:
            raise RedistqError(
                f"the client of task {self.task_id} is gone; with another, "
                f"client.future({self.task_id!r}) asks for it"
            )
        return session

    # -- the standard library's interface --------------------------------------------------------

    def cancel(self, *, running: Wish = None) -> bool:
        """Cancel the task if no worker has it yet; return whether it is cancelled.

        With ``running`` ("ask" or "force", see TaskProducer.cancel) a task that runs is asked to
        end: whether it did, the future's own end says.
        """
        wish = wish_of(running)
        if self.done():
            return self.cancelled()
        self._session.exchange.cancel((self,), wish)
        return self.cancelled()

    def running(self) -> bool:
        """Return whether a worker has the task now (one look at the server)."""
        if self.done():
            return False
        return self.queue.watch(self.task_id).state == "running"

    def result(self, timeout: float | None = None) -> Any:
        """Return the task's result; raises its own error, with the worker's traceback as the cause.

        After ``timeout`` seconds it raises ResultTimeout (a TimeoutError), which says why nothing
        came if that is known.
        """
        __tracebackhide__ = True  # of a cell's error the cell's line is what counts
        timeout = wait_seconds(timeout)
        try:
            if self.done():
                value = super().result()
            else:
                value = slots.wait(super().result, timeout, self.done)
            return self._fetched() if value is LATER else value
        except TimeoutError as error:
            if error is self._exception:  # the task's own
                BaseException.with_traceback(error, None)
                raise
            if isinstance(error, TimeLimitExceeded):  # that of the task which waits for it
                raise
            raise self._timed_out(timeout) from None
        except CancelledError as error:
            error.args = error.args or (str(TaskCancelled(self.task_id, self._why)),)
            BaseException.with_traceback(error, None)
            raise
        except BaseException as error:  # the task's own, without the lines that waited for it
            if isinstance(error, KeyboardInterrupt):
                self._say_it_goes_on()
            BaseException.with_traceback(error, None)
            raise
        finally:
            del self  # or error, traceback, frame and future would hold each other

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's error, or None when it succeeded; waits as ``result`` does."""
        try:
            return self._error(timeout)
        except KeyboardInterrupt as error:
            self._say_it_goes_on()
            BaseException.with_traceback(error, None)
            raise

    def _error(self, timeout: float | None) -> BaseException | None:
        """Return the same; an interrupt is told to nobody."""
        timeout = wait_seconds(timeout)
        try:
            error: BaseException | None = slots.wait(super().exception, timeout, self.done)
            return error
        except TimeLimitExceeded:
            raise
        except TimeoutError:
            raise self._timed_out(timeout) from None
        except CancelledError as error:
            error.args = error.args or (str(TaskCancelled(self.task_id, self._why)),)
            raise

    def _fetched(self) -> Any:
        """Return a result that has stayed on the server."""
        commands = self.queue.commands
        _, body, *_ = self.queue.broker.call(commands.end_of(self.task_id))
        if self.origin != "call":
            body = self.queue.opened("result", self.task_id, body)
        context = self.queue.context_of(self.task_id)
        value = decode_result(self.queue.signer, context, self.task_id, body, self.origin)
        self._result = value
        return value

    def _timed_out(self, timeout: float | None) -> ResultTimeout:
        session = self._held  # None when it has just ended
        reason = ""
        if session is not None:
            waited = timeout or 0.0
            reason = session.exchange.why_waiting(self.queue, waited, task_id=self.task_id)
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
        awaited: asyncio.Future[Any] = loop.create_future()

        def ended(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the wait is over
                loop.call_soon_threadsafe(pass_on, self, awaited)

        self.add_done_callback(ended)
        with kept_awake(), slots.lent():
            return (yield from awaited.__await__())

    # -- as an argument of another call ----------------------------------------------------------

    def reference(self) -> Reference | None:
        """Return what stands for its result; None when that is here, and may have left the
        server."""
        if self.done() and time.monotonic() - self.ended_at > SURELY_KEPT_S:
            known = not self.cancelled() and super().exception(0) is None
            if known and super().result(0) is not LATER:
                return None
        return Reference(self.origin, self.queue.priority, self.task_id)

    def known_result(self) -> Any:
        """Return the result that is here."""
        return super().result(0)

    def failure(self) -> BaseException | None:
        """Return why it has no result, as far as that is known here."""
        if not self.done():
            return None
        if self.cancelled():
            return TaskCancelled(self.task_id)
        return super().exception(0)

    def identity(self) -> str:
        """Return what names its result."""
        return f"{self.queue.priority} {self.task_id}"

    def prepare(self, client: Session) -> None:
        """Have it on the server before what depends on it, and its result kept there."""
        self.queue.check_same(client, f"task {self.task_id}")
        self.is_parent = True
        own = self._held
        if own is not None and own is not client:
            own.exchange.sender.flush(patient=True)

    # -- post-mortem -----------------------------------------------------------------------------

    @property
    def report(self) -> dict[str, Any]:
        """Of a failed task: type, message, traceback, locals, host, python, output."""
        return self._report or {}

    def logs(self, follow: bool = False) -> Any:
        """Return what the task printed and logged, as text; with ``follow`` its lines as they come.

        Complete for tasks submitted with ``options(logs=True)``; otherwise the last lines of a
        task that failed.
        """
        session = self._session
        if follow:
            return outcomes.follow_logs(session, self.task_id, self.done)
        lines = outcomes.read_logs(session, self.task_id)
        return "\n".join(lines if lines else self.report.get("output", []))

    def replay(self, *, forget_steps: bool = False) -> TaskFuture:
        """Send the failed task again, as it was; return a new future for it. It goes on after the
        steps that are done; with ``forget_steps`` it begins anew."""
        session = self._session
        outcomes.replay(self.queue, self.task_id, forget_steps)
        again = TaskFuture(session, self.queue, self.task_id, self.name)
        again.origin = self.origin
        session.exchange.expect(again)
        return again

    def rerun_here(self, debug: bool = False) -> Any:
        """Run the same function with the same arguments in this process, for a look at it.

        With ``debug`` it runs under the debugger, which stops where the error is raised. Raises
        RedistqError when the task's arguments are no longer kept (they are of failed tasks).
        """
        function, args, kwargs = outcomes.call_of(self._session, self.queue, self.task_id)
        if not debug:
            return function(*args, **kwargs)
        import pdb

        try:
            return function(*args, **kwargs)
        except Exception as error:  # broad: the user's function; raised again
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
        error = super().exception(0)
        if isinstance(error, TaskCancelled):
            return "cancelled"
        return "failed" if error is not None else "succeeded"

    def __repr__(self) -> str:
        text = f"<TaskFuture {self.task_id} {self.name} {self.state}"
        if self.state == "failed":
            text += f": {_short(super().exception(0), 100)}"
        elif self._held is not None:
            reason = self.queue.diagnosis.reason_of(self.task_name, self.task_id)
            text += f": {reason}" if reason else ""
        return text + ">"

    def _repr_html_(self) -> str:
        state = self.state
        rows = [("task", tag("code", self.task_id)), ("function", escape(self.name))]
        if state == "failed":
            rows.append(("error", escape(_short(super().exception(0), 300))))
        elif state == "pending" and self._held is not None:
            rows += progress_rows(self)
        elif state == "succeeded":
            value = super().result(0)
            text = "on the server" if value is LATER else _short(value, 300)
            rows.append(("result", escape(text)))
        return panel("TaskFuture", badge(state), rows)


class StreamFuture(TaskFuture):
    """The future of a call that is streamed: iterating over it gives its items as they come."""

    is_stream = True

    def __iter__(self) -> Iterator[Any]:
        return self.stream()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self.stream()


_shortener = reprlib.Repr()
_shortener.maxlist = _shortener.maxtuple = _shortener.maxdict = _shortener.maxset = 20
_shortener.maxstring = _shortener.maxother = 300


def _short(value: Any, most: int) -> str:
    """Return a value's text for people; cheap for large values, and never an error."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):  # arrays and frames, whose own text takes its time
        return f"{type(value).__name__} of shape {shape}"
    try:
        return _shortener.repr(value)[:most]
    except Exception:  # broad: the value's own code
        return f"<{type(value).__name__}>"


def cancel_all(futures: Sequence[TaskFuture]) -> None:
    """Cancel those of one client's futures that no worker has yet, in few requests."""
    if futures:
        futures[0]._session.exchange.cancel(futures)


def exception_within(
    future: TaskFuture,
    left: Callable[[], float | None],
    timeout: float | None,
    *,
    goes_on: bool = True,
) -> BaseException | None:
    """Return a task's error, or None, within what is ``left`` of a time for several tasks, which
    the error of a wait that is over names whole: ``timeout``. An interrupt says that the task
    ``goes_on``, where it does."""
    try:
        return future.exception(left()) if goes_on else future._error(left())
    except ResultTimeout:
        raise future._timed_out(timeout) from None


def in_order(
    futures: list[TaskFuture], left: Callable[[], float | None], timeout: float | None
) -> Iterator[Any]:
    """Yield results in order, as Executor.map gives them, within what is ``left`` of ``timeout``;
    closing this cancels what is left."""
    try:
        futures.reverse()
        while futures:
            exception_within(futures[-1], left, timeout, goes_on=False)
            yield futures.pop().result()  # and not kept: the caller has the only one
    except KeyboardInterrupt as error:
        print(
            f"The wait was stopped with {plural(len(futures), 'result')} to come: what no worker "
            "has yet is cancelled. A batch would go on: client.map_batch(fn, items).",
            file=sys.stderr,
        )
        BaseException.with_traceback(error, None)
        raise
    finally:
        if futures:
            with contextlib.suppress(RedistqError):
                cancel_all(futures)


def flattened(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """Yield the results of chunks, one by one; none is kept once it was given."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
