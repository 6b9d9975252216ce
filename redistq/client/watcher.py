"""TaskWatcher: how tasks stand on the server, and the ends that their futures are given for it.

Used by the sender for calls that the server has already, and by the result listener for all others.
A task that the server does not know is doubtful: its end may still be in the inbox.
"""

from __future__ import annotations

from ..connection.broker import Broker
from ..errors import UnknownTask
from ..functions.blobs import Blobs
from ..functions.signing import Signer
from ..producer.sansio import Notification
from ..protocol.commands import SETTLED, Commands, Watched
from .futures import TaskFuture, settle
from .pending import Pending
from .presence import Presence
from .queues import ClientQueue

TAKEN_TTL_S = 600
"""Seconds that a large result is kept once its client has it, unless it was told for how long: a
map over large results must not fill the server for a day."""
LOOK_MANY = 1000
"""Most tasks that are asked for at a time."""


class TaskWatcher:
    """Asks for tasks and settles their futures; safe to use from several threads."""

    def __init__(
        self, broker: Broker, pending: Pending, presence: Presence, signer: Signer, blobs: Blobs
    ) -> None:
        self._broker = broker
        self._pending = pending
        self._presence = presence
        self._signer = signer
        self._blobs = blobs
        self.reset()

    def reset(self) -> None:
        """Begin with no doubts: a new client, or a forked process."""
        self.doubtful: list[str] = []
        """Tasks that the server did not know when it was asked."""

    def watch(self, queue: ClientQueue, task_id: str) -> Watched:
        """Return how a task stands; while it is not settled, its end will be told in our inbox."""
        return queue.watch(task_id, self._presence.inbox.name)

    def take(self, task_id: str, watched: Watched) -> None:
        """Settle a task's futures if it has ended."""
        if watched.state in SETTLED:
            body = watched.record.get("error" if watched.state == "failed" else "result")
            self._settle(task_id, watched.state, body)
        elif watched.state == "unknown":
            self.doubtful.append(task_id)

    def on_notification(self, told: Notification) -> None:
        """Settle the futures of a task whose end the inbox tells."""
        queue = self._pending.queue_of(told.task_id)
        if queue is None:
            return
        if told.body is None or told.state not in SETTLED:  # too large to ride along, or no news
            waiting = self._pending.futures_of(told.task_id)
            self.take(told.task_id, self.watch(queue, told.task_id))
            if len(waiting) == 1 and waiting[0].keep_briefly:
                self._broker.call(queue.commands.keep_record(told.task_id, TAKEN_TTL_S))
            return
        if told.state == "failed" and b'"BlobMissing"' in told.body[:200]:
            self._blobs.forget()  # the server has lost what we believe it has
        self._settle(told.task_id, told.state, told.body)

    def look_at(self, ids: list[str]) -> None:
        """Ask how these tasks stand."""
        for start in range(0, len(ids), LOOK_MANY):
            asked = [
                (task_id, queue)
                for task_id in ids[start : start + LOOK_MANY]
                if (queue := self._pending.queue_of(task_id)) is not None
            ]
            inbox = self._presence.inbox.name
            commands = (queue.commands.watch(task_id, inbox) for task_id, queue in asked)
            # All answers before the first callback, which may ask the server on this connection.
            replies = list(self._broker.call_many(commands))
            for (task_id, _), reply in zip(asked, replies, strict=True):
                self.take(task_id, Commands.read_watch(reply))

    def give_up(self, ids: list[str]) -> None:
        """Fail the futures of tasks that the server does not know; the inbox was read to its end,
        so no news of them are left."""
        for task_id in ids:
            if task_id in self._pending:
                self._blobs.forget()
                error = UnknownTask(task_id)
                error.add_note(
                    "The server does not know the task: it was flushed, or restarted without its "
                    "data, or the result was not kept (result_ttl)."
                )
                self._pending.fail(task_id, error)

    def _settle(self, task_id: str, state: str, body: bytes | None) -> None:
        if state in ("succeeded", "failed"):
            self._let_go_of_needs(task_id, state)
        signer = self._signer
        self._pending.resolve(task_id, lambda future: settle(future, signer, state, body))

    def _let_go_of_needs(self, task_id: str, state: str) -> None:
        needs: list[str] = []
        with self._pending.lock:
            futures: list[TaskFuture] = self._pending.futures_of(task_id)
            for future in futures:
                if future.needs:
                    needs += future.needs
                    future.needs = ()
        if needs and state == "succeeded":
            self._blobs.drop(needs)
        elif needs:  # it may be sent again, as it was
            self._blobs.keep_for_replay(needs)
