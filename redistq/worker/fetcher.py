"""The fetcher: reads tasks for a worker process, hands them to runners, and gives back the surplus.

One thread with one blocking read, which the processor starts and stops. What it reads is *held*:
pending for this consumer on the server, and in ``held`` here, until the settler drops it. How much
to hold is decided by Prefetch, what is asked of the server by Reader; this is where both are done.

When a connection fails, an answer may be lost that the server already counts as delivered. So after
each new connection, and after anything else that leaves a doubt (``look_again``), the fetcher reads
its own pending list and takes up what it does not hold.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import ConnectionLost, GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import MAX_TASKS, words_of
from .executor import Executor
from .gather import Gatherer
from .loop import EventLoopRunner
from .prefetch import LOOK_S, STUCK_S, Prefetch, room_with_batches
from .queues import Delivery, Held, Reader, Room, WorkerQueue
from .runners import Runners
from .settler import UNSETTLED, Settler

if TYPE_CHECKING:
    from .allotter import Allotter
    from .settings import WorkerSettings

log = logger("redistq.worker")

BLOCK_MS = 5_000
"""Longest single blocking read, so that a lost server is noticed."""
APART_S = 2.0
"""How long a task whose worker died once is kept apart from others; four times as long after each
further death."""
LONGEST_APART_S = 60.0


class Fetcher:
    """Fetches for one consumer until ``stop``; all but ``stop`` and ``interrupt`` in one thread
    at a time."""

    def __init__(
        self,
        settings: WorkerSettings,
        broker: Broker,
        queues: Sequence[WorkerQueue],
        consumer: str,
        executor: Executor,
        runners: Runners,
        settler: Settler,
        held: Held,
        room: Room,
        prefetch: Prefetch,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self.queues = queues
        self._consumer = consumer
        self._executor = executor
        self._runners = runners
        self._settler = settler
        self.held = held
        self._room = room
        self._prefetch = prefetch
        self.reader = Reader(broker, queues, consumer, settings.home, room.wait, settings.low_share)
        self.gatherers: dict[bytes, Gatherer] = {}
        """What gathers the tasks of batch handlers, by their names."""
        self.has_plain = True
        """Whether there are handlers that are no batch handlers."""
        self.allotter: Allotter | None = None
        """Where tasks wait that need resources."""
        self.loop: EventLoopRunner | None = None
        """What runs ``async def`` handlers, where there are any."""
        # Ready too, but a worker died while it ran them.
        self._suspects: deque[Delivery] = deque()
        self._stopping = False
        self._connection: Connection | None = None
        self._opened = 0
        self._group_gone = False
        self._names_changed = False
        self._paused: list[WorkerQueue] = []
        # A read that outlived its process (a lost host) must be over when the lease is: what the
        # server handed to it after the recovery would belong to nobody.
        self._block_ms = min(BLOCK_MS, settings.lease_ms // 2)

    def ensure_groups(self) -> None:
        """Make each queue's group where it is not there."""
        for queue in self.queues:
            self._broker.call(queue.commands.create_group())

    def stop(self) -> None:
        """Let the thread end when it comes back from what it does."""
        self._stopping = True
        self._room.ring()

    def interrupt(self) -> None:
        """End the thread's blocking read, if it is in one."""
        if self._connection is not None:
            self._connection.interrupt()

    def run(self) -> None:
        """Fetch until stopped: what the fetcher's thread does."""
        connection = self._connection = self._broker.connection(BLOCK_MS / 1000 + 5)
        pause = 0.05
        faulty_since = math.inf
        while not self._stopping:
            try:
                room = self._prepare(connection)
                if room <= 0:
                    continue
                # With unstarted work in hand, be back in time to see whether it is stuck.
                looks = self._runners.ready or any(g.holds for g in self.gatherers.values())
                block_ms = int(LOOK_S * 1000) if looks else self._block_ms
                tasks = self.reader.read(connection, room, block_ms)
                pause = 0.05
                faulty_since = math.inf
                if tasks:
                    self._prefetch.came(time.monotonic())
                    self.take(self.let_in(self._not_paused(tasks)), drained=len(tasks) < room)
            except GroupMissing:
                log.warning("queue %s has no group: making it anew", self._settings.queue)
                self._group_gone = True
            except (ConnectionLost, RedistqError, OSError) as error:
                self.reader.look_again = True
                if not self._stopping:
                    queue = self._settings.queue
                    log.warning("worker of %s waits for the server: %s", queue, error)
                    pause = self._rest(pause)
            except Exception:  # a mistake of ours, perhaps for this once: it is tried again
                now = time.monotonic()
                faulty_since = min(faulty_since, now)
                if now - faulty_since > self._settings.lease:
                    connection.close()
                    raise  # not worth another try: the tasks held here go to others
                log.exception("fetching from %s goes on after an error", self._settings.queue)
                self.reader.look_again = True  # what was read and not accepted is ours all the same
                pause = self._rest(pause)
        connection.close()

    def _prepare(self, connection: Connection) -> int:
        """Do what comes before a read; return how many tasks to read, 0 or less for none."""
        if self._group_gone:
            self.ensure_groups()
            self._group_gone = False
        if self._names_changed:
            self._let_in_unstarted()
        if self._all_paused():
            return 0
        if self._suspects:
            self._run_suspects()
            return 0
        self.offer_unstarted()
        room = self.room()
        if room <= 0:
            self._room.waits = True
            if self.room() <= 0:
                self._room.wait(LOOK_S if self._runners.ready else STUCK_S)
            self._room.waits = False
            self._room.forget()
            return 0
        if self.reader.look_again or connection.opened != self._opened:
            self.take_up_lost_answers(connection)
            self.reader.look_again = False
            self._opened = connection.opened
        return room

    def _all_paused(self) -> bool:
        """Give back what is held of queues that are paused now; return whether all are, after a
        short rest."""
        paused = [queue for queue in self.queues if queue.paused]
        if paused and paused != self._paused:
            self.give_back(queues=paused)
        self._paused = paused
        if len(paused) < len(self.queues):
            return False
        self._room.wait(0.1)  # our own memory is looked at, not the server
        return True

    def _not_paused(self, tasks: list[Delivery]) -> list[Delivery]:
        """Return these without those of queues that were paused while we waited: nobody starts
        them."""
        paused = [queue for queue in self.queues if queue.paused]
        late = [task for task in tasks if task[2] in paused] if paused else []
        if not late:
            return tasks
        self._release(late)
        gone = {(task[0], task[2]) for task in late}
        return [task for task in tasks if (task[0], task[2]) not in gone]

    # -- names that have rules: see regate.lua ---------------------------------------------------

    def look_at_names(self) -> None:
        """Look, soon, whether what waits here is of a name that has a rule now."""
        self._names_changed = True
        self._room.ring()

    def let_in(self, tasks: list[Delivery]) -> list[Delivery]:
        """Return these without those whose name has a rule, or is paused, and that do not wait
        under its key yet: they go back to do so. One that cannot go back is run."""
        gone: set[tuple[bytes, WorkerQueue]] = set()
        for queue in self.queues:
            if not queue.gated_names:
                continue
            entries = [t[0] for t in tasks if t[2] is queue and t[1] and queue.is_gated(t[1])]
            for start in range(0, len(entries), MAX_TASKS):
                part = entries[start : start + MAX_TASKS]
                words = self._broker.call(queue.commands.regate(self._consumer, part))
                for entry, word in zip(part, words, strict=True):
                    if type(word) is list:
                        log.warning("entry %r stays here: %s", entry, words_of(word[1]))
                    elif word != b"free":
                        gone.add((entry, queue))
        for key in gone:
            self.held.pop(key, None)
        return [task for task in tasks if (task[0], task[2]) not in gone]

    def _let_in_unstarted(self) -> None:
        """Hand back what waits here of names that have a rule now."""
        self._names_changed = False
        tasks = self._take_unstarted()
        while self._suspects:
            tasks.append(self._suspects.popleft())
        try:
            tasks = self.let_in(tasks)
        except BaseException:  # whatever it is: they are still here, and are looked at again
            self._names_changed = True
            raise
        finally:
            self.accept(tasks)

    def _rest(self, pause: float) -> float:
        """Wait before the server is asked again; return how long to wait the next time."""
        self._room.forget()  # rung by any runner that fell idle, which is no reason to hurry now
        if not self._stopping:
            self._room.wait(pause)
        return min(pause * 2, 2.0)

    # -- how much is held: see prefetch.py -------------------------------------------------------

    def room(self) -> int:
        """Return how many more tasks to read."""
        settler = self._settler
        behind = settler.teller is not None and settler.teller.is_behind
        if behind or settler.backlog >= UNSETTLED:
            return 0
        runners = self._runners
        room = self._prefetch.room(
            waiting=len(runners.ready),
            idle=runners.idle,
            started=runners.started,
            loop_room=self.loop.room() if self.loop is not None else 0,
        )
        self._room.low = self._prefetch.low
        if self.gatherers:
            gatherers = set(self.gatherers.values())
            free = sum(gatherer.room() for gatherer in gatherers)
            share = self._prefetch.share(set().union(*(g.times for g in gatherers)))
            room = room_with_batches(
                room, len(runners.ready), runners.idle, free, share if self.has_plain else 1.0
            )
        return room

    def take(self, tasks: list[Delivery], drained: bool) -> None:
        """Hand on what was just read, asked for by what came before, and offer what is too much."""
        times = self._executor.times(tasks)
        if len(tasks) == 1:  # nothing to share out, and a lone task is in a hurry
            self.accept(tasks)
            self._prefetch.learn(times)
            return
        keep = self._prefetch.keep(times, drained=drained, idle=self._runners.idle)
        spare = tasks[keep:]
        self.accept(tasks[:keep])
        self._prefetch.learn(times)
        if spare and not self._release(spare, drained_only=True):
            self.accept(spare)
            self._prefetch.refused(time.monotonic())

    def offer_unstarted(self) -> None:
        """Offer to idle workers what no runner could start for a while, and what was held as a
        moment's work and is work for long."""
        runners = self._runners
        prefetch = self._prefetch
        now = time.monotonic()
        if prefetch.is_stuck(now, waiting=len(runners.ready), started=runners.started):
            tasks = runners.take_unstarted()
            if tasks and not self._release(tasks, drained_only=True):
                runners.put_first(tasks)  # nobody else has time: they keep their place
            prefetch.offered_stuck(now, started=runners.started)
        for gatherer in set(self.gatherers.values()):
            if gatherer.is_stuck(now):
                tasks = gatherer.take_unstarted()
                if tasks and not self._release(tasks, drained_only=True):
                    gatherer.put_first(tasks)
        if prefetch.surplus_is_due(now):
            times = self._executor.times(runners.ready.copy())
            tasks = runners.take_last(prefetch.surplus(times))
            if tasks and not self._release(tasks, drained_only=True):
                runners.put(tasks)
                prefetch.surplus_refused(times, now)

    def accept(self, tasks: list[Delivery]) -> None:
        """Hand on tasks that are now pending for us."""
        held = self.held
        loop = self.loop
        gatherers = self.gatherers
        to_loop: list[Delivery] = []
        to_runners: list[Delivery] = []
        to_allot: list[Delivery] = []
        needs_of = self._executor.needs_of
        needy = self._executor.needy
        for task in tasks:
            entry, flat, queue = task
            held[entry, queue] = None
            if len(flat) == 12 and flat[9] != b"0":  # its worker died while it ran
                self._suspects.append(task)
            elif gatherers and len(flat) > 3 and (gatherer := gatherers.get(flat[3])) is not None:
                gatherer.put([task])
            elif (
                len(flat) != 12 or flat[3] in needy or (flat[11] and b'"resources"' in flat[11])
            ) and needs_of(task):
                to_allot.append(task)
            elif loop is not None and self._executor.is_async(flat):
                to_loop.append(task)
            else:
                to_runners.append(task)
        if to_loop and loop is not None:
            loop.put(to_loop)
        if to_runners:
            self._runners.put(to_runners)
        if to_allot and self.allotter is not None:
            self.allotter.put(to_allot)

    def take_up_lost_answers(self, connection: Connection) -> None:
        """Take up what is pending for us and not held here."""
        # What was held when we asked and is not held now was settled since: it is no lost answer.
        held = set(self.held)
        for page in self.reader.pending(connection):
            lost = [task for task in page if task[1] and (task[0], task[2]) not in held]
            found = self.let_in(self.reader.own(lost))
            if found:
                log.info("took up %d tasks whose delivery was lost", len(found))
                self.accept(found)

    # -- giving back -----------------------------------------------------------------------------

    def give_back(self, queues: Sequence[WorkerQueue] | None = None, suspects: bool = True) -> None:
        """Give unstarted work to other workers, uncounted; all of it, or that of some queues."""
        tasks = self._take_unstarted()
        while suspects and self._suspects:
            tasks.append(self._suspects.popleft())
        kept = [task for task in tasks if queues is not None and task[2] not in queues]
        tasks = [task for task in tasks if queues is None or task[2] in queues]
        if tasks:
            self._release(tasks)
        if kept:
            self.accept(kept)

    def _take_unstarted(self) -> list[Delivery]:
        """Return all that nobody has started, which is no longer ours to run, but for suspects."""
        tasks = self._runners.take_unstarted()
        for others in (self.loop, self.allotter):
            if others is not None:
                tasks.extend(others.take_unstarted())
        for gatherer in set(self.gatherers.values()):
            tasks.extend(gatherer.take_unstarted())
        return tasks

    def _release(self, tasks: list[Delivery], drained_only: bool = False) -> bool:
        """Give these back and forget them; return False when others have enough to do without
        them, which is asked with ``drained_only``."""
        released = 0
        try:
            for queue in self.queues:
                entries = [task[0] for task in tasks if task[2] is queue]
                ask = drained_only  # once: after the first call our own tasks are there to read
                for start in range(0, len(entries), MAX_TASKS):
                    part = entries[start : start + MAX_TASKS]
                    off = self._broker.call(queue.commands.release(self._consumer, part, ask))
                    released += off
                    if ask and not off:
                        break
                    ask = False
        except (RedistqError, GroupMissing) as error:
            # Some may have gone back and some not: those that are still ours are found again.
            log.warning("%d unstarted tasks could not be given back: %s", len(tasks), error)
            released = -1
        if released == 0 and drained_only:
            return False
        self.reader.look_again = self.reader.look_again or released < len(tasks)
        for entry, _, queue in tasks:
            self.held.pop((entry, queue), None)
        if released > 0:
            log.info("release: %d unstarted tasks went back to %s", released, self._settings.queue)
        return True

    # -- tasks whose workers died ----------------------------------------------------------------

    def _run_suspects(self) -> None:
        """Start tasks whose workers died with as little company as the number of these deaths
        asks for: one that kills its process must not take others along, time and again.

        For a bounded time, for most of them only happened to be there: neither what runs already
        nor what is yet to be read waits for long.
        """
        held = self.held
        # The least suspected first: innocent ones do not wait for those that kill again and again.
        suspects = self._suspects = deque(sorted(self._suspects, key=_deaths))
        _, flat, queue = suspects[0]
        deaths = _deaths(suspects[0])
        is_async = self.loop is not None and self._executor.is_async(flat)
        slots = self._settings.async_concurrency if is_async else self._settings.threads
        # Of four threads: alone; of a hundred coroutines: 25, 6, alone.
        together = max(1, slots >> min(2 * deaths, 30))
        apart_s = min(APART_S * 4.0 ** (min(deaths, 9) - 1), LONGEST_APART_S)
        self.give_back(suspects=False)
        if len(suspects) > together:  # others may have nothing else to do
            spare = [suspects.pop() for _ in range(len(suspects) - together)][::-1]
            if not self._release(spare, drained_only=True):
                suspects.extend(spare)
        self._wait_until(lambda: len(held) <= len(suspects), apart_s)
        if self._stopping or queue.paused:
            return
        cohort = [suspects.popleft() for _ in range(min(together, len(suspects)))]
        loop = self.loop
        needy = [task for task in cohort if self._executor.needs_of(task)]
        rest = [task for task in cohort if task not in needy]
        to_loop = [t for t in rest if loop is not None and self._executor.is_async(t[1])]
        if to_loop and loop is not None:
            loop.put(to_loop)
        self._runners.put([task for task in rest if task not in to_loop])
        if needy and self.allotter is not None:
            self.allotter.put(needy)
        self._wait_until(lambda: not any((t[0], t[2]) in held for t in cohort), apart_s)

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait no longer than ``seconds``, nor when there is something to do."""
        end = time.monotonic() + seconds
        paused = [queue.paused for queue in self.queues]
        while not condition() and not self._stopping:
            left = end - time.monotonic()
            if left <= 0 or [queue.paused for queue in self.queues] != paused:
                return
            self._room.wait(min(left, LOOK_S))


def _deaths(task: Delivery) -> int:
    """Return how many workers died while they ran a task."""
    count = task[1][9]
    return int(count[:9]) if count.isdigit() else 1
