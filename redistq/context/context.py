"""TaskContext: what a running handler may know and do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from ..errors import RedistqError, UnknownTask
from ..protocol.options import Seconds, TaskKeywords, listed
from .parts import Items, Parents, Running, Spawner, Steps

RAISES: Any = object()
"""Stands for no default of ``wait_for``: a wait that is over raises EventTimeout."""


@dataclass(slots=True)
class TaskContext:
    """What a running handler may know about its task.

    ``attempt`` counts from 1; ``recovered`` is how often a worker died while it ran this task, so
    a task that must not act twice can look at both. ``cancelled`` is whether it was asked to end:
    for loops in code that CancelRequested cannot reach, or should not.
    """

    task_id: str
    name: str
    queue: str
    attempt: int
    recovered: int
    max_attempts: int
    entry: str
    worker: str
    logger: logging.LoggerAdapter[logging.Logger]
    cancelled: bool = field(default=False, init=False, compare=False)
    resources: dict[str, list[int]] = field(default_factory=dict, init=False, compare=False)
    """Which units it has of what it needs, by their numbers: ``{"gpu": [0]}``. Graphics cards are
    counted as this process sees them, so ``cuda:0`` is the first."""
    _interrupt: Callable[[], None] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    """Ends what waits in this task's thread, where an exception would come too late."""
    _spawner: Spawner | None = field(default=None, init=False, repr=False, compare=False)
    """Keeps what it spawns; None where no worker runs it."""
    _report: dict[str, Any] | None = field(default=None, init=False, repr=False, compare=False)
    """What the handler for function calls adds to the report of its failure."""
    _parents: Parents | None = field(default=None, init=False, repr=False, compare=False)
    _batch: str = field(default="", init=False, repr=False, compare=False)
    """The batch it belongs to; '' none."""
    _made_by: str = field(default="", init=False, repr=False, compare=False)
    """What is put behind the name of its result: which version of a batch's function made it."""
    _running: Running | None = field(default=None, init=False, repr=False, compare=False)
    """What it says of itself while it runs; None where no worker runs it."""
    _steps: Steps | None = field(default=None, init=False, repr=False, compare=False)
    """What keeps its steps; None where no worker runs it."""

    _items: Items | None = field(default=None, init=False, repr=False, compare=False)
    """What it yields; None where no worker runs it."""
    _target: Callable[[], Any] | None = field(default=None, init=False, repr=False, compare=False)
    """Where tasks go that it adds (``task.delay``); None where no worker runs it."""
    _headers: Mapping[str, str] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that travel with the task: text by name, as ``add_task(..., headers=...)``
        and middleware wrote them."""
        return dict(self._headers or {})

    _state: Any = field(default=None, init=False, repr=False, compare=False)

    @property
    def state(self) -> Any:
        """What the lifespans of this worker process have yielded: a mapping of all that they
        yielded by name, or the one object; shared by all of its tasks. Empty without lifespans.
        """
        return {} if self._state is None else self._state

    @property
    def stream_position(self) -> int:
        """How many items of this task's stream are there: of attempts before this one, which did
        not come to its end, and of this one.

        An attempt that asks for it before its first ``yield`` goes on from there. One that does
        not ask begins anew: what was there is dropped with its first item.
        """
        return 0 if self._items is None else self._items.position()

    def stream_bounds(
        self, *, window: int | None = 16 * 1024 * 1024, keep: int = 64 * 1024 * 1024
    ) -> None:
        """Set how much of this task's stream is kept, in bytes; before its first ``yield``.

        With ``window`` bytes that nobody has read the next ``yield`` waits (None: it never waits,
        and items go unread). Of what was read, so much is kept for other readers that all are
        ``keep`` bytes. Raises ConfigurationError for bounds that are no numbers of bytes.
        """
        if self._items is not None:
            self._items.bound(window, keep)

    def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say how far the task is: for bars in notebooks, dashboards and terminals.

        Costs less than a microsecond and sends nothing itself, so it may stand in any loop: a
        worker process sends the last that its tasks said, at most four times a second. Any thread
        may call it. Raises ConfigurationError for what is no number, below 0, or a total of 0.
        """
        if self._running is not None:
            self._running.progress(done, total, text)

    def checkpoint(self, cursor: Any) -> None:
        """Keep where another attempt would go on: JSON of at most 64 kB, such as the number of the
        last row that is done.

        Sends nothing itself. The last one is on the server within half a second, and before this
        attempt ends for another: by an error, a retry, or a worker that stops. A worker that is
        killed loses at most that half second. Raises ConfigurationError for what is no JSON, or
        too large.
        """
        if self._running is not None:
            self._running.save(cursor)

    @property
    def cursor(self) -> Any:
        """The last checkpoint of this task, of this attempt or one before; None at first.

        The server is asked for it once. ``async def`` handlers use ``await context.acursor()``.
        """
        return None if self._running is None else self._running.cursor()

    async def acursor(self) -> Any:
        """Return ``cursor`` without holding up the event loop."""
        if self._running is None:
            return None
        import asyncio

        return await asyncio.to_thread(self._running.cursor)

    def extend(self, seconds: float) -> float:
        """Give the task more time: move its time limits, ``timeout`` and ``hard_timeout``, by so
        many seconds; return how many remain.

        Sends nothing; any thread may call it. A ``timeout`` that has passed stays so: what is left
        then is the time to tidy up, until the hard limit. Without limits nothing changes, and
        ``math.inf`` remains.
        """
        return math.inf if self._running is None else self._running.extend(seconds)

    @property
    def remaining(self) -> float:
        """Seconds until the next of the task's time limits; ``math.inf`` where it has none."""
        return math.inf if self._running is None else self._running.remaining

    # -- durable steps ---------------------------------------------------------------------------

    def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return ``fn(*args, **kwargs)``; called once for this task, however often the task runs.

        What it returns is kept on the server before this returns, and the next attempt is given it
        instead of another call. A step that raises is not kept. Steps come in the same order in
        each attempt, each under the same name: code between them may run again. JSON of up to 1 MB
        (of a Client's function: what can be pickled), 1,000 steps and 16 MB a task.

        With an ``async def`` function it returns what is to be awaited, as ``astep``.

        Raises StepMismatch where an earlier attempt did another step, StepError where it cannot be
        kept, and LeaseLost when another worker has the task.
        """
        return self._own_steps.step(name, fn, args, kwargs)

    async def astep(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As ``step``, for coroutines: an ``async def`` function is awaited, another runs in a
        thread."""
        return await self._own_steps.astep(name, fn, args, kwargs)

    def sleep(self, seconds: Seconds) -> None:
        """Let the task go on after so many seconds (or "90s", "1h", "7d"), in another attempt.

        This one ends here, by Suspended, a BaseException to be let through; its thread, slot and
        limits are free meanwhile. The next one runs the handler from its beginning, with the
        results of the steps that are done, and comes past this point. It counts as no attempt.
        """
        self._own_steps.sleep(seconds)

    async def asleep(self, seconds: Seconds) -> None:
        """As ``sleep``, for coroutines."""
        await self._own_steps.asleep(seconds)

    def wait_for(self, event: str, timeout: Seconds | None = None, *, default: Any = RAISES) -> Any:
        """Return what is sent with an event of that name: ``send_event`` of a producer or a client.

        One that came before counts. Else this attempt ends here, as by ``sleep``, and the task goes
        on when the event comes. After ``timeout`` seconds EventTimeout is raised, or ``default``
        returned where it is given.
        """
        return self._own_steps.wait_for(event, timeout, default)

    async def await_for(
        self, event: str, timeout: Seconds | None = None, *, default: Any = RAISES
    ) -> Any:
        """As ``wait_for``, for coroutines."""
        return await self._own_steps.await_for(event, timeout, default)

    @property
    def _own_steps(self) -> Steps:
        if self._steps is None:
            raise RedistqError(
                "only a task that a worker runs has steps: this context was made by hand"
            )
        return self._steps

    # -- other tasks -----------------------------------------------------------------------------

    @property
    def parents(self) -> list[str]:
        """The ids of the tasks that this one ran after, batches by their names."""
        return [] if self._parents is None else self._parents.ids

    def results(self) -> list[Any]:
        """Return the results of the tasks that this one ran after, in the order in which they were
        given; of a batch the list of its results, and None for one that need not succeed and did
        not.

        They are read from the server now, once; an ``async def`` handler that reads large ones
        does it in a thread: ``await asyncio.to_thread(context.results)``.
        """
        return [] if self._parents is None else self._parents.results()

    def result(self, task_id: str) -> Any:
        """Return the result of one of them, or of another task of this queue that has succeeded.

        Raises RedistqError for one that has not, and UnknownTask where its result is not kept.
        """
        if self._parents is None:
            raise UnknownTask(task_id)
        return self._parents.result(task_id)

    @listed(TaskKeywords)
    def spawn(
        self,
        type: str | Callable[..., Any],
        payload: Any = None,
        *,
        task_id: str | None = None,
        in_batch: bool = False,
        **options: Unpack[TaskKeywords],
    ) -> str:
        """Add a task together with the success of this one; return its id.

        It is checked and encoded now, and sent with this task's settlement: it is there exactly
        once, however often this task runs, and not at all when this task fails, is cancelled or
        tried again. The options are those of TaskProducer.add_task; ``after`` may name tasks that
        were spawned before. ``in_batch``: it belongs to the batch of this task.

        Raises what ``add_task`` raises, before anything is sent.
        """
        if self._spawner is None:
            raise RedistqError(
                "only a task that a worker runs can spawn others: this context was made by hand"
            )
        return self._spawner.spawn(type, payload, task_id, in_batch, options)
