"""Answers: what scripts answer, by name, and the words of errors among it. ``Commands`` reads
them, whoever asked gets them.

A state of the whole queue stands in snapshot.py, of one task that waits in waits.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one task of ``enqueue_gated`` that was not simply added, by position from 0.

    ``outcome``: "known" (its id was, nothing was done), "refused" (it is not stored), or what
    happened instead: "joined", "replaced", "pushed", "again", "dropped". ``id`` is that of the task
    that stands, '' for a known one; ``words`` say why it was refused, or more.
    """

    position: int
    outcome: str
    id: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """What a script did not do of a call's items, by position from 0.

    ``lost``: the lease was lost, or the id is known; the item is another worker's or done.
    ``broken``: the item could not be written, with the error's words; nothing of it was.
    """

    lost: list[int]
    broken: dict[int, str]


@dataclass(frozen=True, slots=True)
class Watched:
    """How a task stands: its state, its record as raw fields, and its worker, or ''."""

    state: str
    record: dict[str, bytes]
    consumer: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """How many tasks became ready, when the next one is due (None: nothing waits), server time.

    ``broken`` are tasks that could not be moved, by id, with the error's words; they are due again
    in some seconds. ``schedules`` are those due, by name, as their records say: see schedules.py.
    """

    moved: int
    next_due_ms: int | None
    now_ms: int
    broken: dict[str, str] = field(default_factory=dict)
    schedules: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fired:
    """What became of a schedule's occurrences: "fired", "stale" (somebody else did, or it has
    changed), "unknown", or "fault", with the error's words. ``others`` are those of which no new
    task is there."""

    outcome: str
    words: str
    others: list[Answered] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What one ``recover`` call did; ``more`` asks for another call for the same worker.

    ``broken`` are entries that could not be moved, with the error's words; they are pending.
    """

    recovered: int
    dead: int
    more: bool
    consumer: str
    broken: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The server's time, the earliest deadline of any worker, and whether the queue is paused.

    ``unregistered`` are the positions (from 1) of workers whose details the server does not have,
    as after FLUSHDB or when they were taken for dead: they should register again. ``wishes`` are
    entries that are to end: the worker's position (from 1), the entry, and what is wished.
    ``names`` are those of tasks that have a rule or are paused.
    """

    now_ms: int
    earliest_deadline_ms: int
    paused: bool
    unregistered: tuple[int, ...] = ()
    wishes: tuple[tuple[int, str, str], ...] = ()
    names: tuple[str, ...] = ()


_PLACE = re.compile(r"^(?:@?user_script|=\[C\]): ?-?\d+: ")
_DENIED = ("NOPERM", "ACL failure", "The user executing the script")


def words_of(error: bytes) -> str:
    """Return an error's words as a script answers them, without the place in the script."""
    return _PLACE.sub("", error.decode("utf-8", "replace"))


def denies(words: str) -> bool:
    """Return whether an error's words say that the user has no right to a command, key or channel.

    Inside a script no server begins such an error with NOPERM.
    """
    return any(mark in words for mark in _DENIED)


def objects_to_content(words: str) -> bool:
    """Return whether an error's words are about a number that was sent, which will not get better;
    most causes can be removed: a right that is missing, a key that holds something else."""
    return any(mark in words for mark in ("out of range", "invalid expire", "not an integer"))


def words_by_name(flat: list[bytes]) -> dict[str, str]:
    """Return errors' words by what they are about, from a flat list of both."""
    names = (name.decode("utf-8", "replace") for name in flat[::2])
    return dict(zip(names, map(words_of, flat[1::2]), strict=True))


def text_of(value: bytes) -> str:
    """Return text as a script answers it."""
    return value.decode("utf-8", "replace")
