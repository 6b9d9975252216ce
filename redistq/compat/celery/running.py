"""How a worker runs a task: its request, its signals, and what its outcome means.

The handler of each task is a function of one payload and its context, as any of redistq's. All
attempts that are no ``retry`` end the task: what is tried again is Celery's ``max_retries`` to say.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...context import TaskContext
from ...errors import Cancel, CancelRequested, Snooze, TaskFailed
from ...errors import Retry as _Retry
from ..errors import made_again, report_of
from ..wire import from_wire, to_wire
from . import signals, states
from .exceptions import Ignore, Reject
from .payload import read
from .plan import flow_of
from .request import Request, running
from .task import Replaced, Task, with_retries

if TYPE_CHECKING:
    from .app import Celery

REQUEUED_S = 1.0
"""Seconds after which a task that was rejected with ``requeue`` runs again."""


class ExceptionInfo:
    """What signals and hooks are told of an error, under Celery's names."""

    def __init__(self, error: BaseException) -> None:
        self.exception = error
        self.type = type(error)
        self.tb = error.__traceback__
        self.traceback = "".join(traceback.format_exception(error))

    def __str__(self) -> str:
        return self.traceback


def handler_of(app: Celery, task: Task) -> Callable[[Any, TaskContext], Any]:
    """Return the function that runs a task in a worker."""
    function = with_retries(task)

    def run(payload: Any, context: TaskContext) -> Any:
        args, kwargs, beside = read(task.name, payload)
        request = _request(app, task, context)
        request.args, request.kwargs = _before(app, request, context, args, beside), kwargs
        found = running.set((task, request))
        try:
            return _Run(app, task, request, context).call(function)
        finally:
            running.reset(found)

    run.__module__ = type(task).__module__
    run.__qualname__ = run.__name__ = task.name
    return run


def _request(app: Celery, task: Task, context: TaskContext) -> Request:
    limits = (task.time_limit, task.soft_time_limit)
    where = {"exchange": "", "routing_key": context.queue, "priority": task.priority}
    return Request(
        task,
        id=context.task_id,
        root_id=context.task_id,
        correlation_id=context.task_id,
        retries=context.attempt - 1,
        called_directly=False,
        hostname=context.worker,
        delivery_info={**where, "redelivered": bool(context.recovered)},
        timelimit=limits,
        context=context,
    )


def _before(
    app: Celery, request: Request, context: TaskContext, args: list[Any], beside: dict[str, str]
) -> list[Any]:
    """Return the arguments with what the task takes of those before it in front."""
    if takes := beside.get("results"):
        results = [from_wire(result) for result in context.results()]
        request.parent_id = context.parents[0] if context.parents else None
        return [results if takes == "list" else results[0], *args]
    if parent := beside.get("error_of"):
        request.parent_id = parent
        return [*_failure(app, request, context, parent), *args]
    return args


def _failure(app: Celery, request: Request, context: TaskContext, parent: str) -> list[Any]:
    """Return what a link_error takes: the id of the task that failed; or, where its function has
    room for them, its request, the error and the traceback."""
    import inspect

    task = app.task_named(request.task)
    parameters = inspect.signature(task.run).parameters.values()
    wanted = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len([p for p in wanted if p.default is p.empty]) < 2:
        return [parent]
    status = app.producer(context.queue).get_task(parent)
    error = status.error or {}
    failed = Request(task, id=parent, called_directly=False)
    failed.task = status.name or ""
    return [failed, made_again(error), error.get("traceback")]


class _Run:
    """One attempt of a task."""

    def __init__(self, app: Celery, task: Task, request: Request, context: TaskContext) -> None:
        self.app = app
        self.task = task
        self.request = request
        self.context = context
        self.id = str(request.id)

    def call(self, function: Callable[..., Any]) -> Any:
        """Call the function; return its result or raise what ends the attempt as it is meant."""
        request, task = self.request, self.task
        args, kwargs = request.args, request.kwargs
        signals.task_prerun.send(sender=task, task_id=self.id, task=task, args=args, kwargs=kwargs)
        state, value, info = states.SUCCESS, None, None
        try:
            task.before_start(self.id, args, kwargs)
            value = function(*args, **kwargs)
            task.on_success(value, self.id, args, kwargs)
            signals.task_success.send(sender=task, result=value)
            return to_wire(value)
        except Replaced as error:
            return flow_of(self.app, error.sig)[0]
        except Ignore as error:
            state, value = states.IGNORED, error
            raise Cancel(f"{states.IGNORED} by the task") from error
        except Reject as error:
            state, value = states.REJECTED, error
            if error.requeue:
                raise Snooze(REQUEUED_S) from error
            raise Cancel(f"{states.REJECTED} by the task: {error.reason}") from error
        except _Retry as error:
            state, value, info = states.RETRY, error, ExceptionInfo(error)
            reason = getattr(error, "exc", None) or error
            signals.task_retry.send(sender=task, request=request, reason=reason, einfo=info)
            task.on_retry(reason, self.id, args, kwargs, info)
            self._report(reason)
            raise
        except CancelRequested:
            state = states.REVOKED
            signals.task_revoked.send(
                sender=task, request=request, terminated=True, signum=None, expired=False
            )
            raise
        except Exception as error:
            state, value, info = states.FAILURE, error, ExceptionInfo(error)
            self._failed(error, info)
            raise
        finally:
            signals.task_postrun.send(
                sender=task, task_id=self.id, task=task, args=args, kwargs=kwargs,
                retval=value, state=state,
            )  # fmt: skip
            if isinstance(state, str) and state not in (states.IGNORED, states.REJECTED):
                task.after_return(state, value, self.id, args, kwargs, info)

    def _failed(self, error: Exception, info: ExceptionInfo) -> None:
        args, kwargs = self.request.args, self.request.kwargs
        self._report(error)
        self.task.on_failure(error, self.id, args, kwargs, info)
        signals.task_failure.send(
            sender=self.task, task_id=self.id, exception=error, args=args, kwargs=kwargs,
            traceback=error.__traceback__, einfo=info,
        )  # fmt: skip

    def _report(self, error: BaseException) -> None:
        if not isinstance(error, TaskFailed):
            self.context._report = report_of(error)
