"""What tasks raise and callers catch, under Celery's names."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

from ...errors import ConfigurationError, PayloadError, TimeLimitExceeded
from ...errors import Retry as _Retry
from ..unsupported import NotSupported

SoftTimeLimitExceeded = TimeLimitExceeded
"""Raised in a task whose soft_time_limit has passed."""
EncodeError = PayloadError
"""Raised where arguments are no JSON."""
ImproperlyConfigured = ConfigurationError
NotRegistered = type("NotRegistered", (KeyError,), {"__doc__": "No task has this name."})

__all__ = [
    "CeleryError",
    "ChordError",
    "EncodeError",
    "Ignore",
    "ImproperlyConfigured",
    "MaxRetriesExceededError",
    "NotRegistered",
    "NotSupported",
    "Reject",
    "Retry",
    "SoftTimeLimitExceeded",
    "TaskRevokedError",
    "TimeLimitExceeded",
    "TimeoutError",
]


class CeleryError(Exception):
    """The base of Celery's errors."""


class TaskPredicate(CeleryError):
    """The base of what a task raises to say how its attempt ends."""


class Retry(TaskPredicate, _Retry):
    """The task is to be tried again: raised by ``self.retry``."""

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
    ) -> None:
        self.message = message
        self.exc = exc
        self.excs = repr(exc) if exc is not None else None
        self.when = when
        self.is_eager = is_eager
        self.sig = sig
        delay = when
        if isinstance(when, datetime):
            delay = max(0.0, when.timestamp() - datetime.now().timestamp())
        _Retry.__init__(self, delay if isinstance(delay, int | float) else None, message or "")

    def humanize(self) -> str:
        """Return when, in words."""
        return f"in {self.when}s" if isinstance(self.when, int | float) else f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        return f"Retry {self.humanize()}{f': {self.excs}' if self.excs else ''}"


class Ignore(TaskPredicate):
    """End the task without a result: it ends as cancelled, state IGNORED."""


class Reject(TaskPredicate):
    """Give the task up; with ``requeue`` it runs again a little later, uncounted."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        self.reason = reason
        self.requeue = requeue
        super().__init__(reason, requeue)


class MaxRetriesExceededError(CeleryError):
    """``self.retry`` was called once more than the task may be tried again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.task_args = kwargs.pop("task_args", [])
        self.task_kwargs = kwargs.pop("task_kwargs", {})
        super().__init__(*args, **kwargs)


class TaskRevokedError(CeleryError):
    """The task was revoked before or while it ran."""


class TimeoutError(CeleryError, builtins.TimeoutError):
    """A result did not come in the time given."""


class ChordError(CeleryError):
    """A task of a chord's header failed, so its body does not run."""
