"""A supervisor's first worker processes, where they can be copies of the one that it runs in.

Used by the sidecar before it has read anything but its orders. Each copy has redis-py, redistq and
its scripts loaded, shares the memory of that, and waits to be told what it is for, as one does that
was started anew. All others are started anew: those of the command, those with devices of their
own, which are to be seen by a process from its first moment, and whatever follows on one that has
ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError
from ..protocol.scripts import VERBS, load
from ..system.cores import environment
from ..system.processes import can_copy
from .pipe import Child
from .scoreboard import Scoreboard
from .settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class CopiedChild:
    """A worker process that waits to be told what it is for."""

    child: Child
    scoreboard: Scoreboard

    def let_go(self) -> None:
        """Have it end: it is not needed."""
        self.child.let_go()
        self.scoreboard.close()


def copied_children(settings: WorkerSettings, children: int) -> list[CopiedChild]:
    """Return as many copies of this process as a supervisor with so many ``children`` starts first;
    fewer, or none, where they have to be started anew."""
    first, most = settings.processes(children)
    made: list[CopiedChild] = []
    if settings.has or not (first and can_copy()):
        return made

    for verb in VERBS:
        load(verb)
    env = environment(most, settings.blas_threads)
    for _ in range(first):
        try:
            scoreboard = settings.new_scoreboard()
        except ConfigurationError:
            break  # no memory: it is said where they are started anew

        def let_go(own: Scoreboard = scoreboard) -> None:
            for other in made:
                other.scoreboard.unmap()
            own.hand_over()

        try:
            child = Child("redistq.worker.child", environment=env, copied=let_go)
        except (OSError, ConfigurationError):
            scoreboard.close()
            break
        made.append(CopiedChild(child, scoreboard))
    return made
