"""What every plot is drawn on, a figure without pyplot with its title and legend.

Used by the plots. Nothing has to be closed, no setting changes, and any thread may draw. matplotlib
is imported when the first picture is drawn.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..system.interpreter import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EVENTS_READ = 10_000
STATES_DRAWN = ("succeeded", "cancelled", "expired", "snoozed", "recovered", "retried", "failed")
"""From the bottom of a stack up; in a timeline the later ones are drawn over the earlier."""
HATCHED_MOST = 400
"""A hatch on more bars than so many would be noise."""


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
