"""celery's canvas, for benchmarks/control.py: an app of its own, its address in the environment.

Acknowledged early (its default), prefetching 128 as its guide gives for many short tasks, results
in the same server.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain, chord, group

app = Celery("canvas", broker=os.environ["CANVAS_URL"], backend=os.environ["CANVAS_URL"])
app.conf.update(
    worker_prefetch_multiplier=128,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="noop")
def noop(*_: Any) -> int:
    """The task whose cost is the queue's own."""
    return 0


def layers(width: int, depth: int) -> Any:
    """A chain of groups: each layer after *all* of the one before, for edges it has none."""
    return chain(*(group(noop.s() for _ in range(width)) for _ in range(depth)), noop.si())


def one_chord(width: int) -> Any:
    """One group, and then a callback."""
    return chord(group(noop.s(n) for n in range(width)), noop.s())
