"""The tables of a dashboard: workers, recent attempts, batches, limits; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..display.batches import line_of
from ..display.html import (
    MUTED,
    RULE,
    TABLE_PX,
    Html,
    bar,
    block,
    caption,
    join,
    mark,
    mono,
    state_mark,
    table,
    tag,
)
from ..display.text import (
    DELAYED,
    QUEUED,
    RUNNING,
    WAITING,
    WARNING,
    clean,
    clock,
    duration,
    plural,
)
from ..monitor.rows import BatchRow, Event, Running
from ..monitor.tick import (
    NEARLY_FULL,
    Tick,
    cpu_of,
    limit_of,
    memory_of,
    running_of,
    slots_of,
)
from ..protocol.commands import Snapshot, WorkerRow
from ..protocol.keys import lane_of
from ..protocol.limits import LimitState
from ..protocol.progress import Progress
from ..system.memory import in_words
from .feed import EVENTS_SHOWN, View
from .links import NO_LINKS, Links
from .words import (
    batch_said,
    beat_age,
    counts_of,
    item_said,
    limit_now,
    payload_said,
    progress_said,
    rule_said,
    title,
    why_waiting,
)

WORKERS_SHOWN = 12
BATCHES_SHOWN = 5
LIMITS_SHOWN = 8
LINE = f"border-bottom:{RULE};padding:3px 0;max-width:{TABLE_PX}px"


def workers(view: View) -> Html:
    """Return the workers and what each runs."""
    tick = view.tick
    if tick is None:
        return Html("")
    known = (*tick.silent, *tick.workers)
    rows = [_worker(worker, tick, view) for worker in known[:WORKERS_SHOWN]]
    total = max(tick.snapshot.workers_total, len(known))
    more = f" (the first {len(rows)} of {total:,})" if total > len(rows) else ""
    busy = sum(1 for row in tick.workers if running_of(row) or view.beside(row.consumer))
    heading = f"Workers: {total:,}, {busy:,} busy{more}"
    if not rows:
        return block([caption("Workers: none")])
    columns = ("Worker", "State", "Runs now", ">Busy", "~>Memory", "~>CPU")
    return block([table(heading, columns, rows)])


def _worker(worker: WorkerRow, tick: Tick, view: View) -> tuple[str, ...]:
    details = worker.details
    age = beat_age(worker, tick)
    slots = slots_of(worker)
    own = running_of(worker)
    beside = view.beside(worker.consumer)
    busy = min(own + sum(beside.values()), max(slots, own))  # those were counted a moment apart
    if worker.deadline_ms < tick.now_ms:
        state = mark(f"⚠ silent for {duration(age)}", WARNING)
    elif age > (tick.snapshot.lease_ms or 10_000) / 2:
        state = mark(f"⚠ last heard {duration(age)} ago", WARNING)
    elif busy:
        state = mark(f"{RUNNING.glyph} busy", RUNNING.color)
    elif tick.paused:
        state = mark("‖ paused", DELAYED.color)
    else:
        state = mark("○ idle", QUEUED.color)
    held = tick.running_on(worker.consumer)
    host = clean(details.get("host", "") or worker.consumer, 30)
    pid = f" · process {clean(details['pid'], 12)}" if details.get("pid") else ""
    return (
        join([host, tag("span", pid, style=f"white-space:nowrap;{MUTED}")]),
        state,
        _runs(held, (max(own, 1), worker.pending), tick.now_ms, view, beside),
        f"{busy:,} of {slots:,}",
        _memory(worker),
        "–" if (cpu := cpu_of(worker)) is None else f"{cpu:.0%}",
    )


def _memory(worker: WorkerRow) -> str:
    """Return a worker's memory, and its container's limit; marked where that is near."""
    rss = memory_of(worker)
    if rss is None:
        return "–"
    limit = limit_of(worker)
    if limit is None:
        return in_words(rss)
    said = f"{in_words(rss)} of {in_words(limit)}"
    return mark(f"⚠ {said}", WARNING) if rss > limit * NEARLY_FULL else said


def _runs(
    held: Sequence[Running],
    counts: tuple[int, int],
    now_ms: int,
    view: View,
    beside: Mapping[str, int],
) -> Html:
    busy, pending = counts
    # Those the heartbeat listed come first; what a worker merely holds starts within moments.
    shown = sorted(held, key=lambda task: (not task.started, task.since_ms))[: min(busy, 3)]
    lines = []
    for task in shown:
        again = f" · attempt {task.attempt}" if task.attempt > 1 else ""
        again += f" · recovered {task.recovered}×" if task.recovered else ""
        lines.append(
            tag(
                "div",
                view.links.task(task.id, title(task.name)),
                " ",
                mono(clean(payload_said(task.name, task.preview), 40)),
                tag(
                    "span",
                    f"  {duration(now_ms - task.since_ms)}{again}",
                    style=f"white-space:nowrap;{MUTED}",
                ),
            )
        )
        if task.progress is not None:
            lines.append(_progress(task.progress, now_ms))
    more = pending - len(shown)
    if more > 0:
        lines.append(tag("div", f"and {more:,} more in hand", style=MUTED))
    for priority, count in beside.items():
        lines.append(tag("div", f"{count:,} of priority {priority}", style=MUTED))
    return join(lines) if lines else tag("span", "–", style=MUTED)


def _progress(progress: Progress, now_ms: int) -> Html:
    said = progress_said(progress, now_ms)
    if progress.fraction is None:
        return tag("div", said, style=MUTED)
    return tag("div", bar([(progress.fraction, RUNNING.color)], said))


def recent(view: View) -> Html:
    """Return the newest attempts."""
    if not view.recent:
        return Html("")
    rows = [_attempt(event, view) for event in view.recent[:EVENTS_SHOWN]]
    columns = ("Ended (UTC)", "Task", "State", "~>Waited", ">Ran", "Error")
    return block([table(f"Recent attempts: the last {len(rows)}", columns, rows)])


def _attempt(event: Event, view: View) -> tuple[str, ...]:
    again = f" attempt {event.attempt}" if event.attempt > 1 else ""
    item = item_said(event.id, payload_said(event.name, view.previews.get(event.id, "")))
    return (
        clock(event.finished_ms),
        join(
            [
                view.links.task(event.id, title(event.name)),
                " ",
                tag("span", item, style=f"overflow-wrap:anywhere;{MUTED}"),
            ]
        ),
        join([state_mark(event.state), tag("span", again, style=f"white-space:nowrap;{MUTED}")]),
        duration(event.wait_ms),
        duration(event.run_ms),
        clean(event.note, 40),
    )


def batches(view: View) -> Html:
    """Return the newest batches and graphs with their progress."""
    heading = batches_heading(view)
    if view.tick is None or not heading:
        return Html("")
    rows = view.batches[:BATCHES_SHOWN]
    lines = (with_buttons(batch_line(row, view), batch_buttons(row, view.links)) for row in rows)
    return block([heading, *(tag("div", line, style=LINE) for line in lines)])


def batch_buttons(row: BatchRow, links: Links) -> Html:
    """Return what can be done with a batch now."""
    name = clean(row.name or row.id)
    found = []
    if row.failed:
        tip = f"Retry the failed of {name}"
        found.append(links.button(f"batch-retry {row.id}", "Retry failed", tip))
    if row.waiting:
        found.append(links.button(f"batch-cancel {row.id}", "Cancel", f"Cancel {name}"))
    return join(found)


def with_buttons(line: Html, buttons: Html) -> Html:
    """Return a line with its buttons at its end; as it is where there are none."""
    if not buttons:
        return line
    return tag(
        "div",
        tag("div", line, style="flex:1 1 300px;min-width:0"),
        tag("span", buttons, style="display:inline-flex;gap:6px"),
        style="display:flex;flex-wrap:wrap;gap:2px 8px;align-items:flex-start",
    )


def batches_heading(view: View) -> Html:
    """Return the heading over the batches; '' where there is none."""
    if view.tick is None or not view.batches:
        return Html("")
    shown = min(len(view.batches), BATCHES_SHOWN)
    return caption(f"Batches and graphs: the newest {shown}")


def batch_line(row: BatchRow, view: View) -> Html:
    """Return one batch: name, a bar of what succeeded, failed and is left, rate, time left."""
    assert view.tick is not None
    layers = view.layers.get(row.id)
    aside = [f"graph of {plural(layers, 'layer')}"] if layers else []
    queue, priority = view.queue, view.priority_of(row.id)
    if priority:
        aside.append(f"priority {priority}")
        queue = lane_of(queue, priority)
    more = batch_said(row, view.rates.get(row.id, 0.0), view.tick.now_ms)
    name = view.links.batch(row.id, clean(row.name or row.id, 40), queue)
    return line_of(name, counts_of(row), more, " " + " · ".join(aside) if aside else "")


def priorities(view: View) -> Html:
    """Return the figures of each priority and of all together; '' where all tasks are of one."""
    if not view.lanes:
        return Html("")
    rows = [
        (view.links.to_queue(lane_of(view.queue, name), name), *_lane([shot]))
        for name, shot in view.lanes.items()
    ]
    rows.append((tag("strong", "all"), *_lane(list(view.lanes.values()))))
    columns = ("Priority", ">Queued", ">In hand", ">Delayed", ">Succeeded", ">Failed", "~>Kept")
    parts = [table("By priority", columns, rows)]
    if view.links is NO_LINKS:
        alone = lane_of(view.queue, next(iter(view.other_lanes)))
        text = f'failures and attempts of one: Dashboard(…, queue="{clean(alone)}")'
        parts.append(tag("div", text, style=MUTED))
    return block(parts)


def _lane(shots: Sequence[Snapshot]) -> tuple[str, ...]:
    counts = (
        sum(shot.ready for shot in shots),
        sum(shot.pending for shot in shots),
        sum(shot.delayed for shot in shots),
        sum(shot.counters.get("succeeded", 0) for shot in shots),
        sum(shot.counters.get("failed", 0) for shot in shots),
        sum(shot.dead for shot in shots),
    )
    return tuple(f"{count:,}" for count in counts)


def limits(view: View) -> Html:
    """Return what waits and for what, and the limit keys under which most tasks wait."""
    tick = view.tick
    if tick is None:
        return Html("")
    shown = [limit for limit in tick.limits if limit.has_rule or limit.waiting][:LIMITS_SHOWN]
    why = why_waiting(tick)
    parts = []
    if why:
        text = f"Waiting: {tick.snapshot.waiting:,}; {why}"
        parts.append(caption(text))
    if shown:
        rows = [
            (*_limit(limit, tick.now_ms), *_limit_buttons(limit, view.links)) for limit in shown
        ]
        columns = ("Key", "Rule", ">In use", ">Waiting", "Now", *action_column(view.links))
        parts.append(tag("div", table("Limits", columns, rows), style="white-space:nowrap"))
    return block(parts) if parts else Html("")


def action_column(links: Links) -> tuple[str, ...]:
    """Return the name of the column with buttons, where there are any."""
    return ("Actions",) if links.acts else ()


def _limit_buttons(limit: LimitState, links: Links) -> tuple[str, ...]:
    if not links.acts:
        return ()
    if limit.paused_ms is None:
        return (links.button(f"key-pause {limit.key}", "Pause", f"Let no task of {limit.key} in"),)
    tip = f"Let tasks of {limit.key} in again"
    return (links.button(f"key-resume {limit.key}", "Resume", tip),)


def _limit(limit: LimitState, now_ms: int) -> tuple[str, ...]:
    color = DELAYED.color if limit.paused_ms is not None else WAITING.color
    now = limit_now(limit, now_ms)
    return (
        mono(clean(limit.key, 40)),
        rule_said(limit),
        f"{limit.in_use:,}" if limit.at_most is None else f"{limit.in_use:,} of {limit.at_most:,}",
        f"{limit.waiting:,}",
        mark(now, color) if now[0] in "●◌◷‖" else tag("span", now, style=MUTED),
    )
