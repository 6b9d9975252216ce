"""The sender of a client: takes its calls to the server, many at a time.

A call that comes alone is sent by the thread that submits it, which is quickest; of a burst the
sender's own thread takes as many as one request carries, whatever their priorities. A call whose
answer was lost is sent again under the same id, which costs nothing.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..connection.broker import Broker
from ..errors import RedistqError, UnknownParent
from ..logger import logger
from ..producer.gated import name_and_queue, not_stored, refusal
from ..protocol.commands import SETTLED, Command, Commands, Watched
from ..protocol.keys import PRIORITY_MARK, new_task_id
from ..protocol.plain_commands import fill
from .futures import TaskFuture
from .outcomes import not_sent
from .pending import Pending, TaskWatcher
from .queues import ClientQueue, Presence
from .settling import fail, mark_cancelled, release

log = logger("redistq.client")

BURST_S = 0.001
"""Seconds since the last call up to which another one belongs to the same burst."""

NewTask = tuple[str, str, bytes, bytes, str]
"""A task to be sent: its id, name, payload, options, and due time as ``enqueue`` takes it."""


@dataclass(slots=True)
class Outgoing:
    """A task that waits to be sent."""

    queue: ClientQueue
    fields: NewTask
    cached: bool = False
    """Whether it is a cached call, which is made again where it failed before."""
    refused: RedistqError | None = None
    """Why the server could not store it."""
    gated: bool = False
    """Whether its options or conditions may keep it waiting."""
    conditions: str = ""
    """What it waits for, and what is done where its unique key is taken; see enqueue_gated."""
    parents: tuple[Any, ...] = ()
    """Futures and batches whose results stand in its arguments."""
    seen: Watched | None = None
    """How it stood when it was looked at, where the server had it already."""
    stands: tuple[str, str] | None = None
    """Id and queue of the task that stands in its place, where its unique key was taken."""

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self.fields[0]


def payload_bytes(task: NewTask) -> int:
    """Return how much of a portion a task takes."""
    return len(task[2])


class Sender:
    """The outbox of one client and the thread that empties it; safe to use from several threads."""

    def __init__(
        self, broker: Broker, pending: Pending, presence: Presence, watcher: TaskWatcher
    ) -> None:
        self._broker = broker
        self._pending = pending
        self._presence = presence
        self._watcher = watcher
        self.reset()

    def reset(self) -> None:
        """Begin with an empty outbox: a new client, or a forked process."""
        self.last_submit = 0.0
        self._outbox: deque[Outgoing] = deque()
        self._sending = threading.Lock()
        self._some = threading.Event()

    def send(self, item: Outgoing, future: TaskFuture) -> None:
        """Take a call to the server. Raises RuntimeError after the end."""
        pending = self._pending
        with pending.lock:
            if pending.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            pending.add(future)
            self._outbox.append(item)
        now = time.monotonic()
        lone = now - self.last_submit > BURST_S
        self.last_submit = now
        if lone:
            self.flush()
        else:
            self._some.set()

    def send_many(self, items: Sequence[tuple[Outgoing, TaskFuture]], *, more: bool) -> None:
        """Take calls to the server, in their order; where ``more`` are to come soon, the sender's
        thread does it. Raises RuntimeError after the end: they have failed of that, too."""
        pending = self._pending
        with pending.lock:
            closed = pending.closed
            for item, future in () if closed else items:
                pending.add(future)
                self._outbox.append(item)
        if closed:
            after = RuntimeError("cannot schedule new futures after shutdown")
            for _, future in items:
                fail(future, after)
            raise after
        self.last_submit = time.monotonic()
        if more:
            self._some.set()
        else:
            self.flush()

    def run(self) -> None:
        """Send what waits until the end: the body of the sender's thread."""
        while not self._pending.ended.is_set():
            self._some.wait()
            self._some.clear()
            try:
                self.flush(patient=True)
            except Exception:  # broad: one bad call must not keep all others
                log.exception("the sender goes on after an error")

    def wake(self) -> None:
        """Let the thread look whether there is something to do."""
        self._some.set()

    @property
    def is_idle(self) -> bool:
        """Whether everything was sent and the replies were read."""
        return not self._outbox and not self._sending.locked()

    def flush(self, patient: bool = False) -> None:
        """Send what waits. Where another thread is sending, the sender's thread takes the rest."""
        while self._outbox:
            if not self._sending.acquire(blocking=patient):
                self._some.set()
                return
            portion: list[Outgoing] = []
            known: list[Outgoing] = []
            failed: list[tuple[list[Outgoing], Exception]] = []
            try:
                fill(portion, self._taken(), _size)
                for queue, items in _runs(portion):
                    try:
                        known += self._not_made_again(self._enqueue(queue, items))
                    except Exception as error:  # broad: it becomes the error of its futures
                        failed.append((items, error))
            except BaseException:  # broad: raised again
                # An interrupt: whether they arrived is unknown, and sending them again is
                # harmless. The sender's thread, which is never interrupted, does it.
                self._outbox.extendleft(reversed(portion))
                self._some.set()
                raise
            finally:
                self._sending.release()
            # Without the lock from here on: a future's callbacks may call us.
            for items, why in failed:
                for item in items:
                    self._pending.fail(item.task_id, why)
            for item in known:
                self._on_known(item)

    def _taken(self) -> Iterator[Outgoing]:
        while self._outbox:
            yield self._outbox.popleft()

    def _enqueue(self, queue: ClientQueue, items: list[Outgoing]) -> list[Outgoing]:
        """Send tasks of one queue; return those that the server has already or could not store."""
        self._presence.begin()
        if items[0].gated:
            return self._enqueue_gated(queue, items)
        flat = tuple(itertools.chain.from_iterable(item.fields for item in items))
        reply = self._broker.call(queue.commands.enqueue(flat))
        if not reply:
            return []
        refused = Commands.read_refused(reply)
        for position in refused.broken:
            rows = [row for row in reply if type(row) is list and row[0] == position + 1]
            items[position].refused = not_stored(queue.keys, rows)
        return [items[position] for position in (*refused.lost, *refused.broken)]

    def _enqueue_gated(self, queue: ClientQueue, items: list[Outgoing]) -> list[Outgoing]:
        """The same for tasks that may have to wait."""
        told: list[Outgoing] = []
        for answered in Commands.read_gated(self._broker.call(_gated_command(queue, items))):
            item = items[answered.position]
            if answered.outcome == "refused":
                item.refused = refusal(queue.keys, answered)
            elif answered.outcome == "again":
                continue  # it was added, to run after the one that has its key
            elif answered.id not in ("", item.task_id):
                item.stands = name_and_queue(answered.id, queue.keys)
            told.append(item)
        return told

    def _on_known(self, item: Outgoing) -> None:
        """Settle a call that the server has already: a cached one, or one whose first answer was
        lost."""
        task_id = item.task_id
        if item.refused is not None:
            self._on_refused(item, item.refused)
            return
        if item.stands is not None:
            task_id = self._join(item, *item.stands)
        try:
            self._watcher.take(task_id, item.seen or self._watcher.watch(item.queue, task_id))
        except Exception as error:  # broad: it becomes the error of its futures
            self._pending.fail(task_id, error)

    def _join(self, item: Outgoing, task_id: str, stream: str) -> str:
        """Let the futures of a call be those of the task that stands in its place."""
        session = item.queue.session()
        if session is not None:
            item.queue = session.queue(stream.partition(PRIORITY_MARK)[2] or "normal")
        self._pending.move(item.task_id, task_id, item.queue)
        return task_id

    def _on_refused(self, item: Outgoing, error: RedistqError) -> None:
        """Fail a call that the server did not take. One whose parent was cancelled here, or failed,
        before it was sent ends as it would have with a parent that was."""
        if isinstance(error, UnknownParent):
            for parent in item.parents:
                if (why := parent.failure()) is not None:
                    error = not_sent(item.task_id, parent.task_id, why)
                    break
        self._pending.fail(item.task_id, error)

    def _not_made_again(self, known: list[Outgoing]) -> list[Outgoing]:
        """Try the cached calls among these again that failed, before what depends on them is sent,
        which would end with their old failure; return the others."""
        rest: list[Outgoing] = []
        for item in known:
            if item.cached and item.refused is None and item.stands is None:
                try:
                    # The end of one that runs again will be in our inbox. Taken from the record,
                    # that message would be left for the next call of the same code, and give it
                    # this one's end.
                    if self._has_failed(item) and self._made_again(item):
                        continue
                except RedistqError as error:
                    item.refused = error
            rest.append(item)
        return rest

    def _has_failed(self, item: Outgoing) -> bool:
        item.seen = self._watcher.watch(item.queue, item.task_id)
        return item.seen.state in SETTLED - {"succeeded"}

    def _made_again(self, item: Outgoing) -> bool:
        """Try a cached call again, with the function as stored now; return whether it was this
        client that did."""
        commands = item.queue.commands
        if item.gated:
            reply = self._broker.call(_gated_command(item.queue, [item]))
        else:
            reply = self._broker.call(commands.resubmit(new_task_id(), [(*item.fields, "", "")]))
        if (error := not_stored(item.queue.keys, reply)) is not None:
            raise error
        item.seen = None  # where it was another client that did
        return not reply

    def sent(self) -> list[str]:
        """Return the ids of the tasks that are waited for and not in the outbox any more."""
        ids = self._pending.ids()  # first: what is added from now on is in neither
        unsent = {item.task_id for item in list(self._outbox)}
        return [task_id for task_id in ids if task_id not in unsent]

    def send_all(self) -> None:
        """Send all that waits, and wait until it has arrived."""
        self.flush(patient=True)
        self.settle_down()

    def settle_down(self) -> None:
        """Wait until what is just being sent has arrived."""
        with self._sending:
            pass

    # -- cancelling ------------------------------------------------------------------------------

    def cancel(self, futures: Iterable[TaskFuture], wish: str = "") -> None:
        """Cancel those that no worker has; each of these is cancelled before this returns.
        ``wish``: of the others, as Commands.cancel.

        Of a task that several futures wait for, which is a cached call or was asked for twice, a
        future of its own goes without the task; with a wish it is the task that is meant.
        """
        wanted: dict[str, TaskFuture] = {}
        gone: list[TaskFuture] = []
        with self._sending, self._pending.lock:  # what was just being sent has arrived after this
            for future in [future for future in futures if not future.done()]:
                if not wish and self._pending.take_out(future):
                    gone.append(future)
                else:
                    wanted[future.task_id] = future
            gone += self._withdrawn(wanted)
        for future in gone:
            mark_cancelled(future)
            release(future)
        for queue, ids in _ids_by_queue(wanted.values()):
            for task_id, word in queue.cancel(ids, wish).items():
                if word == "cancelled":
                    self._pending.resolve(task_id, mark_cancelled)
                elif word == "unknown":
                    self._watcher.doubtful.append(task_id)

    def _withdrawn(self, wanted: dict[str, TaskFuture]) -> list[TaskFuture]:
        """Take back what was not sent yet, out of ``wanted`` too; return the futures of it."""
        taken = {item.task_id for item in self._outbox if item.task_id in wanted}
        if not taken:
            return []
        kept = [item for item in self._outbox if item.task_id not in taken]
        self._outbox.clear()
        self._outbox.extend(kept)
        self._some.set()
        for task_id in taken:
            self._pending.drop(task_id)
        return [wanted.pop(task_id) for task_id in taken]


