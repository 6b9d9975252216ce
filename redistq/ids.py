"""Task ids: unique without asking anyone, cheap, and short. Used by producers and clients."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator


def _fresh() -> Iterator[str]:
    # 64 random bits a process, then a count: as unlikely to collide as two processes' prefixes,
    # without a call to the kernel for every task.
    prefix = os.urandom(8).hex()
    return (f"{prefix}{n:04x}" for n in itertools.count())


_ids = _fresh()


def _after_fork() -> None:
    global _ids
    _ids = _fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def new_task_id() -> str:
    """A task id that no other call in any process returns: 20 or more hexadecimal digits."""
    return next(_ids)


def new_call_id() -> str:
    """The same for a function call, whose id says that it is one to whoever asks for its result:
    what stands on the server could say anything."""
    return "call-" + next(_ids)


def is_call(task_id: str) -> bool:
    """Whether an id is that of a function call, also of a cached one; a batch's do not say."""
    return task_id.startswith(("call-", "memo-"))
