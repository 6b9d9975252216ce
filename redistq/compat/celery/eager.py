"""Signatures run in this process, as ``task_always_eager`` and ``apply`` want it.

Arguments and results go through the codec of real tasks, so what a worker could not be sent fails
here too. Countdowns are not waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import Retry as _Retry
from ...protocol.keys import new_task_id
from ..wire import payload_round_trip, result_round_trip
from . import signals, states
from .canvas import Signature, chain, chord, group, maybe_signature
from .exceptions import ChordError, Ignore, Reject
from .options import options_of
from .payload import payload_of, read
from .request import Request, running
from .result import EagerResult, GroupResult, Result
from .running import ExceptionInfo
from .task import Replaced, Task, with_retries

if TYPE_CHECKING:
    from .app import Celery


def run(app: Celery, found: Signature, given: Sequence[Any] = ()) -> Result:
    """Run what a signature stands for, with results of those before it; return its result."""
    found = found.clone(given)
    if isinstance(found, chain):
        return _chain(app, found)
    if isinstance(found, chord):
        head = group(*found.tasks, app=found._app).clone(found["args"])
        results = run(app, head)
        try:
            values = results.get()
        except Exception as error:
            failed = EagerResult(new_task_id(), ChordError(str(error)), states.FAILURE, app=app)
            failed.parent = results
            return failed
        made = run(app, found.body, (values,))
        made.parent = results
        return made
    if isinstance(found, group):
        parts = [run(app, task.clone(found["args"])) for task in found.tasks]
        return GroupResult(new_task_id(), parts, app=app)
    return _task(app, found)


def _chain(app: Celery, found: chain) -> Result:
    last: Result | None = None
    given: Sequence[Any] = found["args"]
    for task in found.tasks:
        result = run(app, task, given)
        result.parent, last = last, result
        if not result.successful():
            break
        given = (result.get(),)
    if last is None:
        raise TypeError("a chain needs one task or more")
    return last


def _task(app: Celery, found: Signature) -> Result:
    task = app.task_named(found.task)
    options, beside = options_of(app, found.task, found["options"], found.args, found.kwargs)
    payload = payload_round_trip(found.task, payload_of(found.args, found.kwargs))
    args, kwargs, _ = read(found.task, payload)
    task_id = str(options.get("task_id") or new_task_id())
    result = _attempts(app, task, task_id, args, kwargs)
    if result.status == states.FAILURE:
        _link(app, beside.get("link_error"), task_id)
        if found["options"].get("throw") or app.conf.task_eager_propagates:
            result.get()
    elif result.status == states.SUCCESS:
        _link(app, beside.get("link"), result.get())
    if beside.get("ignore_result"):
        return EagerResult(task_id, None, result.status, app=app, task_name=found.task)
    return result


def _link(app: Celery, linked: Any, value: Any) -> None:
    for one in [linked] if isinstance(linked, dict) else linked or ():
        run(app, maybe_signature(one), (value,))


def _attempts(app: Celery, task: Task, task_id: str, args: list[Any], kwargs: Any) -> Result:
    """Run a task until it does not ask to be tried again."""
    function = with_retries(task)
    retries = 0
    while True:
        request = Request(
            task, args, kwargs, id=task_id, retries=retries, is_eager=True, called_directly=False,
            delivery_info={"is_eager": True, "exchange": None, "routing_key": None},
        )  # fmt: skip
        token = running.set((task, request))
        named = {"task_id": task_id, "task": task, "args": args, "kwargs": kwargs}
        signals.task_prerun.send(sender=task, **named)
        state, value, text = states.SUCCESS, None, None
        try:
            task.before_start(task_id, args, kwargs)
            value = result_round_trip(function(*args, **kwargs))
            task.on_success(value, task_id, args, kwargs)
            signals.task_success.send(sender=task, result=value)
        except Replaced as error:
            return run(app, error.sig)
        except (Ignore, Reject) as error:
            state = states.IGNORED if isinstance(error, Ignore) else states.REJECTED
        except _Retry as error:
            state, value = states.RETRY, error
            info = ExceptionInfo(error)
            reason = getattr(error, "exc", None) or error
            signals.task_retry.send(sender=task, request=request, reason=reason, einfo=info)
            task.on_retry(reason, task_id, args, kwargs, info)
        except Exception as error:
            info = ExceptionInfo(error)
            state, value, text = states.FAILURE, error, info.traceback
            task.on_failure(error, task_id, args, kwargs, info)
            signals.task_failure.send(
                sender=task, task_id=task_id, exception=error, args=args, kwargs=kwargs,
                traceback=error.__traceback__, einfo=info,
            )  # fmt: skip
        finally:
            running.reset(token)
            signals.task_postrun.send(sender=task, **named, retval=value, state=state)
        task.after_return(state, value, task_id, args, kwargs, None)
        if state != states.RETRY:
            return EagerResult(task_id, value, state, text, app=app, task_name=task.name)
        retries += 1
