"""A feed: what is known of one queue, kept from one look to the next. It knows no thread.

Used by the dashboards, which share one feed a queue, and by the terminal's screen. A feed asks the
server when it is told to, with one call.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from itertools import islice
from typing import Any

from ..connection.address import Address
from ..errors import RedistqError
from ..logger import logger
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import Event
from ..monitor.tick import Tick
from .view import EVENTS_SHOWN, LETTERS_SHOWN, TRAIL_MS, Point, View

log = logger("redistq.dashboard")

FRESH_S = 0.25
"""A picture younger than this is shared instead of asked for again."""
CALL_TIMEOUT_S = 2.0
TRAIL_KEPT_MS = TRAIL_MS + 5_000
OTHER_CLOCK_MS = 1000
"""Where time went back by more than this, another server answers."""


class Feed:
    """What is known of one queue: its last tick, its newest attempts and the last minute.

    ``tick`` is None before the first answer; ``recent`` is the newest attempts, newest first;
    ``trail`` the last minute, oldest first; ``trouble`` why the last look failed, or empty.
    ``changed_at`` is when a figure last changed and ``failing_since`` when the looks began to fail,
    both by this process's monotonic clock. ``recent`` attempts are kept; a look within ``fresh_s``
    of the last asks nothing; ``limits`` are those of TaskMonitor.tick.
    """

    def __init__(
        self,
        monitor: TaskMonitor,
        *,
        recent: int = EVENTS_SHOWN,
        fresh_s: float = FRESH_S,
        **limits: int,
    ) -> None:
        self.monitor = monitor
        self.tick: Tick | None = None
        self.recent: deque[Event] = deque(maxlen=recent)
        self.trail: deque[Point] = deque()
        self.trouble = ""
        self.changed_at = 0.0
        self.failing_since: float | None = None
        self._limits = {"events": 50, "dead": LETTERS_SHOWN, **limits}
        self._fresh_s = fresh_s
        self._asked_at = -1.0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Ask for what is new, unless it was just asked for; that there is no answer is kept."""
        with self._lock:
            if time.monotonic() - self._asked_at < self._fresh_s:
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
        self.recent.extendleft(tick.events)
        settled = tick.count("succeeded") + tick.count("failed")
        self.trail.append(Point(tick.now_ms, tick.snapshot.ready, settled))
        while self.trail[0].now_ms < tick.now_ms - TRAIL_KEPT_MS:
            self.trail.popleft()
        if before is None or _figures(before) != _figures(tick):
            self.changed_at = time.monotonic()

    def forget_age(self) -> None:
        """Let the next refresh ask, however new the last answer is: something was just changed."""
        self._asked_at = -1.0
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
            **more,
        )


def _figures(tick: Tick) -> tuple[Any, ...]:
    """What counts as a change."""
    shot = tick.snapshot
    return (
        shot.ready,
        shot.pending,
        shot.delayed,
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
            feed = _feeds[key] = Feed(monitor)
            weakref.finalize(feed, monitor.close)
        return feed
