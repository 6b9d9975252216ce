"""arq. ``max_jobs=100`` and ``poll_delay=0.01`` instead of 10 and 0.5 s: with the defaults an idle
worker looks twice a second. It has no bulk call: 100 single ones are under way at a time.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, ClassVar

import work
from arq import create_pool
from arq.connections import RedisSettings
from base import CPU_BOUND, URL, AsyncPeer

REDIS = RedisSettings.from_dsn(URL)


async def noop(ctx: Any, k: int) -> int:
    """See work.py."""
    return work.noop(k)


async def late(ctx: Any, k: int) -> int:
    """See work.py."""
    return work.late(k)


async def size(ctx: Any, k: int, data: str) -> int:
    """See work.py."""
    return work.size(k, data)


async def spin(ctx: Any, k: int, ms: int) -> int:
    """See work.py."""
    return work.spin(k, ms)


class WorkerSettings:
    """What ``arq`` reads."""

    functions: ClassVar[list[Any]] = [noop, late, size, spin]
    redis_settings = REDIS
    max_jobs = 1 if CPU_BOUND else 100
    poll_delay = 0.01
    keep_result = 3600


class Arq(AsyncPeer):
    name = "arq"

    def commands(self, processes: int) -> list[list[str]]:
        return [["arq", "peer_arq.WorkerSettings"]] * processes

    async def aopen(self) -> None:
        self.pool = await create_pool(REDIS)

    async def aclose(self) -> None:
        await self.pool.aclose()

    async def aput(self, task: str, *args: Any) -> Any:
        return await self.pool.enqueue_job(task, *args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return await handle.result(timeout, poll_delay=0.001)

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        due = dt.datetime.fromtimestamp(when, dt.UTC)
        await self.pool.enqueue_job(task, *args, _defer_until=due)


PEER = Arq()
