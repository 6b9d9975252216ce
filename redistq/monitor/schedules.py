"""The schedules of a queue, all of them: as records, and as a DataFrame.

Used by TaskMonitor and the command line; dashboards read some with each tick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..protocol.commands import Commands
from ..protocol.keys import QueueKeys, without_priority
from ..protocol.plain_commands import read_time
from ..protocol.schedules import read_all
from . import columns, frames
from .agenda import ScheduleRow, in_order

if TYPE_CHECKING:
    import pandas as pd

    from .inspector import Inspector

PAGE = 500
"""Schedules asked for in one call."""


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
    now_ms = read_time(broker.call(commands.time))
    order = in_order(ScheduleRow(schedule, "", now_ms) for schedule in schedules)[:n]
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
