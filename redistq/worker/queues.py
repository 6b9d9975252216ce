"""A worker's queues: what is said to each, and whether it is paused.

Made by the processor, the most urgent first. A task that was read carries its queue, so whatever
becomes of it goes back to where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol.commands import Commands
from .scoreboard import Scoreboard


class WorkerQueue:
    """One queue of a worker process; equal to itself alone."""

    __slots__ = ("_place", "_scoreboard", "commands", "name")

    def __init__(self, name: str, commands: Commands, scoreboard: Scoreboard, place: int) -> None:
        self.name = name
        self.commands = commands
        self._scoreboard = scoreboard
        self._place = place

    @property
    def paused(self) -> bool:
        """Whether the supervisor says that nothing of it is to be started."""
        return self._scoreboard.is_paused(self._place)


def queues_of(
    names: Sequence[str], commands: Sequence[Commands], scoreboard: Scoreboard
) -> list[WorkerQueue]:
    """Return the queues of a worker process, whose flags are on its scoreboard."""
    return [
        WorkerQueue(name, calls, scoreboard, place)
        for place, (name, calls) in enumerate(zip(names, commands, strict=True))
    ]
