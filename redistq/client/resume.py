"""Resuming: what an earlier run of a batch has done, compared with the calls of now.

Used by batches with a name. A result is used again where it answers the same call: position by
position, function and item must be what they were then.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from ..protocol.commands import SETTLED, Command
from ..protocol.keys import ENDED, batch_task_id, is_text, new_task_id
from ..protocol.options import shown
from .queues import ClientQueue
from .sender import NewTask

OPEN_TTL_MS = 30 * 86_400_000
"""A batch that does not end is forgotten after 30 days; a finished one after a week."""
CALLS_TTL_S = OPEN_TTL_MS // 1000 + 8 * 86_400
"""Seconds that what names the calls is kept: as long as the batch itself may be there."""
DIGEST = 8
"""Bytes of what names a function, and an item."""
UNKNOWN = bytes(2 * DIGEST)
"""Stands where it is not known which call has a place."""


@dataclass(frozen=True, slots=True)
class CallNames:
    """What names the calls of a batch: for each item the fingerprint of function and item."""

    function: bytes
    items: list[bytes]

    @classmethod
    def of(
        cls, fn: Callable[..., Any], items: list[Any], setup: Callable[[], Any] | None = None
    ) -> CallNames:
        """Return the names of these calls; raises PayloadError for what has no fingerprint."""
        from ..functions.fingerprint import fingerprint_of

        function = name_of_function(fn, setup)
        return cls(
            function, [fingerprint_of(item, f"item {i}")[:DIGEST] for i, item in enumerate(items)]
        )

    @property
    def digests(self) -> list[bytes]:
        """The name of each call, by position."""
        return [self.function + item for item in self.items]


def name_of_function(fn: Callable[..., Any], setup: Callable[[], Any] | None = None) -> bytes:
    """Return what names a function in that, with its setup; raises PayloadError for what has no
    fingerprint."""
    from ..functions.fingerprint import fingerprint_of

    named = fn if setup is None else (fn, setup)
    return fingerprint_of(named, "the function")[:DIGEST]


def remember(queue: ClientQueue, batch_id: str, digests: list[bytes]) -> None:
    """Keep what names the batch's calls on the server."""
    queue.broker.call(queue.commands.name_calls(batch_id, b"".join(digests), CALLS_TTL_S))


@dataclass(slots=True)
class EarlierRun:
    """An earlier run of a batch beside the calls of now, by position."""

    states: dict[int, str]
    reused: set[int]
    """Those whose results answer the calls of now."""
    others: set[int]
    """Those that were other calls, or it is not known which."""
    digests: list[bytes]
    """What names each call whose result there will be."""
    known: bool
    function_changed: bool

    @classmethod
    def of(
        cls, calls: CallNames, stored: bytes, states: dict[int, str], items_alone: bool
    ) -> EarlierRun:
        """Compare the calls of now with the names that are stored and the ends that were seen."""
        digests = calls.digests
        reused: set[int] = set()
        others: set[int] = set()
        changed = False
        for i, now in enumerate(digests):
            then = stored[2 * DIGEST * i : 2 * DIGEST * (i + 1)]
            same_item = then[DIGEST:] == now[DIGEST:]
            changed = changed or (same_item and then != now)
            if then == now or (items_alone and same_item):
                if states.get(i) == "succeeded":
                    reused.add(i)
                if states.get(i) not in ENDED[1:]:
                    digests[i] = then
            else:
                others.add(i)
        size = 2 * DIGEST  # items that the batch was given later stay as they are
        digests += [stored[at : at + size] for at in range(size * len(digests), len(stored), size)]
        return cls(states, reused, others, digests, bool(stored), changed)

    @property
    def outdated(self) -> set[int]:
        """Those with results that answer other calls."""
        return {i for i in self.others if self.states.get(i) == "succeeded"}

    def rows(self, start: int, tasks: Iterable[NewTask]) -> Iterator[tuple[Any, ...]]:
        """Yield what ``resubmit`` takes of tasks, the first of which stands at ``start``."""
        outdated = self.outdated
        for i, fields in enumerate(tasks, start):
            mark = "1" if i in outdated else "0" if i in self.others else ""
            yield (*fields, self.states.get(i, ""), mark)

    def resubmission(
        self, queue: ClientQueue, start: int, tasks: list[NewTask], conditions: Mapping[int, str]
    ) -> Command:
        """Return the command by which tasks run again, as they are now, unless their results
        count."""
        rows = self.rows(start, tasks)
        if not any(i in conditions for i in range(start, start + len(tasks))):
            return queue.commands.resubmit(new_task_id(), rows)
        gated = ((*row, conditions.get(i, "")) for i, row in enumerate(rows, start))
        return queue.commands.resubmit_gated(new_task_id(), gated)

    def words(self, batch: str, total: int) -> str:
        """Return what the user should know of it, in one line; '' when there is nothing."""
        of_old = "with an earlier version of the function, " if self.function_changed else ""
        if self.reused:
            some = f"{len(self.reused):,} of {total:,} results of batch {batch!r} are "
            rest = "" if len(self.reused) == total else f"; {total - len(self.reused):,} run now"
            return f"{some}from an earlier run{', ' + of_old.rstrip(', ') if of_old else ''}{rest}"
        if not self.outdated:
            return ""
        if not self.known:
            why = "of which calls its results are is not known"
        elif self.function_changed:
            why = "the function has changed (resume='items' keeps the results of the same items)"
        else:
            why = "its items are others now"
        return f"batch {batch!r} was run before, and {why}: all {total:,} run now"


