"""Memory and CPU time of processes: how much one has, sizes in words, limits of containers, and
what the kernel did for want of memory.

Used by supervisors, which watch their worker processes, and by whatever takes a size as an option.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigurationError

MOST_BYTES = 2**50
_UNITS = {
    "": 1,
    **{unit: 1000**n for n, unit in enumerate(("b", "kb", "mb", "gb", "tb"))},
    **{unit: 1000**n for n, unit in enumerate(("k", "m", "g", "t"), 1)},
    **{unit: 1024**n for n, unit in enumerate(("kib", "mib", "gib", "tib"), 1)},
    **{unit: 1024**n for n, unit in enumerate(("ki", "mi", "gi", "ti"), 1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Used(NamedTuple):
    """What a process has of this machine."""

    resident: int
    """Bytes of memory, without those that are swapped out."""
    cpu_s: float
    """Seconds that it ran, on all cores together, since it began."""


def size(what: str, value: Any) -> int:
    """Return a size in bytes: a whole number, or text such as "500MB", "2GB" or "1.5GiB".

    Raises ConfigurationError that names the option ``what``.
    """
    found: float | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip().lower())):
        unit = _UNITS.get(match[2])
        found = None if unit is None else float(match[1]) * unit
    if found is None or not 1 <= found <= MOST_BYTES:
        raise ConfigurationError(
            f"{what} is a number of bytes, or a size such as '500MB', '2GB' or '1.5GiB', not "
            f"{value!r:.60}"
        )
    return int(found)


def in_words(bytes_: float) -> str:
    """Return a size as people read it: "512 MB", "1.5 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= factor:
            return (
                f"{bytes_ / factor:.3g} {unit}"
                if bytes_ < 1000 * factor
                else (f"{bytes_ / factor:,.0f} {unit}")
            )
    return f"{bytes_:.0f} bytes"


def resident(pid: int | None = None) -> int | None:
    """Return how many bytes of memory a process (None: this one) has, without those that are
    swapped out; None where this cannot be known, or it has gone."""
    try:
        with open(f"/proc/{'self' if pid is None else pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        pass
    if sys.platform == "linux" or os.name != "posix":
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["ps", "-o", "rss=", "-p", str(os.getpid() if pid is None else pid)]
        found = subprocess.run(command, capture_output=True, timeout=5, check=True)
        return int(found.stdout) * 1024
    return None


def used(pid: int) -> Used | None:
    """Return what a process has, by one small file of the kernel's; None where there is none (not
    on Linux), or the process has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # its name may hold anything
        return Used(int(fields[21]) * _PAGE, (int(fields[11]) + int(fields[12])) / _TICKS)
    except (OSError, IndexError, ValueError):
        return None


def memory_limit() -> int | None:
    """Return the bytes of memory that this process' container may have; None for no limit, or where
    this cannot be known."""
    return least_limit(Path("/sys/fs/cgroup"), _lines(Path("/proc/self/cgroup")))


def least_limit(root: Path, groups: list[str]) -> int | None:
    """Return the smallest limit of memory of the control groups of a process, as
    ``/proc/self/cgroup`` lists them, and of those around them; None for none."""
    found = []
    for group in groups:
        _, kinds, path = (*group.split(":", 2), "", "")[:3]
        if kinds in ("", "memory"):
            top = root / kinds
            place = top / path.strip("/")
            # In a container the path may be that of the machine outside: then the top is its own.
            for folder in (place, *place.parents):
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                found += [int(text) for text in _lines(folder / name)[:1] if text.isdigit()]
                if folder == top:
                    break
    least = min(found, default=MOST_BYTES)
    return least if least < MOST_BYTES else None  # no limit is a number near 2**63, too


def kills_for_want_of_memory() -> int | None:
    """Return how many processes the kernel has killed here because memory was short, since some
    time in the past; None where it does not say so."""
    counts = [
        int(line.split()[1])
        for path in _counters()
        for line in _lines(path)
        if line.startswith("oom_kill ")
    ]
    return max(counts) if counts else None


def _counters() -> list[Path]:
    found = [Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")]
    return [*found, Path("/sys/fs/cgroup/memory/memory.oom_control")]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
