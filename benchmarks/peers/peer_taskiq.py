"""taskiq with taskiq-redis's stream broker (the one that acknowledges), results in Redis, uvloop.

``--max-async-tasks 100`` and ``xread_count=100`` are its defaults, ``--no-parse`` is its advice for
speed. No bulk call. Delayed tasks are a schedule source's work, a process of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import work
from base import CPU_BOUND, URL, AsyncPeer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(URL, xread_count=1 if CPU_BOUND else 100).with_result_backend(
    RedisAsyncResultBackend(URL, result_ex_time=3600)
)
TASKS = {
    "noop": broker.register_task(work.anoop, task_name="noop"),
    "late": broker.register_task(work.alate, task_name="late"),
    "size": broker.register_task(work.asize, task_name="size"),
    "spin": broker.register_task(work.spin, task_name="spin"),
}


class Taskiq(AsyncPeer):
    name = "taskiq"
    skip: ClassVar[dict[str, str]] = {
        "burst": "delayed tasks need a separate scheduler that looks once a minute or second",
        "spread": "delayed tasks need a separate scheduler that looks once a minute or second",
    }

    def commands(self, processes: int) -> list[list[str]]:
        one = ["--max-async-tasks", "1", "--max-threadpool-threads", "1", "--max-prefetch", "1"]
        return [
            [
                *("taskiq", "worker", "peer_taskiq:broker", "--workers", str(processes)),
                *("--no-parse", "--log-level", "WARNING"),
                *(one if CPU_BOUND else ["--max-async-tasks", "100"]),
            ]
        ]

    async def aopen(self) -> None:
        await broker.startup()

    async def aclose(self) -> None:
        await broker.shutdown()

    async def aput(self, task: str, *args: Any) -> Any:
        return await TASKS[task].kiq(*args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return (await handle.wait_result(check_interval=0.001, timeout=timeout)).return_value


PEER = Taskiq()
