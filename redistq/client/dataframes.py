"""DataFrames fanned out: by rows and by groups, and put together in the original order.

Used by Client.map_frame and map_groups, and by batches for their failures; pandas is imported here
alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..system.interpreter import require

if TYPE_CHECKING:
    import pandas as pd

Map = Callable[..., Iterable[Any]]
"""The ``map`` of a client, or of a client with options."""


def _pandas() -> Any:
    return require("pandas", "notebook", "DataFrames")


def map_frame(
    map_calls: Map, fn: Callable[[Any], Any], df: pd.DataFrame, chunks: int
) -> pd.DataFrame:
    """See Client.map_frame. Raises ValueError for no chunks at all."""
    pandas = _pandas()
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"chunks is a whole number, 1 or more, not {chunks!r}")
    if not isinstance(df, pandas.DataFrame | pandas.Series):
        raise TypeError(f"map_frame takes a DataFrame, not {type(df).__name__}")
    rows = len(df)
    chunks = min(chunks, max(rows, 1))
    edges = [rows * i // chunks for i in range(chunks + 1)]
    parts = (df.iloc[a:b] for a, b in itertools.pairwise(edges))
    results = list(map_calls(fn, parts))
    for result in results:
        if not isinstance(result, pandas.DataFrame | pandas.Series):
            raise TypeError(
                f"the function returned {type(result).__name__} for a part of the frame; it "
                "returns a DataFrame or Series (for other values: client.map)"
            )
    joined: pd.DataFrame = pandas.concat(results)
    return joined


def map_groups(map_calls: Map, fn: Callable[[Any], Any], groups: Any) -> Any:
    """See Client.map_groups. Raises TypeError for what is no groupby."""
    pandas = _pandas()
    if not hasattr(groups, "ngroup") or not hasattr(groups, "obj"):
        raise TypeError("map_groups takes df.groupby(...)")
    keys: list[Any] = []
    frames: list[Any] = []
    for key, frame in groups:
        keys.append(key)
        frames.append(frame)
    by_one = len(groups._grouper.groupings) == 1
    names = [k[0] if by_one and isinstance(k, tuple) and len(k) == 1 else k for k in keys]
    results = list(map_calls(_named(fn), names, frames)) if frames else []
    shaped = pandas.DataFrame | pandas.Series
    pairs = zip(results, frames, strict=True)
    if frames and all(isinstance(r, shaped) and r.index.equals(f.index) for r, f in pairs):
        return _in_place(groups, results)
    if repeated := _repeated_keys(groups, keys, results):
        results = [None if r is None else r.drop(repeated, axis=r.ndim - 1) for r in results]
    # pandas puts together what it would have got from the function itself.
    left = iter(results)
    how = {"include_groups": False} if groups.ndim == 2 else {}
    return groups.apply(lambda _: next(left), **how)


def _named(fn: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Return ``fn`` for a group and its key, which becomes ``group.name``, as in ``apply``."""

    def named(key: Any, group: Any) -> Any:
        object.__setattr__(group, "name", key)
        return fn(group)

    named.__wrapped__ = fn  # type: ignore[attr-defined]
    named.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)
    return named


def _in_place(groups: Any, results: list[Any]) -> Any:
    """Return rows that kept their index, where they stood: by position, for labels may repeat."""
    import numpy

    numbers = groups.ngroup().to_numpy()
    rows = numpy.flatnonzero(numbers >= 0)  # -1, or nan: no key, and left out
    rows = rows[numpy.argsort(numbers[rows], kind="stable")]
    # A Grouper of times has sorted the frame, and knows how.
    indexer = getattr(groups._grouper, "indexer", None)
    if indexer is not None:
        rows = numpy.asarray(indexer)[rows]
    joined = _pandas().concat(results).iloc[numpy.argsort(rows, kind="stable")]
    if groups.ndim == 1 and joined.ndim == 1:
        joined.name = groups.obj.name  # each had its group's key for a name
    return joined


def _repeated_keys(groups: Any, keys: list[Any], results: list[Any]) -> list[Any]:
    """Return the keys that every result still has, as columns or entries that say nothing else.

    ``apply`` leaves them out of what the function sees, which ours may want to see.
    """
    pandas = _pandas()
    there = [r for r in results if r is not None]
    if groups.ndim != 2 or not there or len({type(r) for r in there}) > 1:
        return []
    if not isinstance(there[0], pandas.DataFrame | pandas.Series):
        return []
    found = []
    for i, grouping in enumerate(groups._grouper.groupings):
        if not grouping.in_axis:
            continue
        for key, result in zip(keys, results, strict=True):
            if result is None:
                continue
            if grouping.name not in result.axes[-1]:
                break
            values = pandas.Series(result[grouping.name], dtype=object)
            own = key[i] if isinstance(key, tuple) else key
            if not (values.isna() if pandas.isna(own) else values == own).all():
                break
        else:
            found.append(grouping.name)
    return found


def failures_frame(rows: dict[int, dict[str, Any]]) -> pd.DataFrame:
    """See Batch.failures."""
    pandas = _pandas()
    index = pandas.Index(list(rows), name="position")
    kinds = {"error": "str", "message": "str", "traceback": "str", "task_id": "str"}
    columns = ["item", "error", "message", "traceback", "attempts", "task_id", "version"]
    frame = pandas.DataFrame(list(rows.values()), columns=columns, index=index)
    return frame.astype({**kinds, "attempts": "int64", "version": "int64"})
