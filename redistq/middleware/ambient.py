"""Middleware of the whole process: travelling context variables and tracing.

Read as ``ambient.around`` where tasks are added and run: an empty tuple while there is none, which
is all that it costs then.
"""

from __future__ import annotations

from .base import Layers, Middleware

around: Layers = ()
"""The outermost first."""


def use(middleware: Middleware, *, first: bool = False) -> None:
    """Stand around all tasks of this process, inside what is there, or around it (``first``)."""
    global around
    rest = tuple(one for one in around if one is not middleware)
    around = (middleware, *rest) if first else (*rest, middleware)


def leave(middleware: Middleware) -> None:
    """Stand around tasks no more."""
    global around
    around = tuple(one for one in around if one is not middleware)
