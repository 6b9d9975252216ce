"""Pictures of a queue's past: throughput and depth, latency, a timeline of workers, failures.

Called from notebooks, mostly as ``TaskMonitor.plot``. Each function takes a TaskMonitor or the
matching DataFrame and answers a Figure; with ``ax=`` it draws there. It never goes through pyplot:
nothing has to be closed, no setting changes, and any thread may draw. Colours of text and ground
are matplotlib's settings of the moment, so a dark style makes a dark picture; what carries meaning
has colours that are told apart on either ground and by the colour-blind, and a hatch or a dash.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._optional import require
from ..display.palette import QUEUED, SUCCEEDED, look
from ..display.text import duration, plural
from ..errors import ConfigurationError
from .tick import Tick, slots_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plots", "failures", "latency", "throughput", "timeline"]

EVENTS_READ = 10_000
BARS_SHOWN = 20_000
LANES_SHOWN = 48
STATES_DRAWN = ("succeeded", "cancelled", "snoozed", "recovered", "retried", "failed")
"""From the bottom of a stack up; in a timeline the later ones are drawn over the earlier."""
_QUANTILES = (("p50", 0.5, "o"), ("p95", 0.95, "s"), ("p99", 0.99, "^"))


class Plots:
    """The pictures of one monitor's queue: ``monitor.plot.throughput()`` and so on."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def throughput(self, **options: Any) -> Figure:
        """Ends of attempts per second, and the queue's depth; see ``plots.throughput``."""
        return throughput(self._monitor, **options)

    def latency(self, **options: Any) -> Figure:
        """How long attempts waited and ran; see ``plots.latency``."""
        return latency(self._monitor, **options)

    def timeline(self, **options: Any) -> Figure:
        """What every slot of every worker did; see ``plots.timeline``."""
        return timeline(self._monitor, **options)

    def failures(self, **options: Any) -> Figure:
        """What went wrong, by error; see ``plots.failures``."""
        return failures(self._monitor, **options)


# -- throughput and depth ------------------------------------------------------------------------


def throughput(source: Any, *, window: Any = "5min", ax: Axes | None = None) -> Figure:
    """Ends of attempts per second, stacked by state, and the depth of the queue as a line.

    ``source`` is a TaskMonitor, a frame of get_recent_tasks, or one of get_throughput (which knows
    no depth). ``window`` is how far back to look from the newest event. The depth is that of the
    work in the history, and from a monitor also of what waits now.
    """
    pd = require("pandas", "notebook", "plots")
    figure, ax = _canvas(ax, (8.0, 3.2))
    frame, waiting = _events(source), _waiting(source)
    if "finished_at" not in frame:
        counts, width = frame[[s for s in STATES_DRAWN if s in frame]], _step_s(frame.index)
        starts, depth = frame.index, None
    else:
        frame = _last(frame, pd.Timedelta(window))
        counts, starts, width = _binned(frame)
        depth = _depth(frame, waiting)
    states = [state for state in STATES_DRAWN if state in counts and counts[state].any()]
    if not states and (depth is None or depth.empty):
        return _nothing(figure, ax, "Throughput", "no attempt has ended yet")
    bottom = 0.0 * counts[states[0]] if states else None
    for state in states:
        rate = counts[state] / width
        _bar(ax, state, starts, rate, bottom, width, int(counts[state].sum()))
        bottom = bottom + rate
    ax.set_ylabel("attempts ended per second")
    _time_axis(ax, "time (UTC)")
    handles = list(ax.get_legend_handles_labels()[0])
    if depth is not None and not depth.empty:
        handles += _draw_depth(ax, depth)
    _legend(ax, handles)
    told = ", ".join(f"{int(counts[s].sum()):,} {look(s).word}" for s in states) or "none ended"
    return _titled(figure, ax, "Throughput and queue depth", told)


def _bar(
    ax: Axes, state: str, starts: Any, rate: Any, bottom: Any, width: float, total: int
) -> None:
    face = look(state)
    ax.bar(
        starts,
        rate.to_numpy(),
        bottom=bottom.to_numpy(),
        width=width / 86_400,  # matplotlib's dates count days
        align="edge",
        color=face.color,
        hatch=face.hatch or None,
        edgecolor=ax.get_facecolor() if face.hatch else face.color,
        linewidth=0,
        label=f"{face.word} ({total:,})",
    )


def _draw_depth(ax: Axes, depth: Any) -> list[Any]:
    right = ax.twinx()
    (drawn,) = right.step(
        depth.index,
        depth.to_numpy(),
        where="post",
        color=_ink(ax),
        linewidth=1.4,
        linestyle=(0, (4, 2)),
        label=f"queue depth, right (at most {int(depth.max()):,})",
    )
    right.set_ylabel("tasks waiting")
    right.set_ylim(bottom=0)
    for name, spine in right.spines.items():
        spine.set_visible(name == "right")
        spine.set_alpha(0.4)
    return [drawn]


