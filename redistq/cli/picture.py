"""How the live screen looks: its head, the workers and its lists; pure functions.

A picture is lines of pieces of text; they are cut to their width when they are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..dashboard.feed import View
from ..dashboard.words import alerts, rate_now, rates, title, why_waiting
from ..display.text import clean, clock, duration, one_line, plural
from ..monitor.tick import Tick, workers_of
from .lists import HEADINGS, LISTS, Cursor, GroupRow, shares_of
from .rows import row_line
from .tables import human
from .terminal import Line, columns, figures, fit, spark

ROOM_ORDER = ("recent", "dead", "batches", "running", "limits", "schedules")
"""Which list gets what room is left, after the one aimed at."""


def head(view: View, trouble: str, width: int, unknown: str = "") -> list[Line]:
    """Return the queue's name, what has to be seen at once, and its figures. ``trouble`` is why the
    last look failed, ``unknown`` says that there is no such queue."""
    tick = view.tick
    when = f" {clock(tick.now_ms)} UTC " if tick else " "
    lines = [title_line(f"{clean(view.queue)} · {clean(view.url, 200)}", when, width)]
    problem = f"{clean(one_line(trouble), 300)} (asking again)" if trouble else ""
    sentences = [sentence for _, sentence in alerts(replace(view, problem=problem))]
    if unknown and not trouble:
        sentences = [f"⚠ {unknown}"]
    if not sentences and tick is not None:
        sentences = [f"● {tick.health[1]}"]
    lines += [[(sentence, "bold")] for sentence in sentences[:2]]
    if tick is not None:
        lines += _figures(view, tick, width)
    return lines


def title_line(text: str, when: str, width: int) -> Line:
    """Return the first line of a picture."""
    return [(fit(f" {text} ", max(0, width - len(when))) + when, "reverse bold")]


def _figures(view: View, tick: Tick, width: int) -> list[Line]:
    shot = tick.snapshot
    age = 0 if shot.oldest_ms is None else shot.now_ms - shot.oldest_ms
    now = [
        ("queued", shot.ready),
        ("running", tick.running_count),
        ("delayed", shot.delayed),
        ("waiting", shot.waiting),
        ("dead", shot.dead),
        ("workers", len(tick.workers)),
    ]
    totals = [(s, tick.count(s)) for s in ("succeeded", "failed", "retried", "recovered")]
    lines = [figures(now)]
    lines.append(figures(totals) + ([(f"  oldest {duration(age)}", "dim")] if age else []))
    if len(view.trail) > 1:
        span = max(10, min(60, (width - 36) // 2))
        speeds = [speed for _, speed in rates(view.trail)]
        depths = [float(point.depth) for point in view.trail]
        lines.append(
            [
                (f"{rate_now(view.trail):>9,.1f}/s ", "bold"),
                (spark(speeds, span), "green"),
                ("  queued ", "bold"),
                (spark(depths, span), "cyan"),
            ]
        )
    return lines


def body(
    view: View,
    rows: dict[str, list[Any]],
    focus: str,
    cursors: Mapping[str, Cursor],
    width: int,
    room: int,
) -> list[Line]:
    """Return the workers and the lists, on ``room`` lines; ``focus`` is the one aimed at."""
    assert view.tick is not None
    lines = _workers(view.tick, width, room)
    shares = shares_of(rows, focus or "recent", room - len(lines), ROOM_ORDER)
    for name in LISTS:
        if shares[name]:
            lines += _list(name, view, rows[name], focus, cursors[name], width, shares[name])
    return lines


def _workers(tick: Tick, width: int, room: int) -> list[Line]:
    workers = workers_of(tick)
    if not workers:
        return []
    lines: list[Line] = [[(f"Workers ({len(workers)})", "bold")]]
    most = max(1, min(len(workers), room // 6))
    for worker in workers[:most]:
        since = worker.task_since_ms
        doing = f"{title(worker.task)} {duration(tick.now_ms - since)}" if since else ""
        lines.append(
            columns(
                width,
                (f"  {worker.name}", 24, ""),
                (worker.state, 7, "red" if worker.state == "silent" else ""),
                (f"{worker.running}/{worker.threads}", 7, ""),
                (human("bytes", worker.rss, tick.now_ms) if worker.rss else "", 9, "dim"),
                (human("share", worker.cpu, tick.now_ms) if worker.cpu else "", 6, "dim"),
                (doing, 0, ""),
            )
        )
    if len(workers) > most:
        lines.append([(f"  and {len(workers) - most} more", "dim")])
    return lines


def _list(
    name: str, view: View, rows: list[Any], focus: str, cursor: Cursor, width: int, share: int
) -> list[Line]:
    assert view.tick is not None
    style = "reverse" if name == focus else "bold"
    lines: list[Line] = [[(heading(name, view, rows), style)]]
    at = cursor.place(rows)
    first = max(0, min(at - (share - 1) // 2, len(rows) - (share - 1)))
    for i, row in enumerate(rows[first : first + share - 1], first):
        is_aimed = name == focus and i == at
        line = row_line(row, "▸ " if is_aimed else "  ", width, view)
        lines.append([(text, f"{s} reverse") for text, s in line] if is_aimed else line)
    return lines


def heading(name: str, view: View, rows: list[Any]) -> str:
    """Return the heading of a list, with how many there are in all."""
    assert view.tick is not None
    shot = view.tick.snapshot
    count = {"running": shot.pending, "dead": shot.dead}.get(name, len(rows))
    said = HEADINGS[name]
    if name == "limits" and (why := why_waiting(view.tick)):
        said += f": waiting {why} "
    said += f" ({count:,})"
    groups = sum(isinstance(row, GroupRow) for row in rows)
    return f"{said}, {plural(groups, 'group')} of the same error" if groups else said
