"""How layers are called, one around the other: around new tasks, and around handlers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

from ..errors import ConfigurationError
from ..protocol.headers import checked_headers
from .base import Layers, Middleware, NewTask, has, how_run

T = TypeVar("T")
Run = Callable[[Any, Any], Any]
"""A handler, or a layer around one: called with the payload and the context."""


# -- around new tasks ------------------------------------------------------------------------------


def new_task(
    task_id: str, name: str, queue: str, payload: Any, given: Mapping[str, Any]
) -> NewTask:
    """Return a task as middleware sees it; raises ConfigurationError for headers that are none."""
    options = dict(given)
    headers = options.pop("headers", None)
    headers = {} if headers is None else checked_headers("the headers of a task", headers)
    return NewTask(task_id, name, queue, payload, headers, options)


def given_by(task: NewTask) -> Mapping[str, Any]:
    """Return the options of a task as middleware leaves it."""
    return {**task.options, "headers": task.headers} if task.headers else task.options


def added(layers: Layers, task: NewTask, make: Callable[[NewTask], T]) -> T:
    """Return what ``make`` returns of a new task as it comes through all layers. Raises what they
    raise, and ConfigurationError where one of them hands nothing on."""
    made: list[T] = []

    def last(task: NewTask) -> str:
        if not isinstance(task, NewTask):
            raise ConfigurationError(
                f"enqueue of a middleware hands on the task it was given, next(task), not "
                f"{task!r:.60}"
            )
        made.append(make(task))
        return task.id

    call: Callable[[NewTask], str] = last
    for layer in reversed(layers):
        if has(layer, "enqueue"):
            call = functools.partial(layer.enqueue, next=call)
    call(task)
    if len(made) != 1:
        raise ConfigurationError(
            f"enqueue of a middleware called next {len(made)} times for task {task.name!r}, and "
            "once is right; to refuse a task, raise an error"
        )
    return made[0]


def headers_of(
    layers: Layers, task_id: str, name: str, queue: str, given: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    """Return the headers of a task whose payload is packed already, as they come through all
    layers."""
    if not layers:
        return given
    task = new_task(task_id, name, queue, None, {} if given is None else {"headers": given})
    return added(layers, task, lambda task: checked_headers("the headers of a task", task.headers))


# -- around handlers -------------------------------------------------------------------------------


def running(layers: Layers, name: str, run: Run, *, is_async: bool) -> Run:
    """Return a handler with layers around it; raises ConfigurationError for one that cannot stand
    around such a handler."""
    for layer in reversed(layers):
        if has(layer, "run"):
            run = _around(layer, name, run, is_async)
    return run


def _around(layer: Middleware, name: str, inner: Run, is_async: bool) -> Run:
    how = how_run(layer)
    if how == "yields":
        make = _async_yielding if is_async else _yielding
        return make(layer.run, inner)
    if (how == "async") is not is_async:
        kind = type(layer).__name__
        here = "an async def handler" if is_async else "a plain function"
        raise ConfigurationError(
            f"{kind}.run is {'async def' if how == 'async' else 'a plain function'} and cannot "
            f"stand around task {name!r}, {here}: write it with yield, def run(self, context, "
            "payload), and it stands around both"
        )
    outer = layer.run

    def run(payload: Any, context: Any) -> Any:
        return outer(context, payload, lambda payload: inner(payload, context))

    return run


def _yielding(outer: Callable[..., Generator[Any, Any, Any]], inner: Run) -> Run:
    def run(payload: Any, context: Any) -> Any:
        layer = outer(context, payload)
        handed_on = _first(layer)
        try:
            result = inner(payload if handed_on is None else handed_on, context)
        except BaseException as error:  # the handler's: the layer may look at it, or handle it
            return _raised(layer, error)
        return _returned(layer, result)

    return run


def _async_yielding(outer: Callable[..., Generator[Any, Any, Any]], inner: Run) -> Run:
    async def run(payload: Any, context: Any) -> Any:
        layer = outer(context, payload)
        handed_on = _first(layer)
        try:
            result = await inner(payload if handed_on is None else handed_on, context)
        except BaseException as error:  # the handler's: the layer may look at it, or handle it
            return _raised(layer, error)
        return _returned(layer, result)

    return run


def _first(layer: Generator[Any, Any, Any]) -> Any:
    """Run a layer until it yields."""
    try:
        return next(layer)
    except StopIteration:
        raise ConfigurationError(
            f"{_name_of(layer)} returned without a yield: the task was not run; to refuse it, "
            "raise an error"
        ) from None


def _returned(layer: Generator[Any, Any, Any], result: Any) -> Any:
    """Send a result into a layer; return its own, where it has one."""
    try:
        layer.send(result)
    except StopIteration as end:
        return result if end.value is None else end.value
    raise _yields_again(layer)


def _raised(layer: Generator[Any, Any, Any], error: BaseException) -> Any:
    """Raise an error in a layer; return what it makes of it, or raise what it raises."""
    before = error.__traceback__
    try:
        layer.throw(error)
    except StopIteration as end:
        return end.value
    except BaseException as raised:  # the same one, as a rule: it looks as if nothing was around
        if raised is error:
            with contextlib.suppress(BaseException):  # its own __setattr__
                error.__traceback__ = before
        raise
    raise _yields_again(layer)


def _yields_again(layer: Generator[Any, Any, Any]) -> ConfigurationError:
    layer.close()
    return ConfigurationError(f"{_name_of(layer)} yields twice: a layer yields once")


def _name_of(layer: Generator[Any, Any, Any]) -> str:
    return str(getattr(layer, "__qualname__", "run of a middleware"))
