"""Celery's way of writing tasks, running on redistq: change the import, and start redistq's worker.

``from redistq.compat.celery import Celery, shared_task, chain, group, chord, signature`` and
``python -m redistq.worker proj.celery:app``. Celery itself is not imported. docs/migrating.md says
what maps to what; all else raises NotSupported, which names the next step.
"""

from __future__ import annotations

from typing import Any

from . import exceptions, result, schedules, signals, states
from .app import Celery
from .canvas import Signature, chain, chord, group, maybe_signature, signature, subtask
from .exceptions import (
    Ignore,
    MaxRetriesExceededError,
    NotSupported,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
)
from .result import AsyncResult, GroupResult
from .schedules import crontab
from .shared import current_app as _current_app
from .shared import shared_task
from .task import Task


class _Current:
    """Whatever is current where it is used."""

    def __init__(self, find: Any) -> None:
        vars(self)["_find"] = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __bool__(self) -> bool:
        return self._find() is not None

    def __repr__(self) -> str:
        return repr(self._find())


current_app: Any = _Current(_current_app)
"""The app that was made last in this process."""
current_task: Any = _Current(lambda: _current_app().current_task)
"""The task that runs here."""

__all__ = [
    "AsyncResult",
    "Celery",
    "GroupResult",
    "Ignore",
    "MaxRetriesExceededError",
    "NotSupported",
    "Reject",
    "Retry",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "chain",
    "chord",
    "crontab",
    "current_app",
    "current_task",
    "exceptions",
    "group",
    "maybe_signature",
    "result",
    "schedules",
    "shared_task",
    "signals",
    "signature",
    "states",
    "subtask",
]
