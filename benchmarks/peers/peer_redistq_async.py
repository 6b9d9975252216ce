"""redistq's AsyncTaskProducer, where the producer is what is measured; the worker is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import peer_redistq
from base import URL, AsyncPeer

from redistq import AsyncTaskProducer

registry = peer_redistq.registry


class RedistqAsync(AsyncPeer):
    name = "redistq (asyncio)"
    direct = peer_redistq.Redistq.direct
    skip: ClassVar[dict[str, str]] = dict.fromkeys(
        ("drain2", "cpu", "skew", "burst", "spread", "idle", "payload"), "measured as redistq"
    )
    commands = peer_redistq.Redistq.commands

    async def aopen(self) -> None:
        self.producer = AsyncTaskProducer(url=URL, stream=peer_redistq.QUEUE)

    async def aclose(self) -> None:
        await self.producer.close()

    async def aput(self, task: str, *args: Any) -> Any:
        return await self.producer.add_task(task, args[0] if len(args) == 1 else args)

    async def await_(self, handle: Any, timeout: float = 30.0) -> Any:
        return await self.producer.get_result(handle, timeout)

    async def aput_many(self, task: str, rows: Sequence[tuple[Any, ...]]) -> None:
        await self.producer.add_tasks([(task, row[0] if len(row) == 1 else row) for row in rows])


PEER = RedistqAsync()
