"""The plots, by the data of what they draw: not by their pixels."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from redistq import ConfigurationError, TaskMonitor, TaskWorker
from redistq.display.text import LOOKS, PALETTE

pd = pytest.importorskip("pandas")
matplotlib = pytest.importorskip("matplotlib")

from redistq.monitor import columns, frames, plots  # noqa: E402 - after the skips
from redistq.monitor.figure import HATCHED_MOST, picture_class  # noqa: E402
from redistq.monitor.rows import Event  # noqa: E402
from redistq.monitor.timeline_plot import BARS_SHOWN, Bar, lanes_of  # noqa: E402

NOW = 1_790_000_000_000
ALL = (plots.throughput, plots.latency, plots.timeline, plots.failures)


def attempt(
    end_s: float, *, run_s: float = 1.0, wait_s: float = 0.5, state: str = "succeeded", **more: Any
) -> Event:
    """An attempt that ended so many seconds after the beginning."""
    end = NOW + int(end_s * 1000)
    fields: dict[str, Any] = {
        "entry": f"{end}-0",
        "id": f"t{end}",
        "name": "resize",
        "worker": "host:aaaa",
        "attempt": 1,
        "queued_ms": end - int((run_s + wait_s) * 1000),
        "note": "",
    }
    return Event(state=state, finished_ms=end, run_ms=run_s * 1000, **{**fields, **more})


def recent_of(events: list[Event]) -> Any:
    """What get_recent_tasks answers for these."""
    return frames.frame(columns.RECENT, events)


@pytest.fixture
def recent() -> Any:
    """Six attempts of two workers: four succeeded, one was retried, one failed."""
    return recent_of(
        [
            attempt(5, state="failed", note="ValueError", worker="host:bbbb"),
            attempt(4, worker="host:bbbb"),
            attempt(3),
            attempt(2.5, state="retried", note="OSError"),
            attempt(2),
            attempt(1, run_s=0.2),
        ]
    )


@pytest.fixture
def monitor(url: str) -> Iterator[TaskMonitor]:
    """A monitor of an empty queue."""
    with TaskMonitor(url=url, stream="drawn") as made:
        yield made


def labels(ax: Any) -> list[str]:
    """The legend's words."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("plot", ALL)
def test_nothing_is_drawn_as_a_sentence(plot: Any, monitor: TaskMonitor) -> None:
    """An empty queue, and an empty frame, give a picture that says so."""
    for source in (monitor, recent_of([])):
        figure = plot(source)
        assert any(word in repr(figure) for word in ("no attempt", "nothing has failed"))
        assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("plot", ALL)
