"""A queue with something of everything, made without workers: for tests of what looks at queues.

Used by the tests of the monitor, the command line and the metrics.
"""

from __future__ import annotations

import json
from typing import Any

import redis

from redistq import TaskMonitor

EVIL = "<script>alert(1)</script>"


class Farm:
    """One queue, a monitor on it, and attempts that end as a test wants, without workers."""

    def __init__(self, url: str, db: redis.Redis) -> None:
        self.monitor = TaskMonitor(url=url)
        self.producer, self.client = self.monitor.producer, db
        self.call, self.commands = self.monitor.broker.call, self.monitor.commands
        self.call(self.commands.create_group())

    def register(self, consumer: str, **details: Any) -> None:
        """A worker that has just announced itself."""
        known = {"host": "here", "pid": 7, "threads": 2, "names": "work", **details}
        self.call(self.commands.register(consumer, 10_000, known))

    def fetch(self, consumer: str, count: int = 100) -> list[tuple[bytes, list[bytes]]]:
        """Entries handed to a consumer."""
        reply = self.call(self.commands.fetch(consumer, count, None))
        return list(reply[0][1]) if reply else []

    def settle(
        self,
        consumer: str,
        entries: list[Any],
        *,
        error: dict[str, str] | None = None,
        ms: str = "1",
    ) -> None:
        """Entries that succeed, or fail with an error."""
        state, body = ("failed", json.dumps(error)) if error else ("succeeded", "null")
        note = error["type"] if error else ""
        for start in range(0, len(entries), 200):
            outcomes = [
                (e, f[1], state, f[3], f[7], ms, body, "60000", "", note, "")
                for e, f in entries[start : start + 200]
            ]
            assert self.call(self.commands.settle(consumer, outcomes)) == []

    def event(self, at_ms: int, **fields: Any) -> str:
        """One event of the history, as a script would have written it."""
        event = {
            "id": "x",
            "name": "work",
            "state": "succeeded",
            "worker": "w",
            "attempt": 1,
            "queued_ms": at_ms - 100,
            "run_ms": "40",
            "note": "",
            **fields,
        }
        return str(self.client.xadd("history:tasks", event, id=f"{at_ms}-*"))

    def now_ms(self) -> int:
        """The server's time."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000


def fill(farm: Farm) -> None:
    """Something of everything: waiting, held, delayed, settled, dead, a worker, a batch."""
    farm.register("w1")
    farm.producer.add_tasks([("work", n) for n in range(6)])
    farm.settle("w1", farm.fetch("w1", 2))
    error = {"type": "ValueError", "message": EVIL, "traceback": "Traceback: " + EVIL}
    farm.settle("w1", farm.fetch("w1", 1), error=error)
    farm.fetch("w1", 1)
    farm.producer.add_task("later", {"n": 1}, delay=60)
    now = farm.now_ms()
    farm.client.zadd("batches:tasks", {"b1": now, "b2": now - 5000})
    counts = {"total": 3, "succeeded": 1, "failed": 1, "cancelled": 0, "retried": 2}
    farm.client.hset("batch:tasks:b1", mapping={"name": EVIL, **counts, "created_ms": now})
    more = {"succeeded": 2, "created_ms": now - 5000, "finished_ms": now - 1000}
    farm.client.hset("batch:tasks:b2", mapping={"name": "", **counts, **more})
