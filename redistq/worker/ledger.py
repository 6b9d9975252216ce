"""The ledger: which processes of one supervisor have taken which of its resources.

A little shared memory without a name, as the scoreboard is, with a row for each process. A process
writes its own row alone, and takes something only while it holds the file's lock, which the
operating system frees when it dies; its supervisor then clears the row. So what is taken is what
living processes hold, and no count can drift.

Who waits is written too: nobody takes what another process has waited for longer, so a task that
needs much is not overtaken for ever by those that need little.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..protocol.resources import GPU, WHOLE, Resources
from .scoreboard import nameless

Taken = dict[str, list[int]]
"""The units that a task has of each resource, by their numbers."""

_TICKET = struct.Struct("<Q")
_UNIT = struct.Struct("<HH")  # thousandths in use, and whether the process may use the unit
_HEAD = 8


def share(units: int, place: int, processes: int) -> list[int]:
    """Return which of so many devices belong to the process at that place; where there are fewer
    devices than processes, several share one."""
    if units < processes:
        return [place % units]
    each, more = divmod(units, processes)
    first = place * each + min(place, more)
    return list(range(first, first + each + (place < more)))


def visible(own: list[int], named: str | None) -> str:
    """Return these devices as CUDA_VISIBLE_DEVICES names them, where it names so far ``named``."""
    names = [name.strip() for name in (named or "").split(",") if name.strip()]
    return ",".join(names[unit] if names else str(unit) for unit in own)


class Ledger:
    """What there is, as one process sees it: ``row`` is its own, and ``own`` the devices that are
    its own where it has not all."""

    def __init__(
        self, descriptor: int, declared: Resources, row: int = 0, own: list[int] | None = None
    ) -> None:
        self.descriptor = descriptor
        self.declared = declared
        self._row = row
        self._map = mmap.mmap(descriptor, 0)
        self._lock = threading.Lock()
        self._at: dict[str, int] = {}  # of each resource, within a row
        self._units: dict[str, list[int]] = {}
        size = 0
        for name, amount in declared:
            self._at[name] = size
            count = amount // WHOLE
            size += _TICKET.size + count * _UNIT.size
            self._units[name] = own if name == GPU and own is not None else list(range(count))
        self._size = size
        self.rows = (len(self._map) - _HEAD) // size

    @classmethod
    def create(cls, declared: Resources, rows: int) -> Ledger:
        """Return a new ledger of so many rows, all of them empty."""
        size = sum(_TICKET.size + amount // WHOLE * _UNIT.size for _, amount in declared)
        return cls(nameless(bytes(_HEAD + rows * size)), declared)

    @property
    def most(self) -> Resources:
        """The most that one task can have here, which has everything for itself."""
        return tuple((name, len(units) * WHOLE) for name, units in self._units.items())

    def has(self, needs: Resources) -> bool:
        """Return whether a task with these needs could ever run here."""
        return all(amount <= len(self._units.get(name, ())) * WHOLE for name, amount in needs)

    def join(self) -> None:
        """Show which units this process may use."""
        with self._locked():
            for name, units in self._units.items():
                for unit in units:
                    used, _ = _UNIT.unpack_from(self._map, self._unit(self._row, name, unit))
                    _UNIT.pack_into(self._map, self._unit(self._row, name, unit), used, 1)

    def clear(self, row: int) -> None:
        """Give back all that a process has which has ended."""
        with self._locked():
            at = _HEAD + row * self._size
            self._map[at : at + self._size] = bytes(self._size)

    def ticket(self) -> int:
        """Return the next number in the line of all that wait."""
        with self._locked():
            number: int = _TICKET.unpack_from(self._map, 0)[0] + 1
            _TICKET.pack_into(self._map, 0, number)
            return number

    def show_waiting(self, tickets: Mapping[str, int]) -> None:
        """Show the number of the first task here that waits for each resource."""
        for name, at in self._at.items():
            where = _HEAD + self._row * self._size + at
            _TICKET.pack_into(self._map, where, tickets.get(name, 0))

    def take(self, needs: Resources, ticket: int) -> Taken | None:
        """Take all that a task needs and return it; None where there is no room, or others have
        waited for longer, and then nothing is taken."""
        with self._locked():
            taken: Taken = {}
            for name, amount in needs:
                units = None if self._is_awaited(name, ticket) else self._choose(name, amount)
                if units is None:
                    return None
                taken[name] = units
            self._book(needs, taken, 1)
            return taken

    def give_back(self, needs: Resources, taken: Taken) -> None:
        """Give back what ``take`` returned."""
        with self._locked():
            self._book(needs, taken, -1)

    def seen(self, taken: Taken) -> Taken:
        """Return units as the process sees them: its own devices are counted from 0."""
        return {
            name: [self._units[name].index(unit) for unit in units] if name == GPU else units
            for name, units in taken.items()
        }

    def close(self) -> None:
        """Let go of the file; the memory stays as long as somebody uses it."""
        if self.descriptor >= 0:
            self._map.close()
            os.close(self.descriptor)
        self.descriptor = -1

    def _is_awaited(self, name: str, ticket: int) -> bool:
        """Whether another process has waited for longer for units that this one may use."""
        for row in range(self.rows):
            where = _HEAD + row * self._size + self._at[name]
            (first,) = _TICKET.unpack_from(self._map, where)
            if row != self._row and 0 < first < ticket:
                for unit in self._units[name]:
                    if _UNIT.unpack_from(self._map, self._unit(row, name, unit))[1]:
                        return True
        return False

    def _choose(self, name: str, amount: int) -> list[int] | None:
        free = []
        for unit in self._units[name]:
            used = sum(
                _UNIT.unpack_from(self._map, self._unit(row, name, unit))[0]
                for row in range(self.rows)
            )
            free.append((WHOLE - used, unit))
        if amount < WHOLE:  # where it fits best: whole units are left for those that need them
            return next(([unit] for room, unit in sorted(free) if room >= amount), None)
        whole = [unit for room, unit in free if room == WHOLE]
        return whole[: amount // WHOLE] if len(whole) * WHOLE >= amount else None

    def _book(self, needs: Resources, taken: Taken, sign: int) -> None:
        for name, amount in needs:
            for unit in taken[name]:
                at = self._unit(self._row, name, unit)
                used, may = _UNIT.unpack_from(self._map, at)
                _UNIT.pack_into(self._map, at, used + sign * min(amount, WHOLE), may)

    def _unit(self, row: int, name: str, unit: int) -> int:
        at = self._at[name] + _TICKET.size + unit * _UNIT.size
        return _HEAD + row * self._size + at

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        with self._lock:  # the file's lock is a process's, not a thread's
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
