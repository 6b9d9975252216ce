"""What authors of tasks write: the ``@task`` decorator, registries, retry policies.

``RetryPolicy`` says when a failed attempt is tried again, and a ``Registry`` holds a ``Handler``
for each name of a task. Used by user code and by workers. Nothing here talks to a server.
"""

from __future__ import annotations

from .batching import BatchErrors, Batching
from .depends import Depends
from .handler import Handler, LooksAhead, Waiting
from .policy import RetryPolicy
from .registry import OfFunction, Registry, default_registry, handler_of, lifespan, override, task
from .typed_task import Task

__all__ = [
    "BatchErrors",
    "Batching",
    "Depends",
    "Handler",
    "LooksAhead",
    "OfFunction",
    "Registry",
    "RetryPolicy",
    "Task",
    "Waiting",
    "default_registry",
    "handler_of",
    "lifespan",
    "override",
    "task",
]
