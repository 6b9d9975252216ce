"""The reporter: what running handlers say of themselves goes to the server, some times a second.

``Report`` is what one attempt says: how far it is, and its checkpoint. Saying it writes to memory
alone. ``Reporter`` is the one of a worker process: its thread sends what is new of all attempts, a
script call for each queue, at most four calls a second; with nothing to say it sleeps. The settler
asks it first (``before``): a checkpoint of an attempt that will be tried again is on the server
before that attempt has ended there.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import ConfigurationError, ConnectionLost, RedistqError, ServerUnavailable
from ..logger import logger
from ..protocol.checks import seconds as checked_seconds
from ..protocol.commands import Commands
from ..protocol.plain_commands import portions
from ..protocol.progress import MAX_CHECKPOINT, MOST, Reported, checked, written
from .outcome import SETTLE

if TYPE_CHECKING:
    from .limits import Limit
    from .outcome import Outcome
    from .queues import WorkerQueue
    from .sealed import TaskSeal

log = logger("redistq.worker")

PERIOD_S = 0.3
"""Between two calls while there is always something new: some room is left for what ends."""
CALLS_A_SECOND = 4
"""Most calls of one process in a second, but for checkpoints of attempts that end."""
_NOT_READ = object()
_UNCHANGING = (int, str, type(None))
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

Key = tuple[bytes, "WorkerQueue"]


class Report:
    """What one attempt says of itself; any of its threads may."""

    __slots__ = (
        *(
            "_reporter",
            "_seal",
            "attempt",
            "began",
            "checkpoint",
            "closed",
            "cursor_",
            "entry",
            "id",
        ),
        "limit",
        *("queue", "reported", "sent", "unsent"),
    )

    def __init__(
        self,
        reporter: Reporter | None,
        queue: WorkerQueue,
        entry: bytes,
        task_id: str,
        attempt: int,
        limit: Limit | None = None,
        seal: TaskSeal | None = None,
    ) -> None:
        """Without a reporter nothing is sent; ``limit`` is what bounds its time."""
        self._reporter = reporter
        self._seal = seal
        self.queue = queue
        self.entry = entry
        self.id = task_id
        self.attempt = str(attempt)
        self.began = time.monotonic()
        self.reported: Reported | None = None
        """What it said last."""
        self.sent: Reported | None = None
        """What of that was taken to be sent: the very same object."""
        self.checkpoint: bytes | None = None
        """Where it would go on, as far as that was not taken to be sent."""
        self.cursor_: Any = _NOT_READ
        self.limit = limit
        self.unsent = False
        """Whether the reporter knows that there is something new."""
        self.closed = False
        """Whether nothing more is sent: the attempt has ended, or is no longer this worker's."""

    def progress(self, done: float, total: float | None, text: str) -> None:
        """See TaskContext.progress."""
        # The usual is told without a call: the whole must take a fraction of a microsecond.
        if (
            type(done) is int
            and 0 <= done <= MOST
            and (total is None or (type(total) is int and 0 < total <= MOST))
            and type(text) is str
        ):
            self.reported = (done, total, text)
        else:
            self.reported = checked(done, total, text)
        if not self.unsent:
            self._wants()

    def save(self, cursor: Any) -> None:
        """See TaskContext.checkpoint."""
        try:
            body = _encode(cursor).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"a checkpoint is JSON, such as a number, text, list or dict: {error}"
            ) from error
        if len(body) > MAX_CHECKPOINT:
            raise ConfigurationError(
                f"a checkpoint has at most {MAX_CHECKPOINT:,} bytes as JSON, not {len(body):,}; "
                "keep the data elsewhere, and where they are in the checkpoint"
            )
        # What the handler changes later was not saved.
        self.cursor_ = cursor if type(cursor) in _UNCHANGING else json.loads(body)
        self.checkpoint = body if self._seal is None else self._seal.checkpoint(body)
        if not self.unsent:
            self._wants()

    def cursor(self) -> Any:
        """See TaskContext.cursor."""
        if self.cursor_ is _NOT_READ:
            broker = self.queue.broker
            if broker is None:
                raise RedistqError("this worker cannot read what the attempt before saved")
            raw = broker.call(self.queue.commands.checkpoint(self.id))
            found = None
            if raw is not None:
                try:
                    found = json.loads(self.queue.seal.open_of_task("checkpoint", self.id, raw))
                except (ValueError, RedistqError) as error:
                    log.warning("the checkpoint of task %s is ignored: %s", self.id, error)
            if self.cursor_ is _NOT_READ:  # another thread may have saved one meanwhile
                self.cursor_ = found
        return self.cursor_

    def extend(self, seconds: float) -> float:
        """See TaskContext.extend."""
        more = checked_seconds("the extension of a time limit", seconds, positive=True)
        return math.inf if self.limit is None else self.limit.extend(more)

    @property
    def remaining(self) -> float:
        """See TaskContext.remaining."""
        return math.inf if self.limit is None else self.limit.remaining

    def _wants(self) -> None:
        if self._reporter is not None and not self.closed:
            self.unsent = True
            self._reporter.add(self)

    def take(self) -> list[Any] | None:
        """Return what is new, as ``report`` takes it; None for nothing."""
        self.unsent = False  # first: what is said from now on is new again
        reported, checkpoint = self.reported, self.checkpoint
        if reported is self.sent and checkpoint is None:
            return None
        numbers, text = written(None if reported is self.sent else reported, self.attempt)
        self.sent = reported
        if self.checkpoint is checkpoint:
            self.checkpoint = None
        age = int((time.monotonic() - self.began) * 1000)
        return [self.entry, self.id, numbers, age, text, checkpoint or b""]

    def put_back(self, row: list[Any]) -> None:
        """Take back what could not be sent; what was said since comes first."""
        if row[5] and self.checkpoint is None:
            self.checkpoint = row[5]
        if self.reported is self.sent:
            self.sent = None
        if not self.closed and not self.unsent:
            self._wants()


