"""Portions: how many tasks, and how many bytes of them, one request to the server carries.

Used by all that send, cancel or delete many tasks at once. A larger request would hold the server,
and so everybody else, for too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .commands import MAX_TASKS

T = TypeVar("T")

MAX_BYTES = 1024 * 1024
"""Payload bytes in one request, about: the task that passes the limit still goes with it."""


def fill(portion: list[T], source: Iterator[T], size: Callable[[T], int]) -> None:
    """Move items from the source to the portion until it is full or the source is empty.

    What was taken is in the portion also when an interrupt ends this early.
    """
    total = 0
    while len(portion) < MAX_TASKS and total < MAX_BYTES:
        for item in source:
            portion.append(item)
            total += size(item)
            break
        else:
            return


def portions(items: Iterable[T], size: Callable[[T], int] = lambda _: 0) -> Iterator[list[T]]:
    """Yield the items in portions for one request each, in order."""
    source = iter(items)
    while True:
        portion: list[T] = []
        fill(portion, source, size)
        if not portion:
            return
        yield portion
