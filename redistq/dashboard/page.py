"""What a dashboard looks like: a View in, HTML out; pure functions.

Called by the dashboard, live and static. It never talks to a server and keeps nothing. Text of a
queue is untrusted: it reaches the page only through ``display.html``, which escapes it.
Every meaning stands in the text and in no attribute, since Jupyter drops most attributes of an
untrusted notebook's HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..display.html import (
    MUTED,
    RULE,
    Html,
    bar,
    block,
    join,
    mark,
    mono,
    spark,
    state_mark,
    svg,
    table,
    tag,
)
from ..display.text import (
    CANCELLED,
    DELAYED,
    FAILED,
    LINE_CHARS,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    WARNING,
    clean,
    clock,
    duration,
    one_line,
    per_second,
    plural,
)
from ..monitor.rows import BatchRow, DeadLetter, Running
from ..monitor.tick import Tick, running_of, slots_of
from ..protocol.commands import WorkerRow
from ..protocol.limits import LimitState
from ..protocol.progress import Progress
from .agenda import schedules as schedules
from .feed import (
    CALL_PREFIX,
    EVENTS_SHOWN,
    LETTERS_SHOWN,
    View,
    alerts,
    beat_age,
    limit_now,
    progress_said,
    rate_now,
    rates,
    rule_said,
    title,
    why_waiting,
)

WORKERS_SHOWN = 12
BATCHES_SHOWN = 5
LIMITS_SHOWN = 8
_TRACEBACK = 4_000


# -- the parts of the page -----------------------------------------------------------------------


def head(view: View) -> Html:
    """Return title, alerts, header figures and sparklines."""
    parts = [_title(view)]
    parts += [
        tag(
            "div",
            sentence,
            style=f"border-left:4px solid {color};padding:3px 10px;margin:6px 0;line-height:1.4",
        )
        for color, sentence in alerts(view)
    ]
    if view.tick is not None:
        parts += [_figures(view, view.tick), _sparklines(view)]
    return block(parts)


def _title(view: View) -> Html:
    if view.ended:
        state = f"stopped: {view.ended}"
    elif view.problem:
        state = "no connection"
    else:
        state = "live" if view.live else "snapshot"
    when = f" · updated {clock(view.tick.now_ms)} UTC" if view.tick else ""
    return tag(
        "div",
        tag(
            "span",
            tag("strong", clean(view.queue), style="font-size:16px"),
            tag("span", f"  {clean(view.url, 80)}", style=MUTED + ";margin-left:8px"),
        ),
        tag("span", state + when, style=MUTED),
        style="display:flex;flex-wrap:wrap;justify-content:space-between;gap:4px 16px;"
        "align-items:baseline",
    )


def _figures(view: View, tick: Tick) -> Html:
    shot = tick.snapshot
    rate = rate_now(view.trail)
    waits = f"oldest {duration(tick.now_ms - shot.oldest_ms)}" if shot.oldest_ms else "none"
    if shot.next_due_ms is None:
        due = "none"
    elif shot.next_due_ms <= tick.now_ms:
        due = "due now"
    else:
        due = f"next in {duration(shot.next_due_ms - tick.now_ms)}"
    held = "may not run yet" if shot.waiting else "none"
    if shot.waiting_since_ms is not None:
        held = f"oldest {duration(tick.now_ms - shot.waiting_since_ms)}"
    eta = f"done in {duration(shot.ready / rate * 1000)}" if rate and shot.ready else "last 5 s"
    done = sum(tick.count(state) for state in ("succeeded", "failed"))
    share = f"{tick.count('failed') / done:.1%} of all ended" if done else "none ended yet"
    retried = tick.count("retried")
    tiles = (
        (QUEUED.color, f"{shot.ready:,}", f"{QUEUED.glyph} queued", waits),
        (
            RUNNING.color,
            f"{tick.running_count:,}",
            f"{RUNNING.glyph} running",
            f"of {plural(tick.slots, 'slot')}",
        ),
        (DELAYED.color, f"{shot.delayed:,}", f"{DELAYED.glyph} delayed", due),
        (WAITING.color, f"{shot.waiting:,}", f"{WAITING.glyph} waiting", held),
        (
            SUCCEEDED.color,
            f"{tick.count('succeeded'):,}",
            f"{SUCCEEDED.glyph} succeeded",
            f"{retried:,} retried" if retried else "in all",
        ),
        (FAILED.color, f"{tick.count('failed'):,}", f"{FAILED.glyph} failed", share),
        (FAILED.color, f"{shot.dead:,}", "† dead letters", "kept for replay"),
        (SUCCEEDED.color, per_second(rate), "≫ throughput", eta),
    )
    return tag(
        "div",
        *(
            tag(
                "div",
                tag(
                    "div",
                    value,
                    style="font-size:20px;font-weight:600;line-height:1.25;"
                    "font-variant-numeric:tabular-nums",
                ),
                tag("div", label, style="font-size:13px;line-height:1.3;white-space:nowrap"),
                tag(
                    "div",
                    note,
                    style=f"font-size:12px;line-height:1.3;white-space:nowrap;{MUTED}",
                ),
                style=f"flex:1 1 98px;border:{RULE};border-top:3px solid {color};"
                "border-radius:3px;padding:5px 10px",
            )
            for color, value, label, note in tiles
        ),
        style="display:flex;flex-wrap:wrap;gap:8px;margin:8px 0",
    )


def _sparklines(view: View) -> Html:
    tick = view.tick
    assert tick is not None
    end = tick.now_ms
    depth = [(point.now_ms, float(point.depth)) for point in view.trail]
    done = rates(view.trail)
    peak = max((value for _, value in depth), default=0)
    best = max((value for _, value in done), default=0)
    now = depth[-1][1] if depth else 0
    return tag(
        "div",
        spark(
            "Queue depth, last 60 s",
            f"{now:,.0f} now, at most {peak:,.0f}",
            svg(depth, end, QUEUED.color),
        ),
        spark(
            "Throughput, last 60 s",
            f"{per_second(rate_now(view.trail))} now, at most {per_second(best)}",
            svg(done, end, SUCCEEDED.color),
        ),
        style="display:flex;flex-wrap:wrap;gap:8px",
    )


def workers(view: View) -> Html:
    """Return the workers and what each runs."""
    tick = view.tick
    if tick is None:
        return Html("")
    known = (*tick.silent, *tick.workers)
    rows = [_worker(worker, tick) for worker in known[:WORKERS_SHOWN]]
    total = max(tick.snapshot.workers_total, len(known))
    more = f" (the first {len(rows)} of {total:,})" if total > len(rows) else ""
    busy = sum(1 for worker in tick.workers if running_of(worker))
    caption = f"Workers: {total:,}, {busy:,} busy{more}"
    if not rows:
        return block([tag("div", "Workers: none", style="font-weight:600;padding:8px 0 2px")])
    columns = ("Worker", "State", "Runs now", ">Busy", ">Heartbeat")
    return block([table(caption, columns, rows)])


def _worker(worker: WorkerRow, tick: Tick) -> tuple[str, ...]:
    details = worker.details
    age = beat_age(worker, tick)
    slots = slots_of(worker)
    busy = running_of(worker)
    if worker.deadline_ms < tick.now_ms:
        state = mark("⚠ silent", WARNING)
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
        _runs(held, max(busy, 1), worker.pending, tick.now_ms),
        f"{busy:,} of {slots:,}",
        f"{duration(age)} ago",
    )


def _runs(held: Sequence[Running], busy: int, pending: int, now_ms: int) -> Html:
    # Those the heartbeat listed come first; what a worker merely holds starts within moments.
    shown = sorted(held, key=lambda task: (not task.started, task.since_ms))[: min(busy, 3)]
    lines = []
    for task in shown:
        again = f" · attempt {task.attempt}" if task.attempt > 1 else ""
        again += f" · recovered {task.recovered}×" if task.recovered else ""
        lines.append(
            tag(
                "div",
                title(task.name),
                " ",
                mono(clean(_payload(task.name, task.preview), 40)),
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
    return join(lines) if lines else tag("span", "–", style=MUTED)


def _progress(progress: Progress, now_ms: int) -> Html:
    said = progress_said(progress, now_ms)
    if progress.fraction is None:
        return tag("div", said, style=MUTED)
    return tag("div", bar([(progress.fraction, RUNNING.color)], said))


def _payload(name: str, preview: str) -> str:
    """Return a payload to show; nothing for a function call's, which is pickled."""
    return "" if name.startswith(CALL_PREFIX) or preview == "null" else preview


