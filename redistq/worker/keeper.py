"""Keeper: an asynchronous context manager that is entered and left by one task of an event loop.

What holds a task group or a time limit must be left by the task that entered it, and whoever wants
it open may be a thread. Used for lifespans and for what factories of dependencies yield.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextvars import Context
from types import FrameType
from typing import Any

MOST_LINES = 6
"""Steps that are shown of each end of a long stack."""
_OURS = os.path.dirname(__file__)
_THROUGH = (threading.__file__, contextlib.__file__)
LOOK_S = 0.2
"""How often a thread that waits runs a step: what is raised in it from outside strikes then."""


def result_of(future: Future[Any]) -> Any:
    """Wait for a result in a thread that may be asked to end meanwhile, and return it."""
    while not future.done():
        wait_for([future], LOOK_S)
    return future.result()


class Keeper:
    """Keeps what ``make`` returns, called in the loop, entered from ``entered`` until ``leave``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make: Callable[[], Any]) -> None:
        self._loop = loop
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._manager: Any = None
        self._end: asyncio.Future[BaseException | None] = loop.create_future()
        self._left: Future[None] = Future()
        self.entered: Future[Any] = Future()
        """What it yields."""
        loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._keep(), context=Context())

    async def _keep(self) -> None:
        try:
            self._manager = manager = self._make()
            value = await manager.__aenter__()
        except BaseException as error:  # the user's; passed on
            self._left.set_result(None)
            self.entered.set_exception(error)
            return
        self.entered.set_result(value)
        ended = await self._end
        try:
            kind = None if ended is None else type(ended)
            await manager.__aexit__(kind, ended, ended and ended.__traceback__)
        except BaseException as raised:  # the user's; passed on
            self._left.set_exception(raised)
        else:
            self._left.set_result(None)

    def leave(self, error: BaseException | None = None) -> None:
        """Leave it, because of ``error`` where there is one, and wait until that is done; raises
        what that raises."""
        self._loop.call_soon_threadsafe(self._tell, error)
        result_of(self._left)

    def _tell(self, error: BaseException | None) -> None:
        if not self._end.done():
            self._end.set_result(error)

    def cancel(self) -> None:
        """Cancel what it is at, its start or its end."""
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def stack(self) -> str:
        """Return where it stands, as a traceback shows it; '' where that cannot be seen."""
        at: Any = getattr(self._manager, "gen", None)
        if at is None and self._task is not None:
            at = self._task.get_coro()
        frames: list[FrameType] = []
        for _ in range(50):
            frame = _first(at, "cr_frame", "gi_frame", "ag_frame")
            if frame is None:
                break
            frames.append(frame)
            if _first(at, "cr_running", "gi_running") or frame.f_back is not None:
                return stack_of_thread(getattr(self._loop, "_thread_id", None))
            at = _first(at, "cr_await", "gi_yieldfrom", "ag_await")
        lines = traceback.StackSummary.extract((f, f.f_lineno) for f in frames).format()
        return "".join(lines).rstrip()


def _first(found: Any, *names: str) -> Any:
    return next((v for n in names if (v := getattr(found, n, None)) is not None), None)


def stack_of_thread(thread: int | None) -> str:
    """Return where a thread stands, without the steps of ours that led there."""
    frame = None if thread is None else sys._current_frames().get(thread)
    if frame is None:
        return ""
    lines = traceback.format_list(
        [
            step
            for step in traceback.extract_stack(frame)
            if not step.filename.startswith(_OURS) and step.filename not in _THROUGH
        ]
    )
    left_out = ["  ...\n"] if len(lines) > 2 * MOST_LINES else []
    return "".join([*lines[:MOST_LINES], *left_out, *lines[MOST_LINES:][-MOST_LINES:]]).rstrip()
