"""How code finds the context of the task that runs it."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from ..errors import RedistqError
from .context import TaskContext

T = TypeVar("T")

_provider: ContextVar[Callable[[], TaskContext | None] | None] = ContextVar(
    "redistq-task", default=None
)
_here = threading.local()


def serve_contexts(provider: Callable[[], TaskContext | None], *, thread: bool) -> None:
    """Let ``current_task`` ask ``provider``, in this thread or in this asynchronous context."""
    if thread:
        _here.provider = provider
    else:
        _provider.set(provider)


@contextlib.contextmanager
def as_current(context: TaskContext) -> Iterator[None]:
    """Let ``current_task`` return that context in this thread, in this block."""
    before = getattr(_here, "provider", None)
    serve_contexts(lambda: context, thread=True)
    try:
        yield
    finally:
        _here.provider = before


def running_task() -> TaskContext | None:
    """Return the context of the task that runs here; None where none does."""
    provider = _provider.get() or getattr(_here, "provider", None)
    return None if provider is None else provider()


def current_task() -> TaskContext:
    """Return the context of the task whose handler calls this: for functions that take none, such
    as those a Client sends.

    Works in the handler's own thread, and in coroutines that it starts. Raises RedistqError
    elsewhere: hand the context on to threads of your own.
    """
    found = running_task()
    if found is None:
        raise RedistqError(
            "no task runs here: current_task() is for handlers, in the thread that a worker calls "
            "them in; a thread that a handler starts is given the context by it"
        )
    return found


def track(items: Iterable[T], total: float | None = None, text: str = "") -> Iterator[T]:
    """Yield the items, and say of the running task how many of them are done, as tqdm does of a
    loop: see TaskContext.progress. Outside a task it only yields them.

    ``total`` is how many there are, where they do not say it themselves.
    """
    context = running_task()
    if context is None:
        yield from items
        return
    if total is None:
        total = operator.length_hint(items, 0) or None
    done = 0
    context.progress(done, total, text)
    for item in items:
        yield item
        done += 1
        context.progress(done, total, text)
