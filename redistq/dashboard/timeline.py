"""What each worker did in the last minute: a lane a slot, a colour a function; pure functions.

Live it is inline SVG, whose bars say on hovering what they are. An untrusted notebook keeps no
inline SVG, so a still picture is an image with a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..display.html import (
    MUTED,
    SAID_BESIDE,
    TABLE_PX,
    TRAIL_MS,
    Html,
    block,
    caption,
    image,
    join,
    svg_tag,
    tag,
)
from ..display.text import FAILED, PALETTE, clean, clock, colors_of, duration, plural
from ..monitor.tick import slots_of
from .feed import View
from .words import item_said, payload_said, title

WORKERS_DRAWN = 8
LANES_DRAWN = 8
BARS_DRAWN = 400
LEAST_MS = 5_000
LANE_PX = 11
WIDTH = 1000
_CLOSE = 2.0
"""Bars of one function nearer than so many of WIDTH units are drawn as one."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt in a lane, or ``count`` short ones; times in ms since the epoch."""

    start: float
    stop: float
    worker: str
    name: str
    state: str
    said: str
    count: int = 1


def bars_of(view: View) -> list[Bar]:
    """Return the attempts of the last minute, and what runs, by their start."""
    tick = view.tick
    assert tick is not None
    found = [
        Bar(
            event.started_ms,
            event.finished_ms,
            event.worker,
            event.name,
            event.state,
            item_said(event.id, payload_said(event.name, view.previews.get(event.id, ""))),
        )
        for event in view.events
        if event.started_ms is not None and event.finished_ms > tick.now_ms - TRAIL_MS
    ]
    found += [
        Bar(
            task.since_ms,
            tick.now_ms,
            task.worker,
            task.name,
            "running",
            item_said(task.id, payload_said(task.name, task.preview)),
        )
        for task in tick.running
        if task.started
    ]
    return sorted(found, key=lambda bar: (bar.start, bar.stop))


def lanes_of(bars: Iterable[Bar], slots: int = 0) -> list[list[Bar]]:
    """Return the bars of one worker, by their start, in as few lanes as they need; in no more than
    it has slots, since an end is known some milliseconds late."""
    most = min(slots or LANES_DRAWN, LANES_DRAWN)
    lanes: list[list[Bar]] = []
    for bar in bars:
        lane = next((own for own in lanes if own[-1].stop <= bar.start + 1.0), None)
        if lane is None and len(lanes) >= most:
            lane = min(lanes, key=lambda own: own[-1].stop)
        if lane is None:
            lanes.append(lane := [])
        lane.append(bar)
    return lanes


def joined(lane: Sequence[Bar], per_unit: float) -> list[Bar]:
    """Return the bars of a lane with short ones side by side made one; ``per_unit`` is ms."""
    found: list[Bar] = []
    for bar in lane:
        last = found[-1] if found else None
        if (
            last is not None
            and (last.name, last.state) == (bar.name, bar.state)
            and bar.stop - last.stop < _CLOSE * per_unit
        ):
            found[-1] = replace(last, stop=max(last.stop, bar.stop), count=last.count + bar.count)
        else:
            found.append(bar)
    return found


def timeline(view: View) -> Html:
    """Return the timeline of the workers; '' where nothing ran in the last minute."""
    tick = view.tick
    bars = bars_of(view) if tick is not None else []
    if tick is None or not bars:
        return Html("")
    end = float(tick.now_ms)
    newest = sorted(bars, key=lambda bar: bar.stop)[-BARS_DRAWN:]
    oldest = newest[0].stop if len(newest) < len(bars) else bars[0].start
    start = max(end - TRAIL_MS, min(end - LEAST_MS, oldest))
    bars = [bar for bar in bars if bar.stop >= oldest]
    slots = {worker.consumer: slots_of(worker) for worker in tick.workers}
    colors = colors_of(bar.name for bar in bars)
    by_worker: dict[str, list[Bar]] = {}
    for bar in bars:
        by_worker.setdefault(bar.worker, []).append(bar)
    shown = sorted(by_worker)[:WORKERS_DRAWN]
    lanes = {name: lanes_of(by_worker[name], slots.get(name, 0)) for name in shown}
    rows = [_worker(name, lanes[name], (start, end), colors, view.live) for name in shown]
    more = f", {len(shown)} of {plural(len(by_worker), 'worker')}" if len(by_worker) > 8 else ""
    part = ", not all attempts" if view.gaps else ""
    heading = f"Worker timeline: the last {duration(end - start)}{more}{part}"
    return block([caption(heading), _legend(colors, bars), *rows, _axis(start, end)])


