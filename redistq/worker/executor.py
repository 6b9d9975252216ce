"""The executor: from a stream entry to the Outcome of an attempt. It runs handlers, nothing else.

Used by the processor's runners and its event loop. It never talks to a server: what should happen
to the task is returned as an Outcome, which the settler sends.

``TimeLimits`` raises TimeLimitExceeded in a thread whose handler has run too long; a coroutine's
limit is asyncio's. Python can raise an exception in another thread (``PyThreadState_SetAsyncExc``),
but only asynchronously: it strikes at that thread's next step in Python code, wherever that is.
Hence two rules. A limit that has ended is never fired again, and one that was fired a moment ago is
called back, so that it cannot strike after its handler is gone. And every lock on the way is one
that such an exception cannot leave locked. Native code that never comes back is the supervisor's
business.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from .. import tracing
from ..context import TaskContext, serve_contexts
from ..errors import TimeLimitExceeded
from ..handlers import Handler
from ..logger import logger
from ..protocol.codec import dumps, loads, message_of
from ..protocol.options import addresses, gate_of, is_count
from ..system.processes import leave_fork
from .attempt import Attempt, BoundHandler
from .outcome import FIELDS, PARK, Outcome, fields_of
from .prefetch import NAMES, UNKNOWN, Durations
from .queues import Delivery, Held
from .scoreboard import Scoreboard
from .wishes import Wishes, call_back, strike

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")

MAX_LABELS = 10_000
"""Names of handlers and labels that are remembered; those beyond are looked up for each task."""
HARD_LIMIT_GRACE = 5.0
"""Seconds after its time limit at which a thread that did not obey costs its process its life."""
LONGEST_WAIT_S = 3600.0
"""Longest single wait of the watcher of time limits: a platform's own maximum may be some weeks."""


class Clock(Protocol):
    """The server's clock: see ServerClock."""

    def has_passed(self, server_ms: int) -> bool:
        """Return whether a time of the server's clock has passed."""


ThreadMaker = Callable[[Callable[[], None], str], threading.Thread]
"""Makes a thread, not started, from what it runs and its part in the processor."""


def _daemon(target: Callable[[], None], role: str) -> threading.Thread:
    return threading.Thread(target=target, name=f"redistq-{role}", daemon=True)


