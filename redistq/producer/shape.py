"""The shape of a graph: its tasks by name and layer, and what each runs after; kept on the server.

Written by graphs when they are sent, and read when they are looked at, by whoever knows their name.
A part holds some hundred tasks, and a summary the tasks of one name and layer as one group: so a
graph of a million tasks is looked at without reading all of it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PART = 500
"""Tasks in one part."""
SUMMARY = "summary"
LONGEST_SUMMARY = 5_000
"""Most groups, and most links between them, of which a summary tells; the rest is left out."""


@dataclass(frozen=True, slots=True)
class ShapeNode:
    """One task: what it is called, how many steps from the beginning it stands, and the positions
    of those it runs after."""

    name: str
    layer: int
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShapeGroup:
    """The tasks of one name in one layer: how many, and the positions of some of them."""

    name: str
    layer: int
    count: int
    sample: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """A graph in groups; ``links`` are pairs of groups by place, and how many tasks of the second
    run after one of the first."""

    total: int
    layers: int
    groups: tuple[ShapeGroup, ...]
    links: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class Shape:
    """The shape of a graph while it is written."""

    layers: list[int] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Of each task its name, its layer, and its parents: as they are kept."""

    def add(self, name: str, parents: Sequence[int]) -> int:
        """Append a task that runs after those at these positions; return its position."""
        layers = self.layers
        layer = 1 + max([layers[i] for i in parents]) if parents else 0
        layers.append(layer)
        self.rows.append((name, layer, *parents))
        return len(layers) - 1

    def fields(self) -> Iterator[dict[str, bytes]]:
        """Yield what is kept of it, some parts at a time; the summary comes last."""
        parts: dict[str, bytes] = {}
        for start in range(0, len(self.rows), PART):
            parts[f"part:{start // PART}"] = _packed(self.rows[start : start + PART])
            if len(parts) == 20:
                yield parts
                parts = {}
        yield {**parts, SUMMARY: _packed(self._summary())}

    def summary(self) -> Summary:
        """Return it in groups, as ``read_summary`` does of what is kept."""
        return _summary_of(self._summary())

    def _summary(self) -> list[Any]:
        places: dict[tuple[str, int], int] = {}
        members: list[list[int]] = []
        links: dict[tuple[int, int], int] = {}
        of: list[int] = []
        for position, (name, layer, *parents) in enumerate(self.rows):
            place = places.get((name, layer))
            if place is None:
                place = places[name, layer] = len(members)
                members.append([])
            members[place].append(position)
            of.append(place)
            for before in {of[parent] for parent in parents}:
                links[before, place] = links.get((before, place), 0) + 1
        groups = [
            [name, layer, len(members[place]), members[place][:: max(len(members[place]) // 50, 1)]]
            for (name, layer), place in places.items()
        ][:LONGEST_SUMMARY]
        kept = [
            [first, second, count]
            for (first, second), count in links.items()
            if max(first, second) < LONGEST_SUMMARY
        ][:LONGEST_SUMMARY]
        return [len(self.rows), 1 + max(self.layers, default=-1), groups, kept]


def read_summary(raw: bytes) -> Summary:
    """Return a summary as it was kept; raises ValueError for what is none."""
    return _summary_of(_unpacked(raw))


def _summary_of(parts: Any) -> Summary:
    total, layers, groups, links = parts
    return Summary(
        int(total),
        int(layers),
        tuple(ShapeGroup(str(n), int(at), int(k), tuple(map(int, s))) for n, at, k, s in groups),
        tuple((int(a), int(b), int(k)) for a, b, k in links),
    )


def read_part(raw: bytes) -> list[ShapeNode]:
    """Return the tasks of a part as they were kept; raises ValueError for what is none."""
    return [ShapeNode(str(n), int(at), tuple(map(int, p))) for n, at, *p in _unpacked(raw)]


def _packed(rows: list[Any]) -> bytes:
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode("utf-8", "replace"), 1)


def _unpacked(raw: bytes) -> Any:
    try:
        return json.loads(zlib.decompress(raw))
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"this is no shape of a graph: {error}") from error
