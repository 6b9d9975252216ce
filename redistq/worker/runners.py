"""Runners: the threads of a processor that run tasks, and the event loop for ``async def`` ones.

A runner takes a task, runs it, which shows it on the scoreboard, and leaves an Outcome. With
nothing left to run it settles what there is itself, so a lone task is settled without waking
another thread; under load the settler's thread does it. Fed by the fetcher, started and stopped by
the processor. A runner whose task waits for other tasks lends its slot (see slots.py).

The event loop runs many coroutines at a time in one thread. It is made where a handler is async.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import slots
from ..errors import RedistqError
from ..handlers import Waiting
from ..logger import logger
from .executor import Executor
from .limits import ThreadMaker
from .outcome import Outcome
from .queues import Delivery, Room, WorkerQueue
from .settler import LARGE_RESULT, Settler

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")

RETIRED = object()
"""What a runner answers that is not needed any more."""
LOOP_LOOK_S = 1.0
"""How often the loop looks for work by itself: a handler may have closed the descriptor by which
other threads wake it, and without this nothing would ever run here again."""


class Runners:
    """Run tasks in ``count`` threads, and in more while some of them wait for other tasks.

    ``thread`` makes a thread, not started, from what it runs, its part and its arguments.
    """

    def __init__(
        self,
        count: int,
        lendable: range,
        executor: Executor,
        settler: Settler,
        room: Room,
        thread: Callable[..., threading.Thread],
    ) -> None:
        self._count = count
        self._executor = executor
        self._settler = settler
        self._room = room
        self._make_thread = thread
        self.ready: deque[Delivery] = deque()
        """What waits for a runner."""
        self.started = 0
        """How many tasks were started; the fetcher sees by it whether anyone makes progress."""
        self.idle = 0
        """How many runners wait for tasks."""
        self._surplus = 0  # runners that are too many, since others take their slots back
        self._free_slots = list(lendable)
        self._idle_lock = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._draining = False  # after the last fetch: runners end when nothing is left
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start all threads."""
        self._threads += [self._runner(slot) for slot in range(self._count)]
        for thread in self._threads.copy():
            thread.start()

    def drain(self) -> list[threading.Thread]:
        """Let runners end when nothing is left to run; return their threads."""
        self._draining = True
        with self._idle_lock:
            threads = list(self._threads)  # no more are started now
        for _ in threads:
            self._bell.put(None)
        return threads

    def forget_ended(self) -> None:
        """Forget the threads that have ended."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    # -- what waits ------------------------------------------------------------------------------

    def put(self, tasks: list[Delivery]) -> None:
        """Run these after what waits."""
        self.ready.extend(tasks)
        self._wake(len(tasks))

    def put_first(self, tasks: list[Delivery]) -> None:
        """Run these before what waits, as they were taken."""
        self.ready.extendleft(reversed(tasks))
        self._wake(len(tasks))

    def waiting(self) -> Iterator[Waiting]:
        """Yield what waits now, in order."""
        for entry, flat, queue in self.ready.copy():
            yield entry, queue.name, flat

    def take_unstarted(self) -> list[Delivery]:
        """Return all that waits, which is no longer ours to run."""
        tasks: list[Delivery] = []
        try:
            while True:
                tasks.append(self.ready.popleft())
        except IndexError:
            return tasks

    def withdraw(self, key: tuple[bytes, WorkerQueue]) -> Delivery | None:
        """Return the task with that entry, of that queue, which is no longer ours to run; None
        where it does not wait here."""
        return _withdrawn(self.ready, key)

    def take_last(self, count: int) -> list[Delivery]:
        """Return the last of what waits, in its order, which is no longer ours to run."""
        tasks: list[Delivery] = []
        try:
            while len(tasks) < count:
                tasks.append(self.ready.pop())
        except IndexError:
            pass  # runners were faster
        tasks.reverse()
        return tasks

    def _wake(self, tasks: int) -> None:
        """Wake as many runners as there is work for."""
        with self._idle_lock:
            woken = min(self.idle, tasks)
            self.idle -= woken
        for _ in range(woken):
            self._bell.put(None)

    # -- running ---------------------------------------------------------------------------------

    def _runner(self, slot: int) -> threading.Thread:
        return self._make_thread(self._run, f"run-{slot}", slot)

    def _run(self, slot: int) -> object:
        # Once a task: what it needs is kept in locals.
        ready = self.ready
        room = self._room
        settler = self._settler
        outcomes = settler.outcomes
        run = self._executor.runner(slot)
        slots.serve(self)
        while True:
            try:
                task = ready.popleft()
            except IndexError:
                if outcomes:
                    settler.flush()
                with self._idle_lock:
                    if ready:
                        continue
                    if self._draining:
                        return None
                    if self._surplus:
                        return self._retire(slot)
                    self.idle += 1
                room.ring()
                self._bell.get()
                continue
            self.started += 1
            outcome = run(task)
            outcomes.append(outcome)
            if outcome.size > LARGE_RESULT:
                settler.flush(wait=True)
            if ready:
                if not settler.rung:
                    settler.ring()
                if room.waits and len(ready) <= room.low:
                    room.ring()
                if self._surplus:
                    with self._idle_lock:
                        if self._surplus:
                            return self._retire(slot)

    # -- lending slots: see slots.py -------------------------------------------------------------

    def lend(self) -> bool:
        """Run one more task at a time, for a runner waits for other tasks; return whether there is
        a thread for it."""
        with self._idle_lock:
            if self._surplus:  # the one that was started for a wait before is still there
                self._surplus -= 1
                return True
            if self._draining:
                return False  # nothing is fetched any more
            if not self._free_slots:
                raise RedistqError(
                    f"this worker process has no slot left: {len(self._threads)} of its tasks wait "
                    "for calls that they submitted themselves; submit those from outside, give "
                    "them to a queue of their own, or start more worker processes"
                )
            slot = self._free_slots.pop()
            runner = self._runner(slot)
            self._threads.append(runner)
        try:
            runner.start()
        except BaseException as error:  # whatever it is, the slot is free again
            with self._idle_lock:
                self._threads.remove(runner)
                self._free_slots.append(slot)
            if not isinstance(error, RuntimeError):
                raise
            log.warning("a task that waits keeps its slot: no thread can be started (%s)", error)
            return False
        return True

    def take_back(self) -> None:
        """Run one task less at a time: a runner goes on with its own."""
        with self._idle_lock:
            self._surplus += 1
            wake = self.idle > 0
            self.idle -= wake
        if wake:
            self._bell.put(None)

    def _retire(self, slot: int) -> Any:
        """One runner less, whichever it is; called with the lock held."""
        self._surplus -= 1
        self._free_slots.append(slot)
        self._threads.remove(threading.current_thread())
        return RETIRED


# -- the event loop --------------------------------------------------------------------------------


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
    ) -> None:
        self._executor = executor
        self._done = done
        self._limit = settings.async_concurrency
        self._slots = deque(range(settings.threads, settings.threads + self._limit))
        self._waiting: deque[Delivery] = deque()
        self._running: set[asyncio.Task[Outcome]] = set()
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
        return _withdrawn(self._waiting, key)

    def _look(self) -> None:
        self._loop.call_later(LOOP_LOOK_S, self._look, context=Context())
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

    def drain(self, deadline: float) -> bool:
        """Let running tasks finish until ``deadline`` (monotonic), then cancel them; return whether
        all of them finished."""
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
        return finished

    def close(self) -> None:
        """End the loop, in which nothing runs any more that is ours."""
        self._ending = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(2)


def _withdrawn(waiting: deque[Delivery], key: tuple[bytes, WorkerQueue]) -> Delivery | None:
    for task in waiting.copy():
        if (task[0], task[2]) == key:
            try:
                waiting.remove(task)
            except ValueError:
                return None  # others take from it all the time
            return task
    return None


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the loop reports, by a logger that cannot fail."""
    log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))