def _legend(colors: dict[str, str], bars: Sequence[Bar]) -> Html:
    items = [_swatch(color, title(name)) for name, color in list(colors.items())[: len(PALETTE)]]
    if any(bar.state == "failed" for bar in bars):
        items.append(_swatch(FAILED.color, f"{FAILED.glyph} edge: failed"))
    return tag("div", *items, style="display:flex;flex-wrap:wrap;gap:1px 14px;font-size:12px")


def _swatch(color: str, words: str) -> Html:
    box = f"display:inline-block;width:10px;height:10px;border-radius:2px;background:{color}"
    return tag("span", tag("span", style=box), f" {words}")


def _worker(
    name: str,
    lanes: Sequence[Sequence[Bar]],
    span: tuple[float, float],
    colors: dict[str, str],
    live: bool,
) -> Html:
    start, end = span
    per_unit = (end - start) / WIDTH
    used = sum(min(bar.stop, end) - max(bar.start, start) for lane in lanes for bar in lane)
    busy = min(1.0, max(0.0, used) / (end - start) / len(lanes))
    count = sum(map(len, lanes))
    shapes = [
        _shape(bar, at, start, per_unit, colors[bar.name])
        for at, lane in enumerate(lanes)
        for bar in joined(lane, per_unit)
    ]
    height = LANE_PX * len(lanes)
    said = f"{clean(name, 30)}: {plural(count, 'attempt')}, {busy:.0%} busy"
    picture = image(svg_tag(WIDTH, height, shapes, said), said, height, live=live)
    return tag(
        "div",
        tag(
            "span",
            clean(name, 22),
            style="flex:0 0 130px;font-size:12px;overflow:hidden;white-space:nowrap;"
            f"text-overflow:ellipsis;{MUTED}",
        ),
        tag("span", picture, style="flex:1 1 200px;min-width:0"),
        tag(
            "span",
            f"{busy:.0%}",
            style="flex:0 0 40px;text-align:right;font-size:12px;"
            f"font-variant-numeric:tabular-nums;{MUTED}",
        ),
        style=f"display:flex;align-items:center;gap:8px;margin:2px 0;max-width:{TABLE_PX}px",
    )


def _shape(bar: Bar, lane: int, start: float, per_unit: float, color: str) -> Html:
    left = max(0.0, (bar.start - start) / per_unit)
    width = max(1.0, (bar.stop - start) / per_unit - left)
    top = lane * LANE_PX + 1
    long = duration(bar.stop - bar.start)
    what = (
        f"{title(bar.name)} {bar.said}: {bar.state}, {long}"
        if bar.count == 1
        else f"{bar.count:,} × {title(bar.name)}: {bar.state}, within {long}"
    )
    place = {"x": f"{left:.1f}", "width": f"{width:.1f}"}
    more = {"fill-opacity": ".55"} if bar.state == "running" else {}
    shape = tag("rect", y=str(top), height=str(LANE_PX - 2), fill=color, **place, **more)
    if bar.state == "failed":
        edge = tag("rect", y=str(top + LANE_PX - 5), height="3", fill=FAILED.color, **place)
        shape = join([shape, edge])
    return tag("g", tag("title", what), shape)


def _axis(start: float, end: float) -> Html:
    labels = [start, (start + end) / 2, end]
    return tag(
        "div",
        *(tag("span", clock(at)) for at in labels),
        style="display:flex;justify-content:space-between;margin:0 48px 0 138px;font-size:11px;"
        f"font-variant-numeric:tabular-nums;max-width:{TABLE_PX - 186}px;{MUTED}",
        **SAID_BESIDE,
    )
