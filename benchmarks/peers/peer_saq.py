"""saq. Async tasks, ``concurrency=32`` (at 100 its own connections run out), hiredis, uvloop for
the producer, results for an hour.

It has no bulk call: 100 single ones are under way at a time (its queue allows 20 by default).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import work
from base import CPU_BOUND, URL, AsyncPeer
from saq import Job, Queue

queue = Queue.from_url(URL, max_concurrent_ops=100)


async def noop(ctx: Any, *, k: int) -> int:
    """See work.py."""
    return work.noop(k)


async def late(ctx: Any, *, k: int) -> int:
    """See work.py."""
    return work.late(k)


async def size(ctx: Any, *, k: int, data: str) -> int:
    """See work.py."""
    return work.size(k, data)


async def spin(ctx: Any, *, k: int, ms: int) -> int:
    """See work.py."""
    return work.spin(k, ms)


settings = {
    "queue": queue,
    "functions": [noop, late, size, spin],
    "concurrency": 1 if CPU_BOUND else 32,
}
NAMES = {"noop": ("k",), "late": ("k",), "size": ("k", "data"), "spin": ("k", "ms")}


class Saq(AsyncPeer):
    name = "saq"

    def commands(self, processes: int) -> list[list[str]]:
        return [["saq", "peer_saq.settings", "--workers", str(processes), "--quiet"]]

    async def aopen(self) -> None:
        await queue.connect()

    async def aclose(self) -> None:
        await queue.disconnect()

    @staticmethod
    def _job(task: str, args: tuple[Any, ...], **more: Any) -> Job:
        kwargs = dict(zip(NAMES[task], args, strict=True))
        return Job(task, kwargs=kwargs, ttl=3600, timeout=0, **more)

    async def aput(self, task: str, *args: Any) -> Any:
        return await queue.enqueue(self._job(task, args))

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        await queue.enqueue(self._job(task, args, scheduled=when))

    def trips(self, ks: Iterable[int], pause: float) -> list[float]:
        async def go() -> list[float]:
            took = []
            for k in ks:
                started = time.perf_counter()
                # Its own call for "enqueue and wait": Job.refresh may miss a job that was quick.
                assert await queue.apply("noop", timeout=30, k=k) == k
                took.append(time.perf_counter() - started)
                await asyncio.sleep(pause)
            return took

        return self.run(go())


PEER = Saq()
