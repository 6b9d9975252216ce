"""Slots: a runner that waits for other tasks lends its slot, so that those can run.

A task that submits calls to the queue it came from, and waits for them, holds the slot that they
need: with all slots taken by such tasks nothing would ever end. So whatever waits here says so, and
the processor runs one more task meanwhile. Used by processors, and by all that waits for results;
in a thread that is no runner it does nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .errors import TimeLimitExceeded

MOST = 250
"""Most slots that one worker process has lent at a time."""
STEP_S = 0.5
"""Seconds after which a waiting runner looks up: its time limit can only strike then."""


class Lender(Protocol):
    """A processor, as its runners know it."""

    def lend(self) -> bool:
        """Run one more task at a time from now on, if a thread can be started for it; answers
        whether it was. Raises RedistqError beyond MOST."""

    def take_back(self) -> None:
        """Run one less."""


class Runner:
    """A runner's thread: its slot is lent while it waits for one thing or more."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._waits = 0
        self._lent = False

    def begin(self) -> None:
        """It waits; raises RedistqError when too many do already."""
        if not self._waits:
            self._lent = self._lender.lend()
        self._waits += 1

    def end(self) -> None:
        """It waits no more for that."""
        self._waits -= 1
        if not self._waits and self._lent:
            self._lent = False
            self._lender.take_back()


_here = threading.local()
_process: Lender | None = None


def serve(lender: Lender) -> None:
    """This thread is a runner of that processor."""
    _here.runner = Runner(lender)


def leave() -> None:
    """This thread is no runner any more."""
    _here.runner = None


def serve_process(lender: Lender) -> None:
    """This process does nothing but run the tasks of that processor: a thread that a handler
    started, and that waits for tasks, holds up its handler, and so a slot."""
    global _process
    _process = lender


def runner() -> Runner | None:
    """Return the runner whose thread this is, or which one of its tasks' threads stands for."""
    found: Runner | None = getattr(_here, "runner", None)
    if found is None and _process is not None:
        if threading.current_thread().name.startswith("redistq-"):
            return None  # our own threads hold up nothing
        found = _here.runner = Runner(_process)
    return found


@contextlib.contextmanager
def lent() -> Iterator[bool]:
    """While this runner waits, its slot is another's; gives whether this is a runner at all.

    Raises RedistqError when too many wait already.
    """
    found = runner()
    if found is None:
        yield False
        return
    found.begin()
    try:
        yield True
    finally:
        found.end()


class Waiters(list[Any]):
    """Of a future made by a runner: those of ``concurrent.futures`` who wait for it, from the
    runner's thread; ``wait`` and ``as_completed`` enter themselves here."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def append(self, waiter: Any) -> None:
        """Note that a task waits."""
        self._runner.begin()
        super().append(waiter)

    def remove(self, waiter: Any) -> None:
        """Note that it waits no more."""
        super().remove(waiter)
        self._runner.end()


def wait(
    wait: Callable[[float | None], Any], timeout: float | None, done: Callable[[], bool]
) -> Any:
    """``wait(timeout)``, which raises TimeoutError unless it is done, with the slot lent."""
    with lent() as is_runner:
        if not is_runner:
            return wait(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = STEP_S if end is None else min(STEP_S, end - time.monotonic())
            try:
                return wait(max(left, 0.0))
            except TimeLimitExceeded:
                raise  # of the task that waits
            except TimeoutError:
                if left < STEP_S or done():
                    raise
