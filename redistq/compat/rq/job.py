"""Job: a function call that was added, and what became of it, in RQ's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ...errors import ResultTimeout, TaskCancelled, TaskFailed, UnknownTask
from ...producer import TaskProducer
from ...producer.results import TaskStatus
from ..errors import made_again
from ..unsupported import NotSupported
from ..wire import from_wire, to_wire
from . import connections
from .allowed import NAME, path_of
from .said import InvalidJobOperation, NoSuchJobError

if TYPE_CHECKING:
    from .queue import Queue


class JobStatus(StrEnum):
    """How a job stands."""

    CREATED = "created"
    QUEUED = "queued"
    FINISHED = "finished"
    FAILED = "failed"
    STARTED = "started"
    DEFERRED = "deferred"
    SCHEDULED = "scheduled"
    STOPPED = "stopped"
    CANCELED = "canceled"


_WORDS = {
    "queued": JobStatus.QUEUED,
    "waiting": JobStatus.DEFERRED,
    "delayed": JobStatus.SCHEDULED,
    "running": JobStatus.STARTED,
    "succeeded": JobStatus.FINISHED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELED,
    "expired": JobStatus.CANCELED,
}


class Retry:
    """How often a job that failed is tried again, and after how many seconds each time."""

    def __init__(
        self, max: int, interval: int | Iterable[int] = 0, enqueue_at_front: bool = False
    ) -> None:
        if max < 1:
            raise ValueError("max: please enter a value greater than 0")
        intervals = [interval] if isinstance(interval, int) else list(interval)
        if any(seconds < 0 for seconds in intervals):
            raise ValueError("interval: negative numbers are not allowed")
        if enqueue_at_front:
            raise NotSupported("enqueue_at_front", "use a queue of its own: Queue('name!high')")
        self.max = max
        self.intervals = intervals


class Callback:
    """A function that is called when a job has succeeded, or failed."""

    def __init__(self, func: str | Callable[..., Any], timeout: Any = None) -> None:
        if timeout is not None:
            raise NotSupported("the timeout of a callback", "it runs within the job_timeout")
        self.func = func

    @property
    def name(self) -> str:
        """The function's import path."""
        return path_of(self.func)


@dataclass
class Dependency:
    """Jobs that come before another; with ``allow_failure`` however they end."""

    jobs: Any
    allow_failure: bool = False
    enqueue_at_front: bool = False

    def __post_init__(self) -> None:
        if self.enqueue_at_front:
            raise NotSupported("enqueue_at_front", "use a queue of its own: Queue('name!high')")
        if isinstance(self.jobs, str) or not isinstance(self.jobs, Sequence):
            self.jobs = [self.jobs]


