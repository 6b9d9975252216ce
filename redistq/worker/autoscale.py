"""How many worker processes there are, by how long the work that waits will take.

Used by the supervisor where ``--autoscale`` asks for it. ``Autoscale`` decides, without a clock or
a server; ``Scaling`` reads the figures of the worker's queues, one call a queue every two seconds,
and says each decision with them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..connection.broker import Broker
from ..errors import GroupMissing, RedistqError
from ..logger import logger
from ..protocol.commands import Commands
from .heartbeat import ManagedProcess
from .settings import WorkerSettings

log = logger("redistq.supervisor")

LOOK_S = 2.0
"""How often the queues are looked at."""
RATE_OVER_S = 20.0
"""Over how long the throughput is measured."""
LONG_S = 10.0
"""More processes are started where the work that waits takes longer than that, in two looks
running."""
SETTLE_S = 6.0
"""After a change nothing is started for so long: the new processes show what they can do."""
CALM_S = 30.0
"""One process less after so long without a backlog; again after half of it."""
LONGEST_CALM_S = 600.0
ROOM = 0.7
"""One process less only where what runs would fill no more than that of the others."""
SOON_S = 300.0
"""A process that is missed so soon after it went was no surplus: the next goes later."""


@dataclass(frozen=True, slots=True)
class Load:
    """The figures of one look."""

    waiting: int
    """Tasks that nobody has read."""
    per_second: float
    """How many the queues' workers ended a second, all of them."""
    running: int
    """What the processes of this supervisor run now."""
    slots: int
    """What one of them runs at a time."""

    @property
    def seconds(self) -> float:
        """How long what waits will take, as things go."""
        if not self.waiting:
            return 0.0
        return self.waiting / self.per_second if self.per_second > 0 else math.inf


class Autoscale:
    """Decides how many processes there are to be, from ``least`` to ``most``."""

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self._long = 0  # looks in a row that saw a long backlog
        self._changed_at = -math.inf
        self._calm_since: float | None = None
        self._calm_s = CALM_S
        self._down_at = -math.inf

    def decide(self, now: float, processes: int, load: Load) -> int:
        """Return how many processes there are to be, where there are so many now."""
        is_full = load.running >= load.slots * processes or load.per_second > 0
        self._long = self._long + 1 if load.seconds > LONG_S and is_full else 0
        if load.seconds > 1.0 or not self._fits(load, processes - 1):
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        if self._long >= 2 and processes < self.most:
            return self._up(now, processes, load)
        calm = self._calm_since
        if calm is not None and processes > self.least and now - calm >= self._calm_s:
            self._calm_since = now - self._calm_s / 2
            self._changed_at = self._down_at = now
            return processes - 1
        return processes

    def _up(self, now: float, processes: int, load: Load) -> int:
        if now - self._changed_at < SETTLE_S and self._changed_at != self._down_at:
            return processes
        if now - self._down_at < SOON_S:
            self._calm_s = min(2 * self._calm_s, LONGEST_CALM_S)
            self._down_at = -math.inf
        self._changed_at = now
        self._long = 0
        wanted = math.ceil(processes * min(2.0, load.seconds / LONG_S))
        return max(processes + 1, min(wanted, self.most))

    def _fits(self, load: Load, processes: int) -> bool:
        return load.running <= ROOM * load.slots * processes


class Scaling:
    """Sees how the queues of a supervisor are, and how many processes it is to have."""

    def __init__(
        self, settings: WorkerSettings, broker: Broker, commands: Sequence[Commands]
    ) -> None:
        assert settings.autoscale is not None
        self._autoscale = Autoscale(*settings.autoscale)
        self._settings = settings
        self._broker = broker
        self._commands = commands
        self._ended: deque[tuple[float, int]] = deque()
        self._next = 0.0

    def wanted(self, processes: int, members: Sequence[ManagedProcess]) -> int:
        """Return how many processes there are to be, where so many are wanted now."""
        now = time.monotonic()
        autoscale = self._autoscale
        if now < self._next:
            return processes
        self._next = now + LOOK_S
        try:
            load = self._look(now, members)
        except (RedistqError, GroupMissing, OSError) as error:
            log.debug("autoscale sees nothing: %s", error)
            self._ended.clear()
            return processes
        if load is None:
            return processes
        wanted = autoscale.decide(now, processes, load)
        if wanted != processes:
            log.info(
                "autoscale: %d processes instead of %d (from %d to %d): %s tasks wait, %s at %.3g "
                "a second; %d run here in %d slots",
                *(wanted, processes, autoscale.least, autoscale.most, f"{load.waiting:,}"),
                "for long" if math.isinf(load.seconds) else f"{load.seconds:.1f} s of work",
                *(load.per_second, load.running, load.slots * processes),
            )
        return wanted

    def _look(self, now: float, members: Sequence[ManagedProcess]) -> Load | None:
        waiting = ended = 0
        for commands in self._commands:
            shot = commands.read_snapshot(self._broker.call(commands.snapshot()))
            if not shot.paused:
                waiting += shot.ready
            ended += sum(shot.counters.get(state, 0) for state in _ENDS)
        seen = self._ended
        seen.append((now, ended))
        while now - seen[0][0] > RATE_OVER_S and len(seen) > 2:
            seen.popleft()
        since, before = seen[0]
        ready = [member for member in members if member.ready]
        if now <= since or not ready:
            return None
        slots = max(int(member.details.get("slots", 0) or 1) for member in ready)
        running = sum(len(member.scoreboard.running()) for member in ready)
        return Load(waiting, max(0, ended - before) / (now - since), running, slots)


_ENDS = ("succeeded", "failed", "retried", "snoozed")
