"""BatchArgument: a batch as an argument of a call, where it stands for the list of its results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..functions.references import Referable, Reference

if TYPE_CHECKING:
    from .queues import ClientQueue
    from .session import Session


class BatchArgument(Referable):
    """What a batch does as an argument; the batch itself is batch.py's."""

    id: str
    total: int

    @property
    def queue(self) -> ClientQueue:
        """The queue of its tasks, of their priority: what ``after=batch`` asks for."""
        raise NotImplementedError

    def reference(self) -> Reference:
        """Return what stands for the list of its results."""
        return Reference("batch", self.queue.priority, self.id, self.total)

    def prepare(self, client: Session) -> None:
        """Raise ConfigurationError where what depends on it would be in another queue."""
        self.queue.check_same(client, f"batch {self.id!r}")

    def failure(self) -> None:
        """Return None: how its tasks ended is on the server."""

    def identity(self) -> str:
        """Return what names its results."""
        return f"{self.queue.priority} batch {self.id}"
