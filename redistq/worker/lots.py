"""What a supervisor's worker processes have of its resources: one ledger, a row and devices each.

Used by the supervisor, and by a TaskWorker whose tasks run in its own threads. A graphics card
belongs to one process, which sees it from its start as CUDA_VISIBLE_DEVICES: what it is can be
changed no more once CUDA was loaded. Where there are fewer cards than processes, several share one.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.resources import GPU, WHOLE, Resources
from .ledger import Ledger, share, visible

VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_devices(declared: Resources) -> None:
    """Raise ConfigurationError where more cards are declared than this program is shown."""
    named, gpus = os.environ.get(VISIBLE), dict(declared).get(GPU, 0) // WHOLE
    shown = [name for name in (named or "").split(",") if name.strip()]
    if named is not None and gpus > len(shown):
        raise ConfigurationError(
            f"resources declare gpu={gpus}, and {VISIBLE}={named!r} shows {len(shown)}: declare as "
            f"many as there are, or unset {VISIBLE} to show all"
        )


@dataclass(frozen=True, slots=True)
class Lot:
    """What one process has."""

    place: int
    """Which of the processes it is, by which devices are shared out."""
    row: int
    """Its row in the ledger."""
    own: list[int] | None
    """Its devices, where there are any."""


class Lots:
    """Gives processes their part, and takes back what dead ones had."""

    def __init__(self, declared: Resources, processes: int) -> None:
        self._declared = declared
        self._processes = max(1, processes)
        self._free = list(range(4 * self._processes + 16))
        self._ledger = Ledger.create(declared, len(self._free))

    @property
    def descriptor(self) -> int:
        """The ledger's, to be inherited by each process."""
        return self._ledger.descriptor

    def draw(self, taken: Collection[int]) -> Lot:
        """Return the part of another process, where those at these places go on."""
        places = (place for place in range(self._processes) if place not in taken)
        place = next(places, len(taken) % self._processes)
        gpus = dict(self._declared).get(GPU, 0) // WHOLE
        return Lot(place, self._free.pop(0), share(gpus, place, self._processes) if gpus else None)

    def environment(self, lot: Lot) -> dict[str, str]:
        """Return what the environment of that process says of its devices."""
        return {} if lot.own is None else {VISIBLE: visible(lot.own, os.environ.get(VISIBLE))}

    def spec(self, lot: Lot) -> dict[str, Any]:
        """Return what the process is told, to make its ledger of it."""
        return {"ledger": [self.descriptor, lot.row, lot.own]}

    def end(self, lot: Lot) -> None:
        """Give back what a process had that has ended."""
        self._ledger.clear(lot.row)
        self._free.append(lot.row)

    def close(self) -> None:
        """No more processes are started."""
        self._ledger.close()


def ledger_of(declared: Resources, spec: dict[str, Any]) -> Ledger | None:
    """Return the ledger of a process that was told so; None where its worker has no resources."""
    if not (declared and spec.get("ledger")):
        return None
    descriptor, row, own = spec["ledger"]
    os.set_inheritable(descriptor, False)
    ledger = Ledger(descriptor, declared, row, own)
    ledger.join()
    return ledger


def own_ledger(declared: Resources) -> Ledger | None:
    """Return the ledger of a process that has all of it to itself; None for nothing."""
    if not declared:
        return None
    ledger = Ledger.create(declared, 1)
    ledger.join()
    return ledger
