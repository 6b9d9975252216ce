"""The processor: one worker process's fetcher, runners and settler. The only place that runs tasks.

Used by TaskWorker inside an application's process, and by a worker's child processes. It knows
nothing of heartbeats, schedules or other processes: that is the supervisor's work.

How work flows, and why nothing is lost on the way:

- The **fetcher** holds one blocking read. What it reads is *held*: pending for this consumer on
  the server, and in ``_held`` here. It never holds more unstarted work than about 50 ms' worth,
  so that other workers are not starved: it asks for no more, going by what tasks of the names
  that came last take, and gives back what turns out to be more. When a connection fails, an
  answer may be lost that the server already counts as delivered; the fetcher then reads its own
  pending list and takes up what it does not hold.
- A **runner** takes a task, shows it on the scoreboard, runs the handler, and leaves an *outcome*.
- Outcomes are **settled in natural batches**: while one call is under way, outcomes gather, and
  the next call takes them all. A runner with nothing left to run makes the call itself, so a lone
  task is settled without waking another thread; under load the settler thread does it. When
  handlers are faster than the server, nothing new is read until the server has caught up.
- No thread of a processor ends unasked: should one end all the same, or should outcomes stay
  unsettled while the server is there, ``on_fault`` is told, and whoever runs the processor ends it:
  its tasks go back instead of waiting for a process that beats and does not work.
- If this process dies after any line, the task is pending for its consumer and the supervisor, or
  any other worker, puts it back. If the server goes away, outcomes stay here until it is back.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from .. import slots
from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import (
    ConfigurationError,
    ConnectionLost,
    GroupMissing,
    RedistqError,
    ResultError,
    ServerUnavailable,
    UnexpectedReply,
)
from ..handlers import Handler
from ..logger import logger
from ..protocol.commands import MAX_TASKS, Commands, objects_to_content, words_of
from ..protocol.homes import LONG_S, PAGE, Passing, entry_order
from .attempt import CORRUPT, PARK, RETRY, SETTLE, Delivery, Outcome
from .durations import Forecast, fitting, total_ns
from .executor import Executor
from .scoreboard import Scoreboard

if TYPE_CHECKING:
    from .settings import WorkerSettings

log = logger("redistq.worker")

PREFETCH_NS = 50_000_000
"""Most unstarted work held, in time: what runs in 50 ms."""
PREFETCH_TASKS = 500
"""Most unstarted work held, in tasks."""
PREFETCH_MIXED = 16
"""Most tasks read at a time for the event loop of a worker that has busy threads as well."""
BLOCK_MS = 5_000
"""Longest single blocking read, so that a lost server is noticed."""
UNSETTLED = 1_000
"""Outcomes kept, about: with more of them to settle, nothing new is read."""
LARGE_RESULT = 256 * 1024
"""A result of more bytes is settled before its runner goes on: memory must not fill with them."""
BROKEN_S = (0.5, 5.0)
"""Seconds until an outcome that could not be written is tried again: at first, and at most."""
CALL_BYTES = 1024 * 1024
"""Result bytes in one settling call, about: more would hold the server for too long."""
STUCK_S = 0.25
"""Held work that nobody could start for this long is offered to other workers."""
LOOK_S = 0.05
"""While unstarted work is held, how often the fetcher looks whether it is too much."""
SLACK_S = 5.0
"""What a settling call may take beyond its limit before its thread counts as stuck."""
EXIT_FAULT = 70
"""Exit code of a process whose processor cannot go on."""
APART_S = 2.0
"""How long a task whose worker died once is kept apart from others; four times as long after each
further death."""
LONGEST_APART_S = 60.0
SURPLUS_NS = 2 * PREFETCH_NS
"""Unstarted work beyond this, in time, is offered to workers that are idle, down to PREFETCH_NS."""
RETIRED = object()
"""What a runner answers that is not needed any more."""


class Processor:
    """Runs tasks of one or more queues with ``settings.threads`` threads and one event loop.

    ``start`` begins to fetch; ``stop(timeout)`` ends within the time given: running tasks finish,
    unstarted ones go back uncounted. Safe to stop twice, or before start.

    ``on_fault`` is called at most once, from a thread of the processor, with the reason why the
    processor cannot go on; it must see to it that the process or the processor ends.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        handlers: Mapping[str, Handler],
        broker: Broker,
        lanes: Sequence[Commands],
        consumer: str,
        scoreboard: Scoreboard,
        on_fault: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.settings, self.broker = settings, broker
        self._on_fault = on_fault
        self.fault = ""
        """Why the processor cannot go on; empty while it can."""
        self._lanes = list(lanes)  # one a queue, the most urgent first
        self._by_stream = {c.keys.stream.encode(): lane for lane, c in enumerate(lanes)}
        self._all_paused = (1 << len(self._lanes)) - 1
        self.consumer, self.scoreboard = consumer, scoreboard
        self._executor = Executor(settings, handlers, consumer, scoreboard, self._thread)
        self._forecast = Forecast()
        self._has_sync = any(not h.is_async for h in handlers.values())
        self._has_async = any(h.is_async for h in handlers.values())

        # Pending for us, ready, running or to settle: entries with the lane they came from.
        self._held: dict[tuple[bytes, int], None] = {}
        self._ready: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()  # ready too, but a worker died while it ran them
        self._outcomes: deque[Outcome] = deque()
        self._idle = 0  # runners waiting at the bell
        self._surplus = 0  # runners that are too many, since others take their slots back
        first = settings.threads + settings.async_concurrency
        self._free_slots = list(range(first, min(scoreboard.slots, first + slots.MOST)))
        self._idle_lock = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._settle_bell: SimpleQueue[None] = SimpleQueue()
        self._settle_rung = False
        self._settling = threading.Lock()
        self._answers = 0  # to settling calls, refusals for now among them; see _watch
        self._fault_lock = threading.Lock()
        # Outcomes the server could not write, with when to try again; and how long each waits.
        self._broken: deque[tuple[float, Outcome]] = deque()
        self._waits: dict[tuple[bytes, int], float] = {}
        self._room = threading.Event()  # the fetcher waits here when enough is held
        self._stopping = False
        self._draining = False  # after the last fetch: runners end when nothing is left
        self._gave_up = threading.Event()
        self._fetch_connection: Connection | None = None
        self._threads: list[threading.Thread] = []
        self._runners: list[threading.Thread] = []
        self._loop: Any = None
        self._fetcher_waits, self._low = False, 0  # a runner rings when no more than that is ready
        self._popped = 0  # tasks started; the fetcher sees by it whether anyone makes progress
        self.lost = self._settled = 0
        # A read that outlived its process (a lost host) must be over when the lease is: what the
        # server handed to it after the recovery would belong to nobody.
        self._block_ms = min(BLOCK_MS, settings.lease_ms // 2)
        self._group_gone, self._look_again = False, False
        self._seen_popped, self._gave_back_at = -1, -1
        self._stuck_since, self._stuck_s = 0.0, STUCK_S
        self._look_at = 0.0  # when the fetcher looks whether it holds too much
        # One a lane, for a worker that belongs to a home; none for one that serves everybody.
        self._passing = [Passing(settings.home) for _ in lanes if settings.home]

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all threads; the queue's group is made when it is not there."""
        self._ensure_group()
        self._executor.start()
        if self._has_async:
            from .event_loop import EventLoopRunner

            self._loop = EventLoopRunner(
                self._executor, self.settings, self._async_done, self._thread
            )
            self._loop.start()
        self._runners += [self._runner(slot) for slot in range(self.settings.threads)]
        self._threads.append(self._thread(self._watch, "watch"))
        self._threads.append(self._thread(self._settle_loop, "settle"))
        self._threads.append(self._thread(self._fetch_loop, "fetch"))
        for thread in (*self._runners, *self._threads):
            thread.start()

    def _thread(self, target: Callable[..., Any], role: str, *args: Any) -> threading.Thread:
        """A thread of the processor, which the processor cannot do without until it is stopped, or
        until its target answers that it is not needed any more."""

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

        return threading.Thread(
            target=run, name=f"redistq-{role}-{self.settings.queue}", daemon=True
        )

    def _watch(self) -> None:
        """See that outcomes are settled, whatever holds up those who settle them."""
        lease, seen, since = self.settings.lease, -1, 0.0
        limit = lease + self.broker.timeout + SLACK_S  # a server that is away answers so late
        while not self._gave_up.wait(lease / 4):
            now = time.monotonic()
            if self._answers != seen or not (self._outcomes or self._settling.locked()):
                seen, since = self._answers, now
            elif now - since > limit and not self._stopping:
                self._fail(f"no outcome could be settled for {limit:g} s")

    def _fail(self, reason: str, error: BaseException | None = None) -> None:
        """The processor cannot go on: tell whoever runs it, once."""
        with self._fault_lock:
            if self.fault:
                return
            self.fault = reason
        log.critical("this worker cannot go on: %s", reason, exc_info=error)
        # What nobody could settle is charged, or it would bring down one process after the other.
        refused = [outcome for outcome in self._outcomes.copy() if outcome.refused_at]
        for slot, outcome in zip(range(self.scoreboard.slots), refused, strict=False):
            self.scoreboard.begin(slot, outcome.entry)
        self._on_fault(reason)

    def stop(self, timeout: float) -> bool:
        """Drain within ``timeout`` seconds; answers whether every started task came to its end."""
        deadline = time.monotonic() + timeout
        self._stopping = True
        # A server that is away is not waited for longer than whoever stops us wants to wait.
        self.broker.timeout = min(self.broker.timeout, max(timeout, 1.0))
        self._room.set()
        fetcher = self._threads[-1] if self._threads else None
        while fetcher is not None and fetcher.is_alive():
            if self._fetch_connection is not None:
                self._fetch_connection.interrupt()
            fetcher.join(0.05)
            if time.monotonic() > deadline + 5:
                break
        self._give_back(drained_only=False)
        self._draining = True
        with self._idle_lock:
            runners = list(self._runners)  # no more are started now
        for _ in runners:
            self._bell.put(None)
        finished = self._loop is None or self._loop.stop(deadline)
        for thread in runners:
            thread.join(max(0.0, deadline - time.monotonic()))
        finished = finished and not any(thread.is_alive() for thread in runners)
        self._try_broken_again(all_of_them=True)
        if not self._flush(until=max(deadline, time.monotonic() + 2)) or self._broken:
            finished = False
        self._gave_up.set()
        self._settle_bell.put(None)
        self._executor.close()
        for thread in self._threads:
            thread.join(2)
        if unsettled := len(self._outcomes) + len(self._broken):
            log.warning("%d finished tasks could not be settled and will run again", unsettled)
        self._threads.clear()
        self._runners = [thread for thread in self._runners if thread.is_alive()]
        return finished

    # -- fetching --------------------------------------------------------------------------------

    def _ensure_group(self) -> None:
        for commands in self._lanes:
            self.broker.call(commands.create_group())

    def _fetch_loop(self) -> None:
        connection = self._fetch_connection = self.broker.connection(BLOCK_MS / 1000 + 5)
        pause, opened, seen_paused = 0.05, 0, 0
        faulty_since = math.inf
        while not self._stopping:
            try:
                if self._group_gone:
                    self._ensure_group()
                    self._group_gone = False
                if (paused := self.scoreboard.paused) or seen_paused:
                    if paused and paused != seen_paused:
                        self._give_back(drained_only=False, lanes=paused)
                    seen_paused = paused
                    if paused == self._all_paused:
                        self._room.wait(0.1)  # our own memory is looked at, not the server
                        self._room.clear()
                        continue
                if self._suspects:
                    self._run_suspects()
                    continue
                self._offer_stuck()
                room = self._room_for()
                if room <= 0:
                    self._fetcher_waits = True
                    if self._room_for() <= 0:
                        self._room.wait(LOOK_S if self._ready else STUCK_S)
                    self._fetcher_waits = False
                    self._room.clear()
                    continue
                if self._look_again or connection.opened != opened:
                    self._take_up_lost_answers(connection)
                    self._look_again, opened = False, connection.opened
                # With unstarted work in hand, be back in time to see whether it is stuck.
                block_ms = int(LOOK_S * 1000) if self._ready else self._block_ms
                tasks = self._fetch(connection, room, block_ms)
                pause, faulty_since = 0.05, math.inf
                if tasks:
                    self._stuck_since = time.monotonic()
                    if (
                        paused := self.scoreboard.paused
                    ):  # it came while we waited: nobody starts it
                        self._release([t for t in tasks if paused >> t[2] & 1], False)
                        tasks = [t for t in tasks if not paused >> t[2] & 1]
                    self._take(tasks, drained=len(tasks) < room)
            except GroupMissing:
                log.warning("queue %s has no group: making it anew", self.settings.queue)
                self._group_gone = True
            except (ConnectionLost, RedistqError, OSError) as error:
                self._look_again = True
                if not self._stopping:
                    log.warning("worker of %s waits for the server: %s", self.settings.queue, error)
                    pause = self._rest(pause)
            except Exception:
                now = time.monotonic()
                faulty_since = min(faulty_since, now)
                if now - faulty_since > self.settings.lease:
                    connection.close()
                    raise  # not worth another try: the tasks held here go to others
                log.exception("fetching from %s goes on after an error", self.settings.queue)
                self._look_again = True  # what was read and not accepted is ours all the same
                pause = self._rest(pause)
        connection.close()

    def _fetch(self, connection: Connection, room: int, block_ms: int) -> list[Delivery]:
        """New tasks, at most about ``room``; waits when there are none.

        Of several queues the most urgent is asked first, and all together only to sleep: COUNT is
        a stream's, so one question to all of them would take as much of the least urgent.
        """
        paused = self.scoreboard.paused
        open_lanes = [lane for lane in range(len(self._lanes)) if not paused >> lane & 1]
        if self._passing:
            rests = {lane: self._rest_of(connection, lane) for lane in open_lanes}
            open_lanes = [lane for lane, rest in rests.items() if rest <= 0]
            if len(open_lanes) < len(rests):
                shortest = min(rest for rest in rests.values() if rest > 0)
                block_ms = max(min(block_ms, int(shortest * 1000)), 1)
                if not open_lanes:
                    self._room.wait(shortest)
                    self._room.clear()
                    return []
        if len(open_lanes) == 1 and not self._passing:
            commands = self._lanes[open_lanes[0]]
            return connection.ask(commands.fetch(self.consumer, room, block_ms), self._read)
        tasks: list[Delivery] = []
        for lane in open_lanes:
            left = room - len(tasks)
            asked = self._passing[lane].ask(left) if self._passing else left
            page = connection.ask(self._lanes[lane].fetch(self.consumer, asked, None), self._read)
            tasks.extend(self._leave_foreign(page, lane) if self._passing else page)
            if len(tasks) >= room:
                return tasks
        if tasks or not open_lanes:
            return tasks
        streams = [self._lanes[lane].keys.stream for lane in open_lanes]
        command = self._lanes[0].fetch_any(self.consumer, 1, block_ms, streams)
        tasks = connection.ask(command, self._read)
        if self._passing:
            by_lane = {lane: [t for t in tasks if t[2] == lane] for lane in open_lanes}
            tasks = [t for lane, part in by_lane.items() for t in self._leave_foreign(part, lane)]
        return tasks

    def _rest_of(self, connection: Connection, lane: int) -> float:
        """Seconds that a lane full of other homes' calls is left alone: until one of ours comes."""
        passing = self._passing[lane]
        rest = passing.rest_s()
        if rest <= 0:
            return rest
        if (now := time.monotonic()) >= passing.looks_at:
            after = b"(" + passing.looks_after
            added = connection.request(self._lanes[lane].entries(after, "+", PAGE))
            if added:
                passing.looks_after = added[-1][0]
            if len(added) < PAGE:
                passing.looks_at = now + LONG_S
            own = [e for e, flat in added if len(flat) < 12 or not passing.is_foreign(flat[11])]
            if own and self._is_unread(connection, lane, own[-1]):
                passing.rests_until = 0.0
                return 0.0
        return min(rest, max(passing.looks_at - now, 0.001))

    def _is_unread(self, connection: Connection, lane: int, entry: bytes) -> bool:
        """Whether no worker has read an entry yet."""
        commands = self._lanes[lane]
        for row in connection.request(commands.groups()):
            about = dict(zip(row[::2], row[1::2], strict=True))
            if about[b"name"] == commands.group.encode():
                return entry_order(entry) > entry_order(about[b"last-delivered-id"])
        return False

    def _leave_foreign(self, page: list[Delivery], lane: int) -> list[Delivery]:
        """What was read of a lane without the calls of other homes: those go back at once."""
        passing = self._passing[lane]
        foreign = [t for t in page if len(t[1]) > 11 and passing.is_foreign(t[1][11])]
        last = page[-1][0] if page else b""
        passing.passed([t[1][1] for t in foreign], len(page) - len(foreign), last)
        if not foreign:
            return page
        entries = [t[0] for t in foreign]
        try:
            off = self.broker.call(self._lanes[lane].release(self.consumer, entries))
        except (RedistqError, GroupMissing) as error:
            log.warning("%d calls of others could not be left to them: %s", len(entries), error)
            off = 0
        self._look_again = self._look_again or off < len(entries)
        gone = set(entries)
        return [t for t in page if t[0] not in gone]

    def _read(self, reply: Any) -> list[Delivery]:
        lanes = self._by_stream
        return [
            (entry, flat, lanes[stream]) for stream, page in reply or () for entry, flat in page
        ]

    def _rest(self, pause: float) -> float:
        """Wait before the server is asked again; answers how long to wait the next time."""
        self._room.clear()  # set by any runner that fell idle, which is no reason to hurry now
        if not self._stopping:
            self._room.wait(pause)
        return min(pause * 2, 2.0)

    def _offer_stuck(self) -> None:
        """Held work that no runner could start for a while goes to workers that are idle."""
        now = time.monotonic()
        if self._popped != self._seen_popped or not self._ready:
            self._seen_popped, self._stuck_since = self._popped, now
            if self._popped != self._gave_back_at:
                self._stuck_s = STUCK_S
        elif now - self._stuck_since >= self._stuck_s:
            self._give_back(drained_only=True)
            self._gave_back_at, self._stuck_since = self._popped, now
            self._stuck_s = min(self._stuck_s * 2, 4.0)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._offer_excess(now)

    def _offer_excess(self, now: float) -> None:
        """What was held as a moment's work, and is work for long, goes to workers that are idle."""
        threads = self.settings.threads
        held = self._executor.times(self._ready.copy())
        work_ns = total_ns(Counter(held))
        if work_ns <= threads * SURPLUS_NS:
            return
        excess = len(held) - max(fitting(held, threads * PREFETCH_NS), threads)
        tasks: list[Delivery] = []
        try:
            while len(tasks) < excess:
                tasks.append(self._ready.pop())
        except IndexError:
            pass
        tasks.reverse()
        if tasks and not self._release(tasks, True):
            self._ready.extend(tasks)
            self._wake(len(tasks))
            # Others have enough to do. The more we hold, the less it matters when we ask again.
            self._look_at = now + max(LOOK_S, work_ns / 1e9 / 16)

    def _room_for(self) -> int:
        """How many more tasks to hold: about 50 ms' worth; of long ones, one per free slot."""
        if len(self._outcomes) + len(self._broken) >= UNSETTLED:
            return 0
        mean = self._forecast.mean_ns()
        waiting = len(self._ready)
        room = 0
        if self._has_sync:
            threads = self.settings.threads
            stuck = self._gave_back_at == self._popped
            if stuck or mean is None or mean >= PREFETCH_NS:
                room = self._idle - waiting
            else:
                ahead = min(int(threads * PREFETCH_NS / max(mean, 1)), PREFETCH_TASKS)
                # Ask for many at a time: below half, not for every task that starts.
                self._low = ahead // 2
                room = ahead - waiting if waiting <= self._low else 0
                room = max(room, self._idle - waiting)
        if self._loop is not None:
            room_of_loop = self._loop.room()
            if self._has_sync:  # what is read for the loop may turn out to be work for threads
                room_of_loop = min(room_of_loop, PREFETCH_MIXED - waiting)
            room = max(room, room_of_loop)
        return min(room, PREFETCH_TASKS)

    def _take(self, tasks: list[Delivery], drained: bool) -> None:
        """What was just read, asked for by what came before. If it turns out to be far more work,
        and nothing is left to read, others may be idle: all but a moment's work goes to them."""
        times = self._executor.times(tasks)
        if len(tasks) == 1:  # nothing to share out, and a lone task is in a hurry
            self._accept(tasks)
            self._forecast.read({times[0]: 1})
            return
        counts, threads, spare = Counter(times), self.settings.threads, tasks[:0]
        # With an event loop, this few may have been read for it: more than threads have room for.
        few = self._loop is not None and len(tasks) <= PREFETCH_MIXED
        if drained and not few and total_ns(counts) > threads * SURPLUS_NS:
            keep = max(fitting(times, threads * PREFETCH_NS), self._idle, 1)
            tasks, spare = tasks[:keep], tasks[keep:]
        self._accept(tasks)
        self._forecast.read(counts)
        if spare and not self._release(spare, True):
            self._accept(spare)
            self._look_at = time.monotonic() + LOOK_S

    def _accept(self, entries: list[Delivery]) -> None:
        """Entries that are now pending for us: hand them on."""
        held, tasks, to_loop = self._held, [], []
        loop = self._loop
        for task in entries:
            entry, flat, lane = task
            held[entry, lane] = None
            if len(flat) == 12 and flat[9] != b"0":  # its worker died while it ran
                self._suspects.append(task)
            elif loop is not None and self._executor.is_async(flat):
                to_loop.append(task)
            else:
                tasks.append(task)
        if to_loop:
            loop.put(to_loop)
        if not tasks:
            return
        self._ready.extend(tasks)
        self._wake(len(tasks))

    def _run_suspects(self) -> None:
        """Start tasks whose workers died with as little company as the number of these deaths
        asks for: one that kills its process must not take others along, time and again.

        For a bounded time, for most of them only happened to be there: neither what runs already
        nor what is yet to be read waits for long.
        """
        held = self._held
        # The least suspected first: innocent ones do not wait for those that kill again and again.
        suspects = self._suspects = deque(sorted(self._suspects, key=_deaths))
        _, flat, lane = suspects[0]
        deaths = _deaths(suspects[0])
        is_async = self._loop is not None and self._executor.is_async(flat)
        slots = self.settings.async_concurrency if is_async else self.settings.threads
        together = max(
            1, slots >> min(2 * deaths, 30)
        )  # of four: alone; of a hundred: 25, 6, alone
        apart_s = min(APART_S * 4.0 ** (min(deaths, 9) - 1), LONGEST_APART_S)
        self._give_back(drained_only=False, suspects=False)
        if len(suspects) > together:  # others may have nothing else to do
            spare = [suspects.pop() for _ in range(len(suspects) - together)][::-1]
            if not self._release(spare, True):
                suspects.extend(spare)
        self._wait_until(lambda: len(held) <= len(suspects), apart_s)
        if self._stopping or self.scoreboard.paused >> lane & 1:
            return
        cohort = [suspects.popleft() for _ in range(min(together, len(suspects)))]
        to_loop = [task for task in cohort if self._loop and self._executor.is_async(task[1])]
        tasks = [task for task in cohort if task not in to_loop]
        if to_loop:
            self._loop.put(to_loop)
        self._ready.extend(tasks)
        self._wake(len(tasks))
        self._wait_until(lambda: not any((t[0], t[2]) in held for t in cohort), apart_s)

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait in the fetcher, no longer than ``seconds``, nor when there is something to do."""
        end, paused = time.monotonic() + seconds, self.scoreboard.paused
        while not condition() and not self._stopping and self.scoreboard.paused == paused:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._room.wait(min(left, LOOK_S))
            self._room.clear()

    def _wake(self, tasks: int) -> None:
        """Wake as many runners as there is work for."""
        with self._idle_lock:
            woken = min(self._idle, tasks)
            self._idle -= woken
        for _ in range(woken):
            self._bell.put(None)

    def _take_up_lost_answers(self, connection: Connection) -> None:
        """After a new connection: entries that are pending for us and that we do not hold."""
        # What was held when we asked and is not held now was settled since: it is no lost answer.
        held = set(self._held)
        for commands in self._lanes:
            cursor = "0-0"
            while page := connection.ask(
                commands.fetch(self.consumer, MAX_TASKS, None, cursor), self._read
            ):
                cursor = page[-1][0].decode()
                found = [task for task in page if task[1] and (task[0], task[2]) not in held]
                if found and self._passing:
                    found = self._leave_foreign(found, found[0][2])
                if found:
                    log.info("took up %d tasks whose delivery was lost", len(found))
                    self._accept(found)

    def _give_back(self, drained_only: bool, lanes: int = -1, suspects: bool = True) -> None:
        """Offer unstarted work to other workers, uncounted; ``lanes`` says of which, a bit each."""
        tasks: list[Delivery] = []
        try:
            while True:
                tasks.append(self._ready.popleft())
        except IndexError:
            pass
        if self._loop is not None and not drained_only:
            tasks.extend(self._loop.take_unstarted())
        if suspects and not drained_only:
            while self._suspects:
                tasks.append(self._suspects.popleft())
        kept = [task for task in tasks if not lanes >> task[2] & 1]
        tasks = [task for task in tasks if lanes >> task[2] & 1]
        if tasks and not self._release(tasks, drained_only):
            self._ready.extendleft(reversed(tasks))  # nobody else has time: they keep their place
            self._wake(len(tasks))
        if kept:
            self._accept(kept)

    def _release(self, tasks: list[Delivery], drained_only: bool) -> bool:
        """Give these back and forget them; False when others have enough to do without them."""
        released = 0
        try:
            for lane, commands in enumerate(self._lanes):
                entries = [task[0] for task in tasks if task[2] == lane]
                ask = drained_only  # once: after the first call our own tasks are there to read
                for start in range(0, len(entries), MAX_TASKS):
                    part = entries[start : start + MAX_TASKS]
                    off = self.broker.call(commands.release(self.consumer, part, ask))
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
        self._look_again = self._look_again or released < len(tasks)
        for entry, _, lane in tasks:
            self._held.pop((entry, lane), None)
        if released > 0:
            log.info("release: %d unstarted tasks went back to %s", released, self.settings.queue)
        return True

    # -- running ---------------------------------------------------------------------------------

    def _runner(self, slot: int) -> threading.Thread:
        return self._thread(self._run, f"run-{slot}", slot)

    def _run(self, slot: int) -> object:
        ready, outcomes = self._ready, self._outcomes
        run = self._executor.runner(slot)
        slots.serve(self)
        while True:
            try:
                task = ready.popleft()
            except IndexError:
                if outcomes:
                    self._flush()
                with self._idle_lock:
                    if ready:
                        continue
                    if self._draining:
                        return None
                    if self._surplus:
                        return self._retire(slot)
                    self._idle += 1
                self._room.set()
                self._bell.get()
                continue
            self._popped += 1
            outcome = run(task)
            outcomes.append(outcome)
            if outcome.verb is SETTLE and len(outcome.args[6]) > LARGE_RESULT:
                self._flush(wait=True)
            if ready:
                if not self._settle_rung:
                    self._settle_rung = True
                    self._settle_bell.put(None)
                if self._fetcher_waits and len(ready) <= self._low:
                    self._room.set()
                if self._surplus:
                    with self._idle_lock:
                        if self._surplus:
                            return self._retire(slot)

    # -- lending slots: see slots.py -------------------------------------------------------------

    def lend(self) -> bool:
        """A runner waits for other tasks: one more runs meanwhile, where there is a thread for
        it."""
        with self._idle_lock:
            if self._surplus:  # the one that was started for a wait before is still there
                self._surplus -= 1
                return True
            if self._draining:
                return False  # nothing is fetched any more
            if not self._free_slots:
                raise RedistqError(
                    f"this worker process has no slot left: {len(self._runners)} of its tasks wait "
                    "for calls that they submitted themselves; submit those from outside, give "
                    "them to a queue of their own, or start more worker processes"
                )
            slot = self._free_slots.pop()
            runner = self._runner(slot)
            self._runners.append(runner)
        try:
            runner.start()
        except BaseException as error:
            with self._idle_lock:
                self._runners.remove(runner)
                self._free_slots.append(slot)
            if not isinstance(error, RuntimeError):
                raise
            log.warning("a task that waits keeps its slot: no thread can be started (%s)", error)
            return False
        return True

    def take_back(self) -> None:
        """A runner goes on with its task: there is one too many."""
        with self._idle_lock:
            self._surplus += 1
            wake = self._idle > 0
            self._idle -= wake
        if wake:
            self._bell.put(None)

    def _retire(self, slot: int) -> object:
        """One runner less, whichever it is; called with the lock held."""
        self._surplus -= 1
        self._free_slots.append(slot)
        self._runners.remove(threading.current_thread())
        return RETIRED

    def _async_done(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if not self._settle_rung:
            self._settle_rung = True
            self._settle_bell.put(None)
        self._room.set()

    # -- settling --------------------------------------------------------------------------------

    def _settle_loop(self) -> None:
        while not self._gave_up.is_set():
            # Rung for each outcome that is put aside, too: the wait for the next is never longer.
            with contextlib.suppress(Empty):
                self._settle_bell.get(timeout=BROKEN_S[0] if self._broken else None)
            self._settle_rung = False
            self._try_broken_again()
            self._flush(wait=True)

    def _flush(self, wait: bool = False, until: float | None = None) -> bool:
        """Settle what is finished; answers whether nothing is left.

        One thread at a time: another's outcomes are taken along, so it need not wait. While the
        server is away it is asked again and again, with what was finished kept here.
        """
        while self._outcomes:
            if until is not None:
                free = self._settling.acquire(timeout=max(0.0, until - time.monotonic()))
            else:
                free = self._settling.acquire(blocking=wait)
            if not free:
                return False
            try:
                batch = self._take_batch()
                pause = 0.05
                while batch:
                    try:
                        batch = self._settle(batch)
                    except (ServerUnavailable, ConnectionLost, UnexpectedReply) as error:
                        self._answers += 1  # not ours to mend: it is asked until it is back
                        log.warning("%d outcomes wait for the server: %s", len(batch), error)
                        late = until is not None and time.monotonic() > until
                        if late or self._gave_up.wait(pause):
                            self._outcomes.extendleft(reversed(batch))
                            return False
                        pause = min(pause * 2, 2.0)
                    except Exception as error:
                        # Not the server's absence: its refusal. Whose outcome it is shows when
                        # each is sent alone; the others are settled, and others come after them.
                        log.warning("%d outcomes are refused: %s", len(batch), error)
                        batch = self._settle_apart(batch)
                        self._outcomes.extend(batch)
                        self._end_if_stuck(batch)
                        late = until is not None and time.monotonic() > until
                        if batch and (self._gave_up.wait(pause) or late):
                            return False
                        batch = self._take_batch()
                        pause = min(pause * 2, 5.0)
            finally:
                self._settling.release()
        return True

    def _settle_apart(self, batch: list[Outcome]) -> list[Outcome]:
        """Settle each alone; answers those that are refused, to be sent again.

        What cannot even be sent is settled as failed with the reason instead.
        """
        left: list[Outcome] = []
        for position, outcome in enumerate(batch):
            try:
                try:
                    self._settle([outcome])
                except (TypeError, ValueError) as error:
                    # Missing rights, say; but text that cannot be sent is this outcome's own.
                    mine = not isinstance(error, ConfigurationError)
                    if not mine and not isinstance(error.__cause__, UnicodeEncodeError):
                        raise
                    self._settle([outcome.failed(error)])
            except (ServerUnavailable, ConnectionLost, UnexpectedReply, ConfigurationError):
                return left + batch[position:]  # no fault of this outcome
            except Exception:
                log.exception("the outcome of task %s is refused", outcome.id)
                outcome.refused_at = outcome.refused_at or time.monotonic()
                left.append(outcome)
        return left

    def _end_if_stuck(self, batch: list[Outcome]) -> None:
        """An outcome that stays refused for a whole lease ends this process, which charges its task
        a recovery: it does not go round for ever, and one recovery too many ends it."""
        since = min((o.refused_at for o in batch if o.refused_at), default=math.inf)
        if time.monotonic() - since > self.settings.lease and not self._stopping:
            self._fail("the server refuses an outcome")

    def _take_batch(self) -> list[Outcome]:
        batch: list[Outcome] = []
        size = 0
        outcomes = self._outcomes
        try:
            while len(batch) < MAX_TASKS and size < CALL_BYTES:
                outcome = outcomes.popleft()
                size += outcome.size
                batch.append(outcome)
        except IndexError:
            pass
        return batch

    def _settle(self, batch: list[Outcome]) -> list[Outcome]:
        """Send one batch, a call a verb; answers what is still to do. Repeating it is harmless."""
        for lane, commands in enumerate(self._lanes):
            part = batch if len(self._lanes) == 1 else [o for o in batch if o.lane == lane]
            settled = [o for o in part if o.verb is SETTLE]
            if settled:
                if len(settled) > 2:
                    settled.sort(key=lambda o: o.order)
                reply = self.broker.call(commands.settle(self.consumer, [o.args for o in settled]))
                if reply:
                    self._refused(settled, reply)
            if len(settled) != len(part):
                self._settle_others(commands, part)
        held = self._held
        broken = {(o.entry, o.lane) for _, o in self._broken} if self._broken else ()
        for outcome in batch:
            key = (outcome.entry, outcome.lane)
            if key not in broken:
                held.pop(key, None)
                if self._waits:
                    self._waits.pop(key, None)
        self._answers += 1
        self._settled += len(batch)
        self.scoreboard.settled = self._settled  # its supervisor sees that work goes on
        if self._fetcher_waits and len(self._outcomes) < UNSETTLED:
            self._room.set()  # perhaps it waits for this
        return []

    def _settle_others(self, commands: Commands, batch: list[Outcome]) -> None:
        retried = [o for o in batch if o.verb is RETRY]
        if retried:
            reply = self.broker.call(commands.retry(self.consumer, [o.args for o in retried]))
            self._refused(retried, reply)
        parked = [o for o in batch if o.verb is PARK]
        if parked:
            grace_ms = int(self.settings.unknown_grace * 1000)
            reply = self.broker.call(
                commands.park(self.consumer, grace_ms, [o.args for o in parked])
            )
            for outcome, word in zip(parked, reply, strict=True):
                if type(word) is list:
                    self._put_aside(outcome, words_of(word[1]))
                elif word == b"dead":
                    log.warning("task %s is dead: no handler named %s", outcome.id, outcome.name)
        for outcome in batch:
            if outcome.verb is CORRUPT:
                reply = self.broker.call(
                    commands.quarantine(self.consumer, outcome.entry, outcome.name)
                )
                if type(reply) is bytes:
                    self._put_aside(outcome, words_of(reply))
                    continue
                log.warning("entry %s set aside: %s", outcome.entry.decode(), outcome.name)

    def _refused(self, sent: list[Outcome], reply: list[Any]) -> None:
        refused = Commands.read_refused(reply)
        for position, words in refused.broken.items():
            self._put_aside(sent[position], words)
        for position in refused.lost:
            outcome = sent[position]
            self.lost += 1
            log.warning(
                "task %s attempt %s: the lease was lost, its outcome does not count",
                outcome.id,
                outcome.attempt,
            )

    def _put_aside(self, outcome: Outcome, words: str) -> None:
        """The server could not write this outcome alone: the task stays ours, the others go on.

        It is tried again and again, for its cause may be mended: a right that is missing, a key
        that holds something else. When the server objects to what it says, the task ends as failed
        with those words.
        """
        key = (outcome.entry, outcome.lane)
        if key not in self._waits:
            log.error(
                "task %s attempt %s: its outcome could not be written and is tried again: %s",
                *(outcome.id, outcome.attempt, words),
            )
            if objects_to_content(words):
                fault = ResultError(f"the server could not store how this task ended: {words}")
                outcome = outcome.failed(fault)
        pause = self._waits[key] = min(self._waits.get(key, BROKEN_S[0] / 2) * 2, BROKEN_S[1])
        self._broken.append((time.monotonic() + pause, outcome))
        self._settle_bell.put(None)

    def _try_broken_again(self, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for _ in range(len(self._broken)):
            at, outcome = self._broken.popleft()
            if at <= now or all_of_them:
                self._outcomes.append(outcome)
            else:
                self._broken.append((at, outcome))


def _deaths(task: Delivery) -> int:
    """How many workers died while they ran a task."""
    count = task[1][9]
    return int(count[:9]) if count.isdigit() else 1
