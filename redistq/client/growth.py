"""Growing: a batch gets more items after it was sent.

Used by batches. The new tasks take the places after the others. How many there are and what names
the calls in the new places is set in one step, so two clients that add items at the same time do
not take the same places; the tasks are sent then, and once more by whoever makes the same call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, UnknownBatch
from .queues import ClientQueue
from .resume import (
    CALLS_TTL_S,
    DIGEST,
    OPEN_TTL_MS,
    UNKNOWN,
    CallNames,
    EarlierRun,
    check_at_rest,
    rename,
)
from .submission import BatchTasks, batch_tasks, check_function, check_items
from .update import Updatable, version_of

_NAME = 2 * DIGEST
"""Bytes of what names one call."""


def check_known(queue: ClientQueue, batch_id: str, calls: CallNames, total: int) -> None:
    """Raise ConfigurationError unless the items of a batch of ``total`` and those of now begin with
    the same ones: more are added, and where there are fewer it has grown since it was opened."""
    now = len(calls.items)
    _, opened = queue.broker.call(queue.commands.batch_totals(batch_id))
    if now < total and (opened is None or now < int(opened)):
        raise ConfigurationError(
            f"batch {batch_id!r} was started with {int(opened or total):,} items and has {now:,} "
            "now: choose another name, or delete it: client.batch(name).delete()"
        )
    known = names_of(queue, batch_id, 0, min(total, now))
    for i, (then, item) in enumerate(zip(known, calls.items, strict=False)):
        if then[DIGEST:] != item and then != UNKNOWN:
            raise ConfigurationError(
                f"batch {batch_id!r} has {total:,} items and {now:,} are given, of which item {i} "
                "is another than its own: give those that it has first, in their order, and new "
                "ones after them; or add the new ones alone, client.batch(name).extend(items, "
                "fn=fn); or choose another name"
            )


def names_of(queue: ClientQueue, batch_id: str, start: int, end: int) -> list[bytes]:
    """Return what names a batch's calls at these positions; UNKNOWN where that is not known."""
    command = queue.commands.calls_between(batch_id, start * _NAME, end * _NAME)
    stored = queue.broker.call(command).ljust((end - start) * _NAME, b"\0")
    return [stored[at : at + _NAME] for at in range(0, len(stored), _NAME)]


def grow(queue: ClientQueue, batch_id: str, start: int, names: Sequence[bytes]) -> set[int]:
    """Let a batch have calls of these names from ``start`` on, where it has not; return the
    positions that have the same items as calls of another function.

    Raises UnknownBatch, and ConfigurationError where others stand in their places.
    """
    end = start + len(names)
    total = total_of(queue, batch_id)
    while total < end:
        if total < start:
            raise UnknownBatch(batch_id)  # it was deleted, and opened anew
        new = b"".join(names[total - start :])
        total = queue.broker.call(
            queue.commands.grow_batch(batch_id, total, end, new, OPEN_TTL_MS, CALLS_TTL_S * 1000)
        )
    others = set()
    for i, (then, now) in enumerate(zip(names_of(queue, batch_id, start, end), names, strict=True)):
        if then[DIGEST:] != now[DIGEST:] and then != UNKNOWN:
            raise ConfigurationError(
                f"batch {batch_id!r} has other items after its first {start:,} by now: "
                "client.batch(name).extend(items, fn=fn) adds yours after those"
            )
        if then != now:
            others.add(start + i)
    return others


def total_of(queue: ClientQueue, batch_id: str) -> int:
    """Return how many tasks a batch has; raises UnknownBatch."""
    total, _ = queue.broker.call(queue.commands.batch_totals(batch_id))
    if total is None:
        raise UnknownBatch(batch_id)
    return int(total)


class Growing(Updatable):
    """What a batch has for items that come later: they are calls of its newest function."""

    if TYPE_CHECKING:

        def _send(self, packed: BatchTasks, earlier: EarlierRun | None, first: int = 0) -> None: ...

    def extend(self, items: Iterable[Any], *, fn: Callable[..., Any] | None = None) -> None:
        """Add items to the batch, after those that it has, also while it runs and when it has
        ended; when this returns the server has them all.

        They are calls of the batch's function; of ``fn``, which must be given where the batch was
        not sent from here. The same items added again by the program that sent the batch, run anew,
        are the same tasks: they go on, as in ``map_batch``. Raises ConfigurationError where another
        program has added others in their place, UnknownBatch for a batch that was deleted, and
        PayloadError for an item that cannot be sent; nothing is added then.
        """
        check_items(items, "extend")
        if fn is not None:
            check_function(fn, "extend")
        function = fn or self._fn
        if function is None:
            raise ConfigurationError(
                f"batch {self.id!r} was not sent from here: say which function its new items are "
                "for, batch.extend(items, fn=fn)"
            )
        queue, session, new = self._queue, self._session, list(items)
        total = total_of(queue, self.id)
        start = total if self._items is None else len(self._items)
        names = self._names(function, new)
        packed = batch_tasks(session, self.id, function, new, self._options, first=start)
        others = grow(queue, self.id, start, names)
        self.total = max(self.total, total, start + len(new))
        states = self._ends.states() if total > start else {}
        if others:  # known as none while it is not sure which they are
            check_at_rest(queue, self.id, others, len(new), "another version of the function")
            rename(queue, self.id, dict.fromkeys(others, UNKNOWN))
        if fn is not None and version_of(queue, self.id).current.number > 1:
            self._set_function(fn)
        self._want()
        self._send(packed, EarlierRun(states, set(), others, [], True, bool(others)), start)
        # Not before: those that it had may end meanwhile, and with the last goes what is noted.
        self._needs += packed.needs
        if others:
            rename(queue, self.id, {i: names[i - start] for i in others})
        if self._items is not None:
            self._items += new
        self._go_on(session)

    def _names(self, fn: Callable[..., Any], items: list[Any]) -> list[bytes]:
        """Return what names the calls of new items; of a batch without a name nothing names them
        but their place."""
        if names_of(self._queue, self.id, 0, 1) == [UNKNOWN]:
            return [os.urandom(_NAME) for _ in items]
        return CallNames.of(fn, items, self._options.setup).digests
