"""Every error of redistq: those users meet, signals of handlers, and those between its parts.

Used by every module; imports nothing. Each error carries its data and names the next step.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

_UNSTARTED = " before it started"
MAX_DELAY_S = 1_000_000_000
"""Longest delay of a Retry or Snooze in seconds: 31 years."""

__all__ = [
    "ArgumentError",
    "CancelRequested",
    "ConfigurationError",
    "EmbeddedServerError",
    "EventTimeout",
    "Fail",
    "InvalidDelay",
    "ItemTooLarge",
    "ItemsGone",
    "LeaseLost",
    "MemoryLimitExceeded",
    "ModuleMissing",
    "PayloadError",
    "PayloadTooLarge",
    "RedistqError",
    "ResultError",
    "ResultTimeout",
    "ResultTooLarge",
    "Retry",
    "ServerFull",
    "ServerUnavailable",
    "Snooze",
    "StepError",
    "StepMismatch",
    "StreamRestarted",
    "Suspended",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TimeLimitExceeded",
    "TooHeavy",
    "UnexpectedReply",
    "UnknownBatch",
    "UnknownParent",
    "UnknownTask",
    "UntrustedPayload",
    "WrongPython",
]


_UNSTARTED = " before it started"


class RedistqError(Exception):
    """The base of all errors of this package."""


class ConfigurationError(RedistqError, ValueError):
    """A setting cannot work; raised before anything is sent to a server."""


class TooHeavy(ConfigurationError):
    """A task takes more of a limit than there ever is; nothing of it was stored."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: it would wait for ever; raise the limit (producer.limits.set) or lower the "
            "task's weight"
        )


class EmbeddedServerError(RedistqError, RuntimeError):
    """The embedded server could not be started; pass a URL, or mend what the message names."""


class ServerUnavailable(RedistqError, ConnectionError):
    """The server did not answer in bounded time.

    The request may be made again: every call is idempotent by task id, so an ``add_task`` with
    the same ``task_id`` is stored once, however often it is sent. ``task_ids`` is set by a bulk
    call: its ids in order, of which some may have been stored.
    """

    task_ids: list[str] | None = None


class ServerFull(RedistqError):
    """The server is beyond its ``maxmemory``; nothing was stored.

    Workers still drain such a server: let them, or raise ``maxmemory``.
    """


class UnexpectedReply(RedistqError):
    """The server's answer is none that this command has; whether it did anything is unknown.

    ``command`` is what was asked, ``reply`` the beginning of what came, as text.
    """

    def __init__(self, command: str, reply: str) -> None:
        self.command = command
        self.reply = reply
        super().__init__(
            f"{command} was answered with {reply}, which is no answer to it: is this really a "
            "Redis server, or a proxy that changes answers?"
        )


class PayloadError(RedistqError, TypeError):
    """A payload cannot be serialised; nothing was stored."""


class PayloadTooLarge(RedistqError, ValueError):
    """A payload is larger than the limit; nothing was stored."""

    def __init__(self, size: int, limit: int, advice: str = "") -> None:
        self.size = size
        self.limit = limit
        self.advice = advice
        super().__init__(
            f"the payload is {size:,} bytes and the limit is {limit:,}; "
            + (
                advice
                or "store the data elsewhere and pass a path or key, or raise max_payload_bytes"
            )
        )


class UntrustedPayload(RedistqError):
    """A pickled payload or result whose writer cannot be trusted; it was not unpickled."""


class Unreadable(RedistqError):
    """A payload, result or error cannot be read here, for want of a key, a package, or a newer
    release; ``lacks`` says what. Nothing is wrong with it."""

    def __init__(self, what: str, lacks: str, advice: str = "") -> None:
        self.lacks = lacks
        self._advice = advice
        super().__init__(
            f"{what} cannot be read here, for there is no {lacks}: "
            f"{advice or 'give the same codec to both sides (codec=, --codec or REDISTQ_CODEC)'}"
        )

    def of(self, what: str) -> Unreadable:
        """Return the same error of something that is known better."""
        return Unreadable(what, self.lacks, self._advice)


class SpillError(RedistqError, OSError):
    """A value outside the server (``Client(spill=...)``) could not be written or read; the words
    say where, on which machine, and what is missing."""


class ResultError(RedistqError, TypeError):
    """A handler's result cannot be serialised; the task ends as failed, without a retry."""


class ResultTooLarge(RedistqError, ValueError):
    """A handler's result is larger than the limit; the task ends as failed, without a retry."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the result is {size:,} bytes and the limit is {limit:,}; store it elsewhere and "
            "return a path or key, or raise max_result_bytes"
        )


class ItemTooLarge(RedistqError, ValueError):
    """A task yielded more at a time than a stream takes; raised where it was yielded."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"an item that is yielded has at most {limit:,} bytes, and this one {size:,}; yield "
            "smaller parts, or store it elsewhere and yield its path"
        )


