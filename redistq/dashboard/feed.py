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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..connection.address import Address
from ..display.html import TRAIL_MS
from ..display.text import (
    DELAYED,
    FAILED,
    LINE_CHARS,
    NAME_CHARS,
    QUEUED,
    WARNING,
    clean,
    clock,
    duration,
    number,
    one_line,
    plural,
)
from ..errors import RedistqError
from ..logger import logger
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import Event
from ..monitor.tick import LATE_MS, Tick, condition
from ..protocol.commands import WorkerRow
from ..protocol.limits import DOOR, LimitState
from ..protocol.progress import Progress

log = logger("redistq.dashboard")

EVENTS_SHOWN = 8
LETTERS_SHOWN = 5
FRESH_S = 0.25
"""A picture younger than this is shared instead of asked for again."""
CALL_TIMEOUT_S = 2.0
LEAST_LEFT_MS = 500
"""The time that is left is a guess: with less nothing is said."""
TRAIL_KEPT_MS = TRAIL_MS + 5_000
OTHER_CLOCK_MS = 1000
"""Where time went back by more than this, another server answers."""
CALL_PREFIX = "redistq.call:"
"""How the tasks are named that a Client makes of function calls."""


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
    ``notice`` what a button did, and ``ended`` why the picture no longer moves.
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
            feed = _feeds[key] = Feed(monitor)
            weakref.finalize(feed, monitor.close)
        return feed


# -- what is said of a view ----------------------------------------------------------------------


def title(name: str) -> str:
    """Return a task's name to show; that of a function call reads as one."""
    if name.startswith(CALL_PREFIX):
        return clean(name[len(CALL_PREFIX) :], NAME_CHARS - 2) + "()"
    return clean(name) or "(no name)"


def progress_said(progress: Progress, now_ms: int) -> str:
    """Return how far a task is, in words."""
    said = number(progress.done)
    if progress.total is not None:
        said += f" of {number(progress.total)} ({progress.fraction or 0.0:.0%})"
    if progress.eta_s is not None and progress.done < (progress.total or 0):
        left_ms = progress.eta_s * 1000 - (now_ms - progress.at * 1000)
        if left_ms >= LEAST_LEFT_MS:
            said += f", {duration(left_ms)} left"
    return f"{said} · {clean(progress.text, NAME_CHARS)}" if progress.text else said


def rates(trail: Sequence[Point], span_ms: int = 2_000) -> list[tuple[int, float]]:
    """Return tasks settled per second at each point but the first, over ``span_ms`` before it."""
    found = []
    start = 0
    for end in range(1, len(trail)):
        while start < end - 1 and trail[end].now_ms - trail[start].now_ms > span_ms:
            start += 1
        seconds = max(trail[end].now_ms - trail[start].now_ms, 1) / 1000
        done = max(0, trail[end].settled - trail[start].settled)
        found.append((trail[end].now_ms, done / seconds))
    return found


def rate_now(trail: Sequence[Point]) -> float:
    """Return tasks settled per second over the last five seconds."""
    found = rates(trail, 5_000)
    return found[-1][1] if found else 0.0


def alerts(view: View) -> list[tuple[str, str]]:
    """Return what has to be seen at once: pairs of colour and sentence, the worst first."""
    found = []
    if view.problem:
        found.append((FAILED.color, f"✖ {clean(view.problem, 300)}"))
    tick = view.tick
    if tick is None:
        if not view.problem:
            found.append((QUEUED.color, "… Waiting for the server's first answer."))
        return found
    shot = tick.snapshot
    now = condition(shot)
    queue = clean(view.queue)
    start = f"TaskWorker(stream={queue!r}, …).start() or redistq-worker YOUR_MODULE --queue {queue}"
    if now.unserved and now.work:
        verb = "waits" if now.work == 1 else "wait"
        found.append(
            (
                WARNING,
                f"⚠ {plural(now.work, 'task')} {verb} and no worker is listening on queue "
                f"{queue!r}. Start one: {start}",
            )
        )
    elif now.unserved and now.delayed:
        found.append(
            (
                WARNING,
                f"⚠ {plural(shot.delayed, 'task')} delayed and no worker to move them when they "
                f"are due. Start one: {start}",
            )
        )
    elif now.unserved:
        held = plural(shot.waiting, "task")
        found.append((WARNING, f"⚠ {held} may not run yet, and no worker. Start one: {start}"))
    for worker in now.silent[:3]:
        found.append(
            (
                WARNING,
                f"⚠ Worker {clean(worker.consumer)} is silent: its heartbeat is "
                f"{duration(beat_age(worker, tick))} old. "
                f"{plural(worker.pending, 'task')} in its hands will be recovered.",
            )
        )
    if now.paused:
        ends = f" {plural(shot.pending, 'task')} in hand may still finish." if shot.pending else ""
        found.append(
            (DELAYED.color, f"‖ Paused: no worker starts another task until you resume.{ends}")
        )
    if now.late_ms:
        late = duration(now.late_ms)
        what = "timer" if shot.next_due_ms is None else "delayed task"
        found.append((WARNING, f"⚠ A {what} is {late} late: no scheduler moves it."))
    if tick.schedules and not now.late_ms and not now.paused:
        first = tick.schedules[0]
        late_ms = tick.now_ms - first.schedule.next_ms
        if late_ms > LATE_MS and not first.schedule.paused and not first.schedule.fault:
            words = f"⚠ Schedule {clean(first.schedule.name)} is {duration(late_ms)} late: no "
            found.append((WARNING, f"{words}scheduler fires it. Start a worker: {start}"))
    if not found and now.empty:
        ready = plural(len(now.living), "worker")
        found.append((QUEUED.color, f"✔ Nothing waits and nothing runs. {ready} ready."))
    return found


