"""The futures of one client that wait for their tasks, and how these stand on the server.

Shared by a client's two threads. In ``Pending`` is the one lock under which work is taken or
refused, and the one place where futures are given their ends. ``TaskWatcher`` asks the server: for
the sender about calls that the server has already, for the result listener about all others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from ..connection.broker import Broker
from ..errors import UnknownTask
from ..functions.blobs import Blobs
from ..functions.signing import Signer, is_note, is_packet
from ..functions.spill import fetched
from ..logger import logger
from ..producer.diagnosis import Wait
from ..producer.sansio import Notification
from ..protocol.commands import SETTLED, Commands, Watched
from ..protocol.pieces import Memory
from .futures import TaskFuture
from .outcomes import Root, is_not_run, not_run
from .queues import ClientQueue, Presence
from .readers import Readers
from .settling import fail, leave_there, release, settle

log = logger("redistq.client")

TAKEN_TTL_S = 600
"""Seconds that a large result is kept once its client has it, unless its options say for how long:
a map over large results must not fill the server for a day."""
_BODY_OF = {"succeeded": "result", "failed": "error"}
"""What the end of a task that ran leaves in its record; of one that did not, there is the reason.
"""
LOOK_MANY = 1000
"""Most tasks that are asked for at a time."""


class Pending:
    """Outstanding futures by the id of their task: one, or a list where a cached call has several.

    The ids of a client's tasks differ also where their priorities do.
    """

    def __init__(self) -> None:
        self.closed = False
        """Whether no new work is taken."""
        self.ended = threading.Event()
        """Set when no more answers will come."""
        self.reset()

    def reset(self) -> None:
        """Begin with none: a new client, or a forked process."""
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        """The client's own threads, in which callbacks of futures run."""
        self.wait = Wait()
        """How long the oldest future has waited."""
        self._futures: dict[str, TaskFuture | list[TaskFuture]] = {}
        self._oldest = ""

    def __len__(self) -> int:
        return len(self._futures)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._futures

    def add(self, future: TaskFuture) -> None:
        """Remember a future; the caller holds the lock."""
        task_id = future.task_id
        known = self._futures.get(task_id)
        if known is None:
            if not self._futures:
                self.wait.restart(time.monotonic())
                self._oldest = task_id
            self._futures[task_id] = future
        elif isinstance(known, list):
            known.append(future)
        else:
            self._futures[task_id] = [known, future]

    def futures_of(self, task_id: str) -> list[TaskFuture]:
        """Return the futures of one task."""
        found = self._futures.get(task_id, [])
        return list(found) if isinstance(found, list) else [found]

    def queue_of(self, task_id: str) -> ClientQueue | None:
        """Return the queue of a task that is waited for; None when it is not."""
        found = self._futures.get(task_id)
        if found is None:
            return None
        return (found[0] if isinstance(found, list) else found).queue

    def ids(self) -> list[str]:
        """Return the ids of the tasks that are waited for, the oldest first."""
        with self.lock:
            return list(self._futures)

    def outstanding(self) -> list[TaskFuture]:
        """Return every future that waits."""
        with self.lock:
            return self.outstanding_unlocked()

    def outstanding_unlocked(self) -> list[TaskFuture]:
        """As ``outstanding``, where a thread may hold the lock that is not there any more."""
        found = list(self._futures.values())
        return [f for item in found for f in (item if isinstance(item, list) else [item])]

    def wanted(self) -> dict[ClientQueue, set[str]]:
        """Return the names of the tasks that are waited for, by queue."""
        names: dict[ClientQueue, set[str]] = {}
        for future in self.outstanding():
            names.setdefault(future.queue, set()).add(future.task_name)
        return names

    def first_of(self, queue: ClientQueue) -> str:
        """Return the id of the oldest task of a queue that is waited for; '' for none."""
        with self.lock:
            for task_id, found in self._futures.items():
                if (found[0] if isinstance(found, list) else found).queue is queue:
                    return task_id
        return ""

    def is_time_to_ask(self, now: float) -> bool:
        """Return whether the oldest future has waited so long that the server is asked why.

        It is the oldest that counts, so that a single call which no worker runs is noticed among
        many that end.
        """
        with self.lock:
            first = next(iter(self._futures), "")
        if first != self._oldest:
            self._oldest = first
            self.wait.restart(now)
            return False
        return self.wait.due(now)

    def resolve(self, task_id: str, end: Callable[[TaskFuture], None]) -> None:
        """Give the futures of a task their end; their callbacks run here."""
        with self.lock:
            found = self._futures.pop(task_id, None)
        if found is not None:
            for future in found if isinstance(found, list) else (found,):
                self._end(future, end)

    def fail(self, task_id: str, error: BaseException) -> None:
        """Give the futures of a task an error."""
        self.resolve(task_id, lambda future: fail(future, error))

    def _end(self, future: TaskFuture, end: Callable[[TaskFuture], None]) -> None:
        try:
            end(future)
        except Exception as error:  # broad: a callback is the user's own code
            log.exception("a future's callback failed")
            fail(future, error)  # where it was no callback: no wait shall last for ever
        except BaseException:  # broad: SystemExit in a callback ends neither us nor its task
            if not self.is_own_thread():
                raise
            log.exception("a future's callback wanted to end this thread")
        finally:
            release(future)

    def take_out(self, future: TaskFuture) -> bool:
        """Forget a future whose task others wait for too; the caller holds the lock. Return
        whether that is so."""
        others = self._futures.get(future.task_id)
        shared = isinstance(others, list) and len(others) > 1 and future in others
        if shared:
            others.remove(future)  # type: ignore[union-attr]
        return shared

    def move(self, task_id: str, other: str, queue: ClientQueue) -> None:
        """Let the futures of a task be those of another one from now on."""
        with self.lock:
            for future in self.futures_of(task_id):
                future.task_id = other
                future.queue = queue
                self.add(future)
            self._futures.pop(task_id, None)

    def drop(self, task_id: str) -> None:
        """Forget the futures of a task; the caller holds the lock, and gives them their end."""
        self._futures.pop(task_id, None)

    def is_own_thread(self) -> bool:
        """Return whether this is one of the client's own threads, as in a future's callback."""
        return threading.current_thread() in self.threads

    def refuse(self) -> None:
        """Take no new work from now on."""
        with self.lock:
            self.closed = True