class Job:
    """A job by its id and the queue that it is in, ``origin``."""

    def __init__(
        self, id: str, origin: str, func_name: str | None = None, connection: Any = None
    ) -> None:
        self.id = id
        self.origin = origin
        self.connection = connection
        self._path = func_name
        self._call: tuple[list[Any], dict[str, Any]] | None = None
        self.said: dict[str, Any] = {}
        """What goes with it beside its arguments: meta, description, retry, callbacks."""
        self.worker_name: str | None = None
        self.retries_done = 0
        self._result: tuple[bool, Any] | None = None
        """Of one that ran in this process: whether it succeeded, and its result or error."""

    # -- what it is ------------------------------------------------------------------------------

    def read(self, payload: Any) -> None:
        """Take arguments and what goes with them from a payload."""
        if not isinstance(payload, dict) or "args" not in payload:
            raise InvalidJobOperation(f"job {self.id} holds no call of a function")
        self._call = (from_wire(payload["args"]), from_wire(payload.get("kwargs") or {}))
        self.said = dict(payload.get("rq") or {})

    def payload(self) -> dict[str, Any]:
        """Return its payload."""
        args, kwargs = self._call or ([], {})
        payload = {"args": to_wire(args), "kwargs": to_wire(kwargs)}
        return {**payload, "rq": self.said} if self.said else payload

    @property
    def func_name(self) -> str:
        """The import path of its function."""
        if self._path is None:
            self._path = (self._status().name or "").removeprefix(NAME + ":")
        return self._path

    @property
    def args(self) -> tuple[Any, ...]:
        """Its arguments."""
        return tuple(self._given()[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        """Its arguments by name."""
        return self._given()[1]

    def _given(self) -> tuple[list[Any], dict[str, Any]]:
        if self._call is None:
            payload = self._status().payload
            if payload is None:
                raise NotSupported(
                    "the arguments of a job that was fetched", "keep the Job that enqueue returned"
                )
            self.read(payload)
        assert self._call is not None
        return self._call

    @property
    def meta(self) -> dict[str, Any]:
        """What was given as its meta."""
        return self.said.setdefault("meta", {})  # type: ignore[no-any-return]

    def save_meta(self) -> None:
        """Refuse to change what others read of a job that runs."""
        raise NotSupported(
            "save_meta", "say how far it is: redistq.current_task().progress(done, total, text)"
        )

    @property
    def description(self) -> str:
        """What was given as its description, or its call."""
        if said := self.said.get("description"):
            return str(said)
        shown = [*map(repr, self.args), *(f"{n}={v!r}" for n, v in self.kwargs.items())]
        return f"{self.func_name}({', '.join(shown)})"

    @property
    def retries_left(self) -> int | None:
        """How often it may be tried again; None where it was added without retries."""
        retry = self.said.get("retry")
        return None if retry is None else max(0, int(retry["max"]) - self.retries_done)

    # -- what became of it -----------------------------------------------------------------------

    @property
    def _producer(self) -> TaskProducer:
        return connections.producer(self.connection, self.origin)

    def _status(self) -> TaskStatus:
        try:
            return self._producer.get_task(self.id)
        except UnknownTask as error:
            raise NoSuchJobError(f"No such job: {self.id}") from error

    @classmethod
    def fetch(
        cls, id: str, connection: Any = None, serializer: Any = None, queue: str | None = None
    ) -> Job:
        """Return the job of an id; raises NoSuchJobError.

        It is looked for in ``queue``, or in the queues that this process has made, and
        ``default``: ids belong to a queue.
        """
        connections.json_only(serializer)
        for name in [queue] if queue else connections.queues(connection):
            found = cls(id, name, connection=connection)
            try:
                found._status()
            except NoSuchJobError:
                continue
            return found
        raise NoSuchJobError(
            f"No such job: {id}; one of another queue is fetched by Job.fetch(id, queue=...)"
        )

    @classmethod
    def exists(cls, job_id: str, connection: Any = None) -> bool:
        """Return whether there is a job of that id."""
        try:
            cls.fetch(job_id, connection)
        except NoSuchJobError:
            return False
        return True

    def get_status(self, refresh: bool = True) -> JobStatus:
        """Return how it stands now."""
        if self._result is not None:
            return JobStatus.FINISHED if self._result[0] else JobStatus.FAILED
        status = self._status()
        if status.state == "cancelled" and status.why.startswith("asked to end"):
            return JobStatus.STOPPED
        return _WORDS[status.state]

    def return_value(self, refresh: bool = False) -> Any:
        """Return its result; None while it has none, or where it has failed."""
        if self._result is not None:
            return self._result[1] if self._result[0] else None
        status = self._status()
        return from_wire(status.result) if status.state == "succeeded" else None

    @property
    def result(self) -> Any:
        """Its result; None while it has none, or where it has failed."""
        return self.return_value()

    def wait(self, timeout: float | None = None) -> Any:
        """Return its result as soon as it is there; raise its error. No polling.

        Raises redistq.ResultTimeout after ``timeout`` seconds.
        """
        try:
            return from_wire(self._producer.get_result(self.id, timeout))
        except TaskFailed as error:
            raise made_again(self._status().error) from error

    def latest_result(self, timeout: float = 0) -> Result | None:
        """Return its last result, waiting so many seconds for it; None where there is none."""
        if timeout:
            try:
                self._producer.get_result(self.id, timeout)
            except (ResultTimeout, TaskFailed, TaskCancelled):
                pass
        status = self._status()
        if status.state == "succeeded":
            return Result(Result.Type.SUCCESSFUL, from_wire(status.result), None)
        if status.state == "failed":
            return Result(Result.Type.FAILED, None, self.exc_info)
        return None

    @property
    def exc_info(self) -> str | None:
        """The traceback of its error; None where it has not failed."""
        if self._result is not None:
            return None if self._result[0] else repr(self._result[1])
        status = self._status()
        return None if status.state != "failed" else (status.error or {}).get("traceback")

    @property
    def ended_at(self) -> datetime | None:
        """When it ended."""
        return self._status().finished_at

    def cancel(self, enqueue_dependents: bool = False, **_: Any) -> None:
        """Let it not start; raises InvalidJobOperation for one that runs or has ended."""
        if enqueue_dependents:
            raise NotSupported(
                "enqueue_dependents", "add those with Dependency(allow_failure=True)"
            )
        word = self._producer.cancel(self.id)[self.id]
        if word == "unknown":
            raise NoSuchJobError(f"No such job: {self.id}")
        if word != "cancelled":
            raise InvalidJobOperation(f"job {self.id} is {word}; to end it: job.stop()")

    def stop(self) -> None:
        """End it where it runs: RQ's send_stop_job_command."""
        self._producer.cancel(self.id, running="ask")

    def requeue(self, at_front: bool = False) -> Job:
        """Run it again, of one that has failed."""
        if at_front:
            raise NotSupported("at_front", "use a queue of its own: Queue('name!high')")
        if not self._producer.replay(self.id):
            raise InvalidJobOperation(f"job {self.id} has not failed")
        return self

    def delete(self, **_: Any) -> None:
        """Delete it, of one that has failed; cancel it, of one that has not started."""
        if not self._producer.purge(self.id):
            self._producer.cancel(self.id)

    def refresh(self) -> None:
        """Do nothing: everything is read when it is asked for."""

    is_queued = property(lambda self: self.get_status() is JobStatus.QUEUED)
    is_finished = property(lambda self: self.get_status() is JobStatus.FINISHED)
    is_failed = property(lambda self: self.get_status() is JobStatus.FAILED)
    is_started = property(lambda self: self.get_status() is JobStatus.STARTED)
    is_deferred = property(lambda self: self.get_status() is JobStatus.DEFERRED)
    is_scheduled = property(lambda self: self.get_status() is JobStatus.SCHEDULED)
    is_canceled = property(lambda self: self.get_status() is JobStatus.CANCELED)
    is_stopped = property(lambda self: self.get_status() is JobStatus.STOPPED)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} of queue {self.origin}>"


@dataclass
class Result:
    """What a job came to."""

    class Type(StrEnum):
        """Whether it succeeded."""

        SUCCESSFUL = "successful"
        FAILED = "failed"

    type: Type
    return_value: Any
    exc_string: str | None


current: ContextVar[Job | None] = ContextVar("redistq-rq", default=None)
"""The job that runs here."""


def get_current_job(connection: Any = None) -> Job | None:
    """Return the job that this is code of; None elsewhere."""
    return current.get()


def callback_path(given: Any) -> str | None:
    """Return the import path of a callback."""
    if given is None:
        return None
    return given.name if isinstance(given, Callback) else path_of(given)


def after_of(given: Any, queue: Queue) -> Mapping[str, str] | None:
    """Return what ``depends_on`` stands for, as ``add_task`` takes it."""
    if given is None:
        return None
    after: dict[str, str] = {}
    for one in given if isinstance(given, list | tuple) else [given]:
        jobs = one.jobs if isinstance(one, Dependency) else [one]
        policy = "end" if isinstance(one, Dependency) and one.allow_failure else "success"
        for job in jobs:
            if isinstance(job, Job) and job.origin != queue.name:
                raise NotSupported(
                    f"a job of queue {queue.name!r} that depends on one of {job.origin!r}",
                    "enqueue both in one queue, or let the first enqueue the second",
                )
            after[job.id if isinstance(job, Job) else str(job)] = policy
    return after or None
