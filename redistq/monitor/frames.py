"""DataFrames of what a queue holds: fixed columns, dtypes and order, also when they are empty.

Used by TaskMonitor; columns.py says which columns there are, docs/frames.md says it to users. It
never talks to a server.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..protocol.keys import STATES
from ..system.interpreter import require
from .columns import Listing
from .rows import Event

if TYPE_CHECKING:
    import pandas as pd

# In the order of the columns that docs/frames.md promises.
THROUGHPUT = ("succeeded", "failed", "retried", "snoozed", "recovered", "cancelled", "expired")
QUANTILES = (0.5, 0.9, 0.95, 0.99)
_PLAIN = {"count": "int64", "number": "Int64", "real": "Float64"}
_PLAIN |= {"bytes": "Int64", "share": "Float64"}


def pandas() -> Any:
    """Return pandas. Raises ImportError, which says how to install it."""
    return require("pandas", "notebook", "DataFrames")


def frame(listing: Listing, records: Iterable[Any]) -> pd.DataFrame:
    """Return records as a DataFrame of exactly the listing's columns and dtypes."""
    pd = pandas()
    columns = listing.columns
    rows = [listing.row(record) for record in records]
    data = {
        name: column(kind, [row[i] for row in rows], listing.labels.get(name, ()))
        for i, (name, kind) in enumerate(columns)
    }
    found = pd.DataFrame(data, columns=[name for name, _ in columns])
    return found if listing.index is None else found.set_index(listing.index)


def column(kind: str, values: Sequence[Any], labels: Sequence[str] = ()) -> pd.Series[Any]:
    """Return one column: times from ms since the epoch, spans from ms, None for the unknown."""
    pd = pandas()
    if kind == "time":
        found = pd.Series(_integers(values, 1).view("datetime64[ms]"))
        return found.dt.tz_localize("UTC")
    if kind == "span":
        return pd.Series(_integers(values, 1000).view("timedelta64[us]"))
    if kind in ("state", "label"):
        names = STATES if kind == "state" else (labels or sorted({v for v in values if v}))
        dtype = pd.CategoricalDtype(
            pd.Index(list(names), dtype=text_dtype()), ordered=kind == "state"
        )
        known = set(names)
        return pd.Series(pd.Categorical([v if v in known else None for v in values], dtype=dtype))
    return pd.Series(list(values), dtype=text_dtype() if kind == "text" else _PLAIN[kind])


def text_dtype() -> Any:
    """Return what pandas makes of strings: ``str`` since pandas 3, ``object`` before."""
    return "str" if int(pandas().__version__.split(".")[0]) >= 3 else object


def _integers(values: Sequence[Any], factor: int) -> Any:
    """Return 64-bit integers; None becomes the smallest one, which numpy reads as NaT."""
    import numpy as np

    nothing = np.iinfo("int64").min
    return np.array([nothing if v is None else round(v * factor) for v in values], dtype="int64")


def throughput(
    events: Sequence[Event], start_ms: int, end_ms: int, step_ms: int, by: str | None = None
) -> pd.DataFrame:
    """Return ends of attempts per step from ``start_ms`` to ``end_ms``; 0 in steps without one."""
    pd = pandas()
    import numpy as np

    first = start_ms // step_ms
    steps = max(1, math.ceil(end_ms / step_ms) - first)
    begin = pd.Timestamp(first * step_ms, unit="ms", tz="UTC").as_unit("ms")
    index = pd.date_range(begin, periods=steps, freq=pd.Timedelta(step_ms, unit="ms"), name="ts")
    keys = [] if by is None else sorted({getattr(event, by) for event in events})
    names = [(key, state) for key in keys for state in THROUGHPUT]
    at = {name: i for i, name in enumerate(names if by else THROUGHPUT)}
    counts = np.zeros((steps, len(at)), dtype="int64")
    for event in events:
        row = event.finished_ms // step_ms - first
        where = at.get((getattr(event, by), event.state) if by else event.state)
        if where is not None and 0 <= row < steps:
            counts[row, where] += 1
    if by is None:
        columns = pd.Index(list(THROUGHPUT), dtype=text_dtype())
    else:
        columns = pd.MultiIndex.from_tuples(names, names=[by, "state"])
    return pd.DataFrame(counts, index=index.as_unit("ms"), columns=columns)


def latency(
    events: Iterable[Event], by: str = "name", quantiles: Sequence[float] = QUANTILES
) -> pd.DataFrame:
    """Return queueing and run time quantiles of attempts that ran, per ``by``."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for event in events:
        if event.run_ms is not None and event.wait_ms is not None and event.worker:
            groups.setdefault(getattr(event, by), []).append((event.wait_ms, event.run_ms))
    marks = [f"p{100 * q:g}" for q in quantiles]
    names = [
        (by, "text"),
        ("count", "count"),
        *((f"wait_{mark}", "span") for mark in marks),
        *((f"run_{mark}", "span") for mark in marks),
        ("wait_mean", "span"),
        ("run_mean", "span"),
        ("run_max", "span"),
    ]
    listing = Listing(
        *((name, kind, itemgetter(at)) for at, (name, kind) in enumerate(names)), index=by
    )
    rows = []
    for key in sorted(groups):
        waits, runs = (sorted(part) for part in zip(*groups[key], strict=True))
        rows.append(
            (
                key,
                len(runs),
                *(quantile(waits, q) for q in quantiles),
                *(quantile(runs, q) for q in quantiles),
                statistics.fmean(waits),
                statistics.fmean(runs),
                runs[-1],
            )
        )
    return frame(listing, rows)


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the q-quantile of sorted values, between neighbours in proportion."""
    at = (len(ordered) - 1) * q
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def milliseconds(span: Any, what: str) -> int:
    """Return a span ("5min", a timedelta, seconds) in whole ms; raises ConfigurationError."""
    pd = pandas()
    try:
        if isinstance(span, int | float) and not isinstance(span, bool):
            span = pd.Timedelta(span, unit="s")
        ms = round(pd.Timedelta(span) / pd.Timedelta(1, unit="ms"))
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(f"{what} is a span such as '5min' or seconds: {span!r}") from error
    if ms < 1:
        raise ConfigurationError(f"{what} is longer than 0: {span!r}")
    return int(ms)


def stamp(found: pd.DataFrame, **facts: Any) -> pd.DataFrame:
    """Return the frame with ``attrs["redistq"]``: when and where it was read."""
    found.attrs["redistq"] = facts
    return found
