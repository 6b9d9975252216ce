"""All queues of a server in one table, the worst first: rows in, HTML or text out; pure functions.

Used by dashboards of several queues and by the web pages. How the rows are read is in
``monitor/queues.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..display.html import MUTED, Html, block, caption, join, mark, table, tag
from ..display.plain import as_text
from ..display.text import (
    DELAYED,
    FAILED,
    QUEUED,
    RUNNING,
    WARNING,
    clean,
    duration,
    per_second,
    plural,
)
from ..monitor.queues import QueueRow, worst_first
from ..monitor.tick import condition

Link = Callable[[str], str]
"""The address of the page of a queue, from its name."""

COLUMNS = (
    *("Queue", "State", ">Queued", "~>Oldest", ">Running", "~>Delayed", "~>Waiting"),
    *(">Failed", "~>Kept", ">Rate", "~>Workers"),
)


def overview(rows: Sequence[QueueRow], link: Link | None = None, chosen: str = "") -> Html:
    """Return one row a queue, the worst first.

    With ``link`` the name of each leads to its page; ``chosen`` is the queue that is shown below.
    """
    if not rows:
        return block(
            [
                caption("Queues: none"),
                tag("div", "A queue is here from its first task or worker on.", style=MUTED),
            ]
        )
    cells = [_cells(row, link, chosen) for row in worst_first(rows)]
    return block([table(heading(rows), COLUMNS, cells)])


def overview_text(rows: Sequence[QueueRow]) -> str:
    """Return the same as lines of plain text."""
    return as_text(overview(rows))


def heading(rows: Sequence[QueueRow]) -> str:
    """Return how many queues there are, and what all of them have."""
    shots = [row.snapshot for row in rows if row.snapshot]
    rate = sum(row.rate or 0.0 for row in rows)
    return (
        f"Queues: {len(rows):,} · {sum(shot.ready for shot in shots):,} queued, "
        f"{sum(row.running for row in rows):,} running, {per_second(rate)}"
    )


def state_of(row: QueueRow) -> tuple[str, str]:
    """Return how a queue is, in a word or two after a glyph, and its colour."""
    if row.snapshot is None:
        return f"{FAILED.glyph} no figures", FAILED.color
    now = condition(row.snapshot)
    if now.unserved:
        return f"{FAILED.glyph} no worker", FAILED.color
    if now.silent:
        return f"⚠ {plural(len(now.silent), 'worker')} silent", WARNING
    if now.late_ms:
        return f"⚠ {duration(now.late_ms)} late", WARNING
    if now.paused:
        return "‖ paused", DELAYED.color
    if row.snapshot.ready or row.running:
        return f"{RUNNING.glyph} working", RUNNING.color
    return "○ idle", QUEUED.color


def _cells(row: QueueRow, link: Link | None, chosen: str) -> tuple[str, ...]:
    name = tag("strong", clean(row.name, 40))
    if link is not None:
        name = tag("a", name, href=link(row.name))
    said = join(["▸ " if row.name == chosen else "", name])
    state = mark(*state_of(row))
    if row.snapshot is None:
        why = tag("span", clean(row.problem, 80), style=MUTED)
        return (said, join([state, " ", why]), *("–",) * (len(COLUMNS) - 2))
    shot = row.snapshot
    oldest = duration(shot.now_ms - shot.oldest_ms) if shot.oldest_ms is not None else "–"
    counts = (shot.ready, row.running, shot.delayed, row.waiting)
    queued, running, delayed, waiting = (_count(count) for count in counts)
    failed = _count(row.count("failed"))
    kept = mark(f"{shot.dead:,}", FAILED.color) if shot.dead else _count(0)
    rate = "–" if row.rate is None else per_second(row.rate) if row.rate else _count(0)
    ended = (failed, kept, rate)
    return (said, state, queued, oldest, running, delayed, waiting, *ended, f"{row.workers:,}")


def _count(count: int) -> str:
    """Return a figure; nothing is muted, so that what there is can be seen at once."""
    return f"{count:,}" if count else tag("span", "0", style=f"{MUTED};opacity:.6")
