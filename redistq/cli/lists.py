"""The lists of the live screen: what each holds and in which order, and which row is aimed at.

Pure functions of a view, and a Cursor, which keeps to its row while others come in above it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..dashboard.failed import group_key
from ..dashboard.feed import View
from ..monitor.agenda import ScheduleRow
from ..monitor.failures import groups_of
from ..monitor.rows import BatchRow, DeadLetter, Event, FailureGroup, Running
from ..protocol.limits import LimitState

HEADINGS = {
    "running": "In hand",
    "batches": "Batches and graphs",
    "limits": "Limits",
    "schedules": "Schedules",
    "recent": "Recent",
    "dead": "Dead letters",
}
LISTS = tuple(HEADINGS)
OPTIONAL = ("batches", "limits", "schedules")
"""Lists that are there once there is something in them."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Dead letters of one error and task as a row; open, each of them is a row below it."""

    group: FailureGroup
    is_open: bool

    @property
    def key(self) -> str:
        """What it is known by while its letters change."""
        return group_key(self.group.error_type, self.group.name)


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A dead letter as a row; ``is_within`` an open group."""

    letter: DeadLetter
    is_within: bool = False


def rows_of(view: View, recent: Sequence[Event], opened: Collection[str]) -> dict[str, list[Any]]:
    """Return the rows of each list; ``opened`` are the keys of the groups that are open."""
    tick = view.tick
    if tick is None:
        return {name: [] for name in LISTS}
    return {
        "running": list(tick.running),
        "batches": sorted(tick.batches, key=_troubled_first),
        "limits": [limit for limit in tick.limits if limit.has_rule or limit.waiting],
        "schedules": list(tick.schedules),
        "recent": list(recent),
        "dead": list(_dead(_letters(view), opened)),
    }


def _troubled_first(row: BatchRow) -> tuple[bool, bool, int]:
    return not row.failed, not row.waiting, -row.created_ms


def _letters(view: View) -> list[DeadLetter]:
    """Return the newest dead letters: those that were read some seconds ago, and newer ones."""
    assert view.tick is not None
    if not view.tick.snapshot.dead:
        return []
    known = {(letter.id, letter.died_ms) for letter in view.letters}
    newer = [letter for letter in view.tick.dead if (letter.id, letter.died_ms) not in known]
    return sorted((*newer, *view.letters), key=lambda letter: -letter.died_ms)


def _dead(letters: Sequence[DeadLetter], opened: Collection[str]) -> Iterator[GroupRow | LetterRow]:
    for group, own in groups_of(letters):
        if group.count == 1:
            yield LetterRow(own[0])
            continue
        row = GroupRow(group, is_open=False)
        row = replace(row, is_open=row.key in opened)
        yield row
        if row.is_open:
            yield from (LetterRow(letter, is_within=True) for letter in own)


def key_of(row: Any) -> Hashable:
    """Return what a row is known by from one picture to the next."""
    if isinstance(row, Event | Running):
        return row.entry
    if isinstance(row, LetterRow):
        return "letter", row.letter.id
    if isinstance(row, GroupRow):
        return "group", row.key
    if isinstance(row, BatchRow):
        return row.id
    if isinstance(row, LimitState):
        return row.key
    if isinstance(row, ScheduleRow):
        return row.schedule.name
    return str(row.name)


@dataclass(slots=True)
class Cursor:
    """Which row of a list is aimed at.

    Until it is moved or pinned, and again after Home, it is on the first row, whichever that is.
    Then it keeps to its row, wherever that goes; where the row is gone, to the one at its place.
    """

    key: Hashable = None
    at: int = 0

    def place(self, rows: Sequence[Any]) -> int:
        """Return the index of the row that is aimed at."""
        if self.key is None or not rows:
            self.at = 0
            return 0
        keys = [key_of(row) for row in rows]
        if self.key in keys:
            self.at = keys.index(self.key)
        else:
            self.at = min(self.at, len(rows) - 1)
            self.key = keys[self.at]
        return self.at

    def pin(self, rows: Sequence[Any]) -> None:
        """Keep to the row that is aimed at."""
        at = self.place(rows)
        self.key = key_of(rows[at]) if rows else None

    def move(self, key: str, rows: Sequence[Any]) -> None:
        """Move as a key says, and keep to the row that is there."""
        at = moved(self.place(rows), key, max(0, len(rows) - 1))
        self.key = None if key == "home" or not rows else key_of(rows[at])
        self.at = at


def moved(at: int, key: str, last: int) -> int:
    """Return where a key leads from a line, of lines up to ``last``."""
    step = {"up": -1, "down": 1, "pageup": -10, "pagedown": 10, "home": -last, "end": last}
    return max(0, min(last, at + step.get(key, 0)))


def shares_of(
    rows: dict[str, list[Any]], focus: str, room: int, order: Sequence[str]
) -> dict[str, int]:
    """Return how many lines each list gets, of ``room``: some each, then what it needs, the list
    aimed at first. A heading is one; an optional list without rows has none."""
    needs = {name: 1 + len(rows[name]) for name in LISTS}
    for name in OPTIONAL:
        if not rows[name]:
            needs[name] = 0
    names = (focus, *(name for name in order if name != focus))
    each = max(2, room // max(1, sum(need > 0 for need in needs.values())))
    shares = dict.fromkeys(LISTS, 0)
    for most in (each, room):
        for name in names:
            left = room - sum(shares.values())
            shares[name] += max(0, min(left, min(needs[name], most) - shares[name]))
    return shares