class ItemsGone(RedistqError, LookupError):
    """Items of a stream that were asked for are no longer kept; ``first`` is the first there is."""

    def __init__(self, task_id: str, index: int, first: int) -> None:
        self.task_id = task_id
        self.index = index
        self.first = first
        super().__init__(
            f"item {index} of task {task_id} is no longer kept: the oldest items go when there are "
            f"many, and all of them with the task's result; the first there is has index {first} "
            f"(start={first})"
        )


class StreamRestarted(RedistqError):
    """A task that was read while it ran began anew: its items come again from the first on.

    ``position`` is how many had been given. Read with ``restarts=True``, the stream yields this in
    their place and goes on with the first of the new ones.
    """

    def __init__(self, task_id: str, position: int) -> None:
        self.task_id = task_id
        self.position = position
        super().__init__(
            f"task {task_id} began anew after {position} of its items were read: what it yields "
            "comes again from the first item on. Read it again, or with restarts=True; a task that "
            "begins at context.stream_position goes on where it was"
        )


class UnknownTask(RedistqError, LookupError):
    """No task with this id is known: it was never added, or its result has expired."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(
            f"no task with id {task_id!r}: it was never added to this queue, or its result has "
            "expired (see result_ttl)"
        )


class UnknownSchedule(RedistqError, LookupError):
    """There is no schedule of this name: it was never set, or was deleted."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"there is no schedule {name!r}; producer.schedules.all() lists those of the queue, "
            f"producer.schedules.set({name!r}, cron=..., task=...) makes one"
        )


class UnknownBatch(UnknownTask):
    """No batch of this name is known: it was never started, or has been forgotten since."""

    def __init__(self, name: str, near: str = "") -> None:
        self.task_id = self.name = name
        hint = f"; did you mean {near!r}?" if near else ""
        LookupError.__init__(
            self,
            f"no batch {name!r}: it was never started on this queue, was deleted, or ended more "
            f"than a week ago{hint}",
        )


class UnknownParent(UnknownTask):
    """A task was to run after one that is not known; nothing of it was stored."""

    def __init__(self, task_id: str, parent: str) -> None:
        self.task_id = task_id
        self.parent = parent
        LookupError.__init__(
            self,
            f"task {task_id!r} was not stored: it is to run after {parent!r}, which was never "
            "added to this queue, or ended so long ago that its record has expired; add parents "
            "first, and keep what later tasks depend on (result_ttl=...)",
        )


class ResultTimeout(RedistqError, TimeoutError):
    """What was waited for did not end in the time given; it goes on, and may be asked for again.

    ``reason`` says why nothing came, as far as that is known ('' when workers are at it).
    """

    def __init__(
        self, task_id: str, timeout: float, state: str, reason: str = "", what: str = "task"
    ) -> None:
        self.task_id = task_id
        self.timeout = timeout
        self.state = state
        self.reason = reason
        why = f": {reason}" if reason else ""
        super().__init__(f"{what} {task_id} was still {state} after {timeout:g} s{why}")


class TaskFailed(RedistqError):
    """The task ended as failed; carries the remote error's type, message and traceback."""

    def __init__(self, task_id: str, error: dict[str, Any]) -> None:
        self.task_id = task_id
        self.type = str(error.get("type", ""))
        self.message = str(error.get("message", ""))
        self.traceback = str(error.get("traceback", ""))
        words = ": ".join(filter(None, (self.type, self.message)))
        super().__init__(f"task {task_id} failed: {words or 'no word was said of it'}")
        if self.traceback:
            self.add_note("The traceback on the worker:\n" + self.traceback.rstrip())


class TaskCancelled(RedistqError):
    """The task was cancelled; ``reason`` says why, or how ('' before it started)."""

    def __init__(self, task_id: str, reason: str = "") -> None:
        self.task_id = task_id
        self.reason = reason
        super().__init__(f"task {task_id} was cancelled{f': {reason}' if reason else _UNSTARTED}")


class TaskExpired(TaskCancelled):
    """The task had not started by its deadline (``expires``), and never will."""

    def __init__(self, task_id: str, reason: str = "") -> None:
        self.task_id = task_id
        self.reason = reason or "not started by its deadline"
        RedistqError.__init__(
            self,
            f"task {task_id} has expired: {self.reason}; add it again with more time (expires=...) "
            "or more workers",
        )


class TimeLimitExceeded(RedistqError, TimeoutError):
    """A handler ran longer than its ``timeout``; the attempt counts as failed."""


class MemoryLimitExceeded(RedistqError, MemoryError):
    """A task's process grew by more than the task's ``memory`` and was killed; the attempt counts
    as failed."""


class CancelRequested(BaseException):
    """Raised in a handler's thread when its task is asked to end (``cancel(running="ask")``).

    A handler that lets it through ends as cancelled; one that catches it and returns has succeeded.
    Not an Exception, as asyncio.CancelledError is none: ``except Exception`` does not hold it up.
    """


