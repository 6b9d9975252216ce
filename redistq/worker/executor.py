"""Execution: from a stream entry to the outcome of an attempt. It runs handlers, and nothing else.

Used by the processor's runners and its event loop. It never talks to a server: what should happen
to the task is returned as an Outcome, which the processor settles.
"""

from __future__ import annotations

import asyncio
import copy
import ctypes
import json
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any

from .. import tracing
from ..errors import (
    Fail,
    ResultError,
    ResultTooLarge,
    Retry,
    Snooze,
    TimeLimitExceeded,
    checked_delay,
)
from ..handlers import Handler, TaskContext
from ..logger import logger
from ..protocol.codec import (
    check_size,
    dumps,
    encode_error,
    encode_result,
    kind_of,
    loads,
    message_of,
)
from ..protocol.options import check_written, is_count, milliseconds
from ..system.processes import leave_fork
from .durations import NAMES, UNKNOWN, Durations
from .scoreboard import Scoreboard

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")
task_log = logging.getLogger("redistq.task")

Delivery = tuple[bytes, list[bytes], int]
"""A stream entry as it was read: its id, its fields as a flat list, and which of the worker's
queues it came from."""

SETTLE, RETRY, PARK, CORRUPT = "settle", "retry", "park", "quarantine"

MAX_RAW_RESULT = 256 * 1024 * 1024
"""Largest pickled result in bytes, as large as the largest argument."""
HARD_LIMIT_GRACE = 5.0
"""Seconds after its time limit at which a thread that did not obey costs its process its life."""
LONGEST_WAIT_S = 3600.0
"""Longest single wait of the watcher of time limits: a platform's own maximum may be some weeks."""

_FIELDS = (b"id", b"name", b"payload", b"attempt", b"recovered", b"opts")
_NO_OPTS: dict[str, Any] = {}
_CAUSE: Any = vars(BaseException)["__cause__"]  # for errors with a __setattr__ of their own


ThreadMaker = Callable[[Callable[[], None], str], threading.Thread]
"""Makes a thread, not started, from what it runs and its part in the processor."""


def _daemon(target: Callable[[], None], role: str) -> threading.Thread:
    return threading.Thread(target=target, name=f"redistq-{role}", daemon=True)


class Outcome:
    """How an attempt ended: the verb that tells the server, and that verb's arguments."""

    __slots__ = ("args", "attempt", "entry", "id", "lane", "name", "order", "refused_at", "verb")

    @property
    def size(self) -> int:
        """Bytes of the result or error it carries."""
        return len(self.args[6]) if len(self.args) > 6 else 0

    def __init__(
        self,
        verb: str,
        entry: bytes,
        id: str,
        name: str,
        attempt: str,
        order: int,
        args: tuple[Any, ...],
        lane: int,
    ) -> None:
        self.lane = lane
        self.verb, self.entry, self.id, self.name = verb, entry, id, name
        self.attempt, self.order, self.args = attempt, order, args
        self.refused_at = (
            0.0  # since when nobody takes it, by the monotonic clock; 0: nobody refused
        )


class BoundHandler:
    """A handler made ready: what every run of it needs, looked up once."""

    __slots__ = (
        "function",
        "handler",
        "is_async",
        "name",
        "policy",
        "raw",
        "timeout",
        "times",
        "ttl",
        "wants_context",
    )

    def __init__(self, handler: Handler, settings: WorkerSettings) -> None:
        self.handler, self.function, self.name = handler, handler.function, handler.name
        self.policy, self.timeout = handler.policy, handler.timeout
        self.is_async, self.wants_context = handler.is_async, handler.wants_context
        self.raw = handler.raw
        self.times = Durations(threaded=not handler.is_async)
        ttl = settings.result_ttl if handler.result_ttl is None else handler.result_ttl
        self.ttl = str(milliseconds(ttl))


class Attempt:
    """One attempt: its job, its payload, and what its entry said."""

    __slots__ = (
        "attempt",
        "batch",
        "context",
        "entry",
        "id",
        "inbox",
        "job",
        "lane",
        "opts",
        "payload",
        "recovered",
        "timeout",
        "ttl",
    )

    entry: bytes
    id: bytes
    job: BoundHandler
    payload: Any
    attempt: bytes
    recovered: bytes
    opts: dict[str, Any]
    timeout: float | None
    ttl: str
    inbox: str
    batch: str
    lane: int
    context: TaskContext
    """Only once the handler was given one."""


