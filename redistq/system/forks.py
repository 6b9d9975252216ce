"""Processes that a handler forks: they keep no pipe of ours open and take no signal of ours.

Used by both ends of the line to a process, and by what finds itself in a fork.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_ours: set[int] = set()
_not_in_forks: dict[signal.Signals, Any] = {}
"""The handlers that this process found, by the signals that it handles itself."""
_forking = threading.local()


def keep_from_forks(*descriptors: int) -> None:
    """Close these descriptors in every process that this one forks, until ``close``."""
    _ours.update(descriptors)


def close(descriptor: int) -> None:
    """Close a descriptor that forked processes did not get."""
    _ours.discard(descriptor)
    os.close(descriptor)


def handle_signal(number: signal.Signals, handler: Callable[..., None]) -> None:
    """Handle a signal in this process, and not in those that it forks."""
    _not_in_forks.setdefault(number, signal.getsignal(number))
    signal.signal(number, handler)


def _before_fork() -> None:
    # Python forgets a signal that reaches a forked process before that has forgotten our handlers.
    if _not_in_forks:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _not_in_forks)


def _after_fork_in_parent() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    # A forked process must not keep our lines open: their end says that we have gone.
    for descriptor in _ours:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _ours.clear()
    # Nor must it take our signals for its own: a pool that ends its processes would wait for ever.
    for number, handler in _not_in_forks.items():
        signal.signal(number, handler)
    _not_in_forks.clear()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork
    )


def leave_fork(error: BaseException | None) -> NoReturn:
    """End a process that a handler, or its module, forked and that has come to the end of it.

    The task is its parent's, and so are the connections by which its copy would tell the server.
    """
    code = 0 if error is None else 1
    with contextlib.suppress(Exception):  # the program may have replaced what prints
        if isinstance(error, SystemExit) and isinstance(error.code, int | None):
            code = error.code or 0
        elif error is not None:
            traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a module may have put anything in their place
            stream.flush()
    os._exit(code & 0xFF)
