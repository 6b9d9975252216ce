"""Standard streams: a worker's outlive their readers, a command's may be full or closed.

``mend_standard_streams`` is used by each process of a worker at its start: what its tasks print
fails none of them. ``written`` is used by the commands that print (``redistq``, its monitor and its
web page): there the end of the reader is the end of the command, and a full disk is an error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Callable
from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


# -- of a worker's processes -----------------------------------------------------------------------


class _Lasting(io.FileIO):
    """A standard stream that outlives its reader: what cannot be read any more is dropped."""

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
                if done is None:  # another process has made the terminal or pipe non-blocking
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
            continue  # something else was put in its place
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


# -- of commands that print ------------------------------------------------------------------------


def written(run: Callable[[], int]) -> int:
    """Return the exit code of ``run``, once all that it printed is written.

    When the reader (head, a closed pager) has seen enough, that is 0 without a word. When the
    output cannot be written, one line on standard error says so, and it is 1.
    """
    try:
        code = run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return EXIT_OK
    except OSError as error:
        _drop_output()
        what = "its output cannot be written: " if error.errno in _FULL else ""
        with contextlib.suppress(OSError):
            print(f"redistq: {what}{error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED


def _drop_output() -> None:
    """Let what is still in the buffer go nowhere, or the end of the process would try again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
