"""The scoreboard: a little shared memory in which a worker process shows what it is running.

Written by the processor, a few bytes a task; read by the supervisor, which thereby knows what a
process had started when it died, what a dashboard shows as running, and which time limit has
passed, all without one server command. The supervisor writes which queues are paused: a byte each.

It has no name in any folder. Who makes it hands its descriptor to the other process, so nothing
stays behind whoever is killed, nothing can be in the way, and nobody else can open it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from ..errors import ConfigurationError
from ..system.processes import off_standard

_MAGIC = b"redistq2"
_SLOT = 96
_MAGICS = {b"redistq1": 64, _MAGIC: _SLOT}
"""Bytes of a slot, by how a scoreboard begins: a process of an earlier release may have made it,
without room for limits of memory."""
_ENTRY = 48  # an entry id is at most 41 bytes: two 64-bit numbers and a dash
_QUEUES = 8
_LOOKED_AT = 12  # how many slots are looked at: those of batches only where there are any
_SETTLED = 16
_CAPPED = 24
_PAUSED = 64  # from here a byte a queue, the most urgent first; then the slots
_NONE = bytes(_ENTRY)


MAX_RETRY_MS = 2**31 - 1
"""Longest delay that a slot can hold: some 24 days."""
_LIMIT = struct.Struct("<dif")
_CAP = struct.Struct("<qqi")
_CAP_AT = _ENTRY + _LIMIT.size


class Overdue(NamedTuple):
    """An attempt that has passed a limit at which its process is killed."""

    entry: str
    retry_ms: int
    """When it is tried again; -1: it ends as failed."""
    seconds: float
    """The time limit that has passed; 0: it is another one."""
    memory: int = 0
    """The limit of memory that it has passed, in bytes."""
    seen: int = 0
    """How much more memory its process had than when it began."""


class Scoreboard:
    """One process's slots. ``begin`` and ``end`` cost some 100 ns: a write into mapped memory."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor, behind which a scoreboard is."""
        self.descriptor = descriptor
        """To be inherited by the process that takes the other part."""
        try:
            self._map = mmap.mmap(descriptor, 0)
            self._slot = _MAGICS.get(self._map[: len(_MAGIC)], 0)
            if not self._slot:
                raise ValueError(f"descriptor {descriptor} is no scoreboard")
        except BaseException:  # whatever it is, an interrupt too: the descriptor is closed
            self.close()
            raise
        (self._queues,) = struct.unpack_from("<I", self._map, _QUEUES)
        self._first = _header(self._queues)  # where the slots begin
        self.slots = (len(self._map) - self._first) // self._slot
        """How many it has, the spare ones among them."""

    @classmethod
    def create(cls, slots: int, queues: int = 1, spare: int = 0) -> Scoreboard:
        """Return a new scoreboard, with ``spare`` slots that nobody looks at until ``widen``;
        raises ConfigurationError when there is no memory for it."""
        start = _MAGIC + struct.pack("<II", queues, slots)
        content = start + bytes(_header(queues) + (slots + spare) * _SLOT - len(start))
        return cls(nameless(content))

    def close(self) -> None:
        """Let go of the descriptor; the memory stays for as long as somebody uses it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def unmap(self) -> None:
        """Let go of the memory too, which holds a descriptor of its own. Nobody may use the
        scoreboard any more."""
        self.close()
        self.hand_over()

    def hand_over(self) -> None:
        """Let go of the memory alone: whoever makes a scoreboard of the descriptor has it."""
        self._map.close()

    def widen(self) -> None:
        """Have the spare slots looked at, too."""
        struct.pack_into("<I", self._map, _LOOKED_AT, self.slots)

    def _places(self) -> range:
        (slots,) = struct.unpack_from("<I", self._map, _LOOKED_AT)
        # None: a process of an earlier release has made it, without spare ones.
        return range(self._first, self._first + (slots or self.slots) * self._slot, self._slot)

    def begin(self, slot: int, entry: bytes) -> None:
        """Show that slot ``slot`` runs ``entry``."""
        at = self._first + slot * self._slot
        self._map[at : at + len(entry)] = entry

    def limit(self, slot: int, deadline: float, retry_ms: int = -1, seconds: float = 0.0) -> None:
        """Show that what runs in ``slot`` must end by ``deadline`` (this machine's monotonic
        clock), which is a limit of so many seconds. ``retry_ms`` says when it is tried again where
        its process is killed then; -1: it ends as failed."""
        at = self._first + slot * self._slot + _ENTRY
        _LIMIT.pack_into(self._map, at, deadline, retry_ms, seconds)

    def cap(self, slot: int, memory: int, base: int, retry_ms: int = -1) -> None:
        """Show that the process may have ``memory`` bytes more than ``base`` while what runs in
        ``slot`` does; ``retry_ms`` as for ``limit``."""
        if self._slot == _SLOT:
            _CAP.pack_into(self._map, self._first + slot * _SLOT + _CAP_AT, memory, base, retry_ms)
            self._map[_CAPPED] = 1

    @property
    def capped(self) -> bool:
        """Whether a task with a limit of memory may run here, or has."""
        return self._map[_CAPPED] != 0

    @capped.setter
    def capped(self, capped: bool) -> None:
        self._map[_CAPPED] = capped

    def end(self, slot: int) -> None:
        """Show that slot ``slot`` runs nothing."""
        at = self._first + slot * self._slot
        self._map[at : at + _ENTRY] = _NONE

    def end_limited(self, slot: int) -> None:
        """Show the same as ``end`` for a task that had a limit."""
        at = self._first + slot * self._slot
        self._map[at : at + self._slot] = bytes(self._slot)

    def running(self) -> list[str]:
        """Return the entries that are being run; one that starts or ends right now may be torn, and
        then matches no entry."""
        found = []
        for at in self._places():
            if self._map[at]:
                found.append(self._entry_at(at))
        return found

    def overdue(self, now: float) -> list[Overdue]:
        """Return what runs past its time limit."""
        found = []
        for at in self._places():
            if self._map[at]:
                deadline, retry_ms, seconds = _LIMIT.unpack_from(self._map, at + _ENTRY)
                if 0 < deadline < now:
                    found.append(Overdue(self._entry_at(at), retry_ms, seconds))
        return found

    def too_large(self, resident: int) -> list[Overdue]:
        """Return what is past its limit of memory when the process has so many bytes."""
        found: list[Overdue] = []
        if self._slot < _SLOT:
            return found
        for at in self._places():
            if self._map[at]:
                memory, base, retry_ms = _CAP.unpack_from(self._map, at + _CAP_AT)
                if 0 < memory < resident - base:
                    seen = resident - base
                    found.append(Overdue(self._entry_at(at), retry_ms, 0.0, memory, seen))
        return found

    def _entry_at(self, at: int) -> str:
        entry = self._map[at : at + _ENTRY].split(b"\0", 1)[0]
        return entry.decode("ascii", "replace")

    @property
    def paused(self) -> frozenset[int]:
        """Which queues the supervisor says are paused, by their places; 0 is the most urgent."""
        return frozenset(place for place in range(self._queues) if self.is_paused(place))

    @paused.setter
    def paused(self, places: Collection[int]) -> None:
        for place in range(self._queues):
            self._map[_PAUSED + place] = place in places

    def is_paused(self, place: int) -> bool:
        """Return whether the supervisor says that the queue at this place is paused."""
        return self._map[_PAUSED + place] != 0

    @property
    def settled(self) -> int:
        """How many tasks the process has settled since it began."""
        count: int = struct.unpack_from("<Q", self._map, _SETTLED)[0]
        return count

    @settled.setter
    def settled(self, count: int) -> None:
        struct.pack_into("<Q", self._map, _SETTLED, count)


def nameless(content: bytes) -> int:
    """Return the descriptor of new memory without a name, with that content; raises
    ConfigurationError when there is no memory for it."""
    reason: OSError | None = None
    for make in _storages():
        try:
            return _filled(make(), content)
        except OSError as error:
            reason = error
    raise ConfigurationError(
        f"there is no room for the few kB that a worker shares with its supervisor ({reason}): "
        "free some memory, or set TMPDIR to a folder that can be written to"
    )


def _header(queues: int) -> int:
    """Return how many bytes stand before the slots."""
    return _PAUSED + -(-queues // 64) * 64


def _filled(descriptor: int, content: bytes) -> int:
    """Write all of ``content`` and return the descriptor.

    A file that has only its size is not enough: touching a page for which there is no memory would
    kill the process.
    """
    try:
        if os.pwrite(descriptor, content, 0) < len(content):
            raise OSError("no room left")
    except BaseException:  # whatever it is, an interrupt too: the descriptor is closed
        os.close(descriptor)
        raise
    return descriptor


def _storages() -> Iterator[Callable[[], int]]:
    """Yield ways to open a file without a name: in memory, or where files in memory are, or any."""
    if hasattr(os, "memfd_create"):
        yield lambda: off_standard(os.memfd_create("redistq-board", os.MFD_CLOEXEC))
    yield lambda: _unlinked("/dev/shm")
    yield lambda: _unlinked(None)


def _unlinked(folder: str | None) -> int:
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix="redistq-", suffix=".board", dir=folder)
    with contextlib.suppress(OSError):
        os.unlink(name)
    return off_standard(descriptor)
