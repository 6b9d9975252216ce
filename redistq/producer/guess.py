"""Which tasks will be waited for: a guess that saves a question to the server.

Used by producers. ``WaiterGuess`` lends the inboxes that are notified of results; it is
thread-safe, and safe across a fork. It never touches a connection itself.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from typing import Final

from ..protocol.keys import QueueKeys
from .sansio import Inbox

RECENT = 32
"""Most tasks added one by one that a producer remembers, to see whether they are waited for."""
HABIT = 4
"""After so many that were all waited for, the next is added with the address of its waiter."""
_OF_OTHERS: Final = object()


class WaiterGuess:
    """Guesses whether the next task will be waited for, and lends inboxes to those that wait.

    A wait for a task leaves the address of an inbox in its record, which is one call to the server.
    Where every task is waited for, the task is added with that address, which saves the call: a
    round trip through an idle worker then takes 0.63 ms instead of 0.76 ms (medians of
    2,000, interleaved, on a busy machine). A task that is not waited for leaves one small note
    behind, and ends the guessing.
    """

    def __init__(self, keys: QueueKeys) -> None:
        self._keys = keys
        self._free: list[Inbox] = []
        self._pid = os.getpid()
        self.recent: OrderedDict[str, Inbox | None] = OrderedDict()
        """The last tasks that were added and not waited for yet, with the inbox to notify."""
        self.waited = 0
        """How many were waited for, one after the other; HABIT at most."""

    def added(self, task_id: str) -> str | None:
        """Return the name of the inbox to notify of a new task's end, or None for none."""
        inbox = self.lend() if self.waited >= HABIT else None
        self.recent[task_id] = inbox
        if len(self.recent) > RECENT:
            with contextlib.suppress(KeyError):  # another thread was faster
                _, forgotten = self.recent.popitem(last=False)
                self.waited = 0
                if forgotten is not None:
                    self._free.append(forgotten)
        return None if inbox is None else inbox.name

    def awaited(self, task_id: str) -> Inbox | None:
        """Return the inbox that is notified of a task which is waited for now, lent as by ``lend``;
        None where none is notified."""
        if self._pid != os.getpid():
            return None
        found = self.recent.pop(task_id, _OF_OTHERS)
        if found is not _OF_OTHERS and self.waited < HABIT:
            self.waited += 1
        return found if isinstance(found, Inbox) else None

    def lend(self) -> Inbox:
        """Return an inbox that is the caller's until ``give_back``."""
        if self._pid != os.getpid():  # forked: the parent reads those
            self._free = []
            self._pid = os.getpid()
            self.recent = OrderedDict()
            self.waited = 0
        try:
            return self._free.pop()
        except IndexError:  # none, or another thread was faster
            return Inbox.new(self._keys)

    def give_back(self, inbox: Inbox) -> None:
        """Take back an inbox that its caller reads no more."""
        self._free.append(inbox)

    def forget(self) -> list[Inbox]:
        """Forget all inboxes, and return those that were not lent."""
        free = [*self._free, *(inbox for inbox in self.recent.values() if inbox is not None)]
        self._free = []
        self.recent.clear()
        return free
