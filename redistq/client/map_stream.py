"""Results of calls over an iterable that need not end: few calls are under way at a time.

Used by Client.map_stream. An item is taken from the iterable only when there is room for its call,
in the thread that asks for results, so what is held here and on the server is bounded.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import RedistqError
from .futures import TaskFuture, cancel_all

Submit = Callable[[tuple[Any, ...]], TaskFuture]
"""Sends the call of one item."""


def results_of(submit: Submit, rows: Iterator[tuple[Any, ...]], window: int) -> Iterator[Any]:
    """Yield results in the order of the items; closing this, or an error, cancels what has not
    started."""
    calls: deque[TaskFuture] = deque()
    has_more = True
    try:
        while has_more or calls:
            # What is there is given before the next item is asked for, which may take long.
            if calls and (not has_more or len(calls) >= window or calls[0].done()):
                calls[0].exception()  # waits; an interrupt leaves it for the end below
                yield calls.popleft().result()
                continue
            row = next(rows, None)
            if row is None:
                has_more = False
            else:
                calls.append(submit(row))
    finally:
        if calls:
            with contextlib.suppress(RedistqError):
                cancel_all(list(calls))
