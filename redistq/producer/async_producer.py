"""AsyncTaskProducer: TaskProducer's ``await`` twin.

Used by applications that run in an event loop. It never runs a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Unpack

from ..connection.address import DEFAULT_HOST, DEFAULT_PORT
from ..errors import ServerUnavailable
from ..flows import Flow, items_of
from ..protocol.commands import Snapshot
from ..protocol.keys import DEFAULT_QUEUE
from ..protocol.options import Seconds, TaskKeywords, listed, wait_seconds
from ..protocol.progress import Progress
from ..protocol.steps import EVENT_KEPT_S, StepStatus
from .clearing import drain, lanes_of, purge
from .gated import GatedTask, TaskId
from .items import AsyncItemStream, ItemReader
from .limits import AsyncLimits
from .operations import Item, ProducerOperations, TaskName, Wish
from .results import TaskStatus
from .sansio import run_async
from .schedules import AsyncSchedules
from .steps import sending, steps_of
from .task_graph import AsyncTaskGraph

__all__ = ["AsyncTaskProducer"]


class AsyncTaskProducer(ProducerOperations):
    """TaskProducer for ``await``: the same methods, the same promises, one event loop.

    Finding the server, which may start the embedded one, happens in the constructor and blocks.
    """

    def __init__(
        self,
        redis_host: str = DEFAULT_HOST,
        redis_port: int = DEFAULT_PORT,
        db: int = 0,
        stream: str = DEFAULT_QUEUE,
        **options: Any,
    ) -> None:
        super().__init__(redis_host, redis_port, db, stream, **options)
        from ..connection.async_broker import AsyncBroker

        self.broker = AsyncBroker(self.address, slot_key=self.keys.stream, timeout=self.timeout)
        self.limits = AsyncLimits(self._limits, self.broker)
        self.schedules = AsyncSchedules(self._schedules, self.broker)

    @listed(TaskKeywords)
    async def add_task(
        self,
        type: TaskName,
        payload: Any = None,
        *,
        task_id: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> TaskId:
        """As TaskProducer.add_task."""
        fields = self._new(type, payload, task_id, options, alone=True)
        if isinstance(fields, GatedTask):
            return await run_async(self.broker, self._adding(fields))
        return self._added(fields[0], await self.broker.call(self.commands.enqueue_one(*fields)))

    async def add_tasks(self, items: Iterable[Item]) -> list[str]:
        """As TaskProducer.add_tasks."""
        bulk = self._bulk(items)
        try:
            await run_async(self.broker, self._limits.declare(bulk.limits))
            replies = [await self.broker.call(command) for command in bulk.commands]
            return bulk.read(self.keys, replies)
        except ServerUnavailable as error:
            error.task_ids = bulk.ids
            raise

    @listed(TaskKeywords)
    async def schedule_task(
        self,
        type: TaskName,
        payload: Any = None,
        execute_at: float | datetime = 0.0,
        *,
        task_id: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> TaskId:
        """As TaskProducer.schedule_task."""
        fields = self._new(type, payload, task_id, {**options, "execute_at": execute_at})
        if isinstance(fields, GatedTask):
            return await run_async(self.broker, self._adding(fields))
        return self._added(fields[0], await self.broker.call(self.commands.enqueue_one(*fields)))

    async def add_flow(self, flow: Flow) -> list[str]:
        """As TaskProducer.add_flow."""
        return await self.add_tasks(items_of(flow))

    def graph(self, name: str) -> AsyncTaskGraph:
        """As TaskProducer.graph, for ``async with``; see AsyncGraph."""
        return AsyncTaskGraph(
            self.broker, self.commands, name, self._max_bytes, self.layers, self._seals
        )

    async def get_result(self, task_id: str, timeout: float | None = None) -> Any:
        """As TaskProducer.get_result; cancelling the wait leaves the task alone."""
        return await run_async(self.broker, self._result(task_id, timeout))

    def stream(
        self,
        task_id: str,
        start: int | str = 0,
        *,
        restarts: bool = False,
        timeout: float | None = None,
    ) -> AsyncItemStream:
        """As TaskProducer.stream, for ``async for``."""
        reader = ItemReader(task_id, self.commands, start, restarts, timeout, self.seal)
        return AsyncItemStream(reader, self.broker)

    async def get_task(self, task_id: str) -> TaskStatus:
        """As TaskProducer.get_task."""
        return await run_async(self.broker, self._status(task_id))

    async def progress(self, task_id: str) -> Progress | None:
        """As TaskProducer.progress."""
        return await run_async(self.broker, self._progress(task_id))

    async def cancel(self, *task_ids: str, running: Wish = None) -> dict[str, str]:
        """As TaskProducer.cancel."""
        return await run_async(self.broker, self._cancel(task_ids, running))

    async def cancel_where(
        self,
        *,
        name: str | None = None,
        batch: str | None = None,
        running: Wish = None,
        limit: int | None = None,
    ) -> dict[str, int]:
        """As TaskProducer.cancel_where."""
        return await run_async(self.broker, self._cancel_where(name, batch, running, limit))

    async def dead_letters(self, limit: int = 100) -> list[TaskStatus]:
        """As TaskProducer.dead_letters."""
        return await run_async(self.broker, self._dead(limit))

    async def replay(self, *task_ids: str, forget_steps: bool = False) -> int:
        """As TaskProducer.replay."""
        return await run_async(self.broker, self._replay(task_ids, forget_steps))

    async def send_event(
        self,
        name: str,
        payload: Any = None,
        *,
        task: str | None = None,
        keep: Seconds = EVENT_KEPT_S,
    ) -> int:
        """As TaskProducer.send_event."""
        operation = sending(self.commands, name, self._event(name, payload, task), task, keep)
        return await run_async(self.broker, operation)

    async def steps(self, task_id: str) -> list[StepStatus]:
        """As TaskProducer.steps."""
        return await run_async(self.broker, steps_of(self.commands, task_id))

    async def purge(self, *task_ids: str) -> int:
        """As TaskProducer.purge."""
        return await run_async(self.broker, self._purge(task_ids))

    async def purge_queue(self) -> dict[str, int]:
        """As TaskProducer.purge_queue."""
        return await run_async(self.broker, purge(lanes_of(self.commands), {}))

    async def drain(
        self, timeout: Seconds | None = None, watch: Callable[[int], object] | None = None
    ) -> bool:
        """As TaskProducer.drain."""
        return await run_async(
            self.broker, drain(lanes_of(self.commands), wait_seconds(timeout), watch)
        )

    async def pause(self) -> None:
        """As TaskProducer.pause."""
        await run_async(self.broker, self._pause(True))

    async def resume(self) -> None:
        """As TaskProducer.resume."""
        await run_async(self.broker, self._pause(False))

    async def snapshot(self) -> Snapshot:
        """As TaskProducer.snapshot."""
        return await run_async(self.broker, self._snapshot())

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._guess.forget()
        await self.broker.close()

    async def __aenter__(self) -> AsyncTaskProducer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
