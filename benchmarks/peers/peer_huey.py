"""huey with RedisExpireHuey (results with a TTL), 8 threads; a process pool for CPU-bound tasks.

It has one consumer process; two are two consumers. ``notify_result`` wakes a waiting caller.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import work
from base import CPU_BOUND, URL, Peer
from huey import RedisExpireHuey

huey = RedisExpireHuey("bench", url=URL, expire_time=3600)
TASKS = {
    name: huey.task(name=name)(getattr(work, name)) for name in ("noop", "late", "size", "spin")
}


class Huey(Peer):
    name = "huey"

    def commands(self, processes: int) -> list[list[str]]:
        if CPU_BOUND:
            return [
                ["huey_consumer", "peer_huey.huey", "-w", str(processes), "-k", "process", "-q"]
            ]
        return [["huey_consumer", "peer_huey.huey", "-w", "8", "-k", "thread", "-q"]] * processes

    def put(self, task: str, *args: Any) -> Any:
        return TASKS[task](*args)

    def wait(self, handle: Any, timeout: float = 30.0) -> Any:
        return handle.get(blocking=True, timeout=timeout, backoff=1.0, max_delay=0.001)

    def put_at(self, when: float, task: str, *args: Any) -> None:
        TASKS[task].schedule(args=args, eta=dt.datetime.fromtimestamp(when))


PEER = Huey()
