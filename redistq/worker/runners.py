"""Runners: the threads of a processor that run tasks; coroutines are run by loop.py.

A runner takes a task, runs it, which shows it on the scoreboard, and leaves an Outcome. With
nothing left to run it settles what there is itself, so a lone task is settled without waking
another thread; under load the settler's thread does it. Fed by the fetcher, started and stopped by
the processor. A runner whose task waits for other tasks lends its slot (see slots.py).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import slots
from ..errors import RedistqError
from ..handlers import Waiting
from ..logger import logger
from .batches import Batches
from .executor import Executor
from .gather import Gatherer
from .outcome import Outcome
from .queues import Delivery, Room, WorkerQueue
from .settler import LARGE_RESULT, Settler

if TYPE_CHECKING:
    pass

log = logger("redistq.worker")

RETIRED = object()
"""What a runner answers that is not needed any more."""


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
        self.gather: Gatherer | None = None
        """What gathers the tasks of batch handlers, where there are any."""
        self.batches: Batches | None = None
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
        return withdrawn(self.ready, key)

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

    def wake(self) -> None:
        """A group of tasks is due: wake a runner for it."""
        self._wake(1)

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
        gather = self.gather
        while True:
            if gather is not None and gather.due:
                self._run_group(gather, outcomes)
            try:
                task = ready.popleft()
            except IndexError:
                if outcomes:
                    settler.flush()
                with self._idle_lock:
                    if ready or (gather is not None and gather.due):
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

    def _run_group(self, gather: Gatherer, outcomes: deque[Outcome]) -> None:
        """Run the tasks of a batch that is due, if another runner has not taken it."""
        group = gather.take()
        if group is None or self.batches is None:
            return
        self.started += len(group.tasks)
        if self._room.waits:
            self._room.ring()
        found = self.batches.run(group)
        outcomes.extend(found)
        if sum(outcome.size for outcome in found) > LARGE_RESULT:
            self._settler.flush(wait=True)
        if self.ready and not self._settler.rung:
            self._settler.ring()

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


def withdrawn(waiting: deque[Delivery], key: tuple[bytes, WorkerQueue]) -> Delivery | None:
    for task in waiting.copy():
        if (task[0], task[2]) == key:
            try:
                waiting.remove(task)
            except ValueError:
                return None  # others take from it all the time
            return task
    return None
