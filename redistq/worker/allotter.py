"""The allotter: tasks that need resources wait here until there is room for them.

Fed by the fetcher; hands tasks on to runners and event loop with what they have taken. A task that
waits takes no thread, and holds up none of those that need something else. Few wait here: others go
back to the queue for a while, where another worker may take them. The first in line for each
resource stays, whatever comes later.

What a task has taken it has until its handler has ended, or it is not this process's any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol.resources import Resources
from .queues import Delivery, Held, WorkerQueue

if TYPE_CHECKING:
    from .ledger import Ledger, Taken

LOOK_S = 0.02
"""How often it is looked for room while anything waits: other processes make it, too."""
SWEEP_S = 0.25
"""How often it is looked whether what tasks have taken is still theirs."""
PATIENCE_S = 5.0
"""How long a task waits here that is not the first in line, before it goes back for a while."""

Key = tuple[bytes, WorkerQueue]


@dataclass(slots=True)
class _Waiting:
    task: Delivery
    needs: Resources
    ticket: int
    since: float


class Allotter:
    """Gives tasks what they need of the resources of their worker.

    ``needs`` returns what a task needs, ``admit`` runs one that has it, and ``put_off`` puts one
    back for a while for which there is no room.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        most: int,
        held: Held,
        needs: Callable[[Delivery], Resources],
        admit: Callable[[Delivery], None],
        put_off: Callable[[Delivery, Resources], None],
    ) -> None:
        self._ledger = ledger
        self._most = most
        self._held = held
        self._needs = needs
        self._admit = admit
        self._put_off = put_off
        self._waiting: list[_Waiting] = []
        self._taken: dict[Key, tuple[Resources, Taken]] = {}
        self._lock = threading.RLock()
        self._bell = threading.Event()
        self._closed = False

    # -- the fetcher and the processor -------------------------------------------------------------

    def put(self, tasks: list[Delivery]) -> None:
        """Run these as soon as there is room for them."""
        now = time.monotonic()
        with self._lock:
            for task in tasks:
                needs = self._needs(task)
                if _key(task) in self._taken:
                    self._admit(task)  # it was offered to others, and has come back
                elif self._ledger is None or not self._ledger.has(needs):
                    self._put_off(task, needs)
                else:
                    ticket = self._ledger.ticket()
                    self._waiting.append(_Waiting(task, needs, ticket, now))
            self._let_in(now)
        self._bell.set()

    def take_unstarted(self) -> list[Delivery]:
        """Return all that waits, which is no longer ours to run."""
        with self._lock:
            tasks = [waiting.task for waiting in self._waiting]
            self._waiting.clear()
            self._show()
            return tasks

    def withdraw(self, key: Key) -> Delivery | None:
        """Return the task with that entry, of that queue, which is no longer ours to run; None
        where it does not wait here."""
        with self._lock:
            for waiting in self._waiting:
                if _key(waiting.task) == key:
                    self._waiting.remove(waiting)
                    self._show()
                    return waiting.task
        return None

    def close(self) -> None:
        """Let nothing in any more."""
        with self._lock:
            self._closed = True
        self._bell.set()

    def run(self) -> None:
        """Look for room until it is closed: what its thread does."""
        while not self._closed:
            self._bell.wait(LOOK_S if self._waiting else SWEEP_S if self._taken else None)
            self._bell.clear()
            with self._lock:
                self._sweep()
                self._let_in(time.monotonic())
            if self._waiting:
                time.sleep(LOOK_S)  # a bell that rings all the time makes no room

    # -- the executor ------------------------------------------------------------------------------

    def taken_by(self, key: Key) -> Taken:
        """Return what the task with that entry has, as its process sees it."""
        found = self._taken.get(key)
        return {} if found is None or self._ledger is None else self._ledger.seen(found[1])

    def ended(self, key: Key) -> None:
        """Take back what a task has whose handler has ended."""
        with self._lock:
            found = self._taken.pop(key, None)
            if found is not None and self._ledger is not None:
                self._ledger.give_back(*found)
                if self._waiting:
                    self._let_in(time.monotonic())

    # -- room --------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        for key in [key for key in self._taken if key not in self._held]:
            self.ended(key)

    def _let_in(self, now: float) -> None:
        """Let in what has room, in order; nobody overtakes one that needs the same."""
        ledger = self._ledger
        if ledger is None or self._closed:
            return
        awaited: set[str] = set()
        left: list[_Waiting] = []
        for waiting in self._waiting:
            names = {name for name, _ in waiting.needs}
            first = awaited.isdisjoint(names)
            taken = ledger.take(waiting.needs, waiting.ticket) if first else None
            if taken is not None:
                self._taken[_key(waiting.task)] = (waiting.needs, taken)
                self._admit(waiting.task)
                continue
            awaited |= names
            if not first and (len(left) >= self._most or now - waiting.since > PATIENCE_S):
                self._put_off(waiting.task, waiting.needs)
            else:
                left.append(waiting)
        self._waiting = left
        self._show()

    def _show(self) -> None:
        if self._ledger is not None:
            first: dict[str, int] = {}
            for waiting in self._waiting:
                for name, _ in waiting.needs:
                    first.setdefault(name, waiting.ticket)
            self._ledger.show_waiting(first)


def _key(task: Delivery) -> Key:
    return task[0], task[2]