def beat_age(worker: WorkerRow, tick: Tick) -> float:
    """Return milliseconds since a worker's last heartbeat."""
    lease = tick.snapshot.lease_ms or 10_000
    return tick.now_ms - (worker.deadline_ms - lease)


def why_waiting(tick: Tick) -> str:
    """Return for what most of the waiting tasks wait, in a few words; '' for none."""
    words = {
        "parents": "for parents",
        "limit": "for limits",
        "rate": "for rates",
        "order": "for their order",
        "share": "for their share",
        "paused": "under paused keys",
    }
    most = sorted(tick.reasons.items(), key=lambda item: -item[1])
    said = [f"{count:,} {words.get(reason, clean(reason, 20))}" for reason, count in most[:3]]
    looked = sum(tick.reasons.values())
    more = ", …" if len(most) > 3 else ""
    of = f" (of the {looked:,} oldest)" if looked < tick.snapshot.waiting else ""
    return ", ".join(said) + more + of if said else ""


def limit_now(limit: LimitState, now_ms: int) -> str:
    """Return how a limit key stands at this moment, in a few words."""
    if limit.paused_ms is not None:
        return f"‖ paused for {duration(now_ms - limit.paused_ms)}"
    if limit.next_token_ms is not None and limit.next_token_ms > now_ms:
        return f"◷ next token in {duration(limit.next_token_ms - now_ms)}"
    if limit.key.endswith("*"):
        return "for each of its keys"
    if limit.at_most is not None and limit.in_use >= limit.at_most:
        return "● full"
    if not limit.waiting:
        return "○ has room"
    return "◌ groups in turn" if limit.key == DOOR else "◌ one after the other"


def rule_said(limit: LimitState) -> str:
    """Return a limit's rule to read."""
    parts = [] if limit.at_most is None else [f"at most {limit.at_most:,}"]
    if limit.rate is not None:
        parts.append(limit.said_rate)
    if limit.excess != "wait":
        parts.append(limit.excess.replace("_", " "))
    return ", ".join(parts) or "–"


def line(view: View) -> str:
    """Return the queue in one line."""
    tick = view.tick
    if tick is None:
        return f"{clean(view.queue)}: {view.problem or 'no answer yet'}"
    shot = tick.snapshot
    return (
        f"{clean(view.queue)}: {shot.ready:,} queued, {tick.running_count:,} running, "
        f"{shot.delayed:,} delayed, {shot.waiting:,} waiting, "
        f"{tick.count('succeeded'):,} succeeded, {tick.count('failed'):,} failed, "
        f"{plural(len(tick.workers), 'worker')}"
    )


def plain(view: View) -> str:
    """Return the dashboard as a few lines of plain text."""
    lines = [line(view)]
    lines += [f"  {sentence}" for _, sentence in alerts(view)]
    if view.tick is not None:
        for dead in view.tick.dead[:LETTERS_SHOWN]:
            what = clean(one_line(f"{dead.error_type}: {dead.error}"), LINE_CHARS)
            lines.append(f"  {clock(dead.died_ms)} {title(dead.name)} failed: {what}")
    return "\n".join(lines)
