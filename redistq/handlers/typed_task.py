"""What ``@task`` puts on a function: ``delay``, ``map`` and the like, ``options``, ``task_name``.

The function itself stays as it is. ``Task`` is what type checkers see of it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack

from ..errors import ConfigurationError
from ..protocol.options import OPTIONS_OF_TASKS, TaskKeywords, unknown_option

if TYPE_CHECKING:
    from ..flows import Signature
    from ..producer.handle import TaskHandle
    from .handler import Handler

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
NAMES = ("delay", "adelay", "options", "task_name", "s", "map", "amap", "starmap", "astarmap")
"""What a decorated function has."""
MARK = "__redistq_handler__"
"""Where its handler is."""
ADDED = frozenset({MARK, *NAMES})
"""All that ``@task`` puts on a function: none of it is the function's own."""
_OPTIONS = frozenset({*OPTIONS_OF_TASKS, "task_id"})


class CallKeywords(TaskKeywords, total=False):
    """The options that ``task.options(...)`` takes."""

    execute_at: Any
    task_id: str | None


class Sends(Protocol[P, R]):
    """What adds tasks of one function."""

    @property
    def task_name(self) -> str:
        """The name of the tasks."""

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Add a task that calls the function with these arguments."""

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``delay``, with await."""

    def options(self, **options: Unpack[CallKeywords]) -> Sends[P, R]:
        """Return the same with options of the task: those of TaskProducer.add_task."""

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Return the task as a part of a flow: see redistq.chain, group and chord."""

    def map(self, items: Iterable[Any]) -> Sequence[TaskHandle[R]]:
        """Add a task for each item, its first argument, in few calls to the server."""

    def starmap(self, items: Iterable[Iterable[Any]]) -> Sequence[TaskHandle[R]]:
        """As ``map``; each item holds the arguments of one task."""

    async def amap(self, items: Iterable[Any]) -> Sequence[TaskHandle[R]]:
        """As ``map``, with await."""

    async def astarmap(self, items: Iterable[Iterable[Any]]) -> Sequence[TaskHandle[R]]:
        """As ``starmap``, with await."""


class Task(Sends[P, R], Protocol[P, R]):
    """A function decorated with ``@task``: called here as ever, or added as a task."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, here and now."""


class AsyncTask(Sends[P, R], Protocol[P, R]):
    """As Task, of an ``async def`` function: called here it is awaited."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function, here and now."""


class TaskCalls(Generic[P, R]):
    """Adds tasks of one handler, with the same options each."""

    __slots__ = ("_given", "_handler")

    def __init__(self, handler: Handler, given: Mapping[str, Any] | None = None) -> None:
        self._handler = handler
        self._given = given or {}

    @property
    def task_name(self) -> str:
        """The name of the tasks."""
        return self._handler.name

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Add a task that calls the function with these arguments; return its handle.

        Raises TypeError for arguments that do not fit, ArgumentError for one that cannot be sent,
        and what TaskProducer.add_task raises.
        """
        from ..producer import active

        return active.add(self._handler, _payload(self._handler, args, kwargs), self._given)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``delay``, by an AsyncTaskProducer of the running loop."""
        from ..producer import active

        payload = _payload(self._handler, args, kwargs)
        return await active.add_async(self._handler, payload, self._given)

    def options(self, **options: Unpack[CallKeywords]) -> TaskCalls[P, R]:
        """Return the same with options of the task: those of TaskProducer.add_task, ``task_id`` and
        ``execute_at``. Raises ConfigurationError for one that there is none of."""
        for name in options:
            if name not in _OPTIONS:
                raise unknown_option(f"{self.task_name}.options()", name, _OPTIONS)
        return TaskCalls(self._handler, {**self._given, **options})

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Return the task as a part of a flow (redistq.chain, group, chord), with its options.

        In a flow the result of what comes before it is its last argument, where it has room for one
        more; after a group the list of all results.
        """
        from ..flows import Signature

        return Signature(self._handler.function, args, kwargs, self._given)

    def map(self, items: Iterable[Any]) -> Sequence[TaskHandle[R]]:
        """Add a task for each item, its first argument, in few calls to the server; return their
        handles in order. Every item is checked before the first is sent: raises as ``delay``, and
        ServerUnavailable as TaskProducer.add_tasks."""
        return self.starmap((item,) for item in items)

    def starmap(self, items: Iterable[Iterable[Any]]) -> Sequence[TaskHandle[R]]:
        """As ``map``; each item holds the arguments of one task."""
        from ..producer import active

        return active.add_many(self._handler, self._payloads(items), self._given)

    async def amap(self, items: Iterable[Any]) -> Sequence[TaskHandle[R]]:
        """As ``map``, by an AsyncTaskProducer of the running loop."""
        return await self.astarmap((item,) for item in items)

    async def astarmap(self, items: Iterable[Iterable[Any]]) -> Sequence[TaskHandle[R]]:
        """As ``amap``; each item holds the arguments of one task."""
        from ..producer import active

        return await active.add_many_async(self._handler, self._payloads(items), self._given)

    def _payloads(self, items: Iterable[Iterable[Any]]) -> Iterator[Any]:
        if "task_id" in self._given:
            raise ConfigurationError("each of many tasks has an id of its own: leave out task_id")
        return (_payload(self._handler, tuple(args), {}) for args in items)

    def __repr__(self) -> str:
        return f"<tasks {self.task_name}>"


def _payload(handler: Handler, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if handler.shape is None:
        raise ConfigurationError(f"task {handler.name!r} takes bytes as they are, not arguments")
    return handler.shape.payload(args, kwargs)


def equip(function: Any, handler: Handler) -> None:
    """Give a decorated function what adds its tasks; raises AttributeError where it takes no
    attributes. What an object has under such a name stays its own."""
    calls: TaskCalls[Any, Any] = TaskCalls(handler)
    again = isinstance(getattr(getattr(function, "delay", None), "__self__", None), TaskCalls)
    for name in NAMES:
        if again or not hasattr(function, name):
            setattr(function, name, getattr(calls, name))
