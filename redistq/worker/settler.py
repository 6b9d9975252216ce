"""The settler: sends what became of tasks to the server, in natural batches.

Used by runners and the event loop, which leave outcomes here, and by the processor, which gives it
a thread. It runs no task and reads none.

While one settling call is under way, outcomes gather, and the next call takes them all. So a lone
task is settled at once, by the runner that ran it, and under load a call carries hundreds; nobody
waits for a batch to fill. If the server is away, outcomes stay here until it is back. One that the
server cannot write alone is put aside, so that the others go on, and is tried again.
"""

from __future__ import annotations

import contextlib
import math
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import (
    ConfigurationError,
    ConnectionLost,
    ResultError,
    ServerUnavailable,
    UnexpectedReply,
)
from ..logger import logger
from ..producer.limits import LimitOperations
from ..producer.sansio import run
from ..protocol.codec import dumps
from ..protocol.commands import ASKED, MAX_TASKS, Commands, objects_to_content, words_of
from .outcome import CORRUPT, PARK, RETRY, SETTLE, SUSPEND, Outcome
from .queues import Held, Room, WorkerQueue
from .scoreboard import Scoreboard
from .spawn import written

if TYPE_CHECKING:
    from .hooks import SettledTeller
    from .reporter import Reporter
    from .settings import WorkerSettings

log = logger("redistq.worker")

UNSETTLED = 1_000
"""Outcomes kept, about: with more of them to settle, nothing new is read."""
_ORDER = operator.attrgetter("order")
LARGE_RESULT = 256 * 1024
"""A result of more bytes is settled before its runner goes on: memory must not fill with them."""
BROKEN_S = (0.5, 5.0)
"""Seconds until an outcome that could not be written is tried again: at first, and at most."""
CALL_BYTES = 1024 * 1024
"""Result bytes in one settling call, about: more would hold the server for too long."""


