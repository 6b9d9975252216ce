"""Batch: one durable fan-out.

Made by clients. A batch lives on the server: its tasks have ids made of its name and their
position, its counters move with every settlement (in the same script), and the order in which
tasks end is a stream of its own. So any kernel that knows its name can find it, wait for it, read
its results and go on with it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .. import slots
from ..display.html import escape, panel
from ..display.notebook import say
from ..errors import ConfigurationError, UnknownBatch
from ..functions.packing import label
from ..logger import logger
from ..producer.gated import refusal
from ..producer.operations import Wish, wish_of
from ..protocol.commands import SETTLED, Commands
from ..protocol.keys import batch_task_id
from ..protocol.options import CallOptions
from ..protocol.plain_commands import TIME, portions, read_time
from ..protocol.replies import read
from . import resume
from .arguments import BatchArgument
from .awaiting import kept_awake, pass_on
from .batch_bar import batch_picture
from .growth import Growing, check_known, grow
from .outcomes import BatchEnds, check_on_error
from .sender import payload_bytes
from .submission import BatchTasks, batch_tasks, check_function, check_items, submit
from .tables import BatchTables
from .update import functions_now
from .waiting import BatchWait

if TYPE_CHECKING:
    import pandas as pd

    from .futures import TaskFuture
    from .queues import ClientQueue
    from .session import Session

log = logger("redistq.client")

BATCH_TTL_S = 7 * 86_400.0
"""Seconds that results of a batch are kept."""


class Batch(BatchArgument, BatchTables, Growing):
    """The tasks of one ``map_batch``, by name.

    ``counts()`` and ``done`` look at the server; ``results()``, ``as_completed()`` and ``wait()``
    wait for it without polling; ``failures()`` is a DataFrame; ``retry_failed()``, ``cancel()``
    ``update()`` and ``extend()`` act. ``await batch`` gives its results. An interrupt ends a
    wait, never the work. Until it has ended it keeps its client, and so the workers started there,
    even where nobody holds either.
    """

    def __init__(
        self,
        session: Session,
        priority: str,
        batch_id: str,
        total: int,
        progress: bool | None = None,
    ) -> None:
        self.id = batch_id
        self.total = total
        self._held: Session | None = session
        """The session, until the batch has ended: what a notebook remembers keeps no workers."""
        self._known = session.queue(priority).session
        self._again = session.again()
        self._priority = priority
        self._progress = progress
        self._needs: list[str] = []
        """Functions and arguments that the server keeps for its tasks."""
        self._options = CallOptions(priority=priority).kept(BATCH_TTL_S)
        self._items: list[Any] | None = None
        """Its items, where it was sent from here."""
        self._fn: Callable[..., Any] | None = None
        """Their function, likewise."""
        self._is_found = True
        """Whether it was there already, begun by a release that is not known."""
        self._is_wanted = False
        """Whether its record says that this client wants its results."""

    @property
    def _session(self) -> Session:
        """The session; when that is gone, another like it, which has no workers of its own."""
        session = self._held or self._known()
        if session is None:
            session = self._again()
            self._held = session
        return session

    @property
    def _queue(self) -> ClientQueue:
        """The queue of its tasks."""
        return self._session.queue(self._priority)

    @property
    def queue(self) -> ClientQueue:
        """The queue of its tasks, of their priority: what ``after=batch`` asks for."""
        return self._queue

    @property
    def _ends(self) -> BatchEnds:
        """The ends of its tasks, on the server."""
        return BatchEnds(self._session, self._queue, self.id, self.total, self._is_found)

    def _task_ids(self, indexes: Iterable[int]) -> list[str]:
        return [batch_task_id(self.id, i) for i in indexes]

    # -- starting and finding --------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        session: Session,
        options: CallOptions,
        fn: Callable[..., Any],
        items: Iterable[Any],
        name: str | None,
        resume_how: bool | str,
        progress: bool | None,
    ) -> Batch:
        """See Client.map_batch."""
        if session.exchange.pending.closed:
            raise RuntimeError("cannot start a batch after shutdown")
        check_function(fn, "map_batch")
        check_items(items, "map_batch")
        batch_id = resume.checked_name(name)
        if resume_how not in (True, False, "items"):
            raise ConfigurationError(f"resume is True, False or 'items', not {resume_how!r}")
        options = options.kept(BATCH_TTL_S)
        all_items = list(items)
        packed = batch_tasks(session, batch_id, fn, all_items, options)
        calls = resume.CallNames.of(fn, all_items, options.setup) if name else None
        batch = cls(session, options.priority, batch_id, len(all_items), progress)
        batch._needs = packed.needs
        batch._options = options
        batch._items = all_items
        batch._fn = fn
        there = batch._open(name or options.name or label(fn), bool(resume_how))
        if calls is not None and there != batch.total:
            check_known(batch._queue, batch_id, calls, there)
        batch._want()  # before its first call is there
        earlier = None
        if batch._is_found and calls is not None:
            states = batch._ends.states()
            functions = functions_now(batch._queue, batch_id, batch.total, states)
            earlier = resume.compare(
                batch._queue, batch_id, calls, states, resume_how == "items", functions
            )
            if functions and len(earlier.reused) < batch.total:
                batch._set_function(fn)
            if there < batch.total:
                grow(batch._queue, batch_id, there, calls.digests[there:])
        if not batch._is_found and calls is not None:
            resume.remember(batch._queue, batch_id, calls.digests)
        batch._send(packed, earlier)
        if earlier is not None:
            resume.remember(batch._queue, batch_id, earlier.digests)
        session.exchange.hold(batch, begun=True)
        if earlier is not None and (words := earlier.words(batch.id, len(all_items))):
            say(words, log)
        if there > len(all_items):
            say(
                f"batch {batch.id!r} has {there - len(all_items):,} more items, which were added "
                "later: its results are those of all",
                log,
            )
            batch.total = there
        return batch

    @classmethod
    def find(cls, session: Session, priority: str, batch_id: str) -> Batch:
        """See Client.batch."""
        queue = session.queue(priority)
        command = queue.commands.batch_total(batch_id)
        total = session.broker.call(command)
        if total is None:
            newest = session.broker.call(queue.commands.newest_batches(100))
            known = [raw.decode("utf-8", "replace") for raw in newest]
            raise UnknownBatch(batch_id, next(iter(get_close_matches(str(batch_id), known, 1)), ""))
        return cls(session, priority, batch_id, read(command, total, int))

    def _open(self, name: str, may_exist: bool) -> int:
        """Open the batch on the server, or find the one that is there; return how many tasks it
        has."""
        queue = self._queue
        created, total = queue.broker.call(
            queue.commands.open_batch(self.id, name, self.total, resume.OPEN_TTL_MS)
        )
        self._is_found = not created
        if created:
            return self.total
        if not may_exist:
            raise ConfigurationError(
                f"there is a batch {self.id!r} already: choose another name, resume it "
                "(resume=True), or delete it: client.batch(name).delete()"
            )
        return int(total)

    def _want(self) -> None:
        """Say here and on the server that its end is waited for."""
        session = self._session
        session.open_batches.add((self._priority, self.id))
        session.exchange.want(self._queue, self.id)
        self._is_wanted = True

    def _send(self, packed: BatchTasks, earlier: resume.EarlierRun | None, first: int = 0) -> None:
        """Send tasks, the first of which stands at that position."""
        queue = self._queue
        parts = list(portions(packed.tasks, payload_bytes))
        starts = [*itertools.accumulate((len(part) for part in parts), initial=first)]
        if earlier is None:
            commands = [
                resume.adding(queue, part, [packed.conditions.get(i) for i in range(start, end)])
                for part, (start, end) in zip(parts, itertools.pairwise(starts), strict=True)
            ]
        else:
            commands = [
                earlier.resubmission(queue, start, part, packed.conditions)
                for start, part in zip(starts, parts, strict=False)
            ]
        for (start, end), reply in zip(
            itertools.pairwise(starts), queue.pages(commands), strict=True
        ):
            for answered in Commands.read_gated(reply) if reply else ():
                if answered.outcome == "refused":
                    raise refusal(queue.keys, answered)
            if earlier is not None:
                # Results that have expired since are made again.
                kept = {start + position - 1 for position in reply}
                earlier.reused -= set(range(start, end)) - kept

    # -- looking ---------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many tasks: total, succeeded, failed, cancelled, expired, waiting (for others,
        for a worker or their time, or running), and how often one was retried."""
        return self._queue.batch_counts(self.id)

    def look(self) -> None:
        """See whether it has ended; then it lets go of its session."""
        try:
            counts = self.counts()
        except UnknownBatch:  # it was deleted
            self._on_end({})
        else:
            if not counts["waiting"]:
                self._on_end(counts)

    def _on_end(self, counts: dict[str, int]) -> None:
        """Let go of the session, and of what the tasks needed; no counts: it was deleted."""
        session = self._session
        session.open_batches.discard((self._priority, self.id))
        if counts and counts["succeeded"] == counts["total"]:  # nothing will be sent again
            needs = self._needs
            self._needs = []
            session.blobs.drop(needs)
        elif counts and counts["failed"] and self._needs:
            session.blobs.keep_for_replay(self._needs)
        session.exchange.listener.let_go(self)
        self._held = None

    @property
    def done(self) -> bool:
        """Whether every task has come to its end."""
        return self.counts()["waiting"] == 0

    # -- waiting ---------------------------------------------------------------------------------

    def _pages(
        self, timeout: float | None, stop: threading.Event | None = None
    ) -> Iterator[list[tuple[int, str]]]:
        """Yield positions and states of tasks that have ended, until all have; see BatchWait."""
        wait = BatchWait(self._session, self._queue, self.id, lambda: self.total, self._is_wanted)
        yield from wait.pages(timeout, self._progress, stop)
        self._is_wanted = wait.is_wanted
        if wait.is_complete:
            self._on_end(wait.counts)

    def wait(self, timeout: float | None = None) -> Batch:
        """Wait until every task has ended; raises ResultTimeout after ``timeout`` seconds."""
        for _ in self._pages(timeout):
            pass
        return self

    def show(self, timeout: float | None = None) -> Batch:
        """Wait as ``wait`` does, and draw how far it is wherever this runs; return the batch."""
        self._progress = True
        return self.wait(timeout)

    def results(self, timeout: float | None = None, on_error: str = "raise") -> list[Any]:
        """Return all results in the order of the items.

        ``on_error``: "raise" the first error as soon as it is known, "skip" items that failed, or
        "return" the error in the item's place. An error that is raised ends the wait, not the
        batch. Raises ResultTimeout after ``timeout`` seconds.
        """
        __tracebackhide__ = True
        try:
            return self._results(timeout, on_error)
        except BaseException as error:  # without the lines that waited for it
            BaseException.with_traceback(error, None)
            raise

    def _results(
        self, timeout: float | None, on_error: str, stop: threading.Event | None = None
    ) -> list[Any]:
        __tracebackhide__ = True
        self._wait_for_all(timeout, on_error, stop)
        if stop is not None and stop.is_set():
            return []
        return [
            value
            for _, value, error in self._ends.read(range(self.total))
            if not self._is_left_out(error, on_error)
        ]

    def _wait_for_all(
        self, timeout: float | None, on_error: str, stop: threading.Event | None = None
    ) -> None:
        """Wait until every task has ended; raises the first error where that was asked for."""
        __tracebackhide__ = True
        check_on_error(on_error)
        for page in self._pages(timeout, stop):
            if on_error == "raise":
                bad = sorted({index for index, state in page if state != "succeeded"})
                for _, _, error in self._ends.read(bad, ended_only=True):
                    self._is_left_out(error, on_error)

    def as_completed(
        self, timeout: float | None = None, on_error: str = "raise"
    ) -> Iterator[tuple[int, Any]]:
        """Yield pairs of position and result, as the tasks end; ``on_error`` as for ``results``."""
        check_on_error(on_error)
        given: set[int] = set()
        for page in self._pages(timeout):
            # One that was sent again and ended again is given once.
            new = [index for index in dict.fromkeys(i for i, _ in page) if index not in given]
            for index, value, error in self._ends.read(new, ended_only=True):
                given.add(index)
                if not self._is_left_out(error, on_error):
                    yield index, value

    def _is_left_out(self, error: BaseException | None, on_error: str) -> bool:
        """Return whether an item is left out; raises its error when that was asked for."""
        __tracebackhide__ = True
        if error is not None and on_error == "raise":
            error.add_note(
                f"Of batch {self.id!r} this is the first error. results(on_error='return') waits "
                "for all and gives each error in its place; failures() is a table of them."
            )
            raise error
        return error is not None and on_error == "skip"

    def __await__(self) -> Generator[Any, None, list[Any]]:
        return self._await().__await__()

    async def _await(self) -> list[Any]:
        # A thread of its own: the loop's executor would keep the program from ending.
        import asyncio

        loop = asyncio.get_running_loop()
        stop = threading.Event()
        awaited: asyncio.Future[list[Any]] = loop.create_future()

        def wait_for_all() -> None:
            ended: Future[list[Any]] = Future()
            try:
                ended.set_result(self._results(None, "raise", stop))
            except BaseException as error:  # broad: passed on to the caller that awaits
                ended.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the wait is over
                loop.call_soon_threadsafe(pass_on, ended, awaited)

        threading.Thread(target=wait_for_all, name="redistq-await", daemon=True).start()
        try:
            with kept_awake(), slots.lent():
                return await awaited
        finally:
            stop.set()

    def then(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Call ``fn(results, *args, **kwargs)`` on a worker once all tasks have succeeded, with the
        list of their results; return its future at once."""
        options = CallOptions(priority=self._priority)
        return submit(self._session, fn, (self, *args), kwargs, options)

    # -- failures --------------------------------------------------------------------------------

    def failures(self) -> pd.DataFrame:
        """Return one row a failed task, indexed by its position: item, error, message, traceback,
        attempts, task_id, version."""
        from .dataframes import failures_frame

        return failures_frame(self._ends.failures())

    def retry_failed(self) -> int:
        """Send the failed tasks again, as they were; return how many."""
        failed = [i for i, state in self._ends.states().items() if state == "failed"]
        session = self._session
        self._want()
        again = self._queue.replay(self._task_ids(failed))
        if again:
            self._go_on(session)
        return again

    def _go_on(self, session: Session) -> None:
        """Keep the session again: some of its tasks have yet to end."""
        self._held = session
        session.exchange.hold(self, begun=True)

    def cancel(self, *, running: Wish = None) -> int:
        """Cancel what no worker has yet; return how many tasks that were.

        With ``running`` ("ask" or "force", see TaskProducer.cancel) the tasks that run are asked to
        end, and count too.
        """
        wish = wish_of(running)
        ended = {i for i, state in self._ends.states().items() if state in SETTLED}
        waiting = [i for i in range(self.total) if i not in ended]
        words = self._queue.cancel(self._task_ids(waiting), wish).values()
        return sum(word in ("cancelled", "asked") for word in words)

    def delete(self) -> None:
        """Forget the batch and its results; what has not started is cancelled before.

        Raises ConfigurationError while tasks of it are running.
        """
        self.cancel()
        if self.counts()["waiting"]:
            raise ConfigurationError(
                f"tasks of batch {self.id!r} are running: wait for them (batch.wait()) first"
            )
        queue = self._queue
        queue.forget(self._task_ids(range(self.total)))
        queue.broker.call(queue.commands.delete_batch(self.id))
        queue.broker.call(queue.commands.unlist_batch(self.id))
        self._on_end({})

    # -- looks -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.total

    def __repr__(self) -> str:
        return f"<Batch {self.id!r} of {self.total:,} tasks>"

    def _repr_html_(self) -> str:
        try:
            counts = self.counts()
            now_ms = read_time(self._session.broker.call(TIME))
        except Exception as error:  # broad: a picture is no place for a traceback
            return panel(f"Batch {self.id}", escape(error), [])
        return str(batch_picture(f"Batch {self.id}", counts, now_ms))
