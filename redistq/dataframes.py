"""DataFrames fanned out: by rows and by groups, and put together in the original order.

Used by Client.map_frame and map_groups; pandas is imported here alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from .client import _Submitting


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "pandas is needed for DataFrames: pip install redistq[notebook]"
        ) from error
    return pandas


def map_frame(
    submitting: _Submitting, fn: Callable[[Any], Any], df: pd.DataFrame, chunks: int
) -> pd.DataFrame:
    """See Client.map_frame. Raises ValueError for no chunks at all."""
    pandas = _pandas()
    if chunks < 1:
        raise ValueError("chunks is 1 or more")
    if not isinstance(df, pandas.DataFrame | pandas.Series):
        raise TypeError(f"map_frame takes a DataFrame, not {type(df).__name__}")
    rows = len(df)
    chunks = min(chunks, max(rows, 1))
    edges = [rows * i // chunks for i in range(chunks + 1)]
    parts = (df.iloc[a:b] for a, b in itertools.pairwise(edges))
    results = list(submitting.map(fn, parts))
    for result in results:
        if not isinstance(result, pandas.DataFrame | pandas.Series):
            raise TypeError(
                f"the function returned {type(result).__name__} for a part of the frame; it "
                "returns a DataFrame or Series (for other values: client.map)"
            )
    joined: pd.DataFrame = pandas.concat(results)
    return joined


def map_groups(submitting: _Submitting, fn: Callable[[Any], Any], groups: Any) -> pd.DataFrame:
    """See Client.map_groups. Raises TypeError for what is no groupby."""
    pandas = _pandas()
    if not hasattr(groups, "indices") or not hasattr(groups, "obj"):
        raise TypeError("map_groups takes df.groupby(...)")
    keys, frames = [], []
    for key, frame in groups:
        keys.append(key)
        frames.append(frame)
    if not frames:
        return pandas.DataFrame(columns=groups.obj.columns)
    results = list(submitting.map(fn, frames))
    whole = all(
        isinstance(r, pandas.DataFrame | pandas.Series) and r.index.equals(f.index)
        for r, f in zip(results, frames, strict=True)
    )
    if whole:
        # Rows kept their index: back to where they stood, by position, since labels may repeat.
        import numpy

        positions = numpy.concatenate([groups.indices[key] for key in _index_keys(groups, keys)])
        joined = pandas.concat(results)
        return joined.iloc[numpy.argsort(positions, kind="stable")]
    names = [grouping.name for grouping in groups._grouper.groupings]
    if all(isinstance(r, pandas.DataFrame | pandas.Series) for r in results):
        return pandas.concat(results, keys=keys, names=names)
    if isinstance(keys[0], tuple):
        index = pandas.MultiIndex.from_tuples(keys, names=names)
    else:
        index = pandas.Index(keys, name=names[0])
    return pandas.DataFrame({"result": results}, index=index)


def _index_keys(groups: Any, keys: list[Any]) -> list[Any]:
    """The keys under which ``groups.indices`` knows the groups: iteration gives one-tuples."""
    known = groups.indices
    return [key if key in known else key[0] for key in keys]
