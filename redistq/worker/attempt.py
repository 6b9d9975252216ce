"""One attempt: a task that is being run once, from the call of its handler to its Outcome.

Used by the executor, which makes an Attempt of an entry and runs it; the outcome goes to the
settler. Nothing here talks to a server or knows a slot, a queue's other tasks, or a time limit's
thread.

A handler is the user's code, and so is all it leaves behind: its result may fail to encode itself,
its error may raise when it is asked for its text, its retry policy may have a mistake. Each of
these ends the task as failed, with that fault, and never the thread that ran it.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import Any

from ..context import TaskContext
from ..errors import (
    Cancel,
    CancelRequested,
    Fail,
    LeaseLost,
    ResultError,
    ResultTooLarge,
    Retry,
    Snooze,
    TimeLimitExceeded,
    checked_delay,
)
from ..flows import FLOWS, Flow, PackedFlow
from ..logger import logger
from ..middleware import ambient
from ..middleware.chain import running
from ..protocol.codec import check_size, encode_error, encode_result, message_of
from ..protocol.commands import CANCELLED_TTL_MS, CONTINUED, EXPIRED
from ..protocol.options import milliseconds
from ..protocol.pieces import Pieces
from . import limits
from .outcome import ASKED_NOTE, RETRY, SETTLE, SUSPEND, Outcome, note_of
from .parents import TaskParents
from .queues import WorkerQueue
from .reporter import Report
from .scoreboard import MAX_RETRY_MS
from .sealed import SealedSteps, TaskSeal
from .spawn import Spawner
from .steps import ServerSteps, Suspension, TaskSteps
from .streaming import AttemptItems
from .terms import BoundHandler, Terms, with_context

log = logger("redistq.worker")
task_log = logging.getLogger("redistq.task")

MAX_RAW_RESULT = 256 * 1024 * 1024
"""Largest pickled result in bytes, as large as the largest argument."""

_WAYS_TO_OBEY = (CancelRequested, asyncio.CancelledError, Snooze, Retry)
"""What an attempt raises that ends as it was asked to; anything else is an error of its own."""
_KILLED = TimeLimitExceeded()
_CAUSE: Any = vars(BaseException)["__cause__"]  # for errors with a __setattr__ of their own


class Attempt:
    """One run of one task: its handler, its payload, and what its entry said.

    ``took`` is how long the handler ran, ``started`` when it began, both in ns.
    """

    __slots__ = (
        "asked",
        "attempt",
        "context",
        "entry",
        "handler",
        "id",
        "limit",
        "payload",
        "queue",
        "recovered",
        "seal",
        "spawner",
        "steps",
        "taken",
        "terms",
    )

    entry: bytes
    id: bytes
    handler: BoundHandler
    payload: Any
    attempt: bytes
    recovered: bytes
    terms: Terms
    queue: WorkerQueue
    context: TaskContext | None
    """What the handler was given; None while it was given none."""
    spawner: Spawner | None
    """What keeps the tasks it spawns, where there is a context."""
    steps: TaskSteps | None
    """What it does once for its task, where there is a context."""
    seal: TaskSeal | None
    """What seals all it writes; None: its payload was plain."""
    asked: bool
    """Whether it was asked to end."""
    taken: dict[str, list[int]] | None
    """Which units it has of its worker's resources; None: it needs none."""
    limit: limits.Limit | None
    """What bounds its time; None where nothing does."""

    # -- the handler's call ----------------------------------------------------------------------

    def call(self) -> Any:
        """Call the handler in a context of its own: what it sets in context variables ends with
        it."""
        if ambient.around:
            return Context().run(self._surrounded)
        if self.handler.wants_context:
            return Context().run(self.handler.function, self.payload, self.given_context())
        return Context().run(self.handler.function, self.payload)

    def invoke(self) -> Any:
        """Call the handler in the context of the caller, as the event loop does: its task has one
        of its own."""
        if ambient.around:
            return self._surrounded()
        if self.handler.wants_context:
            return self.handler.function(self.payload, self.given_context())
        return self.handler.function(self.payload)

    def _surrounded(self) -> Any:
        """Call the handler with what stands around all tasks of this process."""
        handler = self.handler
        run = with_context(handler.function, handler.wants_context)
        call = running(ambient.around, handler.name, run, is_async=handler.is_async)
        return call(self.payload, self.given_context())

    def begun(self) -> None:
        """Its handler is about to be called; nobody listens."""

    def within(self, scope: Context) -> None:
        """Its handler is called in that context, as part of a batch; nobody listens."""

    def given_context(self) -> TaskContext:
        """Return what the handler may know about its task."""
        return self._make_context() if self.context is None else self.context

    def _make_context(self) -> TaskContext:
        handler = self.handler
        task_id = self.id.decode()
        attempt = int(self.attempt)
        retries = self.terms.options.retries_or(handler.policy.retries)
        self.context = context = TaskContext(
            task_id=task_id,
            name=handler.name,
            queue=self.queue.name,
            attempt=attempt,
            recovered=int(self.recovered),
            max_attempts=retries + 1,
            entry=self.entry.decode(),
            worker=handler.consumer,
            logger=logging.LoggerAdapter(
                task_log, {"task_id": task_id, "task_name": handler.name, "attempt": attempt}
            ),
        )
        context._headers = self.terms.options.headers
        context._parents = TaskParents(self.queue, task_id)
        if self.asked:  # it may have been since the attempt began
            context.cancelled = True
        context.resources = self.taken or {}
        context._batch = self.terms.batch
        stream = self.queue.commands.keys.stream
        context._spawner = self.spawner = self._make_spawner(stream)
        store = ServerSteps(self.queue, handler.consumer, context.entry, task_id)
        queue = self.queue
        seal = self.seal
        steps = None
        if queue.seals is not None:
            steps = SealedSteps(queue.seals, task_id, seal is not None)
        context._steps = self.steps = TaskSteps(store, steps)
        context._running = Report(
            queue.reporter, queue, self.entry, task_id, attempt, self.limit, seal
        )
        if handler.provided is not None:
            context._state = handler.provided.state
        context._items = AttemptItems(queue, self.entry, task_id, self.terms.ttl, seal)
        context._target = queue.target
        return context

    def _make_spawner(self, stream: str) -> Spawner:
        handler = self.handler
        return Spawner(stream, self.terms.batch, handler.layers, self.seal, self.queue.seals)

    def retry_ms_if_killed(self, error: BaseException = _KILLED) -> int:
        """Return when it is tried again, should it be killed at its hard limit, or another that
        ``error`` is of: in so many ms, or -1 when it then ends as failed."""
        policy, attempt = self.handler.policy, int(self.attempt)
        if attempt > self.terms.options.retries_or(policy.retries):
            return -1
        try:
            wanted = policy.wants(error)
            return min(milliseconds(policy.delay(attempt)), MAX_RETRY_MS) if wanted else -1
        except BaseException:  # the retry policy's own code
            return -1

    # -- being asked to end ----------------------------------------------------------------------

    def ask(self) -> None:
        """Note that it is asked to end; any thread may call this."""
        self.asked = True
        context = self.context
        if context is not None:
            context.cancelled = True

    def interrupted(self) -> bool:
        """Interrupt what waits on behalf of its handler in a way of its own; return whether there
        is such a thing."""
        context = self.context
        interrupt = None if context is None else context._interrupt
        if interrupt is None:
            return False
        interrupt()
        return True

    # -- how it ends -----------------------------------------------------------------------------

    def returned(self, result: Any, took: int, started: int) -> Outcome:
        """Return the outcome of a handler that returned ``result``."""
        if self.steps is not None and (put_off := self.steps.ended(None)) is not None:
            return self._suspended(put_off, took, started)
        if type(result) is PackedFlow or (isinstance(result, FLOWS) and not self.handler.raw):
            return self._continued(result, took, started)
        try:
            if self.handler.raw:
                body: bytes | Pieces = check_size(result, MAX_RAW_RESULT)
            else:
                handler = self.handler
                plain = encode_result(result, handler.max_result_bytes, handler.plain_result)
                body = plain if self.seal is None else self.seal.result(plain)
        except (ResultError, ResultTooLarge) as error:
            log.warning("task %s failed: %s", self.id.decode(), error)
            return self.no_result(error, took, started)
        except BaseException as fault:  # the result's own methods
            return self._unbooked(fault, None, took, started)
        outcome = self.end("succeeded", body, "", took, started, made_by=self._made_by)
        if self.spawner is not None:
            self.spawner.close()
            if self.spawner.children:
                outcome.spawned = self.spawner
                outcome.size += self.spawner.size
        return outcome

    def _continued(self, flow: Flow | PackedFlow, took: int, started: int) -> Outcome:
        """Return the outcome of a handler that returned a flow: it takes the task's place."""
        if self.asked:
            return self.cancelled("asked to end while it ran", took, started)
        spawner = self.spawner or self._make_spawner(self.queue.commands.keys.stream)
        try:
            last = spawner.spawn_flow(flow, self.id.decode(), self.terms.options.home)
        except BaseException as fault:  # what is in the flow, which the user wrote
            log.warning("task %s returned a flow that is none: %s", self.id.decode(), fault)
            return self.no_result(fault, took, started)
        spawner.close()
        outcome = self.end(CONTINUED, last.encode(), "", took, started, made_by=self._made_by)
        outcome.told = (self.terms.inbox, self.terms.batch)
        outcome.spawned = spawner
        outcome.size += spawner.size
        return outcome

    def no_result(self, fault: BaseException, took: int, started: int) -> Outcome:
        """Return the outcome of an attempt that ends as failed by what came after its handler."""
        return self.end("failed", self._error(fault), note_of(fault), took, started)

    @property
    def _made_by(self) -> str:
        """What its handler says made the result."""
        return "" if self.context is None else self.context._made_by

    def failed(self, error: BaseException, took: int, started: int) -> Outcome:
        """Return the outcome of a handler that raised ``error``."""
        if self.spawner is not None:
            self.spawner.close()  # what it spawned is not added
        try:
            if self.steps is not None and (put_off := self.steps.ended(error)) is not None:
                return self._suspended(put_off, took, started)
            return self._judged(error, took, started)
        except BaseException as fault:  # the retry policy, or what the error itself says
            return self._unbooked(fault, error, took, started)

    @property
    def _described(self) -> dict[str, Any]:
        """What log records say of it: see logs.py."""
        return {
            "task_id": self.id.decode("utf-8", "replace"),
            "task_name": self.handler.name,
            "attempt": int(self.attempt),
            "queue": self.queue.name,
        }

    def cancelled(self, why: str, took: int, started: int) -> Outcome:
        """Return the outcome of an attempt that ended because it was asked to, in words."""
        log.info("task %s was cancelled: %s", self.id.decode(), why, extra=self._described)
        ttl = str(CANCELLED_TTL_MS)
        return self.end("cancelled", why.encode(), ASKED_NOTE, took, started, ttl)

    def expired(self) -> Outcome:
        """Return the outcome of an attempt that was not started by its deadline."""
        ttl = str(CANCELLED_TTL_MS)
        return self.end("expired", EXPIRED.encode(), "", 0, 0, ttl)

    def end(
        self,
        state: str,
        body: bytes | Pieces,
        note: str,
        took: int,
        started: int,
        ttl: str | None = None,
        made_by: str = "",
    ) -> Outcome:
        """Return the outcome that ends the task in ``state``; its record is kept for ``ttl`` ms,
        by default as long as a result. ``made_by`` is put behind its name."""
        terms = self.terms
        args = (
            self.entry,
            self.id,
            state,
            self.handler.name + made_by,
            self.attempt,
            f"{took / 1e6:.3f}",
            body,
            terms.ttl if ttl is None else ttl,
            terms.inbox,
            note,
            terms.batch,
        )
        outcome = Outcome(SETTLE, started, args, self.queue, len(body))
        outcome.gate = terms.gate
        return outcome

    def _again(
        self, state: str, delay: float, body: bytes, note: str, took: int, started: int
    ) -> Outcome:
        """Return the outcome that lets the task run again in ``delay`` seconds."""
        args = (
            self.entry,
            self.id,
            state,
            self.handler.name,
            self.attempt,
            f"{took / 1e6:.3f}",
            body,
            milliseconds(delay),
            note,
        )
        return self._put_back(RETRY, started, args, len(body))

    def _suspended(self, suspension: Suspension, took: int, started: int) -> Outcome:
        """Return the outcome of an attempt that puts its task off."""
        if self.asked:
            return self.cancelled("asked to end while it ran", took, started)
        run_ms = f"{took / 1e6:.3f}"
        name, attempt = self.handler.name, self.attempt
        args = (self.entry, self.id, suspension.kind, name, attempt, run_ms, *suspension.args)
        return self._put_back(SUSPEND, started, args)

    def _put_back(self, verb: str, started: int, args: tuple[Any, ...], size: int = 0) -> Outcome:
        """Return the outcome of an attempt after which the task runs again."""
        outcome = Outcome(verb, started, args, self.queue, size)
        outcome.told = (self.terms.inbox, self.terms.batch)
        outcome.gate = self.terms.gate
        return outcome

    def _judged(self, error: BaseException, took: int, started: int) -> Outcome:
        """Return what an attempt that raised comes to; raises what the error or its policy
        raises."""
        attempt = int(self.attempt)
        policy = self.handler.policy
        kind = type(error)  # as an except clause does: an error may claim to be of another
        if self.asked and issubclass(kind, _WAYS_TO_OBEY):
            why = error.args[0] if kind is CancelRequested and error.args else ""
            return self.cancelled(why or "asked to end while it ran", took, started)
        if issubclass(kind, Cancel):
            return self.cancelled(message_of(error), took, started)
        retries = self.terms.options.retries_or(policy.retries)
        if issubclass(kind, LeaseLost):  # refused; should it not be, the task runs again
            return self._again("snoozed", 0.001, b"", "LeaseLost", took, started)
        if issubclass(kind, Snooze):
            delay = max(checked_delay("Snooze", error.delay), 0.001)  # type: ignore[attr-defined]
            return self._again("snoozed", delay, b"", "Snooze", took, started)
        context = self.context
        note = note_of(error)
        text = message_of(error)
        body = encode_error(error, context._report if context is not None else None)
        task_id = self.id.decode()
        retry = issubclass(kind, Retry)
        wanted = retry or (not issubclass(kind, Fail) and policy.wants(error))
        if wanted and attempt <= retries and self.asked:
            return self.cancelled(f"asked to end, and failed: {note}", took, started)
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
                extra=self._described,
            )
            if self.seal is not None:
                body = self.seal.last_error(body)
            return self._again("retried", delay, body, note, took, started)
        # A client that waits for it hears of it, and a notebook is not the place to say it twice.
        is_awaited = self.terms.inbox or self.terms.batch
        level = logging.INFO if is_awaited else logging.WARNING
        words = "task %s attempt %d failed for good: %s: %s"
        log.log(level, words, task_id, attempt, note, text, extra=self._described)
        if self.seal is not None:
            body = self.seal.error(body)
        return self.end("failed", body, note, took, started)

    def _error(self, error: BaseException) -> bytes:
        """Return an error as the end of the task says it."""
        body = encode_error(error)
        return body if self.seal is None else self.seal.error(body)

    def _unbooked(
        self, fault: BaseException, error: BaseException | None, took: int, started: int
    ) -> Outcome:
        """Something broke after the handler had ended: the task ends as failed with that fault,
        and with the handler's own error as its cause."""
        if error is not None and error is not fault and _CAUSE.__get__(fault) is None:
            _CAUSE.__set__(fault, error)
        log.warning(
            "task %s attempt %s failed for good, its outcome cannot be kept: %s: %s",
            self.id.decode(),
            self.attempt.decode(),
            note_of(fault),
            message_of(fault),
        )
        return self.no_result(fault, took, started)
