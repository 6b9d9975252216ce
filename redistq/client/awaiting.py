"""Waits: what is left of their time, and in an event loop the end of a future passed on to what
awaits it, and the loop kept awake.

Used by futures and batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from ..display.notebook import in_kernel

INTERRUPT_S = 0.2
"""Seconds after which a notebook's interrupt ends an ``await``, at the latest."""


def countdown(timeout: float | None) -> Callable[[], float | None]:
    """Return what tells how many seconds are left of a time that begins now: 0 at least, None for
    ever."""
    if timeout is None:
        return lambda: None
    end = time.monotonic() + timeout
    return lambda: max(end - time.monotonic(), 0.0)


def pass_on(ended: Future[Any], awaited: asyncio.Future[Any]) -> None:
    """Give the end of a future to what awaits it in an event loop; called there."""
    if awaited.done():
        return  # the wait is over
    if ended.cancelled():
        awaited.cancel()
    elif (error := ended.exception()) is None:
        awaited.set_result(ended.result())
    elif isinstance(error, StopIteration):  # it would be taken for the end of a generator
        wrapped = RuntimeError("the task raised StopIteration")
        wrapped.__cause__ = error
        awaited.set_exception(wrapped)
    else:
        awaited.set_exception(error)


class _Alarm:
    """A timer that keeps one event loop awake, and the number of waits it serves."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.waits = 0
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        loop = self._loop()
        if loop is not None and self.waits:
            self._timer = loop.call_later(INTERRUPT_S, self.ring)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


_alarms: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Alarm] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """Let the stop button through while waiting in a notebook's event loop.

    The kernel takes an interrupt between two events of its loop; while nothing happens in it, the
    interrupt is only noticed when the wait is over. One timer serves all waits of a loop.
    """
    if not in_kernel():
        yield
        return
    loop = asyncio.get_running_loop()
    alarm = _alarms.get(loop) or _alarms.setdefault(loop, _Alarm(loop))
    alarm.waits += 1
    if alarm.waits == 1:
        alarm.ring()
    try:
        yield
    finally:
        alarm.waits -= 1
        if not alarm.waits:
            alarm.stop()
