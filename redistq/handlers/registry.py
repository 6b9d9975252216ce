"""Registries of handlers by the names of tasks, and ``@task``, which fills them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

from ..errors import ArgumentError, ConfigurationError
from ..logger import logger
from ..middleware import Layers, Middleware, checked_middleware
from ..protocol.gate import handler_gate
from ..protocol.options import (
    DeclaredKeywords,
    HandlerKeywords,
    NeedKeywords,
    TaskDecoratorKeywords,
    listed,
    unknown_option,
)
from .batching import Batching
from .conversion import types_of
from .depends import Overrides
from .handler import Handler
from .lifespans import Lifespan
from .plain import plain_arguments
from .policy import ExceptionTypes, RetryPolicy
from .typed_task import MARK, AsyncTask, P, R, Task, equip

if TYPE_CHECKING:
    from ..protocol.declared import Declared

log = logger("redistq.worker")

Function = TypeVar("Function", bound=Callable[..., Any])
_OF_SCHEDULES = frozenset(DeclaredKeywords.__annotations__)
_NEEDS = frozenset(NeedKeywords.__annotations__)


class TaskDecorator(Protocol):
    """What ``@task(...)`` returns."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class Registry(Mapping[str, Handler]):
    """A set of handlers by task name; a second handler for a name is refused."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self._handlers: dict[str, Handler] = {}
        self.layers: Layers = ()
        """Middleware of all its tasks, the outermost first."""
        self.lifespans: tuple[Lifespan, ...] = ()
        """What a worker process with these handlers has from its start to its end, in order."""
        self.overrides = Overrides()
        """Which factories of dependencies stand in for others."""
        for name, function in (handlers or {}).items():
            self.add(name, function)

    def add(self, name: str, function: Callable[..., Any] | Handler, **options: Any) -> Handler:
        """Register ``function`` under ``name``; its own ``@task`` options are kept."""
        # The mark travels with functools.wraps: what is run is what was given, whatever a decorator
        # above @task made of the function, with the options that @task was given.
        marked = function if isinstance(function, Handler) else getattr(function, MARK, None)
        called = function.function if isinstance(function, Handler) else function
        if isinstance(marked, Handler) and not options:
            layers = marked.middleware if isinstance(function, Handler) else ()
            handler = Handler.of(
                name,
                called,
                policy=marked.policy,
                timeout=marked.timeout,
                result_ttl=marked.result_ttl,
                hard_timeout=marked.hard_timeout,
                memory=marked.memory,
                resources=marked.resources,
                gate=marked.gate,
                declared=marked.declared,
                batching=marked.batching,
                middleware=_together(self.layers, layers),
                raw=marked.raw,
                labelled=marked.labelled,
            )
        else:
            handler = Handler.of(name, called, middleware=self.layers, **options)
        known = self._handlers.get(name)
        if known is not None and _origin(known) != _origin(handler):
            raise ConfigurationError(
                f"two handlers want the task name {name!r}: {known.function!r} and "
                f"{handler.function!r}; give one of them another name"
            )
        self._handlers[name] = handler
        return handler

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        backoff_cap: float = 600.0,
        jitter: float = 0.25,
        retry_on: ExceptionTypes | type[BaseException] = (Exception,),
        never_retry: ExceptionTypes | type[BaseException] = (),
        timeout: float | None = None,
        hard_timeout: float | None = None,
        result_ttl: float | None = None,
        **options: Unpack[TaskDecoratorKeywords],
    ) -> TaskDecorator: ...
    @listed(TaskDecoratorKeywords)
    def task(
        self,
        function: Function | None = None,
        /,
        *,
        name: str | None = None,
        retries: int = 3,
        backoff: float = 1.0,
        backoff_cap: float = 600.0,
        jitter: float = 0.25,
        retry_on: ExceptionTypes | type[BaseException] = (Exception,),
        never_retry: ExceptionTypes | type[BaseException] = (),
        timeout: float | None = None,
        hard_timeout: float | None = None,
        result_ttl: float | None = None,
        **options: Unpack[TaskDecoratorKeywords],
    ) -> Any:
        """Register the decorated function as a handler; the function itself stays as it was.

        ``name`` defaults to the function's own. See RetryPolicy for the retry options and Handler
        for ``timeout``, ``hard_timeout`` and ``result_ttl`` (in seconds). ``limits``, ``order``,
        ``group``, ``unique``, ``expires`` and ``priority`` hold for tasks that are added by the
        function itself, ``producer.add_task(function, payload)``; names in braces in their keys
        are looked up in the payload: ``limits="tenant:{tenant}"``.

        ``memory`` ("2GB") is how much more than at its start the process may have while it runs,
        and ``resources`` ({"gpu": 1}) what it takes of its worker's: docs/processes.md.

        ``cron`` or ``every`` let it run by itself, with ``payload``: the first worker that starts
        with it sets the schedule, of the task's name; ``tz``, ``missed`` and ``overlap`` are those
        of producer.schedules.set.

        With ``batch`` the function is given the payloads of up to so many tasks as a list, gathered
        for at most ``within`` seconds (0.1): see docs/batch_handlers.md.

        What it returns is the task's result, JSON; a flow (``sig``, ``chain``, ``chord`` …) takes
        the task's place instead, which ends as the flow's last task does.
        """
        if function is not None and not callable(function):
            wanted = f"name={function!r}" if isinstance(function, str) else "name=..., retries=..."
            raise ConfigurationError(
                f"@task takes its options by name: write @task({wanted}), "
                f"not @task({function!r:.200})"
            )
        if unknown := options.keys() - TaskDecoratorKeywords.__annotations__.keys():
            raise unknown_option("@task", sorted(unknown)[0], _TASK_OPTIONS)
        declared = _declared({n: v for n, v in options.items() if n in _OF_SCHEDULES})
        needs = {n: v for n, v in options.items() if n in _NEEDS}
        gate = {n: v for n, v in options.items() if n in HandlerKeywords.__annotations__}
        batching = _batching(options.get("batch"), options.get("within"))
        asked = handler_gate(gate, "a task") if gate else None
        policy = RetryPolicy(
            retries=retries,
            backoff=backoff,
            backoff_cap=backoff_cap,
            jitter=jitter,
            retry_on=retry_on,
            never_retry=never_retry,
        )

        def register(function: Function) -> Function:
            handler = self.add(
                name or str(getattr(function, "__name__", "")),
                function,
                policy=policy,
                timeout=timeout,
                hard_timeout=hard_timeout,
                result_ttl=result_ttl,
                gate=asked or None,
                declared=declared,
                **needs,
                batching=batching,
            )
            try:
                setattr(function, MARK, handler)
                equip(function, handler)
            except AttributeError:
                pass  # a built-in or bound method takes no mark; it is registered all the same
            if declared is not None:
                OfFunction.of(handler, declared.payload, {})  # raises for one that it cannot take
            return function

        return register if function is None else register(function)

    def middleware(self, *middleware: Middleware) -> None:
        """Let these stand around all tasks of this registry, those that are registered later too,
        in this order inside what is there already: see redistq.Middleware."""
        self.layers = _together(self.layers, checked_middleware(middleware))
        for name, handler in self._handlers.items():
            layers = _together(handler.middleware, self.layers)
            self._handlers[name] = replace(handler, middleware=layers)

    def surrounded(self, outer: Layers) -> Registry:
        """Return a registry of the same handlers with more middleware around them all."""
        wider = Registry()
        wider.layers = _together(outer, self.layers)
        for name, handler in self._handlers.items():
            layers = _together(outer, handler.middleware)
            wider._handlers[name] = replace(handler, middleware=layers)
        wider.lifespans = self.lifespans
        wider.overrides.include(self.overrides)
        return wider

    def lifespan(self, function: Function, /) -> Function:
        """Have worker processes with these handlers enter ``function`` before their first task,
        and leave it when they have drained.

        It yields once: what comes before is the start, what comes behind the end; it may be
        ``async``, or return a context manager. A mapping that it yields is in ``context.state``;
        any other object is ``context.state``, where it is the only one. Several are entered in
        the order in which they were declared, and left in the other. With a parameter it is given
        what those before it yielded. See docs/lifespan.md.
        """
        found = Lifespan.of(function)
        self._add_lifespan(found)
        return function

    def override(
        self, factory: Callable[..., Any], other: Callable[..., Any]
    ) -> contextlib.AbstractContextManager[None]:
        """Return a block in which ``other`` makes what ``factory`` makes for these handlers; for
        tests: ``with registry.override(open_session, lambda: FakeSession()): ...``

        Workers in this process, those that run and those that start in the block, heed it, and
        worker processes that start in it. Raises ConfigurationError for factories that would wait
        for each other in a circle.
        """
        return self.overrides.put(factory, other)

    def include(self, other: Mapping[str, Callable[..., Any] | Handler]) -> None:
        """Take all that another registry holds, or a mapping of names to functions; raises
        ConfigurationError where both have a handler of one name."""
        for name, function in other.items():
            self.add(name, function)
        if isinstance(other, Registry):
            for lifespan in other.lifespans:
                self._add_lifespan(lifespan)
            self.overrides.include(other.overrides)

    def _add_lifespan(self, new: Lifespan) -> None:
        """Add one behind the others, or in place of itself."""
        kept = [new if new.is_again(one) else one for one in self.lifespans]
        self.lifespans = tuple(kept) if new in kept else (*kept, new)

    def add_handler(self, handler: Handler) -> None:
        """Register a handler that is complete as it is, in place of one of the same name."""
        self._handlers[handler.name] = handler

    def warn_of_skipped(self) -> None:
        """Say which decorators do not run in tasks: those above @task, which was given what is
        below it, on a function that stands in its module under its own name."""
        for handler in self._handlers.values():
            function: Any = handler.function
            found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
            for part in str(getattr(function, "__qualname__", "")).split("."):
                found = getattr(found, part, None)
            marked = getattr(found, MARK, None)
            if isinstance(marked, Handler) and marked is handler and found is not function:
                log.warning(
                    "task %s runs without the decorators above @task on %s: put @task on top of "
                    "them, or give the worker the decorated function in task_handlers",
                    handler.name,
                    function.__qualname__,
                )

    def __getitem__(self, name: str) -> Handler:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def __repr__(self) -> str:
        return f"Registry({', '.join(sorted(self._handlers)) or 'empty'})"


def handler_of(function: Any) -> Handler:
    """Return the handler that ``@task`` made of a function; raises ConfigurationError."""
    handler = function if isinstance(function, Handler) else getattr(function, MARK, None)
    if not isinstance(handler, Handler):
        raise ConfigurationError(
            f"a task's type is a name or a function decorated with @task, not {function!r:.200}"
        )
    return handler


@dataclass(slots=True)
class OfFunction:
    """A task that is added by its decorated function."""

    name: str
    payload: Any
    """What is written, once it is JSON."""
    given: Mapping[str, Any]
    """Its options: those that were given come before what ``@task`` says of when it may run."""
    named: Any
    """What keys look names up in: the payload, or the arguments by their names."""

    @classmethod
    def of(cls, function: Any, payload: Any, given: Mapping[str, Any]) -> OfFunction:
        """Return the task; raises ConfigurationError for what is no decorated function, and
        ArgumentError for a payload that is none of it."""
        handler = handler_of(function)
        if handler.gate:
            given = {**handler.gate, **{k: v for k, v in given.items() if v is not None}}
        shape = handler.shape
        if shape is None:
            return cls(handler.name, payload, given, payload)
        types = shape.types or types_of(handler)
        if not shape.is_call:
            if types.is_needed and given.get("takes") is None:
                types.check((payload,), {})
            if types.is_needed or type(payload) not in _JSON:
                payload = plain_arguments(handler.name, payload, shape.payload_name or "payload")
            return cls(handler.name, payload, given, payload)
        try:
            call = shape.call_of(payload)
        except TypeError as error:
            raise ArgumentError(
                f"the payload of task {handler.name!r} does not fit: {error}"
            ) from None
        if call is None:
            raise ArgumentError(
                f"task {handler.name!r} takes arguments, which {payload!r:.80} is not: add it with "
                f"{handler.name}.delay(...), or with the payload "
                '{"args": [...], "kwargs": {...}}'
            )
        if types.is_needed:
            types.check(call["args"], call["kwargs"])
        call.task = handler.name
        return cls(handler.name, call, given, call.named)


def _batching(batch: Any, within: Any) -> Batching | None:
    """Return how a handler's tasks are gathered; None: they are not. Raises ConfigurationError."""
    if batch is not None:
        return Batching.of(batch, within)
    if within is not None:
        raise ConfigurationError("within says how long a batch is gathered: give batch=..., too")
    return None


