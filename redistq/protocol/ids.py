"""Task ids: unique without asking anyone, cheap, and short; and what an id or a name may be.

Used by producers, clients and handlers.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from ..errors import ConfigurationError

MAX_CHARACTERS = 200
"""Longest id or name."""


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


def check_line(what: str, text: Any) -> None:
    """Raise ConfigurationError unless ``text`` can be an id or a name: one line of 1 to 200
    characters. Halves of a surrogate pair are no characters: no server could be sent them."""
    right = isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS and "\n" not in text
    if right and (text.isascii() or is_text(text)):
        return
    raise ConfigurationError(
        f"{what} is one line of 1 to {MAX_CHARACTERS} characters: {text!r:.{MAX_CHARACTERS + 20}}"
    )


def is_text(text: str) -> bool:
    """Whether a server can be sent it: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
