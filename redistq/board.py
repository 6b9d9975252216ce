"""The board: a small shared-memory file in which a worker process shows what it is running.

Written by the crew, a few bytes a task; read by the keeper, which thereby knows what a process
had started when it died, what a dashboard shows as running, and which time limit has passed,
all without one server command. The keeper writes one byte: which queues are paused.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from pathlib import Path

_MAGIC = b"redistq1"
_HEADER = 64
_SLOT = 64
_ENTRY = 48  # an entry id is at most 41 bytes: two 64-bit numbers and a dash
_PAUSED = 8
_NONE = bytes(_ENTRY)


class Board:
    """One process's slots. ``begin`` and ``end`` cost some 100 ns: a write into mapped memory."""

    def __init__(self, path: Path, slots: int | None = None) -> None:
        """Open the board at ``path``; with ``slots`` make it anew."""
        self.path = path
        if slots is not None:
            path.write_bytes(_MAGIC + bytes(_HEADER - len(_MAGIC) + slots * _SLOT))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} is no board")
        self.slots = (len(self._map) - _HEADER) // _SLOT

    @classmethod
    def create(cls, slots: int) -> Board:
        """A new board in memory-backed storage where there is one."""
        shm = Path("/dev/shm")
        where = str(shm) if shm.is_dir() and os.access(shm, os.W_OK) else None
        handle, name = tempfile.mkstemp(prefix="redistq-", suffix=".board", dir=where)
        os.close(handle)
        return cls(Path(name), slots)

    def begin(self, slot: int, entry: bytes) -> None:
        """Slot ``slot`` starts to run ``entry``."""
        at = _HEADER + slot * _SLOT
        self._map[at : at + len(entry)] = entry

    def limit(self, slot: int, deadline: float) -> None:
        """What runs in ``slot`` must end by ``deadline`` (this machine's monotonic clock)."""
        struct.pack_into("<d", self._map, _HEADER + slot * _SLOT + _ENTRY, deadline)

    def end(self, slot: int) -> None:
        """Slot ``slot`` runs nothing."""
        at = _HEADER + slot * _SLOT
        self._map[at : at + _ENTRY] = _NONE

    def end_limited(self, slot: int) -> None:
        """As ``end``, for a task that had a time limit."""
        at = _HEADER + slot * _SLOT
        self._map[at : at + _SLOT] = bytes(_SLOT)

    def running(self) -> list[str]:
        """The entries that are being run; one that starts or ends right now may be torn, and then
        matches no entry."""
        found = []
        for at in range(_HEADER, len(self._map), _SLOT):
            raw = self._map[at : at + _ENTRY]
            if raw[0]:
                found.append(raw.split(b"\0", 1)[0].decode("ascii", "replace"))
        return found

    def overdue(self, now: float) -> bool:
        """Whether any slot's time limit has passed."""
        for at in range(_HEADER, len(self._map), _SLOT):
            if self._map[at]:
                (deadline,) = struct.unpack_from("<d", self._map, at + _ENTRY)
                if 0 < deadline < now:
                    return True
        return False

    @property
    def paused(self) -> int:
        """Which queues the keeper says are paused: a bit each, the most urgent queue's first."""
        return self._map[_PAUSED]

    @paused.setter
    def paused(self, value: int) -> None:
        self._map[_PAUSED] = int(value)

    def remove(self) -> None:
        """Delete the file; whoever has it open may go on."""
        with contextlib.suppress(OSError):
            self.path.unlink()
