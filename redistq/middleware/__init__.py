"""Middleware: code of an application's own that stands around adding and running tasks.

``Middleware`` is the class to derive from, ``travels`` lets context variables go from who adds a
task to its handler. Used by producers, clients and workers. Nothing here talks to a server.
"""

from __future__ import annotations

from .base import HOOKS, Layers, Middleware, NewTask, Settled, checked_middleware
from .travel import travels

__all__ = [
    "HOOKS",
    "Layers",
    "Middleware",
    "NewTask",
    "Settled",
    "checked_middleware",
    "travels",
]