_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in _executors:
        executor.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Executor:
    """Runs tasks with the handlers it was given; thread-safe, one runner function a slot.

    ``thread`` makes the threads it needs, from what they run and their part.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        handlers: Mapping[str, Handler],
        consumer: str,
        scoreboard: Scoreboard,
        held: Held,
        clock: Clock,
        thread: ThreadMaker = _daemon,
    ) -> None:
        self._clock = clock
        self._scoreboard = scoreboard
        self.wishes = Wishes(settings.scoreboard_slots, held)
        """What runs here, and which of it is to end."""
        self._bound = {
            name.encode(): BoundHandler(handler, settings, consumer)
            for name, handler in handlers.items()
        }
        self._limits = TimeLimits(thread)
        self.ending = False
        """Whether a cancelled coroutine was cancelled by us."""
        self.forked = False
        """Whether this is a copy of it, in a process that a handler forked."""
        _executors.add(self)

    def start(self) -> None:
        """Get ready before the first task: no more threads may be had when it comes."""
        self._limits.start()

    def close(self) -> None:
        """End what ``start`` began: no task will be started any more."""
        self._limits.close()

    # -- what the fetcher asks -------------------------------------------------------------------

    def is_async(self, flat: list[bytes]) -> bool:
        """Return whether the event loop should run this entry."""
        in_order = len(flat) > 3 and flat[2] == b"name"
        name = flat[3] if in_order else fields_of(flat).get(b"name", b"")
        handler = self._bound.get(name)
        return handler is not None and handler.is_async

    def times(self, tasks: Iterable[Delivery]) -> list[Durations]:
        """Return what is known of how long each of these takes."""
        bound = self._bound
        found = []
        for _, flat, _ in tasks:
            name = flat[3] if len(flat) > 3 else b""
            handler = bound.get(name) or self._labelled(name)
            found.append(UNKNOWN if handler is None else handler.times)
        return found

    # -- running ---------------------------------------------------------------------------------

    def runner(self, slot: int) -> Callable[[Delivery], Outcome]:
        """Return the function that runs a task in slot ``slot``, in the calling thread alone, and
        never raises."""
        scoreboard = self._scoreboard
        clock = time.perf_counter_ns
        wishes = self.wishes
        running = wishes.running
        wishes.threads[slot] = threading.get_ident()

        def context() -> TaskContext | None:
            attempt = running[slot]
            return None if attempt is None else attempt.given_context()

        serve_contexts(context, thread=True)

        def run(task: Delivery) -> Outcome:
            try:
                # Shown before it is looked at: should that end this process, it is charged for it.
                scoreboard.begin(slot, task[0])
                opened = self.open(task)
                if type(opened) is Outcome:
                    scoreboard.end(slot)
                    return opened
                attempt: Attempt = opened  # type: ignore[assignment]
                if attempt.handler.is_async:
                    raise TypeError("async handler in a thread")
                limited = attempt.terms.timeout is not None
                started = clock()
                try:
                    try:
                        running[slot] = attempt
                        if wishes.waiting:
                            wishes.check(attempt)
                        result = self._call_limited(attempt, slot) if limited else attempt.call()
                    finally:
                        running[slot] = None
                        if wishes.struck:
                            wishes.end(slot)
                except BaseException as error:  # the user's function: all it raises is an outcome
                    took = clock() - started
                    if self.forked:
                        leave_fork(error)
                    outcome = attempt.failed(error, took, started)
                else:
                    took = clock() - started
                    if self.forked:
                        leave_fork(None)
                    outcome = attempt.returned(result, took, started)
                if limited:
                    scoreboard.end_limited(slot)
                else:
                    scoreboard.end(slot)
                times = attempt.handler.times
                times.busy_ns += took
                times.done += 1
                return outcome
            except BaseException as fault:  # our own: no reason to lose a thread, or the task
                return self.given_up(task, slot, fault)

        return run

    async def run_async(self, task: Delivery, slot: int) -> Outcome:
        """As a runner, for ``async def`` handlers; raises CancelledError when the processor
        ends."""
        scoreboard = self._scoreboard
        scoreboard.begin(slot, task[0])
        attempt = self.open(task)
        if isinstance(attempt, Outcome):
            scoreboard.end(slot)
            return attempt
        timeout = attempt.terms.timeout
        wishes = self.wishes
        wishes.tasks[slot] = asyncio.current_task()
        wishes.running[slot] = attempt
        serve_contexts(attempt.given_context, thread=False)
        started = time.perf_counter_ns()
        if timeout is not None:
            scoreboard.limit(slot, time.monotonic() + timeout + HARD_LIMIT_GRACE)
        try:
            try:
                if wishes.waiting:
                    wishes.check(attempt)
                async with asyncio.timeout(timeout):
                    if tracing.active is None:
                        result = await attempt.invoke()
                    else:
                        with attempt.traced(tracing.active):
                            result = await attempt.invoke()
            except TimeoutError as error:
                passed = time.perf_counter_ns() - started
                if timeout is None or passed < timeout * 1e9:
                    raise
                raise TimeLimitExceeded(f"the time limit of {timeout:g} s has passed") from error
        except (asyncio.CancelledError, GeneratorExit) as error:
            if self.ending:
                raise  # not an outcome: the task will run again
            outcome = self._failed(attempt, error, started)
        except BaseException as error:  # the user's coroutine
            outcome = self._failed(attempt, error, started)
        else:
            took = time.perf_counter_ns() - started
            if self.forked:
                leave_fork(None)
            outcome = attempt.returned(result, took, started)
        wishes.running[slot] = None
        scoreboard.end_limited(slot)
        times = attempt.handler.times
        times.busy_ns += time.perf_counter_ns() - started
        times.done += 1
        return outcome

    def _failed(self, attempt: Attempt, error: BaseException, started: int) -> Outcome:
        took = time.perf_counter_ns() - started
        if self.forked:
            leave_fork(error)
        return attempt.failed(error, took, started)

    def _call_limited(self, attempt: Attempt, slot: int) -> Any:
        timeout = attempt.terms.timeout
        assert timeout is not None
        self._scoreboard.limit(slot, time.monotonic() + timeout + HARD_LIMIT_GRACE)
        limit = self._limits.begin(timeout)
        try:
            return attempt.call()
        except TimeLimitExceeded as error:
            if not error.args:  # it was raised from outside, by its type alone
                error.args = (f"the time limit of {timeout:g} s has passed",)
            raise
        finally:
            self._limits.end(limit)

    def given_up(self, task: Delivery, slot: int, fault: BaseException) -> Outcome:
        """Return the outcome of an entry that our own code failed on, and free its slot."""
        self._scoreboard.end_limited(slot)
        log.error("entry %r could not be handled: %s", task[0], message_of(fault), exc_info=fault)
        return Outcome.fault(task, fault)

    def not_started(self, task: Delivery) -> Outcome:
        """Return the outcome of a task that is to end and will not be started."""
        opened = self.open(task)
        if isinstance(opened, Outcome):
            return opened
        return opened.cancelled("asked to end before it started", 0, 0)

    # -- opening an entry ------------------------------------------------------------------------

    def open(self, task: Delivery) -> Attempt | Outcome:
        """Return the attempt that an entry asks for, or the outcome of one that cannot be run."""
        entry, flat, queue = task
        try:
            # Once a task: to unpack the fields in their usual order takes 0.5 us, to find them by
            # name 3 us.
            id_, task_id, name_, name, payload_, payload, _, attempt, _, recovered, opts_, opts = (
                flat
            )
            if (id_, name_, payload_, opts_) != (b"id", b"name", b"payload", b"opts"):
                raise ValueError
        except ValueError:
            fields = fields_of(flat)
            missing = [field.decode() for field in FIELDS if field not in fields]
            if missing:
                reason = f"no task: the entry has no field {missing[0]!r}"
                return Outcome.corrupt(entry, reason, queue)
            task_id, name, payload, attempt, recovered, opts = (fields[f] for f in FIELDS)
        try:
            task_id.decode()
        except UnicodeDecodeError:
            return Outcome.corrupt(entry, "no task: its id is not UTF-8", queue)
        # The usual counts are told without a call.
        usual = attempt == b"1" and recovered == b"0"
        if not (usual or (is_count(attempt) and is_count(recovered))):
            reason = "no task: its attempt or recovery count is no number"
            return Outcome.corrupt(entry, reason, queue)
        handler = self._bound.get(name) or self._labelled(name)
        if handler is None:
            parked = Outcome(PARK, 0, (entry, task_id, name), queue)
            parked.told = addresses(opts)
            parked.gate = gate_of(opts)
            return parked
        run = Attempt()
        run.queue = queue
        run.entry = entry
        run.id = task_id
        run.handler = handler
        run.attempt = attempt
        run.recovered = recovered
        run.asked = False
        run.context = run.spawner = None
        try:
            run.terms = handler.terms.get(opts) or handler.terms_of(opts)
            run.payload = payload if handler.raw else loads(payload)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            inbox, batch = addresses(opts)
            run.terms = replace(handler.terms[b""], inbox=inbox, batch=batch, gate=gate_of(opts))
            body = dumps({"type": "CorruptPayload", "message": message_of(error), "traceback": ""})
            return run.end("failed", body, "CorruptPayload", 0, 0)
        deadline_ms = run.terms.deadline_ms
        if deadline_ms is not None and usual and self._clock.has_passed(deadline_ms):
            return run.expired()
        return run

    def _labelled(self, name: bytes) -> BoundHandler | None:
        """Return the handler of ``handler:label``, which is shown by its whole name."""
        handler = self._bound.get(name.partition(b":")[0])
        if handler is None or not handler.raw:
            return None
        labelled = copy.copy(handler)
        labelled.name = name.decode("utf-8", "replace")
        if len(self._bound) >= MAX_LABELS:
            return labelled
        if len(self._bound) < NAMES:
            labelled.times = Durations()
        return self._bound.setdefault(name, labelled)  # the fetcher and runners come here


# -- time limits of threads ------------------------------------------------------------------------


class Limit:
    """One handler's limit: its thread, and when it is to end (monotonic clock)."""

    __slots__ = ("active", "deadline", "fired", "thread")

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.thread = threading.get_ident()
        self.active = True
        self.fired = False


