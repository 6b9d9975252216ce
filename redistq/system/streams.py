"""Standard streams of a worker's processes: they outlive whatever they were connected to.

Used by a process at its start. The output of the commands that print is another matter: see
stdout.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from typing import Any


class _Lasting(io.FileIO):
    """A standard stream that outlives its reader: what nobody can read any more is dropped."""

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as left:
            size = todo = len(left)
            while todo:
                try:
                    done = super().write(left[size - todo :])
                except OSError as error:
                    if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                        raise  # a full disk is said
                    with contextlib.suppress(OSError):
                        _point_at_nothing(self.fileno())
                    break
                if done is None:  # somebody has made the terminal or pipe non-blocking
                    time.sleep(0.01)
                todo -= done or 0
            return size


def mend_standard_streams() -> None:
    """Make standard streams that a program can write to whatever it was started with.

    Descriptors that were closed get the null device, before a connection to the server takes their
    place and hears what a library prints. A print into a pipe or terminal that is gone is dropped
    and fails no task, and lines are written one by one, so that a killed process keeps none back.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _point_at_nothing(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old not in (None, getattr(sys, f"__{name}__")):
            continue  # somebody has put something else in its place
        if old is not None:
            with contextlib.suppress(OSError, ValueError):
                old.flush()
        # No buffer below the text: a process that a handler forks would inherit its lock, held.
        raw: Any = _Lasting(descriptor, "w", closefd=False)
        new = io.TextIOWrapper(
            raw,
            encoding=getattr(old, "encoding", "utf-8"),
            errors=getattr(old, "errors", "backslashreplace"),
            line_buffering=True,
            write_through=getattr(old, "write_through", False),
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(nothing, descriptor)
        os.close(nothing)
