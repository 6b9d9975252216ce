"""Threads of numeric libraries (BLAS, OpenMP): bounded, so that a pool does not crowd a machine.

Used by the supervisor for the worker processes it starts, and by the joblib backend for single
calls. Each of eight worker processes on eight cores would else start eight threads for one product
of matrices, and all of them would wait for each other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

GENERAL = "OMP_NUM_THREADS"
"""The variable that the libraries follow where their own is not set."""
VARIABLES = (
    GENERAL,
    *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    *("NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def environment(processes: int) -> dict[str, str]:
    """The environment of each of that many worker processes: this one's, and where the user set no
    bound, one that shares the cores out among them. A process alone keeps the libraries' own."""
    found = dict(os.environ)
    if processes > 1:
        general = found.get(GENERAL, "").split(",")[0] or str(max(1, cores() // processes))
        for name in VARIABLES:
            found.setdefault(name, general)
    return found


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """A block in which libraries use that many threads: those loaded by now (with threadpoolctl,
    which scikit-learn brings along), and those loaded inside. None leaves them as they are.

    Of the whole process, so for processes that run one call at a time.
    """
    if threads is None:
        yield
        return
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    try:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            yield
        else:
            with threadpool_limits(limits=threads):
                yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
