"""Updating: the function under a batch that runs is changed for another version.

Used by batches. The new function's name stands in the batch's record, signed for it, and workers
look there before each call (functions/versions.py). Every result says which version made it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, PayloadError, UnknownBatch
from ..functions.packing import keep_needs_s
from ..functions.versions import LOOK_S, Version, version_in
from ..protocol.codec import loads
from ..protocol.keys import batch_task_id, new_task_id
from ..protocol.options import CallOptions
from ..protocol.plain_commands import portions
from .queues import ClientQueue
from .resume import name_of_function
from .sender import payload_bytes
from .submission import batch_tasks, check_function

if TYPE_CHECKING:
    from .outcomes import BatchEnds
    from .session import Session

MARGIN_S = 0.02
"""Seconds that are waited beyond those for which a worker goes by what it saw."""


@dataclass(frozen=True, slots=True)
class BatchVersion:
    """The newest version of a batch's function; ``made`` has what names each, by version."""

    current: Version
    made: dict[int, bytes]


def version_of(queue: ClientQueue, batch_id: str) -> BatchVersion:
    """Return the newest version of a batch's function; raises UnknownBatch."""
    raw = queue.broker.call(queue.commands.batch_record(batch_id))
    if not raw:
        raise UnknownBatch(batch_id)
    fields = dict(zip(raw[::2], raw[1::2], strict=True))
    packet = fields.get(b"function")
    if packet is None:
        return BatchVersion(Version(1, ""), {})
    made = {}
    for name, value in fields.items():
        if name.startswith(b"made:"):
            with contextlib.suppress(ValueError):
                made[int(name[5:])] = bytes.fromhex(value.decode())
    current = Version.unpacked(queue.signer, queue.commands.keys.stream, batch_id, packet)
    return BatchVersion(current, made)


def set_function(
    session: Session,
    queue: ClientQueue,
    batch_id: str,
    fn: Callable[..., Any],
    options: CallOptions,
    needs: list[str],
) -> Version:
    """Let the calls of a batch that start from now on be of ``fn``; return its version.

    The function that the batch is of already makes no other version. Once this has returned no call
    starts with an earlier one. What the server keeps for it is added to ``needs``.
    """
    function = session.packer.store_function(fn, keep_needs_s(options), needs)
    made = _name_of(fn, options).hex()
    stream = queue.commands.keys.stream
    while True:
        newest = version_of(queue, batch_id).current
        version = Version(newest.number + 1, function)
        if newest.function == function:
            version = newest
            break
        packet = version.packed(queue.signer, stream, batch_id)
        command = queue.commands.update_batch(batch_id, version.number, packet, made)
        answer = queue.broker.call(command)
        if answer == version.number:
            break
        if not answer:
            raise UnknownBatch(batch_id)
    time.sleep(LOOK_S + MARGIN_S)
    return version


def _name_of(fn: Callable[..., Any], options: CallOptions) -> bytes:
    """Return what names a function when a batch is resumed; nothing for one without a name."""
    try:
        return name_of_function(fn, options.setup)
    except PayloadError:
        return b""


def functions_now(
    queue: ClientQueue, batch_id: str, total: int, states: dict[int, str]
) -> dict[int, bytes]:
    """Return what names the function of each call, by position, where that is not the first: of
    one that has not ended, the newest. Nothing for a batch that was never updated."""
    version = version_of(queue, batch_id)
    if version.current.number == 1:
        return {}
    found = dict.fromkeys(range(total), version.current.number)
    ended = (i for i, state in states.items() if state == "succeeded")
    found.update((i, number) for i, (_, number) in versions_of(queue, batch_id, ended).items())
    return {i: version.made.get(number, b"") for i, number in found.items() if number > 1}


def versions_of(
    queue: ClientQueue, batch_id: str, positions: Iterable[int]
) -> dict[int, tuple[str, int]]:
    """Return state and version of each of these tasks that has succeeded or failed."""
    order = list(positions)
    commands = (queue.commands.end_and_maker(batch_task_id(batch_id, i)) for i in order)
    found = {}
    for i, (state, name, error) in zip(order, queue.pages(commands), strict=True):
        if state == b"succeeded":
            found[i] = "succeeded", version_in(name)
        elif state == b"failed":
            found[i] = "failed", version_in_error(error)
    return found


