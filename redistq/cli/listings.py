"""The listings of ``redistq monitor``: what each shows, how it is read, and what is said of none.

Each becomes a command by its entry here, and its columns are those of the DataFrame of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..monitor import columns
from ..monitor.columns import Listing
from ..monitor.monitor import TaskMonitor
from ..monitor.tick import workers_of


@dataclass(frozen=True, slots=True)
class Shown:
    """A listing as a command: its help, columns, how it is read (at most ``n`` rows; 0: there is
    no choice), how many rows it has without ``-n``, and what is said when it is empty."""

    what: str
    listing: Listing
    read: Callable[[TaskMonitor, int], list[Any]]
    empty: str
    rows: int = 0


LISTINGS = {
    "workers": Shown(
        "worker processes and what each runs",
        columns.WORKERS,
        lambda m, n: workers_of(m.tick(events=1, workers=n, running=n, dead=1, batches=1)),
        "No worker runs: redistq worker your.module",
        1000,
    ),
    "consumers": Shown(
        "the stream's consumers as the server lists them",
        columns.CONSUMERS,
        lambda m, _: m.records.consumers(),
        "No consumers: no worker has asked for work yet.",
    ),
    "recent": Shown(
        "the newest ends of attempts",
        columns.RECENT,
        lambda m, n: m.records.events(n),
        "Nothing has ended yet.",
        20,
    ),
    "pending": Shown(
        "tasks in workers' hands, oldest first",
        columns.PENDING,
        lambda m, n: m.records.pending(n),
        "No worker holds a task.",
        50,
    ),
    "delayed": Shown(
        "tasks that wait for their time, the next first",
        columns.DELAYED,
        lambda m, n: m.records.delayed(n),
        "Nothing is delayed.",
        50,
    ),
    "waiting": Shown(
        "tasks that may not run yet, and why, those first that wait longest",
        columns.WAITING,
        lambda m, n: m.records.waiting(n),
        "Nothing waits for parents, limits, its order or its share.",
        50,
    ),
    "graphs": Shown(
        "graphs of tasks, and batches that others depend on, newest first",
        columns.GRAPHS,
        lambda m, n: m.records.graphs(n),
        "No graphs, and no batch that others depend on.",
        20,
    ),
    "dead": Shown(
        "failed tasks that are kept, newest first",
        columns.DEAD,
        lambda m, n: m.records.dead(n),
        "No dead letters.",
        20,
    ),
    "failures": Shown(
        "dead letters by error and task",
        columns.FAILURES,
        lambda m, n: m.records.failures(n),
        "No dead letters.",
        1000,
    ),
    "batches": Shown(
        "batches and how far each is, newest first",
        columns.BATCHES,
        lambda m, n: m.records.batches(n),
        "No batches.",
        20,
    ),
}