_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in _executors:
        executor.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Executor:
    """Runs tasks with the handlers it was given; thread-safe, one runner function a slot.

    Each handler runs in a context of its own: what it sets in context variables ends with it.
    ``thread`` makes the threads it needs, from what they run and their part.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        handlers: Mapping[str, Handler],
        consumer: str,
        scoreboard: Scoreboard,
        thread: ThreadMaker = _daemon,
    ) -> None:
        self._settings, self._consumer, self._scoreboard = settings, consumer, scoreboard
        self._bound = {
            name.encode(): BoundHandler(handler, settings) for name, handler in handlers.items()
        }
        self._limits = _TimeLimits(thread)
        self.ending = False
        """Whether a cancelled coroutine was cancelled by us."""
        self.forked = False
        """Whether this is a copy of it, in a process that a handler forked."""
        _executors.add(self)

    def start(self) -> None:
        """Get ready before the first task: no more threads may be had when it comes."""
        self._limits.start()

    def close(self) -> None:
        """No task will be started any more."""
        self._limits.close()

    # -- what the fetcher asks -------------------------------------------------------------------

    def is_async(self, flat: list[bytes]) -> bool:
        """Whether the event loop should run this entry."""
        name = flat[3] if len(flat) > 3 and flat[2] == b"name" else _fields(flat).get(b"name", b"")
        job = self._bound.get(name)
        return job is not None and job.is_async

    def times(self, tasks: Iterable[Delivery]) -> list[Durations]:
        """What is known of how long each of these takes."""
        jobs, found = self._bound, []
        for _, flat, _ in tasks:
            name = flat[3] if len(flat) > 3 else b""
            job = jobs.get(name) or self._labelled(name)
            found.append(UNKNOWN if job is None else job.times)
        return found

    # -- running ---------------------------------------------------------------------------------

    def runner(self, slot: int) -> Callable[[Delivery], Outcome]:
        """The function that runs a task in slot ``slot`` and never raises."""
        scoreboard = self._scoreboard
        clock = time.perf_counter_ns

        def run(task: Delivery) -> Outcome:
            try:
                # Shown before it is looked at: should that end this process, it is charged for it.
                scoreboard.begin(slot, task[0])
                opened = self._open(task)
                if type(opened) is Outcome:
                    scoreboard.end(slot)
                    return opened
                current: Attempt = opened  # type: ignore[assignment]
                if current.job.is_async:
                    raise TypeError("async handler in a thread")
                started = clock()
                try:
                    if current.timeout is None:
                        result = self._call(current)
                    else:
                        result = self._call_limited(current, slot)
                except BaseException as error:  # the user's function: all it raises is an outcome
                    took = clock() - started
                    outcome = self._failed(current, error, took, started)
                else:
                    took = clock() - started
                    outcome = self._returned(current, result, took, started)
                if current.timeout is None:
                    scoreboard.end(slot)
                else:
                    scoreboard.end_limited(slot)
                times = current.job.times
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
        opened = self._open(task)
        if isinstance(opened, Outcome):
            scoreboard.end(slot)
            return opened
        started = time.perf_counter_ns()
        if opened.timeout is not None:
            scoreboard.limit(slot, time.monotonic() + opened.timeout + HARD_LIMIT_GRACE)
        try:
            try:
                async with asyncio.timeout(opened.timeout):
                    if tracing.active is None:
                        result = await self._invoke(opened)
                    else:
                        with self._traced(tracing.active, opened):
                            result = await self._invoke(opened)
            except TimeoutError as error:
                if (
                    opened.timeout is None
                    or time.perf_counter_ns() - started < opened.timeout * 1e9
                ):
                    raise
                raise TimeLimitExceeded(
                    f"the time limit of {opened.timeout:g} s has passed"
                ) from error
        except (asyncio.CancelledError, GeneratorExit) as error:
            if self.ending:
                raise  # not an outcome: the task will run again
            outcome = self._failed(opened, error, time.perf_counter_ns() - started, started)
        except BaseException as error:  # the user's coroutine
            outcome = self._failed(opened, error, time.perf_counter_ns() - started, started)
        else:
            outcome = self._returned(opened, result, time.perf_counter_ns() - started, started)
        scoreboard.end_limited(slot)
        times = opened.job.times
        times.busy_ns += time.perf_counter_ns() - started
        times.done += 1
        return outcome

    def _call(self, run: Attempt) -> Any:
        if tracing.active is not None:
            return Context().run(self._call_traced, tracing.active, run)
        if run.job.wants_context:
            return Context().run(run.job.function, run.payload, self._context(run))
        return Context().run(run.job.function, run.payload)

    def _call_traced(self, spans: tracing.Tracing, run: Attempt) -> Any:
        with self._traced(spans, run):
            return self._invoke(run)

    def _invoke(self, run: Attempt) -> Any:
        if run.job.wants_context:
            return run.job.function(run.payload, self._context(run))
        return run.job.function(run.payload)

    def _traced(self, spans: tracing.Tracing, run: Attempt) -> Any:
        queue, attempt = self._settings.queues[run.lane], int(run.attempt)
        return spans.running(run.opts, run.id.decode(), run.job.name, queue, attempt)

    def _call_limited(self, run: Attempt, slot: int) -> Any:
        assert run.timeout is not None
        self._scoreboard.limit(slot, time.monotonic() + run.timeout + HARD_LIMIT_GRACE)
        limit = self._limits.begin(run.timeout)
        try:
            return self._call(run)
        except TimeLimitExceeded as error:
            if not error.args:  # it was raised from outside, by its type alone
                error.args = (f"the time limit of {run.timeout:g} s has passed",)
            raise
        finally:
            self._limits.end(limit)

    def _context(self, run: Attempt) -> TaskContext:
        task_id, attempt = run.id.decode(), int(run.attempt)
        retries = run.opts.get("retries", run.job.policy.retries)
        run.context = TaskContext(
            task_id=task_id,
            name=run.job.name,
            queue=self._settings.queues[run.lane],
            attempt=attempt,
            recovered=int(run.recovered),
            max_attempts=retries + 1,
            entry=run.entry.decode(),
            worker=self._consumer,
            logger=logging.LoggerAdapter(
                task_log, {"task_id": task_id, "task_name": run.job.name, "attempt": attempt}
            ),
        )
        return run.context

    # -- opening an entry ------------------------------------------------------------------------

    def _open(self, task: Delivery) -> Attempt | Outcome:
        entry, flat, lane = task
        try:
            (
                id_f,
                task_id,
                name_f,
                name,
                payload_f,
                payload,
                _,
                attempt,
                _,
                recovered,
                opts_f,
                opts,
            ) = flat
            if (id_f, name_f, payload_f, opts_f) != (b"id", b"name", b"payload", b"opts"):
                raise ValueError
        except ValueError:
            fields = _fields(flat)
            missing = [field.decode() for field in _FIELDS if field not in fields]
            if missing:
                return _corrupt(entry, f"no task: the entry has no field {missing[0]!r}", lane)
            task_id, name, payload, attempt, recovered, opts = (fields[f] for f in _FIELDS)
        try:
            task_id.decode()
        except UnicodeDecodeError:
            return _corrupt(entry, "no task: its id is not UTF-8", lane)
        if not (is_count(attempt) and is_count(recovered)):
            return _corrupt(entry, "no task: its attempt or recovery count is no number", lane)
        job = self._bound.get(name) or self._labelled(name)
        if job is None:
            text = name.decode("utf-8", "replace")
            parked = (entry, task_id, name)
            return Outcome(
                PARK, entry, task_id.decode("utf-8", "replace"), text, "", 0, parked, lane
            )
        run = Attempt()
        run.lane = lane
        run.entry, run.id, run.job, run.attempt, run.recovered = (
            entry,
            task_id,
            job,
            attempt,
            recovered,
        )
        run.opts, run.timeout, run.ttl, run.inbox, run.batch = (
            _NO_OPTS,
            job.timeout,
            job.ttl,
            "",
            "",
        )
        try:
            if opts:
                run.opts = more = json.loads(opts)
                _check_options(more)
                run.timeout = more.get("timeout", job.timeout)
                run.inbox, run.batch = more.get("inbox", ""), more.get("batch", "")
                if "result_ttl" in more:
                    run.ttl = str(milliseconds(more["result_ttl"]))
            run.payload = payload if job.raw else loads(payload)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            run.opts, run.ttl = _NO_OPTS, job.ttl
            run.inbox, run.batch = _addresses(opts)
            body = _error("CorruptPayload", message_of(error))
            return self._end(run, "failed", body, "CorruptPayload", 0, 0)
        return run

    def _labelled(self, name: bytes) -> BoundHandler | None:
        """``handler:label`` runs what ``handler`` runs, and is shown by its whole name."""
        job = self._bound.get(name.partition(b":")[0])
        if job is None or not job.raw:
            return None
        labelled = copy.copy(job)
        labelled.name = name.decode("utf-8", "replace")
        if len(self._bound) >= 10_000:
            return labelled
        if len(self._bound) < NAMES:
            labelled.times = Durations()
        return self._bound.setdefault(name, labelled)  # the fetcher and runners come here

    # -- outcomes --------------------------------------------------------------------------------

    def _returned(self, run: Attempt, result: Any, took: int, started: int) -> Outcome:
        if self.forked:
            leave_fork(None)
        try:
            if run.job.raw:
                body = check_size(result, MAX_RAW_RESULT)
            else:
                body = encode_result(result, self._settings.max_result_bytes)
        except (ResultError, ResultTooLarge) as error:
            log.warning("task %s failed: %s", run.id.decode(), error)
            return self._end(run, "failed", encode_error(error), _note(error), took, started)
        except BaseException as fault:  # the result's own methods
            return self._unbooked(run, fault, None, took, started)
        return self._end(run, "succeeded", body, "", took, started)

    def _end(
        self, run: Attempt, state: str, body: bytes, note: str, took: int, started: int
    ) -> Outcome:
        args = (*_attempt(run, state, took), body, run.ttl, run.inbox, note, run.batch)
        return _outcome(SETTLE, run, started, args)

    def _failed(self, run: Attempt, error: BaseException, took: int, started: int) -> Outcome:
        if self.forked:
            leave_fork(error)
        try:
            return self._judged(run, error, took, started)
        except BaseException as fault:  # the retry policy, or what the error itself says
            return self._unbooked(run, fault, error, took, started)

    def _judged(self, run: Attempt, error: BaseException, took: int, started: int) -> Outcome:
        """What an attempt that raised comes to; raises what the error or its policy raises."""
        # By its type, as an except clause does: an error may claim to be of another.
        attempt, policy, kind = int(run.attempt), run.job.policy, type(error)
        retries = run.opts.get("retries", policy.retries)
        if issubclass(kind, Snooze):
            delay = max(checked_delay("Snooze", error.delay), 0.001)  # type: ignore[attr-defined]
            return self._again(run, "snoozed", delay, b"", "Snooze", took, started)
        context = getattr(run, "context", None)
        note, text = _note(error), message_of(error)
        body = encode_error(error, context._report if context is not None else None)
        task_id = run.id.decode()
        retry = issubclass(kind, Retry)
        wanted = retry or (not issubclass(kind, Fail) and policy.wants(error))
        if wanted and attempt <= retries:
            asked = error.delay if retry else None  # type: ignore[attr-defined]
            delay = policy.delay(attempt) if asked is None else checked_delay("Retry", asked)
            log.info(
                "task %s attempt %d failed, retry in %.2f s: %s: %s",
                task_id,
                attempt,
                delay,
                note,
                text,
            )
            return self._again(run, "retried", delay, body, note, took, started)
        # A client that waits for it is told, and a notebook is not the place to say it twice.
        level = logging.INFO if run.inbox or run.batch else logging.WARNING
        log.log(level, "task %s attempt %d failed for good: %s: %s", task_id, attempt, note, text)
        return self._end(run, "failed", body, note, took, started)

    def _unbooked(
        self,
        run: Attempt,
        fault: BaseException,
        error: BaseException | None,
        took: int,
        started: int,
    ) -> Outcome:
        """Something broke after the handler had ended: the task ends as failed with that fault,
        and with the handler's own error as its cause."""
        if error is not None and error is not fault and _CAUSE.__get__(fault) is None:
            _CAUSE.__set__(fault, error)
        log.warning(
            "task %s attempt %s failed for good, its outcome cannot be kept: %s: %s",
            run.id.decode(),
            run.attempt.decode(),
            _note(fault),
            message_of(fault),
        )
        return self._end(run, "failed", encode_error(fault), _note(fault), took, started)

    def given_up(self, task: Delivery, slot: int, fault: BaseException) -> Outcome:
        """What becomes of an entry that our own code failed on: a failed task with that fault;
        what is no task is set aside."""
        entry, flat, lane = task
        self._scoreboard.end_limited(slot)
        log.error("entry %r could not be handled: %s", entry, message_of(fault), exc_info=fault)
        fields = _fields(flat)
        if any(field not in fields for field in _FIELDS):
            return _corrupt(entry, f"it could not be handled: {_note(fault)}", lane)
        inbox, batch = _addresses(fields[b"opts"])
        task_id, attempt = fields[b"id"], fields[b"attempt"]
        args = (
            *(entry, task_id, "failed", fields[b"name"], attempt, "0.000"),
            *(encode_error(fault), "0", inbox, _note(fault), batch),
        )
        named = (task_id.decode("utf-8", "replace"), fields[b"name"].decode("utf-8", "replace"))
        return Outcome(SETTLE, entry, *named, attempt.decode("ascii", "replace"), 0, args, lane)

    def unsettled(self, outcome: Outcome, fault: BaseException) -> Outcome:
        """The outcome in place of one that the server or the connection takes for none: the task
        ends as failed with that fault. It has nothing in it that came from the handler."""
        inbox, batch = outcome.args[8::2] if outcome.verb is SETTLE else ("", "")
        args = (
            *(outcome.entry, outcome.id, "failed", outcome.name, outcome.attempt, "0.000"),
            *(encode_error(fault), "0", inbox, _note(fault), batch),
        )
        named = (outcome.entry, outcome.id, outcome.name, outcome.attempt)
        return Outcome(SETTLE, *named, outcome.order, args, outcome.lane)

    def _again(
        self,
        run: Attempt,
        state: str,
        delay: float,
        body: bytes,
        note: str,
        took: int,
        started: int,
    ) -> Outcome:
        args = (*_attempt(run, state, took), body, milliseconds(delay), note)
        return _outcome(RETRY, run, started, args)


