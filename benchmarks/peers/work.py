"""The tasks that every peer runs, the same bodies for all: they leave a mark and little else."""

from __future__ import annotations

import os
import time

from marks import ENV, Marks

_marks = Marks() if ENV in os.environ else None


def noop(k: int) -> int:
    """The task whose cost is the queue's own."""
    _marks.set(k)
    return k


def late(k: int) -> int:
    """Says when it began."""
    _marks.stamp(k, time.time())
    return k


def size(k: int, data: str) -> int:
    """Takes a payload and answers its length."""
    _marks.set(k)
    return len(data)


def spin(k: int, ms: int) -> int:
    """Keeps a core busy until this thread has used ``ms`` of CPU."""
    until = time.thread_time() + ms / 1000
    while time.thread_time() < until:
        pass
    _marks.set(k)
    return k


async def anoop(k: int) -> int:
    """``noop`` for peers that run coroutines."""
    _marks.set(k)
    return k


async def alate(k: int) -> int:
    """``late`` for peers that run coroutines."""
    _marks.stamp(k, time.time())
    return k


async def asize(k: int, data: str) -> int:
    """``size`` for peers that run coroutines."""
    _marks.set(k)
    return len(data)


async def aspin(k: int, ms: int) -> int:
    """``spin`` for peers that run nothing but coroutines."""
    return spin(k, ms)
