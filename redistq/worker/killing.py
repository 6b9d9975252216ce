"""Which worker process is killed, and for what; and what to say of one that others killed.

Used by the supervisor alone. killed.py ends the tasks for which a process was killed.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from ..system.memory import in_words, kills_for_want_of_memory, resident
from ..system.processes import how_it_ended
from .heartbeat import ManagedProcess
from .scoreboard import Overdue


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a process is to be killed."""

    why: str
    """What it did, in words that follow its name."""
    what: str
    """What the task is that it runs, in words."""
    overdue: list[Overdue] = field(default_factory=list)
    """The attempts for which it is killed, where they are past a limit."""


def verdict(member: ManagedProcess, now: float) -> Verdict | None:
    """Return why a process is to be killed: it runs a task past its time limit or its limit of
    memory, or one that was to end by force, which obeyed nothing. None: it goes on."""
    board = member.scoreboard
    if overdue := board.overdue(now):
        what = "past its hard time limit and cannot be interrupted"
        return Verdict("exceeded a time limit", what, overdue)
    if board.capped and member.child is not None:
        large = board.too_large(resident(member.child.pid) or 0)
        if large:
            limit, seen = in_words(large[0].memory), in_words(large[0].seen)
            what = f"past its limit of memory, {limit}: it grew by {seen}"
            return Verdict("exceeded a limit of memory", what, large)
    if member.runs_by_force(now):
        what = "that was to end by force and cannot be interrupted"
        return Verdict("was killed to end a task", what)
    return None


class Ends:
    """Says how processes ended, and when the kernel killed one because memory was short."""

    def __init__(self) -> None:
        self._kills = kills_for_want_of_memory()

    def words(self, member: ManagedProcess, code: int) -> str:
        """Return how a process ended, with this code."""
        if member.killed:
            return member.killed
        ended = how_it_ended(code)
        if code != -signal.SIGKILL:
            return ended
        before, self._kills = self._kills, kills_for_want_of_memory()
        if before is not None and self._kills is not None and self._kills > before:
            return (
                f"{ended} by the kernel, which was out of memory (OOM): give its tasks a limit, "
                "memory=..., run fewer at a time, or find more memory"
            )
        return f"{ended}, which its supervisor did not send"
