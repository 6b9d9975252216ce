"""The timeline of workers: every attempt as a bar in a lane, coloured by its function.

Used by the plots. An attempt that did not succeed has a strip of its outcome's colour along its
lower edge, at least so wide that it is seen among thousands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..display.text import QUEUED, colors_of, look, plural, title
from ..system.interpreter import require
from .figure import HATCHED_MOST, STATES_DRAWN, canvas, events_of, legend, newest, nothing, titled
from .tick import Tick, slots_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS_SHOWN = 20_000
LANES_SHOWN = 48
NAMES_SHOWN = 6
"""Functions with a colour of their own where there are more than there are colours."""
_STRIP = 0.24
"""How high the strip of an outcome is; a lane is 1."""
_LEAST = 0.003
"""How wide it is at least, of the whole time."""


class Bar(NamedTuple):
    """One attempt: start and stop in ms since the epoch, worker, state and function."""

    start: float
    stop: float
    worker: str
    state: str
    name: str


def timeline(source: Any, *, window: Any = None, ax: Axes | None = None) -> Figure:
    """Draw every attempt as a bar in a lane of its worker, coloured by its function; what did not
    succeed has a strip in the colour of its outcome, and what runs is paler.

    ``source`` is a TaskMonitor (which adds what runs now) or a frame of get_recent_tasks;
    ``window`` is how far back to look from the newest event. A worker has as many lanes as it ran
    tasks at a time; how busy a lane was is written beside it.
    """
    pd = require("pandas", "notebook", "plots")
    frame = events_of(source)
    frame = frame.dropna(subset=["started_at"])
    if window is not None:
        frame = newest(frame, pd.Timedelta(window))
    bars = _bars(frame)
    slots: dict[str, int] = {}
    if hasattr(source, "tick"):
        tick = source.tick(events=1, running=500, dead=1, batches=1)
        bars += _running(tick)
        slots = {worker.consumer: slots_of(worker) for worker in tick.workers}
    cut = len(bars) - BARS_SHOWN
    bars = sorted(bars)[max(0, cut) :]
    lanes = lanes_of(bars, slots)
    hidden = len(lanes) - LANES_SHOWN
    figure, ax = canvas(ax, (8.0, 1.2 + 0.26 * max(4, min(len(lanes), LANES_SHOWN))))
    if not bars:
        return nothing(figure, ax, "Worker timeline", "no attempt has run yet")
    names = _draw(ax, bars, dict(list(lanes.items())[:LANES_SHOWN]))
    when = pd.Timestamp(bars[0].start, unit="ms", tz="UTC").strftime("%H:%M:%S")
    ax.set_xlabel(f"seconds after {when} UTC")
    notes = [f"the newest {BARS_SHOWN:,} of {len(bars) + cut:,} attempts"] if cut > 0 else []
    notes += [f"{plural(hidden, 'lane')} left out"] if hidden > 0 else []
    said = "Worker timeline" + (f" ({', '.join(notes)})" if notes else "")
    return titled(figure, ax, said, f"{plural(len(bars), 'attempt')} on {plural(names, 'worker')}")


def _draw(ax: Axes, bars: list[Bar], lanes: Mapping[tuple[str, int], list[Bar]]) -> int:
    """Draw the lanes, their names and the legend; return how many workers there are."""
    zero = bars[0].start
    span = max(max(bar.stop for bar in bars) - zero, 1.0)
    colors = _colors(bars)
    rows: dict[str, int] = {}
    for row, ((worker, _), lane) in enumerate(lanes.items()):
        rows.setdefault(worker, row)
        _draw_lane(ax, row, lane, (zero, span), colors, is_fine=len(bars) <= HATCHED_MOST)
        busy = min(1.0, sum(bar.stop - bar.start for bar in lane) / span)
        ax.text(
            1.01,
            row,
            f"{busy:.0%}",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize="x-small",
        )
    ax.text(1.01, 1.01, "busy", transform=ax.transAxes, va="bottom", fontsize="x-small")
    ax.set_yticks(list(rows.values()), [_short(worker) for worker in rows])
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    ax.set_xlim(-0.01 * span / 1000, 1.01 * span / 1000)
    ax.grid(axis="y", visible=False)
    legend(ax, _handles(ax, [bar for lane in lanes.values() for bar in lane], colors))
    return len(rows)


def _colors(bars: Iterable[Bar]) -> dict[str, str]:
    """Return each function's colour; where there are too many, that of the rarer ones is grey."""
    counts = Counter(bar.name for bar in bars)
    if len(counts) <= NAMES_SHOWN:
        return colors_of(counts)
    often = colors_of(name for name, _ in counts.most_common(NAMES_SHOWN))
    return {name: often.get(name, QUEUED.color) for name in counts}


