"""The request of a task that runs: ``self.request``, and how code finds it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ...context import TaskContext

if TYPE_CHECKING:
    from .task import Task


class Request:
    """What a running task may know of itself, under Celery's names.

    ``called_directly`` is true in a call that no worker makes. What redistq has no word for is
    None.
    """

    def __init__(self, task: Task, args: Any = (), kwargs: Any = None, **more: Any) -> None:
        self.task = task.name
        self.args = list(args)
        self.kwargs = dict(kwargs or {})
        self.id: str | None = None
        self.retries = 0
        self.is_eager = False
        self.called_directly = True
        self.hostname: str | None = None
        self.delivery_info: dict[str, Any] = {}
        self.timelimit: tuple[float | None, float | None] = (None, None)
        self.context: TaskContext | None = None
        """The task's context as redistq's own handlers get it; None where no worker runs it."""
        self.parent_id: str | None = None
        for name in ("eta", "expires", "root_id", "group", "chord", "chain", "headers"):
            setattr(self, name, None)
        for name in ("callbacks", "errbacks", "origin", "reply_to", "correlation_id", "utc"):
            setattr(self, name, None)
        self.__dict__.update(more)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a task's request has no {name!r}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default."""
        return getattr(self, name, default)

    def __repr__(self) -> str:
        return f"<Request: {self.task} {self.id}>"


running: ContextVar[tuple[Task, Request] | None] = ContextVar("redistq-celery", default=None)
"""The task that runs here, and its request."""


def request_of(task: Task) -> Request:
    """Return the request of a task's run here, an empty one where it does not run."""
    found = running.get()
    return found[1] if found is not None and found[0] is task else Request(task)


def in_worker() -> bool:
    """Return whether this is code of a task that a worker runs."""
    found = running.get()
    return found is not None and found[1].context is not None
