"""When a supervisor starts a worker process again, and when it gives up.

Used by the supervisor. Pure decisions: no process, no server.
"""

from __future__ import annotations

import time

from ..system.loops import Backoff
from .heartbeat import ManagedProcess

QUICK_DEATH_S = 5.0
FIRST_START = 1
START_TRIES = 3
"""Starts that may fail without a reason given before the supervisor gives up."""
RESTART_PAUSE_S = 0.1
"""Before a process is started again whose kind dies quickly and settles nothing; it doubles."""
LONGEST_PAUSE_S = 30.0
KILLERS_PAUSE_S = 0.25
"""As long at most when tasks kill their processes: each of them can do so only a few times."""


class Restarts:
    """Decides when a supervisor starts a worker process again, and when it gives up.

    Pure decisions: no process, no server. A process that worked for a while is started again at
    once. Where processes die quickly and settle nothing the pause doubles, for they may die of the
    machine or of their own modules. Where none has ever worked there is a reason, and no use in
    going on.
    """

    def __init__(self) -> None:
        self.failure = ""
        """Why worker processes cannot start; empty when they can."""
        self.worked = False
        """Whether any of them was ever ready."""
        self.at = 0.0
        """Not before this time is another started (monotonic clock)."""
        self._starts = 0
        self._failed_starts: set[int] = set()
        self._backoff = Backoff(RESTART_PAUSE_S, LONGEST_PAUSE_S)
        self._settled_before = 0
        self._settled_by_dead = 0

    def begin(self) -> int:
        """Return the number of the start that is made now, of one process or several."""
        self._starts += 1
        return self._starts

    def pause(self, longest: float = LONGEST_PAUSE_S) -> None:
        """Let no other be started for a while."""
        self.at = time.monotonic() + min(self._backoff.next(), longest)

    def give_up(self, ended: ManagedProcess, why: str) -> bool:
        """Return whether another process would not work either; ``failure`` then says why.

        ``ended`` is one that has ended, and ``why`` says how. Of those that are started first each
        one's reason counts, also where others work: which is the fastest decides nothing.
        """
        if ended.ready or ended.unavailable:
            return False
        if ended.failure and (ended.start == FIRST_START or not self.worked):
            self.failure = ended.failure
            return True
        if self.worked:
            return False
        # It was ended from outside, or by native code or os._exit in a handlers' module.
        self._failed_starts.add(ended.start)
        if len(self._failed_starts) < START_TRIES:
            return False
        self.failure = (
            f"worker processes end before they are ready, {START_TRIES} times in a row; the last "
            f"one {why}: see its last words above, and what the handlers' modules do when they are "
            "imported"
        )
        return True

    def count(self, ended: ManagedProcess) -> None:
        """Count what a process settled that has ended."""
        self._settled_by_dead += ended.scoreboard.settled

    def after(self, ended: ManagedProcess, *, killed_by_task: bool, settled_by_others: int) -> None:
        """Decide when another is started in place of one that has ended."""
        settled = self._settled_by_dead + settled_by_others
        lived = time.monotonic() - ended.started_at
        if settled > self._settled_before or (ended.ready and lived >= QUICK_DEATH_S):
            # Work goes on: a task that kills its process must not hold it up.
            self._backoff.reset()
            self.at = 0.0
        else:
            self.pause(KILLERS_PAUSE_S if killed_by_task else LONGEST_PAUSE_S)
        self._settled_before = settled
