"""A Seal: what belongs to one queue's tasks, sealed and opened, each thing in its own place.

Used by producers, workers and monitors, which say what a thing is and whose; here it is decided
what that binds it to. Without a codec what is only compressed is read all the same, and what is
encrypted or signed is refused with the word of what lacks.
"""

from __future__ import annotations

from typing import Literal

from ..errors import Unreadable
from ..protocol.envelope import is_envelope, parted
from ..protocol.gate import unique_key_in
from ..protocol.keys import without_priority
from .codec import Codec

Kind = Literal["result", "error", "step", "items", "checkpoint"]
"""What an envelope of a task holds beside its payload."""


class Seal:
    """The codec of one queue, over all its priorities."""

    __slots__ = ("_queue", "codec")

    def __init__(self, codec: Codec, stream: str) -> None:
        self.codec = codec
        self._queue = without_priority(stream)

    # -- payloads --------------------------------------------------------------------------------

    def payload(
        self, task_id: str, name: str, data: bytes, gate: str | None = None, ends: str = ""
    ) -> bytes:
        """Return the payload of a task; where the task has a unique key it is bound to that, for
        another task's may be put in its place (docs/gate.md). ``ends`` is the task that ends as
        this one does."""
        unique = unique_key_in(gate) if gate else None
        bound = "task" if unique is None else "unique"
        owner = task_id if unique is None else unique
        return self.codec.seal(self._payload(bound, owner, name, ends), data, bound, ends)

    def of_schedule(self, schedule: str, name: str, data: bytes) -> bytes:
        """Return the payload of all tasks that a schedule adds."""
        return self.codec.seal(self._payload("schedule", schedule, name, ""), data, "schedule")

    def open_payload(
        self, task_id: str, name: str, data: bytes, gate: str | None = None
    ) -> tuple[bytes, str]:
        """Return a payload as it was before it was sealed, and which task ends as its own does, ''
        for none; raises Unreadable and UntrustedPayload."""
        if not is_envelope(data):
            return self.codec.plain(data, f"the payload of task {task_id}"), ""
        header = parted(data)[0]
        owner = task_id
        if header.bound == "unique":
            owner = (unique_key_in(gate) if gate else None) or ""
        elif header.bound == "schedule":
            owner = task_id.rpartition("@")[0]
        where = self._payload(header.bound, owner, name, header.ends)
        try:
            return self.codec.open(where, data), header.ends
        except Unreadable as error:
            raise error.of(f"the payload of task {task_id}") from None

    def open_scheduled(self, schedule: str, name: str, data: bytes) -> bytes:
        """Return the payload that a schedule's record holds."""
        return self.open_payload(f"{schedule}@", name, data)[0]

    def _payload(self, bound: str, owner: str, name: str, ends: str) -> tuple[str, ...]:
        return ("payload", self._queue, bound, owner, name, ends)

    # -- what belongs to a task that runs, or has run ----------------------------------------------

    def of_task(self, kind: Kind, task_id: str, data: bytes, *more: str) -> bytes:
        """Return what belongs to a task, and there to the place that ``more`` says."""
        return self.codec.seal((kind, self._queue, task_id, *more), data)

    def open_of_task(self, kind: Kind, task_id: str, data: bytes, *more: str) -> bytes:
        """Return it as it was. An error may be plain: the server's own are."""
        if not is_envelope(data):
            if self.codec.require is None or kind == "error":
                return data  # the usual
            return self.codec.plain(data, f"the {kind} of task {task_id}")
        try:
            return self.codec.open((kind, self._queue, task_id, *more), data)
        except Unreadable as error:
            raise error.of(f"the {kind} of task {task_id}") from None

    # -- events ----------------------------------------------------------------------------------

    def event(self, name: str, data: bytes, task_id: str = "") -> bytes:
        """Return the body of an event, for all or for one task."""
        return self.codec.seal(("event", self._queue, name, task_id), data)

    def open_event(self, name: str, data: bytes, task_id: str = "") -> bytes:
        """Return it as it was."""
        what = f"the event {name!r}"
        if not is_envelope(data):
            return self.codec.plain(data, what)
        try:
            return self.codec.open(("event", self._queue, name, task_id), data)
        except Unreadable as error:
            raise error.of(what) from None


_NO_KEYS = Codec()


def seal_of(codec: Codec | None, stream: str) -> Seal:
    """Return what opens and, where there is a codec, seals what belongs to a queue."""
    return Seal(_NO_KEYS if codec is None else codec, stream)