def recent(view: View) -> Html:
    """Return the newest attempts."""
    if not view.recent:
        return Html("")
    rows = [
        (
            clock(event.finished_ms),
            title(event.name),
            state_mark(event.state),
            str(event.attempt),
            duration(event.wait_ms),
            duration(event.run_ms),
            clean(event.note, 40),
        )
        for event in view.recent[:EVENTS_SHOWN]
    ]
    columns = ("Ended (UTC)", "Task", "State", ">Attempt", ">Waited", ">Ran", "Error")
    return block([table(f"Recent attempts: the last {len(rows)}", columns, rows)])


def failures(view: View) -> Html:
    """Return the heading over the dead letters; the letters themselves are ``letter``'s."""
    tick = view.tick
    if tick is None or not tick.snapshot.dead:
        return Html("")
    shown = min(len(tick.dead), LETTERS_SHOWN)
    more = f", the newest {shown}" if tick.snapshot.dead > shown else ""
    text = f"Failed tasks kept for replay: {tick.snapshot.dead:,}{more}"
    return block([tag("div", text, style="font-weight:600;padding:8px 0 2px")])


def letter(dead: DeadLetter) -> Html:
    """Return one failed task; it opens to its payload and traceback."""
    what = f"{dead.error_type}: {dead.error}" if dead.error_type else dead.error
    traceback = dead.traceback.rstrip()
    payload = _payload(dead.name, dead.preview)
    if len(traceback) > _TRACEBACK:
        traceback = "…" + traceback[-_TRACEBACK:]
    box = (
        "white-space:pre-wrap;overflow-wrap:anywhere;max-height:22em;overflow:auto;margin:4px 0;"
        f"padding:6px 10px;border:{RULE};font-size:12px;line-height:1.4;background:none;"
        "color:inherit;font-family:var(--jp-code-font-family,monospace)"
    )
    facts = (
        f"task {clean(dead.id, 80)} · {plural(dead.attempt, 'attempt')} · ran "
        f"{duration(dead.run_ms)} · worker {clean(dead.worker) or 'unknown'}"
    )
    return block(
        [
            tag(
                "details",
                tag(
                    "summary",
                    tag("span", f"{clock(dead.died_ms)} ", style=MUTED),
                    tag("strong", title(dead.name)),
                    " ",
                    mark(f"{FAILED.glyph} failed", FAILED.color),
                    f" {clean(one_line(what), LINE_CHARS)}",
                    style="cursor:pointer;overflow-wrap:anywhere",
                ),
                tag("div", facts, style=f"padding:2px 0 0 18px;overflow-wrap:anywhere;{MUTED}"),
                tag("div", "Payload ", mono(clean(payload, 200)), style="padding-left:18px")
                if payload
                else "",
                tag("div", tag("pre", traceback, style=box), style="padding-left:18px")
                if traceback
                else tag("div", "No traceback was kept.", style="padding-left:18px"),
                style=f"border-bottom:{RULE};padding:3px 0;margin:0",
            )
        ]
    )


