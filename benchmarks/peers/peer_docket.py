"""docket (``pydocket``). Async tasks, ``concurrency=32`` (at 100 its own connections run out),
``add_many`` (pipelined) for bulk, uvloop, its two check intervals lowered to 10 ms (from 250).
Results kept for 15 minutes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import work
from base import CPU_BOUND, URL, AsyncPeer
from docket import Docket, Worker


async def noop(k: int) -> int:
    """See work.py."""
    return work.noop(k)


async def late(k: int) -> int:
    """See work.py."""
    return work.late(k)


async def size(k: int, data: str) -> int:
    """See work.py."""
    return work.size(k, data)


async def spin(k: int, ms: int) -> int:
    """See work.py."""
    return work.spin(k, ms)


tasks = [noop, late, size, spin]
TASKS = {task.__name__: task for task in tasks}


class DocketPeer(AsyncPeer):
    name = "docket"

    def commands(self, processes: int) -> list[list[str]]:
        return [["python", "peer_docket.py"]] * processes

    async def aopen(self) -> None:
        self.docket = Docket(name="bench", url=URL)
        await self.docket.__aenter__()
        for task in tasks:
            self.docket.register(task)

    async def aclose(self) -> None:
        await self.docket.__aexit__(None, None, None)

    async def aput(self, task: str, *args: Any) -> Any:
        return await self.docket.add(TASKS[task])(*args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return await handle.get_result(timeout=dt.timedelta(seconds=timeout))

    async def aput_at(self, when: float, task: str, *args: Any) -> None:
        due = dt.datetime.fromtimestamp(when, dt.UTC)
        await self.docket.add(TASKS[task], when=due)(*args)

    async def aput_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        call, function = self.docket.call, TASKS[task]
        await self.docket.add_many([call(function)(*row) for row in rows])


PEER = DocketPeer()


async def run_worker() -> None:
    """``docket worker``, whose options take no fraction of a second."""
    tick = dt.timedelta(milliseconds=10)
    async with Docket(name="bench", url=URL) as docket:
        for task in tasks:
            docket.register(task)
        async with Worker(
            docket,
            concurrency=1 if CPU_BOUND else 32,
            minimum_check_interval=tick,
            scheduling_resolution=tick,
        ) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(run_worker())
