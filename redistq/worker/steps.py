"""Durable steps: what an attempt does once for its task, however often the task runs.

``TaskSteps`` is what one attempt knows of them, behind ``context.step`` and its kin; the attempt
asks it afterwards whether its task is to be put off. What is written and read goes through a
``StepStore``: the server's, for a worker; clients have one of their own, to look into a call.

A step counts once the server has it. One whose worker dies before runs again; one that is there is
given back, and not run. While the server is away, what a step came to waits here.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..context import RAISES
from ..errors import (
    EventTimeout,
    LeaseLost,
    RedistqError,
    ServerUnavailable,
    StepError,
    StepMismatch,
    Suspended,
)
from ..functions.steps import PlainSteps, StepCodec
from ..logger import logger
from ..protocol.checks import seconds as checked_seconds
from ..protocol.keys import check_line
from ..protocol.steps import (
    MAX_STEPS_BYTES,
    MOST_STEPS,
    NO_EVENT,
    RecordedStep,
    read_recalled,
    read_step,
)

if TYPE_CHECKING:
    from .queues import WorkerQueue

log = logger("redistq.worker")

_PAUSES_S = (0.05, 2.0)
"""Between two calls while the server is away: at first, and at most."""
_SLEEP = "sleep"
_inside: ContextVar[bool] = ContextVar("redistq-step", default=False)
"""Whether a step runs in this context."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """Until when, or for which event, a task is put off; ``delay_ms`` None: without end."""

    number: int
    event: str
    delay_ms: int | None
    taken: int = 0
    last: str = NO_EVENT

    @property
    def kind(self) -> str:
        """What ``suspend`` calls it."""
        return "event" if self.event else _SLEEP

    @property
    def args(self) -> tuple[int, str, int | str, int, str]:
        """Return it as ``suspend`` takes it."""
        delay: int | str = "" if self.delay_ms is None else max(self.delay_ms, 1)
        return self.number, self.event, delay, self.taken, self.last


class StepStore(Protocol):
    """Where steps are kept. Each call raises RedistqError where it cannot be made."""

    def recall(self) -> tuple[int, dict[int, RecordedStep]]:
        """Return the server's time in ms, and the steps that are done."""

    def keep(self, number: int, name: str, run_ms: float, body: bytes) -> bool:
        """Keep what a step came to; return whether the task is still this worker's."""

    def expect(self, wait: Suspension) -> tuple[str, int, RecordedStep | None]:
        """Take an event that came, or end the wait: done, none or lost, the time, the step."""

    def give_up(self) -> None:
        """Wait for the server no more: the attempt has ended."""


class ServerSteps:
    """The steps in a task's record, for the worker that has its entry."""

    def __init__(self, queue: WorkerQueue, consumer: str, entry: str, task_id: str) -> None:
        self._queue = queue
        self._consumer = consumer
        self._task = (entry, task_id)
        self._gave_up = False

    def recall(self) -> tuple[int, dict[int, RecordedStep]]:
        """See StepStore."""
        return read_recalled(self._ask(self._queue.commands.recall(self._task[1], whole=True)))

    def keep(self, number: int, name: str, run_ms: float, body: bytes) -> bool:
        """See StepStore."""
        command = self._queue.commands.step(
            self._consumer, self._task, number, name, f"{run_ms:.3f}", body
        )
        return bool(self._ask(command))

    def expect(self, wait: Suspension) -> tuple[str, int, RecordedStep | None]:
        """See StepStore."""
        timeout: int | str = "" if wait.delay_ms is None else wait.delay_ms
        command = self._queue.commands.expect(
            self._consumer, self._task, wait.number, wait.event, wait.taken, wait.last, timeout
        )
        word, now_ms, raw = self._ask(command)
        return word.decode(), now_ms, read_step(wait.number, raw) if raw else None

    def give_up(self) -> None:
        """See StepStore."""
        self._gave_up = True

    def _ask(self, command: Any) -> Any:
        """Return the server's answer, however long it is away: what a step came to must not be
        lost for that, and its lease is asked for when it is back."""
        broker = self._queue.broker
        if broker is None:
            raise RedistqError("this worker cannot keep steps")
        pause = _PAUSES_S[0]
        while True:
            try:
                return broker.call(command)
            except ServerUnavailable as error:
                if self._gave_up:
                    raise
                log.warning("a step of task %s waits for the server: %s", self._task[1], error)
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES_S[1])