def _gated_command(queue: ClientQueue, items: list[Outgoing]) -> Command:
    """Return the script call for tasks that may have to wait. Of cached ones those run again that
    failed before, each before what depends on it."""
    if items[0].cached:
        rows = ((*item.fields, "", "", item.conditions) for item in items)
        return queue.commands.resubmit_gated(new_task_id(), rows)
    flat = itertools.chain.from_iterable((*item.fields, item.conditions) for item in items)
    return queue.commands.enqueue_gated([*flat])


def _size(item: Outgoing) -> int:
    return len(item.fields[2])


def _runs(items: list[Outgoing]) -> Iterable[tuple[ClientQueue, list[Outgoing]]]:
    """Return them by queue: first the plain ones, then, in their order, those that may depend on
    others of them, of whatever queue."""
    if len(items) == 1:  # the usual
        return ((items[0].queue, items),)
    plain: dict[ClientQueue, list[Outgoing]] = {}
    gated: list[tuple[ClientQueue, list[Outgoing]]] = []
    for item in items:
        if not item.gated:
            plain.setdefault(item.queue, []).append(item)
        elif gated and gated[-1][0] is item.queue and gated[-1][1][0].cached is item.cached:
            gated[-1][1].append(item)
        else:
            gated.append((item.queue, [item]))
    return [*plain.items(), *gated]


def _ids_by_queue(futures: Iterable[TaskFuture]) -> Iterable[tuple[ClientQueue, list[str]]]:
    parts: dict[ClientQueue, list[str]] = {}
    for future in futures:
        parts.setdefault(future.queue, []).append(future.task_id)
    return parts.items()
