"""Time limits: of what a worker process runs, the soft ones, at which a handler may tidy up, and
the hard ones, at which its process is killed.

Used by the executor, which begins and ends one limit an attempt, and by the attempt's own code,
which may move it. ``TimeLimits`` raises TimeLimitExceeded in a thread whose handler has run too
long; a coroutine's soft limit is asyncio's. The hard limit stands on the scoreboard, and the
supervisor keeps it: see killed.py.

Python can raise an exception in another thread (``PyThreadState_SetAsyncExc``), but only
asynchronously: it strikes at that thread's next step in Python code, wherever that is. Hence two
rules. A limit that has ended is never fired again, and one that was fired a moment ago is called
back, so that it cannot strike after its handler is gone. And every lock on the way is one that such
an exception cannot leave locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence

from ..errors import TimeLimitExceeded
from .scoreboard import Scoreboard
from .wishes import call_back, strike

HARD_LIMIT_GRACE = 5.0
"""Seconds after its time limit at which what did not obey costs its process its life, where no
other hard limit was given."""
LONGEST_WAIT_S = 3600.0
"""Longest single wait of the watcher of time limits: a platform's own maximum may be some weeks."""

ThreadMaker = Callable[[Callable[[], None], str], threading.Thread]
"""Makes a thread, not started, from what it runs and its part in the processor."""


class Limit:
    """What bounds one attempt: when it is to end, and when its process is killed (monotonic
    clock)."""

    __slots__ = (
        *("_limits", "_slot", "_spare", "active", "clock", "deadline", "fired", "hard", "hard_s"),
        *("loop", "soft_s", "thread"),
    )

    def __init__(
        self, limits: TimeLimits, slot: int, soft_s: float | None, hard_s: float, retry_ms: int
    ) -> None:
        now = time.monotonic()
        self._limits = limits
        self._slot = slot
        self._spare = retry_ms
        self.soft_s = soft_s
        """How long it may run in all; None: until the hard limit."""
        self.hard_s = hard_s
        self.deadline = math.inf if soft_s is None else now + soft_s
        self.hard = now + hard_s
        self.thread = threading.get_ident()
        self.active = True
        self.fired = False
        self.clock: asyncio.Timeout | None = None
        """What keeps the soft limit of a coroutine, in ``loop``."""
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the next of both, not below 0."""
        now = time.monotonic()
        next = self.deadline if now < self.deadline < self.hard else self.hard
        return max(next - now, 0.0)

    def extend(self, seconds: float) -> float:
        """Move both; return the seconds that remain. Any thread may call this."""
        return self._limits.extend(self, seconds)

    def show(self) -> None:
        """Show the hard limit on the scoreboard."""
        self._limits.board.limit(self._slot, self.hard, self._spare, self.hard_s)

    def passed(self) -> TimeLimitExceeded:
        """Return the error of a soft limit that has passed."""
        return TimeLimitExceeded(f"the time limit of {self.soft_s:g} s has passed")

    def reschedule(self, deadline: float) -> None:
        """Let a coroutine's soft limit be at that time; in its loop."""
        clock, loop = self.clock, self.loop
        if clock is not None and loop is not None and self.active:
            with contextlib.suppress(RuntimeError):  # it has passed, and stays so
                clock.reschedule(loop.time() + deadline - time.monotonic())


class TimeLimits:
    """Watch the limits of all threads of a processor, in one thread.

    That thread runs before there are tasks: one that started it would fail where no more threads
    are to be had.
    """

    def __init__(self, thread: ThreadMaker, board: Scoreboard) -> None:
        self._thread = thread
        self.board = board
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

    def begin(self, slot: int, soft_s: float | None, hard_s: float, retry_ms: int) -> Limit:
        """Limit what the calling thread runs in a slot from now on. ``retry_ms`` is for whoever
        kills it: see Scoreboard.limit."""
        return self.keep(Limit(self, slot, soft_s, hard_s, retry_ms))

    def keep(self, limit: Limit) -> Limit:
        """Keep a limit of the calling thread from now on; return it."""
        limit.show()
        if limit.soft_s is not None:
            with self._lock:
                self._current[limit.thread] = limit
                early = limit.deadline < self._next
            if early:
                self._bell.set()
        return limit

    def begin_async(self, slot: int, soft_s: float | None, hard_s: float, retry_ms: int) -> Limit:
        """Limit the coroutine that calls this; ``clock`` is to be set to what keeps it."""
        return self.keep_async(Limit(self, slot, soft_s, hard_s, retry_ms))

    def keep_async(self, limit: Limit) -> Limit:
        """Keep a limit of the calling coroutine from now on; return it."""
        limit.loop = asyncio.get_running_loop()
        limit.show()
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

    def extend(self, limit: Limit, seconds: float) -> float:
        """Move a limit; a soft one that has struck stays where it is. Return what remains."""
        with self._lock:
            if limit.active:  # else its slot is another's
                limit.hard += seconds
                limit.hard_s += seconds
                limit.show()
                if not limit.fired and limit.soft_s is not None:
                    limit.deadline += seconds
                    limit.soft_s += seconds
        loop, deadline = limit.loop, limit.deadline
        if loop is not None and limit.soft_s is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and so has it
                loop.call_soon_threadsafe(limit.reschedule, deadline)
        return limit.remaining

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


class BatchLimit(Limit):
    """What bounds the tasks of a batch, which run in one call: the first of their limits."""

    __slots__ = ("places",)

    def __init__(
        self,
        limits: TimeLimits,
        soft_s: float | None,
        hard_s: float,
        places: Sequence[tuple[int, int]],
    ) -> None:
        """``places``: of each task its slot, and when it is tried again should it be killed."""
        super().__init__(limits, places[0][0], soft_s, hard_s, -1)
        self.places = places

    def show(self) -> None:
        """Show the hard limit on the scoreboard, of each task."""
        for slot, retry_ms in self.places:
            self._limits.board.limit(slot, self.hard, retry_ms, self.hard_s)
