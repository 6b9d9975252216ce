"""Pictures of a queue's past: throughput and depth, latency, a timeline of workers, failures.

Called from notebooks, mostly as ``TaskMonitor.plot``. Each function takes a TaskMonitor or the
matching DataFrame and returns a Figure; with ``ax=`` it draws there. It never goes through pyplot:
nothing has to be closed, no setting changes, and any thread may draw. Colours of text and ground
are matplotlib's settings of the moment, so a dark style makes a dark picture; what carries meaning
has colours that differ on either ground and for the colour-blind, and a hatch or a dash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..display.text import QUEUED, SUCCEEDED, duration, look, title
from ..system.interpreter import require
from .figure import (
    STATES_DRAWN,
    canvas,
    events_of,
    ink,
    legend,
    newest,
    nothing,
    titled,
)
from .timeline_plot import timeline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plots", "failures", "latency", "throughput", "timeline"]

DEPTHS_DRAWN = 240
_QUANTILES = (("p50", 0.5, "o"), ("p95", 0.95, "s"), ("p99", 0.99, "^"))


class Plots:
    """The pictures of one monitor's queue: ``monitor.plot.throughput()`` and so on."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def throughput(self, **options: Any) -> Figure:
        """Draw ends of attempts per second, and the queue's depth; see ``plots.throughput``."""
        return throughput(self._monitor, **options)

    def latency(self, **options: Any) -> Figure:
        """Draw how long attempts waited and ran; see ``plots.latency``."""
        return latency(self._monitor, **options)

    def timeline(self, **options: Any) -> Figure:
        """Draw what every slot of every worker did; see ``plots.timeline``."""
        return timeline(self._monitor, **options)

    def failures(self, **options: Any) -> Figure:
        """Draw what went wrong, by error; see ``plots.failures``."""
        return failures(self._monitor, **options)


# -- throughput and depth ------------------------------------------------------------------------


def throughput(source: Any, *, window: Any = "5min", ax: Axes | None = None) -> Figure:
    """Draw ends of attempts per second, stacked by state, and the depth of the queue as a line.

    ``source`` is a TaskMonitor, a frame of get_recent_tasks, or one of get_throughput (which knows
    no depth). ``window`` is how far back to look from the newest event. The depth is that of the
    work in the history, and from a monitor also of what waits now.
    """
    pd = require("pandas", "notebook", "plots")
    figure, ax = canvas(ax, (8.0, 3.2))
    frame = events_of(source)
    waiting = _waiting(source)
    if "finished_at" not in frame:
        counts = frame[[s for s in STATES_DRAWN if s in frame]]
        width = _step_s(frame.index)
        starts = frame.index
        depth = None
    else:
        frame = newest(frame, pd.Timedelta(window))
        counts, starts, width = _binned(frame)
        depth = _depth(frame, waiting)
    states = [state for state in STATES_DRAWN if state in counts and counts[state].any()]
    if not states and (depth is None or depth.empty):
        return nothing(figure, ax, "Throughput", "no attempt has ended yet")
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
    legend(ax, handles)
    words = ", ".join(f"{int(counts[s].sum()):,} {look(s).word}" for s in states) or "none ended"
    return titled(figure, ax, "Throughput and queue depth", words)


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
        color=ink(ax),
        linewidth=1.2,
        linestyle=(0, (4, 2)),
        label=f"queue depth, right (at most {int(depth.max()):,})",
    )
    right.set_ylabel("tasks queued")
    right.set_ylim(bottom=0)
    for name, spine in right.spines.items():
        spine.set_visible(name == "right")
        spine.set_alpha(0.4)
    return [drawn]


def _binned(frame: pd.DataFrame) -> tuple[pd.DataFrame, Any, float]:
    """Return counts by state in about sixty steps, where each begins, and their seconds."""
    pd = require("pandas", "notebook", "plots")
    if frame.empty:
        return pd.DataFrame(), frame["finished_at"], 1.0
    first = frame["finished_at"].min()
    last = frame["finished_at"].max()
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
    """Return how many attempts were ready and unstarted, at each moment when that changed."""
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
        if ready:
            parts.append(pd.Series(0, index=pd.DatetimeIndex([now])))
    changes = pd.concat([part for part in parts if len(part)] or [came])
    steps = changes.groupby(level=0).sum().sort_index().cumsum()
    if len(steps) > DEPTHS_DRAWN:  # the highest of each part: more than that is noise
        span = (steps.index[-1] - steps.index[0]) / DEPTHS_DRAWN
        steps = steps.resample(max(span, pd.Timedelta(milliseconds=1))).max().ffill()
    return steps.clip(lower=0)