def compare(
    queue: ClientQueue,
    batch_id: str,
    calls: CallNames,
    states: dict[int, str],
    items_alone: bool,
    functions: Mapping[int, bytes],
) -> EarlierRun:
    """Return what of an earlier run under this name is the answer to these calls, and what is not.

    ``functions`` names those that calls are of by now, by position, where the batch was updated.

    Raises ConfigurationError when it is still at work on other calls: they may be wanted.
    """
    stored = queue.broker.call(queue.commands.calls_of(batch_id)) or b""
    if functions:
        stored = _with_functions(stored, functions)
    earlier = EarlierRun.of(calls, stored, states, items_alone)
    why = "another version of the function" if earlier.function_changed else "other items"
    check_at_rest(queue, batch_id, earlier.others, len(calls.items), why)
    if earlier.others:
        # Unknown from here on: should we be cut off, nothing old is taken for an answer.
        known = [UNKNOWN if i in earlier.others else d for i, d in enumerate(earlier.digests)]
        remember(queue, batch_id, known)
    return earlier


def rename(queue: ClientQueue, batch_id: str, names: Mapping[int, bytes]) -> None:
    """Name some calls of a batch anew, by position."""
    stored = bytearray(queue.broker.call(queue.commands.calls_of(batch_id)) or b"")
    for i, name in names.items():
        stored[2 * DIGEST * i : 2 * DIGEST * (i + 1)] = name
    remember(queue, batch_id, [bytes(stored)])


def check_at_rest(
    queue: ClientQueue, batch_id: str, indexes: Iterable[int], total: int, why: str
) -> None:
    """Raise ConfigurationError where a batch is still at work on these tasks, which are other calls
    than they should be; ``why`` says what is other."""
    if waiting := _still_at_work(queue, batch_id, indexes):
        raise ConfigurationError(
            f"batch {batch_id!r} is still at work, with {why} ({waiting:,} of "
            f"{total:,} tasks): choose another name, wait for it "
            f"(client.batch(name).wait()), or end it (client.batch(name).cancel())"
        )


def _with_functions(stored: bytes, functions: Mapping[int, bytes]) -> bytes:
    """Return the names of calls with those of other functions put in."""
    names = bytearray(stored)
    for i, function in functions.items():
        at = 2 * DIGEST * i
        if at < len(names):
            names[at : at + DIGEST] = function.ljust(DIGEST, b"\0")[:DIGEST]
    return bytes(names)


def _still_at_work(queue: ClientQueue, batch_id: str, indexes: Iterable[int]) -> int:
    """Return how many of these tasks wait or run, by their records: one that failed may have been
    sent again."""
    commands = (queue.commands.state_and_entry(batch_task_id(batch_id, i)) for i in indexes)
    return sum(
        (state or entry) is not None and (state or b"").decode() not in SETTLED
        for state, entry in queue.pages(commands)
    )


def adding(queue: ClientQueue, tasks: list[NewTask], conditions: list[str | None]) -> Command:
    """Return the command that adds tasks, of which some may have to wait: those with conditions,
    which may be empty."""
    if not any(one is not None for one in conditions):
        return queue.commands.enqueue(list(itertools.chain(*tasks)))
    rows = ((*task, one or "") for task, one in zip(tasks, conditions, strict=True))
    return queue.commands.enqueue_gated([*itertools.chain(*rows)])


def checked_name(name: str | None) -> str:
    """Return the batch's id: its name, or a new one; raises ConfigurationError for no name."""
    if name is not None and not isinstance(name, str):
        raise ConfigurationError(f"a batch's name is text, not {shown(name)}")
    batch_id = name or uuid.uuid4().hex[:12]
    odd = any(c.isspace() for c in batch_id) or not is_text(batch_id)
    if odd or not 0 < len(batch_id) <= 100:
        raise ConfigurationError(
            f"a batch's name is 1 to 100 characters without spaces, not {batch_id!r}"
        )
    return batch_id
