"""rq with SimpleWorker (no fork a job, which its documentation names for performance), JSON off
(pickle is its default), ``enqueue_many`` for bulk and the built-in scheduler for delayed jobs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import redis
import work
from base import URL, Peer
from rq import Queue

TASKS = {name: getattr(work, name) for name in ("noop", "late", "size", "spin")}


class Rq(Peer):
    name = "rq"

    def commands(self, processes: int) -> list[list[str]]:
        return [
            [
                *("rq", "worker", "bench", "--url", URL, "--with-scheduler"),
                *("--worker-class", "rq.SimpleWorker", "--quiet"),
            ]
        ] * processes

    def open(self) -> None:
        self.queue = Queue("bench", connection=redis.Redis.from_url(URL))

    def put(self, task: str, *args: Any) -> Any:
        return self.queue.enqueue(TASKS[task], *args, result_ttl=3600)

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return handle.latest_result(timeout=int(timeout)).return_value

    def put_at(self, when: float, task: str, *args: Any) -> None:
        due = dt.datetime.fromtimestamp(when, dt.UTC)
        self.queue.enqueue_at(due, TASKS[task], *args, result_ttl=3600)

    def put_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        prepare, function = Queue.prepare_data, TASKS[task]
        for start in range(0, len(rows), 1000):
            self.queue.enqueue_many(
                [prepare(function, row, result_ttl=3600) for row in rows[start : start + 1000]]
            )


PEER = Rq()
