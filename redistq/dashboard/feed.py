"""What is known of one queue, kept from one look to the next, and what is said of it.

Used by the dashboards, which share one Feed a queue, and by the terminal's screen. A Feed has no
thread: ``refresh`` asks the server, with one call. A View is what one picture shows; the functions
of a View (``alerts``, ``line``, ``plain`` ...) are pure.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from ..connection.address import Address
from ..display.html import TRAIL_MS
from ..errors import RedistqError
from ..logger import logger
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import BatchRow, DeadLetter, Event
from ..monitor.server import ServerLook, ServerMemory
from ..monitor.tick import Tick, is_unused, running_of
from ..producer.clearing import lanes_of
from ..protocol.commands import Snapshot
from ..protocol.keys import PRIORITIES
from .links import NO_LINKS, Links

log = logger("redistq.dashboard")

EVENTS_SHOWN = 8
LETTERS_SHOWN = 5
EVENTS_A_TICK = 200
"""Most attempts that one look brings: each costs the server some 10 µs."""
EVENTS_KEPT = 1_000
"""Attempts behind the figures by function and the timeline."""
LETTERS_READ = 200
"""Dead letters of which groups are made, unless more are asked for."""
LETTERS_EVERY_S = 2.0
LANES_EVERY_S = 2.0
"""How often the figures of the other priorities are read."""
LANE_LIMITS = {"events": 1, "running": 1, "dead": 1, "limits": 1, "schedules": 1}
"""What is read of the other priorities, beside figures, workers and batches."""
RATE_OVER_MS = 10_000
"""A batch's rate is that of so long."""
PREVIEWS_KEPT = 2_000
FRESH_S = 0.25
"""A picture younger than this is shared instead of asked for again."""
CALL_TIMEOUT_S = 2.0
TRAIL_KEPT_MS = TRAIL_MS + 5_000
OTHER_CLOCK_MS = 1000
"""Where time went back by more than this, another server answers."""


@dataclass(frozen=True, slots=True)
class Point:
    """One instant of the sparklines: the queue's depth, and tasks settled since it began."""

    now_ms: int
    depth: int
    settled: int


@dataclass(frozen=True, slots=True)
class View:
    """All that one picture of a queue shows.

    ``tick`` is the last that was had (None: none yet); ``recent`` the newest attempts, newest
    first; ``trail`` the last minute, oldest first. ``problem`` says why there is no newer tick,
    ``notice`` what a button did, and ``ended`` why the picture no longer moves. ``events`` are
    some newest attempts, newest first (with ``gaps``: not all of their time), ``letters`` the
    newest dead letters without tracebacks. ``rates`` are tasks of each batch that end a second,
    ``layers`` says which batches are graphs, ``lanes`` has the figures by priority (empty where
    all tasks are of one) and ``lane_batches`` the newest batches of the other priorities,
    ``previews`` the starts of payloads by task id, where they were seen, and ``memory`` the
    server's (None: not known). ``links`` is what tasks and batches lead to.
    """

    queue: str
    url: str
    tick: Tick | None = None
    recent: tuple[Event, ...] = ()
    trail: tuple[Point, ...] = ()
    problem: str = ""
    notice: str = ""
    ended: str = ""
    live: bool = False
    events: tuple[Event, ...] = ()
    gaps: bool = False
    letters: tuple[DeadLetter, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    previews: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, int | None] = field(default_factory=dict)
    lanes: Mapping[str, Snapshot] = field(default_factory=dict)
    lane_batches: Mapping[str, Sequence[BatchRow]] = field(default_factory=dict)
    links: Links = NO_LINKS
    memory: ServerMemory | None = None

    @property
    def batches(self) -> list[BatchRow]:
        """The newest batches of all priorities, the newest first."""
        own = self.tick.batches if self.tick is not None else ()
        rows = chain(own, *self.lane_batches.values())
        return sorted(rows, key=lambda row: row.created_ms, reverse=True)

    def priority_of(self, batch_id: str) -> str:
        """Return of which other priority a batch is; '' for one of this one."""
        return _priority_of(batch_id, self.lane_batches)

    @property
    def other_lanes(self) -> dict[str, Snapshot]:
        """The figures of the other priorities."""
        own = None if self.tick is None else self.tick.snapshot
        return {name: shot for name, shot in self.lanes.items() if shot is not own}

    def beside(self, consumer: str) -> dict[str, int]:
        """Return how many tasks of other priorities a worker runs, as far as is known."""
        found = {}
        for priority, shot in self.other_lanes.items():
            rows = (row for row in shot.workers if row.consumer == consumer)
            if count := sum(map(running_of, rows)):
                found[priority] = count
        return found


