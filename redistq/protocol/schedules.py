"""Schedules: what stands in their records, and what is to be done when one is due.

A record is one line of JSON (see set_schedule.lua), a line feed, and the payload of its tasks.
``Definition`` is what a schedule adds, ``Schedule`` one as it stands, ``plan`` what a scheduler
does with it. Never talks to a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import ConfigurationError
from .checks import shown
from .gate import Gate, Unique
from .keys import check_line
from .limits import Limit
from .options import OPTIONS_OF_TASKS, ScheduleKeywords, TaskOptions, unknown_option
from .timing import ZONE, Timing, zone_of

MISSED = ("skip", "once", "all")
"""What becomes of occurrences that were missed: none runs, the latest, or all of them."""
OVERLAP = ("allow", "skip", "queue")
"""What becomes of an occurrence while the task of an earlier one has not ended: it runs beside it,
does not run, or waits for it (one at most)."""
MOST_MISSED = 1000
"""Most missed occurrences that are made up for."""
MOST_SCHEDULES = 10_000
"""Schedules of a queue."""
MOST_AT_ONCE = 100
"""Occurrences that one call fires."""
LONGEST_NAME = 170
"""Longest name: the ids of its tasks are made of it."""
WHOLE_DAY_MS = 86_400_000
OPTIONS_OF_SCHEDULES = frozenset(ScheduleKeywords.__annotations__)


def check_name(name: Any) -> str:
    """Return the name when a schedule may have it; raises ConfigurationError."""
    check_line("the name of a schedule", name)
    if len(name) > LONGEST_NAME:
        raise ConfigurationError(f"the name of a schedule has at most {LONGEST_NAME} characters")
    return str(name)


def occurrence_id(name: str, at_ms: int) -> str:
    """Return the id of the task of one occurrence."""
    return f"{name}@{at_ms}"


def key_of(name: str) -> str:
    """Return the key under which tasks of a schedule do not overlap."""
    return f"schedule:{name}"


@dataclass(frozen=True, slots=True)
class Definition:
    """What a schedule adds each time: a task's name, options as in entries, and conditions as
    ``enqueue_gated`` takes them; ``catch_up`` are the options of tasks that are to run one after
    another."""

    task: str
    opts: str
    conditions: str
    catch_up: str
    missed: str
    overlap: str

    @classmethod
    def of(
        cls,
        name: str,
        task: str,
        payload: Any,
        given: Mapping[str, Any],
        *,
        stream: str,
        missed: str = "once",
        overlap: str | None = None,
    ) -> tuple[Definition, tuple[Limit, ...]]:
        """Return what a schedule of that name adds, and the limits that the code declares for it;
        raises ConfigurationError."""
        check_line("a task's type", task)
        for option in given:
            if option not in OPTIONS_OF_SCHEDULES:
                if option in OPTIONS_OF_TASKS:
                    raise ConfigurationError(
                        f"a schedule has no {option}: its tasks are added when they are due"
                    )
                raise unknown_option("a schedule", option, OPTIONS_OF_SCHEDULES)
        own = given.get("unique") is not None
        overlap = ("allow" if own else "skip") if overlap is None else overlap
        _check_word("missed", missed, MISSED)
        _check_word("overlap", overlap, OVERLAP)
        if own and overlap != "allow":
            raise ConfigurationError(
                f"a task has one unique key: with unique=..., overlap is 'allow', not {overlap!r}"
            )
        options = TaskOptions.of(given, "a schedule")
        asked, waits = dict(given), dict(given)
        if overlap != "allow":
            conflict = "again" if overlap == "queue" else "keep"
            asked["unique"] = Unique(key_of(name), conflict=conflict)
            if given.get("order") is None:  # behind those that are made up for, too
                asked["order"] = waits["order"] = key_of(name)
        gate = Gate.of(asked, payload, stream)
        catch_up = Gate.of(waits, payload, stream)
        made = cls(
            task,
            options.written(gate=gate.text if gate else None).decode(),
            gate.conditions if gate else "",
            options.written(gate=catch_up.text if catch_up else None).decode(),
            missed,
            overlap,
        )
        return made, gate.limits if gate else ()

    def written(self) -> str:
        """Return it as it stands in a record."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def read(cls, text: str) -> Definition:
        """Return the definition that stands in a record; raises ValueError or LookupError."""
        found = json.loads(text)
        return cls(*(str(found[name]) for name in cls.__slots__))


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """A schedule as it stands. Times are ms of the server's clock.

    ``fired`` counts the tasks that were added, ``skipped`` the occurrences of which none was: that
    were missed, or came while an earlier task had not ended. ``last_id`` is the task of the last
    one, ``last_ms`` its time; ``fault`` says why the last one could not be stored.
    """

    name: str
    timing: Timing
    task: str
    missed: str
    overlap: str
    paused: bool
    next_ms: int
    version: int
    queue: str
    source: str = ""
    fired: int = 0
    skipped: int = 0
    last_id: str = ""
    last_ms: int = 0
    fault: str = ""
    anchor_ms: int = 0
    past_ms: int = 0
    payload: bytes = b""

    @classmethod
    def read(cls, name: str, record: bytes, base: str) -> Schedule:
        """Return what stands in a record, in a queue; raises ValueError for what is none."""
        line, _, payload = record.partition(b"\n")
        try:
            found = json.loads(line)
            what = Definition.read(found["definition"])
            return cls(
                name=name,
                timing=Timing.read(found["rule"]),
                task=what.task,
                missed=what.missed,
                overlap=what.overlap,
                paused=bool(found["paused"]),
                next_ms=int(found["next"]),
                version=int(found["version"]),
                queue=base + str(found["lane"]),
                source=str(found["source"]),
                fired=int(found["fired"]),
                skipped=int(found["skipped"]),
                last_id=str(found["last"]),
                last_ms=int(found["last_ms"]),
                fault=str(found["fault"]),
                anchor_ms=int(found["anchor"]),
                past_ms=int(found["past"]),
                payload=payload,
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the record of schedule {name!r} cannot be read: {error!r}") from None

    def __repr__(self) -> str:
        return f"<Schedule {self.name!r} of task {self.task!r}: {self.rule}, {self.when}>"

    @property
    def when(self) -> str:
        """'paused', or when it fires next, in words."""
        return "paused" if self.next is None else f"next {self.next:%Y-%m-%d %H:%M:%S %Z}"

    @property
    def rule(self) -> str:
        """When it fires, in words."""
        return self.timing.words

    @property
    def next(self) -> datetime | None:
        """When it fires next, in its own time zone; None while it is paused."""
        return None if self.paused else moment_of(self.next_ms, self.timing.tz)

    def start_ms(self, now_ms: int) -> int:
        """Return the moment from which on it is to fire when it begins anew at ``now_ms``: what has
        been does not come again, unless the clock was a day ahead."""
        return self.past_ms if 0 < self.past_ms - now_ms < WHOLE_DAY_MS else now_ms

    def written(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        fields = {n: getattr(self, n) for n in Schedule.__slots__ if n not in ("timing", "payload")}
        return {**fields, "rule": self.rule, "cron": self.timing.cron, "tz": self.timing.tz}


def moment_of(at_ms: int, tz: str) -> datetime:
    """Return a time in a zone."""
    return datetime.fromtimestamp(at_ms / 1000, UTC if tz == ZONE else zone_of(tz))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with a due schedule: occurrences whose tasks are added, when it fires
    next, the latest occurrence that is done with then, and how many before these are left out."""

    occurrences: tuple[int, ...]
    next_ms: int
    past_ms: int
    again_ms: int
    skipped: int
    cut: bool = False
    """Whether more were missed than are made up for."""
    catches_up: bool = False
    """Whether these are made up for: one after another, as far as they may not overlap."""


def plan(schedule: Schedule, now_ms: int) -> Plan | None:
    """Return what is to be done with a schedule at that time; None while it is not due.

    Raises ConfigurationError where this machine does not know its time zone.
    """
    timing, first, anchor = schedule.timing, schedule.next_ms, schedule.anchor_ms
    if first > now_ms:
        return None
    most = MOST_MISSED if schedule.missed == "all" else 1
    found, skipped = timing.due(first, now_ms, anchor, most)
    cut = schedule.missed == "all" and skipped > 0
    late = now_ms - found[-1] >= timing.grace_ms(found[-1], anchor)
    if schedule.missed == "skip" and late:
        skipped += len(found)
        chosen: list[int] = []
        past = found[-1]
    else:
        chosen = found[:MOST_AT_ONCE]
        past = chosen[-1]
    following = timing.after(past, anchor)
    if following is None:  # zones change: no time is so any more
        following = past + 365 * WHOLE_DAY_MS
    again = timing.again_ms(past, anchor)
    catches_up = schedule.missed == "all" and (late or len(found) > 1)
    return Plan(tuple(chosen), following, past, again, skipped, cut, catches_up)


def read_all(rows: Iterable[tuple[str, bytes]], base: str) -> dict[str, Schedule]:
    """Return schedules by name, in order; what is no record is left out."""
    found = {}
    for name, record in sorted(rows):
        try:
            found[name] = Schedule.read(name, record, base)
        except ValueError:
            continue
    return found


def changed_times(schedule: Schedule | None, timing: Timing, now_ms: int) -> tuple[int, int]:
    """Return when a schedule fires next that begins anew now, and from when its interval counts."""
    anchor = schedule.anchor_ms if schedule and schedule.timing == timing else now_ms
    following = timing.after(schedule.start_ms(now_ms) if schedule else now_ms, anchor)
    if following is None:
        raise ConfigurationError(f"the schedule never fires: {timing.words}")
    return following, anchor


def _check_word(what: str, word: Any, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ConfigurationError(f"{what} is one of {', '.join(known)}, not {shown(word)}")
