"""ClientQueue: what a client says to the server about the tasks of one priority.

Made by sessions, one for each priority that is used. It knows the queue's keys and commands, and
speaks through the session's one broker.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..connection.broker import Broker
from ..errors import UnknownBatch
from ..functions.signing import task_context
from ..producer.diagnosis import Diagnosis
from ..protocol.commands import Command, Commands, Snapshot, Watched
from ..protocol.homes import Home
from ..protocol.keys import QueueKeys
from ..protocol.plain_commands import portions
from ..protocol.replies import read

if TYPE_CHECKING:
    from .session import Session

CANCELLED_TTL_MS = 86_400_000
"""How long the record of a cancelled task is kept: a day."""
PAGE = 100
"""Commands whose answers are read together."""
_COUNTED = ("total", "succeeded", "failed", "cancelled", "retried")


class ClientQueue:
    """One priority of a client's queue. Safe to use from several threads."""

    __slots__ = ("__weakref__", "broker", "commands", "diagnosis", "keys", "priority", "session")

    def __init__(
        self,
        session: weakref.ref[Session],
        broker: Broker,
        commands: Commands,
        home: Home,
        priority: str,
    ) -> None:
        self.session = session
        """One reference for all futures, which hold the session itself only while they wait."""
        self.broker = broker
        self.commands = commands
        self.keys: QueueKeys = commands.keys
        self.priority = priority
        self.diagnosis = Diagnosis(
            commands, broker.address, broker.connection, "client.start_workers()", home
        )

    def context_of(self, task_id: str) -> str:
        """Return what the signatures of a task's call, result and error are bound to."""
        return task_context(self.keys.stream, task_id)

    def watch(self, task_id: str, inbox: str = "") -> Watched:
        """Return how a task stands; with an inbox, its end will be told there."""
        return Commands.read_watch(self.broker.call(self.commands.watch(task_id, inbox)))

    def cancel(self, ids: Sequence[str]) -> dict[str, str]:
        """Cancel tasks that wait; return one word for each id, as TaskProducer.cancel."""
        words: dict[str, str] = {}
        for part in portions(ids):
            reply = self.broker.call(self.commands.cancel(part, CANCELLED_TTL_MS))
            words.update(zip(part, (word.decode() for word in reply), strict=True))
        return words

    def replay(self, ids: Sequence[str]) -> int:
        """Send these dead letters again; return how many went."""
        return sum(self.broker.call(self.commands.replay(part))[0] for part in portions(ids))

    def forget(self, ids: Sequence[str]) -> None:
        """Delete tasks that have ended: dead letters and records."""
        for part in portions(ids):
            self.broker.call(self.commands.purge(part))
            self.broker.call(self.commands.delete_records(part))

    def snapshot(self) -> Snapshot:
        """Return every figure of the queue at one instant."""
        return Commands.read_snapshot(self.broker.call(self.commands.snapshot()))

    def pages(self, commands: Iterable[Command]) -> Iterator[Any]:
        """Yield the answers to many commands, a page read to its end before its first is given: who
        takes them may ask the server in between, or leave early."""
        source = iter(commands)
        while page := list(itertools.islice(source, PAGE)):
            yield from list(self.broker.call_many(page))

    def batch_counts(self, batch_id: str, deadline: float | None = None) -> dict[str, int]:
        """Return a batch's counters, see Batch.counts; raises UnknownBatch."""
        command = self.commands.batch_record(batch_id)
        raw = self.broker.call(command, deadline)
        if not raw:
            raise UnknownBatch(batch_id)
        fields = dict(zip(raw[::2], raw[1::2], strict=True))
        counts = read(command, fields, _counted)
        ended = counts["succeeded"] + counts["failed"] + counts["cancelled"]
        return {**counts, "waiting": max(counts["total"] - ended, 0)}

    def __repr__(self) -> str:
        return f"<ClientQueue {self.keys.stream!r}>"


def _counted(fields: dict[bytes, bytes]) -> dict[str, int]:
    return {name: int(fields.get(name.encode(), 0)) for name in _COUNTED}
