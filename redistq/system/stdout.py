"""Standard output of the commands that print: it may be full, and its reader may have gone.

Used by ``redistq``, its monitor and its web page. A worker's output is another matter: see
streams.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

EXIT_OK, EXIT_FAILED = 0, 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})


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
