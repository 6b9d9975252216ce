"""Tasks whose payload was sealed by a codec: opened, and all that they write sealed as well.

Used by the executor and by attempts. What a task writes goes as its payload came: a result, an
error, a step, an item, a checkpoint or a child of a sealed task is sealed, those of a plain one
are plain. Nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..codecs.sealing import Seal
from ..errors import StepError, Unreadable, UntrustedPayload
from ..functions.steps import PlainSteps
from ..protocol.codec import loads
from ..protocol.envelope import is_envelope

if TYPE_CHECKING:
    from .attempt import Attempt


def open_payload(run: Attempt, payload: bytes) -> Any:
    """Return the payload of a task whose terms are known; from here on it writes as that came.

    Raises Unreadable, UntrustedPayload, and ValueError for what is no JSON.
    """
    seal = run.queue.seal
    task_id, name = run.id.decode(), run.handler.name
    data, ends = seal.open_payload(task_id, name, payload, run.terms.gate)
    if is_envelope(payload) and run.queue.seals is not None:
        run.seal = TaskSeal(seal, task_id, ends or task_id)
    return loads(data)


class TaskSeal:
    """What one task that was sealed writes."""

    __slots__ = ("_seal", "_task_id", "ends")

    def __init__(self, seal: Seal, task_id: str, ends: str) -> None:
        self._seal = seal
        self._task_id = task_id
        self.ends = ends
        """The task whose result or error it is that this one comes to."""

    def result(self, body: bytes) -> bytes:
        """Return its result sealed."""
        return self._seal.of_task("result", self.ends, body)

    def error(self, body: bytes) -> bytes:
        """Return the error of its end sealed."""
        return self._seal.of_task("error", self.ends, body)

    def last_error(self, body: bytes) -> bytes:
        """Return the error of an attempt sealed after which it is tried again: its own."""
        return self._seal.of_task("error", self._task_id, body)

    def checkpoint(self, body: bytes) -> bytes:
        """Return where it would go on, sealed."""
        return self._seal.of_task("checkpoint", self._task_id, body)

    def child(self, task_id: str, name: str, data: bytes, gate: str | None, ends: str) -> bytes:
        """Return the payload of a task that it spawns sealed."""
        return self._seal.payload(task_id, name, data, gate, ends)

    def joined(
        self, join: Callable[[list[bytes], int, int], bytes]
    ) -> Callable[[list[bytes], int, int], bytes]:
        """Return what makes sealed chunks of items."""

        def sealed(items: list[bytes], generation: int, first: int) -> bytes:
            body = join(items, generation, first)
            place = (str(generation), str(first))
            return self._seal.of_task("items", self._task_id, body, *place)

        return sealed


class SealedSteps(PlainSteps):
    """Steps of a named handler whose worker has a codec; those of a plain task are plain."""

    def __init__(self, seal: Seal, task_id: str, sealed: bool) -> None:
        self._seal = seal
        self._task_id = task_id
        self._sealed = sealed

    def dump(self, number: int, name: str, value: Any) -> bytes:
        """Return it as JSON, sealed."""
        body = super().dump(number, name, value)
        if not self._sealed:
            return body
        return self._seal.of_task("step", self._task_id, body, str(number), name)

    def load(self, number: int, name: str, body: bytes) -> Any:
        """Return what was sealed; raises StepError where it cannot be read."""
        try:
            if self._sealed or is_envelope(body):
                place = (str(number), name)
                body = self._seal.open_of_task("step", self._task_id, body, *place)
        except (Unreadable, UntrustedPayload) as error:
            raise StepError(f"what step {name!r} came to cannot be read: {error}") from error
        return loads(body)

    def event(self, name: str, of_task: bool, body: bytes) -> Any:
        """Return what came with an event; raises StepError where it cannot be read."""
        try:
            opened = self._seal.open_event(name, body, self._task_id if of_task else "")
        except (Unreadable, UntrustedPayload) as error:
            raise StepError(f"the event {name!r} cannot be read: {error}") from error
        return super().event(name, of_task, opened)
