"""Worker: runs jobs of queues in this process, as RQ's program does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from ...worker import TaskWorker
from ..unsupported import NotSupported
from . import connections
from .queue import Queue
from .running import handlers

LOOK_S = 0.05
"""Seconds between two looks at whether a burst has come to its end."""


class Worker:
    """Runs the jobs of queues, the most urgent first, of the functions that are allowed.

    ``allow`` are the modules, with those below them, whose functions may run: whoever can write to
    the server chooses the path of a job's function. Jobs run in ``threads`` threads of this
    process; ``python -m redistq.worker`` with ``handlers(allow)`` runs them in processes of their
    own.
    """

    def __init__(
        self,
        queues: Queue | str | Iterable[Queue | str],
        connection: Any = None,
        name: str | None = None,
        *,
        allow: Iterable[str] = (),
        threads: int = 1,
        serializer: Any = None,
        **options: Any,
    ) -> None:
        connections.json_only(serializer)
        if options:
            raise NotSupported(
                f"Worker({next(iter(options))}=...)",
                "leave it out, or use TaskWorker with redistq.compat.rq.handlers(allow)",
            )
        given: Sequence[Queue | str] = [queues] if isinstance(queues, Queue | str) else list(queues)
        self.queues = [Queue(one, connection) if isinstance(one, str) else one for one in given]
        self.connection = connection or (self.queues[0].connection if self.queues else None)
        self._registry = handlers(allow)
        self._threads = threads

    def work(
        self, burst: bool = False, with_scheduler: bool = True, logging_level: Any = None, **_: Any
    ) -> bool:
        """Run jobs until a signal; with ``burst`` until no job is queued or runs. Return whether
        any has run. It fires schedules and moves due jobs, too."""
        producers = [connections.producer(self.connection, queue.name) for queue in self.queues]
        before = sum(_ended(one.snapshot().counters) for one in producers)
        worker = TaskWorker(
            url=connections.url_of(self.connection),
            queues=tuple(queue.name for queue in self.queues),
            task_handlers=self._registry,
            thread_count=self._threads,
        )
        if not burst:
            worker.run()
        else:
            with worker:
                while any((found := one.snapshot()).ready or found.pending for one in producers):
                    time.sleep(LOOK_S)
        return sum(_ended(one.snapshot().counters) for one in producers) > before


class SimpleWorker(Worker):
    """The same: jobs run in threads of this process."""


def _ended(counters: dict[str, int]) -> int:
    return sum(counters.get(name, 0) for name in ("succeeded", "failed", "retried"))
