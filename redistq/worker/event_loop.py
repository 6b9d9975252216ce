"""The processor's event loop: runs ``async def`` handlers, many at a time, in one thread.

Used by the processor alone, and only loaded when a handler is async.
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
from .attempt import Delivery, Outcome
from .executor import Executor
from .time_limits import ThreadMaker

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")

LOOK_S = 1.0
"""How often the loop looks for work by itself: a handler may have closed the descriptor by which
other threads wake it, and without this nothing would ever run here again."""


class EventLoopRunner:
    """Runs up to ``settings.async_concurrency`` coroutines; ``done`` is told every outcome.

    ``thread`` makes the loop's thread, from what it runs and its part.
    """

    def __init__(
        self,
        executor: Executor,
        settings: WorkerSettings,
        done: Callable[[Outcome], None],
        thread: ThreadMaker,
    ) -> None:
        self._executor, self._done = executor, done
        self._limit = settings.async_concurrency
        self._slots = deque(range(settings.threads, settings.threads + self._limit))
        self._waiting: deque[Delivery] = deque()
        self._running: set[asyncio.Task[Outcome]] = set()
        self._ending = False
        self._loop = asyncio.new_event_loop()
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
                # Of a task that a handler made: whoever awaits it was told, and others go on.
                log.warning(
                    "%s in a task that a handler started ends that task, not the event loop",
                    type(error).__name__,
                )
            else:
                if not self._ending:
                    log.warning("a handler stopped the event loop, which goes on for the others")
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def room(self) -> int:
        """How many more tasks fit."""
        return self._limit - len(self._running) - len(self._waiting)

    def put(self, tasks: list[Delivery]) -> None:
        """Run these, each as soon as a place is free."""
        self._waiting.extend(tasks)
        self._loop.call_soon_threadsafe(self._admit)

    def take_unstarted(self) -> list[Delivery]:
        """What waits and was not started; it is no longer ours."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._waiting.popleft())
        return taken

    def _look(self) -> None:
        self._loop.call_later(LOOK_S, self._look, context=Context())
        self._admit()
        if self._ending:
            self._loop.stop()

    def _admit(self) -> None:
        while self._slots:
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

    def stop(self, deadline: float) -> bool:
        """Let running tasks finish until ``deadline`` (monotonic), then cancel them; end.

        Answers whether all of them finished.
        """
        if not self._thread.is_alive():
            return True

        async def drain() -> bool:
            running = set(self._running)
            late: set[asyncio.Task[Outcome]] = set()
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
        self._ending = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)
        return finished


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what the loop has to say, by a logger that cannot fail."""
    log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))
