"""Batches: tasks of one name that run in one call of their handler, each with an end of its own.

Used by runners and the event loop, beside the executor, which runs tasks one by one. Each task of a
group is an Attempt with its own outcome, and is shown on the scoreboard in a slot of its own: a
process that dies is charged for what it ran, and its tasks are recovered one by one. After that a
task runs alone (``alone`` makes the function for it), as all do whose workers died.

A task of a batch that is to end is told so by its context alone: what would strike its thread would
strike all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..context import BatchContext, TaskContext
from ..errors import ArgumentError, CancelRequested, RedistqError, ResultError, TimeLimitExceeded
from ..handlers.batching import BatchErrors, Failed, apart
from ..logger import logger
from ..middleware import ambient
from ..middleware.chain import running
from ..system.processes import leave_fork
from .gather import Group
from .limits import BatchLimit
from .outcome import Outcome

if TYPE_CHECKING:
    from .attempt import Attempt
    from .executor import Executor
    from .terms import BoundHandler

log = logger("redistq.worker")


class Batches:
    """Runs groups with the handlers of an executor; thread-safe."""

    def __init__(self, executor: Executor, free: Callable[[list[int]], None]) -> None:
        """``free`` takes back the slots of a group that has ended."""
        self._executor = executor
        self._free = free

    def run(self, group: Group) -> list[Outcome]:
        """Run a group in the calling thread; return the outcome of each, and never raise."""
        try:
            batch = _Batch(self._executor, group)
            try:
                self._run(batch)
            finally:
                batch.end()
            return batch.outcomes
        except BaseException as fault:  # our own: no reason to lose a thread, or the tasks
            return self.given_up(group, fault)
        finally:
            self._free(group.slots)

    def _run(self, batch: _Batch) -> None:
        if not batch.attempts:
            return
        executor = self._executor
        started = time.perf_counter_ns()
        try:
            limit = batch.limit(is_async=False)
            try:
                scope = Context()
                for attempt in batch.attempts:
                    attempt.within(scope)
                result = scope.run(batch.call)
            except TimeLimitExceeded as error:
                if limit is not None and not error.args:  # it was raised from outside, by its type
                    error.args = limit.passed().args
                raise
            finally:
                if limit is not None:
                    executor.limits.end(limit)
        except BaseException as error:  # the user's function: all it raises is an outcome
            batch.raised(error, started)
        else:
            batch.returned(result, started)

    async def run_async(self, group: Group) -> list[Outcome]:
        """As ``run``, for ``async def`` handlers; raises CancelledError when the processor ends."""
        try:
            batch = _Batch(self._executor, group)
            await self._run_async(batch)
            batch.end()
            return batch.outcomes
        except (asyncio.CancelledError, GeneratorExit):
            raise  # the processor ends, and the tasks run again
        except BaseException as fault:  # our own: no reason to lose the tasks
            return self.given_up(group, fault)
        finally:
            self._free(group.slots)

    async def _run_async(self, batch: _Batch) -> None:
        if not batch.attempts:
            return
        executor = self._executor
        started = time.perf_counter_ns()
        limit = None
        try:
            limit = batch.limit(is_async=True)
            try:
                async with asyncio.timeout(batch.soft_s) as clock:
                    if limit is not None:
                        limit.clock = clock
                    result = await batch.call()
            except TimeoutError as error:
                if limit is None or limit.clock is None or not limit.clock.expired():
                    raise
                raise limit.passed() from error
        except (asyncio.CancelledError, GeneratorExit) as error:
            if executor.ending:
                raise  # not an outcome: the tasks will run again
            batch.raised(error, started)
        except BaseException as error:  # the user's coroutine
            batch.raised(error, started)
        else:
            batch.returned(result, started)
        finally:
            if limit is not None:
                executor.limits.end(limit)

    def given_up(self, group: Group, fault: BaseException) -> list[Outcome]:
        """Return the outcomes of a group that our own code failed on."""
        executor = self._executor
        pairs = zip(group.tasks, group.slots, strict=True)
        return [executor.given_up(task, slot, fault) for task, slot in pairs]


class _Batch:
    """A group that is being run: its attempts, and the outcomes there are."""

    def __init__(self, executor: Executor, group: Group) -> None:
        self._executor = executor
        self._group = group
        self.attempts: list[Attempt] = []
        self.outcomes: list[Outcome] = []
        self.soft_s: float | None = None
        self._slots: list[int] = []
        # Shown before they are looked at: should that end this process, they are charged for it.
        for task, slot in zip(group.tasks, group.slots, strict=True):
            executor.scoreboard.begin(slot, task[0])
        wishes = executor.wishes
        for task, slot in zip(group.tasks, group.slots, strict=True):
            opened = executor.open(task)
            if isinstance(opened, Outcome):
                self.outcomes.append(opened)
                continue
            wishes.in_batches[opened.entry, opened.queue] = opened
            try:
                if wishes.waiting:
                    wishes.check(opened)
                if opened.handler.item is not None:
                    opened.payload = opened.handler.item(opened.payload)
            except (CancelRequested, ArgumentError) as error:
                self.outcomes.append(opened.failed(error, 0, 0))
                continue
            self.attempts.append(opened)
            self._slots.append(slot)

    def end(self) -> None:
        """Show that nothing of it runs any more."""
        for task, slot in zip(self._group.tasks, self._group.slots, strict=True):
            self._executor.wishes.in_batches.pop((task[0], task[2]), None)
            self._executor.scoreboard.end_limited(slot)

    def limit(self, *, is_async: bool) -> BatchLimit | None:
        """Bound it by the first of its tasks' limits, from now on; None where its time has none."""
        for attempt, slot in zip(self.attempts, self._slots, strict=True):
            if attempt.terms.memory is not None:
                self._executor.cap(attempt, slot)
        terms = [attempt.terms for attempt in self.attempts]
        hard = [one.hard_timeout for one in terms if one.hard_timeout is not None]
        if not hard:
            return None
        self.soft_s = min((t.timeout for t in terms if t.timeout is not None), default=None)
        limits = self._executor.limits
        killed = (attempt.retry_ms_if_killed() for attempt in self.attempts)
        places = list(zip(self._slots, killed, strict=True))
        limit = BatchLimit(limits, self.soft_s, min(hard), places)
        for attempt in self.attempts:
            attempt.limit = limit
        limits.keep_async(limit) if is_async else limits.keep(limit)
        return limit

    def call(self) -> Any:
        """Call the handler, with what stands around it."""
        handler = self.attempts[0].handler
        for attempt in self.attempts:
            attempt.begun()
        payloads = [attempt.payload for attempt in self.attempts]
        context = BatchContext(handler.name, handler.consumer, payloads, self._contexts)
        return called(handler, payloads, context)

    def _contexts(self) -> list[TaskContext]:
        return [_without_steps(attempt.given_context()) for attempt in self.attempts]

    def returned(self, result: Any, started: int) -> None:
        """Note what its tasks came to, by what the handler returned."""
        if self._executor.forked:
            leave_fork(None)
        self._settle(None, result, started)

    def raised(self, error: BaseException, started: int) -> None:
        """Note what its tasks came to, by what the handler raised."""
        if self._executor.forked:
            leave_fork(error)
        if isinstance(error, BatchErrors):
            self._settle(error, None, started)
            return
        took = self._took(started)
        self.outcomes += [attempt.failed(error, took, started) for attempt in self.attempts]

    def _settle(self, errors: BatchErrors | None, result: Any, started: int) -> None:
        took = self._took(started)
        try:
            ends = apart(errors, result, len(self.attempts))
        except ResultError as fault:
            handler = self.attempts[0].handler
            log.warning("%d tasks %s failed: %s", len(self.attempts), handler.name, fault)
            self.outcomes += [a.no_result(fault, took, started) for a in self.attempts]
            return
        for attempt, end in zip(self.attempts, ends, strict=True):
            if type(end) is Failed:
                self.outcomes.append(attempt.failed(end.error, took, started))
            else:
                self.outcomes.append(attempt.returned(end, took, started))

    def _took(self, started: int) -> int:
        """Return the share of each in the time that it took."""
        took = time.perf_counter_ns() - started
        times = self.attempts[0].handler.times
        times.busy_ns += took
        times.done += len(self.attempts)
        return took // len(self.attempts)


