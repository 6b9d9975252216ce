"""TaskContext: what a running handler may know and do, and how code finds that of its task.

Used by user code and by workers, which give each attempt its context. What talks to a server for
it is given by the worker, behind the protocols of ``parts``; nothing here does.
"""

from __future__ import annotations

from .batch import BatchContext
from .context import RAISES, TaskContext
from .current import as_current, current_task, running_task, serve_contexts, track
from .parts import Collecting, Items, Parents, Running, Spawner, Steps

__all__ = [
    "RAISES",
    "BatchContext",
    "Collecting",
    "Items",
    "Parents",
    "Running",
    "Spawner",
    "Steps",
    "TaskContext",
    "as_current",
    "current_task",
    "running_task",
    "serve_contexts",
    "track",
]
