"""The executor: from a stream entry to the Outcome of an attempt. It runs handlers, nothing else.

Used by the processor's runners and its event loop. It never talks to a server: what should happen
to the task is returned as an Outcome, which the settler sends.

Time limits and wishes that a task ends strike in its handler: see limits.py and wishes.py. Native
code that never comes back is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ..context import TaskContext, serve_contexts
from ..errors import (
    MemoryLimitExceeded,
    RedistqError,
    TimeLimitExceeded,
    Unreadable,
    UntrustedPayload,
)
from ..handlers import Batching, Handler
from ..logger import logger
from ..protocol.codec import dumps, loads, message_of
from ..protocol.envelope import is_envelope
from ..protocol.options import addresses, gate_of, is_count
from ..protocol.resources import NO_ROOM, Resources, in_words
from ..system.memory import resident
from ..system.processes import leave_fork
from .attempt import Attempt
from .hooks import HookedAttempt, SettledTeller
from .limits import ThreadMaker, TimeLimits
from .outcome import FIELDS, Outcome, fields_of
from .prefetch import NAMES, UNKNOWN, Durations
from .queues import Delivery, Held
from .scoreboard import Scoreboard
from .sealed import open_payload
from .terms import BoundHandler
from .wishes import Wishes

if TYPE_CHECKING:
    from .allotter import Allotter
    from .provided import Provided
    from .settings import WorkerSettings

log = logger("redistq.worker")

_TOO_LARGE = MemoryLimitExceeded()
_UNREAD = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, RedistqError)
"""What is raised for options or a payload that cannot be read, or not here."""
MAX_LABELS = 10_000
"""Names of handlers and labels that are remembered; those beyond are looked up for each task."""


class Clock(Protocol):
    """The server's clock: see ServerClock."""

    def has_passed(self, server_ms: int) -> bool:
        """Return whether a time of the server's clock has passed."""


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

    ``thread`` makes the threads it needs, from what they run and their part; ``provided`` is what
    the handlers have beside their tasks.
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
        provided: Provided | None = None,
    ) -> None:
        self._clock = clock
        self.scoreboard = scoreboard
        self.wishes = Wishes(settings.scoreboard_slots, held)
        """What runs here, and which of it is to end."""
        self._bound = {
            name.encode(): BoundHandler(handler, settings, consumer, provided)
            for name, handler in handlers.items()
        }
        for bound in self._bound.values():
            bound.attempt = Attempt if bound.hooks is None else HookedAttempt
        self.limits = TimeLimits(thread, scoreboard)
        self.needy = frozenset(n for n, bound in self._bound.items() if bound.resources)
        """Names of tasks that need resources, by their handlers."""
        self.allotter: Allotter | None = None
        """What gives tasks the resources that they need."""
        if any(handler.memory is not None for handler in handlers.values()):
            scoreboard.capped = True
        self.ending = False
        """Whether a cancelled coroutine was cancelled by us."""
        self.forked = False
        """Whether this is a copy of it, in a process that a handler forked."""
        _executors.add(self)

    def start(self) -> None:
        """Get ready before the first task: no more threads may be had when it comes."""
        self.limits.start()

    def close(self) -> None:
        """End what ``start`` began: no task will be started any more."""
        self.limits.close()

    def gathered(self, *, is_async: bool) -> dict[bytes, tuple[Batching, Durations]]:
        """Return how tasks are gathered of batch handlers, by their names, and how long they
        take."""
        return {
            name: (bound.batching, bound.times)
            for name, bound in self._bound.items()
            if bound.batching is not None and bound.is_async is is_async
        }

    def teller(self) -> SettledTeller | None:
        """Return what tells hooks of settlements; None where none wants to know."""
        teller = SettledTeller(self._bound)
        return teller if teller.is_needed else None

    # -- what the fetcher asks -------------------------------------------------------------------

    def needs_of(self, task: Delivery) -> Resources:
        """Return what a task needs of its worker's resources; () nothing."""
        fields = fields_of(task[1])
        name, opts = fields.get(b"name", b""), fields.get(b"opts", b"")
        handler = self._bound.get(name) or self._labelled(name)
        if handler is None:
            return ()
        try:
            return (handler.terms.get(opts) or handler.terms_of(opts)).resources or ()
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return ()  # it fails when it is opened

    def no_room(self, task: Delivery, needs: Resources) -> Outcome:
        """Return the outcome of a task that waits for room."""
        fields = fields_of(task[1])
        task_id, name, opts = (fields.get(f, b"") for f in (b"id", b"name", b"opts"))
        return Outcome.parked(task, task_id, name, opts, NO_ROOM + in_words(needs))

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
        scoreboard = self.scoreboard
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
                limited = attempt.terms.guarded
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
        scoreboard = self.scoreboard
        scoreboard.begin(slot, task[0])
        attempt = self.open(task)
        if isinstance(attempt, Outcome):
            scoreboard.end(slot)
            return attempt
        terms = attempt.terms
        limit = None
        wishes = self.wishes
        wishes.tasks[slot] = asyncio.current_task()
        wishes.running[slot] = attempt
        serve_contexts(attempt.given_context, thread=False)
        started = time.perf_counter_ns()
        if terms.memory is not None:
            self.cap(attempt, slot)
        if terms.resources is not None:
            self._take(attempt)
        if terms.hard_timeout is not None:
            limit = attempt.limit = self.limits.begin_async(
                slot, terms.timeout, terms.hard_timeout, attempt.retry_ms_if_killed()
            )
        try:
            try:
                if wishes.waiting:
                    wishes.check(attempt)
                async with asyncio.timeout(terms.timeout) as clock:
                    if limit is not None:
                        limit.clock = clock
                    result = await attempt.invoke()
            except TimeoutError as error:
                if limit is None or limit.clock is None or not limit.clock.expired():
                    raise
                raise limit.passed() from error
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
        if terms.resources is not None:
            self._give_back(attempt)
        if limit is not None:
            self.limits.end(limit)
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
        terms = attempt.terms
        if terms.memory is not None:
            self.cap(attempt, slot)
        if terms.resources is not None:
            return self._call_with_resources(attempt, slot)
        if terms.hard_timeout is None:
            return attempt.call()
        return self._call_in_time(attempt, slot, terms.hard_timeout)

    def _call_with_resources(self, attempt: Attempt, slot: int) -> Any:
        self._take(attempt)
        hard_s = attempt.terms.hard_timeout
        try:
            return attempt.call() if hard_s is None else self._call_in_time(attempt, slot, hard_s)
        finally:
            self._give_back(attempt)

    def _take(self, attempt: Attempt) -> None:
        if self.allotter is not None:
            attempt.taken = self.allotter.taken_by((attempt.entry, attempt.queue))

    def _give_back(self, attempt: Attempt) -> None:
        if self.allotter is not None:
            self.allotter.ended((attempt.entry, attempt.queue))

    def _call_in_time(self, attempt: Attempt, slot: int, hard_s: float) -> Any:
        terms = attempt.terms
        retry_ms = attempt.retry_ms_if_killed()
        limit = self.limits.begin(slot, terms.timeout, hard_s, retry_ms)
        attempt.limit = limit
        try:
            return attempt.call()
        except TimeLimitExceeded as error:
            if not error.args:  # it was raised from outside, by its type alone
                error.args = limit.passed().args
            raise
        finally:
            self.limits.end(limit)

    def cap(self, attempt: Attempt, slot: int) -> None:
        """Show the supervisor how much memory this process may have while the attempt runs."""
        memory, base = attempt.terms.memory, resident()
        if memory is not None and base is not None:
            retry_ms = attempt.retry_ms_if_killed(_TOO_LARGE)
            self.scoreboard.cap(slot, memory, base, retry_ms)

    def given_up(self, task: Delivery, slot: int, fault: BaseException) -> Outcome:
        """Return the outcome of an entry that our own code failed on, and free its slot."""
        self.scoreboard.end_limited(slot)
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
            return Outcome.parked(task, task_id, name, opts)
        run = handler.attempt()
        run.queue = queue
        run.entry = entry
        run.id = task_id
        run.handler = handler
        run.attempt = attempt
        run.recovered = recovered
        run.asked = False
        run.context = run.spawner = run.steps = run.limit = run.seal = run.taken = None
        try:
            run.terms = handler.terms.get(opts) or handler.terms_of(opts)
            if handler.raw:
                run.payload = payload
            elif queue.seals is None:
                run.payload = loads(payload)
            else:
                run.payload = open_payload(run, payload)
        except _UNREAD as error:
            unread = self._unread(run, payload, name, opts, error)
            if unread is not None:
                return unread
        terms = run.terms
        if terms.options.takes is not None:
            run.handler = handler.taking(terms.options.takes)
        deadline_ms = terms.deadline_ms
        if deadline_ms is not None and usual and self._clock.has_passed(deadline_ms):
            return run.expired()
        return run

    def _unread(
        self, run: Attempt, payload: bytes, name: bytes, opts: bytes, error: Exception
    ) -> Outcome | None:
        """Return the outcome of a task whose options or payload could not be read; None where they
        can be after all."""
        if run.queue.seals is None and is_envelope(payload) and hasattr(run, "terms"):
            try:  # what is only compressed needs no codec
                run.payload = open_payload(run, payload)
                return None
            except _UNREAD as fault:
                error = fault
        if isinstance(error, Unreadable):
            return Outcome.parked((run.entry, [], run.queue), run.id, name, opts, error.lacks)
        inbox, batch = addresses(opts)
        terms = run.handler.terms[b""]
        run.terms = replace(terms, inbox=inbox, batch=batch, gate=gate_of(opts))
        kind = "UntrustedPayload" if isinstance(error, UntrustedPayload) else "CorruptPayload"
        body = dumps({"type": kind, "message": message_of(error), "traceback": ""})
        return run.end("failed", body, kind, 0, 0)

    def _labelled(self, name: bytes) -> BoundHandler | None:
        """Return the handler of ``handler:label``, which is shown by its whole name."""
        handler = self._bound.get(name.partition(b":")[0])
        if handler is None or not handler.labelled:
            return None
        labelled = copy.copy(handler)
        labelled.name = name.decode("utf-8", "replace")
        if len(self._bound) >= MAX_LABELS:
            return labelled
        if len(self._bound) < NAMES:
            labelled.times = Durations()
        return self._bound.setdefault(name, labelled)  # the fetcher and runners come here
