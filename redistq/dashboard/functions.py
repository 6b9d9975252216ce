"""Figures by function, out of the newest attempts; pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..display.html import Html, block, mark, table
from ..display.text import FAILED, duration, per_second, plural
from ..monitor.rows import Event
from .feed import View
from .words import rate_now, title

FUNCTIONS_SHOWN = 10
RATE_OVER_MS = 60_000


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One function: of the attempts looked at, how many ended, of these failed or were tried again,
    how long they ran and waited (None: not known), and how many end a second."""

    name: str
    count: int
    failed: int
    retried: int
    p50_ms: float | None
    p95_ms: float | None
    wait_ms: float | None
    rate: float


def functions_of(
    events: Sequence[Event], now_ms: int, overall: float | None = None
) -> list[FunctionRow]:
    """Return the functions of attempts, given newest first, those first of which most ended.

    The rate is over the last minute, or over the time of these attempts where that is less. Where
    these are only some of that time, ``overall`` is the rate of all, and each has its share.
    """
    if not events:
        return []
    start = max(events[-1].finished_ms, now_ms - RATE_OVER_MS)
    seconds = max(now_ms - start, 1000) / 1000
    by_name: dict[str, list[Event]] = {}
    for event in events:
        by_name.setdefault(event.name, []).append(event)
    found = [
        FunctionRow(
            name=name,
            count=len(own),
            failed=sum(event.state == "failed" for event in own),
            retried=sum(event.state in ("retried", "recovered") for event in own),
            p50_ms=quantile((event.run_ms for event in own), 0.5),
            p95_ms=quantile((event.run_ms for event in own), 0.95),
            wait_ms=quantile((event.wait_ms for event in own), 0.5),
            rate=sum(event.finished_ms >= start for event in own) / seconds
            if overall is None
            else overall * len(own) / len(events),
        )
        for name, own in by_name.items()
    ]
    return sorted(found, key=lambda row: (-row.count, row.name))


def quantile(values: Iterable[float | None], q: float) -> float | None:
    """Return a quantile of the values that are known; None of none."""
    known = sorted(value for value in values if value is not None)
    return known[min(int(q * len(known)), len(known) - 1)] if known else None


def functions(view: View) -> Html:
    """Return a table of the functions of the newest attempts."""
    if view.tick is None or not view.events:
        return Html("")
    overall = rate_now(view.trail) if view.gaps else None
    rows = functions_of(view.events, view.tick.now_ms, overall)
    shown = [_row(row) for row in rows[:FUNCTIONS_SHOWN]]
    more = f", {FUNCTIONS_SHOWN} of {len(rows):,} functions" if len(rows) > len(shown) else ""
    of = f"the newest {plural(len(view.events), 'attempt')}" + (
        " that were seen" if view.gaps else ""
    )
    columns = (
        "Function",
        ">Ended",
        ">Failed",
        "~>Retried",
        "~>Waited p50",
        ">p50",
        ">p95",
        ">Rate",
    )
    return block([table(f"By function: {of}{more}", columns, shown)])


def _row(row: FunctionRow) -> tuple[str, ...]:
    failed = f"{row.failed:,} ({row.failed / row.count:.0%})" if row.failed else "0"
    return (
        title(row.name),
        f"{row.count:,}",
        mark(failed, FAILED.color) if row.failed else failed,
        f"{row.retried:,}",
        duration(row.wait_ms),
        duration(row.p50_ms),
        duration(row.p95_ms),
        per_second(row.rate),
    )
