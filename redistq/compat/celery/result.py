"""AsyncResult, GroupResult and EagerResult: what became of a task, in Celery's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ResultTimeout, TaskCancelled, TaskFailed, UnknownTask
from ...producer.results import TaskStatus
from ..errors import made_again
from ..unsupported import NotSupported
from ..wire import from_wire
from . import states
from .exceptions import ChordError, TaskRevokedError, TimeoutError
from .request import in_worker
from .shared import current_app

if TYPE_CHECKING:
    from .app import Celery

_GIVEN_UP = re.compile(r"(IGNORED|REJECTED) by the task")
_PARENT = re.compile(r"parent (\S+) ")


class Result:
    """What results of all kinds have."""

    id: str
    app: Celery
    parent: Result | None = None

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.id

    @property
    def state(self) -> str:
        """How the task stands, in Celery's words."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """The same as ``state``."""
        return self.state

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Return the result as soon as it is there."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether the task has ended."""
        return self.state in states.READY_STATES or self.state in _OVER

    def successful(self) -> bool:
        """Return whether it has succeeded."""
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        """Return whether it has failed."""
        return self.state == states.FAILURE

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Result) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def as_list(self) -> list[str]:
        """Return its id, and those before it."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else [])]


_OVER = (states.IGNORED, states.REJECTED)


class AsyncResult(Result):
    """A task by its id. ``get`` waits for the notification of its end; nothing polls."""

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: Result | None = None,
        queue: str | None = None,
        ignored: bool = False,
    ) -> None:
        if id is None:
            raise ValueError("AsyncResult needs an id")
        self.id = str(id)
        self.app = app or current_app()
        self.parent = parent
        self.ignored = ignored
        self.queue = queue
        """The queue it is in; None: looked for in those that the app knows."""
        self._name = task_name

    # -- how it stands ---------------------------------------------------------------------------

    def _status(self) -> TaskStatus | None:
        queues = [self.queue] if self.queue else self.app.queues
        for queue in queues:
            try:
                status = self.app.producer(queue).get_task(self.id)
            except UnknownTask:
                continue
            self.queue = queue
            return status
        return None

    @property
    def state(self) -> str:
        """How it stands; PENDING also where no task of this id is known, as in Celery."""
        return self._state_of(self._status())

    def _state_of(self, status: TaskStatus | None) -> str:
        if status is None:
            return states.PENDING
        if status.state == "delayed" and status.error is not None:
            return states.RETRY
        if status.state == "cancelled":
            if found := _GIVEN_UP.match(status.why):
                return found[1]
            if _PARENT.match(status.why):
                return states.FAILURE
        return states.WORDS[status.state]

    @property
    def result(self) -> Any:
        """Its result, or its error as an exception; None while it has neither."""
        return self._value_of(self._status())

    info = result

    def _value_of(self, status: TaskStatus | None) -> Any:
        if status is None:
            return None
        if status.state == "succeeded":
            return from_wire(status.result)
        if status.state in ("cancelled", "expired"):
            return self._not_run(status.why)
        return made_again(status.error) if status.error is not None else None

    @property
    def traceback(self) -> str | None:
        """The traceback of its error on the worker."""
        status = self._status()
        error = status.error if status is not None else None
        return None if error is None else error.get("traceback")

    @property
    def name(self) -> str | None:
        """The task's name."""
        status = self._status() if self._name is None else None
        return self._name if status is None else status.name

    @property
    def date_done(self) -> Any:
        """When it ended."""
        status = self._status()
        return None if status is None else status.finished_at

    @property
    def worker(self) -> str | None:
        """Which worker has it, or had it."""
        status = self._status()
        return None if status is None else status.worker

    @property
    def children(self) -> list[Result]:
        """Refuse what is not kept."""
        raise NotSupported(
            "children of a result",
            "keep the results of the tasks that a task sends; parent is here",
        )

    # -- waiting ---------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Any = None,
        on_interval: Any = None,
        disable_sync_subtasks: bool = True,
        **_: Any,
    ) -> Any:
        """Return the result; raise the task's error, or return it where ``propagate`` is false.

        Raises TimeoutError after ``timeout`` seconds, and RuntimeError in a task, which would hold
        a thread while it waits.
        """
        if on_message is not None or on_interval is not None:
            raise NotSupported(
                "on_message of get", "let the task say how far it is, and poll state"
            )
        if disable_sync_subtasks and in_worker():
            raise RuntimeError(
                "Never call result.get() within a task! Let the task that needs the result follow "
                "it: chain, chord, or self.replace(...)"
            )
        if self.ignored:
            return None
        try:
            value = self._wait(timeout)
        except ResultTimeout as error:
            raise TimeoutError(str(error)) from error
        except TaskFailed:
            value = self.result
        except TaskCancelled as error:
            value = self._not_run(error.reason)
        else:
            value = from_wire(value)
            if callback is not None:
                callback(self.id, value)
            return value
        if propagate and isinstance(value, BaseException):
            raise value
        return value

    wait = get

    def _wait(self, timeout: float | None) -> Any:
        if self.queue is None and self._status() is None:
            raise UnknownTask(self.id)
        return self.app.producer(self.queue or "").get_result(self.id, timeout)

    def _not_run(self, reason: str) -> Exception | None:
        """Return what is raised for a task that ended before or without its function's end."""
        if _GIVEN_UP.match(reason):
            return None
        found = _PARENT.match(reason)
        if found is None:
            return TaskRevokedError(reason or "revoked")
        before = AsyncResult(found[1], app=self.app, queue=self.queue).result
        if isinstance(self.parent, GroupResult):
            return ChordError(f"Dependency {found[1]} raised {before!r}")
        return before if isinstance(before, Exception) else TaskRevokedError(reason)

    def then(self, *_: Any, **__: Any) -> Any:
        """Refuse promises."""
        raise NotSupported("then of a result", "link a task (link=...), or wait with get()")

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Let the task not start; with ``terminate``, end it where it runs."""
        self.app.control.revoke(self.id, terminate=terminate, queue=self.queue)

    def forget(self) -> None:
        """Refuse what the server does by itself."""
        raise NotSupported(
            "forget of a result",
            "results go after result_expires seconds; ignore_result=True keeps none",
        )

    def __reduce__(self) -> Any:
        return AsyncResult, (self.id, None, self._name, None, None, self.queue)


class EagerResult(Result):
    """The result of a task that ran here."""

    def __init__(
        self,
        id: str,
        value: Any,
        state: str,
        traceback: str | None = None,
        app: Celery | None = None,
        task_name: str | None = None,
    ) -> None:
        self.id = id
        self.name = task_name
        self.result = self.info = value
        self.traceback = traceback
        self._state = state
        if app is not None:
            self.app = app

    @property
    def state(self) -> str:
        """How the task ended."""
        return self._state

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Return the result; raise the task's error, or return it where ``propagate`` is false."""
        if propagate and self._state in states.PROPAGATE_STATES:
            raise self.result
        return self.result

    wait = get

    def ready(self) -> bool:
        """Return true: it has run."""
        return True

    def revoke(self, *_: Any, **__: Any) -> None:
        """Do nothing: it has run."""

    def forget(self) -> None:
        """Do nothing: nothing is kept of it."""


