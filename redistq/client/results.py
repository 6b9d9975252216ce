"""ResultListener: reads the inbox of a client, and thereby resolves all of its futures.

One blocking read serves them all. No future hangs: notifications can be lost with a connection,
with the server's memory, or with an inbox that expired while a laptop slept. So after each new
connection, and now and then for those that have waited long, the server is asked how the tasks
stand. A task it does not know is given up once the inbox, where its notification may still be, has
been read to its end.

It also gives the signs of life after the first, and looks now and then whether the batches that
were begun have ended: until then it holds their sessions.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..connection.connection import Connection
from ..errors import ConnectionLost, GroupMissing, RedistqError, ServerUnavailable, WrongKind
from ..functions.blobs import Blobs
from ..logger import logger
from ..producer import diagnosis
from ..producer.sansio import BLOCK_LIMIT, NOTICE_S, Notification, ReadInbox
from ..protocol.plain_commands import trim_stream
from .pending import LOOK_MANY, Pending, TaskWatcher
from .queues import SIGN_S, ClientQueue, Presence
from .sender import Sender

if TYPE_CHECKING:
    from .batch import Batch

log = logger("redistq.client")

LOOK_S = 30.0
"""Seconds after which futures that still wait are asked for."""
BATCH_LOOK_S = 2.0
"""Seconds between two looks at batches whose end was not seen."""
GIVE_UP_S = 120.0
"""Seconds without a server after which futures fail rather than wait for it any longer."""
DOUBT_S = 0.1
"""Seconds in which a notification may still come of a task that the server does not know."""
QUIET_S = 10.0
"""Seconds after the last call from which on the inbox is read in long waits again."""
TRIM_S = 1.0
"""Seconds between two times that what was read is deleted."""
INBOX_PAGE = 1000
PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class _Timer:
    """Says when something is to be done again."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def is_due(self, now: float, every_s: float) -> bool:
        """Return whether so many seconds have passed; if so, it begins anew."""
        if now - self.last <= every_s:
            return False
        self.last = now
        return True


class _Timers:
    """When the listener did each of its duties last."""

    def __init__(self) -> None:
        self.look = _Timer()
        self.trim = _Timer()
        self.sign = _Timer()
        self.batches = _Timer()


