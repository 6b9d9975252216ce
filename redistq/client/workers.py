"""StartedWorkers: the worker processes that a client has started on this machine.

Held by sessions. They stop with the client; workers that were started elsewhere are not known here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..functions.call import CALL
from ..protocol.keys import PRIORITIES, at_priority
from ..protocol.plain_commands import TIME, read_time
from ..worker.worker import TaskWorker
from .queues import ClientQueue

if TYPE_CHECKING:
    from .session import ClientSettings


class StartedWorkers:
    """Workers in the order in which they were started; those that have stopped are forgotten."""

    def __init__(self) -> None:
        self._workers: list[TaskWorker] = []

    def new(
        self,
        settings: ClientSettings,
        processes: int | None,
        threads: int,
        handlers: Any,
        options: dict[str, Any],
    ) -> TaskWorker:
        """Return workers of this client, not started yet; None processes: one a core."""
        queues = [at_priority(settings.stream, priority) for priority in PRIORITIES]
        options.setdefault("queues", queues)
        return TaskWorker(
            stream=settings.stream,
            group=settings.group,
            task_handlers=handlers,
            thread_count=threads,
            processes=(os.cpu_count() or 1) if processes is None else processes,
            address=settings.address,
            signing_key=settings.key.hex(),
            folder=settings.home.folder,
            **options,
        )

    def start(self, worker: TaskWorker) -> None:
        """Start workers; returns when they are ready."""
        worker.start()
        self._workers[:] = [*(w for w in self._workers if w.running), worker]

    @property
    def running(self) -> bool:
        """Whether any of them runs."""
        return any(worker.running for worker in self._workers)

    @property
    def processes(self) -> int:
        """How many processes run."""
        return sum(worker.processes for worker in self._workers if worker.running)

    @property
    def slots(self) -> int:
        """How many tasks they run at a time; without any, the number of cores."""
        workers = [worker for worker in self._workers if worker.running]
        return sum(w.processes * w.settings.threads for w in workers) or (os.cpu_count() or 1)

    def take(self) -> list[TaskWorker]:
        """Return all of them, for the caller to stop; there are none here any more."""
        taken = list(self._workers)
        self._workers.clear()
        return taken


def homes_served(queue: ClientQueue) -> dict[str, int]:
    """Return how many living worker processes run function calls of a queue, by home; under ""
    those that run the calls of all homes."""
    now_ms = read_time(queue.broker.call(TIME))
    names = queue.broker.call(queue.commands.workers_alive(now_ms))
    served: dict[str, int] = {}
    commands = (queue.commands.names_and_home(name.decode()) for name in names)
    for known, home in queue.broker.call_many(commands):
        if CALL.encode() in (known or b"").split(b"\n"):
            where = (home or b"").decode()
            served[where] = served.get(where, 0) + 1
    return served
