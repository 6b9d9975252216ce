"""Marks: a shared-memory file in which tasks show that they ran, whoever's worker ran them.

Written by the task bodies (work.py), read by the measuring process. Asking it costs the server
nothing, so every peer is counted the same way and none is slowed down by being watched.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from pathlib import Path

SIZE = 1_100_000
"""Most tasks of one measurement, the warm-up's included."""
ENV = "BENCH_MARKS"


class Marks:
    """One byte a task (it ran), and one float a task (when)."""

    def __init__(self, path: str | None = None) -> None:
        self.path = Path(path or os.environ[ENV])
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    @classmethod
    def create(cls) -> Marks:
        """A new file in memory-backed storage where there is one."""
        where = "/dev/shm" if os.path.isdir("/dev/shm") else None
        handle, name = tempfile.mkstemp(prefix="bench-", suffix=".marks", dir=where)
        os.ftruncate(handle, SIZE * 9)
        os.close(handle)
        return cls(name)

    def set(self, k: int) -> None:
        """Task ``k`` ran."""
        self._map[k] = 1

    def stamp(self, k: int, when: float) -> None:
        """Task ``k`` began at ``when``."""
        struct.pack_into("<d", self._map, SIZE + 8 * k, when)
        self._map[k] = 1

    def count(self, start: int, stop: int) -> int:
        """How many of these tasks ran."""
        return self._map[start:stop].count(1)

    def when(self, k: int) -> float:
        """When task ``k`` began."""
        (at,) = struct.unpack_from("<d", self._map, SIZE + 8 * k)
        return float(at)

    def clear(self) -> None:
        """Forget all."""
        self._map[:SIZE] = bytes(SIZE)

    def remove(self) -> None:
        """Delete the file."""
        self._map.close()
        self.path.unlink(missing_ok=True)
