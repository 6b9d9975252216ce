"""The event loop of a processor: runs many coroutines at a time in one thread.

It is made where a handler is ``async def``. Fed by the fetcher, started and stopped by the
processor; outcomes go to the settler.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..logger import logger
from .batches import Batches
from .executor import Executor
from .gather import Gatherer, Group
from .limits import ThreadMaker
from .outcome import Outcome
from .queues import Delivery, Room, WorkerQueue
from .runners import withdrawn

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")

LOOP_LOOK_S = 1.0
"""How often the loop looks for work by itself: a handler may have closed the descriptor by which
other threads wake it, and without this nothing would ever run here again."""


class EventLoopRunner:
    """Run up to ``settings.async_concurrency`` coroutines; ``done`` takes every outcome.

    ``thread`` makes the loop's thread, from what it runs and its part.
    """

    def __init__(
        self,
        executor: Executor,
        settings: WorkerSettings,
        done: Callable[[Outcome], None],
        thread: ThreadMaker,
        room: Room,
    ) -> None:
        self._room = room
        self.gather: Gatherer | None = None
        """What gathers the tasks of batch handlers, where there are any."""
        self.batches: Batches | None = None
        self._executor = executor
        self._done = done
        self._limit = settings.async_concurrency
        self._slots = deque(range(settings.threads, settings.threads + self._limit))
        self._waiting: deque[Delivery] = deque()
        self._running: set[asyncio.Task[Any]] = set()
        self._ending = False
        self.loop = self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_complain)
        self._thread = thread(self._main, "loop")

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._look()
        while not self._ending:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # Of a task that a handler made: whoever awaits it has its error, and others go on.
                log.warning(
                    "%s in a task that a handler started ends that task, not the event loop",
                    type(error).__name__,
                )
            else:
                if not self._ending:
                    log.warning("a handler stopped the event loop, which goes on for the others")
        with contextlib.suppress(Exception):  # a handler's generator may raise anything at its end
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def room(self) -> int:
        """Return how many more tasks fit."""
        return self._limit - len(self._running) - len(self._waiting)

    def put(self, tasks: list[Delivery]) -> None:
        """Run these, each as soon as a place is free."""
        self._waiting.extend(tasks)
        self._loop.call_soon_threadsafe(self._admit)

    def take_unstarted(self) -> list[Delivery]:
        """Return what waits and was not started, which is no longer ours to run."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return taken

    def withdraw(self, key: tuple[bytes, WorkerQueue]) -> Delivery | None:
        """As Runners.withdraw."""
        return withdrawn(self._waiting, key)

    def _look(self) -> None:
        self._loop.call_later(LOOP_LOOK_S, self._look, context=Context())
        self._admit()
        if self._ending:
            self._loop.stop()

    def _admit(self) -> None:
        while self._slots:
            if self.gather is not None and self.gather.due:
                self._admit_group(self.gather)
                if not self._slots:
                    return
            try:
                task = self._waiting.popleft()
            except IndexError:
                return
            slot = self._slots.popleft()
            attempt = self._executor.run_async(task, slot)
            try:
                running = self._loop.create_task(attempt, context=Context())
            except BaseException as fault:  # a task factory that a handler gave the loop
                attempt.close()
                self._slots.append(slot)
                self._done(self._executor.given_up(task, slot, fault))
                continue
            self._running.add(running)
            running.add_done_callback(partial(self._ended, task, slot))

    def wake(self) -> None:
        """A group of tasks is due: start it as soon as a place is free."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and what waits goes back
            self._loop.call_soon_threadsafe(self._admit)

    def _admit_group(self, gather: Gatherer) -> None:
        batches = self.batches
        group = None if batches is None else gather.take()
        if batches is None or group is None:
            return
        if self._room.waits:
            self._room.ring()
        batch = batches.run_async(group)
        slot = self._slots.popleft()
        try:
            running = self._loop.create_task(batch, context=Context())
        except BaseException as fault:  # a task factory that a handler gave the loop
            batch.close()
            self._slots.append(slot)
            for outcome in batches.given_up(group, fault):
                self._done(outcome)
            return
        self._running.add(running)
        running.add_done_callback(partial(self._group_ended, group, slot))

    def _group_ended(self, group: Group, slot: int, running: asyncio.Task[list[Outcome]]) -> None:
        self._running.discard(running)
        self._slots.append(slot)
        try:
            found = running.result()
        except BaseException as fault:  # not the handler's: that would be an outcome
            found = []
            if not self._executor.ending and self.batches is not None:
                found = self.batches.given_up(group, fault)
        for outcome in found:
            self._done(outcome)
        self._admit()

    def _ended(self, task: Delivery, slot: int, running: asyncio.Task[Outcome]) -> None:
        """An attempt has come to its end, even one that was cancelled before its first step."""
        self._running.discard(running)
        self._slots.append(slot)
        try:
            self._done(running.result())
        except BaseException as fault:  # not the handler's: that would be an outcome
            if not self._executor.ending:
                self._done(self._executor.given_up(task, slot, fault))
        self._admit()

    def drain(self, deadline: float) -> bool:
        """Let running tasks finish until ``deadline`` (monotonic), then cancel them; return whether
        all of them finished."""
        if not self._thread.is_alive():
            return True

        async def drain() -> bool:
            running = set(self._running)
            late: set[asyncio.Task[Any]] = set()
            if running:
                left = max(0.0, deadline - time.monotonic())
                _, late = await asyncio.wait(running, timeout=left)
                self._executor.ending = True
                for task in late:
                    task.cancel()
                if late:
                    await asyncio.wait(late, timeout=1)
            return not late

        finished = False
        with contextlib.suppress(TimeoutError):  # a coroutine that blocks holds up the loop
            future = asyncio.run_coroutine_threadsafe(drain(), self._loop)
            finished = future.result(max(0.0, deadline - time.monotonic()) + 2)
        return finished

    def close(self) -> None:
        """End the loop, in which nothing runs any more that is ours."""
        self._ending = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2)


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the loop reports, by a logger that cannot fail."""
    log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))
