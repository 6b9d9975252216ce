"""What is said of a View, in words: alerts, rates, names, lines of text; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from ..display.batches import more_said
from ..display.html import TRAIL_MS
from ..display.text import (
    CALL_PREFIX as CALL_PREFIX,
)
from ..display.text import (
    DELAYED,
    FAILED,
    NAME_CHARS,
    QUEUED,
    WARNING,
    clean,
    duration,
    number,
    plural,
)
from ..display.text import title as title
from ..monitor.rows import BatchRow
from ..monitor.tick import LATE_MS, Tick, condition
from ..protocol.commands import WorkerRow
from ..protocol.limits import DOOR, LimitState
from ..protocol.progress import Progress
from .feed import Point, View

LEAST_LEFT_MS = 500
"""The time that is left is a guess: with less nothing is said."""
PICKLED = "(a pickled call)"


def payload_said(name: str, preview: str) -> str:
    """Return a payload to show; nothing for a function call's, which is pickled."""
    return "" if name.startswith(CALL_PREFIX) or preview == "null" else preview


def batch_said(row: BatchRow, rate: float, now_ms: float) -> str:
    """Return a batch's failures, rate and times; ``rate`` is of tasks that end a second."""
    return more_said(counts_of(row), rate, (row.finished_ms or now_ms) - row.created_ms)


def counts_of(row: BatchRow) -> dict[str, int]:
    """Return the counts of a batch's tasks by state, and their total."""
    states = ("total", "succeeded", "failed", "cancelled", "expired", "retried")
    return {state: getattr(row, state) for state in states}


def place_of(task_id: str) -> tuple[str, str] | None:
    """Return the batch of a task and its position there, as its id says them; None of others."""
    batch, _, index = task_id.rpartition(":")
    return (batch, index) if batch and index.isdigit() else None


def item_said(task_id: str, preview: str = "") -> str:
    """Return which task it is, in a few characters: what it was given, else the item of a batch,
    else the end of its id."""
    if preview and preview not in ("null", PICKLED):
        return clean(preview, 40)
    if place := place_of(task_id):
        batch, index = place
        return f"{clean(batch, 24)} #{index}"
    return clean(task_id) if len(task_id) <= 14 else f"…{clean(task_id[-10:])}"


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


def rates_before(view: View) -> list[tuple[int, float]]:
    """Return tasks settled per second, second by second, before the first point of the trail: out
    of the history, as far as it was read."""
    if not view.trail or not view.events or view.gaps:
        return []
    until = view.trail[0].now_ms
    first = max(view.events[-1].finished_ms, until - TRAIL_MS)
    found = dict.fromkeys(range(first // 1000 * 1000 + 1000, until, 1000), 0)
    for event in view.events:
        at = event.finished_ms // 1000 * 1000
        if at in found and event.state in ("succeeded", "failed"):
            found[at] += 1
    return [(at + 500, float(count)) for at, count in found.items()][:-1]


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
    if view.memory is not None and view.memory.nearly_full:
        found.append(
            (
                WARNING,
                f"⚠ The server's memory is nearly full: {view.memory.said}. When it is, no task "
                "can be added: let workers drain the queue, or raise maxmemory.",
            )
        )
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
