"""Pictures of graphs, where matplotlib is installed. Its calls block."""

from __future__ import annotations

import io
import threading
import time
from importlib.util import find_spec

from ..display.html import Html, tag, void
from ..display.text import clean, plural
from ..monitor.monitor import TaskMonitor
from ..monitor.rows import BatchRow
from . import shell

EVERY_S = 5.0
"""A picture takes some 0.3 s to draw: a page asks for another no more often."""
_drawing = threading.Lock()


class GraphPictures:
    """Which picture a page of one graph shows: another after more tasks have ended."""

    def __init__(self) -> None:
        self._ended = -1
        self._since = -EVERY_S

    def of(self, root: str, queue: str, row: BatchRow, layers: int | None) -> Html:
        """Return the image of a graph; nothing for a batch that is none (``layers`` is None)."""
        if layers is None or find_spec("matplotlib") is None:
            return Html("")
        now = time.monotonic()
        if now - self._since >= EVERY_S:
            self._ended, self._since = row.settled, now
        to = shell.address(root, "/graph.svg", q=queue, id=row.id, ended=self._ended)
        words = f"{plural(row.total, 'task')} in {plural(layers, 'layer')}"
        said = f"The graph {clean(row.id)}: {words}, in the colours of their states"
        return tag("div", void("img", src=to, alt=said, class_="graph"))


def svg_of(monitor: TaskMonitor, batch_id: str) -> bytes:
    """Return the picture of a graph as SVG; raises UnknownBatch."""
    from ..monitor.graph_plot import draw_graph

    file = io.BytesIO()
    with _drawing:  # matplotlib is for one thread at a time
        figure = draw_graph(monitor.producer.graph(batch_id))
        figure.savefig(file, format="svg", facecolor="white", bbox_inches="tight")
    return file.getvalue()
