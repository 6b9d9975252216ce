"""What a dashboard says: a View of a queue, and the words, numbers and warnings drawn from it.

Called by the dashboard's HTML, and wherever else a queue is described. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..display.html import TRAIL_MS as TRAIL_MS
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
    one_line,
    plural,
)
from ..monitor.health import condition
from ..monitor.rows import Event
from ..monitor.tick import Tick
from ..protocol.commands import WorkerRow

EVENTS_SHOWN = 8
LETTERS_SHOWN = 5


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


CALL_PREFIX = "redistq.call:"
"""How the tasks are named that a Client makes of function calls."""


def title(name: str) -> str:
    """A task's name to show; that of a function call reads as one."""
    if name.startswith(CALL_PREFIX):
        return clean(name[len(CALL_PREFIX) :], NAME_CHARS - 2) + "()"
    return clean(name) or "(no name)"


# -- rates ---------------------------------------------------------------------------------------


def rates(trail: Sequence[Point], span_ms: int = 2_000) -> list[tuple[int, float]]:
    """Tasks settled per second at each point but the first, over ``span_ms`` before it."""
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
    """Tasks settled per second over the last five seconds."""
    found = rates(trail, 5_000)
    return found[-1][1] if found else 0.0


# -- states that need a word ---------------------------------------------------------------------


def alerts(view: View) -> list[tuple[str, str]]:
    """What the reader has to know at once: pairs of colour and sentence, worst first."""
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
    elif now.unserved:
        found.append(
            (
                WARNING,
                f"⚠ {plural(shot.delayed, 'task')} delayed and no worker to move them when they "
                f"are due. Start one: {start}",
            )
        )
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
        found.append((WARNING, f"⚠ A delayed task is {late} late: no scheduler moves it."))
    if not found and now.empty:
        ready = plural(len(now.living), "worker")
        found.append((QUEUED.color, f"✔ Nothing waits and nothing runs. {ready} ready."))
    return found


def beat_age(worker: WorkerRow, tick: Tick) -> float:
    """Milliseconds since a worker's last heartbeat."""
    lease = tick.snapshot.lease_ms or 10_000
    return tick.now_ms - (worker.deadline_ms - lease)


# -- where there is no HTML ----------------------------------------------------------------------


def line(view: View) -> str:
    """The queue in one line."""
    tick = view.tick
    if tick is None:
        return f"{clean(view.queue)}: {view.problem or 'no answer yet'}"
    shot = tick.snapshot
    return (
        f"{clean(view.queue)}: {shot.ready:,} waiting, {tick.running_count:,} running, "
        f"{shot.delayed:,} delayed, {tick.count('succeeded'):,} succeeded, "
        f"{tick.count('failed'):,} failed, {plural(len(tick.workers), 'worker')}"
    )


def plain(view: View) -> str:
    """The dashboard as a few lines of plain text."""
    lines = [line(view)]
    lines += [f"  {sentence}" for _, sentence in alerts(view)]
    if view.tick is not None:
        for dead in view.tick.dead[:LETTERS_SHOWN]:
            what = clean(one_line(f"{dead.error_type}: {dead.error}"), LINE_CHARS)
            lines.append(f"  {clock(dead.died_ms)} {title(dead.name)} failed: {what}")
    return "\n".join(lines)
