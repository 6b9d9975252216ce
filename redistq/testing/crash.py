"""Crash points: a worker that dies at a named point, so that what its death leaves can be tested.

Used by a TestQueue, whose worker asks here at each of its points. The worker is left as a process
that was killed leaves it: what it had not sent is gone, what it held stays pending until it is
recovered. Only the handler's own frames are left in the usual way, by an exception that is no
``Exception``: its ``finally`` blocks run, which they would not in a process that is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..connection.broker import Broker
from ..errors import ConfigurationError
from ..protocol.commands import Command
from ..protocol.simulated import argument_of, verb_of

OUTCOMES = ("settle", "retry", "suspend")
"""What tells the server how an attempt ended."""
POINTS = ("fetch", "run", "step", "settle", "promote", "fire")
"""Where a worker can die: before and after each."""
_POINT_OF = {
    **dict.fromkeys(OUTCOMES, "settle"),
    "step": "step",
    "promote": "promote",
    "fire": "fire",
}


class WorkerDied(BaseException):
    """Raised where a simulated worker dies. No ``Exception``: no handler takes it for an error."""


@dataclass(slots=True)
class CrashPoint:
    """One point, and how often it is still to be met."""

    when: str
    point: str
    detail: str
    """Which step, where that was said."""
    task: str | None
    times: int
    reported: bool
    met: int = 0

    def __str__(self) -> str:
        named = f"{self.point}:{self.detail}" if self.detail else self.point
        of = f" of {self.task}" if self.task else ""
        return f"{self.when} {named}{of}"


class Crashes:
    """The crash points that are set now."""

    def __init__(self) -> None:
        self._points: list[CrashPoint] = []
        self.task = ""
        """The name of the task that runs."""
        self.died: CrashPoint | None = None
        """Where the worker has died; None while it lives."""

    @contextlib.contextmanager
    def at(
        self, when: str, point: str, task: str | None, times: int, reported: bool
    ) -> Iterator[CrashPoint]:
        """Set a point for the block; raises AssertionError at its end when it was not met."""
        name, _, detail = point.partition(":")
        if name not in POINTS or (detail and name != "step"):
            raise ConfigurationError(
                f"{point!r} is no crash point: {', '.join(POINTS)}, or step:NAME for one step"
            )
        found = CrashPoint(when, name, detail, task, times, reported)
        self._points.append(found)
        try:
            yield found
        finally:
            self._points.remove(found)
        if not found.met:
            raise AssertionError(
                f"no worker died {found}: it was never reached; drain() within the block, and see "
                "what it returns"
            )

    def reach(self, when: str, point: str, detail: str = "") -> None:
        """Raise WorkerDied when a worker is to die here; a dead one does nothing any more."""
        if self.died is not None:
            raise WorkerDied
        for set_ in self._points:
            if (
                (set_.when, set_.point) == (when, point)
                and set_.detail in ("", detail)
                and set_.task in (None, self.task)
                and set_.met < set_.times
            ):
                set_.met += 1
                self.died = set_
                raise WorkerDied

    def forget(self) -> CrashPoint | None:
        """Return where the worker has died; the next one lives."""
        died, self.died = self.died, None
        return died


class DyingBroker(Broker):
    """A worker's calls, at which it may die: before the server hears of one, or before its answer
    is heard."""

    crashes: Crashes

    def call(self, command: Command, deadline: float | None = None) -> Any:
        """As Broker.call."""
        verb = verb_of(command)
        point = _POINT_OF.get(verb)
        if point is None:
            return super().call(command, deadline)
        detail = argument_of(command, "name") if point == "step" else ""
        self.crashes.reach("before", point, detail)
        answer = super().call(command, deadline)
        self.crashes.reach("after", point, detail)
        return answer
