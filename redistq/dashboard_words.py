"""What a dashboard says: a View of a queue, and the words, numbers and warnings drawn from it.

Called by the dashboard's HTML, and wherever else a queue is described. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .calls import WorkerRow
from .palette import DELAYED, FAILED, QUEUED, WARNING
from .tick import Event, Tick

EVENTS_SHOWN = 8
LETTERS_SHOWN = 5
TRAIL_MS = 60_000
"""How far back the sparklines reach."""
NAME_CHARS, LINE_CHARS = 60, 160

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Characters that hide or turn other text."""


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


def clean(text: str, limit: int = NAME_CHARS) -> str:
    """Text to show: characters that hide or turn other text are made visible, and it is cut."""
    text = HIDDEN.sub("\ufffd", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


CALL_PREFIX = "redistq.call:"
"""How the tasks are named that a Client makes of function calls."""


def title(name: str) -> str:
    """A task's name to show; that of a function call reads as one."""
    if name.startswith(CALL_PREFIX):
        return clean(name[len(CALL_PREFIX) :], NAME_CHARS - 2) + "()"
    return clean(name) or "(no name)"


# -- numbers and times ---------------------------------------------------------------------------


def duration(ms: float | None) -> str:
    """A time span to read: 31 ms, 1.2 s, 45 s, 3 min 5 s, 2 h 10 min; '–' for None."""
    if ms is None:
        return "–"
    ms = max(0.0, ms)
    if ms < 999.5:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def clock(ms: float) -> str:
    """The time of day, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S")


def plural(count: int, word: str) -> str:
    """'1 task', '2,000 tasks'."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def rates(trail: Sequence[Point], span_ms: int = 2_000) -> list[tuple[int, float]]:
    """Tasks settled per second at each point but the first, over ``span_ms`` before it."""
    found, start = [], 0
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


def per_second(rate: float) -> str:
    """A rate to read."""
    return f"{rate:,.0f}/s" if rate >= 9.95 or rate == 0 else f"{rate:.1f}/s"


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
    shot, queue = tick.snapshot, clean(view.queue)
    work = shot.ready + shot.pending
    start = f"TaskWorker(stream={queue!r}, …).start() or redistq-worker YOUR_MODULE --queue {queue}"
    if not tick.workers and work:
        verb = "waits" if work == 1 else "wait"
        found.append(
            (
                WARNING,
                f"⚠ {plural(work, 'task')} {verb} and no worker is listening on queue {queue!r}. "
                f"Start one: {start}",
            )
        )
    elif not tick.workers and shot.delayed:
        found.append(
            (
                WARNING,
                f"⚠ {plural(shot.delayed, 'task')} delayed and no worker to move them when they "
                f"are due. Start one: {start}",
            )
        )
    for worker in tick.silent[:3]:
        found.append(
            (
                WARNING,
                f"⚠ Worker {clean(worker.consumer)} is silent: its heartbeat is "
                f"{duration(beat_age(worker, tick))} old. "
                f"{plural(worker.pending, 'task')} in its hands will be recovered.",
            )
        )
    if shot.paused:
        ends = f" {plural(shot.pending, 'task')} in hand may still finish." if shot.pending else ""
        found.append(
            (DELAYED.color, f"‖ Paused: no worker starts another task until you resume.{ends}")
        )
    late = 0 if shot.next_due_ms is None else tick.now_ms - shot.next_due_ms
    if late > 10_000 and tick.workers and not shot.paused:
        found.append(
            (WARNING, f"⚠ A delayed task is {duration(late)} late: no scheduler moves it.")
        )
    if not found and not work and not shot.delayed:
        ready = plural(len(tick.workers), "worker")
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


def one_line(text: str) -> str:
    """Text with its line breaks taken out."""
    return " ".join(text.split())
