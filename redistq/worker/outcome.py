"""An Outcome: what became of an entry that a worker read, and how the server is told.

Made by attempts and the executor, sent by the settler. An outcome that cannot be sent as it is, or
that the server refuses, has another in its place, which is made here too.
"""

from __future__ import annotations

from typing import Any

from ..protocol.codec import encode_error, kind_of
from ..protocol.commands import ASKED, CANCELLED_TTL_MS
from ..protocol.options import addresses, gate_of
from .queues import Delivery, WorkerQueue
from .spawn import Spawner

SETTLE = "settle"
RETRY = "retry"
SUSPEND = "suspend"
PARK = "park"
CORRUPT = "quarantine"

ASKED_NOTE = "asked"
"""What the history says beside the end of an attempt that was asked to end."""

FIELDS = (b"id", b"name", b"payload", b"attempt", b"recovered", b"opts")
"""The fields of an entry, in the order in which scripts write them."""


class Outcome:
    """How an attempt ended: the verb that tells the server, and that verb's arguments."""

    __slots__ = (
        *("args", "entry", "gate", "order", "queue", "refused_at", "size", "spawned", "told"),
        "verb",
    )

    def __init__(
        self, verb: str, order: int, args: tuple[Any, ...], queue: WorkerQueue, size: int = 0
    ) -> None:
        self.verb = verb
        self.entry: bytes = args[0]
        self.order = order
        """When it was started: outcomes are settled about in the order of their entries."""
        self.args = args
        self.queue = queue
        self.size = size
        """Bytes of the result or error it carries."""
        self.refused_at = 0.0
        """Since when nobody takes it, by the monotonic clock; 0: nobody refused."""
        self.gate = ""
        """What the task asked for of when it may run: its end gives keys back. '': nothing."""
        self.spawned: Spawner | None = None
        """The tasks to add with it."""
        self.told = ("", "")
        """The inbox and the batch that would be told of an end in its place, where it is none."""

    # What only messages say, and the outcome in place of one that is refused: read when wanted.

    @property
    def id(self) -> str:
        """The task's id; empty where there is no task."""
        return "" if self.verb is CORRUPT else _text(self.args[1])

    @property
    def name(self) -> str:
        """The task's name; empty where there is no task."""
        if self.verb is CORRUPT:
            return ""
        return _text(self.args[2 if self.verb is PARK else 3])

    @property
    def lacks(self) -> str:
        """What a task that is parked needs and this worker has not, in words."""
        return self.args[3] or f"handler named {self.name}"

    @property
    def reason(self) -> str:
        """Why the entry is no task, of one that is set aside."""
        return _text(self.args[1])

    @property
    def attempt(self) -> str:
        """Which attempt it was; empty where none was made."""
        return _text(self.args[4]) if self.verb in (SETTLE, RETRY, SUSPEND) else ""

    @classmethod
    def corrupt(cls, entry: bytes, reason: str, queue: WorkerQueue) -> Outcome:
        """Return the outcome of an entry that is no task: it is set aside with the reason."""
        return cls(CORRUPT, 0, (entry, reason), queue)

    @classmethod
    def parked(
        cls, task: Delivery, task_id: bytes, name: bytes, opts: bytes, lacks: str = ""
    ) -> Outcome:
        """Return the outcome of a task that this worker cannot run, for want of a handler, or of
        what its payload needs: another worker may."""
        entry, _, queue = task
        parked = cls(PARK, 0, (entry, task_id, name, lacks), queue)
        parked.told = addresses(opts)
        parked.gate = gate_of(opts)
        return parked

    @classmethod
    def fault(cls, task: Delivery, fault: BaseException) -> Outcome:
        """Return the outcome of an entry that our own code failed on: a failed task with that
        fault; what is no task is set aside."""
        entry, flat, queue = task
        fields = fields_of(flat)
        if any(field not in fields for field in FIELDS):
            return cls.corrupt(entry, f"it could not be handled: {note_of(fault)}", queue)
        inbox, batch = addresses(fields[b"opts"])
        task_id = fields[b"id"]
        name = fields[b"name"]
        attempt = fields[b"attempt"]
        args = _failure(entry, task_id, name, attempt, fault, inbox, batch)
        outcome = cls(SETTLE, 0, args, queue, len(args[6]))
        outcome.gate = gate_of(fields[b"opts"])
        return outcome

    def failed(self, fault: BaseException) -> Outcome:
        """Return the outcome in place of this one, which the server or the connection takes for
        none: the task ends as failed with that fault. It has nothing in it from the handler."""
        inbox, batch = self.args[8::2] if self.verb is SETTLE else self.told
        args = _failure(self.entry, self.id, self.name, self.attempt, fault, inbox, batch)
        outcome = Outcome(SETTLE, self.order, args, self.queue, len(args[6]))
        outcome.gate = self.gate
        return outcome

    def cancelled(self) -> Outcome:
        """Return the outcome in place of this one, which would put back a task that is to end."""
        inbox, batch = self.told
        run_ms = "0.000" if self.verb is PARK else self.args[5]
        args = (
            *(self.entry, self.id, "cancelled", self.name, self.attempt, run_ms),
            *(ASKED.encode(), str(CANCELLED_TTL_MS), inbox, ASKED_NOTE, batch),
        )
        outcome = Outcome(SETTLE, self.order, args, self.queue)
        outcome.gate = self.gate
        return outcome


def note_of(error: BaseException) -> str:
    """Return the short name of an error's type, for a line of history."""
    return kind_of(error).rpartition(".")[2]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def fields_of(flat: list[bytes]) -> dict[bytes, bytes]:
    """Return an entry's fields by name."""
    return dict(zip(flat[::2], flat[1::2], strict=False))


def _failure(
    entry: bytes,
    id: bytes | str,
    name: bytes | str,
    attempt: bytes | str,
    fault: BaseException,
    inbox: str,
    batch: str,
) -> tuple[Any, ...]:
    """Return the arguments of ``settle`` for a task that ends as failed, and whose own outcome
    cannot be sent: no time it ran, and no life of its result."""
    body = encode_error(fault)
    return entry, id, "failed", name, attempt, "0.000", body, "0", inbox, note_of(fault), batch