def _bars(frame: pd.DataFrame) -> list[Bar]:
    start = _epoch_ms(frame["started_at"])
    stop = _epoch_ms(frame["finished_at"])
    texts = (frame[column].astype(str) for column in ("worker", "state", "name"))
    return [Bar(float(a), float(b), *t) for a, b, *t in zip(start, stop, *texts, strict=True)]


def _running(tick: Tick) -> list[Bar]:
    """Return what runs now, as bars that end at this moment."""
    return [
        Bar(float(task.since_ms), float(tick.now_ms), task.worker, "running", task.name)
        for task in tick.running
        if task.started
    ]


def lanes_of(bars: Iterable[Bar], slots: dict[str, int]) -> dict[tuple[str, int], list[Bar]]:
    """Return each worker's bars in as few lanes as they need, in the order of workers and lanes.

    An attempt's end is known as the moment its outcome was stored, which under load is some
    milliseconds late. So bars may overlap by a little, and a worker whose slots are known gets no
    lane beyond them.
    """
    lanes: dict[str, list[list[Bar]]] = {}
    for bar in bars:
        own = lanes.setdefault(bar.worker, [])
        free = next((lane for lane in own if lane[-1].stop <= bar.start + 1.0), None)
        if free is None and 0 < slots.get(bar.worker, 0) <= len(own):
            free = min(own, key=lambda lane: lane[-1].stop)
        if free is None:
            own.append(free := [])
        free.append(bar)
    return {(worker, at): lane for worker in sorted(lanes) for at, lane in enumerate(lanes[worker])}


def _draw_lane(
    ax: Axes,
    row: int,
    lane: list[Bar],
    time: tuple[float, float],
    colors: Mapping[str, str],
    *,
    is_fine: bool,
) -> None:
    """Draw the attempts of a lane by function, and over them the strips of their outcomes."""
    zero, span = time
    functions: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    outcomes: dict[str, list[tuple[float, float]]] = {}
    for bar in lane:
        place = ((bar.start - zero) / 1000, (bar.stop - bar.start) / 1000)
        functions.setdefault((colors[bar.name], bar.state == "running"), []).append(place)
        if bar.state not in ("succeeded", "running"):
            wide = max(place[1], span * _LEAST / 1000)
            outcomes.setdefault(bar.state, []).append((sum(place) - wide, wide))
    edge: Any = ax.get_facecolor()
    for (color, runs), places in functions.items():
        ax.broken_barh(
            places,
            (row - 0.38, 0.76),
            facecolor=color,
            edgecolor=edge,
            linewidth=0.4 if is_fine else 0.0,
            alpha=0.5 if runs else None,
        )
    for state in _ordered(outcomes):
        face = look(state)
        ax.broken_barh(
            outcomes[state],
            (row + 0.38 - _STRIP, _STRIP),
            facecolor=face.color,
            hatch=(face.hatch or None) if is_fine else None,
            edgecolor=edge,
            linewidth=0.0,
        )


def _ordered(states: Iterable[str]) -> list[str]:
    order = {state: at for at, state in enumerate(STATES_DRAWN)}
    return sorted(states, key=lambda state: order.get(state, -1))


def _short(worker: str) -> str:
    """Return enough of a worker's name, which is host:random, to know it from the others."""
    host, _, nonce = worker.rpartition(":")
    return f"{host[:16]}:{nonce[:4]}" if host else worker[:20]


def _handles(ax: Axes, bars: list[Bar], colors: Mapping[str, str]) -> list[Any]:
    """Return the legend: functions, those of no colour of their own together, and outcomes."""
    patch = require("matplotlib.patches", "notebook", "plots").Patch
    counts = Counter(bar.name for bar in bars)
    others = [name for name in counts if colors[name] == QUEUED.color]
    handles = []
    for name in sorted(counts.keys() - set(others)):
        said = title(name)[:28].replace("$", r"\$")
        handles.append(patch(facecolor=colors[name], label=f"{said} ({counts[name]:,})"))
    if others:
        total = sum(counts[name] for name in others)
        label = f"{plural(len(others), 'other')} ({total:,})"
        handles.append(patch(facecolor=QUEUED.color, label=label))
    states = Counter(bar.state for bar in bars)
    edge: Any = ax.get_facecolor()
    for state in _ordered(states.keys() - {"succeeded", "running"}):
        face = look(state)
        hatch = (face.hatch or None) if len(bars) <= HATCHED_MOST else None
        label = f"edge: {face.word} ({states[state]:,})"
        handles.append(
            patch(facecolor=face.color, hatch=hatch, edgecolor=edge, linewidth=0, label=label)
        )
    if states["running"]:
        label = f"paler: running ({states['running']:,})"
        handles.append(patch(facecolor=QUEUED.color, alpha=0.5, label=label))
    return handles


def _epoch_ms(times: Any) -> Any:
    return times.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").to_numpy() / 1000