class TaskWatcher:
    """Asks for tasks and settles their futures; safe to use from several threads.

    A task that the server does not know is doubtful: its end may still be in the inbox.
    """

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
        self._readers = Readers(self._pending.threads)
        self._roots: dict[str, Root] = {}
        """Why tasks did not run on which others may depend."""

    def watch(self, queue: ClientQueue, task_id: str) -> Watched:
        """Return how a task stands; until it has ended, our inbox will be notified of its end."""
        return queue.watch(task_id, self._presence.inbox.name)

    def take(self, task_id: str, watched: Watched) -> None:
        """Settle a task's futures if it has ended."""
        if watched.state in SETTLED:
            body = watched.record.get(_BODY_OF.get(watched.state, "reason"))
            self._settle(task_id, watched.state, body)
        elif watched.state == "unknown":
            self.doubtful.append(task_id)

    def on_notification(self, note: Notification) -> None:
        """Settle the futures of a task of whose end the inbox was notified."""
        queue = self._pending.queue_of(note.task_id)
        if queue is None:
            return
        if note.body is None or note.state not in SETTLED:  # too large for the inbox, or no end
            waiting = self._pending.futures_of(note.task_id)
            if note.state == "succeeded" and all(future.is_parent for future in waiting):
                self._let_go_of_needs(note.task_id, note.state)
                self._pending.resolve(note.task_id, leave_there)
                return
            self._take_large(queue, note)
            if len(waiting) == 1 and waiting[0].keep_briefly:
                self._broker.call(queue.commands.keep_record(note.task_id, TAKEN_TTL_S))
            return
        if note.state == "failed" and b'"BlobMissing"' in note.body[:200]:
            self._blobs.forget()  # the server has lost what we believe it has
        self._settle(note.task_id, note.state, note.body)

    def _take_large(self, queue: ClientQueue, note: Notification) -> None:
        """Settle the futures of a task whose result was too large for the inbox."""
        if note.state == "succeeded":
            state, body = self._broker.call(queue.commands.result_of(note.task_id))
            if state == b"succeeded" and body is not None:
                self._settle(note.task_id, note.state, body if is_packet(body) else bytes(body))
                return
        self.take(note.task_id, self.watch(queue, note.task_id))

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
        so that no notification of them is left."""
        for task_id in ids:
            if task_id in self._pending:
                self._blobs.forget()
                error = UnknownTask(task_id)
                error.add_note(
                    "The server does not know the task: it was flushed, or restarted without its "
                    "data, or the result was not kept (result_ttl)."
                )
                self._pending.fail(task_id, error)

    def _read_elsewhere(self, queue: ClientQueue, task_id: str, note: Memory) -> None:
        """Settle the futures of a task whose result is not on the server."""
        try:
            packet = fetched(self._signer, "result", queue.context_of(task_id), note)
        except Exception as error:  # broad: it becomes the error of its futures
            self._pending.fail(task_id, error)
        else:
            self._settle(task_id, "succeeded", packet)

    def _settle(self, task_id: str, state: str, body: Memory | None) -> None:
        if state == "succeeded" and body is not None and is_note(body):
            queue = self._pending.queue_of(task_id)
            if queue is not None:
                self._readers.run(partial(self._read_elsewhere, queue, task_id, body))
            return
        if state in ("succeeded", "failed"):
            self._let_go_of_needs(task_id, state)
        signer = self._signer
        if state in ("succeeded", "failed") or not is_not_run(state, bytes(body or b"")):
            # What one of several futures does to its array is not to be seen by the others.
            copied = type(body) is bytearray and len(self._pending.futures_of(task_id)) > 1

            def give(future: TaskFuture) -> None:
                own = bytearray(body) if copied and body is not None else body
                settle(future, signer, state, own)

            self._pending.resolve(task_id, give)
            return
        queue = self._pending.queue_of(task_id)
        if queue is not None:
            why = not_run(queue, task_id, state, bytes(body or b""), self._roots)
            self._pending.fail(task_id, why)

    def _let_go_of_needs(self, task_id: str, state: str) -> None:
        needs: list[str] = []
        with self._pending.lock:
            futures: list[TaskFuture] = self._pending.futures_of(task_id)
            for future in futures:
                if future.needs:
                    needs += future.needs
                    future.needs = ()
        if needs and state == "succeeded":
            self._blobs.drop(needs, together=True)
        elif needs:  # it may be sent again, as it was
            self._blobs.keep_for_replay(needs)