# What a handler may raise to say how its attempt ends.


class Retry(Exception):
    """Run this task again: counted as an attempt, after ``delay`` seconds or the usual backoff.

    Raises InvalidDelay for a ``delay`` that is no number of seconds; below 0 means at once.
    """

    delay: float | None = None
    reason: str = ""

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        self.delay = None if delay is None else checked_delay("Retry", delay)
        self.reason = reason
        super().__init__(reason or "the handler asked for a retry")


class Snooze(Exception):
    """Run this task again after ``delay`` seconds, without counting an attempt.

    Raises InvalidDelay for a ``delay`` that is no number of seconds; below 0 means at once.
    """

    delay: float = 1.0
    reason: str = ""

    def __init__(self, delay: float = 1.0, reason: str = "") -> None:
        self.delay = checked_delay("Snooze", delay)
        self.reason = reason
        super().__init__(reason or "the handler asked to be called later")


class Fail(Exception):
    """End this task as failed now, whatever retries are left."""

    reason: str = ""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason or "the handler gave the task up")


class ArgumentError(PayloadError, Fail):
    """The arguments of a task do not fit its function, or one cannot be converted; the message
    names it.

    Raised at the call, before anything is stored. On a worker it ends the task as failed: another
    attempt would only meet it again.
    """


class Cancel(Exception):
    """End this task as cancelled now: it has neither succeeded nor failed, and is not run again."""

    reason: str = ""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason or "the handler gave the task up")


class InvalidDelay(ConfigurationError, Fail):
    """The delay of a Retry or Snooze is no number of seconds.

    It ends the task that raised it as failed: another attempt would only meet it again.
    """


# Steps of a task.


class StepError(ConfigurationError, Fail):
    """A step cannot be kept: there are too many, it is too large, or stands within another.

    It ends the task that raised it as failed: another attempt would only meet it again.
    """


class StepMismatch(StepError):
    """The code asks for another step than the one that an earlier attempt did in this place.

    ``number`` counts from 1; ``recorded`` is what was done there, ``wanted`` what is asked for now.
    """

    def __init__(self, number: int, recorded: str, wanted: str) -> None:
        self.number = number
        self.recorded = recorded
        self.wanted = wanted
        super().__init__(
            f"step {number} of this task was {recorded} when an earlier attempt did it, and is "
            f"{wanted} now: steps come in the same order each time, so add new ones behind those "
            "that are done, or begin anew (replay with forget_steps=True)"
        )


class EventTimeout(RedistqError, TimeoutError):
    """The event that a task waited for (``context.wait_for``) did not come in the time given."""

    def __init__(self, event: str, timeout: float | None = None) -> None:
        self.event = event
        self.timeout = timeout
        after = "in the time given" if timeout is None else f"within {timeout:g} s"
        super().__init__(f"event {event!r} did not come {after}")


class Suspended(BaseException):
    """Raised by ``context.sleep`` and ``context.wait_for``: this attempt ends here, and the task
    goes on later, in another.

    Let it through. Not an Exception, so ``except Exception`` does not hold it up; ``finally`` and
    ``with`` blocks end as with any other.
    """


class LeaseLost(BaseException):
    """Raised by steps, and at a ``yield``, of a task that was taken from this worker: another one
    runs it now.

    Let it through: what this attempt comes to does not count. Not an Exception, as Suspended.
    """


def checked_delay(what: str, delay: Any) -> float:
    """The delay of a ``what`` (Retry, Snooze) in seconds, not below 0; raises InvalidDelay."""
    if isinstance(delay, Real) and not isinstance(delay, bool) and delay <= MAX_DELAY_S:
        return max(0.0, float(delay))
    shown = repr(delay)[:60] if isinstance(delay, str | float) else f"a {type(delay).__name__}"
    raise InvalidDelay(
        f"the delay of a {what} is a number of seconds, at most {MAX_DELAY_S:,} (31 years), not "
        f"{shown}; a text such as a Retry-After header goes through float() first"
    )


class WrongPython(RedistqError):
    """The function was sent by another minor version of Python, whose bytecode this one lacks."""


class ModuleMissing(RedistqError, ImportError):
    """The function or its arguments need a module that the worker does not have."""


# -- between the parts of the package -------------------------------------------------------------


class ConnectionLost(Exception):
    """The connection failed in mid-request; whether the server acted on it is unknown."""


class Refused(ConnectionLost):
    """The server is there and says no for now: it is busy, loading, cannot write to its disk, has
    too few replicas, is no primary. Its own words are the message."""


class GroupMissing(Exception):
    """The stream or its consumer group is not there (a new queue, FLUSHDB, a failover)."""


class WrongKind(ConfigurationError):
    """A key of the queue holds something else: a string where a stream belongs."""
