"""The refresher: the one thread that refreshes all dashboards of this process, and what they share.

Used by the dashboard only. The thread exists while there is a panel to refresh and no longer; it
is a daemon and never holds a process back. Dashboards of the same queue share one call a tick.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from itertools import islice
from typing import Any, Protocol

from ..connection.address import Address
from ..errors import RedistqError
from ..logger import logger
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import Event
from ..monitor.tick import Tick
from .view import EVENTS_SHOWN, LETTERS_SHOWN, TRAIL_MS, Point, View

log = logger("redistq.dashboard")

THREAD_NAME = "redistq-ui"
FRESH_S = 0.25
"""A picture younger than this is shared instead of asked for again."""
CALL_TIMEOUT_S = 2.0


class Feed:
    """What is known of one queue: its last tick, its newest attempts and the last minute.

    Shared by all dashboards of the queue, refreshed by the refresher; every refresh is one call.
    """

    def __init__(self, monitor: TaskMonitor) -> None:
        self.monitor = monitor
        self.tick: Tick | None = None
        self.changed_at = 0.0
        """When a figure last changed, by this process's monotonic clock."""
        self.failing_since: float | None = None
        self._recent: deque[Event] = deque(maxlen=EVENTS_SHOWN)
        self._trail: deque[Point] = deque()
        self._asked_at = -1.0
        self._trouble = ""
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Ask for what is new, unless somebody just did; a server that is away is remembered."""
        with self._lock:
            if time.monotonic() - self._asked_at < FRESH_S:
                return
            try:
                tick = self.monitor.tick(
                    self.tick.cursor if self.tick else None, events=50, dead=LETTERS_SHOWN
                )
            except RedistqError as error:
                if self.failing_since is None:
                    self.failing_since = time.monotonic()
                    log.info("dashboard of %s: %s", self.monitor.queue, error)
                self._trouble = str(error)
            else:
                self._take(tick)
            self._asked_at = time.monotonic()

    def _take(self, tick: Tick) -> None:
        before, self.tick, self.failing_since = self.tick, tick, None
        if before is not None and tick.now_ms < before.now_ms - 1000:
            self._trail.clear()  # another server answers now, with a clock of its own
        self._recent.extendleft(tick.events)
        shot = tick.snapshot
        settled = tick.count("succeeded") + tick.count("failed")
        self._trail.append(Point(tick.now_ms, shot.ready, settled))
        while self._trail and self._trail[0].now_ms < tick.now_ms - TRAIL_MS - 5_000:
            self._trail.popleft()
        if before is None or _moves(before) != _moves(tick):
            self.changed_at = time.monotonic()

    def forget_age(self) -> None:
        """The next refresh asks, however new the last answer is: something was just changed."""
        self._asked_at = -1.0
        self.changed_at = time.monotonic()

    def view(self, **more: Any) -> View:
        """All of it as one picture."""
        problem = ""
        if self.failing_since is not None:
            seconds = time.monotonic() - self.failing_since
            old = " What you see is from before." if self.tick else ""
            problem = (
                f"No answer from {self.monitor.url} for {seconds:.0f} s; asking again.{old}"
                if "no answer" in self._trouble
                else f"{self._trouble}.{old}"
            )
        return View(
            queue=self.monitor.queue,
            url=self.monitor.url,
            tick=self.tick,
            recent=tuple(islice(self._recent, EVENTS_SHOWN)),
            trail=tuple(self._trail),
            problem=problem,
            **more,
        )


def _moves(tick: Tick) -> tuple[Any, ...]:
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
    """The feed of a queue: the one that other dashboards use, or a new one."""
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


class Panel(Protocol):
    """What the refresher drives."""

    def step(self) -> float | None:
        """Do what is due; answers in how many seconds to come back, or None: never again."""

    def fault(self, error: Exception) -> None:
        """A step failed in a way that nobody foresaw; show it."""


class Refresher:
    """Steps panels, each when it is due, in one thread that ends with the last panel."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all panels and the thread: in a forked child neither exists."""
        self._panels: dict[Panel, float] = {}
        self._lock = threading.Lock()
        self._stepping = threading.RLock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, panel: Panel) -> None:
        """Step this panel from now on; harmless when it is stepped already."""
        with self._lock:
            self._panels.setdefault(panel, 0.0)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, panel: Panel) -> None:
        """Do not step this panel again; when this returns it is not being stepped either, and a
        thread that has no panel left has ended."""
        with self._stepping, self._lock:
            self._panels.pop(panel, None)
            thread, empty = self._thread, not self._panels
        self._wake.set()
        if empty and thread is not None and thread is not threading.current_thread():
            thread.join(10)

    def hurry(self, panel: Panel) -> None:
        """Step this panel at once."""
        with self._lock:
            if panel in self._panels:
                self._panels[panel] = 0.0
        self._wake.set()

    def panels(self) -> list[Panel]:
        """Those that are stepped."""
        with self._lock:
            return list(self._panels)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            with self._lock:
                if not self._panels:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [panel for panel, at in self._panels.items() if at <= now]
            for panel in due:
                self._step(panel)
            with self._lock:
                next_at = min(self._panels.values(), default=0.0)
            self._wake.wait(max(0.0, next_at - time.monotonic()))

    def _step(self, panel: Panel) -> None:
        with self._stepping:
            with self._lock:
                if panel not in self._panels:
                    return
                self._panels[panel] = float("inf")
            seconds: float | None = 1.0
            try:
                seconds = panel.step()
            except Exception as error:  # one faulty panel must not end the others
                log.exception("a dashboard could not be refreshed")
                panel.fault(error)
            with self._lock:
                if seconds is None:
                    self._panels.pop(panel, None)
                elif panel in self._panels:
                    # Unless somebody was in a hurry while it was stepped.
                    due = time.monotonic() + seconds
                    self._panels[panel] = min(self._panels[panel], due)


refresher = Refresher()


def _end_all() -> None:
    for panel in refresher.panels():
        refresher.remove(panel)


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=refresher.reset)
