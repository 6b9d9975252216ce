"""What the live screen shows of one row when it is opened: a task with its attempts, or a limit.

Used by the screen. It asks through the monitor, and returns plain lines.
"""

from __future__ import annotations

from itertools import islice

from ..dashboard.actions import is_of_batch
from ..dashboard.agenda import last_said, next_said
from ..dashboard.feed import View
from ..dashboard.words import batch_said, counts_of, limit_now, payload_said, rule_said, title
from ..display.batches import face_of, far_said
from ..display.text import clean, clock, duration, iso, one_line
from ..monitor.agenda import ScheduleRow
from ..monitor.failures import groups_of
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import BatchRow, Event, Running
from ..protocol.limits import LimitState
from .lists import LetterRow

LETTERS_READ = 1_000
"""Newest dead letters that are looked at to show those of a batch."""
LETTERS_SHOWN = 50
WAITING_READ = 200
"""Waiting tasks that are looked at to show some of one limit's."""


def describe(
    monitor: TaskMonitor,
    row: Event | Running | LetterRow | BatchRow | LimitState | ScheduleRow,
    view: View,
) -> list[str]:
    """Return what is known of a row of the screen. Raises RedistqError."""
    now_ms = view.tick.now_ms if view.tick else 0
    if isinstance(row, BatchRow):
        lines = _batch(monitor, row, view)
    elif isinstance(row, LimitState):
        lines = _limit(monitor, row, now_ms)
    elif isinstance(row, ScheduleRow):
        lines = _schedule(row, now_ms)
    else:
        lines = _task(monitor, row.letter.id if isinstance(row, LetterRow) else row.id)
    return [clean(line.expandtabs(4), 1000) for line in lines]


def _task(monitor: TaskMonitor, task_id: str) -> list[str]:
    task = monitor.records.task(task_id)
    lines = [f"{task.id}  {title(task.name)}  {task.state}", *([task.why] if task.why else []), ""]
    for event in task.events:
        lines.append(
            f"try {event.attempt}  {clock(event.finished_ms)}  {event.state:<10}"
            f" waited {duration(event.wait_ms)}, ran {duration(event.run_ms)}"
            f"  {event.worker}  {event.note}"
        )
    payload = payload_said(task.name, task.payload)
    for name, value in (("payload", payload), ("result", task.result)):
        if value:
            lines += ["", f"{name}: {one_line(value)}"]
    if task.headers:
        lines += ["", "headers:", *(f"  {name}: {one_line(t)}" for name, t in task.headers.items())]
    if task.error_type or task.error:
        lines += ["", f"{task.error_type}: {one_line(task.error)}"]
    if task.traceback:
        lines += ["", *task.traceback.rstrip().split("\n")]
    return lines


def _batch(monitor: TaskMonitor, row: BatchRow, view: View) -> list[str]:
    """Return a batch: how it stands, its failures by error, the newest of them, and what runs."""
    assert view.tick is not None
    counts = counts_of(row)
    said = batch_said(row, view.rates.get(row.id, 0.0), view.tick.now_ms)
    lines = [f"{row.id}  {row.name}  {face_of(counts)[0]}", f"{far_said(counts)} · {said}", ""]
    letters = monitor.records.dead(LETTERS_READ, full=False) if row.failed else []
    own = [letter for letter in letters if is_of_batch(letter.id, row.id)]
    for group, _ in groups_of(own):
        what = one_line(f"{group.error_type}: {group.error}")
        lines.append(f"{group.count:>5,} × {title(group.name)}  {what}")
    lines += ["", "failed:"] if own else []
    for letter in own[:LETTERS_SHOWN]:
        what = one_line(f"{letter.error_type}: {letter.error}")
        lines.append(f"  {clock(letter.died_ms)}  {letter.id}  {what}")
    if len(own) > LETTERS_SHOWN:
        lines.append(f"  and {len(own) - LETTERS_SHOWN:,} more")
    running = [task for task in view.tick.running if is_of_batch(task.id, row.id)]
    lines += ["", "running:"] if running else []
    for task in running:
        lines.append(
            f"  {task.id}  for {duration(view.tick.now_ms - task.since_ms)}  {task.worker}"
        )
    return [*lines, "", f"in a notebook: client.batch({row.id!r})"]


def _limit(monitor: TaskMonitor, limit: LimitState, now_ms: int) -> list[str]:
    """Return a limit, and some of the tasks under it, those that wait longest."""
    lines = [
        f"{limit.key}  {rule_said(limit)}",
        f"{limit.in_use:,} in use, {limit.waiting:,} waiting  {limit_now(limit, now_ms)}",
        "",
    ]
    if limit.rule_key not in ("", limit.key):
        lines.insert(1, f"by the rule of {limit.rule_key}")
    for task in monitor.records.waiting(WAITING_READ):
        if task.under == limit.key:
            lines.append(
                f"{task.id}  {title(task.name)}  {task.reason}  {duration(task.waited_ms)}"
            )
    return lines


def _schedule(row: ScheduleRow, now_ms: int) -> list[str]:
    """Return a schedule: its next times, and what became of the last one."""
    schedule = row.schedule
    lines = [
        f"{schedule.name}  {schedule.rule}",
        f"{next_said(row, now_ms)}; adds {title(schedule.task)} to {schedule.queue}",
        f"missed: {schedule.missed}, overlap: {schedule.overlap}, by {schedule.source}",
        f"{schedule.fired:,} fired, {schedule.skipped:,} skipped",
        "",
    ]
    if schedule.last_id:
        lines.append(f"last: {schedule.last_id}  {last_said(row, now_ms)}  {row.last_state}")
    if schedule.fault:
        lines.append(f"fault: {one_line(schedule.fault)}")
    times = schedule.timing.times(max(now_ms, schedule.past_ms), schedule.anchor_ms)
    if not schedule.paused:
        lines += ["next:", *(f"  {iso(at)}" for at in islice(times, 5))]
    return [*lines, "", f"payload: {schedule.payload[:400].decode('utf-8', 'replace')}"]
