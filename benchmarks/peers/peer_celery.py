"""celery with Redis for broker and results, prefork, one child a process, events and gossip off,
``prefetch_multiplier=128``, which its optimizing guide gives for
many short tasks (1 for long ones).

It acknowledges early (its default): a task whose worker dies is lost, which makes it cheap here.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import work
from base import CPU_BOUND, URL, Peer
from celery import Celery

app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=1 if CPU_BOUND else 128,
    task_acks_late=CPU_BOUND,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)
TASKS = {
    name: app.task(getattr(work, name), name=name) for name in ("noop", "late", "size", "spin")
}


class CeleryPeer(Peer):
    name = "celery"

    def commands(self, processes: int) -> list[list[str]]:
        return [
            [
                *("celery", "-A", "peer_celery", "worker", "--pool", "prefork"),
                *("--concurrency", str(processes), "--loglevel", "WARNING"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ]
        ]

    def put(self, task: str, *args: Any) -> Any:
        return TASKS[task].delay(*args)

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return handle.get(timeout=timeout)

    def put_at(self, when: float, task: str, *args: Any) -> None:
        TASKS[task].apply_async(args, eta=dt.datetime.fromtimestamp(when, dt.UTC))


PEER = CeleryPeer()
