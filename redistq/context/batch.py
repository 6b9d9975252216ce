"""BatchContext: what a batch handler may know about its tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .context import TaskContext


class BatchContext:
    """What a batch handler may know: ``context.contexts`` has the TaskContext of each task, and
    ``context.items`` the payloads, in the same order.

    ``cancelled`` of one of them says that its task is asked to end: raise CancelRequested for it
    in BatchErrors, or let it succeed. Progress, checkpoints and spawned tasks are those of one
    task each: ``context.contexts[0].spawn(...)``. Durable steps and streams are not for batches.
    """

    __slots__ = ("_contexts", "_make", "items", "logger", "name", "worker")

    def __init__(
        self,
        name: str,
        worker: str,
        items: Sequence[Any],
        make: Callable[[], Sequence[TaskContext]],
    ) -> None:
        self.name = name
        self.worker = worker
        self.items = items
        """The payloads."""
        self.logger = logging.LoggerAdapter(logging.getLogger("redistq.task"), {"task_name": name})
        self._make = make
        self._contexts: tuple[TaskContext, ...] | None = None

    @property
    def contexts(self) -> tuple[TaskContext, ...]:
        """The context of each task."""
        if self._contexts is None:
            self._contexts = tuple(self._make())
        return self._contexts

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TaskContext]:
        return iter(self.contexts)

    @property
    def task_ids(self) -> list[str]:
        """The ids of the tasks."""
        return [one.task_id for one in self.contexts]

    @property
    def task_id(self) -> str:
        """The id of the first of them."""
        return self.contexts[0].task_id

    @property
    def queue(self) -> str:
        """The queue of the first of them."""
        return self.contexts[0].queue

    @property
    def attempt(self) -> int:
        """The highest attempt among them."""
        return max(one.attempt for one in self.contexts)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that all of them have in common."""
        first, *others = (one.headers for one in self.contexts)
        return {
            name: text
            for name, text in first.items()
            if all(other.get(name) == text for other in others)
        }

    @property
    def cancelled(self) -> bool:
        """Whether all of them are asked to end."""
        return all(one.cancelled for one in self.contexts)

    def extend(self, seconds: float) -> float:
        """Give the whole batch more time; see TaskContext.extend."""
        return self.contexts[0].extend(seconds) if self.items else math.inf

    @property
    def remaining(self) -> float:
        """Seconds until the next time limit of the batch; ``math.inf`` where it has none."""
        return self.contexts[0].remaining if self.items else math.inf
