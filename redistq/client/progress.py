"""How far a call is: asked for, and drawn as a bar until the call has ended.

``WithProgress`` is a part of TaskFuture. In a notebook a bar is HTML, which stays in the stored
notebook as it ended; in a terminal it is a line that tqdm draws, without tqdm nothing.
"""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..display.html import MUTED, Html, bar, escape, line, mark, tag
from ..display.notebook import Outlet, in_kernel
from ..display.text import (
    CANCELLED,
    FAILED,
    RUNNING,
    SUCCEEDED,
    Look,
    clean,
    duration,
    number,
    per_second,
)
from ..protocol.options import wait_seconds
from ..protocol.plain_commands import TIME, read_time
from ..protocol.progress import Progress, read_progress

if TYPE_CHECKING:
    from typing import Self

    from ..errors import ResultTimeout
    from .queues import ClientQueue

LOOK_S = 0.25
"""How often a bar looks: a worker says no more often how far its tasks are."""
TEXT_CHARS = 40


class WithProgress:
    """What a future can say of its task while it runs."""

    if TYPE_CHECKING:
        queue: ClientQueue
        task_id: str
        name: str

        def done(self) -> bool: ...
        def cancelled(self) -> bool: ...
        def exception(self, timeout: float | None = None) -> BaseException | None: ...
        def _timed_out(self, timeout: float | None) -> ResultTimeout: ...

    def progress(self) -> Progress | None:
        """Return how far the task is, as it said last: done, total, text, since (one look at the
        server); None while it has said nothing. See TaskContext.progress."""
        raw = self.queue.broker.call(self.queue.commands.progress(self.task_id))
        return read_progress(raw)

    def show(self, timeout: float | None = None) -> Self:
        """Draw how far the task is, with the time left, until it has ended; return the future.

        Raises ResultTimeout after ``timeout`` seconds. How it ended, ``result`` says.
        """
        limit = wait_seconds(timeout)
        end = None if limit is None else time.monotonic() + limit
        broker = self.queue.broker
        label = clean(self.name or self.task_id)
        drawn: NotebookTaskBar | TaskBar
        if in_kernel():
            drawn = NotebookTaskBar(label)
        else:
            drawn = TaskBar(label, lambda: read_time(broker.call(TIME)) / 1000)
        try:
            while not self.done():
                drawn.draw(self.progress())
                left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
                if left <= 0:
                    raise self._timed_out(timeout)
                concurrent.futures.wait([self], timeout=left)  # type: ignore[arg-type]
            drawn.draw(self.progress())
        finally:
            drawn.close(self._end())
        return self

    def _end(self) -> Look:
        """How it stands now."""
        if not self.done():
            return RUNNING
        if self.cancelled():
            return CANCELLED
        return SUCCEEDED if self.exception(0) is None else FAILED


def progress_rows(future: WithProgress) -> list[tuple[str, Html]]:
    """Return what a still picture of a future says of how far it is."""
    try:
        found = future.progress()
    except Exception:  # broad: a picture is no place for a traceback
        return []
    if found is None:
        return []
    return [("progress", _how_far(found, SUCCEEDED.color if future.done() else RUNNING.color))]


def _said(found: Progress) -> str:
    said = number(found.done)
    if found.total is not None:
        said += f" of {number(found.total)} ({found.fraction:.0%})"
    return said + (f" · {clean(found.text, TEXT_CHARS)}" if found.text else "")


def _how_far(found: Progress, color: str) -> Html:
    if found.fraction is None:
        return escape(_said(found))
    return bar([(found.fraction, color)], _said(found))


class NotebookTaskBar:
    """One task's bar below the cell; it appears with the first thing that the task says, and stays
    as the task ended."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._outlet: Outlet | None = None
        self._found: Progress | None = None

    def draw(self, progress: Progress | None) -> None:
        """Draw how far it is."""
        if progress is None or progress == self._found:
            return
        self._found = progress
        left = [] if progress.rate is None else [per_second(progress.rate)]
        left += [] if progress.eta_s is None else [f"{duration(progress.eta_s * 1000)} left"]
        bundle = self._bundle(progress, RUNNING, " · ".join(left))
        if self._outlet is None:
            self._outlet = Outlet()
            self._outlet.show(bundle)
        else:
            self._outlet.replace(bundle)

    def close(self, face: Look) -> None:
        """Leave it as the task is."""
        if self._outlet is not None and self._found is not None:
            more = "not waited for any longer; it goes on" if face is RUNNING else ""
            self._outlet.replace(self._bundle(self._found, face, more))
            self._outlet.close()

    def _bundle(self, found: Progress, face: Look, more: str) -> dict[str, str]:
        word = f"{face.glyph} {face.word}"
        shown = line(
            tag("strong", self._label),
            _how_far(found, face.color),
            mark(word, face.color),
            tag("span", more, style=MUTED),
        )
        text = ", ".join(filter(None, (f"{self._label}: {_said(found)}", word, more)))
        return {"text/plain": text, "text/html": str(shown)}


class TaskBar:
    """One task's line of a terminal; it appears with the first thing that the task says. ``now`` is
    the server's time in seconds."""

    def __init__(self, label: str, now: Callable[[], float]) -> None:
        self._label = label
        self._now = now
        self._bar: Any = None
        self._since = 0.0

    def draw(self, progress: Progress | None) -> None:
        """Draw how far it is."""
        if progress is None:
            return
        if self._bar is None or progress.since != self._since or progress.total != self._bar.total:
            self._open(progress)
        if self._bar is None:
            return
        self._bar.n = progress.done
        self._bar.set_postfix_str(clean(progress.text, TEXT_CHARS), refresh=False)
        self._bar.refresh()

    def _open(self, progress: Progress) -> None:
        """Begin the bar, or begin it again: another attempt, or another total."""
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._since = progress.since
        if self._bar is not None:
            self._bar.reset(total=progress.total)
        else:
            self._bar = tqdm(
                total=progress.total,
                desc=self._label,
                dynamic_ncols=True,
                file=sys.stderr,
                delay=0.001,  # it is not drawn before it says anything
            )
        # The rate is that of the attempt since it began, however late the bar is opened.
        self._bar.start_t = time.time() - max(self._now() - progress.since, 0.0)

    def close(self, _face: Look) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