def called(handler: BoundHandler, payloads: Sequence[Any], context: BatchContext) -> Any:
    """Call a batch handler, with what stands around all tasks of this process."""
    call = handler.together
    assert call is not None
    if ambient.around:
        call = running(ambient.around, handler.name, call, is_async=handler.is_async)
    return call(payloads, context)


def alone(handler: BoundHandler) -> Callable[[Any, TaskContext], Any]:
    """Return what a batch handler is for one task that runs by itself: a batch of one."""

    def context_of(payload: Any, context: TaskContext) -> BatchContext:
        own = [_without_steps(context)]
        return BatchContext(handler.name, handler.consumer, [payload], lambda: own)

    def run(payload: Any, context: TaskContext) -> Any:
        assert handler.together is not None
        payload = payload if handler.item is None else handler.item(payload)
        try:
            result = handler.together([payload], context_of(payload, context))
        except BatchErrors as errors:
            return _only(errors, None)
        return _only(None, result)

    async def run_async(payload: Any, context: TaskContext) -> Any:
        assert handler.together is not None
        payload = payload if handler.item is None else handler.item(payload)
        try:
            result = await handler.together([payload], context_of(payload, context))
        except BatchErrors as errors:
            return _only(errors, None)
        return _only(None, result)

    return run_async if handler.is_async else run


def _only(errors: BatchErrors | None, result: Any) -> Any:
    (end,) = apart(errors, result, 1)
    if type(end) is Failed:
        raise end.error
    return end


class _NoSteps:
    """Stands where a task's steps are."""

    def __getattr__(self, name: str) -> Any:
        raise RedistqError(
            f"a batch handler has no durable steps, and nothing to put off ({name}): its tasks run "
            "together; let it spawn tasks of another name that have them"
        )


_NO_STEPS: Any = _NoSteps()


def _without_steps(context: TaskContext) -> TaskContext:
    context._steps = _NO_STEPS
    return context