class ResultListener:
    """The inbox of one client and the thread that reads it."""

    def __init__(
        self,
        broker: Broker,
        pending: Pending,
        presence: Presence,
        watcher: TaskWatcher,
        sender: Sender,
        blobs: Blobs,
    ) -> None:
        self._broker = broker
        self._pending = pending
        self._presence = presence
        self._watcher = watcher
        self._sender = sender
        self._blobs = blobs
        self.give_up_s = GIVE_UP_S
        self.look_s = LOOK_S
        self.sign_s = SIGN_S
        self.reset()

    def reset(self) -> None:
        """Begin with nothing: a new client, or a forked process."""
        self._away_since = 0.0  # 0 while the server is there
        self._lost = False
        self._to_look: list[str] = []
        self._batches: weakref.WeakSet[Batch] = weakref.WeakSet()
        self._begun: set[Batch] = set()
        self._asked: set[ClientQueue] = set()
        """Queues of which it was said here why nothing comes."""

    # -- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Read the inbox until the end: the body of the listener's thread."""
        connection = self._broker.connection(BLOCK_LIMIT + self._broker.timeout)
        self._presence.inbox.connection = connection
        ended = self._pending.ended
        timers = _Timers()
        pause = PAUSE_S
        while not ended.is_set():
            try:
                self._step(connection, timers)
                pause = PAUSE_S
                continue
            except (ConnectionLost, RedistqError, GroupMissing, OSError) as error:
                if ended.is_set():
                    break
                self._on_lost(error)
            except Exception:  # broad: one bad message must not keep all other futures waiting
                log.exception("the inbox goes on after an error")
            ended.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        connection.close()

    def _step(self, connection: Connection, timers: _Timers) -> None:
        """Wait for notifications once, and do what is due."""
        doubtful = list(self._watcher.doubtful)
        patience = DOUBT_S if doubtful or self._lost else self._patience(time.monotonic())
        notes = self._read(connection, ReadInbox(self._presence.inbox, patience))
        for notification in notes:
            self._watcher.on_notification(notification)
        if len(notes) < INBOX_PAGE:  # read to the end: what is not known by now is lost
            del self._watcher.doubtful[: len(doubtful)]
            self._watcher.give_up(doubtful)
        now = time.monotonic()
        if notes and (timers.trim.is_due(now, TRIM_S) or len(notes) == INBOX_PAGE):
            self._trim()
        is_idle = not notes
        del notes
        if self._away_since:
            log.warning("the server is back at %s", self._broker.address)
            self._away_since = 0.0
        self._look(timers, now)
        if is_idle:
            self._blobs.drop_unneeded()
        if self._presence.is_given and timers.sign.is_due(now, self.sign_s):
            with contextlib.suppress(RedistqError):  # a full server; the next may do
                self._presence.renew()
        if self._batches and timers.batches.is_due(now, BATCH_LOOK_S):
            for batch in self.batches():
                batch.look()
        self._say_why(now)

    def _read(self, connection: Connection, step: ReadInbox) -> list[Notification]:
        """Return what came to the inbox; where it was overwritten, ask for every task instead."""
        try:
            return connection.ask(step.command(), step.read)
        except WrongKind:
            self._broker.call(self._presence.inbox.clearing())
            self._look_at(self._sender.sent())
            return []

    def _trim(self) -> None:
        inbox = self._presence.inbox
        with contextlib.suppress(WrongKind):  # the next read notices
            self._broker.call(trim_stream(inbox.key, _after(inbox.last)))

    def _look(self, timers: _Timers, now: float) -> None:
        """Ask how tasks stand: all after a lost connection, else those that have waited long."""
        if self._lost:
            # Notifications, and what we believe the server has, may be lost with the connection.
            self._blobs.forget()
            self._look_at(self._sender.sent())
            self._lost = False
            timers.look.last = now
            timers.sign.last = -math.inf
        elif len(self._pending) and timers.look.is_due(now, self.look_s):
            if not self._to_look:
                self._to_look = self._sender.sent()
            part = self._to_look[:LOOK_MANY]
            self._to_look = self._to_look[LOOK_MANY:]
            self._look_at(part)

    def _look_at(self, ids: list[str]) -> None:
        self._sender.settle_down()  # those that are just being sent have arrived after this
        self._watcher.look_at(ids)

    def _patience(self, now: float) -> float:
        """Return the seconds for which to wait for notifications at a time."""
        most = BATCH_LOOK_S if self._batches else BLOCK_LIMIT
        if not len(self._pending):
            quiet = now - self._sender.last_submit > QUIET_S
            # A call that comes during this read is asked about when the read ends.
            return min(most, diagnosis.WAIT_S if quiet else NOTICE_S)
        return min(most, NOTICE_S, max(0.01, self._pending.wait.left(now)))

    def _say_why(self, now: float) -> None:
        """Say why nothing comes, where nothing came for a while."""
        if not len(self._pending):
            for queue in list(self._asked):
                queue.diagnosis.over()
            self._asked.clear()
        elif self._pending.wait.left(now) <= 0 and self._pending.is_time_to_ask(now):
            for queue, names in self._pending.wanted().items():
                self._asked.add(queue)
                queue.diagnosis.say(self.ask(queue, names, self._pending.first_of(queue)))

    def ask(self, queue: ClientQueue, names: Iterable[str], task_id: str = "") -> str:
        """Return why tasks of these names do not run, or else what the one of that id waits for; ''
        when that is not known."""
        return queue.diagnosis.ask(names, task_id)

    # -- a server that is unavailable --------------------------------------------------------------

    @property
    def server_answers(self) -> bool:
        """Whether the server was there when it was last asked."""
        return not self._away_since

    def away_s(self) -> float:
        """Return the seconds for which the server has been unavailable; 0 while it is there."""
        return time.monotonic() - self._away_since if self._away_since else 0.0

    def _on_lost(self, error: BaseException) -> None:
        now = time.monotonic()
        self._lost = True
        if not self._away_since:
            self._away_since = now
            self._log_unavailable(error)
        elif now - self._away_since > self.give_up_s:
            self._abandon_all(error)
        self._restart_embedded()

    def _log_unavailable(self, error: BaseException) -> None:
        if len(self._pending):
            log.warning(
                "the server at %s is away (%s); %d futures wait for it",
                self._broker.address,
                error,
                len(self._pending),
            )

    def _restart_embedded(self) -> None:
        """Start the embedded server again, with its data: it is ours."""
        if not self._broker.address.embedded:
            return
        from ..connection import embedded

        with contextlib.suppress(RedistqError, OSError):  # tried again soon
            embedded.join()

    def _abandon_all(self, error: BaseException) -> None:
        for task_id in self._pending.ids():
            why = ServerUnavailable(
                f"no server at {self._broker.address} for {self.give_up_s:g} s ({error}); task "
                f"{task_id} may still be run: client.future({task_id!r}) asks for it again"
            )
            self._pending.fail(task_id, why)

    # -- batches ---------------------------------------------------------------------------------

    def hold(self, batch: Batch, *, begun: bool) -> None:
        """Let a batch look for its end; one that was ``begun`` here, and with it its session, is
        held until then, as a future that waits is."""
        with self._pending.lock:
            self._batches.add(batch)
            if begun:
                self._begun.add(batch)

    def let_go(self, batch: Batch) -> None:
        """Forget a batch that has ended."""
        with self._pending.lock:
            self._batches.discard(batch)
            self._begun.discard(batch)

    def let_all_go(self) -> None:
        """Hold no batch any more."""
        with self._pending.lock:
            self._begun.clear()

    def batches(self) -> list[Batch]:
        """Return the batches whose end was not seen."""
        with self._pending.lock:
            return list(self._batches)


def _after(entry: str) -> str:
    ms, _, seq = entry.partition("-")
    return f"{ms}-{int(seq) + 1}"
