"""Firing: what a scheduler does with schedules that are due.

``promote`` names them. When each fires next is computed here, by the server's time, and ``fire``
adds the tasks and moves that time in one step, refusing what was computed of anything that has
changed since: so any number of schedulers may do this at once, and die at any point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError, ServerFull
from ..logger import logger
from ..protocol.commands import Command, Commands
from ..protocol.keys import without_priority
from ..protocol.schedules import MOST_MISSED, Plan, Schedule, occurrence_id, plan

log = logger("redistq.scheduler")


class Firing:
    """The due schedules of one queue, for one thread."""

    def __init__(self, commands: Commands, call: Callable[[Command], Any]) -> None:
        """``call`` sends a command and returns the answer."""
        self._commands = commands
        self._call = call
        self._base = without_priority(commands.keys.stream)
        self._said: dict[str, str] = {}  # what was logged last of a schedule

    def fire(self, due: dict[str, bytes], now_ms: int) -> int:
        """Add what is due of these schedules at that time; return how many tasks that was. What is
        wrong with one is logged, once, and holds up no other."""
        total = 0
        for name, record in due.items():
            try:
                schedule = Schedule.read(name, record, self._base)
                planned = plan(schedule, now_ms)
                if planned is not None:
                    total += self._fire(schedule, planned)
            except (ValueError, ConfigurationError, ServerFull) as error:
                self._say(name, str(error))
        return total

    def _fire(self, schedule: Schedule, planned: Plan) -> int:
        occurrences = [(occurrence_id(schedule.name, at), at) for at in planned.occurrences]
        reply = self._call(
            self._commands.fire(
                schedule.name,
                occurrences,
                version=schedule.version,
                expected_ms=schedule.next_ms,
                next_ms=planned.next_ms,
                past_ms=planned.past_ms,
                again_ms=planned.again_ms,
                skipped=planned.skipped,
                catches_up=planned.catches_up,
            )
        )
        fired = Commands.read_fire(reply)
        if fired.outcome == "fault":
            self._say(schedule.name, f"its task could not be stored: {fired.words}")
        if fired.outcome != "fired":
            return 0
        self._said.pop(schedule.name, None)
        if planned.cut:
            log.warning(
                "schedule %s of %s: %d occurrences that were missed are left out; the latest %d "
                "run",
                schedule.name,
                schedule.queue,
                planned.skipped,
                MOST_MISSED,
            )
        return len(occurrences) - len(fired.others)

    def _say(self, name: str, words: str) -> None:
        if self._said.get(name) != words:
            self._said[name] = words
            log.error("schedule %s of %s is due: %s", name, self._commands.keys.stream, words)
