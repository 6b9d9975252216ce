"""Cores that this process may use, and the threads of numeric libraries (BLAS, OpenMP) on them.

Used by whatever starts worker processes. Each of eight processes on eight cores would else start
eight threads for one product of matrices, and all of them would wait for each other; and one in a
container of two cores as many as its machine has. The joblib backend sets the same bounds for
single calls.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

GENERAL = "OMP_NUM_THREADS"
"""The variable that numeric libraries follow where their own is not set."""
VARIABLES = (
    GENERAL,
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Return how many cores this process may use: its affinity, and what its control group
    (a container's limit) allows."""
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    allowed = _allowed()
    return found if allowed is None else max(1, min(found, math.ceil(allowed)))


def environment(processes: int, threads: int | None = None) -> dict[str, str]:
    """Return the environment of each of so many worker processes: this one's, with a bound for the
    threads of numeric libraries.

    ``threads`` is that bound. Without it the cores are shared out, where the user has set nothing;
    a process alone that may use all cores of its machine gets none.
    """
    found = dict(os.environ)
    if threads is not None:
        found.update(dict.fromkeys(VARIABLES, str(threads)))
        return found
    share = max(1, cores() // max(1, processes))
    if processes > 1 or share < (os.cpu_count() or 1):
        general = found.get(GENERAL, "").split(",")[0] or str(share)
        for name in VARIABLES:
            found.setdefault(name, general)
    return found


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Bound the threads of numeric libraries in a block: of those loaded by now (with
    threadpoolctl, which scikit-learn brings along), and of those loaded inside. None leaves them as
    they are.

    It holds for the whole process, so it is for processes that run one call at a time.
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


def _allowed() -> float | None:
    """Return how many cores the control groups of this process allow it; None: all."""
    groups = {"": ""}
    with contextlib.suppress(OSError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups[controllers] = path
    found = []
    for controllers, path in groups.items():
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.strip("/")
        # A limit of any group above holds as well; in a container the path is often not its own.
        for folder in (group, *group.parents):
            found += _quota(folder)
            if folder == root:
                break
    return min(found, default=None)


def _quota(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return [] if quota == "max" else [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        return [] if quota_us <= 0 else [quota_us / int((folder / "cpu.cfs_period_us").read_text())]
    return []