def _declared(given: Mapping[str, Any]) -> Declared | None:
    """Return the schedule that ``@task`` declares; None for none. Raises ConfigurationError."""
    if not given:
        return None
    from ..protocol.declared import Declared

    return Declared.of(given)


def _together(outer: Layers, inner: Layers) -> Layers:
    """Return both, each once."""
    return (*outer, *(one for one in inner if all(one is not other for other in outer)))


def _origin(handler: Handler) -> tuple[Any, Any]:
    """The same function defined again (a cell run twice, a module reloaded) replaces itself."""
    function = handler.function
    return getattr(function, "__module__", None), getattr(function, "__qualname__", id(function))


_JSON = frozenset({dict, list, tuple, str, int, float, bool, type(None)})
"""Types of payloads that are written as they are."""
_TASK_OPTIONS = (
    *("name", "retries", "backoff", "backoff_cap", "jitter", "retry_on", "never_retry"),
    *("timeout", "hard_timeout", "result_ttl", *TaskDecoratorKeywords.__annotations__),
)

default_registry = Registry()
"""The registry that ``@task`` fills and that a worker uses when it is given no other."""

task = default_registry.task

lifespan = default_registry.lifespan
"""``@lifespan``: as ``@task``, for what the worker processes with these handlers have."""

override = default_registry.override
"""For tests: another factory in place of one, for the handlers that ``@task`` registered."""
