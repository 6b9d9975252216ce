"""Pending: the futures of one client that wait for their tasks.

Shared by a client's two threads. Here is the one lock under which work is taken or refused, and the
one place where futures are given their ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..logger import logger
from ..producer.diagnosis import Wait
from .futures import TaskFuture, fail, release

if TYPE_CHECKING:
    from .queues import ClientQueue

log = logger("redistq.client")


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
                self.wait.heard(time.monotonic())
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

    def is_time_to_ask(self, now: float) -> bool:
        """Return whether the oldest future has waited so long that the server is asked why.

        It is the oldest that counts, so that a single call which no worker runs is noticed among
        many that end.
        """
        with self.lock:
            first = next(iter(self._futures), "")
        if first != self._oldest:
            self._oldest = first
            self.wait.heard(now)
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
        except Exception as error:  # a callback, which is the user's own code
            log.exception("a future's callback failed")
            fail(future, error)  # where it was no callback: nobody shall wait for ever
        except BaseException:  # SystemExit in a callback ends neither us nor its task
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
