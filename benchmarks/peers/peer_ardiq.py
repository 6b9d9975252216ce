"""ardiq (Rust core). Async tasks, which its guide calls the fast path; ``enqueue_many`` for bulk.

``concurrency=100`` with the recommended ``prefetch = 2 * concurrency``; ``--workers`` for
processes. CPU-bound tasks are plain functions, run in its thread, one at a time a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import work
from ardiq import Ardiq
from base import CPU_BOUND, URL, AsyncPeer

app = Ardiq(redis_url=URL, concurrency=1 if CPU_BOUND else 100, result_ttl_ms=3_600_000)
TASKS = {
    "noop": app.task(name="noop")(work.anoop),
    "late": app.task(name="late")(work.alate),
    "size": app.task(name="size")(work.asize),
    "spin": app.task(name="spin")(work.spin),
}


class ArdiqPeer(AsyncPeer):
    name = "ardiq"

    def commands(self, processes: int) -> list[list[str]]:
        return [["ardiq", "run", "peer_ardiq:app", "-q", "--workers", str(processes)]]

    async def aput(self, task: str, *args: Any) -> Any:
        return await TASKS[task].enqueue(*args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return (await handle.result(timeout)).value

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        await TASKS[task].options(schedule_ms=int(when * 1000)).enqueue(*args)

    async def aput_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        prepare = TASKS[task].prepare
        await app.enqueue_many([prepare(*row) for row in rows])


PEER = ArdiqPeer()
