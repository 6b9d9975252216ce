"""The pipe between a worker's processes: orders to one that was started, and what it reports.

Both ends are here and nowhere else. ``Child`` is the end of the process that starts another: a
TaskWorker its sidecar, a supervisor its worker processes. ``Parent`` is the end of the one that was
started. Down go one JSON line that says what the process is for, then ``cancel PLACE ENTRY`` for
each task that is to end, ``names PLACE LIST`` when other names of tasks have rules, and ``stop
SECONDS``; their end means that the parent has gone. Up go JSON
lines about its start: ready, or why it cannot be; and, from a sidecar to its application, which
tasks are to end.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..system.processes import Helper, Starter


@dataclass(frozen=True, slots=True)
class Report:
    """What a process reports of its start."""

    ready: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    """What it registered with the server, if it did."""
    failure: str = ""
    """Why it cannot work, in its own words."""
    unavailable: bool = False
    """Whether it ends because the server is unavailable, and is worth another try."""
    cancel: tuple[int, str] | None = None
    """A task that is to end: the place of its queue, and its entry."""
    names: tuple[int, list[str]] | None = None
    """Names of tasks that have rules: the place of their queue, and all of them."""


_FIELDS = frozenset(Report.__dataclass_fields__)


class Child(Helper):
    """A process that this one started: ``introduce`` it, ``hear`` its reports, ``stop`` it."""

    def stop(self, timeout: float) -> None:
        """Tell it to finish within ``timeout`` seconds, and to end."""
        self.order(f"stop {timeout}")

    def cancel(self, place: int, entry: str) -> None:
        """Tell it that the task with this entry, of the queue at that place, is to end. It is told
        again: what a process that reads nothing has not read yet is not heaped up."""
        self.order(f"cancel {place} {entry}", pressing=False)

    def tell_names(self, place: int, names: Sequence[str]) -> bool:
        """Tell it which names of tasks of the queue at that place have rules or are paused; return
        whether it was told."""
        return self.order(f"names {place} {json.dumps(list(names))}", pressing=False)

    def hear(self, timeout: float | None = None) -> Report | None:
        """Return what it reports next; None when there is no more, or nothing for ``timeout`` s."""
        said = self.report(timeout)
        if said is None:
            return None
        return Report(**{name: said[name] for name in said if name in _FIELDS})


class Parent:
    """The process that started this one: what it wants, and what it is to know."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def spec(self) -> dict[str, Any] | None:
        """Return what this process is for; None when its parent has gone before it said so."""
        return self._starter.spec()

    def listen(
        self,
        on_stop: Callable[[float], None],
        on_gone: Callable[[], None],
        on_cancel: Callable[[int, str], None] = lambda place, entry: None,
        on_names: Callable[[int, list[str]], None] = lambda place, names: None,
    ) -> None:
        """Hear, in a thread of its own, that this process is to stop or that its parent has gone.

        ``on_stop`` is called once, with the seconds within which to finish; ``on_gone`` also after
        that.
        ``on_cancel`` is called with the queue's place and the entry of each task that is to end,
        ``on_names`` with the queue's place and all names of tasks that have rules.
        """
        threading.Thread(
            target=self._listen,
            args=(on_stop, on_gone, on_cancel, on_names),
            name="redistq-orders",
            daemon=True,
        ).start()

    def _listen(
        self,
        on_stop: Callable[[float], None],
        on_gone: Callable[[], None],
        on_cancel: Callable[[int, str], None],
        on_names: Callable[[int, list[str]], None],
    ) -> None:
        stopping = False
        while (order := self._starter.order()) is not None:
            command, _, rest = order.strip().partition(" ")
            if command == "stop" and not stopping:
                stopping = True
                on_stop(float(rest))
            elif command == "cancel":
                place, _, entry = rest.partition(" ")
                on_cancel(int(place), entry)
            elif command == "names":
                place, _, names = rest.partition(" ")
                on_names(int(place), json.loads(names))
        on_gone()

    def report_ready(self, details: dict[str, Any] | None = None, last: bool = True) -> None:
        """Report that this process works. It is the ``last`` report where handlers run: nothing
        that one leaves behind shall hold that pipe open."""
        self._report(Report(ready=True, details=details or {}))
        if last:
            self._starter.end_reports()

    def report_cancel(self, place: int, entry: str) -> None:
        """Report that a task of the process that started this one is to end."""
        self._report(Report(cancel=(place, entry)), pressing=False)

    def report_failure(self, reason: str) -> None:
        """Report why this process cannot work."""
        self._report(Report(failure=reason))

    def report_unavailable(self) -> None:
        """Report that the server is unavailable: another try may do."""
        self._report(Report(unavailable=True))

    def report_names(self, place: int, names: Sequence[str]) -> bool:
        """Report which names of tasks have rules or are paused; return whether it was told."""
        return self._report(Report(names=(place, list(names))), pressing=False)

    def _report(self, report: Report, pressing: bool = True) -> bool:
        # Nothing of what is not so: a starter of an earlier release knows fewer fields.
        return self._starter.report({k: v for k, v in asdict(report).items() if v}, pressing)
