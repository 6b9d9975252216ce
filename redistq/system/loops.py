"""Loops that must not end: a thread's work, repeated until a stop is asked for, whatever happens.

Used by every thread that serves other people's tasks. Such a thread that died of an error would
leave its process looking alive and doing nothing, so here, and nowhere else, any exception is
caught; each costs a pause.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..errors import ConnectionLost, GroupMissing, RedistqError
from ..logger import Logger

OUTAGES = (RedistqError, ConnectionLost, GroupMissing, OSError)
"""What is raised while the server is unavailable."""


class Backoff:
    """Pauses that double, from ``first`` to ``longest`` seconds, until something works again."""

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest
        self._next = first

    def next(self) -> float:
        """Return how long to pause now; the pause after it is twice as long."""
        pause = self._next
        self._next = min(pause * 2, self.longest)
        return pause

    def reset(self) -> None:
        """Begin again with the first pause."""
        self._next = self.first


def run_forever(
    step: Callable[[], object],
    stopping: threading.Event,
    *,
    name: str,
    log: Logger,
    backoff: Backoff,
    outages: tuple[type[Exception], ...] = OUTAGES,
) -> None:
    """Call ``step`` again and again until ``stopping`` is set.

    ``outages`` are the errors that mean no more than that the server is unavailable: one line at
    WARNING. Any other error is ours: it is logged with its traceback. After either the loop
    pauses; a step that returns makes the next pause the first again.
    """
    while not stopping.is_set():
        try:
            step()
            backoff.reset()
            continue
        except outages as error:
            if stopping.is_set():
                return  # a connection that was cut to end the step
            log.warning("%s waits for the server: %s", name, error)
        except Exception:  # without this loop its process would look alive and do nothing
            log.exception("%s goes on after an error", name)
        stopping.wait(backoff.next())