def batches(view: View) -> Html:
    """Return the newest batches with their progress."""
    if view.tick is None or not view.tick.batches:
        return Html("")
    now = view.tick.now_ms
    rows = [_batch(row, now) for row in view.tick.batches[:BATCHES_SHOWN]]
    columns = ("Batch", "Progress", ">Succeeded", ">Failed", ">Retried", ">Time")
    return block([table(f"Batches: the newest {len(rows)}", columns, rows)])


def _batch(row: BatchRow, now_ms: int) -> tuple[str, ...]:
    share = row.settled / row.total if row.total else 0.0
    said = f"{row.settled:,} of {row.total:,} ({share:.0%})"
    total = max(row.total, 1)
    parts = [
        (row.succeeded / total, SUCCEEDED.color),
        (row.failed / total, FAILED.color),
        ((row.cancelled + row.expired) / total, CANCELLED.color),
    ]
    return (
        clean(row.name or row.id),
        bar(parts, said),
        f"{row.succeeded:,}",
        f"{row.failed:,}",
        f"{row.retried:,}",
        duration((row.finished_ms or now_ms) - row.created_ms),
    )


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
        parts.append(tag("div", text, style="font-weight:600;padding:8px 0 2px"))
    if shown:
        rows = [_limit(limit, tick.now_ms) for limit in shown]
        columns = ("Key", "Rule", ">In use", ">Waiting", "Now")
        parts.append(
            tag("div", table("Limits", columns, rows), style="max-width:760px;white-space:nowrap")
        )
    return block(parts) if parts else Html("")


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


def notice(view: View) -> Html:
    """Return what the last button did; screen readers read it out."""
    if not view.notice:
        return Html("")
    return block([tag("div", clean(view.notice, 300), role="status", style="padding:2px 0")])


def page(view: View) -> Html:
    """Return the whole dashboard without buttons, as notebooks keep and nbconvert shows it."""
    letters = view.tick.dead[:LETTERS_SHOWN] if view.tick else ()
    return tag(
        "div",
        head(view),
        notice(view),
        workers(view),
        limits(view),
        schedules(view),
        batches(view),
        recent(view),
        failures(view),
        *(letter(dead) for dead in letters),
        style="padding:4px 0",
    )
