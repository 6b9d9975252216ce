"""The items of a call whose result is the list of them: sent only while somebody reads.

A function that a client submits and that yields has its list as result, whoever reads it item by
item. So nothing of it goes to the server until the writer's thread finds, some times a second,
that there is a reader; from then on it is sent as other items are, as fast as it is read. When the
function has ended, readers take the rest from the result.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ConnectionLost, RedistqError
from ..logger import logger
from .item_buffer import LATEST_S, PATIENCE_S, Yielded

if TYPE_CHECKING:
    from .item_writer import ItemWriter
    from .queues import WorkerQueue
    from .streaming import AttemptItems

log = logger("redistq.worker")

FIRST_LOOK_S = 0.05
"""Seconds after its start at which it is looked for readers: most functions have ended by then."""
LOOK_S = 0.25
AWAY_S = 2.0
"""The same while the server is away."""


class Collected:
    """What one call has yielded so far; its ``items`` are appended by the function's thread."""

    def __init__(
        self,
        attempt: AttemptItems,
        queue: WorkerQueue,
        writer: ItemWriter,
        open_stream: Callable[[], Yielded],
    ) -> None:
        """``open_stream`` begins what is sent, once somebody reads."""
        self.items: list[Any] = []
        """All of them."""
        self._attempt = attempt
        self._queue = queue
        self._writer = writer
        self._open_stream = open_stream
        self._sent: Yielded | None = None  # once somebody reads
        self._fed = 0  # how many of the items that has
        self._look_at = time.monotonic() + FIRST_LOOK_S
        self._ended = False
        self._feeding = threading.Lock()

    def feed(self, now: float) -> float:
        """Send what is new, where somebody reads; return when to do so again: what the writer's
        thread does."""
        with self._feeding:
            if self._ended:
                return math.inf
            if self._sent is None:
                if now >= self._look_at:
                    self._look_at = now + LOOK_S
                    self._open_if_read()
                if self._sent is None:
                    return self._look_at
            try:
                self._feed(self._sent)
            except Exception as error:  # an item that cannot be sent alone, or the stream's end
                log.info("task %s is streamed no further: %s", self._attempt.id, error)
                self._ended = True
                return math.inf
        return now + LATEST_S

    def _open_if_read(self) -> None:
        queue = self._queue
        assert queue.broker is not None
        try:
            reader = queue.broker.call(queue.commands.items_read(self._attempt.id))
        except (RedistqError, ConnectionLost):
            self._look_at += AWAY_S
            return
        if reader is not None:
            self._sent = self._open_stream()

    def _feed(self, sent: Yielded) -> None:
        items = self.items
        while self._fed < len(items) and sent.has_room():
            sent.put_now(items[self._fed])
            self._fed += 1

    def end(self, *, failed: bool) -> None:
        """Send nothing more; of a call that has failed, and so has no result, first the rest."""
        with self._feeding:
            stopped = self._ended
            self._ended = True
        self._writer.unwatch(self)
        if failed and self._sent is None and self.items:
            self._open_if_read()
        sent = self._sent
        if sent is None:
            return
        if not failed or stopped:
            sent.drop()
            return
        until = time.monotonic() + PATIENCE_S
        try:
            while self._fed < len(self.items) and time.monotonic() < until:
                self._feed(sent)
                sent.wait_for_room(until)
            sent.end(failed=True)
        except Exception as error:  # as in ``feed``; the call's own error is what counts
            log.info("task %s is streamed no further: %s", self._attempt.id, error)
            sent.drop()