class Reporter:
    """Sends the reports of a worker process; thread-safe."""

    def __init__(self, broker: Broker, consumer: str) -> None:
        self._broker = broker
        self._consumer = consumer
        self.unsent: dict[Key, Report] = {}
        """Attempts that said something new."""
        self._in_flight: dict[Key, Report] = {}
        self._sending = threading.Lock()
        self._bell = threading.Event()
        self._closed = threading.Event()
        self._times: deque[float] = deque(maxlen=CALLS_A_SECOND)

    def report(self, queue: WorkerQueue, entry: bytes, task_id: str, attempt: int) -> Report:
        """Return what an attempt reports by."""
        return Report(self, queue, entry, task_id, attempt)

    def add(self, report: Report) -> None:
        """Send what is new of an attempt, soon."""
        self.unsent[(report.entry, report.queue)] = report
        self._bell.set()

    # -- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Send until ``close``: what the reporter's own thread does."""
        while not self._closed.is_set():
            self._bell.wait()
            self._bell.clear()
            if not self._closed.is_set() and self.unsent:
                self._send_in_turn()
                self._closed.wait(PERIOD_S)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._bell.set()

    def _send_in_turn(self) -> None:
        """Send what is new, each call when it may be made."""
        for portion in portions(list(self.unsent.values())):
            wait = self._wait_s()
            if wait > 0 and self._closed.wait(wait):
                return
            self._send_taken(portion)

    def _wait_s(self) -> float:
        """Return how long to wait until another call may be made."""
        if len(self._times) < CALLS_A_SECOND:
            return 0.0
        return self._times[0] + 1.0 - time.monotonic()

    def _send_taken(self, reports: Iterable[Report]) -> None:
        """Send what is new of these, and keep it where the server is away."""
        with self._sending:
            for report in reports:
                key = (report.entry, report.queue)
                self._in_flight[key] = report  # before it is taken: the settler looks there too
                self.unsent.pop(key, None)
            try:
                self._send(list(self._in_flight.values()))
            except (RedistqError, ConnectionLost) as error:
                log.info("reports of tasks wait for the server: %s", error)
            finally:
                self._in_flight.clear()

    # -- the settler and the end -----------------------------------------------------------------

    def before(self, batch: Iterable[Outcome]) -> None:
        """Send what the attempts of these outcomes said last, where it is needed afterwards: the
        checkpoint of one that does not succeed; how far it is only when a call may be made.

        Raises as Broker.call does for a server that is away.
        """
        if not self.unsent and not self._in_flight:
            return
        keys = {(o.entry, o.queue): o for o in batch}
        if not (keys.keys() & self.unsent.keys() or keys.keys() & self._in_flight.keys()):
            return
        with self._sending:
            reports, needed = [], False
            for key in keys.keys() & self.unsent.keys():
                report = self.unsent.pop(key)
                reports.append(report)
                if report.checkpoint is not None and not _succeeded(keys[key]):
                    needed = True
            if reports and (needed or self._wait_s() <= 0):
                self._send(reports)
            for report in reports:
                report.closed = True

    def flush(self) -> None:
        """Send all that is new now: the process ends."""
        self._send_taken(list(self.unsent.values()))

    def _send(self, reports: list[Report]) -> None:
        """Send what is new of these; what could not be sent is theirs again. Raises as Broker.call
        does for a server that is away."""
        by_queue: dict[WorkerQueue, list[tuple[Report, list[Any]]]] = {}
        for report in reports:
            row = report.take()
            if row is not None:
                by_queue.setdefault(report.queue, []).append((report, row))
        left = [pair for pairs in by_queue.values() for pair in pairs]
        try:
            for queue, pairs in by_queue.items():
                for portion in portions(pairs, lambda pair: len(pair[1][5])):
                    self._call(queue, portion)
                    del left[: len(portion)]
        except (ServerUnavailable, ConnectionLost):
            raise
        except Exception as error:  # the server's refusal: no reason to hold up what ends
            log.warning("reports of %d tasks are refused: %s", len(left), error)
            left.clear()
        finally:
            for report, row in left:
                report.put_back(row)

    def _call(self, queue: WorkerQueue, portion: list[tuple[Report, list[Any]]]) -> None:
        self._times.append(time.monotonic())
        rows = [row for _, row in portion]
        reply = self._broker.call(queue.commands.report(self._consumer, rows))
        if not reply:
            return
        refused = Commands.read_refused(reply)
        for position in refused.lost:
            report = portion[position][0]
            if not report.closed:
                log.info("task %s: the lease was lost, its reports do not count", report.id)
            report.closed = True
        for position, words in refused.broken.items():
            log.warning("what task %s reports is refused: %s", portion[position][0].id, words)


def _succeeded(outcome: Outcome) -> bool:
    return outcome.verb is SETTLE and outcome.args[2] == "succeeded"