class Settler:
    """Settles outcomes of a worker process's tasks; thread-safe.

    ``held`` loses what is settled; ``room`` rings for the fetcher; ``on_stuck`` is called with
    the reason when an outcome stays refused.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        broker: Broker,
        queues: Sequence[WorkerQueue],
        consumer: str,
        scoreboard: Scoreboard,
        held: Held,
        room: Room,
        on_stuck: Callable[[str], None],
        reporter: Reporter,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._queues = queues
        self._consumer = consumer
        self._scoreboard = scoreboard
        self._held = held
        self._room = room
        self._on_stuck = on_stuck
        self._reporter = reporter
        self.outcomes: deque[Outcome] = deque()
        """What is to be settled, in the order in which it came."""
        self.rung = False
        """Whether the settler's thread was woken since it looked last."""
        self.busy = threading.Lock()
        """Held during a settling call."""
        self.teller: SettledTeller | None = None
        """What hears which outcomes the server has accepted, where anybody does."""
        self._lost_now: list[Outcome] = []
        self.answers = 0
        """How many answers of the server came, refusals for now among them: a sign of life."""
        self.lost = 0
        """How many outcomes did not count, since the lease was lost."""
        self._settled = 0
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._gave_up = threading.Event()
        # Outcomes the server could not write, with when to try again; and how long each waits.
        self._broken: deque[tuple[float, Outcome]] = deque()
        self._limits: dict[WorkerQueue, LimitOperations] = {}
        self._waits: dict[tuple[bytes, WorkerQueue], float] = {}

    def ring(self) -> None:
        """Wake the settler's thread."""
        self.rung = True
        self._bell.put(None)

    def put(self, outcome: Outcome) -> None:
        """Have an outcome settled by the settler's thread."""
        self.outcomes.append(outcome)
        if not self.rung:
            self.ring()
        self._room.ring()

    @property
    def backlog(self) -> int:
        """How many outcomes are not settled, those that were put aside among them."""
        return len(self.outcomes) + len(self._broken)

    def finish(self, until: float) -> bool:
        """Settle all there is, at most until that time (monotonic); return whether nothing is
        left."""
        done = True
        for _ in range(2):  # what is to end instead of being put back is among them the second time
            self.try_broken_again(all_of_them=True)
            done = done and self.flush(until=until)
        return done and not self._broken

    def give_up(self) -> None:
        """Let the settler's thread end; an outcome that waits for the server is not waited for."""
        self._gave_up.set()
        self._bell.put(None)

    def run(self) -> None:
        """Settle until ``give_up``: what the settler's own thread does."""
        while not self._gave_up.is_set():
            # Rung for each outcome that is put aside, too: the wait for the next is never longer.
            with contextlib.suppress(Empty):
                self._bell.get(timeout=BROKEN_S[0] if self._broken else None)
            self.rung = False
            self.try_broken_again()
            self.flush(wait=True)

    def flush(self, wait: bool = False, until: float | None = None) -> bool:
        """Settle what is finished; return whether nothing is left.

        One thread at a time: another's outcomes are taken along, so it need not wait. While the
        server is away it is asked again and again, with what was finished kept here.
        """
        while self.outcomes:
            if until is not None:
                free = self.busy.acquire(timeout=max(0.0, until - time.monotonic()))
            else:
                free = self.busy.acquire(blocking=wait)
            if not free:
                return False
            try:
                batch = self._take_batch()
                pause = 0.05
                while batch:
                    try:
                        self._settle(batch)
                        batch = []
                    except (ServerUnavailable, ConnectionLost, UnexpectedReply) as error:
                        self.answers += 1  # not ours to mend: it is asked until it is back
                        log.warning("%d outcomes wait for the server: %s", len(batch), error)
                        late = until is not None and time.monotonic() > until
                        if late or self._gave_up.wait(pause):
                            self.outcomes.extendleft(reversed(batch))
                            return False
                        pause = min(pause * 2, 2.0)
                    except Exception as error:  # the server's refusal, whatever it says
                        # Whose outcome it is shows when each is sent alone; the others are settled,
                        # and others come after them.
                        log.warning("%d outcomes are refused: %s", len(batch), error)
                        batch = self._settle_apart(batch)
                        self.outcomes.extend(batch)
                        self._say_if_stuck(batch)
                        late = until is not None and time.monotonic() > until
                        if batch and (self._gave_up.wait(pause) or late):
                            return False
                        batch = self._take_batch()
                        pause = min(pause * 2, 5.0)
            finally:
                self.busy.release()
        return True

    def _settle_apart(self, batch: list[Outcome]) -> list[Outcome]:
        """Settle each alone; return those that are refused, to be sent again.

        What cannot even be sent is settled as failed with the reason instead.
        """
        left: list[Outcome] = []
        for position, outcome in enumerate(batch):
            try:
                try:
                    self._settle([outcome])
                except (TypeError, ValueError) as error:
                    # Missing rights, say; but text that cannot be sent is this outcome's own.
                    mine = not isinstance(error, ConfigurationError)
                    if not mine and not isinstance(error.__cause__, UnicodeEncodeError):
                        raise
                    self._settle([outcome.failed(error)])
            except (ServerUnavailable, ConnectionLost, UnexpectedReply, ConfigurationError):
                return left + batch[position:]  # no fault of this outcome
            except Exception:  # the server's refusal, whatever it says: the others are settled
                log.exception("the outcome of task %s is refused", outcome.id)
                outcome.refused_at = outcome.refused_at or time.monotonic()
                left.append(outcome)
        return left

    def _say_if_stuck(self, batch: list[Outcome]) -> None:
        """An outcome that stays refused for a whole lease ends this process, which charges its task
        a recovery: it does not go round for ever, and one recovery too many ends it."""
        since = min((o.refused_at for o in batch if o.refused_at), default=math.inf)
        if time.monotonic() - since > self._settings.lease:
            self._on_stuck("the server refuses an outcome")

    def _take_batch(self) -> list[Outcome]:
        batch: list[Outcome] = []
        size = 0
        outcomes = self.outcomes
        try:
            while len(batch) < MAX_TASKS and size < CALL_BYTES:
                outcome = outcomes.popleft()
                size += outcome.size
                batch.append(outcome)
        except IndexError:
            pass
        return batch

    def _settle(self, batch: list[Outcome]) -> None:
        """Send one batch, a call for each verb and queue. Repeating it is harmless."""
        self._reporter.before(batch)
        self._lost_now.clear()
        for queue in self._queues:
            commands = queue.commands
            part = batch if len(self._queues) == 1 else [o for o in batch if o.queue is queue]
            settled = [o for o in part if o.verb is SETTLE]
            if settled:
                if len(settled) > 2:
                    settled.sort(key=_ORDER)
                rows = [o.args for o in settled]
                gated = _gates(settled) if any(o.gate for o in settled) else b""
                children = b""
                if any(o.spawned for o in settled):
                    children = self._children_of(settled, queue)
                reply = self._broker.call(commands.settle(self._consumer, rows, gated, children))
                if reply:
                    self._refused(settled, reply)
            if len(settled) != len(part):
                self._settle_others(commands, part)
        held = self._held
        broken = {(o.entry, o.queue) for _, o in self._broken} if self._broken else ()
        for outcome in batch:
            key = (outcome.entry, outcome.queue)
            if key not in broken:
                held.pop(key, None)
                if self._waits:
                    self._waits.pop(key, None)
        if self.teller is not None:
            answered = (o for o in batch if (o.entry, o.queue) not in broken)
            self.teller.answered(answered, self._lost_now)
        self.answers += 1
        self._settled += len(batch)
        self._scoreboard.settled = self._settled  # its supervisor sees that work goes on
        if self._room.waits and len(self.outcomes) < UNSETTLED:
            self._room.ring()  # perhaps it waits for this

    def _children_of(self, settled: list[Outcome], queue: WorkerQueue) -> bytes:
        """Return the tasks to add with these, as ``settle`` takes them; the limits that they
        declare have their rules then."""
        spawned = [(i, o.spawned) for i, o in enumerate(settled, 1) if o.spawned is not None]
        known = self._limits.get(queue) or LimitOperations(queue.commands)
        self._limits[queue] = known
        for limit in {limit for _, spawner in spawned for limit in spawner.limits}:
            try:
                run(self._broker, known.declare([limit]))
            except ConfigurationError as error:
                log.warning("a task spawned others under a limit: %s", error)  # the queue's holds
        return written((i, spawner.children) for i, spawner in spawned)

    def _settle_others(self, commands: Commands, batch: list[Outcome]) -> None:
        for verb, put_back in ((RETRY, commands.retry), (SUSPEND, commands.suspend)):
            sent = [o for o in batch if o.verb is verb]
            if sent:
                reply = self._broker.call(put_back(self._consumer, [o.args for o in sent]))
                self._refused(sent, reply)
        parked = [o for o in batch if o.verb is PARK]
        if parked:
            grace_ms = int(self._settings.unknown_grace * 1000)
            reply = self._broker.call(
                commands.park(self._consumer, grace_ms, [o.args for o in parked])
            )
            for outcome, word in zip(parked, reply, strict=True):
                if type(word) is list:
                    self._put_aside(outcome, words_of(word[1]))
                elif word == b"dead":
                    log.warning("task %s is dead: no %s", outcome.id, outcome.lacks)
        for outcome in batch:
            if outcome.verb is CORRUPT:
                reply = self._broker.call(
                    commands.quarantine(self._consumer, outcome.entry, outcome.reason)
                )
                if type(reply) is bytes:
                    self._put_aside(outcome, words_of(reply))
                    continue
                log.warning("entry %s set aside: %s", outcome.entry.decode(), outcome.reason)

    def _refused(self, sent: list[Outcome], reply: list[Any]) -> None:
        refused = Commands.read_refused(reply)
        for position, words in refused.broken.items():
            self._put_aside(sent[position], words)
        for position in refused.lost:
            outcome = sent[position]
            self.lost += 1
            self._lost_now.append(outcome)
            log.warning(
                "task %s attempt %s: the lease was lost, its outcome does not count",
                outcome.id,
                outcome.attempt,
            )

    def _put_aside(self, outcome: Outcome, words: str) -> None:
        """Put aside an outcome that the server could not write: the task stays ours, the others go
        on.

        It is tried again and again, for its cause may be mended: a right that is missing, a key
        that holds something else. When the server objects to what it says, the task ends as failed
        with those words.
        """
        if words == ASKED:  # somebody wishes that the task ends, which this one did not know yet
            self._broken.append((0.0, outcome.cancelled()))
            self._bell.put(None)
            return
        key = (outcome.entry, outcome.queue)
        if key not in self._waits:
            log.error(
                "task %s attempt %s: its outcome could not be written and is tried again: %s",
                outcome.id,
                outcome.attempt,
                words,
            )
            if objects_to_content(words):
                fault = ResultError(f"the server could not store how this task ended: {words}")
                outcome = outcome.failed(fault)
        pause = self._waits[key] = min(self._waits.get(key, BROKEN_S[0] / 2) * 2, BROKEN_S[1])
        self._broken.append((time.monotonic() + pause, outcome))
        self._bell.put(None)

    def try_broken_again(self, all_of_them: bool = False) -> None:
        """Put what was put aside among the outcomes again, where its time has come."""
        now = time.monotonic()
        for _ in range(len(self._broken)):
            at, outcome = self._broken.popleft()
            if at <= now or all_of_them:
                self.outcomes.append(outcome)
            else:
                self._broken.append((at, outcome))


def _gates(settled: list[Outcome]) -> bytes:
    """Return what those of these outcomes that are gated hold, as ``settle`` takes it."""
    lists: dict[str, list[str | int]] = {}
    for position, outcome in enumerate(settled, 1):
        if outcome.gate:
            lists.setdefault(outcome.gate, [outcome.gate]).append(position)
    return dumps(list(lists.values()))