def version_in_error(error: bytes | None) -> int:
    """Return the version that failed with that error; 1 where it does not say."""
    try:
        return int(loads(error or b"{}")["version"])
    except (ValueError, TypeError, LookupError):
        return 1


def run_again(
    session: Session,
    queue: ClientQueue,
    batch_id: str,
    fn: Callable[..., Any],
    items: Sequence[Any],
    options: CallOptions,
    states: dict[int, str],
    positions: list[int],
) -> tuple[int, list[str]]:
    """Run the calls at these positions again, of ``fn``; return how many, and what the server keeps
    for them. One that waits or runs already is left alone."""
    packed = batch_tasks(session, batch_id, fn, list(items), options, positions)
    rows = [
        (*task, states.get(i, ""), "1" if states.get(i) == "succeeded" else "")
        for i, task in zip(positions, packed.tasks, strict=True)
    ]
    again = 0
    where = iter(positions)
    for part in portions(rows, lambda row: payload_bytes(row[:5])):
        here = list(itertools.islice(where, len(part)))
        if any(i in packed.conditions for i in here):
            gated = (
                (*row, packed.conditions.get(i, "")) for i, row in zip(here, part, strict=True)
            )
            command = queue.commands.resubmit_gated(new_task_id(), gated)
        else:
            command = queue.commands.resubmit(new_task_id(), part)
        again += len(part) - len(queue.broker.call(command))
    return again, packed.needs


def check_items(items: Sequence[Any] | None, total: int) -> Sequence[Any]:
    """Return the items of a batch; raises ConfigurationError where there are none, or others."""
    if items is None:
        raise ConfigurationError(
            "what has succeeded keeps no arguments: give the batch's items, in their order: "
            'batch.update(fn, rerun="old", items=items)'
        )
    if len(items) != total:
        raise ConfigurationError(
            f"the batch has {total:,} items, and {len(items):,} were given: they are those of "
            "map_batch, in their order"
        )
    return items


class Updatable:
    """What a batch has of versions of its function."""

    id: str
    total: int
    _options: CallOptions
    _items: list[Any] | None
    _fn: Callable[..., Any] | None
    _needs: list[str]

    if TYPE_CHECKING:

        @property
        def _session(self) -> Session: ...
        @property
        def _queue(self) -> ClientQueue: ...
        @property
        def _ends(self) -> BatchEnds: ...
        def _want(self) -> None: ...
        def _go_on(self, session: Session) -> None: ...

    def update(self, fn: Callable[..., Any], *, rerun: str | None = None, items: Any = None) -> int:
        """Let every item that starts from now on be a call of ``fn``; return its version.

        Once this has returned, a fifth of a second later, none starts with an earlier one: what
        waits, what is tried again, ``retry_failed``. What runs goes on, and ``versions()`` says
        which one made each result. ``rerun="old"`` runs what has succeeded or failed with an
        earlier version again; where the batch was not sent from here, give its ``items``.
        """
        check_function(fn, "update")
        if rerun not in (None, "old"):
            raise ConfigurationError(f"rerun is 'old' or None, not {rerun!r}")
        if rerun is not None:
            items = check_items(self._items if items is None else list(items), self.total)
        version = self._set_function(fn)
        self._fn = fn
        if rerun is not None:
            states = self._ends.states()
            old = sorted(i for i, made_by in self.versions().items() if made_by < version)
            session = self._session
            self._want()
            again, needs = run_again(
                session, self._queue, self.id, fn, items, self._options, states, old
            )
            self._needs += needs
            if again:
                self._go_on(session)
        return version

    def _set_function(self, fn: Callable[..., Any]) -> int:
        """Let the calls that start from now on be of ``fn``; return its version."""
        return set_function(
            self._session, self._queue, self.id, fn, self._options, self._needs
        ).number

    def versions(self) -> dict[int, int]:
        """Return which version of the function made each result or failed, by position; the first
        is 1, and each ``update`` is one more."""
        ended = sorted(self._ends.states())
        found = versions_of(self._queue, self.id, ended)
        return {i: version for i, (_, version) in found.items()}