class TimeLimits:
    """Watch the limits of all threads of a processor, in one thread.

    That thread runs before there are tasks: one that started it would fail where no more threads
    are to be had.
    """

    def __init__(self, thread: ThreadMaker) -> None:
        self._thread = thread
        self._current: dict[int, Limit] = {}  # one a thread: what ended leaves nothing behind
        # A plain lock: the exception may strike inside a Condition's own Python code and leave it
        # locked for ever; between taking a plain lock and the block that frees it, it cannot.
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._watcher: threading.Thread | None = None
        self._next = math.inf  # when the watcher looks again
        self._closed = False

    def start(self) -> None:
        """Start the watching thread; raises RuntimeError where none can be had."""
        with self._lock:
            if self._watcher is None:
                watcher = self._thread(self._watch, "limits")
                watcher.start()
                self._watcher = watcher

    def begin(self, seconds: float) -> Limit:
        """Limit what the calling thread runs from now on."""
        limit = Limit(seconds)
        with self._lock:
            self._current[limit.thread] = limit
            early = limit.deadline < self._next
        if early:
            self._bell.set()
        return limit

    def end(self, limit: Limit) -> None:
        """End a limit, in the thread that began it: nothing strikes there any more."""
        try:
            with self._lock:
                limit.active = False
                if limit.fired:
                    call_back(limit.thread)
        except TimeLimitExceeded:
            pass  # it struck just here: the handler's own end is what counts

    def close(self) -> None:
        """End the watching thread: there are no more limits."""
        self._closed = True
        self._bell.set()
        if self._watcher is not None:
            self._watcher.join(2)

    def _watch(self) -> None:
        while not self._closed:
            self._bell.clear()
            with self._lock:
                now = time.monotonic()
                self._next = math.inf
                for limit in self._current.values():
                    if not limit.active or limit.fired:
                        continue
                    if limit.deadline <= now:
                        limit.fired = True
                        strike(limit.thread, TimeLimitExceeded)
                    else:
                        self._next = min(self._next, limit.deadline)
                wait = min(self._next - now, LONGEST_WAIT_S)
            self._bell.wait(wait)