def _waiting(source: Any) -> tuple[int, int | None, int] | None:
    """Return what waits now, since when, and what time it is; None when only a frame is known."""
    if not hasattr(source, "snapshot"):
        return None
    shot = source.snapshot()
    return shot.ready, shot.oldest_ms, shot.now_ms


def _step_s(index: Any) -> float:
    return float((index[1] - index[0]).total_seconds()) if len(index) > 1 else 1.0


def _time_axis(ax: Axes, label: str) -> None:
    dates = require("matplotlib.dates", "notebook", "plots")
    locator = dates.AutoDateLocator(maxticks=8)
    ax.xaxis.set_major_locator(locator)
    formatter = dates.ConciseDateFormatter(locator)
    # Seconds alone ("30") say nothing: the whole time of day, at every tick.
    formatter.formats[3:] = ["%H:%M", "%H:%M:%S", "%H:%M:%S.%f"]
    formatter.zero_formats[3:] = ["%H:%M", "%H:%M:%S", "%H:%M:%S"]
    formatter.offset_formats[4:] = ["%Y-%b-%d", "%Y-%b-%d"]
    ax.xaxis.set_major_formatter(formatter)
    ax.set_xlabel(label)


# -- latency -------------------------------------------------------------------------------------


def latency(source: Any, *, name: str | None = None, ax: Axes | None = None) -> Figure:
    """Draw what share of attempts waited, and ran, no longer than a time; p50, p95, p99 marked.

    ``source`` is a TaskMonitor or a frame of get_recent_tasks; ``name`` keeps one task name.
    """
    np = require("numpy", "notebook", "plots")
    figure, ax = canvas(ax, (8.0, 3.4))
    frame = events_of(source)
    if name is not None:
        frame = frame[frame["name"].astype(str) == name]
    words = []
    for column, word, color, dash in (
        ("run", "ran", SUCCEEDED.color, "-"),
        ("wait", "waited", QUEUED.color, (0, (5, 2))),
    ):
        ms = np.sort(_milliseconds(frame[column].dropna()))
        if not len(ms):
            continue
        shown = np.maximum(ms, 0.1)
        share = np.arange(1, len(ms) + 1) / len(ms)
        marks = [(label, float(np.quantile(ms, q)), q, shape) for label, q, shape in _QUANTILES]
        said = ", ".join(f"{label} {duration(value)}" for label, value, _, _ in marks)
        words.append(f"{word}: {said}")
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
    if not words:
        return nothing(figure, ax, "Latency", "no attempt has run yet")
    ax.set_xscale("log")
    ticker = require("matplotlib.ticker", "notebook", "plots")
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(_tick_said))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("share of attempts")
    ax.set_xlabel("took no longer than (logarithmic)")
    legend(ax, ax.get_legend_handles_labels()[0], columns=1)
    of = f" of {title(name)}" if name else ""
    return titled(
        figure, ax, f"Latency{of}: circle p50, square p95, triangle p99", "; ".join(words)
    )


def _tick_said(ms: float, _: Any) -> str:
    return duration(ms) if ms >= 1 else f"{ms:g} ms"


def _milliseconds(spans: Any) -> Any:
    """Return timedeltas, or seconds as numbers, as milliseconds."""
    if spans.dtype.kind == "m":
        return spans.dt.total_seconds().to_numpy() * 1000
    return spans.to_numpy(dtype=float) * 1000


# -- failures ------------------------------------------------------------------------------------


def failures(source: Any, *, top: int = 10, ax: Axes | None = None) -> Figure:
    """Draw attempts that went wrong, by error: those that ended their task or were tried again.

    ``source`` is a TaskMonitor, or a frame of get_recent_tasks or get_failures; the ``top`` most
    frequent errors are shown, the rest together.
    """
    frame = events_of(source)
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
    figure, ax = canvas(ax, (8.0, 1.3 + 0.32 * max(2, len(errors))))
    if not errors:
        return nothing(figure, ax, "Failures", "nothing has failed")
    _draw_failures(ax, errors, counts)
    words = ", ".join(f"{error} {sum(counts[error].values()):,}" for error in errors)
    return titled(figure, ax, "Failed attempts by error", words)


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
    legend(ax, ax.get_legend_handles_labels()[0])