def _binned(frame: pd.DataFrame) -> tuple[pd.DataFrame, Any, float]:
    """Counts by state in about sixty steps; where the steps begin; their length in seconds."""
    pd = require("pandas", "notebook", "plots")
    if frame.empty:
        return pd.DataFrame(), frame["finished_at"], 1.0
    first, last = frame["finished_at"].min(), frame["finished_at"].max()
    span = max((last - first).total_seconds(), 0.5)
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600)
    width = next((step for step in steps if span / step <= 60), 86_400.0)
    freq = pd.Timedelta(seconds=width)
    bins = frame["finished_at"].dt.floor(freq)
    counts = frame.groupby([bins, frame["state"].astype(str)]).size().unstack(fill_value=0)
    every = pd.date_range(first.floor(freq), last.floor(freq), freq=freq)
    counts = counts.reindex(every, fill_value=0)
    return counts, counts.index, float(width)


def _depth(frame: pd.DataFrame, waiting: tuple[int, int | None, int] | None) -> Any:
    """How many attempts were ready and unstarted, at each moment when that changed."""
    pd = require("pandas", "notebook", "plots")
    known = frame.dropna(subset=["queued_at", "started_at"])
    came = pd.Series(1, index=pd.DatetimeIndex(known["queued_at"]))
    went = pd.Series(-1, index=pd.DatetimeIndex(known["started_at"]))
    parts = [came, went]
    if waiting is not None:
        ready, oldest_ms, now_ms = waiting
        now = pd.Timestamp(now_ms, unit="ms", tz="UTC")
        if ready and oldest_ms is not None:
            # When each of them came is not known; none came before the oldest.
            oldest = pd.Timestamp(oldest_ms, unit="ms", tz="UTC")
            parts.append(pd.Series(ready, index=pd.DatetimeIndex([oldest])))
        if ready or len(known):
            parts.append(pd.Series(0, index=pd.DatetimeIndex([now])))
    changes = pd.concat([part for part in parts if len(part)] or [came])
    steps = changes.groupby(level=0).sum().sort_index().cumsum()
    first = frame["finished_at"].min() if len(frame) else None
    if first is not None and len(steps) > 2000:
        steps = steps.iloc[:: len(steps) // 2000 + 1]
    return steps.clip(lower=0)


# -- latency -------------------------------------------------------------------------------------


def latency(source: Any, *, name: str | None = None, ax: Axes | None = None) -> Figure:
    """What share of attempts waited, and ran, no longer than a time; p50, p95 and p99 marked.

    ``source`` is a TaskMonitor or a frame of get_recent_tasks; ``name`` keeps one task name.
    """
    np = require("numpy", "notebook", "plots")
    figure, ax = _canvas(ax, (8.0, 3.4))
    frame = _events(source)
    if name is not None:
        frame = frame[frame["name"].astype(str) == name]
    told = []
    for column, word, color, dash in (
        ("run", "ran", SUCCEEDED.color, "-"),
        ("wait", "waited", QUEUED.color, (0, (5, 2))),
    ):
        ms = np.sort(_milliseconds(frame[column].dropna()))
        if not len(ms):
            continue
        shown, share = np.maximum(ms, 0.1), np.arange(1, len(ms) + 1) / len(ms)
        marks = [(label, float(np.quantile(ms, q)), q, shape) for label, q, shape in _QUANTILES]
        said = ", ".join(f"{label} {duration(value)}" for label, value, _, _ in marks)
        told.append(f"{word}: {said}")
        ax.step(
            np.concatenate([shown[:1], shown]),
            np.concatenate([[0.0], share]),
            where="post",
            color=color,
            linestyle=dash,
            linewidth=2,
            label=f"{word} ({len(ms):,}): {said}",
        )
        for _, value, q, shape in marks:
            ax.plot(
                [max(value, 0.1)],
                [q],
                shape,
                color=color,
                markersize=7,
                markeredgecolor=ax.get_facecolor(),
                zorder=3,
            )
    if not told:
        return _nothing(figure, ax, "Latency", "no attempt has run yet")
    ax.set_xscale("log")
    ticker = require("matplotlib.ticker", "notebook", "plots")
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda ms, _: duration(ms)))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("share of attempts")
    ax.set_xlabel("took no longer than (logarithmic)")
    _legend(ax, ax.get_legend_handles_labels()[0], columns=1)
    of = f" of {name}" if name else ""
    return _titled(
        figure, ax, f"Latency{of}: circle p50, square p95, triangle p99", "; ".join(told)
    )


