"""What every plot is drawn on, a figure without pyplot with its title and legend; and the timeline.

Used by the plots. Nothing has to be closed, no setting changes, and any thread may draw. matplotlib
is imported when the first picture is drawn.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..display.text import look, plural
from ..errors import ConfigurationError
from ..system.interpreter import require
from .tick import Tick, slots_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EVENTS_READ = 10_000
STATES_DRAWN = ("succeeded", "cancelled", "expired", "snoozed", "recovered", "retried", "failed")
"""From the bottom of a stack up; in a timeline the later ones are drawn over the earlier."""
BARS_SHOWN = 20_000
LANES_SHOWN = 48

Bar = tuple[float, float, str, str]
"""Start and stop in ms since the epoch, worker and state."""


def events_of(source: Any) -> pd.DataFrame:
    """Return the frame to draw: the one given, or a monitor's history."""
    if hasattr(source, "get_recent_tasks"):
        frame: pd.DataFrame = source.get_recent_tasks(EVENTS_READ)
        return frame
    if hasattr(source, "columns") and hasattr(source, "index"):
        return source
    raise ConfigurationError(
        f"a plot is made from a TaskMonitor or one of its DataFrames, not {type(source).__name__}"
    )


def newest(frame: pd.DataFrame, window: Any) -> pd.DataFrame:
    """Return the part of a frame that ended within ``window`` of its newest event."""
    if frame.empty:
        return frame
    return frame[frame["finished_at"] >= frame["finished_at"].max() - window]


@functools.cache
def picture_class() -> Any:
    """Return a Figure that shows itself in a notebook as a PNG, with a sentence for those who
    cannot see it. Raises ImportError without matplotlib."""
    base: Any = require("matplotlib.figure", "notebook", "plots").Figure

    class Picture(base):  # type: ignore[misc]
        """A matplotlib Figure that needs no pyplot to be shown."""

        described = ""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

        def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
            return {"image/png": self._repr_png_(), "text/plain": repr(self)}

        def __repr__(self) -> str:
            return f"<{self.described or 'an empty figure'}>"

    return Picture


def canvas(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return the axes to draw on, those given or new ones, and their figure."""
    if ax is None:
        figure = picture_class()(figsize=size, layout="constrained")
        ax = figure.add_subplot()
    else:
        owner: Any = ax.get_figure()
        figure = owner
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_alpha(0.4)
    ax.grid(visible=True, color=ink(ax), alpha=0.15, linewidth=0.8)
    ax.set_axisbelow(True)
    return figure, ax


def ink(ax: Axes) -> Any:
    """Return the colour of text in the style of the moment."""
    return ax.xaxis.label.get_color()


def titled(figure: Figure, ax: Axes, title: str, words: str) -> Figure:
    """Return the figure with its title, above the legend, and the sentence that describes it."""
    rows = 0
    if legend := ax.get_legend():
        columns: int = getattr(legend, "_ncols", 1)
        rows = -(-len(legend.get_texts()) // columns)
    ax.set_title(title, loc="left", fontsize="medium", pad=6 + 15 * rows)
    if hasattr(figure, "described"):
        figure.described = f"{title.partition(' (')[0]}: {words}"
    return figure


def nothing(figure: Figure, ax: Axes, title: str, why: str) -> Figure:
    """Return the figure with a sentence in place of a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
    return titled(figure, ax, title, why)


def legend(ax: Axes, handles: list[Any], columns: int = 4) -> None:
    """Put the legend between title and picture."""
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize="small",
        borderaxespad=0.2,
        handlelength=1.8,
        columnspacing=1.4,
    )


# -- the timeline of workers: every attempt as a bar ---------------------------------------------