def _check_options(opts: Any) -> None:
    """Options that somebody wrote by hand must not fail later, when the handler has run."""
    try:
        (opts.get("inbox", "") + opts.get("batch", "")).encode()  # both are text that can be sent
    except (AttributeError, TypeError):
        raise TypeError(f"its options are not sound: {opts!r:.200}") from None
    check_written(opts)


def _attempt(run: Attempt, state: str, took: int) -> tuple[Any, ...]:
    """What every verb is told of an attempt; ``took`` is in ns."""
    return run.entry, run.id, state, run.job.name, run.attempt, f"{took / 1e6:.3f}"


def _outcome(verb: str, run: Attempt, started: int, args: tuple[Any, ...]) -> Outcome:
    attempt = run.attempt.decode()
    return Outcome(verb, run.entry, run.id.decode(), run.job.name, attempt, started, args, run.lane)


def _note(error: BaseException) -> str:
    """The short name of an error's type, for a line of history."""
    return kind_of(error).rpartition(".")[2]


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    """An entry's fields by name."""
    return dict(zip(flat[::2], flat[1::2], strict=False))


def _addresses(opts: bytes) -> tuple[str, str]:
    """The inbox and the batch that are told of a task's end; '' for what does not read as one."""
    try:
        found = json.loads(opts) if opts else {}
        inbox, batch = found.get("inbox", ""), found.get("batch", "")
        (inbox + batch).encode()
        return inbox, batch
    except Exception:
        return "", ""


