"""Schedules as monitors show them, with the state of the last task. Never talks to a server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..protocol.schedules import Schedule


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


def in_order(rows: Iterable[ScheduleRow]) -> list[ScheduleRow]:
    """Return schedules, the next first, paused ones last."""
    return sorted(rows, key=lambda r: (r.schedule.paused, r.schedule.next_ms, r.schedule.name))


def read_agenda(rows: Iterable[list[bytes]], base: str, now_ms: int) -> tuple[ScheduleRow, ...]:
    """Return the schedules that ``tick`` answers; what is no record is left out."""
    found = []
    for raw in rows:
        name, state = (part.decode("utf-8", "replace") for part in (raw[0], raw[2]))
        try:
            schedule = Schedule.read(name, raw[1], base)
        except ValueError:
            continue
        found.append(ScheduleRow(schedule, state, now_ms))
    return tuple(in_order(found))
