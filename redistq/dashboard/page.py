"""What a dashboard looks like: a View in, HTML or text out; pure functions.

Called by the dashboard, live and static. It never talks to a server and keeps nothing. Text of a
queue is untrusted: it reaches the page only through ``display.html``, which escapes it.
Every meaning stands in the text and in no attribute, since Jupyter drops most attributes of an
untrusted notebook's HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..display.html import (
    MUTED,
    RULE,
    Html,
    block,
    spark,
    svg,
    tag,
)
from ..display.plain import as_text
from ..display.text import (
    DELAYED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    clean,
    clock,
    duration,
    per_second,
    plural,
)
from ..monitor.tick import Tick
from .agenda import schedules
from .failed import failures
from .feed import View
from .functions import functions
from .tables import batches, limits, priorities, recent, workers
from .timeline import timeline
from .words import (
    alerts,
    rate_now,
    rates,
    rates_before,
)

# -- the parts of the page -----------------------------------------------------------------------


def head(view: View, usual: Sequence[tuple[str, str]] = ()) -> Html:
    """Return title, alerts, header figures and sparklines; ``usual`` stands where there are no
    alerts, so that what is below keeps its place."""
    parts = [_title(view)]
    parts += [
        tag(
            "div",
            sentence,
            style=f"border-left:4px solid {color};padding:3px 10px;margin:6px 0;line-height:1.4",
        )
        for color, sentence in alerts(view) or usual
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
    when = f"updated {clock(view.tick.now_ms)} UTC" if view.tick else ""
    memory = f" · {view.memory.said} in use" if view.memory else ""
    return tag(
        "div",
        tag(
            "span",
            tag("strong", clean(view.queue), style="font-size:16px"),
            " ",
            tag("span", clean(view.url, 80) + memory, style=MUTED + ";margin-left:10px"),
        ),
        tag(
            "span",
            tag("span", state + (" · " if when else ""), class_="redistq-state"),
            when,
            style=MUTED,
        ),
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
        due = f"in {duration(shot.next_due_ms - tick.now_ms)}"
    held = "may not run yet" if shot.waiting else "none"
    if shot.waiting_since_ms is not None:
        held = f"oldest {duration(tick.now_ms - shot.waiting_since_ms)}"
    eta = f"done in {duration(shot.ready / rate * 1000)}" if rate and shot.ready else "last 5 s"
    done = sum(tick.count(state) for state in ("succeeded", "failed"))
    share = f"{tick.count('failed') / done:.1%}, " if done else ""
    share += f"{shot.dead:,} kept" if shot.dead else "none kept"
    retried = tick.count("retried")
    others = sum(sum(view.beside(worker.consumer).values()) for worker in tick.workers)
    tiles = (
        (QUEUED.color, f"{shot.ready:,}", f"{QUEUED.glyph} queued", waits),
        (
            RUNNING.color,
            f"{tick.running_count:,}",
            f"{RUNNING.glyph} running",
            f"and {others:,} others" if others else f"of {plural(tick.slots, 'slot')}",
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
                    style=f"font-size:12px;line-height:1.3;{MUTED}",
                ),
                style=f"min-width:0;border:{RULE};border-top:3px solid {color};"
                "border-radius:3px;padding:5px 10px",
            )
            for color, value, label, note in tiles
        ),
        # Seven in a row where there is room, else four and three.
        style="display:grid;gap:8px;"
        "grid-template-columns:repeat(auto-fit,minmax(max(104px,min(22%,112px)),1fr));"
        "margin:8px 0",
    )


def _sparklines(view: View) -> Html:
    tick = view.tick
    assert tick is not None
    end = tick.now_ms
    depth = [(point.now_ms, float(point.depth)) for point in view.trail]
    done = [*rates_before(view), *rates(view.trail)]
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


def notice(view: View) -> Html:
    """Return what the last button did; screen readers read it out."""
    if not view.notice:
        return Html("")
    return block([tag("div", clean(view.notice, 300), role="status", style="padding:2px 0")])


def page(view: View) -> Html:
    """Return the whole dashboard without buttons, as notebooks keep and nbconvert shows it."""
    parts = (section(view) for section in SECTIONS.values())
    return tag("div", head(view), notice(view), *parts, style="padding:4px 0")


def plain(view: View) -> str:
    """Return the whole dashboard as lines of plain text: the same facts, tracebacks left out."""
    return as_text(page(replace(view, live=False)))


SECTIONS: Mapping[str, Callable[[View], Html]] = {
    "batches": batches,
    "failed": failures,
    "functions": functions,
    "timeline": timeline,
    "workers": workers,
    "priorities": priorities,
    "limits": limits,
    "schedules": schedules,
    "recent": recent,
}
"""The parts below the figures, in their order."""