def timeline(source: Any, *, window: Any = None, ax: Axes | None = None) -> Figure:
    """Draw every attempt as a bar in a lane of its worker, coloured by how it ended.

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
    zero = bars[0][0]
    end = max(stop for _, stop, _, _ in bars)
    span = max(end - zero, 1.0)
    names: dict[str, int] = {}
    totals: dict[str, int] = {}
    for row, (worker, lane) in enumerate(list(lanes.items())[:LANES_SHOWN]):
        names.setdefault(worker[0], row)
        _draw_lane(ax, row, lane, zero, 0.4 if len(bars) <= 400 else 0.0)
        for _, _, state in lane:
            totals[state] = totals.get(state, 0) + 1
        busy = min(1.0, sum(stop - start for start, stop, _ in lane) / span)
        ax.text(
            1.01,
            row,
            f"{busy:.0%}",
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize="x-small",
        )
    ax.text(1.01, 1.01, "busy", transform=ax.transAxes, va="bottom", fontsize="x-small")
    ax.set_yticks(list(names.values()), [_short(worker) for worker in names])
    ax.set_ylim(min(len(lanes), LANES_SHOWN) - 0.4, -0.6)
    ax.set_xlim(-0.01 * span / 1000, 1.01 * span / 1000)
    when = pd.Timestamp(zero, unit="ms", tz="UTC").strftime("%H:%M:%S")
    ax.set_xlabel(f"seconds after {when} UTC")
    ax.grid(axis="y", visible=False)
    legend(ax, [_swatch(ax, state, totals[state]) for state in _ordered(totals)])
    notes = [f"the newest {BARS_SHOWN:,} of {len(bars) + cut:,} attempts"] if cut > 0 else []
    notes += [f"{plural(hidden, 'lane')} left out"] if hidden > 0 else []
    title = "Worker timeline" + (f" ({', '.join(notes)})" if notes else "")
    return titled(
        figure, ax, title, f"{plural(len(bars), 'attempt')} on {plural(len(names), 'worker')}"
    )


def _bars(frame: pd.DataFrame) -> list[Bar]:
    start = _epoch_ms(frame["started_at"])
    stop = _epoch_ms(frame["finished_at"])
    states = frame["state"].astype(str)
    workers = frame["worker"].astype(str)
    return [
        (float(a), float(b), worker, state)
        for a, b, worker, state in zip(start, stop, workers, states, strict=True)
    ]


def _running(tick: Tick) -> list[Bar]:
    """Return what runs now, as bars that end at this moment."""
    return [
        (float(task.since_ms), float(tick.now_ms), task.worker, "running")
        for task in tick.running
        if task.started
    ]


def lanes_of(
    bars: Iterable[Bar], slots: dict[str, int]
) -> dict[tuple[str, int], list[tuple[float, float, str]]]:
    """Return each worker's bars in as few lanes as they need, in the order of workers and lanes.

    An attempt's end is known as the moment its outcome was stored, which under load is some
    milliseconds late. So bars may overlap by a little, and a worker whose slots are known gets no
    lane beyond them.
    """
    lanes: dict[str, list[list[tuple[float, float, str]]]] = {}
    for start, stop, worker, state in bars:
        own = lanes.setdefault(worker, [])
        free = next((lane for lane in own if lane[-1][1] <= start + 1.0), None)
        if free is None and 0 < slots.get(worker, 0) <= len(own):
            free = min(own, key=lambda lane: lane[-1][1])
        if free is None:
            own.append(free := [])
        free.append((start, stop, state))
    return {(worker, at): lane for worker in sorted(lanes) for at, lane in enumerate(lanes[worker])}


def _draw_lane(
    ax: Axes, row: int, lane: list[tuple[float, float, str]], zero: float, edge: float
) -> None:
    by_state: dict[str, list[tuple[float, float]]] = {}
    for start, stop, state in lane:
        by_state.setdefault(state, []).append(((start - zero) / 1000, (stop - start) / 1000))
    for state in _ordered(by_state):
        face = look(state)
        ax.broken_barh(
            by_state[state],
            (row - 0.38, 0.76),
            facecolor=face.color,
            hatch=face.hatch or None,
            edgecolor=ax.get_facecolor(),
            linewidth=edge,
        )


def _ordered(states: Iterable[str]) -> list[str]:
    order = {state: at for at, state in enumerate(("running", *STATES_DRAWN))}
    return sorted(states, key=lambda state: order.get(state, -1))


def _short(worker: str) -> str:
    """Return enough of a worker's name, which is host:random, to know it from the others."""
    host, _, nonce = worker.rpartition(":")
    return f"{host[:16]}:{nonce[:4]}" if host else worker[:20]


def _swatch(ax: Axes, state: str, count: int) -> Any:
    face = look(state)
    return require("matplotlib.patches", "notebook", "plots").Patch(
        facecolor=face.color,
        hatch=face.hatch or None,
        edgecolor=ax.get_facecolor(),
        linewidth=0,
        label=f"{face.word} ({count:,})",
    )


def _epoch_ms(times: Any) -> Any:
    return times.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").to_numpy() / 1000
