"""How the live screen draws a row of each of its lists; pure functions."""

from __future__ import annotations

from typing import Any

from ..dashboard.agenda import last_said, next_said
from ..dashboard.feed import View
from ..dashboard.words import (
    batch_said,
    counts_of,
    item_said,
    limit_now,
    payload_said,
    progress_said,
    rule_said,
    title,
)
from ..display.batches import face_of, far_said
from ..display.text import clock, duration, gauge, look
from ..monitor.agenda import ScheduleRow
from ..monitor.rows import BatchRow, DeadLetter, Event, Running
from ..protocol.keys import ENDED
from ..protocol.limits import LimitState
from .lists import GroupRow, LetterRow
from .tables import STYLES
from .terminal import Line, columns, gauge_parts

WIDE = 110
_GAUGE = 10


def row_line(row: Any, mark: str, width: int, view: View) -> Line:
    """Return a row of one of the lists; ``mark`` shows whether it is aimed at."""
    assert view.tick is not None
    now_ms = view.tick.now_ms
    if isinstance(row, BatchRow):
        return _batch(row, mark, width, view)
    if isinstance(row, Event):
        return _event(row, mark, width, view)
    if isinstance(row, GroupRow):
        return _group(row, mark, width, now_ms)
    if isinstance(row, LetterRow):
        return _letter(row.letter, f"{mark}  " if row.is_within else mark, width)
    if isinstance(row, LimitState):
        return _limit(row, mark, width, now_ms)
    if isinstance(row, ScheduleRow):
        return _schedule(row, mark, width, now_ms)
    assert isinstance(row, Running)
    return _running(row, mark, width, now_ms)


def _name_cells(width: int, narrow: int) -> int:
    return narrow if width < WIDE else 40


def _running(row: Running, mark: str, width: int, now_ms: int) -> Line:
    task = (mark + title(row.name), _name_cells(width, 26), "")
    held = (duration(now_ms - row.since_ms), 10, "")
    if row.progress is not None:
        part = row.progress.fraction
        drawn = "" if part is None else gauge(part, _GAUGE)
        said = progress_said(row.progress, now_ms)
        return columns(width, task, held, (drawn, _GAUGE + 1, "green"), (said, 0, ""))
    return columns(
        width,
        task,
        (row.id, 21, "dim"),
        held,
        (f"try {row.attempt}", 7, ""),
        (payload_said(row.name, row.preview) if width >= WIDE else row.worker, 0, "dim"),
    )


def _batch(row: BatchRow, mark: str, width: int, view: View) -> Line:
    assert view.tick is not None
    counts = counts_of(row)
    said = batch_said(row, view.rates.get(row.id, 0.0), view.tick.now_ms)
    face, color = face_of(counts)
    layers = view.layers.get(row.id)
    name = f"{row.name or row.id}" + (f" ({layers} layers)" if layers else "")
    first = columns(width, (mark + name, _name_cells(width, 20), ""))
    total = max(row.total, 1)
    bar = gauge_parts([(counts[s] / total, STYLES[s]) for s in ENDED], _GAUGE)
    rest = width - sum(len(text) for text, _ in (*first, *bar))
    face = face if width >= WIDE else face[:1]
    words = columns(
        rest,
        (" " + far_said(counts), 23, ""),
        (face, 24 if width >= WIDE else 2, color),
        (said, 0, "dim"),
    )
    return [*first, *bar, *words]


def _limit(row: LimitState, mark: str, width: int, now_ms: int) -> Line:
    used = f"{row.in_use:,}" + ("" if row.at_most is None else f"/{row.at_most:,}")
    wide = width >= WIDE
    return columns(
        width,
        (mark + row.key, _name_cells(width, 26), ""),
        (f"{used} in use", 14, ""),
        (f"{row.waiting:,} waiting", 14, ""),
        (limit_now(row, now_ms), 30 if wide else 0, ""),
        (rule_said(row) if wide else "", 0, "dim"),
    )


def _schedule(row: ScheduleRow, mark: str, width: int, now_ms: int) -> Line:
    schedule = row.schedule
    ended = look(row.last_state).glyph if row.last_state else " "
    wide = width >= WIDE
    return columns(
        width,
        (mark + schedule.name, _name_cells(width, 22), ""),
        (next_said(row, now_ms), 16, "yellow" if schedule.paused else ""),
        (f"{ended} {last_said(row, now_ms) or '–'}", 20, STYLES.get(row.last_state, "")),
        (schedule.rule, 44 if wide else 0, "dim"),
        (title(schedule.task) if wide else "", 0, "dim"),
    )


def _event(row: Event, mark: str, width: int, view: View) -> Line:
    seen = look(row.state)
    wide = width >= WIDE
    item = item_said(row.id, payload_said(row.name, view.previews.get(row.id, "")))
    return columns(
        width,
        (mark + clock(row.finished_ms), 11, ""),
        (f"{seen.glyph} {seen.word}", 12, STYLES.get(row.state, "")),
        (title(row.name), _name_cells(width, 22), ""),
        (f"ran {duration(row.run_ms)}", 12, ""),
        (row.note or item, 26 if wide else 0, "" if row.note else "dim"),
        (f"{row.id}  {row.worker}", 0, "dim"),
    )


def _group(row: GroupRow, mark: str, width: int, now_ms: int) -> Line:
    group = row.group
    return columns(
        width,
        (f"{mark}{'−' if row.is_open else '+'} {group.count:,}", 11, "bold"),
        (title(group.name), _name_cells(width, 18), ""),
        (f"last {duration(now_ms - group.last_ms)} ago", 17, "dim"),
        (f"{group.error_type}: {group.error}", 0, "red"),
    )


def _letter(row: DeadLetter, mark: str, width: int) -> Line:
    return columns(
        width,
        (mark + clock(row.died_ms), len(mark) + 9, ""),
        (title(row.name), _name_cells(width, 18), ""),
        (f"{row.error_type}: {row.error}", 0, "red"),
    )
