"""What is said of schedules: in words, and as a table of the dashboard; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from ..display.html import MUTED, Html, block, join, mark, mono, state_mark, table, tag
from ..display.text import DELAYED, WARNING, clean, clock, duration, iso, one_line
from ..monitor.agenda import ScheduleRow
from ..monitor.tick import LATE_MS
from .feed import View
from .links import Links
from .tables import action_column

SCHEDULES_SHOWN = 8


def next_said(row: ScheduleRow, now_ms: int) -> str:
    """Return when a schedule fires next, in a few words."""
    schedule = row.schedule
    if schedule.paused:
        return "‖ paused"
    left = schedule.next_ms - now_ms
    if schedule.fault and left < LATE_MS:
        return f"⚠ {clean(one_line(schedule.fault), 60)}"
    if left < -LATE_MS:
        return f"⚠ {duration(-left)} late"
    return "due now" if left <= 0 else f"in {duration(left)}"


def last_said(row: ScheduleRow, now_ms: int) -> str:
    """Return when the last of its tasks was due; '' for none."""
    last = row.last_ms
    if last is None:
        return ""
    day = 86_400_000
    return clock(last) if last // day == now_ms // day else iso(last)[:16].replace("T", " ")


def schedules(view: View) -> Html:
    """Return the schedules that fire next, and how the last task of each ended."""
    tick = view.tick
    if tick is None or not tick.schedules:
        return Html("")
    shown = tick.schedules[:SCHEDULES_SHOWN]
    rows = [(*_row(row, tick.now_ms), *_buttons(row, view.links)) for row in shown]
    figures = ("Schedule", "Rule", "Next", "Last (UTC)", ">Fired", "~>Skipped")
    columns = (*figures, *action_column(view.links))
    return block([table(_caption(tick.schedules), columns, rows)])


def _caption(rows: Sequence[ScheduleRow]) -> str:
    more = len(rows) - SCHEDULES_SHOWN
    return "Schedules" if more < 0 else f"Schedules: the next {min(len(rows), SCHEDULES_SHOWN)}"


def _buttons(row: ScheduleRow, links: Links) -> tuple[str, ...]:
    if not links.acts:
        return ()
    name = row.schedule.name
    if row.schedule.paused:
        pause = links.button(f"schedule-resume {name}", "Resume", f"Let {name} fire again")
    else:
        pause = links.button(f"schedule-pause {name}", "Pause", f"Let {name} fire no more")
    run = links.button(f"run {name}", "Run now", f"Add the task of {name} at once")
    return (join([pause, " ", run]),)


def _row(row: ScheduleRow, now_ms: int) -> tuple[str, ...]:
    schedule = row.schedule
    said = next_said(row, now_ms)
    color = DELAYED.color if schedule.paused else WARNING
    last = last_said(row, now_ms)
    state = join([" ", state_mark(row.last_state)]) if row.last_state else Html("")
    return (
        mono(clean(schedule.name, 40)),
        clean(schedule.rule, 60),
        mark(said, color) if said[0] in "‖⚠" else said,
        join([tag("span", last), state]) if last else tag("span", "–", style=MUTED),
        f"{schedule.fired:,}",
        f"{schedule.skipped:,}",
    )