def test_a_figure_shows_itself_without_pyplot(plot: Any, recent: Any) -> None:
    """A PNG for the notebook and a sentence beside it; no figure is left open in pyplot."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = pyplot.get_fignums() if pyplot else []
    bundle = plot(recent)._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert len(bundle["text/plain"]) > 20
    assert (pyplot.get_fignums() if pyplot else []) == before


@pytest.mark.parametrize("plot", ALL)
def test_it_draws_where_it_is_told(plot: Any, recent: Any) -> None:
    """With ``ax`` it draws there and answers that figure."""
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot()
    assert plot(recent, ax=ax) is figure
    assert ax.get_title(loc="left")


def test_throughput_counts_attempts_by_state(recent: Any) -> None:
    """Bars of a step each, stacked by state; their area is the number of attempts."""
    figure = plots.throughput(recent)
    ax = figure.axes[0]
    area = sum(bar.get_height() * bar.get_width() * 86_400 for bar in ax.patches)
    assert area == pytest.approx(6)
    assert labels(ax) == [
        "succeeded (4)",
        "retried (1)",
        "failed (1)",
        "queue depth, right (at most 2)",
    ]
    assert "4 succeeded, 1 retried, 1 failed" in repr(figure)


def test_depth_rises_and_falls_to_what_waits_now(monitor: TaskMonitor) -> None:
    """From the history and the present: three done, two still waiting, so five at first."""
    worker = TaskWorker(url=monitor.url, stream="drawn", task_handlers={"x": lambda _: None})
    with worker:
        ids = monitor.producer.add_tasks(("x", n) for n in range(3))
        for task_id in ids:
            monitor.producer.get_result(task_id, timeout=15)
    monitor.producer.add_tasks(("x", n) for n in range(2))
    figure = plots.throughput(monitor)
    depth = list(figure.axes[1].lines[0].get_ydata())
    assert depth[-1] == 2
    assert max(depth) >= 2


def test_a_throughput_frame_is_drawn_too(monitor: TaskMonitor) -> None:
    """What get_throughput answers: bars alone, since it knows no depth."""
    frame = frames.throughput([attempt(0.5), attempt(1.2)], NOW, NOW + 3000, 1000, None)
    figure = plots.throughput(frame)
    assert len(figure.axes) == 1
    assert labels(figure.axes[0]) == ["succeeded (2)"]


def test_latency_marks_the_quantiles(recent: Any) -> None:
    """A step curve from 0 to 1 for waiting and for running, with p50, p95 and p99 on it."""
    ax = plots.latency(recent).axes[0]
    curves = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert [list(line.get_ydata())[-1] for line in curves] == [1.0, 1.0]
    assert min(curves[0].get_xdata()) == pytest.approx(200, rel=0.01)
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in marks] == ["o", "s", "^"] * 2
    assert labels(ax)[1].startswith("waited (6): p50 500 ms")
    assert "no attempt has run yet" in repr(plots.latency(recent, name="other"))


def test_the_timeline_has_a_lane_for_each_slot(recent: Any) -> None:
    """Overlapping attempts of a worker lie in lanes of their own, one after the other in one."""
    figure = plots.timeline(recent)
    ax = figure.axes[0]
    # aaaa: 0.8-1, 1-2, 1.5-2.5, 2-3: two lanes; bbbb: 3-4, 4-5: one lane.
    lanes = {round(path.vertices[:, 1].mean()) for c in ax.collections for path in c.get_paths()}
    assert lanes == {0, 1, 2}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["host:aaaa", "host:bbbb"]
    assert set(labels(ax)) == {"resize (6)", "edge: retried (1)", "edge: failed (1)"}
    hatches = [c.get_hatch() for c in ax.collections if c.get_hatch()]
    assert LOOKS["failed"].hatch in hatches


def test_the_timeline_has_no_more_lanes_than_slots() -> None:
    """An end is stored a little late, so attempts seem to overlap: that makes no slot."""
    bars = [Bar(start, start + 110.0, "w", "succeeded", "x") for start in (0.0, 100.0)]
    assert len(lanes_of(bars, {"w": 1})) == 1
    assert len(lanes_of(bars, {"w": 2})) == 2
    assert len(lanes_of(bars, {})) == 2


def test_the_timeline_has_a_colour_for_each_function() -> None:
    """The rarer ones of many are grey together; a failure among thousands is a strip that is seen,
    and nothing is hatched there."""
    names = ["redistq.call:fetch", "parse"]
    events = [
        attempt(n / 10, run_s=0.05, name=names[n % 2], state="failed" if n == 7 else "succeeded")
        for n in range(HATCHED_MOST + 100)
    ]
    ax = plots.timeline(recent_of(events)).axes[0]
    assert labels(ax) == ["parse (250)", "fetch() (250)", "edge: failed (1)"]
    drawn = {matplotlib.colors.to_hex(c.get_facecolor()[0]).upper(): c for c in ax.collections}
    assert list(drawn) == [*PALETTE[1::-1], LOOKS["failed"].color]
    (strip,) = drawn[LOOKS["failed"].color].get_paths()
    assert strip.get_extents().width > 0.1 > 0.05
    assert not any(c.get_hatch() for c in ax.collections)
    many = [attempt(n, name=f"f{min(n, 9)}") for n in range(20)]
    ax = plots.timeline(recent_of(many)).axes[0]
    assert len(labels(ax)) == 7
    assert labels(ax)[-1] == "4 others (4)"


def test_the_timeline_shows_what_runs_now(monitor: TaskMonitor) -> None:
    """From a monitor: a bar that reaches this moment."""
    started, go_on = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        started.set()
        go_on.wait(30)

    worker = TaskWorker(url=monitor.url, stream="drawn", task_handlers={"x": hold}, lease=1)
    with worker:
        monitor.producer.add_task("x")
        assert started.wait(15)
        deadline = time.monotonic() + 15
        while "running (1)" not in str(_legend(plots.timeline(monitor))):
            assert time.monotonic() < deadline
            time.sleep(0.1)  # until the next heartbeat has told the server
        go_on.set()


def _legend(figure: Any) -> list[str]:
    ax = figure.axes[0]
    return labels(ax) if ax.get_legend() else []


def test_failures_are_counted_by_error(recent: Any) -> None:
    """Bars by error, the most frequent first; those that ended their task and those tried again
    in different colours."""
    more = recent_of([attempt(n, state="retried", note="OSError") for n in range(3)])
    figure = plots.failures(pd.concat([recent, more]))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["OSError", "ValueError"]
    assert labels(ax) == ["failed (1)", "retried (4)"]
    many = recent_of([attempt(n, state="failed", note=f"E{n}") for n in range(20)])
    assert "(all others)" in repr(plots.failures(many, top=3))


def test_a_failures_frame_is_drawn_too() -> None:
    """What get_failures answers, with an error whose name would be mathematics."""
    frame = pd.DataFrame({"error_type": ["$x^"], "count": [3]})
    figure = plots.failures(frame)
    assert "$x^ 3" in repr(figure)
    assert figure._repr_png_()


def test_many_attempts_are_cut_with_a_note() -> None:
    """Twenty thousand bars are enough; the title says that there were more."""
    count = BARS_SHOWN + 50
    frame = recent_of([attempt(n / 100, run_s=0.01) for n in range(count)])
    ax = plots.timeline(frame).axes[0]
    assert "the newest 20,000 of 20,050 attempts" in ax.get_title(loc="left")


def test_a_dark_style_makes_a_dark_picture(recent: Any) -> None:
    """Text and ground follow matplotlib's settings; the colours of states stay."""
    import matplotlib.style

    with matplotlib.style.context("dark_background"):
        ax = plots.throughput(recent).axes[0]
    assert sum(matplotlib.colors.to_rgb(ax.get_facecolor())) < 0.5
    assert sum(matplotlib.colors.to_rgb(ax.xaxis.label.get_color())) > 2.5
    colors = {matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches}
    assert LOOKS["failed"].color in colors


