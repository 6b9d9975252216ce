"""``@task`` for Django: redistq's own, and ``enqueue``, which waits for the transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, overload

from ...handlers import Handler, default_registry, handler_of
from ...handlers.call_shape import Call
from ...handlers.typed_task import P, R, Sends, TaskCalls
from ...producer import active
from ...producer.gated import TaskId
from ...producer.handle import TaskHandle
from ...protocol.codec import DEFAULT_MAX_BYTES, encode_payload, loads
from ...protocol.keys import new_task_id
from .options import on_commit


class DjangoTask(Sends[P, R], Protocol[P, R]):
    """A decorated function, as type checkers see it."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, here and now."""

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Add a task once the transaction has been committed."""

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``enqueue``, with await."""

    def using(self, **options: Any) -> OnCommit[P, R]:
        """Return the same with options of the task."""


class OnCommit(Generic[P, R]):
    """Adds tasks of one handler when the transaction is committed, with the same options each."""

    __slots__ = ("_given", "_handler")

    def __init__(self, handler: Handler, given: Mapping[str, Any] | None = None) -> None:
        self._handler = handler
        self._given = dict(given or {})

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Add a task that calls the function with these arguments, once the transaction has been
        committed; after a rollback there is none. Return its handle.

        Arguments are checked and copied now: what is changed after this call is not sent. Raises
        TypeError for arguments that do not fit and ArgumentError for one that cannot be sent; what
        the server says comes from the commit, after which nothing is rolled back.
        """
        handler, given = self._handler, dict(self._given)
        assert handler.shape is not None
        payload = _as_it_is(handler, handler.shape.payload(args, kwargs))
        alias = given.pop("database", None)
        here = active.target()
        task_id = str(given.pop("task_id", None) or new_task_id())

        def add() -> None:
            active.add(handler, payload, {**given, "task_id": task_id})

        on_commit(add, alias)
        return TaskHandle(TaskId.of(task_id, here.producer().keys.stream), handler, here)

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """As ``enqueue``, in the thread of the request's database connections."""
        from asgiref.sync import sync_to_async

        added: TaskHandle[R] = await sync_to_async(self.enqueue)(*args, **kwargs)
        return added

    def using(self, **options: Any) -> OnCommit[P, R]:
        """Return the same with options of the task: those of TaskProducer.add_task, ``task_id``,
        ``execute_at``; and ``database``, the alias of the one whose transaction is waited for.
        Raises ConfigurationError for one that there is none of."""
        others = {name: value for name, value in options.items() if name != "database"}
        TaskCalls(self._handler).options(**others)
        return OnCommit(self._handler, {**self._given, **options})


def _as_it_is(handler: Handler, payload: Any) -> Any:
    """Return a payload as it would be sent now; raises what cannot be sent."""
    if isinstance(payload, Call):
        payload.task = handler.name
    sent = loads(encode_payload(handler.name, payload, DEFAULT_MAX_BYTES))
    if not isinstance(payload, Call):
        return sent
    kept = Call(sent)
    kept.named, kept.task = dict(payload.named), handler.name  # keys are made of them
    return kept


@overload
def task(function: Callable[P, R], /) -> DjangoTask[P, R]: ...
@overload
def task(
    function: None = None, /, **options: Any
) -> Callable[[Callable[P, R]], DjangoTask[P, R]]: ...
def task(function: Any = None, /, **options: Any) -> Any:
    """Register the decorated function as a handler, as redistq's ``@task`` does, with ``enqueue``,
    ``aenqueue`` and ``using`` beside ``delay``, which waits for no transaction.

    Its name is that of its module and its own, ``shop.tasks.resize``. The options are those of
    redistq's ``@task``.
    """

    def decorate(function: Any) -> Any:
        name = options.get("name") or f"{function.__module__}.{function.__qualname__}"
        made: Any = default_registry.task(**{**options, "name": name})(function)
        calls: OnCommit[Any, Any] = OnCommit(handler_of(made))
        for method in ("enqueue", "aenqueue", "using"):
            setattr(made, method, getattr(calls, method))
        return made

    return decorate if function is None else decorate(function)