class GroupResult(Result):
    """The results of tasks that run side by side, in order."""

    def __init__(
        self,
        id: str,
        results: Sequence[Result] = (),
        parent: Result | None = None,
        app: Celery | None = None,
    ) -> None:
        self.id = id
        self.results = list(results)
        self.parent = parent
        if app is not None:
            self.app = app

    @property
    def children(self) -> list[Result]:
        """Its results."""
        return self.results

    @property
    def state(self) -> str:
        """FAILURE where one has failed, SUCCESS where all have succeeded, else PENDING."""
        found = [result.state for result in self.results]
        if states.FAILURE in found:
            return states.FAILURE
        return states.SUCCESS if set(found) <= {states.SUCCESS} else states.PENDING

    def get(self, timeout: float | None = None, propagate: bool = True, **options: Any) -> Any:
        """Return the list of results, as soon as they are there."""
        import time

        until = None if timeout is None else time.monotonic() + timeout
        found = []
        for result in self.results:
            left = None if until is None else max(0.0, until - time.monotonic())
            found.append(result.get(left, propagate, **options))
        return found

    join = get
    join_native = get

    def ready(self) -> bool:
        """Return whether all have ended."""
        return all(result.ready() for result in self.results)

    def waiting(self) -> bool:
        """Return whether one has not ended."""
        return not self.ready()

    def successful(self) -> bool:
        """Return whether all have succeeded."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Return whether one has failed."""
        return any(result.failed() for result in self.results)

    def completed_count(self) -> int:
        """Return how many have succeeded."""
        return sum(result.successful() for result in self.results)

    def revoke(self, terminate: bool = False, **_: Any) -> None:
        """Let those not start that have not; with ``terminate``, end those that run."""
        for result in self.results:
            result.revoke(terminate=terminate)  # type: ignore[attr-defined]

    def save(self, *_: Any) -> None:
        """Refuse what is not kept."""
        raise NotSupported(
            "save of a group's result", "keep the ids: [r.id for r in group.results]"
        )

    restore = save

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __getitem__(self, at: int) -> Result:
        return self.results[at]


ResultSet = GroupResult
