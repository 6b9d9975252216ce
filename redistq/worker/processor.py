"""The processor: one worker process's fetcher, runners and settler. The only place that runs tasks.

Used by TaskWorker inside an application's process, and by a worker's child processes. It starts its
actors, sees that none of them ends unasked, and stops them; the work is theirs:

    server -> Fetcher -> Runners or EventLoopRunner -> Settler -> server
                 |              |
             Prefetch        Executor

It knows nothing of heartbeats, schedules or other processes: that is the supervisor's work.

Why nothing is lost on the way: what was read is pending for this consumer until the server has
written what became of it. If this process dies after any line, the supervisor, or any other worker,
puts the task back. If the server goes away, outcomes stay here until it is back. No thread of a
processor ends unasked: should one end all the same, or should outcomes stay unsettled while the
server is there, ``on_fault`` is called, and whoever runs the processor ends it: its tasks go back
instead of waiting for a process that beats and does not work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import slots
from ..codecs.codec import Codec
from ..connection.broker import Broker
from ..handlers import Handler, LooksAhead
from ..logger import logger
from ..protocol.commands import Commands
from .allotter import Allotter
from .batches import Batches
from .clock import ServerClock
from .executor import Executor
from .fetcher import Fetcher
from .gather import Gatherer, Slots
from .item_writer import ItemWriter
from .loop import EventLoopRunner
from .prefetch import Prefetch
from .provided import Provided
from .queues import Delivery, Held, Room, queues_of
from .reporter import Reporter
from .runners import RETIRED, Runners
from .scoreboard import Scoreboard
from .settler import Settler

if TYPE_CHECKING:
    from .ledger import Ledger
    from .settings import WorkerSettings

log = logger("redistq.worker")

SLACK_S = 5.0
"""What a settling call may take beyond its limit before its thread counts as stuck."""
LEAVE_S = 1.0
"""Seconds that are left for leaving lifespans, at least, whatever running tasks took."""
EXIT_FAULT = 70
"""Exit code of a process whose processor cannot go on."""


class Processor:
    """Runs tasks of one or more queues with ``settings.threads`` threads and one event loop.

    ``open`` enters the lifespans of the handlers, ``start`` begins to fetch; ``stop(timeout)`` ends
    within the time given: running tasks finish, unstarted ones go back uncounted, lifespans are
    left. Safe to stop twice, or before start.

    ``on_fault`` is called at most once, from a thread of the processor, with the reason why the
    processor cannot go on; it must see to it that the process or the processor ends.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        handlers: Mapping[str, Handler],
        broker: Broker,
        commands: Sequence[Commands],
        consumer: str,
        scoreboard: Scoreboard,
        on_fault: Callable[[str], None] = lambda reason: None,
        prefetch: Prefetch | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.settings = settings
        self.broker = broker
        self.scoreboard = scoreboard
        self._on_fault = on_fault
        self.fault = ""
        """Why the processor cannot go on; empty while it can."""
        self._fault_lock = threading.Lock()
        self._has_async = any(handler.is_async for handler in handlers.values())
        self._stopping = False
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

        self._loop: EventLoopRunner | None = None
        self._loop_lock = threading.Lock()
        self.provided = Provided(handlers, self._event_loop)
        """What its handlers have beside their tasks."""
        codec = Codec.of(settings.codec) if settings.codec else None
        queues = queues_of(settings.queues, commands, scoreboard, broker, codec)
        room = self._room = Room()
        held: Held = {}
        self.executor = Executor(
            settings,
            handlers,
            consumer,
            scoreboard,
            held,
            ServerClock(broker, commands[0].time),
            self._thread,
            self.provided,
        )
        self.reporter = Reporter(broker, consumer)
        self.item_writer = ItemWriter(broker, consumer)
        for queue in queues:
            queue.reporter = self.reporter
            queue.item_writer = self.item_writer
        self.settler = Settler(
            settings, broker, queues, consumer, scoreboard, held, room, self._fail, self.reporter
        )
        self.settler.teller = self.executor.teller()
        self._gatherers: list[Gatherer] = []
        first = settings.threads + settings.async_concurrency
        lendable = range(first, min(scoreboard.slots, first + slots.MOST))
        self.runners = Runners(
            settings.threads, lendable, self.executor, self.settler, room, self._thread
        )
        first += slots.MOST
        # None on a scoreboard that an earlier release has made: tasks run one by one.
        self._batch_slots = Slots(range(first, scoreboard.slots))
        alone = not len(self._batch_slots)
        plain = [handler for handler in handlers.values() if alone or handler.batching is None]
        has_sync = any(not handler.is_async for handler in plain)
        has_loop = any(handler.is_async for handler in plain)
        self.fetcher = Fetcher(
            settings,
            broker,
            queues,
            consumer,
            self.executor,
            self.runners,
            self.settler,
            held,
            room,
            prefetch or Prefetch(settings.threads, has_sync=has_sync, has_loop=has_loop),
        )
        self.fetcher.has_plain = bool(plain)
        self._gather(self.runners, settings.threads, is_async=False)
        self.allotter = Allotter(
            ledger,
            settings.threads,
            held,
            self.executor.needs_of,
            self._admit,
            lambda task, needs: self.settler.put(self.executor.no_room(task, needs)),
        )
        self._ledger = ledger
        self.fetcher.allotter = self.executor.allotter = self.allotter
        for handler in handlers.values():
            if isinstance(handler.function, LooksAhead):
                handler.function.look_by(self.runners.waiting)

    @property
    def lost(self) -> int:
        """How many outcomes did not count, since the lease was lost."""
        return self.settler.lost

    def open(self) -> None:
        """Enter the lifespans of the handlers; raises ConfigurationError for one that fails or
        hangs, and StartEnded when ``provided.interrupt`` ended it."""
        try:
            self.provided.enter(self.settings.start_timeout)
        except BaseException:  # whatever it is, an interrupt too
            self.close(0)
            raise

    def start(self) -> None:
        """Start all threads; the queues' groups are made where they are not there."""
        self.fetcher.ensure_groups()
        self.executor.start()
        if self._has_async:
            self._event_loop()
            self.fetcher.loop = self._loop
        self._threads.append(self._thread(self._watch, "watch"))
        self._threads.append(self._thread(self.settler.run, "settle"))
        self._threads.append(self._thread(self.reporter.run, "report"))
        if self._ledger is not None:
            self._threads.append(self._thread(self.allotter.run, "allot"))
        self._threads.append(self._thread(self.item_writer.run, "items"))
        if self.settler.teller is not None:
            self._threads.append(self._thread(self.settler.teller.run, "hooks"))
        for gatherer in self._gatherers:
            self._threads.append(self._thread(gatherer.run, "gather"))
        self._threads.append(self._thread(self.fetcher.run, "fetch"))
        self.runners.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> bool:
        """Drain within ``timeout`` seconds; return whether every started task came to its end."""
        deadline = time.monotonic() + timeout
        self._stopping = True
        # A server that is away is not waited for longer than whoever stops us wants to wait.
        self.broker.timeout = min(self.broker.timeout, max(timeout, 1.0))
        self._stop_fetching(deadline + 5)
        self.allotter.close()
        self.fetcher.give_back()
        runners = self.runners.drain()
        finished = self._loop is None or self._loop.drain(deadline)
        for thread in runners:
            thread.join(max(0.0, deadline - time.monotonic()))
        finished = finished and not any(thread.is_alive() for thread in runners)
        if not self.settler.finish(until=max(deadline, time.monotonic() + 2)):
            finished = False
        if self.settler.teller is not None:
            self.settler.teller.end(max(deadline - time.monotonic(), 1.0))
        self._stopped.set()
        self.reporter.flush()  # what has not ended runs again, and goes on from there
        self.reporter.close()
        self.item_writer.close()
        self.settler.give_up()
        for gatherer in self._gatherers:
            gatherer.stop()
        self.close(max(LEAVE_S, deadline - time.monotonic()))
        self.executor.close()
        for thread in self._threads:
            thread.join(2)
        if unsettled := self.settler.backlog:
            log.warning("%d finished tasks could not be settled and will run again", unsettled)
        self._threads.clear()
        if finished and self._ledger is not None:
            self._ledger.close()
        self.runners.forget_ended()
        return finished

    def close(self, timeout: float) -> None:
        """Leave, within so many seconds, what ``open`` entered and factories made, and end the
        event loop. Safe to call twice."""
        self._stopping = True
        self.provided.leave(timeout)
        if self._loop is not None:
            self._loop.close()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of this process, which is started at its first use."""
        with self._loop_lock:
            if self._loop is None:
                settle = self.settler.put
                self._loop = EventLoopRunner(
                    self.executor, self.settings, settle, self._thread, self._room
                )
                self._gather(self._loop, self.settings.async_concurrency, is_async=True)
                self._loop.start()
            return self._loop.loop

    def _gather(self, runners: Runners | EventLoopRunner, count: int, *, is_async: bool) -> None:
        """Gather the tasks of batch handlers for these runners, where there are any."""
        names = self.executor.gathered(is_async=is_async)
        if not names or not len(self._batch_slots):
            return
        self.scoreboard.widen()
        runners.batches = Batches(self.executor, self._batch_slots.give_back)
        runners.gather = Gatherer(names, self._batch_slots, count, runners.wake)
        self._gatherers.append(runners.gather)
        self.fetcher.gatherers.update(dict.fromkeys(names, runners.gather))

    def _stop_fetching(self, deadline: float) -> None:
        """Interrupt the fetcher's read until its thread has ended."""
        self.fetcher.stop()
        thread = self._threads[-1] if self._threads else None
        while thread is not None and thread.is_alive() and time.monotonic() < deadline:
            self.fetcher.interrupt()
            thread.join(0.05)

    # -- tasks that are to end -------------------------------------------------------------------

    def cancel(self, place: int, entry: str) -> None:
        """Tell a task of the queue at that place that it is to end; one that has not started ends
        as cancelled. Safe to repeat, and for what is not here (any more); any thread may call it.
        """
        queue = self.fetcher.queues[place]
        key = (entry.encode(), queue)
        if key not in self.fetcher.held:
            return
        unstarted = self.runners.withdraw(key)
        if unstarted is None and self._loop is not None:
            unstarted = self._loop.withdraw(key)
        for gatherer in self._gatherers:
            unstarted = unstarted or gatherer.withdraw(key)
        if unstarted is None:
            unstarted = self.allotter.withdraw(key)
        if unstarted is None:
            self.executor.wishes.tell(key)
        else:
            self.settler.put(self.executor.not_started(unstarted))

    def gate_names(self, place: int, names: Sequence[str]) -> None:
        """Start no more tasks of these names of the queue at that place but by the gate; any
        thread may call it."""
        queue = self.fetcher.queues[place]
        queue.gated_names = frozenset(name.encode() for name in names)
        self.fetcher.look_at_names()

    def _admit(self, task: Delivery) -> None:
        """Run a task that has the resources it needs."""
        if self._loop is not None and self.executor.is_async(task[1]):
            self._loop.put([task])
        else:
            self.runners.put([task])

    # -- lending slots: see slots.py -------------------------------------------------------------

    def lend(self) -> bool:
        """Run one more task at a time: a thread that a task started waits for other tasks."""
        return self.runners.lend()

    def take_back(self) -> None:
        """Run one task less at a time."""
        self.runners.take_back()

    # -- seeing that it goes on ------------------------------------------------------------------

    def _thread(self, target: Callable[..., Any], role: str, *args: Any) -> threading.Thread:
        """Return a thread that the processor cannot do without until it is stopped, or until its
        target answers that it is not needed any more."""

        def run() -> None:
            error: BaseException | None = None
            try:
                if target(*args) is RETIRED:
                    return
            except BaseException as fault:  # ours, or of whoever ends threads that are not theirs
                error = fault
            if not self._stopping:
                self._fail(f"its {role} thread ended unasked", error)
            elif error is not None:
                log.error("the %s thread ended with an error", role, exc_info=error)

        name = f"redistq-{role}-{self.settings.queue}"
        return threading.Thread(target=run, name=name, daemon=True)

    def _watch(self) -> None:
        """See that outcomes are settled, whatever holds up those who settle them."""
        settler = self.settler
        seen = -1
        since = 0.0
        # A server that is away answers so late.
        limit = self.settings.lease + self.broker.timeout + SLACK_S
        while not self._stopped.wait(self.settings.lease / 4):
            now = time.monotonic()
            if settler.answers != seen or not (settler.outcomes or settler.busy.locked()):
                seen = settler.answers
                since = now
            elif now - since > limit:
                self._fail(f"no outcome could be settled for {limit:g} s")

    def _fail(self, reason: str, error: BaseException | None = None) -> None:
        """Tell whoever runs the processor that it cannot go on, once, and not while it stops."""
        with self._fault_lock:
            if self.fault or self._stopping:
                return
            self.fault = reason
        log.critical("this worker cannot go on: %s", reason, exc_info=error)
        # What nobody could settle is charged, or it would bring down one process after the other.
        refused = [outcome for outcome in self.settler.outcomes.copy() if outcome.refused_at]
        for slot, outcome in zip(range(self.scoreboard.slots), refused, strict=False):
            self.scoreboard.begin(slot, outcome.entry)
        self._on_fault(reason)
