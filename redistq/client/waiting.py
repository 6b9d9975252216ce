"""BatchWait: one wait for a batch, page by page, as its tasks end.

Used by batches. It looks at the counters, then reads the stream of ends; past lost connections and
restarts of the server, until all have ended or the time is over. A BatchBar shows meanwhile
how far the batch is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import slots
from ..errors import ConnectionLost, RedistqError, ResultTimeout, ServerUnavailable
from ..functions.written import CALL
from ..producer.diagnosis import Wait
from ..producer.results import LEAST_LOOK_S
from ..producer.sansio import BLOCK_LIMIT
from ..protocol.options import wait_seconds
from .batch_bar import BatchBar
from .outcomes import ends_in
from .queues import StreamTail

if TYPE_CHECKING:
    from .queues import ClientQueue
    from .session import Session
BURST_S = 0.01
"""Seconds between two reads: a burst of small settlements becomes one."""

Page = list[tuple[int, str]]
"""Positions and states of tasks that have ended."""


class BatchWait:
    """A wait for the end of a batch; for one thread, and used once."""

    def __init__(
        self,
        session: Session,
        queue: ClientQueue,
        batch_id: str,
        total: Callable[[], int],
        is_wanted: bool,
    ) -> None:
        self._session = session
        self._queue = queue
        self._id = batch_id
        self._total = total
        self.is_wanted = is_wanted
        """Whether the batch's record says that this client wants its results."""
        self.counts: dict[str, int] = {}
        """The batch's counters when they were read last."""
        self.is_complete = False
        """Whether all tasks have ended, and their ends were given."""
        self._wait = Wait()
        self._limit: _Limit = _Limit(None)
        self._closed = session.exchange.pending.ended
        if self._closed.is_set():  # what was there before a shutdown can be read after it
            self._closed = threading.Event()

    def pages(
        self, timeout: float | None, progress: bool | None, stop: threading.Event | None
    ) -> Iterator[Page]:
        """Yield what has ended, until all has or ``stop`` is set. A task that was sent again ends
        again. Raises ResultTimeout, or ServerUnavailable when there is no server to say."""
        self._limit = _Limit(wait_seconds(timeout))
        tail = StreamTail(self._session.broker, self._queue.keys.settled(self._id))
        bar = BatchBar(self._id, progress)
        try:
            while stop is None or not stop.is_set():
                # Counters first: once they are complete, all ends are in the stream already.
                self.counts = self._queue.batch_counts(self._id, self._limit.for_a_look())
                bar.show(self.counts)
                self._want()
                try:
                    page = self._read(tail)
                except ConnectionLost as error:
                    self._check_server(error)
                    tail.pause()
                    continue
                if page is not None:
                    yield page
                elif not self.counts["waiting"]:
                    self.is_complete = True
                    return
                self._check()
                time.sleep(BURST_S)
        except KeyboardInterrupt:
            print(
                f"The wait was stopped; batch {self._id!r} goes on. client.batch({self._id!r}) "
                "finds it again, .cancel() cancels what has not started.",
                file=sys.stderr,
            )
            raise
        finally:
            bar.close()
            tail.close()

    def _want(self) -> None:
        """Leave in the batch's record, once, that its results are wanted here."""
        if self.counts["waiting"] and not self.is_wanted:
            self._session.exchange.want(self._queue, self._id)
            self.is_wanted = True

    def _read(self, tail: StreamTail) -> Page | None:
        """Return what is new, after a wait if there is something to wait for; None: nothing."""
        now = time.monotonic()
        block_s = self._limit.within(min(BLOCK_LIMIT, max(0.01, self._wait.left(now))), now)
        patience_s = self._limit.left(now)
        if patience_s is not None:
            patience_s -= block_s
        with slots.lent():
            if not self.counts["waiting"]:
                block_s = 0.001
            entries = tail.read(block_s, patience_s=patience_s)
        if not entries:
            return None
        self._wait.restart(time.monotonic())
        self._queue.diagnosis.over()
        return [ended for flat in entries for ended in ends_in(flat, self._total())]

    def _check_server(self, error: ConnectionLost) -> None:
        """Raise ServerUnavailable when the time is over."""
        if self._limit.is_over(time.monotonic()):
            raise ServerUnavailable(
                f"no answer from {self._session.broker.address} ({error}); batch {self._id!r} "
                "goes on"
            ) from error

    def _check(self) -> None:
        """Raise where there is no use in waiting longer, and say why nothing comes where it is time
        to."""
        now = time.monotonic()
        if self._limit.is_over(now) and self.counts["waiting"]:
            raise self._timed_out(self._limit.timeout or 0.0)
        if self._closed.is_set():
            raise RedistqError(
                f"the client was closed before batch {self._id!r} had ended; the batch goes "
                f"on: Client(...).batch({self._id!r}) finds it"
            )
        if self._wait.due(now):
            reason = self._session.exchange.listener.ask(self._queue, (CALL,))
            self._queue.diagnosis.say(reason)

    def _timed_out(self, timeout: float) -> ResultTimeout:
        total = self.counts["total"]
        ended = total - self.counts["waiting"]
        state = f"unfinished ({ended:,} of {total:,} tasks have ended)"
        reason = self._session.exchange.why_waiting(self._queue, timeout, (CALL,))
        return ResultTimeout(self._id, timeout, state, reason, "batch")


class _Limit:
    """How long to wait in all; None: for ever."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self, now: float) -> float | None:
        """Return the seconds that are left; None for ever."""
        return None if self._end is None else self._end - now

    def within(self, seconds: float, now: float) -> float:
        """Return so many seconds, or fewer where fewer are left."""
        return seconds if self._end is None else min(seconds, self._end - now)

    def is_over(self, now: float) -> bool:
        """Return whether nothing is left."""
        return self._end is not None and now >= self._end

    def for_a_look(self) -> float | None:
        """Return the deadline of a question that is asked however little is left."""
        return None if self._end is None else max(self._end, time.monotonic() + LEAST_LOOK_S)
