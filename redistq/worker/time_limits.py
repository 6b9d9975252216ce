"""Time limits: raise TimeLimitExceeded in a thread whose handler has run too long.

Used by the executor for handlers that run in threads; a coroutine's limit is asyncio's. Python can
raise an exception in another thread (``PyThreadState_SetAsyncExc``), but only asynchronously: it
strikes at that thread's next step in Python code, wherever that is. Hence two rules. A limit that
has ended is never fired again, and one that was fired a moment ago is called back, so that it
cannot strike after its handler is gone. And every lock on the way is one that such an exception
cannot leave locked. Native code that never comes back is the supervisor's business.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable

from ..errors import TimeLimitExceeded

HARD_LIMIT_GRACE = 5.0
"""Seconds after its time limit at which a thread that did not obey costs its process its life."""
LONGEST_WAIT_S = 3600.0
"""Longest single wait of the watcher of time limits: a platform's own maximum may be some weeks."""

ThreadMaker = Callable[[Callable[[], None], str], threading.Thread]
"""Makes a thread, not started, from what it runs and its part in the processor."""


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
                    _call_back(limit.thread)
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
                        _strike(limit.thread)
                    else:
                        self._next = min(self._next, limit.deadline)
                wait = min(self._next - now, LONGEST_WAIT_S)
            self._bell.wait(wait)


def _strike(thread: int) -> None:
    """Raise TimeLimitExceeded in a thread, at its next step in Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(TimeLimitExceeded)
    )


def _call_back(thread: int) -> None:
    """Take back an exception that is still on its way to a thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object())