class TaskSteps:
    """The steps of one attempt. Threads and coroutines of its handler may share it."""

    __slots__ = (
        *("_count", "_lock", "_lost", "_now_ms", "_read_at", "_recorded", "_size", "_store"),
        *("codec", "suspension"),
    )

    def __init__(self, store: StepStore, codec: StepCodec | None = None) -> None:
        self._store = store
        self.codec: StepCodec = codec or PlainSteps()
        self.suspension: Suspension | None = None
        """How its task is to be put off, once the handler has ended; None: it is not."""
        self._recorded: dict[int, RecordedStep] | None = None
        self._lock = threading.Lock()
        self._count = 0
        self._size = 0
        self._lost = False
        self._now_ms = 0
        self._read_at = 0.0

    def use(self, codec: StepCodec) -> None:
        """Write and read steps so from now on."""
        self.codec = codec

    def ended(self, error: BaseException | None) -> Suspension | None:
        """Note that the attempt has ended, with that error; return how its task is put off, if it
        is: what else came of it once it was told to end does not count."""
        self._store.give_up()
        if self.suspension is not None and not isinstance(error, Suspended | BaseExceptionGroup):
            log.warning(
                "a handler went on after its task was put off, and %s: let Suspended through",
                "returned" if error is None else f"raised {type(error).__name__}",
            )
        return self.suspension

    # -- steps -------------------------------------------------------------------------------------

    def step(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See TaskContext.step."""
        if inspect.iscoroutinefunction(fn):
            return self.astep(name, fn, args, kwargs)
        self._check_thread("step", "astep")
        number = self._claim(name)
        self._read()
        known = self._known(number, "step", name)
        if known is not None:
            return self.codec.load(number, name, known.body)
        began = time.perf_counter()
        token = _inside.set(True)
        try:
            value = fn(*args, **kwargs)
        finally:
            _inside.reset(token)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise StepError(f"step {name!r} is to be awaited: await context.astep({name!r}, ...)")
        return self._keep(number, name, value, time.perf_counter() - began)

    async def astep(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """See TaskContext.astep."""
        number = self._claim(name)
        await self._aread()
        known = self._known(number, "step", name)
        if known is not None:
            return self.codec.load(number, name, known.body)
        began = time.perf_counter()
        token = _inside.set(True)
        try:
            if inspect.iscoroutinefunction(fn):
                value = await fn(*args, **kwargs)
            else:
                value = await asyncio.to_thread(fn, *args, **kwargs)
                if inspect.isawaitable(value):
                    value = await value
        finally:
            _inside.reset(token)
        took = time.perf_counter() - began
        return await self._in_thread(self._keep, number, name, value, took)

    def _keep(self, number: int, name: str, value: Any, took: float) -> Any:
        body = self.codec.dump(number, name, value)
        with self._lock:
            if self._size + len(body) > MAX_STEPS_BYTES:
                raise StepError(
                    f"with step {name!r} all steps of this task would come to more than "
                    f"{MAX_STEPS_BYTES:,} bytes: let them store data elsewhere and return paths"
                )
            self._size += len(body)
        if not self._store.keep(number, name, took * 1000, body):
            raise self._is_lost()
        # As the next attempt will have it: what JSON or a pickle changes, is changed at once.
        return self.codec.load(number, name, body)

    # -- sleeping ----------------------------------------------------------------------------------

    def sleep(self, seconds: Any) -> None:
        """See TaskContext.sleep."""
        self._check_thread(_SLEEP, "asleep")
        wait_ms = _milliseconds(seconds)
        number = self._claim(_SLEEP)
        self._read()
        self._sleep(number, wait_ms)

    async def asleep(self, seconds: Any) -> None:
        """See TaskContext.asleep."""
        wait_ms = _milliseconds(seconds)
        number = self._claim(_SLEEP)
        await self._aread()
        self._sleep(number, wait_ms)

    def _sleep(self, number: int, wait_ms: int) -> None:
        known = self._known(number, _SLEEP, _SLEEP)
        if known is not None:
            now_ms = self._now_ms + (time.monotonic() - self._read_at) * 1000
            wait_ms = math.ceil(known.until_ms - now_ms)
            if wait_ms <= 0:
                return
        raise self._put_off(Suspension(number, "", wait_ms))

    # -- events ------------------------------------------------------------------------------------

    def wait_for(self, event: str, timeout: Any, default: Any) -> Any:
        """See TaskContext.wait_for."""
        self._check_thread("wait_for", "await_for")
        wait_ms = None if timeout is None else _milliseconds(timeout)
        number = self._claim(event)
        self._read()
        return self._wait_for(number, event, wait_ms, default)

    async def await_for(self, event: str, timeout: Any, default: Any) -> Any:
        """See TaskContext.await_for."""
        wait_ms = None if timeout is None else _milliseconds(timeout)
        number = self._claim(event)
        await self._aread()
        return await self._in_thread(self._wait_for, number, event, wait_ms, default)

    def _wait_for(self, number: int, event: str, wait_ms: int | None, default: Any) -> Any:
        step = self._known(number, "event", event)
        if step is None or step.kind == "wait":
            assert self._recorded is not None
            taken, last = _taken(self._recorded.values(), event)
            wait = Suspension(number, event, wait_ms, taken, last)
            word, now_ms, step = self._store.expect(wait)
            if word == "lost":
                raise self._is_lost()
            if word != "done" or step is None:
                left = wait_ms if step is None else step.until_ms - now_ms
                raise self._put_off(Suspension(number, event, left, taken, last))
            self._recorded[number] = step
        if step.kind == "event":
            return self.codec.event(event, step.word.startswith("m"), step.body)
        if default is RAISES:
            raise EventTimeout(event, None if wait_ms is None else wait_ms / 1000)
        return default

    # -- what is there -----------------------------------------------------------------------------

    def _claim(self, name: Any) -> int:
        """Return the number of the step that begins now, in the order in which they begin."""
        if self.suspension is not None:
            raise Suspended("the task is put off: this attempt has ended")
        if self._lost:
            raise self._is_lost()
        check_line("the name of a step", name)
        if _inside.get():
            raise StepError(
                f"step {name!r} begins within another step: that one will not run again, and this "
                "one with it; call it from the handler itself"
            )
        with self._lock:
            self._count += 1
            number = self._count
        if number > MOST_STEPS:
            raise StepError(
                f"a task has at most {MOST_STEPS:,} steps: let one step do many items, or use "
                "context.checkpoint in a loop"
            )
        return number

    def _read(self) -> None:
        """Read once what earlier attempts did."""
        if self._recorded is not None:
            return
        with self._lock:
            if self._recorded is None:
                self._now_ms, recorded = self._store.recall()
                self._read_at = time.monotonic()
                self._size = sum(step.size for step in recorded.values())
                self._recorded = recorded

    async def _aread(self) -> None:
        if self._recorded is None:
            await self._in_thread(self._read)

    async def _in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(work, *args)
        except asyncio.CancelledError:
            self._store.give_up()  # nobody waits for that thread any more
            raise

    def _known(self, number: int, kind: str, name: str) -> RecordedStep | None:
        """Return what an earlier attempt did in this place; raises StepMismatch where that was
        something else."""
        assert self._recorded is not None
        step = self._recorded.get(number)
        if step is None:
            return None
        was = "event" if step.of_event else step.kind
        if (was, step.name) != (kind, name):
            raise StepMismatch(number, _said(was, step.name), _said(kind, name))
        return step

    def _check_thread(self, name: str, twin: str) -> None:
        """Raise RedistqError in an event loop, which must not wait for a server."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise RedistqError(
            f"context.{name} waits for the server, and this is an event loop: "
            f"await context.{twin}(...) instead"
        )

    def _put_off(self, suspension: Suspension) -> Suspended:
        self.suspension = suspension
        what = f"waits for event {suspension.event!r}" if suspension.event else "sleeps"
        return Suspended(f"the task {what}: this attempt ends here, let Suspended through")

    def _is_lost(self) -> LeaseLost:
        self._lost = True
        return LeaseLost("this task was taken from this worker: another one runs it now")


def _taken(recorded: Any, event: str) -> tuple[int, str]:
    """Return how many messages of that name a task has taken, and the last event that was for all;
    by its steps."""
    marks = [s.word for s in recorded if s.kind == "event" and s.name == event]
    for_all = [mark for mark in marks if not mark.startswith("m")]
    return len(marks) - len(for_all), for_all[-1] if for_all else NO_EVENT


def _said(kind: str, name: str) -> str:
    if kind == _SLEEP:
        return "a sleep"
    return f"a wait for event {name!r}" if kind == "event" else f"step {name!r}"


def _milliseconds(seconds: Any) -> int:
    return math.ceil(checked_seconds("the time to wait", seconds) * 1000)
