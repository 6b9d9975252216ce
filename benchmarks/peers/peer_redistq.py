"""redistq with its defaults: four threads a process, results kept for a day, the history on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import work
from base import CPU_BOUND, URL, Peer

from redistq import Registry, TaskProducer

QUEUE = "tasks"
registry = Registry()
registry.add("noop", work.noop)
registry.add("late", work.late)
registry.add("size", lambda payload: work.size(*payload))
registry.add("spin", lambda payload: work.spin(*payload))


class Redistq(Peer):
    name = "redistq"
    direct = ("xreadgroup",)

    def commands(self, processes: int) -> list[list[str]]:
        threads = ["--threads", "1"] if CPU_BOUND else []
        return [
            [
                *("python", "-m", "redistq.worker", "peer_redistq:registry", "--url", URL),
                *("--queue", QUEUE, "--processes", str(processes), *threads),
            ]
        ]

    def open(self) -> None:
        self.producer = TaskProducer(url=URL, stream=QUEUE)

    def close(self) -> None:
        self.producer.close()

    @staticmethod
    def _payload(args: tuple[Any, ...]) -> Any:
        return args[0] if len(args) == 1 else args

    def put(self, task: str, *args: Any) -> Any:
        return self.producer.add_task(task, self._payload(args))

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return self.producer.get_result(handle, timeout)

    def put_at(self, when: float, task: str, *args: Any) -> None:
        self.producer.schedule_task(task, self._payload(args), execute_at=when)

    def put_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        self.producer.add_tasks((task, self._payload(row)) for row in rows)

    def later(self, dues: Sequence[tuple[float, int]]) -> None:
        self.producer.add_tasks(
            [{"type": "late", "payload": k, "execute_at": when} for when, k in dues]
        )


PEER = Redistq()