def test_states_are_told_apart_by_the_colour_blind() -> None:
    """What lies side by side differs clearly as the three kinds of colour blindness see it, or in
    its hatch."""
    kinds = {  # Machado and others, 2009: severity 1.0
        "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
        "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
        "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
    }
    drawn = ("succeeded", "failed", "retried", "recovered", "running")
    for kind, rows in kinds.items():
        seen = {}
        for state in drawn:
            color = matplotlib.colors.to_rgb(LOOKS[state].color)
            seen[state] = [sum(a * b for a, b in zip(row, color, strict=True)) for row in rows]
        for one, other in combinations(drawn, 2):
            apart = sum((a - b) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5
            assert apart > 0.12 or LOOKS[one].hatch != LOOKS[other].hatch, (kind, one, other)


def test_the_monitor_has_its_plots(monitor: TaskMonitor) -> None:
    """``monitor.plot`` offers all four."""
    for name in ("throughput", "latency", "timeline", "failures"):
        assert getattr(monitor.plot, name)().axes


def test_what_cannot_be_drawn_is_refused() -> None:
    """A clear error names what a plot is made from."""
    with pytest.raises(ConfigurationError, match="TaskMonitor or one of its DataFrames, not int"):
        plots.latency(3)


def test_without_matplotlib_the_error_says_what_to_install(
    recent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    picture_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install redistq\[notebook\]"):
        plots.latency(recent)