def _corrupt(entry: bytes, reason: str, lane: int) -> Outcome:
    return Outcome(CORRUPT, entry, "", reason, "", 0, (), lane)


def _error(kind: str, message: str) -> bytes:
    return dumps({"type": kind, "message": message, "traceback": ""})


class _Limit:
    __slots__ = ("active", "deadline", "fired", "thread")

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.thread = threading.get_ident()
        self.active, self.fired = True, False


class _TimeLimits:
    """Raises TimeLimitExceeded in a thread whose handler ran too long.

    One watching thread for all. It runs before there are tasks: one that started it would fail
    where no more threads are to be had. The exception reaches Python code at its next step; native
    code that never comes back is the supervisor's business.
    """

    def __init__(self, thread: ThreadMaker) -> None:
        self._thread = thread
        self._current: dict[int, _Limit] = {}  # one a thread: what ended leaves nothing behind
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

    def begin(self, seconds: float) -> _Limit:
        limit = _Limit(seconds)
        with self._lock:
            self._current[limit.thread] = limit
            early = limit.deadline < self._next
        if early:
            self._bell.set()
        return limit

    def end(self, limit: _Limit) -> None:
        # Once inactive it is never fired again; one fired a moment ago may still be on its way to
        # this thread, and is called back so that it cannot strike after its handler is gone.
        try:
            with self._lock:
                limit.active = False
                if limit.fired:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(limit.thread), ctypes.py_object()
                    )
        except TimeLimitExceeded:
            pass  # it struck just here: the handler's own end is what counts

    def close(self) -> None:
        """No more limits: the watching thread ends."""
        self._closed = True
        self._bell.set()
        if self._watcher is not None:
            self._watcher.join(2)

    def _watch(self) -> None:
        while not self._closed:
            self._bell.clear()
            with self._lock:
                now, self._next = time.monotonic(), math.inf
                for limit in self._current.values():
                    if not limit.active or limit.fired:
                        continue
                    if limit.deadline <= now:
                        limit.fired = True
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(limit.thread), ctypes.py_object(TimeLimitExceeded)
                        )
                    else:
                        self._next = min(self._next, limit.deadline)
                wait = min(self._next - now, LONGEST_WAIT_S)
            self._bell.wait(wait)
