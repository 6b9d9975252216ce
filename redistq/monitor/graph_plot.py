"""The picture of a graph: from left to right, in layers, in the colours of the states.

``draw_graph`` draws each task of a small graph, and of a large one the groups of tasks with one
name in one layer, each as a bar of its states: of a very large one the states of some of its tasks
stand for all, and the counts in the legend are exact all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..display.text import clean, look, plural
from .figure import canvas, ink, legend, nothing, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..producer.graph import Graph
    from ..producer.shape import ShapeNode, Summary

TASKS_DRAWN = 300
"""Most tasks that are drawn one by one."""
NAMED = 40
"""Most tasks that have their names written beside them."""
GROUPS_DRAWN = 120
"""Most boxes that are drawn of a large graph."""
COLUMNS = 12
"""Most columns of boxes; a deeper graph has several layers in one."""
SAMPLED = 100
"""About how many tasks of a box are asked for their states."""
HALF = 0.36
"""Half the width of a box."""
EDGES_DRAWN = 6_000
MARKS = {"failed": "X", "cancelled": "D", "expired": "D", "running": ">", "waiting": "o"}
ORDER = ("succeeded", "running", "queued", "delayed", "waiting", "cancelled", "expired", "failed")
SWEEPS = 4
"""How often the order in each layer is improved, forth and back."""


def draw_graph(graph: Graph, *, ax: Axes | None = None) -> Figure:
    """Draw a graph; see Graph.plot."""
    summary = graph.summary()
    counts = graph.counts()
    if summary.total <= TASKS_DRAWN:
        return _draw_tasks(graph, summary, counts, ax)
    return _draw_groups(graph, summary, counts, ax)


def places(layers: Sequence[int], parents: Sequence[Sequence[int]]) -> list[float]:
    """Return the height of each node in its layer, so that few edges cross: each near the middle of
    those it is tied to, and the layers centred on each other."""
    rows: dict[int, list[int]] = {}
    for node, layer in enumerate(layers):
        rows.setdefault(layer, []).append(node)
    children: list[list[int]] = [[] for _ in layers]
    for node, before in enumerate(parents):
        for parent in before:
            children[parent].append(node)
    height = [0.0] * len(layers)
    order = sorted(rows)

    def spread(row: list[int]) -> None:
        for k, node in enumerate(row):
            height[node] = k - (len(row) - 1) / 2

    for layer in order:
        spread(rows[layer])
    for sweep in range(SWEEPS):
        forth = sweep % 2 == 0
        ties = parents if forth else children
        for layer in order if forth else reversed(order):
            row = rows[layer]
            aim = {n: sum(height[t] for t in ties[n]) / len(ties[n]) for n in row if ties[n]}
            row.sort(key=lambda node: aim.get(node, height[node]))
            spread(row)
    return height


def _draw_tasks(graph: Graph, summary: Summary, counts: dict[str, int], ax: Axes | None) -> Figure:
    nodes = graph.shape(summary.total)
    states = graph.states_at(range(len(nodes)))
    height = places([node.layer for node in nodes], [node.parents for node in nodes])
    widest = max(Counter(node.layer for node in nodes).values(), default=1)
    width = min(max(1.5 * summary.layers + 1.0, 5.0), 16.0)
    figure, ax = canvas(ax, (width, min(max(0.42 * widest + 1.2, 2.6), 12.0)))
    _blank(ax)
    if not nodes:
        return nothing(figure, ax, graph.name, "no tasks")
    pairs = ((p, i) for i, node in enumerate(nodes) for p in node.parents)
    _edges(ax, [[(nodes[p].layer, height[p]), (nodes[i].layer, height[i])] for p, i in pairs])
    size = 150.0 if widest <= 12 else 60.0 if widest <= 40 else 22.0
    for state in sorted(set(states), key=_rank):
        picked = [i for i, one in enumerate(states) if one == state]
        face = look(state)
        ax.scatter(
            [nodes[i].layer for i in picked],
            [height[i] for i in picked],
            s=size,
            marker=MARKS.get(state, "o"),
            color=face.color if state != "waiting" else "none",
            edgecolors=face.color,
            linewidths=1.4,
            zorder=3,
        )
    _name(ax, nodes, height, widest)
    ax.margins(0.12, min(0.15, 1.2 / widest))
    _legend(ax, Counter(states))
    return titled(figure, ax, _title(graph, summary), _words(counts))


def _name(ax: Axes, nodes: Sequence[ShapeNode], height: Sequence[float], widest: int) -> None:
    """Write names: of every task where there are few, else of each layer."""
    style: dict[str, Any] = {"ha": "center", "fontsize": "x-small", "color": ink(ax)}
    if len(nodes) <= NAMED and widest <= 14:
        for node, y in zip(nodes, height, strict=True):
            ax.annotate(
                clean(node.name.rpartition(".")[2], 18),
                (node.layer, y),
                xytext=(0, -9),
                textcoords="offset points",
                va="top",
                **style,
            )
        return
    layers: dict[int, list[str]] = {}
    low = min(height)
    for node in nodes:
        names = layers.setdefault(node.layer, [])
        if node.name not in names:
            names.append(node.name)
    for layer, names in layers.items():
        text = "\n".join(clean(name.rpartition(".")[2], 16) for name in names[:3])
        ax.annotate(
            text + ("\n…" if len(names) > 3 else ""),
            (layer, low),
            xytext=(0, -12),
            textcoords="offset points",
            va="top",
            **style,
        )


@dataclass(slots=True)
class _Box:
    """What is drawn of a large graph: the tasks of one name in one column."""

    name: str
    column: int
    count: int
    sample: list[int]


def boxes_of(summary: Summary) -> tuple[list[_Box], dict[tuple[int, int], int]]:
    """Return the groups of a graph as boxes in few columns, each of one layer or of several that
    follow each other, and how many edges run between two of them."""
    columns = min(summary.layers, COLUMNS)
    places: dict[tuple[int, str], int] = {}
    boxes: list[_Box] = []
    box_of: list[int] = []
    for group in summary.groups:
        column = group.layer * columns // summary.layers
        place = places.setdefault((column, group.name), len(places))
        if place == len(boxes):
            boxes.append(_Box(group.name, column, 0, []))
        boxes[place].count += group.count
        boxes[place].sample += group.sample
        box_of.append(place)
    links: Counter[tuple[int, int]] = Counter()
    for first, second, count in summary.links:
        if box_of[first] != box_of[second]:
            links[box_of[first], box_of[second]] += count
    return boxes, links


def _draw_groups(graph: Graph, summary: Summary, counts: dict[str, int], ax: Axes | None) -> Figure:
    every, links = boxes_of(summary)
    boxes = every[:GROUPS_DRAWN]
    links = {ends: count for ends, count in links.items() if max(ends) < len(boxes)}
    parents: list[list[int]] = [[] for _ in boxes]
    for first, second in links:
        parents[second].append(first)
    columns = [box.column for box in boxes]
    height = places(columns, parents)
    widest = max(Counter(columns).values())
    size = (min(max(1.35 * (1 + max(columns)) + 0.6, 6.0), 18.0), min(max(widest, 2.2), 14.0))
    figure, ax = canvas(ax, size)
    _blank(ax)
    most = max(links.values(), default=1)
    ends = [
        [
            (columns[a] + HALF * (columns[a] != columns[b]), height[a]),
            (columns[b] - HALF * (columns[a] != columns[b]), height[b]),
        ]
        for a, b in links
    ]
    _edges(ax, ends, [0.8 + 2.4 * count / most for count in links.values()])
    seen: set[str] = set()
    for box, y in zip(boxes, height, strict=True):
        step = max(len(box.sample) // SAMPLED, 1)
        states = Counter(graph.states_at(box.sample[::step]))
        seen.update(states)
        _draw_box(ax, box, y, states)
    ax.set_xlim(min(columns) - 0.6, max(columns) + 0.6)
    middle = (min(height) + max(height)) / 2
    reach = max(max(height) - middle + 0.6, 1.1)
    ax.set_ylim(middle - reach, middle + reach)
    _legend(ax, {state: counts.get(state, 0) for state in seen})
    title = _title(graph, summary)
    if summary.layers > COLUMNS:
        title += f", {summary.layers:,} layers in {COLUMNS} columns"
    if len(every) > len(boxes):
        title += f", {len(boxes):,} of {len(every):,} groups"
    return titled(figure, ax, title, _words(counts))


def _draw_box(ax: Axes, box: _Box, y: float, states: Counter[str]) -> None:
    from matplotlib.patches import Rectangle

    left = box.column - HALF
    for state in sorted(states, key=_rank):
        share = 2 * HALF * states[state] / states.total()
        face = look(state)
        bar = Rectangle((left, y - 0.14), share, 0.28, facecolor=face.color, zorder=3)
        bar.set(hatch=face.hatch or None, edgecolor=(1, 1, 1, 0.35), linewidth=0)
        ax.add_patch(bar)
        left += share
    frame = Rectangle((box.column - HALF, y - 0.14), 2 * HALF, 0.28, fill=False)
    frame.set(edgecolor=ink(ax), alpha=0.6, linewidth=0.8, zorder=4)
    ax.add_patch(frame)
    ax.annotate(
        f"{clean(box.name.rpartition('.')[2], 16)}\n×{box.count:,}",
        (box.column, y - 0.14),
        xytext=(0, -3),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize="x-small",
        color=ink(ax),
    )


def _blank(ax: Axes) -> None:
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _edges(ax: Axes, lines: list[Any], widths: Iterable[float] = (0.9,)) -> None:
    from matplotlib.collections import LineCollection

    alpha = 0.45 if len(lines) < 400 else 0.15
    drawn = lines[:EDGES_DRAWN]
    ax.add_collection(
        LineCollection(drawn, colors=[ink(ax)], alpha=alpha, linewidths=list(widths), zorder=1)
    )


def _legend(ax: Axes, counts: Any) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for state in sorted(counts, key=_rank):
        face = look(state)
        said = f"{face.word} {counts[state]:,}" if counts[state] else face.word
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker=MARKS.get(state, "o"),
                markerfacecolor=face.color if state != "waiting" else "none",
                markeredgecolor=face.color,
                label=said,
            )
        )
    legend(ax, handles, columns=6)


def _rank(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)


def _title(graph: Graph, summary: Summary) -> str:
    return f"Graph {clean(graph.name, 40)} ({plural(summary.total, 'task')})"


def _words(counts: dict[str, int]) -> str:
    said = [
        f"{counts[s]:,} {s}" for s in ("succeeded", "failed", "cancelled", "expired") if counts[s]
    ]
    return ", ".join([*said, f"{counts['waiting']:,} not ended"])
