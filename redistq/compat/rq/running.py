"""How a job runs: its function, its callbacks, and whether it is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...context import TaskContext
from ...errors import Retry as _Retry
from ...handlers import Registry, RetryPolicy
from ...protocol.options import MAX_COUNT
from ..errors import report_of
from ..wire import from_wire, to_wire
from .allowed import NAME, Allowed
from .job import Job, current


def runner(allowed: Allowed) -> Callable[[Any, TaskContext], Any]:
    """Return the handler of jobs whose functions are allowed."""

    def run(payload: Any, context: TaskContext) -> Any:
        path = context.name.removeprefix(NAME + ":")
        found = Job(context.task_id, context.queue, path)
        found.read(payload)
        found.worker_name, found.retries_done = context.worker, context.attempt - 1
        token = current.set(found)
        try:
            return to_wire(perform(found, allowed.function))
        except _Retry:
            raise
        except Exception as error:
            context._report = report_of(error)
            if (delay := next_delay(found.said, context.attempt)) is not None:
                raise _Retry(delay, f"{type(error).__name__}: {error}") from error
            raise
        finally:
            current.reset(token)

    return run


def perform(job: Job, function_of: Callable[[str], Callable[..., Any]]) -> Any:
    """Run a job's function and then its callback; return its result."""
    try:
        result = function_of(job.func_name)(*job.args, **job.kwargs)
        if path := job.said.get("on_success"):
            function_of(path)(job, job.connection, result)
        return result
    except Exception as error:
        if path := job.said.get("on_failure"):
            function_of(path)(job, job.connection, type(error), error, error.__traceback__)
        raise


def next_delay(said: Mapping[str, Any], attempt: int) -> float | None:
    """Return after how many seconds a job that failed is tried again; None for not."""
    retry = from_wire(said.get("retry") or {})
    if attempt > retry.get("max", 0):
        return None
    intervals = retry.get("intervals") or [0]
    return float(intervals[min(attempt, len(intervals)) - 1])


def handlers(allow: Iterable[str]) -> Registry:
    """Return the handlers of jobs, for a worker: ``registry = handlers(["myapp.jobs"])`` in a
    module ``rq_worker``, and ``python -m redistq.worker rq_worker:registry --queue default``.

    ``allow`` are modules, with those below them, whose functions may run.
    """
    registry = Registry()
    # What a job raises ends it; whether it is tried again stands in the job.
    policy = RetryPolicy(retries=MAX_COUNT, retry_on=())
    registry.add(NAME, runner(Allowed(allow)), policy=policy, labelled=True)
    return registry
