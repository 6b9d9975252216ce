"""The schedules of a queue as records and as a DataFrame: when each fires, and what became of it.

Used by TaskMonitor, the command line and the live screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..protocol.commands import Commands
from ..protocol.keys import QueueKeys, without_priority
from ..protocol.plain_commands import TIME, read_time
from ..protocol.schedules import Schedule, read_all
from . import columns, frames

if TYPE_CHECKING:
    import pandas as pd

    from .inspector import Inspector

PAGE = 500
"""Schedules asked for in one call."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as it stands, with the state of its last task ('' for none that is known)."""

    schedule: Schedule
    last_state: str
    now_ms: int

    @property
    def state(self) -> str:
        """Whether it fires: active or paused."""
        return "paused" if self.schedule.paused else "active"

    @property
    def next_ms(self) -> int | None:
        """When it fires next; None while it is paused."""
        return None if self.schedule.paused else self.schedule.next_ms

    @property
    def next_in_ms(self) -> int | None:
        """In how many ms; below 0 when it is late."""
        return None if self.next_ms is None else self.next_ms - self.now_ms

    @property
    def last_ms(self) -> int | None:
        """The time of the last occurrence that ran; None for none."""
        return self.schedule.last_ms or None


def rows_of(
    schedules: Sequence[Schedule], states: Sequence[str], now_ms: int
) -> tuple[ScheduleRow, ...]:
    """Return schedules with the states of their last tasks, the next first, paused ones last."""
    made = [ScheduleRow(*pair, now_ms) for pair in zip(schedules, states, strict=True)]
    return tuple(
        sorted(made, key=lambda r: (r.schedule.paused, r.schedule.next_ms, r.schedule.name))
    )


def read_rows(broker: Broker, commands: Commands, n: int | None) -> list[ScheduleRow]:
    """Return all schedules of a queue, the next first, paused ones last; at most ``n``."""
    found: dict[str, bytes] = {}
    cursor = b"0"
    while True:
        cursor, flat = broker.call(commands.schedules_page(cursor, PAGE))
        names = (raw.decode("utf-8", "replace") for raw in flat[::2])
        found.update(zip(names, flat[1::2], strict=True))
        if cursor == b"0":
            break
    schedules = list(read_all(found.items(), without_priority(commands.keys.stream)).values())
    now_ms = read_time(broker.call(TIME))
    order = rows_of(schedules, [""] * len(schedules), now_ms)[:n]
    lanes = {queue: _lane(commands, queue) for queue in {row.schedule.queue for row in order}}
    asked = [row for row in order if row.schedule.last_id]
    watches = [lanes[row.schedule.queue].watch(row.schedule.last_id) for row in asked]
    words = (Commands.read_watch(reply).state for reply in broker.call_many(watches))
    states = {row.schedule.name: word for row, word in zip(asked, words, strict=True)}
    states = {name: "" if word == "unknown" else word for name, word in states.items()}
    return [ScheduleRow(r.schedule, states.get(r.schedule.name, ""), now_ms) for r in order]


def _lane(commands: Commands, queue: str) -> Commands:
    if queue == commands.keys.stream:
        return commands
    return Commands(QueueKeys(queue), commands.group)


class Scheduled:
    """What TaskMonitor has of schedules."""

    records: Inspector

    def get_schedules(self) -> pd.DataFrame:
        """Return the schedules of the queue, of all its priorities, the next first, paused ones
        last.

        schedule (index), task, rule (in words), state (active, paused), next_at, next_in (negative:
        late), last_at and last_state (of the last task it added), last_id, fired (tasks), skipped
        (occurrences), missed, overlap, queue, source (who declared it), fault (why the last one
        could not be stored).
        """
        return self._stamp(frames.frame(columns.SCHEDULES, self.records.schedules()))

    @property
    def schedules(self) -> pd.DataFrame:
        """``get_schedules()``."""
        return self.get_schedules()

    def _stamp(self, found: pd.DataFrame, n: int | None = None) -> pd.DataFrame:
        raise NotImplementedError
