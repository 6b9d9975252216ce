"""The crew's event loop: runs ``async def`` handlers, many at a time, in one thread.

Used by the crew alone, and only loaded when a handler is async.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .execution import Execution, Outcome, Task

if TYPE_CHECKING:
    from .worker_settings import WorkerSettings


class AsyncCrew:
    """Runs up to ``settings.async_concurrency`` coroutines; ``done`` is told every outcome."""

    def __init__(
        self, execution: Execution, settings: WorkerSettings, done: Callable[[Outcome], None]
    ) -> None:
        self._execution, self._done = execution, done
        self._limit = settings.async_concurrency
        self._slots = deque(range(settings.threads, settings.threads + self._limit))
        self._waiting: deque[Task] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._main, name=f"redistq-loop-{settings.queue}", daemon=True
        )

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def room(self) -> int:
        """How many more tasks fit."""
        return self._limit - len(self._running) - len(self._waiting)

    def put(self, tasks: list[Task]) -> None:
        """Run these, each as soon as a place is free."""
        self._waiting.extend(tasks)
        self._loop.call_soon_threadsafe(self._admit)

    def take_unstarted(self) -> list[Task]:
        """What waits and was not started; it is no longer ours."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return taken

    def _admit(self) -> None:
        while self._slots:
            try:
                task = self._waiting.popleft()
            except IndexError:
                return
            slot = self._slots.popleft()
            running = self._loop.create_task(self._one(task, slot))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _one(self, task: Task, slot: int) -> None:
        try:
            outcome = await self._execution.run_async(task, slot)
        finally:
            self._slots.append(slot)
            self._loop.call_soon(self._admit)
        self._done(outcome)

    def stop(self, deadline: float) -> bool:
        """Let running tasks finish until ``deadline`` (monotonic), then cancel them; end.

        Answers whether all of them finished.
        """
        if not self._thread.is_alive():
            return True

        async def drain() -> bool:
            running = set(self._running)
            late: set[asyncio.Task[None]] = set()
            if running:
                left = max(0.0, deadline - time.monotonic())
                _, late = await asyncio.wait(running, timeout=left)
                self._execution.ending = True
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late, timeout=1)
            return not late

        finished = False
        with contextlib.suppress(TimeoutError):  # a coroutine that blocks holds up the loop
            future = asyncio.run_coroutine_threadsafe(drain(), self._loop)
            finished = future.result(max(0.0, deadline - time.monotonic()) + 2)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)
        return finished
