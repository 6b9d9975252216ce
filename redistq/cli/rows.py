"""How the live screen draws a row of each of its lists; pure functions."""

from __future__ import annotations

from typing import Any

from ..dashboard.agenda import last_said, next_said
from ..dashboard.words import limit_now, payload_said, progress_said, rule_said, title
from ..display.text import clock, duration, gauge, look
from .tables import STYLES
from .terminal import Line, columns


def row_line(name: str, row: Any, mark: str, width: int, now_ms: int) -> Line:
    """Return a row of one of the lists; ``mark`` shows whether it is aimed at."""
    wide = width >= 110
    if name == "running":
        task = (mark + title(row.name), 26 if not wide else 40, "")
        held = (duration(now_ms - row.since_ms), 10, "")
        if row.progress is not None:
            part = row.progress.fraction
            drawn = "" if part is None else gauge(part, 10)
            said = progress_said(row.progress, now_ms)
            return columns(width, task, held, (drawn, 11, "green"), (said, 0, ""))
        return columns(
            width,
            task,
            (row.id, 21, "dim"),
            held,
            (f"try {row.attempt}", 7, ""),
            (payload_said(row.name, row.preview) if wide else row.worker, 0, "dim"),
        )
    if name == "limits":
        used = f"{row.in_use:,}" + ("" if row.at_most is None else f"/{row.at_most:,}")
        return columns(
            width,
            (mark + row.key, 26 if not wide else 40, ""),
            (f"{used} in use", 14, ""),
            (f"{row.waiting:,} waiting", 14, ""),
            (limit_now(row, now_ms), 0 if not wide else 30, ""),
            (rule_said(row) if wide else "", 0, "dim"),
        )
    if name == "schedules":
        schedule = row.schedule
        ended = look(row.last_state).glyph if row.last_state else " "
        return columns(
            width,
            (mark + schedule.name, 22 if not wide else 40, ""),
            (next_said(row, now_ms), 16, "yellow" if schedule.paused else ""),
            (f"{ended} {last_said(row, now_ms) or '–'}", 20, STYLES.get(row.last_state, "")),
            (schedule.rule, 0 if not wide else 44, "dim"),
            (title(schedule.task) if wide else "", 0, "dim"),
        )
    if name == "recent":
        seen = look(row.state)
        return columns(
            width,
            (mark + clock(row.finished_ms), 11, ""),
            (f"{seen.glyph} {seen.word}", 12, STYLES.get(row.state, "")),
            (title(row.name), 22 if not wide else 40, ""),
            (f"ran {duration(row.run_ms)}", 12, ""),
            (row.note or (row.worker if wide else ""), 20 if not wide else 26, ""),
            (row.id if wide else "", 0, "dim"),
        )
    return columns(
        width,
        (mark + clock(row.died_ms), 11, ""),
        (title(row.name), 18 if not wide else 40, ""),
        (f"{row.error_type}: {row.error}", 0, "red"),
    )