def _priority_of(batch_id: str, batches: Mapping[str, Sequence[BatchRow]]) -> str:
    """Return among which priority's batches one is; '' where it is in none."""
    found = (name for name, rows in batches.items() if any(row.id == batch_id for row in rows))
    return next(found, "")


class Feed:
    """What is known of one queue: its last tick, its newest attempts and the last minute.

    ``tick`` is None before the first answer; ``recent`` is the newest attempts, newest first;
    ``trail`` the last minute, oldest first; ``trouble`` why the last look failed, or empty.
    ``changed_at`` is when a figure last changed and ``failing_since`` when the looks began to fail,
    both by this process's monotonic clock. ``recent`` attempts are kept; a look within ``fresh_s``
    of the last asks nothing; ``limits`` are those of TaskMonitor.tick. With ``deep`` it reads, too,
    what the sections of a dashboard need: the past at the first look, and the newest dead letters
    when there are others, every LETTERS_EVERY_S at most.
    """

    def __init__(
        self,
        monitor: TaskMonitor,
        *,
        recent: int = EVENTS_SHOWN,
        fresh_s: float = FRESH_S,
        deep: bool = False,
        **limits: int,
    ) -> None:
        self.monitor = monitor
        self.tick: Tick | None = None
        self.recent: deque[Event] = deque(maxlen=recent)
        self.trail: deque[Point] = deque()
        self.trouble = ""
        self.changed_at = 0.0
        self.failing_since: float | None = None
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.letters: tuple[DeadLetter, ...] = ()
        self.letters_read = LETTERS_READ
        """How many dead letters are grouped; raise it for more."""
        self._deep = deep
        self._gaps = False
        self._lettered: tuple[Any, ...] = ()
        self._lettered_at = 0.0
        self._lane_ticks: dict[str, Tick] = {}  # replaced as a whole: other threads read it
        self._lane_monitors: dict[str, TaskMonitor] = {}
        self._lanes_at = -LANES_EVERY_S
        self._trails: dict[str, deque[tuple[int, int]]] = {}
        self._previews: dict[str, str] = {}
        self._layers: dict[str, int | None] = {}
        self._limits = {"events": EVENTS_A_TICK, "dead": LETTERS_SHOWN, **limits}
        self._server = ServerLook(monitor.broker)
        self._fresh_s = fresh_s
        self._asked_at = -1.0
        self._lock = threading.Lock()

    def refresh(self, fresh_s: float | None = None) -> None:
        """Ask for what is new, unless it was just asked for (within ``fresh_s`` seconds, where that
        is given); that there is no answer is kept."""
        with self._lock:
            if time.monotonic() - self._asked_at < (self._fresh_s if fresh_s is None else fresh_s):
                return
            try:
                self._ask()
            except RedistqError as error:
                if self.failing_since is None:
                    self.failing_since = time.monotonic()
                    log.info("dashboard of %s: %s", self.monitor.queue, error)
                self.trouble = str(error)
            self._asked_at = time.monotonic()

    def ask(self) -> None:
        """Ask for what is new. Raises RedistqError without an answer."""
        with self._lock:
            self._ask()
            self._asked_at = time.monotonic()

    def _ask(self) -> None:
        before = self.tick
        tick = self.monitor.tick(before.cursor if before else None, **self._limits)
        self.tick = tick
        self.failing_since = None
        self.trouble = ""
        if before is not None and tick.now_ms < before.now_ms - OTHER_CLOCK_MS:
            self.trail.clear()  # another server answers now, with a clock of its own
            self._trails.clear()
            self.events.clear()
        self.recent.extendleft(tick.events)
        self._keep(tick, first=before is None)
        settled = tick.count("succeeded") + tick.count("failed")
        self.trail.append(Point(tick.now_ms, tick.snapshot.ready, settled))
        while self.trail[0].now_ms < tick.now_ms - TRAIL_KEPT_MS:
            self.trail.popleft()
        if before is None or _figures(before) != _figures(tick):
            self.changed_at = time.monotonic()

    def _keep(self, tick: Tick, *, first: bool) -> None:
        """Keep what the sections of a dashboard show."""
        self.events.extendleft(tick.events)
        if first and tick.missed and self._deep:
            self.events.clear()
            self.events.extend(self.monitor.records.events(EVENTS_KEPT))
        elif tick.missed:
            self._gaps = not first
        self._server.look()
        self._keep_batches(tick)
        for task in tick.running:
            self._previews[task.id] = task.preview
        while len(self._previews) > PREVIEWS_KEPT:
            self._previews.pop(next(iter(self._previews)))
        if self._deep:
            self._keep_letters(tick)
            self._keep_lanes()

    def _keep_batches(self, tick: Tick) -> None:
        known = {row.id for row in chain(tick.batches, *self._lane_batches().values())}
        for gone in self._trails.keys() - known:
            del self._trails[gone]
            self._layers.pop(gone, None)
        self._note_batches(tick, self.monitor)

    def _note_batches(self, tick: Tick, monitor: TaskMonitor) -> None:
        for row in tick.batches:
            trail = self._trails.setdefault(row.id, deque())
            if trail and row.settled < trail[-1][1]:
                trail.clear()  # some were sent again
            trail.append((tick.now_ms, row.settled))
            if self._deep and row.id not in self._layers:
                self._layers[row.id] = monitor.records.layers(row.id)
            while trail[0][0] < tick.now_ms - RATE_OVER_MS and len(trail) > 2:
                trail.popleft()

    def _keep_letters(self, tick: Tick) -> None:
        """Read the newest dead letters where they are others than at the last look."""
        newest = [(letter.id, letter.died_ms) for letter in tick.dead]
        state = (tick.snapshot.dead, self.letters_read, *newest)
        now = time.monotonic()
        if state == self._lettered or (
            now - self._lettered_at < LETTERS_EVERY_S and self._lettered[1:2] == state[1:2]
        ):
            return
        self.letters = self._letters_now(tick.snapshot.dead)
        self._lettered = state
        self._lettered_at = now

    def _letters_now(self, dead: int) -> tuple[DeadLetter, ...]:
        """Return the newest dead letters, of which there are so many; where others only came, these
        alone are read."""
        if not dead:
            return ()
        known = self.letters
        before, wanted, *_ = self._lettered or (0, 0)
        new = dead - before
        if known and wanted == self.letters_read and 0 < new < self.letters_read:
            read = self.monitor.records.dead(new + 1, full=False)
            places = [(letter.id, letter.died_ms) for letter in read]
            newest = (known[0].id, known[0].died_ms)
            # With one that went in between, the newest known is further down than this was read.
            if newest in places:
                return (*read[: places.index(newest)], *known)[: self.letters_read]
        return tuple(self.monitor.records.dead(self.letters_read, full=False))

    def _keep_lanes(self) -> None:
        """Read the figures, workers and batches of the other priorities that are used."""
        if time.monotonic() - self._lanes_at < LANES_EVERY_S:
            return
        self._lanes_at = time.monotonic()
        own = self.monitor.commands
        others = {name: each for name, each in lanes_of(own).items() if each is not own}
        new = {name: each for name, each in others.items() if name not in self._lane_monitors}
        if new:
            replies = self.monitor.broker.call_many([each.snapshot(1) for each in new.values()])
            for (name, each), reply in zip(new.items(), list(replies), strict=True):
                if not is_unused(own.read_snapshot(reply)):
                    self._lane_monitors[name] = self._monitor_at(each.keys.stream)
        ticks: dict[str, Tick] = {}
        for name, monitor in self._lane_monitors.items():
            tick = monitor.tick(None, **LANE_LIMITS)
            if not is_unused(tick.snapshot):
                ticks[name] = tick
                self._note_batches(tick, monitor)
        self._lane_ticks = ticks

    def _monitor_at(self, stream: str) -> TaskMonitor:
        own = self.monitor
        monitor = TaskMonitor(
            address=own.producer.address,
            stream=stream,
            group=own.commands.group,
            timeout=CALL_TIMEOUT_S,
        )
        weakref.finalize(self, monitor.close)
        return monitor

    def _lane_batches(self) -> dict[str, Sequence[BatchRow]]:
        return {name: tick.batches for name, tick in self._lane_ticks.items()}

    def monitor_of(self, batch_id: str) -> TaskMonitor:
        """Return the monitor of the priority that a batch is of."""
        return self._lane_monitors.get(_priority_of(batch_id, self._lane_batches()), self.monitor)

    def _lanes_now(self) -> dict[str, Snapshot]:
        """Return the figures by priority, the most urgent first; nothing where all is of one."""
        if self.tick is None or not self._lane_ticks:
            return {}
        own = self.monitor.commands
        mine = next(name for name, each in lanes_of(own).items() if each is own)
        others = {name: tick.snapshot for name, tick in self._lane_ticks.items()}
        found = {**others, mine: self.tick.snapshot}
        return {name: found[name] for name in PRIORITIES if name in found}

    def _batch_rates(self) -> dict[str, float]:
        return {
            id: (trail[-1][1] - trail[0][1]) / max(trail[-1][0] - trail[0][0], 1) * 1000
            for id, trail in self._trails.items()
            if len(trail) > 1
        }

    def rest_s(self, refresh: float) -> float:
        """Return in how many seconds to look again, where ``refresh`` is the shortest: less often
        while nothing changes, or nothing answers."""
        now = time.monotonic()
        if self.failing_since is not None:
            return min(5.0, 1.0 + (now - self.failing_since) / 5)
        return refresh if now - self.changed_at < 5 else max(1.0, refresh)

    def forget_age(self) -> None:
        """Let the next refresh ask, however new the last answer is: something was just changed."""
        self._asked_at = -1.0
        self._lettered_at = 0.0
        self.changed_at = time.monotonic()

    def view(self, **more: Any) -> View:
        """Return all of it as one picture."""
        problem = ""
        if self.failing_since is not None:
            seconds = time.monotonic() - self.failing_since
            old = " What you see is from before." if self.tick else ""
            problem = (
                f"No answer from {self.monitor.url} for {seconds:.0f} s; asking again.{old}"
                if "no answer" in self.trouble
                else f"{self.trouble}.{old}"
            )
        return View(
            queue=self.monitor.queue,
            url=self.monitor.url,
            tick=self.tick,
            recent=tuple(islice(self.recent, EVENTS_SHOWN)),
            trail=tuple(self.trail),
            problem=problem,
            events=tuple(self.events),
            gaps=self._gaps,
            letters=self.letters or (self.tick.dead if self.tick else ()),
            rates=self._batch_rates(),
            previews=dict(self._previews),
            layers=dict(self._layers),
            lanes=self._lanes_now(),
            lane_batches=self._lane_batches(),
            memory=self._server.memory,
            **more,
        )


def _figures(tick: Tick) -> tuple[Any, ...]:
    """Return the figures whose change counts as one."""
    shot = tick.snapshot
    return (
        shot.ready,
        shot.pending,
        shot.delayed,
        shot.waiting,
        shot.dead,
        shot.paused,
        shot.counters,
        tuple(worker.consumer for worker in shot.workers),
    )


_feeds: weakref.WeakValueDictionary[tuple[str, str, str, str], Feed] = weakref.WeakValueDictionary()
_feeds_lock = threading.Lock()


def feed_of(address: Address, queue: str, group: str, delayed_key: str) -> Feed:
    """Return the feed of a queue: the one that other dashboards use, or a new one."""
    key = (address.url, queue, group, delayed_key)
    with _feeds_lock:
        feed = _feeds.get(key)
        if feed is None:
            monitor = TaskMonitor(
                address=address,
                stream=queue,
                group=group,
                delayed_key=delayed_key,
                timeout=CALL_TIMEOUT_S,
            )
            feed = _feeds[key] = Feed(monitor, deep=True)
            weakref.finalize(feed, monitor.close)
        return feed