# -- the timeline of workers ---------------------------------------------------------------------


def timeline(source: Any, *, window: Any = None, ax: Axes | None = None) -> Figure:
    """Every attempt as a bar in a lane of its worker, coloured by how it ended.

    ``source`` is a TaskMonitor (which adds what runs now) or a frame of get_recent_tasks;
    ``window`` is how far back to look from the newest event. A worker has as many lanes as it ran
    tasks at a time; how busy a lane was is written beside it.
    """
    pd = require("pandas", "notebook", "plots")
    frame = _events(source)
    frame = frame.dropna(subset=["started_at"])
    if window is not None:
        frame = _last(frame, pd.Timedelta(window))
    bars, slots = _bars(frame), {}
    if hasattr(source, "tick"):
        tick = source.tick(events=1, running=500, dead=1, batches=1)
        bars += _running(tick)
        slots = {worker.consumer: slots_of(worker) for worker in tick.workers}
    cut = len(bars) - BARS_SHOWN
    bars = sorted(bars)[max(0, cut) :]
    lanes = _lanes(bars, slots)
    hidden = len(lanes) - LANES_SHOWN
    figure, ax = _canvas(ax, (8.0, 1.2 + 0.26 * max(4, min(len(lanes), LANES_SHOWN))))
    if not bars:
        return _nothing(figure, ax, "Worker timeline", "no attempt has run yet")
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
            *(1.01, row, f"{busy:.0%}"),
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
    _legend(ax, [_swatch(ax, state, totals[state]) for state in _ordered(totals)])
    notes = [f"the newest {BARS_SHOWN:,} of {len(bars) + cut:,} attempts"] if cut > 0 else []
    notes += [f"{plural(hidden, 'lane')} left out"] if hidden > 0 else []
    title = "Worker timeline" + (f" ({', '.join(notes)})" if notes else "")
    return _titled(
        figure, ax, title, f"{plural(len(bars), 'attempt')} on {plural(len(names), 'worker')}"
    )


Bar = tuple[float, float, str, str]


def _bars(frame: pd.DataFrame) -> list[Bar]:
    start, stop = _epoch_ms(frame["started_at"]), _epoch_ms(frame["finished_at"])
    states, workers = frame["state"].astype(str), frame["worker"].astype(str)
    return [
        (float(a), float(b), worker, state)
        for a, b, worker, state in zip(start, stop, workers, states, strict=True)
    ]


def _running(tick: Tick) -> list[Bar]:
    """What runs now: bars that end at this moment."""
    return [
        (float(task.since_ms), float(tick.now_ms), task.worker, "running")
        for task in tick.running
        if task.started
    ]


def _lanes(
    bars: Iterable[Bar], slots: dict[str, int]
) -> dict[tuple[str, int], list[tuple[float, float, str]]]:
    """Each worker's bars, in as few lanes as they need; in the order of workers and lanes.

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


def _swatch(ax: Axes, state: str, count: int) -> Any:
    face = look(state)
    return require("matplotlib.patches", "notebook", "plots").Patch(
        facecolor=face.color,
        hatch=face.hatch or None,
        edgecolor=ax.get_facecolor(),
        linewidth=0,
        label=f"{face.word} ({count:,})",
    )


def _short(worker: str) -> str:
    """A worker's name is host:random; enough of it to tell it from the others."""
    host, _, nonce = worker.rpartition(":")
    return f"{host[:16]}:{nonce[:4]}" if host else worker[:20]


# -- failures ------------------------------------------------------------------------------------


def failures(source: Any, *, top: int = 10, ax: Axes | None = None) -> Figure:
    """Attempts that went wrong, by error: those that ended their task, and those tried again.

    ``source`` is a TaskMonitor, or a frame of get_recent_tasks or get_failures; the ``top`` most
    frequent errors are shown, the rest together.
    """
    frame = _events(source)
    counts: dict[str, dict[str, int]] = {}
    if "error_type" in frame:
        for error, count in zip(frame["error_type"], frame["count"], strict=True):
            of = counts.setdefault(str(error), {})
            of["failed"] = of.get("failed", 0) + int(count)
    else:
        for error, state in zip(frame["note"], frame["state"], strict=True):
            if state in ("failed", "retried", "recovered"):
                of = counts.setdefault(str(error) or "(no name)", {})
                of[str(state)] = of.get(str(state), 0) + 1
    errors = sorted(counts, key=lambda error: (-sum(counts[error].values()), error))
    if len(errors) > top:
        rest = errors[top:]
        counts["(all others)"] = {
            state: sum(counts[error].get(state, 0) for error in rest)
            for state in ("failed", "retried", "recovered")
        }
        errors = [*errors[:top], "(all others)"]
    figure, ax = _canvas(ax, (8.0, 1.3 + 0.32 * max(2, len(errors))))
    if not errors:
        return _nothing(figure, ax, "Failures", "nothing has failed")
    _draw_failures(ax, errors, counts)
    told = ", ".join(f"{error} {sum(counts[error].values()):,}" for error in errors)
    return _titled(figure, ax, "Failed attempts by error", told)


