"""Handler: a function that runs tasks of one name, and how it is to be run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from ..middleware import Layers
from ..protocol.keys import check_line
from ..protocol.options import check_limits, checked
from .batching import Batching
from .call_shape import CallShape
from .policy import RetryPolicy
from .signature import holds_for_any

if TYPE_CHECKING:
    from ..protocol.declared import Declared
    from ..protocol.resources import Resources

Waiting = tuple[bytes, str, list[bytes]]
"""A task that waits to run in a process: its entry, its queue, and the entry's fields as a flat
list."""


class LooksAhead:
    """A function of a handler that sees which tasks wait in its process, to prepare for them."""

    def look_by(self, waiting: Callable[[], Iterable[Waiting]]) -> None:
        """See by that function what waits, in order; called before the first task."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs tasks of one name, with its retry policy and limits.

    ``timeout`` is in seconds (None: no limit), and so is ``hard_timeout``, after which its process
    is killed (None: five seconds after ``timeout``); ``result_ttl`` is how many seconds a result is
    kept (None: the worker's setting; 0: results are not kept). ``memory`` is how many bytes the
    process may have more than when a task began, and ``resources`` what a task takes of its
    worker's.
    """

    name: str
    function: Callable[..., Any]
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    result_ttl: float | None = None
    hard_timeout: float | None = None
    memory: int | None = None
    resources: Resources | None = None
    is_async: bool = False
    streams: bool = False
    """The function yields: its items are the task's stream."""
    wants_context: bool = False
    raw: bool = False
    """The function takes and returns bytes as they are, not JSON."""
    labelled: bool = False
    """It runs tasks of the names ``name:label`` too, whatever the label; so do those of bytes."""
    gate: Mapping[str, Any] | None = None
    """When a task may run that is added by the function itself: what ``@task`` says of it."""
    declared: Declared | None = None
    """When it is to run by itself."""
    shape: CallShape | None = field(default=None, compare=False)
    """How its function is called; None: with the payload, or the payload and the context."""
    batching: Batching | None = None
    """How its tasks are gathered, of which it is given many at once; None: one by one."""
    middleware: Layers = ()
    """What stands around its tasks, the outermost first."""

    @property
    def is_call(self) -> bool:
        """Whether its function takes arguments, not one payload."""
        return self.shape is not None and self.shape.is_call

    @classmethod
    def of(cls, name: str, function: Callable[..., Any], **options: Any) -> Handler:
        """Return a handler for ``function``, which takes the payload or arguments, and may take a
        context: see CallShape.

        Raises ConfigurationError when the name or an option cannot work.
        """
        check_line("a task's name", name)
        # What was checked before, of a handler under another name, is taken as it is.
        ready = {n: options.pop(n) for n in ("resources",) if isinstance(options.get(n), tuple)}
        options = {**checked(options, f"task {name!r}"), **ready}
        check_limits(options, f"task {name!r}")
        if not callable(function):
            raise ConfigurationError(f"the handler of task {name!r} is not callable: {function!r}")
        in_loop = holds_for_any(inspect.isasyncgenfunction, function)
        is_async = in_loop or inspect.iscoroutinefunction(function)
        is_async = is_async or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        shape = CallShape(function, options.get("batching") is not None)
        streams = in_loop or holds_for_any(inspect.isgeneratorfunction, function)
        if options.get("batching") is not None:
            check_batch(name, shape, streams)
            if options.get("resources") is not None:
                raise ConfigurationError(
                    f"the handler of task {name!r} has batch=..., and resources: a batch is of "
                    "many tasks; let its worker have the resource for itself, by a queue of its own"
                )
        return cls(
            name,
            function,
            is_async=is_async,
            streams=streams,
            wants_context=shape.wants_context,
            shape=shape,
            **options,
        )


def check_batch(name: str, shape: CallShape, streams: bool) -> None:
    """Raise ConfigurationError for a function that cannot be given the payloads of many tasks."""
    if shape.is_call:
        raise ConfigurationError(
            f"the handler of task {name!r} has batch=..., and takes arguments: a batch handler "
            "takes one parameter, the list of its tasks' payloads, and may take a context beside it"
        )
    if streams:
        raise ConfigurationError(
            f"the handler of task {name!r} has batch=..., and yields: a batch handler returns a "
            "list with a result for each payload"
        )
