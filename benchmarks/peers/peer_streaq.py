"""streaq. Async tasks, ``concurrency=100`` (its benchmarks raise it from 16), uvloop through anyio,
``enqueue_many`` (one pipeline) for bulk, ``--workers`` for processes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import work
from base import CPU_BOUND, URL, AsyncPeer
from streaq import Worker

worker: Any = Worker(
    redis_url=URL,
    concurrency=1 if CPU_BOUND else 100,
    anyio_kwargs={"use_uvloop": True},
)
TASKS = {
    "noop": worker.task(name="noop", ttl=dt.timedelta(hours=1))(work.anoop),
    "late": worker.task(name="late", ttl=dt.timedelta(hours=1))(work.alate),
    "size": worker.task(name="size", ttl=dt.timedelta(hours=1))(work.asize),
    "spin": worker.task(name="spin", ttl=dt.timedelta(hours=1))(work.spin),
}


class Streaq(AsyncPeer):
    name = "streaq"

    def commands(self, processes: int) -> list[list[str]]:
        return [["streaq", "run", "peer_streaq:worker", "--workers", str(processes)]]

    def open(self) -> None:
        # anyio's cancel scopes must be left in the task that entered them: one task holds the
        # worker open for as long as the producer lives.
        import asyncio

        super().open()
        self._end = asyncio.Event()
        opened = asyncio.Event()

        async def hold() -> None:
            async with worker:
                opened.set()
                await self._end.wait()

        self._holder = self.loop.create_task(hold())
        self.run(opened.wait())

    def close(self) -> None:
        self._end.set()
        self.run(self._holder)

    async def aput(self, task: str, *args: Any) -> Any:
        return await TASKS[task].enqueue(*args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return (await handle.result(timeout)).result

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        due = dt.datetime.fromtimestamp(when, dt.UTC)
        await TASKS[task].enqueue(*args).start(schedule=due)

    async def aput_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        enqueue = TASKS[task].enqueue
        for start in range(0, len(rows), 1000):
            await worker.enqueue_many([enqueue(*row) for row in rows[start : start + 1000]])


PEER = Streaq()