def _draw_failures(ax: Axes, errors: list[str], counts: dict[str, dict[str, int]]) -> None:
    left = [0] * len(errors)
    for state in ("failed", "retried", "recovered"):
        values = [counts[error].get(state, 0) for error in errors]
        if any(values):
            face = look(state)
            ax.barh(
                range(len(errors)),
                values,
                left=left,
                height=0.65,
                color=face.color,
                hatch=face.hatch or None,
                edgecolor=ax.get_facecolor(),
                linewidth=0,
                label=f"{face.word} ({sum(values):,})",
            )
            left = [a + b for a, b in zip(left, values, strict=True)]
    for row, total in enumerate(left):
        ax.annotate(f"{total:,}", (total, row), (4, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(errors)), [error[:40].replace("$", r"\$") for error in errors])
    ax.set_ylim(len(errors) - 0.5, -0.5)
    ax.set_xlabel("attempts")
    ax.margins(x=0.08)
    ticker = require("matplotlib.ticker", "notebook", "plots")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    ax.grid(axis="y", visible=False)
    _legend(ax, ax.get_legend_handles_labels()[0])


# -- what all of them need -----------------------------------------------------------------------


def _events(source: Any) -> pd.DataFrame:
    """The frame to draw: the one given, or a monitor's history."""
    if hasattr(source, "get_recent_tasks"):
        frame: pd.DataFrame = source.get_recent_tasks(EVENTS_READ)
        return frame
    if hasattr(source, "columns") and hasattr(source, "index"):
        return source
    raise ConfigurationError(
        f"a plot is made from a TaskMonitor or one of its DataFrames, not {type(source).__name__}"
    )


def _waiting(source: Any) -> tuple[int, int | None, int] | None:
    """What waits now, since when, and what time it is; None when only a frame is known."""
    if not hasattr(source, "snapshot"):
        return None
    shot = source.snapshot()
    return shot.ready, shot.oldest_ms, shot.now_ms


def _last(frame: pd.DataFrame, window: Any) -> pd.DataFrame:
    if frame.empty:
        return frame
    return frame[frame["finished_at"] >= frame["finished_at"].max() - window]


def _milliseconds(spans: Any) -> Any:
    """Timedeltas, or seconds as numbers, as milliseconds."""
    if spans.dtype.kind == "m":
        return spans.dt.total_seconds().to_numpy() * 1000
    return spans.to_numpy(dtype=float) * 1000


def _epoch_ms(times: Any) -> Any:
    return times.dt.tz_convert("UTC").dt.as_unit("us").astype("int64").to_numpy() / 1000


def _step_s(index: Any) -> float:
    return float((index[1] - index[0]).total_seconds()) if len(index) > 1 else 1.0


_picture: Any = None


def _new_figure(size: tuple[float, float]) -> Figure:
    """A Figure that shows itself in a notebook as a PNG, with a sentence for who cannot see it."""
    global _picture
    if _picture is None:
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

        _picture = Picture
    figure: Figure = _picture(figsize=size, layout="constrained")
    return figure


def _canvas(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    if ax is None:
        figure = _new_figure(size)
        ax = figure.add_subplot()
    else:
        owner: Any = ax.get_figure()
        figure = owner
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_alpha(0.4)
    ax.grid(visible=True, color=_ink(ax), alpha=0.15, linewidth=0.8)
    ax.set_axisbelow(True)
    return figure, ax


def _ink(ax: Axes) -> Any:
    """The colour of text in the style of the moment."""
    return ax.xaxis.label.get_color()


def _titled(figure: Figure, ax: Axes, title: str, told: str) -> Figure:
    rows = 0
    if legend := ax.get_legend():
        columns: int = getattr(legend, "_ncols", 1)
        rows = -(-len(legend.get_texts()) // columns)
    ax.set_title(title, loc="left", fontsize="medium", pad=6 + 15 * rows)
    if hasattr(figure, "described"):
        figure.described = f"{title.partition(' (')[0]}: {told}"
    return figure


def _nothing(figure: Figure, ax: Axes, title: str, why: str) -> Figure:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
    return _titled(figure, ax, title, why)


def _legend(ax: Axes, handles: list[Any], columns: int = 4) -> None:
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


def _time_axis(ax: Axes, label: str) -> None:
    dates = require("matplotlib.dates", "notebook", "plots")
    locator = dates.AutoDateLocator(maxticks=8)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    ax.set_xlabel(label)
