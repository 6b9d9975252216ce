"""Exchange: how the calls of one client reach the server, and their ends the futures.

Made by a session. It puts together what does that, and starts its two threads with the first call:
one sends (sender.py), one reads the inbox (results.py). They know the session only through futures
and batches that are outstanding, so a client that nobody holds can go.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..connection.broker import Broker
from ..errors import ConnectionLost, RedistqError, UnknownTask
from ..functions.blobs import Blobs
from ..functions.signing import Signer
from ..protocol.keys import QueueKeys
from .futures import TaskFuture, disown
from .pending import Pending
from .presence import Presence
from .queues import ClientQueue
from .results import ResultListener
from .sender import Outgoing, Sender
from .watcher import TaskWatcher

if TYPE_CHECKING:
    from .batch import Batch

FAREWELL_S = 1.0
"""Seconds that the end of a client may take to remove its inbox."""
SHORT_S = 1.0
"""Seconds up to which a wait is too short to ask the server why nothing came."""


class Exchange:
    """Outbox, inbox and outstanding futures; safe to use from several threads, across a fork."""

    def __init__(self, broker: Broker, keys: QueueKeys, signer: Signer, blobs: Blobs) -> None:
        self._broker = broker
        self._blobs = blobs
        self.pending = Pending()
        self.presence = Presence(broker, keys)
        self.watcher = TaskWatcher(broker, self.pending, self.presence, signer, blobs)
        self.sender = Sender(broker, self.pending, self.presence, self.watcher)
        self.listener = ResultListener(
            broker, self.pending, self.presence, self.watcher, self.sender, blobs
        )
        _exchanges.add(self)

    def _start(self) -> None:
        """Start the threads, where they do not run yet."""
        pending = self.pending
        with pending.lock:
            if pending.threads or pending.closed:
                return
            mark = self.presence.inbox.name[-6:]
            for target, role in ((self.sender.run, "send"), (self.listener.run, "inbox")):
                name = f"redistq-{role}-{mark}"
                pending.threads.append(threading.Thread(target=target, name=name, daemon=True))
            for thread in pending.threads:
                thread.start()

    # -- calls -----------------------------------------------------------------------------------

    def send(self, item: Outgoing, future: TaskFuture) -> None:
        """Take a call to the server. Raises RuntimeError after the end."""
        if not self.pending.threads:
            self._start()
        self.sender.send(item, future)

    def expect(self, future: TaskFuture) -> None:
        """Resolve a future whose task was sent before. Raises RuntimeError after the end."""
        self._start()
        with self.pending.lock:
            if self.pending.closed:
                raise RuntimeError("the client is closed")
            self.pending.add(future)
        self.presence.begin()
        watched = self.watcher.watch(future.queue, future.task_id)
        if watched.state == "unknown":  # no news of it will come
            self.pending.fail(future.task_id, UnknownTask(future.task_id))
        else:
            self.watcher.take(future.task_id, watched)

    def cancel(self, futures: Iterable[TaskFuture]) -> None:
        """Cancel those that no worker has; each of these is told so before this returns."""
        self.sender.cancel(futures)

    def why_waiting(self, queue: ClientQueue, waited: float, names: Iterable[str] = ()) -> str:
        """Return why nothing came in ``waited`` seconds; after a short wait nothing is asked."""
        if waited < SHORT_S or not self.listener.server_answers:
            return queue.diagnosis.reason
        return self.listener.ask(queue, {*names, *self.pending.wanted().get(queue, ())})

    # -- batches ---------------------------------------------------------------------------------

    def want(self, queue: ClientQueue, batch_id: str) -> None:
        """Leave in a batch's record that its results are wanted here."""
        if not self.pending.closed:
            self._start()
            self.presence.begin()
            queue.broker.call(queue.commands.want_batch(batch_id, self.presence.inbox.name))

    def hold(self, batch: Batch, *, begun: bool) -> None:
        """See ResultListener.hold."""
        if not self.pending.closed:
            self._start()
            self.listener.hold(batch, begun=begun)

    # -- the end ---------------------------------------------------------------------------------

    def end(self, *, join: bool = True) -> None:
        """Send what waits, and bring no more answers; safe to call twice, from any thread."""
        pending = self.pending
        pending.refuse()
        started = time.monotonic()
        if not pending.ended.is_set():
            self.sender.flush(patient=True)
        pending.ended.set()
        self._wake()
        for thread in pending.threads if join else ():
            while thread.is_alive() and not pending.is_own_thread():
                self._wake()
                thread.join(0.05)
        if pending.threads and self.listener.server_answers:
            # They expire by themselves: no reason to wait for a server that has kept us waiting.
            with contextlib.suppress(RedistqError, ConnectionLost, OSError):
                self.presence.end(started + FAREWELL_S)
        self.listener.let_all_go()
        for future in pending.outstanding():
            why = RedistqError(
                f"the client was closed before task {future.task_id} had ended; the task goes on: "
                f"Client(...).future({future.task_id!r}) asks for it"
            )
            pending.fail(future.task_id, why)

    def _wake(self) -> None:
        connection = self.presence.inbox.connection
        if connection is not None:
            connection.interrupt()
        self.sender.wake()

    def after_fork(self) -> None:
        """In a forked process: the threads are not here, and the parent's futures are not ours."""
        orphans = self.pending.outstanding_unlocked()
        parts: tuple[Callable[[], None], ...] = (
            self.pending.reset,
            self.presence.reset,
            self.watcher.reset,
            self.sender.reset,
            self.listener.reset,
            self._blobs.after_fork,
        )
        for reset in parts:
            reset()
        for future in orphans:
            disown(future)


_exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()


def _after_fork() -> None:
    for exchange in list(_exchanges):
        exchange.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
