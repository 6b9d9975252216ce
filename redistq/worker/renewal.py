"""Which worker process is replaced by a fresh one: after so many tasks, or with so much memory.

Used by the supervisor, which starts the replacement, and lets the old one drain when that is ready.
Pure decisions but for one look at a process's memory.
"""

from __future__ import annotations

import random

from ..logger import logger
from ..system.memory import in_words, resident
from .heartbeat import ManagedProcess
from .settings import WorkerSettings

log = logger("redistq.supervisor")

SPREAD = 0.1
"""Up to this share more than ``max_tasks`` before a process is replaced: of processes that were
started together, each comes at a time of its own."""


class Renewal:
    """Says of a process whether, and why, it is to be replaced."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._max_tasks = settings.max_tasks
        self._max_rss = None if settings.max_rss is None else int(settings.max_rss)
        self._said = False

    @property
    def wanted(self) -> bool:
        """Whether any process is ever replaced."""
        return self._max_tasks is not None or self._max_rss is not None

    def begin(self, member: ManagedProcess) -> None:
        """Note what a process has that is ready."""
        if self._max_tasks is not None:
            member.most_tasks = self._max_tasks + int(random.random() * SPREAD * self._max_tasks)
        if self._max_rss is None or member.child is None:
            return
        found = resident(member.child.pid)
        member.grows = found is not None and found < self._max_rss
        if not member.grows and not self._said:
            self._said = True
            log.warning(
                "max_rss, %s, %s: no process is replaced for its memory",
                in_words(self._max_rss),
                "cannot be watched here"
                if found is None
                else f"is less than a worker process has when it starts, {in_words(found)}",
            )

    def reason(self, member: ManagedProcess) -> str:
        """Return why a process is to be replaced, in words; '' when it is not."""
        settled = member.scoreboard.settled
        if member.most_tasks and settled >= member.most_tasks:
            return f"has settled {settled:,} tasks (max_tasks {self._max_tasks:,})"
        if self._max_rss is not None and member.grows and member.child is not None:
            found = resident(member.child.pid) or 0
            if found >= self._max_rss:
                return f"has {in_words(found)} of memory (max_rss {in_words(self._max_rss)})"
        return ""
